"""``jwt-column scan``: what it finds, what it says of it, and how it ends."""

from __future__ import annotations

import json
import re
import signal
from functools import partial
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from rich.console import Console

from jwt_column import EncryptedJWT, KeyRing
from jwt_column.cli.console import ExitCode, make_console
from tests.support.command_line import invoke_on, run, run_in_terminal, stopped_here
from tests.support.models import store, table_of
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from tests.support.databases import Database

TOKEN = signed_token(sub="alice")
invoke = partial(invoke_on, name="scan")


@pytest.fixture
def sqlite(sqlite: sa.Engine) -> sa.Engine:
    """A database with an encrypted column, and a log that nobody has thought of."""
    with sqlite.begin() as connection:
        store(connection, table_of(EncryptedJWT(KeyRing.generate())), [TOKEN] * 5)
        connection.exec_driver_sql("CREATE TABLE logs (id INTEGER PRIMARY KEY, line TEXT, other TEXT)")
        for number in range(1, 21):
            line = f"Authorization: Bearer {TOKEN}" if number % 5 == 0 else "GET /"
            connection.exec_driver_sql("INSERT INTO logs VALUES (?, ?, NULL)", (number, line))
    return sqlite


def test_readable_tokens_are_shown_by_place(sqlite: sa.Engine) -> None:
    """A known answer, of 80 columns."""
    with sqlite.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE notes (text TEXT)")
        connection.exec_driver_sql("INSERT INTO notes VALUES (?)", (TOKEN,))
    result = invoke(sqlite.url)
    assert result.exit_code == ExitCode.FAILURE
    assert (
        result.stdout
        == f"""\
{sqlite.url}
  3 tables, 6 columns, up to 10,000 rows of each

  table   column   with tokens   of rows   for example
  ────────────────────────────────────────────────────
  logs    line               4        20   key 5
  notes   text               1         1

  ✗ Readable tokens in 2 columns.

  Every reader of the database can use these tokens. Encrypt a column with
  jwt-column encrypt, clear tokens that should not be there, and have the issuer
  revoke them.
"""
    )


def test_a_database_without_any_is_ok(sqlite: sa.Engine) -> None:
    with sqlite.begin() as connection:
        connection.exec_driver_sql("DROP TABLE logs")
    result = invoke(sqlite.url, "--full")
    assert (result.exit_code, result.stderr) == (ExitCode.OK, "")
    assert "1 table, 2 columns, every row" in result.stdout
    assert result.stdout.endswith("\n  ✓ No readable token in 5 rows.\n")


def test_json_is_the_report_and_nothing_else(sqlite: sa.Engine) -> None:
    sampled = json.loads(invoke(sqlite.url, "--sample", "4", "--json").stdout)
    assert (sampled["sample"], sampled["rows"], [found["rows"] for found in sampled["found"]]) == (4, 8, [1])
    everything = json.loads(invoke(sqlite.url, "--full", "--json").stdout)
    assert (everything["sample"], everything["rows"], [found["rows"] for found in everything["found"]]) == (
        None,
        25,
        [4],
    )
    shown = invoke(sqlite.url, "--sample", "4").stdout
    assert ["logs", "line", "1", "4+", "key", "20"] in [line.split() for line in shown.splitlines()]


def test_a_table_that_cannot_be_read_is_named(postgresql_database: Database) -> None:
    engine = sa.create_engine(postgresql_database.url())
    role = f"cli_{postgresql_database.url().database}"
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE denied (line text)")
        connection.exec_driver_sql(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 's3cr3t'")
        connection.exec_driver_sql("CREATE SCHEMA tenant")
    try:
        url = postgresql_database.url().set(username=role, password="s3cr3t")
        result = invoke(url)
        other = invoke(url, "--schema", "tenant")
        missing = invoke(url, "--schema", "nowhere")
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f'DROP ROLE "{role}"')
        engine.dispose()
    assert result.exit_code == ExitCode.FAILURE
    assert "\n  not read  denied  InsufficientPrivilege 42501\n" in result.stdout
    assert "✗ 1 table not read.\n" in result.stdout
    assert (other.exit_code, "0 tables" in other.stdout) == (ExitCode.OK, True)
    assert (missing.exit_code, missing.stderr) == (
        ExitCode.USAGE,
        "jwt-column: there is no schema nowhere\n",
    )


def test_a_database_that_cannot_be_reached_ends_with_3() -> None:
    result = invoke(sa.make_url("postgresql+psycopg://user:s3cr3t@127.0.0.1:1/nothing"))
    assert (result.exit_code, result.stdout) == (ExitCode.DATABASE, "")


def test_an_asynchronous_driver_will_do(sqlite: sa.Engine) -> None:
    assert invoke(sqlite.url.set(drivername="sqlite+aiosqlite")).exit_code == ExitCode.FAILURE


def test_a_terminal_shows_a_bar_that_goes(sqlite: sa.Engine) -> None:
    done = run_in_terminal("scan", JWT_COLUMN_DATABASE_URL=str(sqlite.url))
    assert done.returncode == ExitCode.FAILURE
    assert any("of 2 tables" in line for line in done.lines)
    assert "revoke them." in done.lines[-2]


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_scan_that_is_stopped_says_so(sqlite: sa.Engine, number: int, expected: int) -> None:
    setup = f"from jwt_column.scanning import run\nrun.has_token = lambda _: {stopped_here(number)}"
    done = run("scan", setup=setup, JWT_COLUMN_DATABASE_URL=str(sqlite.url))
    assert (done.returncode, done.stdout, done.stderr) == (
        expected,
        "",
        "jwt-column: stopped; a scan writes nothing.\n",
    )


HOSTILE = "x\x1b[2J\n  \u202e✓ \x9b2K"


def test_names_and_keys_of_a_database_are_no_terminal_commands(sqlite: sa.Engine) -> None:
    """The table's name, its column's and its primary key would clear the screen and write a line of their own."""
    table = sa.Table(
        f"t{HOSTILE}", sa.MetaData(), sa.Column("id", sa.Text, primary_key=True), sa.Column(HOSTILE, sa.Text)
    )
    with sqlite.begin() as connection:
        table.create(connection)
        connection.execute(table.insert().values({"id": HOSTILE, HOSTILE: TOKEN}))
    encrypted = ("--table", table.name, "--column", HOSTILE)
    for name, *arguments in (("scan",), ("audit", *encrypted, "--active", "00000000"), ("purge", *encrypted)):
        shown = invoke(sqlite.url, *arguments, name=name)
        assert shown.exit_code == (ExitCode.OK if name == "purge" else ExitCode.FAILURE)
        assert r"tx\x1b[2J\n" in re.sub(r"\n +", "", shown.stdout)
        assert not set("\x1b\u202e\x9b") & set(shown.stdout + shown.stderr)
        # JSON has escapes of its own, and they give the name back.
        report = json.dumps(json.loads(invoke(sqlite.url, *arguments, "--json", name=name).stdout))
        assert json.dumps(f"t{HOSTILE}")[1:-1] in report


def test_a_console_obeys_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    """A console of Rich, the control, does."""
    make_console().print(HOSTILE)
    assert "\x1b[2J" not in capsys.readouterr().out
    Console(markup=False, highlight=False).print(HOSTILE)
    assert "\x1b[2J" in capsys.readouterr().out
