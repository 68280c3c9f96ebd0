"""``jwt-column rotate``: one command from a new key to the old one's removal, stopped at any step and run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import sqlalchemy as sa

from jwt_column import EncryptedJWT, KeyRing, generate_key
from jwt_column.cli.console import ExitCode
from jwt_column.cli.keys.rings import open_ring
from jwt_column.cli.options import DATABASE_VARIABLE
from jwt_column.cli.rotation import rotation_of
from jwt_column.fleet import Fleet
from jwt_column.providers import write_key_file
from tests.support.command_line import invoke, run_in_terminal, type_in_terminal
from tests.support.docs_examples import ROOT
from tests.support.models import store, table_of
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

    from tests.support.databases import Database
    from tests.support.vault import OpenBao

ROWS = 20


class Place(NamedTuple):
    """A ring's file, and a database with rows under its key."""

    path: Path
    engine: sa.Engine

    @property
    def ids(self) -> list[str]:
        """The key ids of the file, the active one first."""
        return [key["id"] for key in json.loads(invoke("keys", "list", "--json").stdout)["keys"]]

    def rows(self) -> dict[str, int]:
        """Return the rows under each key."""
        rows: dict[str, int] = {}
        with self.engine.connect() as connection:
            for (stored,) in connection.execute(sa.text("SELECT token FROM sessions")):
                rows[stored[1:5].hex()] = rows.get(stored[1:5].hex(), 0) + 1
        return rows


def rotate(*arguments: str) -> Result:
    return invoke("rotate", "--table", "sessions", "--column", "token", "--yes", "--settle", "0", *arguments)


def report_of(result: Result) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def steps_of(result: Result) -> list[str]:
    return [step["step"] for step in report_of(result)["steps"]]


def is_wrapped(place: Place) -> bool:
    return place.path.read_bytes().startswith(b"{")


WHOLE = ["add", "wait", "activate", "wait", "reencrypt", "gate", "remove"]


