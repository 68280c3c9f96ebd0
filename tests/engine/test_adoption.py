"""From a column of plaintext to a column of envelopes, while processes of the step before still run."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from jwt_column import JWT, EncryptedJWT, KeyRing, decrypt_token, encrypt_token, key_usage
from jwt_column.errors import (
    ConfigurationError,
    DecryptionError,
    InvalidTokenError,
    JWTColumnError,
    KeyUnavailableError,
    MalformedEnvelopeError,
    PlaintextFoundError,
    ReencryptionError,
)
from jwt_column.format import base64url
from migrations_helpers.engine.conversions import Adoption
from tests.column.test_cipher import Forgetful
from tests.formats.test_formats import Project
from tests.support.models import mapped, table_of
from tests.support.tokens import revealed_by, rfc_token, signed_token
from tests.support.workload import NEW_KEY, OLD_KEY, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.support.databases import Database

RING: Final = KeyRing([NEW_KEY])
CONTEXT: Final = "sessions.token"
# The ring of a URI is kept for the life of a process, so this name belongs to this file.
TYPE: Final = "EncryptedJWT('env:ADOPTION_KEYS', storage={!r})"

every_storage = pytest.mark.parametrize("storage", ["text", "binary"])


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADOPTION_KEYS", base64url.encode(NEW_KEY))


@pytest.fixture
def project(tmp_path: Path, database: Database) -> Project:
    return Project(tmp_path, database.url())


def raw_table(storage: str) -> sa.Table:
    return table_of(sa.Text if storage == "text" else sa.LargeBinary)


class Process:
    """A process of the application at one step of the ladder: ``"none"`` is the code from before."""

    def __init__(self, database: Database, step: Any, storage: Any) -> None:
        self.step = step
        self._encode = step == "none" and storage == "binary"
        column_type: Any = sa.Text() if storage == "text" else sa.LargeBinary()
        if step != "none":
            column_type = EncryptedJWT(RING, storage=storage, plaintext=step)
        self.table = table_of(column_type)
        # One connection, as a process keeps it: nothing of another process is seen but what lies in the database.
        self.engine = sa.create_engine(database.url(), poolclass=sa.StaticPool)

    def write(self, number: int, token: str | None) -> None:
        """Write a row, whether it is there or not."""
        value: Any = token.encode() if self._encode and token is not None else token
        change = self.table.update().where(self.table.c.id == number).values(token=value)
        with self.engine.begin() as connection:
            if not connection.execute(change).rowcount:
                connection.execute(self.table.insert().values(id=number, token=value))

    def read(self, number: int) -> str | None:
        """Return what the process takes for the row's token."""
        with self.engine.connect() as connection:
            value = connection.execute(
                sa.select(self.table.c.token).where(self.table.c.id == number)
            ).scalar_one()
        if self._encode and value is not None:
            value = value.decode("latin-1")
        return None if value is None else str(value)

    def close(self) -> None:
        self.engine.dispose()


