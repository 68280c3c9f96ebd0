"""The Alembic operations, by ``alembic.command`` and env.py files as projects have them."""

from __future__ import annotations

import io
import logging
import sys
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.pool import StaticPool

import migrations_helpers
from jwt_column import EncryptedJWT, decrypt_token, set_default_keyring
from jwt_column.errors import ConfigurationError, KeyUnavailableError, ReencryptionError
from migrations_helpers import (
    DecryptColumnOp,
    EncryptColumnOp,
    EnsureCurrentOp,
    ReencryptColumnOp,
    ReencryptionReport,
)
from migrations_helpers.engine.conversions import Adoption, Decryption
from migrations_helpers.engine.options import Options
from migrations_helpers.engine.reencryption import convert_column
from migrations_helpers.engine.reflection import Subject
from tests.support.models import table_of
from tests.support.tokens import signed_token
from tests.support.workload import (
    CONTEXT,
    NEW,
    OLD,
    Sessions,
    after,
    create_sessions,
    engine_on,
    fill,
    run,
    seal,
    sync_url,
    token,
)

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.support.databases import Database
    from tests.support.workload import AnyEngine

pytestmark = pytest.mark.usefixtures("host_ring")


SYNC_ENV = """
    import sqlalchemy as sa
    from alembic import context
    import migrations_helpers

    config = context.config
    options = config.attributes["options"]


    def run_migrations(connection):
        for statement in config.attributes.get("first", []):
            connection.exec_driver_sql(statement)
            connection.commit()
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()


    if context.is_offline_mode():
        context.configure(url=config.attributes["url"], literal_binds=True, **options)
        with context.begin_transaction():
            context.run_migrations()
    elif "connection" in config.attributes:
        run_migrations(config.attributes["connection"])
    else:
        engine = sa.create_engine(config.attributes["url"], poolclass=sa.pool.NullPool)
        with engine.connect() as connection:
            run_migrations(connection)
"""

ASYNC_ENV = """
    import asyncio
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import create_async_engine
    from alembic import context
    import migrations_helpers


    def run_migrations(connection):
        context.configure(connection=connection, **context.config.attributes["options"])
        with context.begin_transaction():
            context.run_migrations()


    async def run_async_migrations():
        engine = create_async_engine(context.config.attributes["url"], poolclass=sa.pool.NullPool)
        async with engine.connect() as connection:
            await connection.run_sync(run_migrations)
        await engine.dispose()


    asyncio.run(run_async_migrations())
"""

REVISION = """
    import sqlalchemy as sa
    from alembic import op
    from jwt_column import EncryptedJWT

    revision = {revision!r}
    down_revision = {down!r}


    def upgrade():
        {upgrade}


    def downgrade():
        {downgrade}
"""

CREATE = (
    "op.create_table('sessions', sa.Column('id', sa.Integer, primary_key=True), "
    "sa.Column('token', sa.LargeBinary))"
)
REENCRYPT = "op.reencrypt_jwt_column('sessions', 'token', **op.get_context().config.attributes['operation'])"
NEXT = "op.add_column('sessions', sa.Column('note', sa.String(9)))"


class Project:
    """A directory of migrations: r1, r2 and so on, one for each statement."""

    def __init__(
        self,
        path: Path,
        url: sa.URL,
        *upgrades: str | tuple[str, str],
        env: str = SYNC_ENV,
        revision: str = REVISION,
    ) -> None:
        (path / "versions").mkdir(parents=True)
        (path / "env.py").write_text(dedent(env), encoding="utf-8")
        for number, upgrade in enumerate(upgrades, 1):
            up, down = upgrade if isinstance(upgrade, tuple) else (upgrade, "pass")
            text = dedent(revision).format(
                revision=f"r{number}",
                down=f"r{number - 1}" if number > 1 else None,
                upgrade=up,
                downgrade=down,
            )
            (path / "versions" / f"r{number}.py").write_text(text, encoding="utf-8")
        self.output = io.StringIO()
        self.config = Config(stdout=io.StringIO(), output_buffer=self.output)
        self.config.set_main_option("script_location", str(path))
        self.config.set_main_option("path_separator", "os")
        self.url = url
        self.config.attributes |= {"url": url, "options": {}, "operation": {}}

    @property
    def version(self) -> str | None:
        """The revision that the database is stamped with."""
        with engine_on(self.url) as engine:
            return run(
                engine, lambda c: c.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
            )

    def upgrade(self, revision: str = "head", *, sql: bool = False, **operation: Any) -> None:
        self.config.attributes["operation"] = operation
        command.upgrade(self.config, revision, sql=sql)

    def downgrade(self, revision: str) -> None:
        command.downgrade(self.config, revision)