@pytest.fixture(params=["plain", "wrapped"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, sqlite: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> Place:
    path, kek = tmp_path / "ring", tmp_path / "kek"
    monkeypatch.setenv("JWT_COLUMN_KEYRING", f"file:{path}")
    monkeypatch.setenv("JWT_COLUMN_KEKS", f"file:{kek}")
    write_key_file(kek, [generate_key()])
    if request.param == "plain":
        write_key_file(path, [generate_key()])
    else:
        assert invoke("keys", "init", "--wrapped-by", f"file:{kek}").exit_code == ExitCode.OK
    store(sqlite, table_of(EncryptedJWT(f"file:{path}")), [signed_token(sub=str(row)) for row in range(ROWS)])
    monkeypatch.setenv(DATABASE_VARIABLE, str(sqlite.url))
    return Place(path, sqlite)


def test_one_command_does_it_all(place: Place) -> None:
    (old,) = place.ids
    done = rotate("--wait", "0", "--json")
    assert (done.exit_code, steps_of(done)) == (ExitCode.OK, WHOLE)
    (new,) = place.ids
    assert new != old
    assert place.rows() == {new: ROWS}
    report = report_of(done)
    assert (report["active"], report["done"], report["steps"][-1]["key"]) == (new, True, old)
    assert report["steps"][4]["report"]["reencrypted"] == ROWS
    # A second rotation, for people.
    shown = rotate("--wait", "0")
    assert [line[0] for line in shown.stdout.splitlines()] == ["✓"] * len(WHOLE)
    assert place.ids != [new]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_it_goes_on_after_a_stop_at_any_step(place: Place, tmp_path: Path, stop: int) -> None:
    """The command of --ship fails after the first, the second or the third change of the file."""
    (old,) = place.ids
    count = tmp_path / "count"
    ship = f"echo x >> {count}; test $(wc -l < {count}) -ne {stop}"
    stopped = rotate("--wait", "0", "--json", "--ship", ship)
    assert (stopped.exit_code, report_of(stopped)["done"]) == (ExitCode.FAILURE, False)
    assert "the command of --ship ended with 1" in stopped.stderr
    has_ended = stop == 3
    again = rotate("--wait", "0", "--json", "--ship", ship, *(["--to", place.ids[0]] if has_ended else []))
    assert again.exit_code == ExitCode.OK
    steps = [
        step for step in (*steps_of(stopped), *steps_of(again)) if step not in ("wait", "ship", "nothing")
    ]
    assert steps == [step for step in WHOLE if step != "wait"]
    assert old not in place.ids
    assert place.rows() == {place.ids[0]: ROWS}


def test_rows_that_come_under_the_old_key_are_found_before_it_goes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that began before the activation and ends after the re-encryption."""
    writer = KeyRing.from_uri(f"file:{place.path}")
    table = sa.Table(
        "sessions", sa.MetaData(), sa.Column("token", EncryptedJWT(writer, context="sessions.token"))
    )
    (old,) = place.ids

    def sleep(seconds: float) -> None:
        if 0 < seconds < 9:
            with place.engine.begin() as connection:
                connection.execute(table.insert(), {"token": signed_token(sub="late")})

    monkeypatch.setattr("jwt_column.cli.rotate.time.sleep", sleep)
    done = rotate("--wait", "0", "--settle", "8", "--json")
    assert done.exit_code == ExitCode.OK
    assert steps_of(done).count("reencrypt") == 2
    assert old not in place.ids
    assert place.rows() == {place.ids[0]: ROWS + 1}


def test_a_kept_key_is_no_rotation_that_has_begun(place: Place) -> None:
    (first,) = place.ids
    assert rotate("--wait", "0", "--keep").exit_code == ExitCode.OK
    second, kept = place.ids
    assert kept == first
    assert place.rows() == {second: ROWS}
    assert rotate("--wait", "0", "--keep").exit_code == ExitCode.OK
    third = place.ids[0]
    assert third not in (first, second)
    # Without the option the key that was replaced last goes, and no other.
    assert steps_of(rotate("--wait", "0", "--json")) == ["wait", "reencrypt", "gate", "remove"]
    assert place.ids == [third, first]


def test_a_key_is_kept_where_there_are_no_rows(place: Place) -> None:
    with place.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM sessions"))
    (old,) = place.ids
    assert rotate("--wait", "0", "--keep").exit_code == ExitCode.OK
    assert len(place.ids) == 2
    assert place.ids[1] == old


def test_a_tenant_has_a_rotation_of_its_own(place: Place) -> None:
    if not is_wrapped(place):
        return
    (active,) = place.ids
    tenants = json.loads(invoke("keys", "add", "--tenant", "acme", "--json").stdout)["added"]
    assert rotate("--wait", "0", "--tenant", "acme").exit_code == ExitCode.OK
    assert active in place.ids
    assert tenants not in place.ids
    assert len(place.ids) == 2
    assert place.rows() == {active: ROWS}


def test_a_key_can_be_named(place: Place) -> None:
    added = json.loads(invoke("keys", "add", "--json").stdout)["added"]
    assert rotate("--wait", "0", "--to", "00000000").exit_code == ExitCode.USAGE
    assert rotate("--wait", "0", "--to", added).exit_code == ExitCode.OK
    assert place.ids == [added]
    # Once more: it is active, and there is nothing to do.
    again = rotate("--wait", "0", "--to", added, "--json")
    assert (again.exit_code, steps_of(again)) == (ExitCode.OK, ["nothing"])


def test_the_rows_are_rewritten_at_the_pace_that_is_asked_for(place: Place) -> None:
    (old,) = place.ids
    for arguments, said in (
        (("--until", "soon"), "a time of the day"),
        (("--max-latency", "1"), "--throttle-query"),
    ):
        refused = rotate("--wait", "0", *arguments)
        assert refused.exit_code == ExitCode.USAGE, arguments
        assert said in refused.stderr.replace("\n", " ")
    assert place.ids == [old]
    stopped = rotate("--wait", "0", "--json", "--until", "2020-01-01T00:00")
    assert stopped.exit_code == ExitCode.FAILURE
    assert "until= (--until) is over" in stopped.stderr.replace("\n", " ")
    assert (len(place.ids), place.rows()) == (2, {old: ROWS})
    # The control: without the option, the same command goes on and removes the key.
    assert rotate("--wait", "0", "--nice", "0", "--throttle-query", "SELECT 0.01").exit_code == ExitCode.OK
    assert list(place.rows()) == place.ids != [old]


def test_a_terminal_gets_a_bar_and_a_pipe_lines(place: Place) -> None:
    options = ("rotate", "--table", "sessions", "--column", "token", "--yes", "--wait", "0", "--settle", "0")
    assert f"of {ROWS} rows under key" in invoke(*options).stderr
    done = run_in_terminal(*options, PYTHONPATH=str(ROOT))
    assert done.returncode == ExitCode.OK
    assert any(line.startswith("sessions.token ") and "rows" in line for line in done.lines)
    assert f"of {ROWS} rows under key" not in done.output


def test_a_young_key_stays(place: Place) -> None:
    before = place.ids
    done = rotate("--wait", "0", "--older-than", "30", "--json")
    if is_wrapped(place):
        assert (done.exit_code, steps_of(done)) == (ExitCode.OK, ["nothing"])
    else:
        assert "does not tell the age" in done.stderr
    assert place.ids == before
    # One that has begun goes on.
    assert invoke("keys", "add").exit_code == ExitCode.OK
    assert rotate("--wait", "0", "--older-than", "30").exit_code == ExitCode.OK
    assert place.ids != before


def test_two_new_keys_are_one_too_many(place: Place) -> None:
    for _ in range(2):
        invoke("keys", "add")
    before = place.path.read_bytes()
    refused = rotate("--wait", "0")
    if is_wrapped(place):
        assert refused.exit_code == ExitCode.USAGE
        assert "name it with --to" in refused.stderr
        assert place.path.read_bytes() == before
    else:
        # The file's previous version has the first of the two, so only the second one is new.
        assert refused.exit_code == ExitCode.OK


def test_a_plain_file_without_its_past_is_ambiguous(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    write_key_file(path, [generate_key(), generate_key()])
    with pytest.raises(Exception, match="name it with --to"):
        rotation_of(open_ring(path))
    active, other = KeyRing.from_uri(f"file:{path}").key_ids
    assert rotation_of(open_ring(path), to=other)[:3] == (active, other, None)
    assert rotation_of(open_ring(path), to=active)[:3] == (active, None, None)


def test_what_cannot_end_well_is_refused_before_a_change(place: Place, tmp_path: Path) -> None:
    before = place.path.read_bytes()
    write_key_file(tmp_path / "other.keys", [generate_key()])
    refusals = {
        "nothing tells when every process has loaded the file": (),
        "is encrypted under file:": ("--wait", "0", "--keyring", f"file:{tmp_path / 'other.keys'}"),
        "no keys of the tenant" if is_wrapped(place) else "no tenants": ("--wait", "0", "--tenant", "acme"),
    }
    for text, arguments in refusals.items():
        refused = rotate(*arguments)
        assert text in refused.stderr
        assert refused.exit_code == ExitCode.USAGE
    unasked = invoke("rotate", "--table", "sessions", "--column", "token", "--wait", "0")
    assert "give --yes" in unasked.stderr
    assert place.path.read_bytes() == before


def test_it_asks_once_before_the_first_change(place: Place) -> None:
    if is_wrapped(place):
        return  # Asking is the same.
    before = place.path.read_bytes()
    options = ("rotate", "--table", "sessions", "--column", "token", "--wait", "0", "--settle", "0")
    output, code = type_in_terminal(*options, prompt="[y/N]:", typed="n", PYTHONPATH=str(ROOT))
    assert "A new key takes the place of" in output
    assert "nothing was changed" in output
    assert (code, place.path.read_bytes()) == (ExitCode.USAGE, before)
    output, code = type_in_terminal(*options, prompt="[y/N]:", typed="y", PYTHONPATH=str(ROOT))
    assert (code, output.count("Go on?"), place.path.read_bytes() != before) == (ExitCode.OK, 1, True)


def test_databases_and_rings_are_named(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"application_of_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(
        "import os\nimport sqlalchemy as sa\nfrom jwt_column import EncryptedJWT, KeyRing\n"
        "ring = KeyRing.from_uri(os.environ['JWT_COLUMN_KEYRING'])\n"
        "type_ = EncryptedJWT(ring.with_active(ring.active), context='sessions.token')\n"
        "table = sa.Table('sessions', sa.MetaData(), sa.Column('id', sa.Integer, primary_key=True),\n"
        "                 sa.Column('token', type_))\n"
        "token = table.c.token\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (old,) = place.ids
    arguments = ("rotate", "--model", f"{module}:token", "--yes", "--wait", "0", "--settle", "0")
    pinned = invoke(*arguments)
    # Its program chose the old key for it, so it would go on writing under it.
    assert "its ring writes under" in pinned.stderr
    assert (pinned.exit_code, old in place.ids) == (ExitCode.USAGE, True)
    monkeypatch.delenv(DATABASE_VARIABLE)
    assert "no database: give --database" in invoke(*arguments).stderr


def test_rows_that_cannot_be_read_keep_the_old_key(place: Place) -> None:
    (old,) = place.ids
    with place.engine.begin() as connection:
        connection.execute(sa.text("UPDATE sessions SET token = substr(token, 1, 60) WHERE id = 7"))
    failed = rotate("--wait", "0", "--json")
    assert failed.exit_code == ExitCode.FAILURE
    assert report_of(failed)["done"] is False
    assert old in place.ids
    with place.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM sessions WHERE id = 7"))
    assert steps_of(rotate("--wait", "0", "--json")) == ["wait", "reencrypt", "gate", "remove"]
    assert place.rows() == {place.ids[0]: ROWS - 1}


def test_it_waits_for_the_fleet(place: Place) -> None:
    fleet = Fleet(place.engine)
    fleet.table.create(place.engine)
    ring = KeyRing.from_uri(f"file:{place.path}", refresh="watch", report_to=fleet)
    ring.acknowledge()
    (old,) = place.ids
    done = rotate("--expect", "1", "--timeout", "60", "--json")
    assert (done.exit_code, steps_of(done)) == (ExitCode.OK, WHOLE)
    assert [step.get("processes") for step in report_of(done)["steps"] if step["step"] == "wait"] == [1, 1]
    assert old not in place.ids
    too_few = rotate("--expect", "2", "--timeout", "3")
    assert too_few.exit_code == ExitCode.FAILURE
    assert "1 live process reports, and 2 must" in too_few.stderr
    # Nothing was activated, and the key is there for the next run.
    assert place.ids[0] == ring.active
    assert len(place.ids) == 2


WRITER = """
import os, random, sys, time
import sqlalchemy as sa
from jwt_column import KeyRing, EncryptedJWT
from jwt_column.fleet import Fleet
from tests.support.tokens import signed_token

engine = sa.create_engine(os.environ["JWT_COLUMN_DATABASE_URL"])
ring = KeyRing.from_uri(os.environ["JWT_COLUMN_KEYRING"], refresh="watch", report_to=Fleet(engine))
table = sa.Table(
    "sessions", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("token", EncryptedJWT(ring)),
)
written = {}
number = 0
print("ready", flush=True)
while not os.path.exists(sys.argv[1]):
    number += 1
    token = signed_token(sub=f"{os.getpid()} {number}")
    with engine.begin() as connection:
        row = connection.execute(table.insert(), {"token": token}).inserted_primary_key[0]
    written[row] = token
    with engine.begin() as connection:
        row = random.choice(list(written))
        written[row] = signed_token(sub=f"{os.getpid()} {number} again")
        connection.execute(table.update().where(table.c.id == row).values(token=written[row]))
    with engine.connect() as connection:
        # Of any process.
        for row, token in connection.execute(sa.select(table.c.id, table.c.token).order_by(sa.func.random() if
                engine.dialect.name != "mysql" and engine.dialect.name != "mariadb" else sa.func.rand()).limit(20)):
            assert row not in written or written[row] == token
    time.sleep(0.01)
with engine.connect() as connection:
    stored = dict(connection.execute(sa.select(table.c.id, table.c.token)).all())
assert all(stored[row] == token for row, token in written.items())
print(len(written), ring.active, ring.status.error, flush=True)
"""


@pytest.mark.processes
def test_a_fleet_writes_through_a_rotation_that_is_killed_at_every_step(
    database: Database, tmp_path: Path
) -> None:
    """Three processes insert, update and read; the command is killed after each change of the file, and run again."""
    kek = None
    if database.name != "sqlite":
        write_key_file(tmp_path / "kek", [generate_key()])
        kek = f"file:{tmp_path / 'kek'}"
    rotate_under_load(database, tmp_path, kek, {})


@pytest.mark.processes
@pytest.mark.cloud
def test_a_fleet_with_a_kek_in_openbao_is_rotated_too(
    sqlite_database: Database, tmp_path: Path, openbao: OpenBao, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"VAULT_ADDR": openbao.address, "VAULT_TOKEN": openbao.token}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    kek = f"vault-transit:{openbao.rest(openbao.new_key(derived=True))}"
    rotate_under_load(sqlite_database, tmp_path, kek, variables)


def rotate_under_load(database: Database, tmp_path: Path, kek: str | None, variables: dict[str, str]) -> None:
    path, stop = tmp_path / "jwt.keys", tmp_path / "stop"
    if kek is None:
        write_key_file(path, [generate_key()])
    else:
        init = ["keys", "init", "--file", str(path), "--wrapped-by", kek]
        assert invoke(*init).exit_code == ExitCode.OK
    old = KeyRing.from_uri(f"file:{path}").active
    url = database.url().render_as_string(hide_password=False)
    environment = (
        os.environ
        | variables
        | {
            "JWT_COLUMN_KEKS": kek or "",
            "JWT_COLUMN_KEYRING": f"file:{path}",
            DATABASE_VARIABLE: url + ("?timeout=60" if database.name == "sqlite" else ""),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
            "SSL_CERT_FILE": os.devnull,
        }
    )
    engine = sa.create_engine(url)
    # The database counts its key up, for all writers.
    key = sa.Column("id", sa.Integer, primary_key=True)
    table = sa.Table("sessions", sa.MetaData(), key, sa.Column("token", EncryptedJWT(f"file:{path}")))
    table.create(engine)
    Fleet(engine).table.create(engine)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(stop)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        command = [sys.executable, "-m", "jwt_column", "rotate", "--table", "sessions", "--column", "token"]
        command += ["--yes", "--json", "--expect", "3", "--timeout", "60", "--settle", "2"]
        statuses = []
        # The parent of the shell is the command. A run ends by it after the first change of the file, the next one
        # after the second, because each begins with shipping, and the third after the removal. The last one finds
        # nothing to do but to ship.
        count = tmp_path / "count"
        ship = f"echo x >> {count}; case $(wc -l < {count}) in 1 | 3 | 5) kill -9 $PPID;; esac"
        for end in (False, False, False, True):
            to = ["--to", KeyRing.from_uri(f"file:{path}").active] if end else []
            done = subprocess.run(
                [*command, "--ship", ship, *to],
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            statuses.append(done.returncode)
            assert "Traceback" not in done.stderr
        assert statuses == [-9, -9, -9, 0]
    finally:
        stop.touch()
        outputs = [writer.communicate(timeout=60) for writer in writers]
    active = KeyRing.from_uri(f"file:{path}").active
    assert active != old
    for output, errors in outputs:
        assert errors == ""
        rows, used, error = output.split()
        assert (int(rows) > 20, used, error) == (True, active, "None")
    with engine.connect() as connection:
        stored = connection.execute(sa.select(sa.type_coerce(table.c.token, sa.LargeBinary))).scalars().all()
    engine.dispose()
    assert {value[1:5].hex() for value in stored} == {active}


def test_a_key_that_another_column_of_the_model_needs_is_not_removed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controls are all columns by their MetaData, a column of another ring, and --keep."""
    module = f"application_of_{tmp_path.name}"
    write_key_file(tmp_path / "other.keys", [generate_key()])
    (tmp_path / f"{module}.py").write_text(
        "import sqlalchemy as sa\nfrom jwt_column import EncryptedJWT\nmetadata = sa.MetaData()\n"
        "def table(name, *ring):\n"
        "    key = sa.Column('id', sa.Integer, primary_key=True)\n"
        "    return sa.Table(name, metadata, key, sa.Column('token', EncryptedJWT(*ring)))\n"
        "token = table('sessions').c.token\n"
        f"logins, others = table('logins'), table('others', 'file:{tmp_path}/other.keys')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with place.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE logins (id INTEGER PRIMARY KEY, token BLOB)")
    before = place.path.read_bytes()
    arguments = ("--yes", "--wait", "0", "--settle", "0")
    refused = invoke("rotate", "--model", f"{module}:token", *arguments)
    assert refused.exit_code == ExitCode.USAGE
    assert "logins.token is under the ring" in refused.stderr
    assert "others" not in refused.stderr
    assert place.path.read_bytes() == before
    kept = invoke("rotate", "--model", f"{module}:token", "--keep", *arguments)
    assert (kept.exit_code, len(place.ids)) == (ExitCode.OK, 2)
    both = ("--model", f"{module}:token", "--model", f"{module}:logins")
    assert invoke("rotate", *both, *arguments).exit_code == ExitCode.OK