class Deployment:
    """A table, and the processes that work on it at the same time."""

    def __init__(self, database: Database, storage: str) -> None:
        self._database = database
        self.storage = storage
        self.raw = raw_table(storage)
        self._processes: list[Process] = []
        self.engine = sa.create_engine(database.url(), poolclass=sa.NullPool)
        self.raw.create(self.engine)

    def start(self, step: str) -> Process:
        process = Process(self._database, step, self.storage)
        self._processes.append(process)
        return process

    def stored(self) -> dict[int, Any]:
        with self.engine.connect() as connection:
            return {row.id: row.token for row in connection.execute(self.raw.select())}

    def put(self, number: int, value: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(self.raw.insert().values(id=number, token=value))

    def in_form(self, token: str) -> Any:
        """Return a token in the clear as the column holds it."""
        return token if self.storage == "text" else token.encode()

    def close(self) -> None:
        while self._processes:
            self._processes.pop().close()


@pytest.fixture
def deployment(database: Database, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """A table with the storage form that the test is parametrized with, or of text."""
    parameters = getattr(request.node, "callspec", None)
    deployment = Deployment(database, parameters.params.get("storage", "text") if parameters else "text")
    yield deployment
    deployment.close()


def encrypt_line(storage: str, **options: Any) -> str:
    """Return the line of a revision that encrypts the table."""
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return f"op.encrypt_jwt_column('sessions', 'token', type_={TYPE.format(storage)}{given})"


def gate_line(storage: str) -> str:
    return f"op.ensure_jwt_column_current('sessions', 'token', type_={TYPE.format(storage)})"


def opened(stored: dict[int, Any]) -> dict[int, str | None]:
    return {
        number: None if value is None else str(decrypt_token(value, RING, context=CONTEXT))
        for number, value in stored.items()
    }


# -- the ladder ----------------------------------------------------------------------------------------------------


def exchange(first: Process, second: Process, start: int) -> dict[int, str | None]:
    """Let two processes write rows of their own and each other's, and each read all of them."""
    written: dict[int, str | None] = {}
    for number, process in enumerate([first, second, first, second], start):
        written[number] = signed_token(sub=f"{process.step} {number}")
        process.write(number, written[number])
    for process, number in ((second, start), (first, start + 1)):
        written[number] = signed_token(sub=f"{process.step} {number} again")
        process.write(number, written[number])
    written[start + 4] = None
    second.write(start + 4, None)
    for process in (first, second):
        for number, token in written.items():
            assert token == process.read(number), (process.step, number)
    return written


@every_storage
class TestLadder:
    """Two steps at a time."""

    @pytest.mark.parametrize(("before", "after"), [("none", "write"), ("write", "read"), ("none", "none")])
    def test_neighbours_read_each_other(
        self, deployment: Deployment, storage: str, before: str, after: str
    ) -> None:
        exchange(deployment.start(before), deployment.start(after), 1)

    def test_read_and_refuse_read_each_other_once_the_rows_are_encrypted(
        self, deployment: Deployment, project: Project, storage: str
    ) -> None:
        old, new = deployment.start("none"), deployment.start("read")
        for number in range(1, 6):
            old.write(number, signed_token(sub=f"old {number}"))
        old.close()
        strict = deployment.start("refuse")
        for number in range(1, 6):
            with pytest.raises(PlaintextFoundError):
                strict.read(number)
        project.revision(encrypt_line(storage))
        project.upgrade()
        for number in range(1, 6):
            assert new.read(number) == strict.read(number) == signed_token(sub=f"old {number}")
        exchange(new, strict, 6)

    def test_whole_ladder(self, deployment: Deployment, project: Project, storage: str) -> None:
        """Every step beside the one before; every token that was written on the way is there at its end."""
        written: dict[int, str | None] = {}
        steps = ["none", "write", "read"]
        running = deployment.start("none")
        for place, step in enumerate(steps, 1):
            following = deployment.start(step)
            written |= exchange(running, following, 10 * place)
            for number, token in written.items():
                assert token == following.read(number), (step, number)
            running = following
        project.revision(encrypt_line(storage))
        project.revision(gate_line(storage))
        project.upgrade()
        strict = deployment.start("refuse")
        written |= exchange(running, strict, 100)
        assert written == {number: strict.read(number) for number in written}
        assert written == opened(deployment.stored())

    def test_write_stores_what_the_old_code_stores(self, deployment: Deployment, storage: str) -> None:
        token = signed_token(sub="alice")
        deployment.start("none").write(1, token)
        deployment.start("write").write(2, token)
        stored = deployment.stored()
        assert stored[1] == stored[2] == deployment.in_form(token)

    def test_write_makes_an_envelope_plaintext_again(self, deployment: Deployment, storage: str) -> None:
        """The way back, from step 2 to step 1."""
        token = signed_token(sub="alice")
        deployment.start("read").write(1, token)
        process = deployment.start("write")
        process.write(1, process.read(1))
        assert deployment.stored() == {1: deployment.in_form(token)}

    def test_step_that_is_left_out_shows(self, deployment: Deployment, storage: str) -> None:
        """Which pairs do not go together, and what becomes of it."""
        token = signed_token(sub="alice")
        none, write, read, refuse = (deployment.start(step) for step in ("none", "write", "read", "refuse"))
        for number, writer in enumerate((none, write), 1):
            writer.write(number, token)
            for reader in (none, write, read):
                assert token == reader.read(number)
            with pytest.raises(PlaintextFoundError) as caught:
                refuse.read(number)
            assert CONTEXT in str(caught.value)
            assert not revealed_by(caught.value, token)
        for number, writer in enumerate((read, refuse), 3):
            writer.write(number, token)
            for reader in (write, read, refuse):
                assert token == reader.read(number)
            # The old code does not notice: it takes the envelope for a token, which no verifier accepts.
            taken = none.read(number)
            assert taken is not None
            with pytest.raises(InvalidTokenError):
                JWT(taken)

    def test_old_code_that_copies_an_envelope_within_its_column_does_no_harm(
        self, deployment: Deployment, storage: str
    ) -> None:
        """It wrote back what it had read, from step 2 on: not encrypted twice, and still to be opened."""
        token = signed_token(sub="alice")
        old, new = deployment.start("none"), deployment.start("read")
        new.write(1, token)
        taken = deployment.stored()[1]
        deployment.put(2, taken)
        assert new.read(2) == token
        if storage == "text":
            old.write(1, taken)
            assert new.read(1) == token


# -- the operation while the application writes --------------------------------------------------------------------


class Writer:
    """A process in a thread, which writes tokens to rows that nobody else writes to."""

    def __init__(self, process: Process, rows: Sequence[int]) -> None:
        self._process = process
        self._rows = rows
        self._stop = threading.Event()
        self._wrote = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.written: dict[int, str] = {}
        self.commits = 0
        self.error: Exception | None = None
        self._thread.start()
        assert self._wrote.wait(PATIENCE)

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                number = self._rows[self.commits % len(self._rows)]
                token = signed_token(sub=f"{self._process.step}", jti=f"{number}-{self.commits}")
                try:
                    self._process.write(number, token)
                except DBAPIError:
                    # A busy database; the application tries again.
                    continue
                self.written[number] = token
                self.commits += 1
                self._wrote.set()
                # An application does other things too, and SQLite has one writer.
                time.sleep(0.003)
        except Exception as error:  # noqa: BLE001 - shown by the test
            self.error = error
            self._wrote.set()

    def stop(self) -> dict[int, str]:
        self._stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        assert self.error is None
        return self.written


ROWS: Final = 300


@every_storage
class TestWhileTheApplicationWrites:
    """``op.encrypt_jwt_column`` beside processes that go on."""

    def fill(self, deployment: Deployment) -> dict[int, str]:
        tokens = {number: signed_token(sub=f"old {number}") for number in range(1, ROWS + 1)}
        rows = [{"id": number, "token": deployment.in_form(token)} for number, token in tokens.items()]
        with deployment.engine.begin() as connection:
            connection.execute(deployment.raw.insert(), rows)
        return tokens

    def test_every_process_encrypts(self, deployment: Deployment, project: Project, storage: str) -> None:
        """Step 3 as it should be: two processes in "read" mode."""
        tokens = self.fill(deployment)
        project.revision(encrypt_line(storage, batch_size=20))
        project.revision(gate_line(storage))
        writers = [Writer(deployment.start("read"), range(first, ROWS + 1, 3)) for first in (1, 2)]
        project.upgrade()
        for writer in writers:
            tokens |= writer.stop()
        assert tokens == opened(deployment.stored())

    def test_one_process_still_writes_plaintext(
        self, deployment: Deployment, project: Project, storage: str
    ) -> None:
        """Step 3 too early: nothing is lost, and the run or the gate says that rows are left."""
        tokens = self.fill(deployment)
        project.revision(encrypt_line(storage, batch_size=20, max_passes=3))
        writers = [
            Writer(deployment.start(step), range(first, ROWS + 1, 3))
            for first, step in ((1, "read"), (2, "write"))
        ]
        report: Any = None
        try:
            project.upgrade()
        except ReencryptionError as error:
            report = error.report
        for writer in writers:
            tokens |= writer.stop()
        assert report is None or (report.remaining and not report.undecryptable)
        reader = deployment.start("read")
        assert tokens == {number: reader.read(number) for number in deployment.stored()}

        # The next run finds the rest; one row more, for the case that the writer's last word came before the run's.
        deployment.start("write").write(1, tokens[1])
        assert deployment.stored()[1] == deployment.in_form(tokens[1])
        if report is None:
            project.revision(encrypt_line(storage))
        project.revision(gate_line(storage))
        project.upgrade()
        assert tokens == opened(deployment.stored())


@every_storage
def test_gate_holds_until_no_row_is_behind(deployment: Deployment, project: Project, storage: Any) -> None:
    tokens = [signed_token(sub=f"{number}") for number in range(4)]
    for number, token in enumerate(tokens, 1):
        deployment.put(number, deployment.in_form(token))
    old_ring = KeyRing([OLD_KEY])
    deployment.put(10, encrypt_token(tokens[0], old_ring, context=CONTEXT, storage=storage))
    deployment.put(11, None)
    project.revision(gate_line(storage))
    with pytest.raises(ReencryptionError, match="5 rows are stale or in the clear"):
        project.upgrade()
    assert project.current() is None
    with project.engine.begin() as connection:
        connection.execute(deployment.raw.delete().where(deployment.raw.c.id == 10))
        connection.execute(
            deployment.raw.update()
            .where(deployment.raw.c.id < 10)
            .values(token=encrypt_token(tokens[0], RING, context=CONTEXT, storage=storage))
        )
    project.upgrade()
    assert project.current() == "1"


# -- one table in place --------------------------------------------------------------------------------------------


@every_storage
def test_table_is_encrypted_in_place(deployment: Deployment, project: Project, storage: Any) -> None:
    """Tokens of every kind, NULL, and a value that is no token; then again, which changes nothing."""
    tokens: dict[int, str | None] = {number: signed_token(sub=f"{number}") for number in range(1, 8)}
    tokens |= {8: None, 9: rfc_token("A.1 HS256"), 10: signed_token("RS256", sub="10")}
    for number, token in tokens.items():
        deployment.put(number, None if token is None else deployment.in_form(token))
    deployment.put(11, deployment.in_form("no token at all"))
    project.revision(encrypt_line(storage))
    with pytest.raises(ReencryptionError, match="primary keys 11") as caught:
        project.upgrade()
    assert not revealed_by(caught.value, "no token at all")
    report: Any = caught.value.report
    assert (report.reencrypted, report.remaining, report.undecryptable) == (9, 1, [11])
    stored = deployment.stored()
    assert stored.pop(11) == deployment.in_form("no token at all")
    assert tokens == opened(stored)

    with project.engine.begin() as connection:
        connection.execute(deployment.raw.delete().where(deployment.raw.c.id == 11))
    project.upgrade()
    assert stored == deployment.stored()
    with project.engine.connect() as connection:
        typed = sa.Table(
            "sessions",
            sa.MetaData(),
            sa.Column("token", EncryptedJWT(RING, storage=storage)),
        )
        census = {(row.key_id, row.state): row.rows for row in connection.execute(key_usage(typed.c.token))}
    assert {(RING.active, "current"): 9} == census


def create(project: Project, column: str, tokens: Sequence[str]) -> None:
    """Create the table with a column of this SQL type, and put tokens into it."""
    with project.engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE sessions (id INTEGER PRIMARY KEY, token {column})")
        rows = sa.table("sessions", sa.column("id"), sa.column("token"))
        is_binary = column in ("BYTEA", "BLOB")
        content = [{"id": n, "token": t.encode() if is_binary else t} for n, t in enumerate(tokens, 1)]
        if content:
            connection.execute(sa.insert(rows), content)


def content(project: Project) -> dict[int, Any]:
    with project.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT id, token FROM sessions").all()
    return {row[0]: row[1] for row in rows}


class TestRoom:
    """A column that is too short for envelopes, or of the other storage form."""

    tokens: Final = [signed_token(sub=f"{number}", pad="x" * 3 * number) for number in range(30)]

    @pytest.mark.each_server
    @pytest.mark.parametrize("length", [max(map(len, tokens)), max(map(len, tokens)) + 20])
    def test_column_that_is_too_short(self, project: Project, length: int) -> None:
        """It is noticed before the first row is written."""
        create(project, f"VARCHAR({length})", self.tokens)
        before = content(project)
        project.revision(encrypt_line("text"))
        if project.engine.dialect.name == "sqlite":
            # There a length is no limit.
            project.upgrade()
            assert opened(content(project)) == dict(enumerate(self.tokens, 1))
            return
        with pytest.raises(ReencryptionError, match=rf"holds {length} characters.*TEXT") as caught:
            project.upgrade()
        assert before == content(project)
        assert not revealed_by(caught.value, *self.tokens)
        with project.engine.begin() as connection:
            name = connection.dialect.name
            change = "ALTER COLUMN token TYPE text" if name == "postgresql" else "MODIFY token TEXT"
            connection.exec_driver_sql(f"ALTER TABLE sessions {change}")
        project.upgrade()
        assert opened(content(project)) == dict(enumerate(self.tokens, 1))

    def test_column_that_is_long_enough(self, project: Project) -> None:
        create(project, "VARCHAR(2000)", self.tokens)
        project.revision(encrypt_line("text"))
        project.upgrade()
        assert opened(content(project)) == dict(enumerate(self.tokens, 1))

    @pytest.mark.each_server
    @pytest.mark.parametrize("column", ["VARCHAR(200)", "TEXT"])
    def test_other_storage_form(self, project: Project, column: str) -> None:
        """The default type on a column of text, an easy mistake: MySQL outside strict mode would store noise."""
        create(project, column, self.tokens[:3])
        before = content(project)
        project.revision(encrypt_line("binary"))
        if project.engine.dialect.name == "sqlite":
            # There a column holds both.
            project.upgrade()
            assert opened(content(project)) == dict(enumerate(self.tokens[:3], 1))
            return
        with pytest.raises(ReencryptionError, match="storage='text'"):
            project.upgrade()
        assert before == content(project)

    @pytest.mark.each_server
    def test_other_storage_form_of_bytes(self, project: Project) -> None:
        name = project.engine.dialect.name
        create(project, "BYTEA" if name == "postgresql" else "BLOB", self.tokens[:3])
        before = content(project)
        project.revision(encrypt_line("text"))
        if name == "sqlite":
            return
        with pytest.raises(ReencryptionError, match="storage='binary'"):
            project.upgrade()
        assert before == content(project)

    def test_empty_column_is_long_enough_and_needs_no_key(
        self, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("ADOPTION_KEYS")
        create(project, "VARCHAR(10)", [])
        project.revision(encrypt_line("text").replace("ADOPTION_KEYS", "NO_SUCH_KEYS"))
        project.upgrade()
        assert project.current() == "1"

    def test_value_that_cannot_be_read_does_not_hide_the_others(self, project: Project) -> None:
        create(project, "VARCHAR(2000)", [*self.tokens, "~" * 1999])
        project.revision(encrypt_line("text"))
        with pytest.raises(ReencryptionError, match=f"primary keys {len(self.tokens) + 1}\\b"):
            project.upgrade()
        stored = content(project)
        assert stored.pop(len(self.tokens) + 1) == "~" * 1999
        assert opened(stored) == dict(enumerate(self.tokens, 1))

    def test_key_that_cannot_be_had_ends_it(self, project: Project) -> None:
        create(project, "VARCHAR(2000)", ["gAAAA"])
        reader = ", decrypt_with=FernetReader(key_from='env:NO_SUCH_KEY'))"
        project.revision(encrypt_line("text")[:-1] + reader)
        with pytest.raises(KeyUnavailableError, match="NO_SUCH_KEY is not set"):
            project.upgrade()

    @pytest.mark.parametrize(("column", "missing"), [("secret", "no column"), (None, "no table")])
    def test_what_is_not_there(self, project: Project, column: str | None, missing: str) -> None:
        if column is not None:
            create(project, "TEXT", [])
        project.revision(encrypt_line("text").replace("'token'", "'secret'"))
        with pytest.raises(ReencryptionError, match=f"there is {missing}.*nothing was done"):
            project.upgrade()


class TestOutsideStrictMode:
    """MySQL and MariaDB cut what does not fit, and tell it as a warning."""

    @pytest.fixture
    def lax_project(self, tmp_path: Path, mariadb_database: Database) -> Project:
        url = mariadb_database.url().update_query_dict({"sql_mode": "NO_ENGINE_SUBSTITUTION"})
        return Project(tmp_path, url)

    def test_control(self, lax_project: Project) -> None:
        with lax_project.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE t (c VARCHAR(3))")
            connection.exec_driver_sql("INSERT INTO t VALUES ('long')")
            assert connection.exec_driver_sql("SELECT c FROM t").scalar() == "lon"

    @pytest.mark.parametrize("column", ["VARCHAR(200)", "TINYTEXT"])
    @pytest.mark.parametrize("shards", [1, 2])
    def test_no_envelope_is_cut(self, lax_project: Project, column: str, shards: int) -> None:
        create(lax_project, column, [signed_token(pad="x" * 70)])
        before = content(lax_project)
        lax_project.revision(encrypt_line("text", shards=shards))
        with pytest.raises(ReencryptionError, match="Nothing was done"):
            lax_project.upgrade()
        assert before == content(lax_project)

    def test_noise_is_not_stored(self, lax_project: Project) -> None:
        create(lax_project, "TEXT", [signed_token(sub="alice")])
        before = content(lax_project)
        lax_project.revision(encrypt_line("binary"))
        with pytest.raises(ReencryptionError, match="storage='text'"):
            lax_project.upgrade()
        assert before == content(lax_project)


@pytest.mark.parametrize(
    ("column", "storage", "length", "shards"), [("TEXT", "text", 60_000, 1), ("BLOB", "binary", 65_500, 2)]
)
def test_row_that_alone_does_not_fit(
    tmp_path: Path, mariadb_database: Database, column: str, storage: str, length: int, shards: int
) -> None:
    """It is left as it is: in an UPDATE with a join, MariaDB cuts a value for such a column in strict mode too."""
    project = Project(tmp_path, mariadb_database.url())
    create(project, column, [signed_token(sub="alice"), "~" * length, signed_token(sub="bob")])
    before = content(project)
    options = f"storage={storage!r}, allow_opaque=True"
    project.revision(encrypt_line(storage, shards=shards).replace(f"storage={storage!r}", options))
    with pytest.raises(ReencryptionError) as caught:
        project.upgrade()
    report: Any = caught.value.report
    assert (report.unwritable, report.undecryptable) == ([2], [])
    after = content(project)
    assert before[2] == after.pop(2)
    assert opened(after) == {1: signed_token(sub="alice"), 3: signed_token(sub="bob")}


# -- from text to bytes --------------------------------------------------------------------------------------------

_PAGE: Final = Path(__file__).parent.parent.parent / "docs" / "how-to" / "adopt-plaintext.md"
_STATEMENTS: Final = re.findall(
    r"^```sql\n(.*?)\n```$", _PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
ALTER: Final = dict(zip(("postgresql", "mariadb", "sqlite"), _STATEMENTS, strict=True))
BATCH: Final = """with op.batch_alter_table('sessions') as batch:
        batch.alter_column('token', type_=sa.LargeBinary())"""


@pytest.mark.each_server
def test_text_column_becomes_a_column_of_bytes(project: Project, database: Database) -> None:
    """The statements of the how-to: the column is changed while it holds plaintext, and adopted as bytes then."""
    tokens = [signed_token(sub=f"{number}") for number in range(5)]
    create(project, "TEXT", tokens)
    with project.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO sessions (id, token) VALUES (6, NULL)")
    is_sqlite = database.name == "sqlite"
    project.revision(f"op.execute({ALTER[database.name]!r})\n    {BATCH if is_sqlite else ''}")
    project.upgrade()
    readers = [Process(database, step, "binary") for step in ("none", "write", "read")]
    for process in readers:
        assert [*tokens, None] == [process.read(number) for number in range(1, 7)]
        process.close()
    project.revision(encrypt_line("binary"))
    project.revision(gate_line("binary"))
    project.upgrade()
    assert opened(content(project)) == dict(enumerate([*tokens, None], 1))


# -- nothing is encrypted twice ------------------------------------------------------------------------------------


class TestDoubleEncryption:
    """An envelope is never what is put into an envelope."""

    @pytest.mark.parametrize("allow_opaque", [False, True])
    @pytest.mark.parametrize("step", ["write", "read", "refuse"])
    @pytest.mark.parametrize("form", ["text", "binary", "binary as text"])
    @every_storage
    def test_envelope_is_refused_when_it_is_bound(
        self, storage: Any, form: str, step: Any, allow_opaque: bool
    ) -> None:
        envelope: Any = encrypt_token(signed_token(sub="alice"), RING, context=CONTEXT, storage="text")
        if form != "text":
            envelope = encrypt_token(signed_token(sub="alice"), RING, context=CONTEXT)
        if form == "binary as text":
            envelope = envelope.decode("latin-1")
        type_ = EncryptedJWT(
            RING, storage=storage, context=CONTEXT, plaintext=step, allow_opaque=allow_opaque
        )
        with pytest.raises(InvalidTokenError) as caught:
            type_.process_bind_param(envelope, sa.create_engine("sqlite://").dialect)
        assert caught.value.reason == ("not a str" if form == "binary" else "already encrypted")
        assert not revealed_by(caught.value, envelope)

    def test_envelope_is_refused_when_it_is_assigned(self) -> None:
        session = mapped("sessions", token=EncryptedJWT(RING, plaintext="write"))
        envelope = encrypt_token(signed_token(sub="alice"), RING, context=CONTEXT, storage="text")
        with pytest.raises(InvalidTokenError):
            session(token=envelope)

    @every_storage
    def test_adoption_does_not_touch_envelopes(
        self, deployment: Deployment, project: Project, storage: Any
    ) -> None:
        """Neither those of today nor those of an older key, which are for a re-encryption."""
        token = signed_token(sub="alice")
        deployment.put(1, encrypt_token(token, RING, context=CONTEXT, storage=storage))
        deployment.put(2, encrypt_token(token, KeyRing([OLD_KEY]), context=CONTEXT, storage=storage))
        deployment.put(3, deployment.in_form(token))
        before = deployment.stored()
        project.revision(encrypt_line(storage))
        project.upgrade()
        after = deployment.stored()
        assert (before[1], before[2]) == (after[1], after[2])
        assert before[3] != after[3]
        for _ in range(2):
            project.revision(encrypt_line(storage))
            project.upgrade()
            assert after == deployment.stored()

    @pytest.mark.parametrize("cut", [14, 16, 40])
    def test_cut_envelope_is_no_opaque_token(
        self, deployment: Deployment, project: Project, cut: int
    ) -> None:
        """Where a column takes opaque tokens, what is left of an envelope could pass for one."""
        envelope = encrypt_token(signed_token(sub="alice"), RING, context=CONTEXT, storage="text")
        damaged = str(envelope).replace(".", "")[:cut]
        # A key id is no secret, and the log may show it. Two characters are in any text.
        secret = damaged[14:] if cut > 16 else ""
        deployment.put(1, damaged)
        deployment.put(2, "an-opaque-token")
        deployment.put(3, "jc01-another-opaque-token")
        project.revision(encrypt_line("text").replace("storage='text'", "storage='text', allow_opaque=True"))
        with pytest.raises(ReencryptionError, match="primary keys 1") as caught:
            project.upgrade()
        assert not secret or secret not in str(caught.value)
        stored = deployment.stored()
        assert stored.pop(1) == damaged
        assert opened(stored) == {2: "an-opaque-token", 3: "jc01-another-opaque-token"}

    def test_reader_that_returns_an_envelope(self) -> None:
        """Whatever a reader says is checked as a bound value is."""
        envelope = str(encrypt_token(signed_token(sub="alice"), RING, context=CONTEXT, storage="text"))
        conversion = Adoption(
            EncryptedJWT(RING, context=CONTEXT, allow_opaque=True), sa.column("token"), lambda _: envelope
        )
        with pytest.raises(InvalidTokenError, match="encrypted already"):
            conversion.convert("what lies in the column")
        with pytest.raises(MalformedEnvelopeError):
            conversion.convert(envelope[:20])

    def test_reader_that_fails_says_nothing_of_the_value(self) -> None:
        def read(stored: str) -> str:
            raise ValueError(stored)

        conversion = Adoption(EncryptedJWT(RING, context=CONTEXT), sa.column("token"), read)
        with pytest.raises(JWTColumnError, match="ValueError") as caught:
            conversion.convert("what lies in the column")
        assert not revealed_by(caught.value, "what lies in the column")


class TestTheOnlyCopy:
    """A value is replaced by an envelope that was proved to hold its token, or not at all."""

    def test_envelope_that_does_not_give_its_token_back_is_not_used(self) -> None:
        ring = KeyRing([NEW_KEY])
        key: Any = ring.snapshot().active
        key.aead = Forgetful(key.aead, lambda frame: frame[:-1])
        conversion = Adoption(EncryptedJWT(ring, context=CONTEXT), sa.column("token"))
        token = signed_token(sub="alice")
        with pytest.raises(DecryptionError, match="did not give its token back") as caught:
            conversion.convert(token.encode())
        assert not revealed_by(caught.value, token)
        # The control: where nothing is damaged, the same conversion works.
        key.aead.damage = bytes
        assert decrypt_token(conversion.convert(token.encode()), RING, context=CONTEXT) == token

    def test_bytes_that_are_no_text_are_left(self) -> None:
        conversion = Adoption(EncryptedJWT(RING, context=CONTEXT, allow_opaque=True), sa.column("token"))
        with pytest.raises(InvalidTokenError, match="neither an envelope nor text") as caught:
            conversion.convert(b"\xff\xfe a value of another program")
        assert caught.value.reason == "not UTF-8"


def test_bound_column_is_not_adopted() -> None:
    """Its envelopes would not be bound, and none of them would open."""
    with pytest.raises(ConfigurationError, match="bound to id of its row"):
        Adoption(EncryptedJWT(RING, context=CONTEXT, bound_to=["id"]), sa.column("token"))