def inserted(engine: AnyEngine, rows: int = 60, *, schema: str | None = None) -> Sessions:
    """Fill the table that a migration has created with tokens under the old key."""
    sessions = Sessions(
        table_of(sa.LargeBinary, schema=schema), ("id",), {(n,): token(n) for n in range(1, rows + 1)}
    )
    fill(engine, sessions, create=False)
    return sessions


per_migration = pytest.mark.parametrize("per_migration", [True, False], ids=["each", "all-in-one"])


@per_migration
def test_an_upgrade_rotates_the_column_and_goes_on(
    tmp_path: Path, database: Database, engine: sa.Engine, per_migration: bool
) -> None:
    project = Project(tmp_path / "migrations", database.url(), CREATE, REENCRYPT, NEXT)
    project.config.attributes["options"] = {"transaction_per_migration": per_migration}
    project.upgrade("r1")
    sessions = inserted(engine)
    project.upgrade(batch_size=10)
    assert project.version == "r3"
    assert sessions.tokens == sessions.decrypted(engine)
    assert sessions.census(engine) == {(NEW, "current"): 60}


@per_migration
def test_an_upgrade_of_an_asynchronous_project_rotates_the_column(
    tmp_path: Path, async_driver_engine: AsyncEngine, per_migration: bool
) -> None:
    project = Project(
        tmp_path / "migrations", async_driver_engine.url, CREATE, REENCRYPT, NEXT, env=ASYNC_ENV
    )
    project.config.attributes["options"] = {"transaction_per_migration": per_migration}
    project.upgrade("r1")
    sessions = inserted(async_driver_engine)
    project.upgrade(batch_size=10)
    assert sessions.tokens == sessions.decrypted(async_driver_engine)
    assert sessions.census(async_driver_engine) == {(NEW, "current"): 60}
    project.url = sync_url(async_driver_engine)
    assert project.version == "r3"


@per_migration
def test_a_fresh_database_is_brought_to_the_head_without_keys(
    tmp_path: Path, database: Database, per_migration: bool
) -> None:
    """In one run, so that the table is created before its first transaction is committed."""
    encrypt = "op.encrypt_jwt_column('sessions', 'token')"
    ensure = "op.ensure_jwt_column_current('sessions', 'token')"
    decrypt = "op.decrypt_jwt_column('sessions', 'token')"
    project = Project(
        tmp_path / "migrations", database.url(), CREATE, REENCRYPT, encrypt, ensure, decrypt, NEXT
    )
    project.config.attributes["options"] = {"transaction_per_migration": per_migration}
    set_default_keyring(None)
    project.upgrade()
    assert project.version == "r6"


@per_migration
def test_rows_of_the_same_run_are_encrypted(
    tmp_path: Path, database: Database, engine: sa.Engine, per_migration: bool
) -> None:
    insert = f"op.execute(sa.text('INSERT INTO sessions VALUES (1, :token)').bindparams(token={token(1).encode()!r}))"
    encrypt = "op.encrypt_jwt_column('sessions', 'token')"
    project = Project(tmp_path / "migrations", database.url(), CREATE, insert, encrypt, NEXT)
    project.config.attributes["options"] = {"transaction_per_migration": per_migration}
    project.upgrade()
    assert project.version == "r4"
    stored = run(
        engine, lambda connection: connection.exec_driver_sql("SELECT token FROM sessions").scalar_one()
    )
    assert token(1) == decrypt_token(stored, after(), context=CONTEXT)


def test_a_database_in_memory_is_migrated_over_its_one_connection(tmp_path: Path) -> None:
    url = sa.make_url("sqlite://")
    with engine_on(url, poolclass=StaticPool) as engine, engine.connect() as connection:
        project = Project(tmp_path / "migrations", url, CREATE, REENCRYPT, NEXT)
        project.config.attributes["connection"] = connection
        project.upgrade("r1")
        connection.commit()
        sessions = inserted(engine)
        project.upgrade(batch_size=10)
        connection.commit()
        assert sessions.tokens == sessions.decrypted(engine)
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "r3"


