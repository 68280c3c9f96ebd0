"""``jwt-column purge``: what it deletes, what it says, and how it ends. It never needs a key."""

from __future__ import annotations

import json
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from jwt_column import EncryptedJWT
from jwt_column.cli.console import ExitCode
from jwt_column.cli.options import DATABASE_VARIABLE
from tests.cli.test_audit import APP, invoke, stop_when
from tests.cli.test_cli import command, environment, plain_display, run_in_terminal
from tests.support.audited import AFTER, BEFORE, envelope, put, table_of, token
from tests.support.workload import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.databases import Database

__all__ = ["plain_display"]

TABLE = ("--table", "sessions", "--column", "token")
TYPE = EncryptedJWT(AFTER, expose_expiry=True, fingerprints=["jti"])
#: Days from now in which the tokens of a table expire.
DAYS = [-30, -2, -1, 1, 30]


@pytest.fixture(autouse=True)
def no_keys(key_environment: None) -> None:
    """No command here has any."""


@pytest.fixture
def sqlite(sqlite_database: Database) -> Iterator[sa.Engine]:
    engine = sa.create_engine(sqlite_database.url())
    fill(engine, DAYS)
    yield engine
    engine.dispose()


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
    result = invoke(engine.url, *TABLE, name="purge")
    assert (result.exit_code, result.stderr) == (ExitCode.OK, "")
    assert result.stdout.startswith("sessions.token\n\n  ✓ 3 rows deleted that expired by 20")
    assert left(engine) == [4, 5, 6, 7, 8]


def test_a_dry_run_counts(sqlite: sa.Engine) -> None:
    result = invoke(sqlite.url, *TABLE, "--dry-run", name="purge")
    assert result.exit_code == ExitCode.OK
    assert "  Dry run: 3 rows expired by 20" in result.stdout
    assert len(left(sqlite)) == 8


def test_a_time_is_given(sqlite: sa.Engine) -> None:
    before = datetime.now(UTC) - timedelta(days=1, hours=12)
    result = invoke(sqlite.url, *TABLE, "--before", before.isoformat(), "--json", name="purge")
    content = json.loads(result.stdout)
    assert content.pop("seconds") >= 0
    assert content == {
        "column": "sessions.token",
        "before": before.isoformat(),
        "dry_run": False,
        "expired": 2,
        "deleted": 2,
        "row_security": False,
    }
    day = f"{datetime.now(UTC) + timedelta(days=3):%Y-%m-%d}"
    content = json.loads(invoke(sqlite.url, *TABLE, "--before", day, "--json", name="purge").stdout)
    assert (content["before"], content["deleted"]) == (f"{day}T00:00:00+00:00", 2)
    zoned = json.loads(
        invoke(sqlite.url, *TABLE, "--before", "2026-03-01T12:00:00+02:00", "--json", name="purge").stdout
    )
    assert (zoned["before"], zoned["deleted"]) == ("2026-03-01T10:00:00+00:00", 0)


@pytest.mark.parametrize("before", ["yesterday", "2026-03-01T12:00:00", "2026-02-30", "12:00:0000", ""])
def test_a_time_without_a_zone_is_refused(sqlite: sa.Engine, before: str) -> None:
    result = invoke(sqlite.url, *TABLE, "--before", before, name="purge")
    assert (result.exit_code, "--before is a day" in result.stderr) == (ExitCode.USAGE, True)
    assert len(left(sqlite)) == 8


def test_a_model_says_what_the_column_is(
    sqlite: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = APP.replace('context="sessions.token"', "expose_expiry=True")
    (tmp_path / "purged_app.py").write_text(text, encoding="utf-8")
    for wrong in ("Session", "Session.id", "Base"):
        result = invoke(sqlite.url, "--model", f"purged_app:{wrong}", name="purge")
        assert (result.exit_code, "is no encrypted column" in result.stderr) == (ExitCode.USAGE, True)
    result = invoke(sqlite.url, "--model", "purged_app:Refresh.token", name="purge")
    assert result.exit_code == ExitCode.USAGE
    assert "declare EncryptedJWT(expose_expiry=True)" in result.stderr
    assert "nothing was deleted" in result.stderr
    assert invoke(sqlite.url, "--model", "purged_app:Session.token", name="purge").exit_code == ExitCode.OK
    assert left(sqlite) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which column?"),
        (("--table", "absent", "--column", "token"), "there is no table absent"),
        (("--table", "keyless", "--column", "token"), "keyless has no primary key"),
    ],
)
def test_wrong_usage_ends_with_2(sqlite: sa.Engine, arguments: tuple[str, ...], message: str) -> None:
    with sqlite.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE keyless (token BLOB)")
    result = invoke(sqlite.url, *arguments, name="purge")
    assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
    assert message in result.stderr


def test_a_database_that_refuses_ends_with_3(sqlite: sa.Engine) -> None:
    with sqlite.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER kept BEFORE DELETE ON sessions BEGIN SELECT RAISE(ABORT, 'eyJ: kept'); END"
        )
    result = invoke(sqlite.url, *TABLE, name="purge")
    assert (result.exit_code, result.stdout) == (ExitCode.DATABASE, "")
    assert result.stderr == (
        "jwt-column: sessions.token: the database refused (IntegrityError SQLITE_CONSTRAINT_TRIGGER); "
        "0 rows were deleted\n"
    )


def test_an_asynchronous_driver_will_do(sqlite: sa.Engine) -> None:
    result = invoke(sqlite.url.set(drivername="sqlite+aiosqlite"), *TABLE, name="purge")
    assert result.exit_code == ExitCode.OK
    assert left(sqlite) == [4, 5, 6, 7, 8]


def test_a_terminal_shows_a_bar_that_goes(sqlite: sa.Engine) -> None:
    done = run_in_terminal("purge", *TABLE, JWT_COLUMN_DATABASE_URL=str(sqlite.url))
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
def test_a_purge_that_is_stopped_says_what_is_done(
    sqlite: sa.Engine, tmp_path: Path, place: str, said: str
) -> None:
    started = tmp_path / "started"
    setup = (
        "import pathlib, time\n"
        "from jwt_column.cli import purge\n"
        "real = purge.purge_expired\n"
        f"def wait(): (pathlib.Path({str(started)!r}).touch(), time.sleep({PATIENCE}))\n"
        "def slow(*given, progress, **options):\n"
        f"    if {place!r} == 'start': wait()\n"
        "    return real(*given, progress=lambda deleted: (progress(deleted), wait()), **options)\n"
        "purge.purge_expired = slow"
    )
    process = subprocess.Popen(
        command("purge", *TABLE, setup=setup),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment({DATABASE_VARIABLE: str(sqlite.url)}),
    )
    stdout, stderr = stop_when(process, started.exists, signal.SIGINT)
    assert (process.returncode, stdout) == (ExitCode.INTERRUPTED, "")
    assert stderr == f"jwt-column: stopped: {said}. The same command goes on from there.\n"
    assert len(left(sqlite)) == (5 if place == "progress" else 8)
