"""``jwt-column purge``: what it deletes, what it says, and how it ends. It never needs a key."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from jwt_column import EncryptedJWT, KeyRing, generate_key
from jwt_column.cli.console import ExitCode
from tests.cli.test_audit import APP
from tests.support.audited import AFTER, BEFORE, envelope, put, token
from tests.support.command_line import invoke_on, run, run_in_terminal, stopped_here
from tests.support.models import table_of

if TYPE_CHECKING:
    from pathlib import Path


TABLE = ("--table", "sessions", "--column", "token")
invoke = partial(invoke_on, name="purge")
TYPE = EncryptedJWT(AFTER, expose_expiry=True, fingerprints=["jti"])
#: Days from now in which the tokens of a table expire.
DAYS = [-30, -2, -1, 1, 30]


@pytest.fixture
def filled(sqlite: sa.Engine) -> sa.Engine:
    fill(sqlite, DAYS)
    return sqlite


def fill(engine: sa.Engine, days: list[int], type_: EncryptedJWT = TYPE) -> sa.Table:
    """Make a table with a row for each day, with a token that expires then, and some that do not."""
    table = table_of(type_)
    column = table.c.token
    now = datetime.now(UTC)
    with engine.begin() as connection:
        table.create(connection)
        put(
            connection,
            column,
            [
                *(envelope(column, token(exp=int((now + timedelta(days=day)).timestamp()))) for day in days),
                envelope(column, token(exp=None), BEFORE),
                None,
                token(exp=1),
            ],
        )
    return table


def left(engine: sa.Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.execute(sa.text("SELECT id FROM sessions ORDER BY id")).scalars())


@pytest.mark.parametrize("storage", ["binary", "text"])
def test_expired_rows_are_deleted_without_a_key(engine: sa.Engine, storage: str) -> None:
    fill(engine, DAYS, EncryptedJWT(AFTER, storage=storage, expose_expiry=True))  # type: ignore[arg-type]
    result = invoke(engine.url, *TABLE)
    assert (result.exit_code, result.stderr) == (ExitCode.OK, "")
    assert result.stdout.startswith("sessions.token\n\n  ✓ 3 rows deleted that expired by 20")
    assert left(engine) == [4, 5, 6, 7, 8]


def test_a_dry_run_counts(filled: sa.Engine) -> None:
    result = invoke(filled.url, *TABLE, "--dry-run")
    assert result.exit_code == ExitCode.OK
    assert "  Dry run: 3 rows expired by 20" in result.stdout
    assert len(left(filled)) == 8


def test_a_time_is_given(filled: sa.Engine) -> None:
    before = datetime.now(UTC) - timedelta(days=1, hours=12)
    result = invoke(filled.url, *TABLE, "--before", before.isoformat(), "--json")
    content = json.loads(result.stdout)
    assert content.pop("seconds") >= 0
    assert content == {
        "column": "sessions.token",
        "before": before.isoformat(),
        "key": None,
        "action": "delete",
        "dry_run": False,
        "found": 2,
        "expired": 2,
        "deleted": 2,
        "cleared": 0,
        "refused": 0,
        "row_security": False,
    }
    day = f"{datetime.now(UTC) + timedelta(days=3):%Y-%m-%d}"
    content = json.loads(invoke(filled.url, *TABLE, "--before", day, "--json").stdout)
    assert (content["before"], content["deleted"]) == (f"{day}T00:00:00+00:00", 2)
    zoned = json.loads(invoke(filled.url, *TABLE, "--before", "2026-03-01T12:00:00+02:00", "--json").stdout)
    assert (zoned["before"], zoned["deleted"]) == ("2026-03-01T10:00:00+00:00", 0)


@pytest.mark.parametrize("before", ["yesterday", "2026-03-01T12:00:00", "2026-02-30", "12:00:0000", ""])
def test_a_time_without_a_zone_is_refused(filled: sa.Engine, before: str) -> None:
    result = invoke(filled.url, *TABLE, "--before", before)
    assert (result.exit_code, "--before is a day" in result.stderr) == (ExitCode.USAGE, True)
    assert len(left(filled)) == 8


def test_a_model_says_what_the_column_is(
    filled: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = APP.replace('context="sessions.token"', "expose_expiry=True")
    (tmp_path / "purged_app.py").write_text(text, encoding="utf-8")
    for wrong in ("Session", "Session.id", "Base"):
        result = invoke(filled.url, "--model", f"purged_app:{wrong}")
        assert (result.exit_code, "is no encrypted column" in result.stderr) == (ExitCode.USAGE, True)
    result = invoke(filled.url, "--model", "purged_app:Refresh.token")
    assert result.exit_code == ExitCode.USAGE
    assert "declare EncryptedJWT(expose_expiry=True)" in result.stderr
    assert "nothing was deleted" in result.stderr
    assert invoke(filled.url, "--model", "purged_app:Session.token").exit_code == ExitCode.OK
    assert left(filled) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which column?"),
        (("--table", "absent", "--column", "token"), "there is no table absent"),
        (("--table", "keyless", "--column", "token"), "keyless has no primary key"),
    ],
)
def test_wrong_usage_ends_with_2(filled: sa.Engine, arguments: tuple[str, ...], message: str) -> None:
    with filled.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE keyless (token BLOB)")
    result = invoke(filled.url, *arguments)
    assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
    assert message in result.stderr


def test_a_database_that_refuses_every_row_ends_with_3(sqlite: sa.Engine) -> None:
    fill(sqlite, [-1] * 1_100)
    with sqlite.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER kept BEFORE DELETE ON sessions BEGIN SELECT RAISE(ABORT, 'eyJ: kept'); END"
        )
    result = invoke(sqlite.url, *TABLE)
    assert (result.exit_code, result.stdout) == (ExitCode.DATABASE, "")
    # On a machine that is busy, lines of progress come before it.
    assert result.stderr.endswith(
        "jwt-column: sessions.token: the database refused (IntegrityError SQLITE_CONSTRAINT_TRIGGER: a trigger "
        "refuses the change: change the trigger, or this row); 0 rows were removed before\n"
    )


def test_an_asynchronous_driver_will_do(filled: sa.Engine) -> None:
    result = invoke(filled.url.set(drivername="sqlite+aiosqlite"), *TABLE)
    assert result.exit_code == ExitCode.OK
    assert left(filled) == [4, 5, 6, 7, 8]


def test_a_terminal_shows_a_bar_that_goes(filled: sa.Engine) -> None:
    done = run_in_terminal("purge", *TABLE, JWT_COLUMN_DATABASE_URL=str(filled.url))
    assert done.returncode == ExitCode.OK
    assert any("3 of 3 rows" in line for line in done.lines)
    assert "✓ 3 rows deleted" in done.lines[-2]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("progress", "3 rows or more were deleted"),
        ("start", "nothing was deleted"),
    ],
)
def test_a_purge_that_is_stopped_says_what_is_done(filled: sa.Engine, place: str, said: str) -> None:
    setup = (
        "from jwt_column.cli import purge\n"
        "real = purge.purge_rows\n"
        f"def stop(): {stopped_here(signal.SIGINT)}\n"
        "def slow(*given, progress, **options):\n"
        f"    if {place!r} == 'start': stop()\n"
        "    return real(*given, progress=lambda deleted: (progress(deleted), stop()), **options)\n"
        "purge.purge_rows = slow"
    )
    done = run("purge", *TABLE, setup=setup, JWT_COLUMN_DATABASE_URL=str(filled.url))
    assert (done.returncode, done.stdout) == (ExitCode.INTERRUPTED, "")
    assert done.stderr == f"jwt-column: stopped: {said}. The same command goes on from there.\n"
    assert len(left(filled)) == (5 if place == "progress" else 8)


def test_tokens_are_cleared_and_their_rows_kept(engine: sa.Engine) -> None:
    fill(engine, DAYS)
    result = invoke(engine.url, *TABLE, "--action", "null")
    assert result.exit_code == ExitCode.OK
    assert "  ✓ 3 rows cleared that expired by 20" in result.stdout
    with engine.connect() as connection:
        rows = sa.text("SELECT id FROM sessions WHERE token IS NULL ORDER BY id")
        assert connection.scalars(rows).all() == [1, 2, 3, 7]
    content = json.loads(invoke(engine.url, *TABLE, "--action", "null", "--json").stdout)
    assert (content["action"], content["cleared"], content["deleted"]) == ("null", 0, 0)


@pytest.mark.each_server
def test_rows_that_the_database_keeps_are_listed(engine: sa.Engine) -> None:
    fill(engine, DAYS)
    url = engine.url
    with engine.begin() as connection:
        keeper = "CREATE TABLE keeper (id INTEGER REFERENCES sessions (id))"
        if engine.dialect.name == "sqlite":
            # Without a setting of the connection, SQLite checks no foreign keys.
            raising = "WHEN OLD.id = 2 BEGIN SELECT RAISE(ABORT, 'kept'); END"
            keeper = f"CREATE TRIGGER keeper BEFORE DELETE ON sessions {raising}"
        elif engine.dialect.name != "postgresql":
            keeper = "CREATE TABLE keeper (id INTEGER, FOREIGN KEY (id) REFERENCES sessions (id))"
        connection.exec_driver_sql(keeper)
        if engine.dialect.name != "sqlite":
            connection.exec_driver_sql("INSERT INTO keeper VALUES (2)")
    result = invoke(url, *TABLE)
    assert result.exit_code == ExitCode.FAILURE
    assert "  refused by the database  1 (" in result.stdout
    assert "primary keys 2)" in " ".join(result.stdout.split())
    assert " 2 rows deleted that expired by 20" in result.stdout
    assert left(engine) == [2, 4, 5, 6, 7, 8]
    content = invoke(url, *TABLE, "--json")
    assert (content.exit_code, json.loads(content.stdout)["refused"]) == (ExitCode.FAILURE, 1)


def test_rows_under_a_key_go(engine: sa.Engine) -> None:
    """Expired or not; a host with the ring refuses the key that new rows are written under."""
    fill(engine, DAYS)
    old = ("--key", BEFORE.active)
    assert (
        f"Dry run: 1 row under key {BEFORE.active}." in invoke(engine.url, *TABLE, *old, "--dry-run").stdout
    )
    result = invoke(engine.url, *TABLE, *old)
    assert (result.exit_code, result.stderr) == (ExitCode.OK, "")
    assert f"  ✓ 1 row deleted under key {BEFORE.active}." in result.stdout
    assert left(engine) == [1, 2, 3, 4, 5, 7, 8]
    content = json.loads(invoke(engine.url, *TABLE, *old, "--json").stdout)
    assert (content["key"], content["before"], content["expired"], content["found"]) == (
        BEFORE.active,
        None,
        None,
        0,
    )


def test_an_active_key_is_refused_where_the_ring_is(
    filled: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = generate_key()
    active = KeyRing([key]).active
    monkeypatch.setenv("JWT_COLUMN_KEYS", key)
    result = invoke(filled.url, *TABLE, "--key", active)
    assert (result.exit_code, "is an active key" in result.stderr) == (ExitCode.USAGE, True)
    assert len(left(filled)) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--key", "d2849e36", "--before", "2026-03-01"], "give one of them"),
        (["--key", "x"], "key id"),
        (["--action", "drop"], "--action"),
    ],
)
def test_what_cannot_be_purged_is_refused(filled: sa.Engine, options: list[str], message: str) -> None:
    result = invoke(filled.url, *TABLE, *options)
    assert result.exit_code == ExitCode.USAGE
    assert message in result.stderr
    assert len(left(filled)) == 8