@pytest.mark.parametrize("name", ["reencrypt", "encrypt", "decrypt", "ensure"])
def test_no_script_is_written(tmp_path: Path, database: Database, name: str) -> None:
    """A script would stamp a version of which nothing was done."""
    full_name = f"{name}_jwt_column" if name != "ensure" else "ensure_jwt_column_current"
    project = Project(
        tmp_path / "migrations", database.url(), CREATE, f"op.{full_name}('sessions', 'token')", NEXT
    )
    with pytest.raises(CommandError, match=rf"op\.{full_name} cannot be written into a SQL script"):
        project.upgrade("r1:r3", sql=True)
    assert "r2" not in [
        line for line in project.output.getvalue().splitlines() if "UPDATE alembic_version" in line
    ]
    assert "UPDATE alembic_version" not in project.output.getvalue()


class CrashError(RuntimeError):
    pass


@per_migration
def test_a_crash_leaves_the_revision_unapplied_and_the_next_run_does_the_rest(
    tmp_path: Path, database: Database, engine: sa.Engine, per_migration: bool
) -> None:
    def crash(report: ReencryptionReport) -> None:
        if report.reencrypted == 20:
            raise CrashError

    project = Project(tmp_path / "migrations", database.url(), CREATE, REENCRYPT, NEXT)
    project.config.attributes["options"] = {"transaction_per_migration": per_migration}
    project.upgrade("r1")
    sessions = inserted(engine)
    with pytest.raises(CrashError):
        project.upgrade(batch_size=10, batch_seconds=1e-9, progress=crash)
    assert project.version == "r1"
    assert sessions.tokens == sessions.decrypted(engine)
    assert sessions.census(engine) == {(NEW, "current"): 20, (OLD, "stale"): 40}

    reports: list[tuple[int, int]] = []
    project.upgrade(progress=lambda report: reports.append((report.already_current, report.reencrypted)))
    assert reports[-1] == (20, 40)
    assert project.version == "r3"
    assert sessions.tokens == sessions.decrypted(engine)


def test_rows_that_cannot_be_read_leave_the_revision_unapplied(
    tmp_path: Path, database: Database, engine: sa.Engine
) -> None:
    project = Project(tmp_path / "migrations", database.url(), CREATE, REENCRYPT, NEXT)
    project.upgrade("r1")
    sessions = inserted(engine)
    sessions.put(engine, (7,), b"foreign")
    with pytest.raises(ReencryptionError, match=r"1 row cannot be read .* \(primary keys 7\)"):
        project.upgrade()
    assert project.version == "r1"
    assert sessions.census(engine) == {(NEW, "current"): 59, (None, "unreadable"): 1}
    sessions.put(engine, (7,), None)
    project.upgrade()
    assert project.version == "r3"


def test_the_search_path_of_the_migration_is_the_one_of_the_run(
    tmp_path: Path, postgresql_database: Database
) -> None:
    """Tenants that have a schema each are migrated one by one, each on its own search path."""
    project = Project(tmp_path / "migrations", postgresql_database.url(), CREATE, REENCRYPT, NEXT)
    with engine_on(postgresql_database.url()) as engine:
        others = create_sessions(engine, 10)
        run(engine, lambda connection: connection.exec_driver_sql("CREATE SCHEMA tenant"))
        project.config.attributes["first"] = ["SET search_path TO tenant"]
        project.config.attributes["options"] = {"version_table_schema": "tenant"}
        project.upgrade("r1")
        theirs = inserted(engine, 20, schema="tenant")
        project.upgrade()
        assert theirs.census(engine) == {(NEW, "current"): 20}
        assert others.census(engine) == {(OLD, "stale"): 10}


def test_a_gate_holds_while_a_row_is_stale_or_in_the_clear(
    tmp_path: Path, database: Database, engine: sa.Engine
) -> None:
    gate = "op.ensure_jwt_column_current('sessions', 'token')"
    project = Project(tmp_path / "migrations", database.url(), CREATE, gate, NEXT)
    project.upgrade("r1")
    sessions = inserted(engine, 3)
    sessions.put(engine, (2,), token(2).encode())
    sessions.put(engine, (3,), None)
    for behind, rows in ((2, "2 rows are"), (1, "1 row is")):
        with pytest.raises(ReencryptionError, match=f"sessions.token: {rows} stale or in the clear"):
            project.upgrade()
        assert project.version == "r1"
        sessions.put(engine, (behind,), seal(token(behind), after()))
    project.upgrade()
    assert project.version == "r3"


ADOPT = "op.encrypt_jwt_column('sessions', 'token', **op.get_context().config.attributes['operation'])"
LEAVE = "op.decrypt_jwt_column('sessions', 'token')"


def test_a_column_is_adopted_and_left_again(tmp_path: Path, database: Database, engine: sa.Engine) -> None:
    """Encrypting twice changes nothing; a downgrade gives the plaintext back, also of rows written meanwhile."""
    project = Project(tmp_path / "migrations", database.url(), CREATE, (ADOPT, LEAVE), ADOPT)
    project.upgrade("r1")
    sessions = inserted(engine, 30)
    clear = {key: text.encode() for key, text in sessions.tokens.items()}
    for key, text in clear.items():
        sessions.put(engine, key, text)
    sessions.put(engine, (4,), None)
    del sessions.tokens[4,]

    project.upgrade("r2", batch_size=7)
    once = sessions.stored(engine)
    assert sessions.census(engine) == {(NEW, "current"): 29}
    assert sessions.tokens == {
        key: decrypt_token(once[key], after(), context=CONTEXT) for key in sessions.tokens
    }
    project.upgrade("r3")
    assert once == sessions.stored(engine)

    sessions.put(engine, (9,), seal(token(99)))
    project.downgrade("r1")
    assert clear | {(4,): None, (9,): token(99).encode()} == sessions.stored(engine)


def test_values_of_another_library_are_read_by_a_function(
    tmp_path: Path, database: Database, engine: sa.Engine
) -> None:
    def read(stored: bytes) -> str:
        prefix, _, text = stored.partition(b":")
        if prefix != b"theirs":
            raise ValueError(stored)
        return text.decode()

    project = Project(tmp_path / "migrations", database.url(), CREATE, ADOPT)
    project.upgrade("r1")
    sessions = inserted(engine, 10)
    for key, text in sessions.tokens.items():
        sessions.put(engine, key, f"theirs:{text}".encode())
    sessions.put(engine, (3,), b"something else and secret")
    sessions.put(engine, (4,), b"theirs:no token")
    with pytest.raises(ReencryptionError, match=r"2 rows cannot be read .*primary keys 3, 4\)") as caught:
        project.upgrade(decrypt_with=read)
    assert "secret" not in str(caught.value)
    assert project.version == "r1"
    sessions.put(engine, (3,), None)
    sessions.put(engine, (4,), None)
    project.upgrade(decrypt_with=read)
    assert project.version == "r2"
    assert sessions.census(engine) == {(NEW, "current"): 8}


def test_a_reader_whose_keys_are_away_ends_the_run_and_blames_no_row(
    tmp_path: Path, database: Database, engine: sa.Engine
) -> None:
    def read(stored: bytes) -> str:
        raise KeyUnavailableError("the server of the old keys is away", retryable=True)

    project = Project(tmp_path / "migrations", database.url(), CREATE, ADOPT)
    project.upgrade("r1")
    sessions = inserted(engine, 3)
    sessions.put(engine, (1,), token(1).encode())
    with pytest.raises(KeyUnavailableError):
        project.upgrade(decrypt_with=read)


def test_envelopes_that_cannot_be_read_stay_when_the_package_is_left(
    tmp_path: Path, database: Database, engine: sa.Engine
) -> None:
    project = Project(tmp_path / "migrations", database.url(), CREATE, LEAVE)
    project.upgrade("r1")
    sessions = inserted(engine, 5)
    broken = seal(token(3), context="another.column")
    sessions.put(engine, (3,), broken)
    with pytest.raises(ReencryptionError, match=r"primary keys 3\)"):
        project.upgrade()
    assert project.version == "r1"
    assert {n: token(n).encode() for n in (1, 2, 4, 5)} | {3: broken} == {
        key[0]: stored for key, stored in sessions.stored(engine).items()
    }


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("op.reencrypt_jwt_column('sessions', 'token', colour='blue')", "there is no option colour"),
        ("op.encrypt_jwt_column('sessions', 'token', batch_size=0)", "batch_size is at least 1 row"),
        ("op.encrypt_jwt_column('sessions', 'token', expired='null')", "there is no option expired"),
        ("op.decrypt_jwt_column('sessions', 'token', expired='null')", "there is no option expired"),
        (
            "op.reencrypt_jwt_column('sessions', 'token', expired='drop')",
            "expired is 'keep', 'skip', 'null' or 'delete'",
        ),
        ("op.reencrypt_jwt_column('sessions', 'token', expired='skip')", "needs the expiry in the header"),
        (
            "op.reencrypt_jwt_column('sessions', 'token', type_=sa.Text())",
            "type_ is an EncryptedJWT, not Text",
        ),
    ],
)
def test_a_wrong_argument_is_refused(
    tmp_path: Path, sqlite_database: Database, statement: str, message: str
) -> None:
    project = Project(tmp_path / "migrations", sqlite_database.url(), CREATE, statement)
    with pytest.raises(ConfigurationError, match=message):
        project.upgrade()


def test_a_dry_run_is_refused_because_the_revision_would_count_as_applied(
    tmp_path: Path, database: Database, engine: sa.Engine
) -> None:
    project = Project(tmp_path / "migrations", database.url(), CREATE, REENCRYPT)
    project.upgrade("r1")
    inserted(engine, 3)
    with pytest.raises(ConfigurationError, match=r"op\.reencrypt_jwt_column takes no dry run"):
        project.upgrade(dry_run=True)
    assert project.version == "r1"


def test_an_upgrade_ends_expired_rows_and_a_downgrade_none(
    tmp_path: Path, database: Database, engine: sa.Engine
) -> None:
    """A downgrade with the expiry of the upgrade would delete what has expired since."""
    type_ = EncryptedJWT(after(), expose_expiry=True)
    project = Project(tmp_path / "migrations", database.url(), CREATE, (REENCRYPT, REENCRYPT))
    project.upgrade("r1")
    sessions = inserted(engine, 6)
    for number, exp in ((1, 10**9), (2, 4 * 10**9)):
        sessions.put(engine, (number,), seal(signed_token(exp=exp), expose_expiry=True))
    project.upgrade(type_=type_, expired="delete")
    assert project.version == "r2"
    assert [(number,) for number in (2, 3, 4, 5, 6)] == sorted(sessions.stored(engine))

    for number, exp in ((2, 10**9), (3, 4 * 10**9)):
        sessions.put(engine, (number,), seal(signed_token(exp=exp), expose_expiry=True))
    operation = ReencryptColumnOp("sessions", "token", type_=type_, expired="delete", batch_size=7)
    back = operation.reverse()
    assert (type(back), back.options) == (ReencryptColumnOp, {"batch_size": 7})
    project.config.attributes["operation"] = {"type_": type_, **back.options}
    project.downgrade("r1")
    assert len(sessions.stored(engine)) == 5


# -- there and back, without Alembic -------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["binary", "text"])
def test_adoption_and_removal_are_tried_and_verified_like_a_rotation(engine: sa.Engine, storage: str) -> None:
    sessions = create_sessions(engine, 30, storage=storage)
    type_ = sessions.type_()
    foreign: Any = b"foreign" if storage == "binary" else "foreign"

    def convert(conversion: Any, **options: Any) -> ReencryptionReport:
        return convert_column(engine, Subject("sessions", "token", type_), conversion, Options(**options))

    tried = convert(Decryption, dry_run=True)
    assert (tried.total, tried.reencrypted, tried.key_id, tried.by_key_id) == (30, 30, None, {OLD: 30})
    assert tried.plaintext == 0
    done = convert(Decryption, verify="decrypt", batch_size=7)
    assert (done.reencrypted, done.remaining, done.by_key_id) == (30, 0, {OLD: 30})
    assert done.plaintext == 30
    clear = sessions.stored(engine)
    assert sessions.tokens == {
        key: text if storage == "text" else text.decode() for key, text in clear.items()
    }

    sessions.put(engine, (3,), foreign)
    tried = convert(Adoption, dry_run=True)
    assert (tried.total, tried.reencrypted, tried.undecryptable) == (30, 29, [3])
    assert (tried.by_key_id, tried.plaintext) == ({"plaintext": 29}, 29)
    assert clear | {(3,): foreign} == sessions.stored(engine)
    with pytest.raises(ReencryptionError, match="1 row cannot be read") as caught:
        convert(Adoption, verify="decrypt", batch_size=7)
    report: Any = caught.value.report
    assert (report.by_key_id, report.plaintext, report.remaining) == ({"plaintext": 29}, 0, 1)
    del sessions.tokens[3,]
    assert foreign == sessions.stored(engine)[3,]
    sessions.put(engine, (3,), None)
    again = convert(Adoption, verify="decrypt")
    assert (again.reencrypted, again.already_current, again.verified) == (0, 29, 29)
    stored = sessions.stored(engine)
    assert sessions.tokens == {
        key: decrypt_token(stored[key], after(), context=CONTEXT) for key in sessions.tokens
    }


@pytest.mark.parametrize("storage", ["binary", "text"])
def test_verification_after_a_removal_finds_an_envelope_that_is_left(engine: sa.Engine, storage: str) -> None:
    """One of a newer version, say, which no run of this release would touch."""
    sessions = create_sessions(engine, 5, storage=storage)
    newer: Any = b"\x02" + bytes(60) if storage == "binary" else f"jc02{'00' * 5}.{'A' * 60}"
    sessions.put(engine, (3,), newer)
    type_ = sessions.type_()
    with pytest.raises(ReencryptionError, match="1 row cannot be read") as caught:
        convert_column(engine, Subject("sessions", "token", type_), Decryption, Options(verify="decrypt"))
    report: Any = caught.value.report
    assert (report.reencrypted, report.undecryptable) == (4, [3])
    assert sessions.stored(engine)[3,] == newer


# -- data ----------------------------------------------------------------------------------------------------------


def test_an_operation_knows_its_reverse() -> None:
    options: dict[str, Any] = {
        "type_": EncryptedJWT(context="logins.jwt"),
        "schema": "tenant",
        "batch_size": 7,
    }
    forth = EncryptColumnOp("sessions", "token", decrypt_with=str, **options)
    back = forth.reverse()
    assert isinstance(back, DecryptColumnOp)
    assert (back.table, back.column, back.schema, back.options) == (
        "sessions",
        "token",
        "tenant",
        {"batch_size": 7},
    )
    assert back.type_.context == "logins.jwt"
    assert isinstance(back.reverse(), EncryptColumnOp)
    for same in (ReencryptColumnOp("sessions", "token", **options), EnsureCurrentOp("sessions", "token")):
        assert type(same.reverse()) is type(same)
        assert same.to_diff_tuple() == (same.name, same.schema, "sessions", "token")


# -- progress ------------------------------------------------------------------------------------------------------


def test_progress_is_log_lines_where_there_is_no_terminal(
    tmp_path: Path, database: Database, engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "alembic.runtime.migration")
    project = Project(tmp_path / "migrations", database.url(), CREATE, REENCRYPT)
    project.upgrade("r1")
    inserted(engine)
    project.upgrade(batch_size=10)
    lines = [message for message in caplog.messages if message.startswith("sessions.token")]
    assert "0 of 60" in lines[0]
    assert "60 of 60" in lines[-1]
    # One at the begin and those at the end; a line for each of the batches between would be too many.
    assert len(lines) <= 4


def test_progress_is_a_bar_on_a_terminal(
    tmp_path: Path,
    sqlite_database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    caplog.set_level(logging.INFO, "alembic.runtime.migration")
    monkeypatch.setenv("COLUMNS", "100")
    project = Project(tmp_path / "migrations", sqlite_database.url(), CREATE, REENCRYPT)
    project.upgrade("r1")
    with engine_on(sqlite_database.url()) as engine:
        inserted(engine)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    project.upgrade(batch_size=10)
    assert "sessions.token" in terminal.getvalue()
    assert "60 of 60" in terminal.getvalue()
    assert not [message for message in caplog.messages if message.startswith("sessions.token")]


def test_progress_is_log_lines_on_a_terminal_without_rich(
    tmp_path: Path,
    sqlite_database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "alembic.runtime.migration")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    project = Project(tmp_path / "migrations", sqlite_database.url(), CREATE, REENCRYPT)
    project.upgrade("r1")
    with engine_on(sqlite_database.url()) as engine:
        inserted(engine)
    project.upgrade()
    assert [message for message in caplog.messages if "60 of 60" in message]


def test_the_operations_are_there_by_importing_the_package() -> None:
    from alembic.operations import Operations

    for name in (
        "reencrypt_jwt_column",
        "encrypt_jwt_column",
        "decrypt_jwt_column",
        "ensure_jwt_column_current",
    ):
        assert hasattr(Operations, name)
    assert "reencrypt" in migrations_helpers.__all__
