"""``jwt-column reencrypt`` and ``encrypt``: what they do, what they say, and how they end."""

from __future__ import annotations

import datetime as dt
import inspect
import io
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from threading import Timer
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet
from sqlalchemy.exc import OperationalError

from jwt_column import EncryptedJSON, EncryptedJWT, KeyRing, ReencryptionError
from jwt_column.cli import databases
from jwt_column.cli import reencrypt as reencrypt_module
from jwt_column.cli.console import DatabaseError, ExitCode
from jwt_column.cli.conversion import _shard_engine
from jwt_column.cli.databases import refusals
from jwt_column.cli.declaring import with_options
from jwt_column.cli.options import DATABASE_VARIABLE
from jwt_column.cli.passwords import without_passwords
from jwt_column.cli.signals import Interruptions
from jwt_column.providers import write_key_file
from migrations_helpers import ReencryptionReport
from migrations_helpers.engine.conversions import Reencryption
from migrations_helpers.engine.progress import WIDEST, line_progress, log_progress, report_progress
from tests.engine.test_expired import create_expiring, fresh
from tests.engine.test_recompute import prepared
from tests.support.command_line import PASSWORD, invoke_on, run, run_in_terminal, start, text_of
from tests.support.docs_examples import ROOT
from tests.support.models import store, table_of
from tests.support.tokens import compact
from tests.support.workload import (
    LOST_KEY,
    NEW,
    NEW_KEY,
    OLD,
    OLD_KEY,
    PATIENCE,
    column_type,
    create_sessions,
    engine_on,
    run_connection,
    seal,
    token,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typer.models import OptionInfo
    from typer.testing import Result

    from tests.support.databases import Database
    from tests.support.workload import Sessions

ROWS: Final = 120
TABLE: Final = ("--table", "sessions", "--column", "token")
NEW_ONLY: Final = KeyRing([NEW_KEY])
invoke = partial(invoke_on, name="reencrypt")

pytestmark = pytest.mark.usefixtures("key_file")


def encrypt(url: sa.URL, *arguments: str) -> Result:
    return invoke(url, *TABLE, *arguments, name="encrypt")


@pytest.fixture
def sessions(sqlite: sa.Engine) -> Sessions:
    """A table on SQLite, every row of which is under the old key."""
    return create_sessions(sqlite, ROWS)


def assert_done(sessions: Sessions, engine: sa.Engine, rows: int = ROWS) -> None:
    """Every row is under the new key, and holds the token that it held before."""
    assert sessions.census(engine) == {(NEW, "current"): rows}
    assert sessions.decrypted(engine, NEW_ONLY) == sessions.tokens


def figures(output: str) -> dict[str, list[str]]:
    """Return the rows of the census in a summary: state to figures."""
    found = re.findall(r"^  (\S+) +([a-zA-Z ]+?) {2,}([\d,]+)(?: +([\d,]+))?$", output, re.MULTILINE)
    return {
        f"{key_id} {state}": [number for number in numbers if number] for key_id, state, *numbers in found
    }


# -- it re-encrypts -------------------------------------------------------------------------------------------------


def test_every_row_is_under_the_new_key(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, ROWS)
    done = invoke(engine.url, *TABLE, "--verify")
    assert done.exit_code == ExitCode.OK
    assert_done(sessions, engine)
    assert figures(done.stdout) == {f"{NEW} current": ["0", f"{ROWS}"], f"{OLD} stale": [f"{ROWS}", "0"]}
    assert f"✓ {ROWS} rows re-encrypted under key {NEW} in " in done.stdout
    assert re.search(rf"opened at the end +{ROWS} of {ROWS}\n", done.stdout)
    assert f"No row here needs the key {OLD} any more." in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not re.search(r"[ \t]$|\x1b", done.stdout, re.MULTILINE)


def test_progress_is_lines_on_standard_error(sessions: Sessions, sqlite: sa.Engine) -> None:
    done = invoke(sqlite.url, *TABLE)
    first, last = done.stderr.splitlines()
    assert first == f"sessions.token: 0 of {ROWS} rows under key {NEW}, 0 rows/s"
    assert re.fullmatch(rf"sessions.token: {ROWS} of {ROWS} rows under key {NEW}, \d+ rows/s", last)


def test_verify_tokens_compares_every_token(sessions: Sessions, sqlite: sa.Engine) -> None:
    done = invoke(sqlite.url, *TABLE, "--verify-tokens")
    assert done.exit_code == ExitCode.OK
    assert re.search(rf"hold the token that they held +{ROWS} of {ROWS}\n", done.stdout)
    shown = json.loads(invoke(sqlite.url, *TABLE, "--verify-tokens", "--json").stdout)
    assert shown["tokens"]["before"] == shown["tokens"]["after"]
    assert shown["tokens"]["unchanged"] == ROWS


def test_schemas_are_one_run(postgresql_database: Database) -> None:
    with engine_on(postgresql_database.url()) as engine:
        with engine.begin() as connection:
            for name in ("tena", "tenb", "empty"):
                connection.exec_driver_sql(f"CREATE SCHEMA {name}")
        for name in ("tena", "tenb"):
            create_sessions(engine, ROWS, schema=name)
        for arguments in (
            ("--schemas", "a", "--schemas-query", "SELECT 1"),
            ("--schemas", "a", "--schema", "b"),
        ):
            refused = invoke(engine.url, *TABLE, *arguments)
            assert refused.exit_code == ExitCode.USAGE
            assert "--schemas-query exclude each other" in refused.stderr.replace("\n", " ")
        for query in ("SELECT nothing FROM nowhere", "SELECT 1", "SELECT 'a' WHERE false"):
            assert invoke(engine.url, *TABLE, "--schemas-query", query).exit_code == ExitCode.USAGE

        done = invoke(engine.url, *TABLE, "--schemas", "empty,tena,tenb")
        assert done.exit_code == ExitCode.FAILURE
        assert "1 of 3 schemas were not finished" in done.stderr
        assert re.search(r"schemas finished +2 of 3\n +not finished +empty\n", done.stdout)
        counts = {f"{NEW} current": ["0", f"{2 * ROWS}"], f"{OLD} stale": [f"{2 * ROWS}", "0"]}
        assert figures(done.stdout) == counts
        query = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'ten_'"
        again = invoke(engine.url, *TABLE, "--schemas-query", query, "--json")
        assert again.exit_code == ExitCode.OK
        assert set(json.loads(again.stdout)["schemas"]) == {"tena", "tenb"}


def test_a_second_run_has_nothing_to_do(sessions: Sessions, sqlite: sa.Engine) -> None:
    invoke(sqlite.url, *TABLE)
    again = invoke(sqlite.url, *TABLE)
    assert again.exit_code == ExitCode.OK
    assert "✓ Nothing to do: no row was waiting" in again.stdout


def test_an_empty_table_is_no_failure(sqlite: sa.Engine) -> None:
    create_sessions(sqlite, 0)
    done = invoke(sqlite.url, *TABLE)
    assert done.exit_code == ExitCode.OK
    assert done.stdout == "sessions.token\n\n  ✓ Nothing to do: the column holds no value.\n"


def test_json_is_the_report_and_nothing_else(sessions: Sessions, sqlite: sa.Engine) -> None:
    done = invoke(sqlite.url, *TABLE, "--json", "--verify")
    report = json.loads(done.stdout)
    assert done.exit_code == ExitCode.OK
    assert set(report) == set(ReencryptionReport("sessions", "token").to_dict())
    assert report["by_key_id"] == {OLD: ROWS}
    assert (report["reencrypted"], report["remaining"], report["verified"]) == (ROWS, 0, ROWS)


def test_a_dry_run_writes_nothing(sessions: Sessions, sqlite: sa.Engine) -> None:
    before = sessions.stored(sqlite)
    done = invoke(sqlite.url, *TABLE, "--dry-run", "--verify", "--shards", "2")
    assert done.exit_code == ExitCode.OK
    assert sessions.stored(sqlite) == before
    assert figures(done.stdout) == {f"{OLD} stale": [f"{ROWS}"]}
    verdict = " ".join(done.stdout.split())
    assert f"Dry run: {ROWS} rows would be re-encrypted under key {NEW}. Nothing was written." in verdict
    assert "The same command without --dry-run writes." in verdict


def test_options_reach_the_engine(sqlite: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    create_sessions(sqlite, 1)
    given: list[Any] = []

    def convert_column(*arguments: Any) -> ReencryptionReport:
        given.extend(arguments)
        assert arguments[-1].expired is None
        return ReencryptionReport("sessions", "token", finished=True)

    monkeypatch.setattr("jwt_column.cli.conversion.convert_column", convert_column)
    arguments = ["--batch-size", "7", "--nice", "2.5", "--shards", "3", "--verify", "--schema", "main"]
    arguments += ["--key-columns", "id", "--preserve", "id, id", "--on-row-error", "fail", "--recompute"]
    assert invoke(sqlite.url, *TABLE, *arguments).exit_code == ExitCode.OK
    _, subject, _, options = given
    assert (options.batch_size, options.nice, options.shards, options.verify) == (7, 2.5, 3, "decrypt")
    assert (options.key_columns, options.preserve, subject.schema) == (("id",), ("id", "id"), "main")
    assert (options.on_row_error, options.recompute) == ("fail", True)
    assert subject.type_.context == "sessions.token"


def test_recompute_rewrites_current_rows_and_says_how_many(sqlite: sa.Engine) -> None:
    """The control is the run without the option, for which every row is current."""
    sessions = prepared(sqlite)
    indexed = ("--fingerprint", "jti", "--expose-expiry")
    differs = sessions.stored(sqlite)
    plain = invoke(sqlite.url, *TABLE, *indexed)
    assert (plain.exit_code, sessions.stored(sqlite)) == (ExitCode.OK, differs)
    assert "Nothing to do" in plain.stdout
    done = invoke(sqlite.url, *TABLE, *indexed, "--recompute")
    assert done.exit_code == ExitCode.OK
    assert re.search(r"current, with other index fields than their token's, rewritten +1\n", done.stdout)
    changed = {key for key, stored in sessions.stored(sqlite).items() if stored != differs[key]}
    assert changed == {(7,)}


@pytest.mark.parametrize("name", ["reencrypt", "encrypt"])
def test_a_row_that_the_database_refuses_is_listed_or_ends_the_run(sqlite: sa.Engine, name: str) -> None:
    sessions = create_sessions(sqlite, 3)
    with sqlite.begin() as connection:
        if name == "encrypt":
            for (number,), text in sessions.tokens.items():
                values = {"token": text.encode()}
                connection.execute(sa.update(sessions.table).filter_by(id=number).values(values))
        connection.exec_driver_sql(
            "CREATE TRIGGER poison BEFORE UPDATE ON sessions WHEN NEW.id = 2 BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    before = sessions.stored(sqlite)

    def changed() -> set[Any]:
        return {key for key, stored in sessions.stored(sqlite).items() if stored != before[key]}

    failed = invoke(sqlite.url, *TABLE, "--on-row-error", "fail", name=name)
    assert "the database refused a batch" in failed.stderr
    assert (failed.exit_code, changed()) == (ExitCode.DATABASE, set())
    listed = invoke(sqlite.url, *TABLE, name=name)
    assert "(primary keys 2)" in listed.stdout
    assert (listed.exit_code, changed()) == (ExitCode.FAILURE, {(1,), (3,)})


def test_shards_work_at_once(postgresql: sa.Engine) -> None:
    sessions = create_sessions(postgresql, ROWS)
    done = invoke(postgresql.url, *TABLE, "--shards", "2")
    assert done.exit_code == ExitCode.OK
    assert_done(sessions, postgresql)


@pytest.mark.parametrize(
    ("name", "driver"), [("sqlite", "aiosqlite"), ("postgresql", "asyncpg"), ("postgresql", "psycopg")]
)
def test_asynchronous_urls_work(name: str, driver: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(f"{name}_database")
    engine = sa.create_engine(database.url())
    sessions = create_sessions(engine, ROWS)
    done = invoke(database.url(driver), *TABLE, "--verify")
    assert done.exit_code == ExitCode.OK
    assert_done(sessions, engine)
    engine.dispose()


def test_shards_ask_for_a_synchronous_driver(sessions: Sessions, sqlite: sa.Engine) -> None:
    done = invoke(sqlite.url.set(drivername="sqlite+aiosqlite"), *TABLE, "--shards", "2")
    assert done.exit_code == ExitCode.USAGE
    assert done.stdout == ""
    assert "write sqlite:// in the URL" in done.stderr


def test_keys_may_be_in_the_environment_alone(sessions: Sessions, sqlite: sa.Engine) -> None:
    """In a process of its own, because a process keeps the ring of that variable."""
    keys = ",".join(
        sa.util.b64encode(key).rstrip("=").translate({43: "-", 47: "_"}) for key in (NEW_KEY, OLD_KEY)
    )
    url = text_of(sqlite.url)
    done = run("reencrypt", *TABLE, JWT_COLUMN_DATABASE_URL=url, JWT_COLUMN_KEYRING="", JWT_COLUMN_KEYS=keys)
    assert done.returncode == ExitCode.OK
    assert_done(sessions, sqlite)


def test_the_command_line_may_hold_url_and_ring(
    sessions: Sessions, sqlite: sa.Engine, tmp_path: Path
) -> None:
    path = tmp_path / "other.keys"
    write_key_file(path, [LOST_KEY, OLD_KEY])
    done = invoke(None, *TABLE, "--database", text_of(sqlite.url), "--keyring", f"file:{path}")
    assert done.exit_code == ExitCode.OK
    assert sessions.census(sqlite) == {(KeyRing([LOST_KEY]).active, "stale"): ROWS}


# -- rows that need somebody ------------------------------------------------------------------------------------------


def spoil(sessions: Sessions, engine: sa.Engine) -> None:
    """A corrupt row, one under a key that is lost, one in the clear, one without a value."""
    stored = sessions.stored(engine)[(1,)]
    sessions.put(engine, (1,), stored[:60] + bytes([stored[60] ^ 1]) + stored[61:])
    sessions.put(engine, (2,), seal(token(2), KeyRing([LOST_KEY])))
    sessions.put(engine, (3,), token(3).encode())
    sessions.put(engine, (4,), None)


def test_a_column_of_json_objects_is_named_by_its_type(engine: sa.Engine) -> None:
    table = table_of(sa.Text, name="responses")
    store(engine, table, ['{"access_token": "a"}', '{"access_token": "b"}'])
    column = ("--table", "responses", "--column", "token", "--fingerprint", "access_token")
    refused = invoke(engine.url, *column, name="encrypt")
    assert refused.exit_code == ExitCode.FAILURE
    assert "JSON objects an EncryptedJSON (--type json)" in refused.stderr
    assert invoke(engine.url, *column, "--type", "json", name="encrypt").exit_code == ExitCode.OK
    rewritten = invoke(engine.url, *column, "--recompute")
    assert rewritten.exit_code == ExitCode.FAILURE
    assert "2 rows can be read, but do not fit the column or its type" in rewritten.stderr
    done = invoke(engine.url, *column, "--type", "json", "--recompute")
    assert done.exit_code == ExitCode.OK
    typed = sa.Table("responses", sa.MetaData(), sa.Column("token", EncryptedJSON(NEW_ONLY, storage="text")))
    with engine.connect() as connection:
        loaded = connection.scalars(sa.select(typed.c.token)).all()
    assert sorted(one["access_token"] for one in loaded) == ["a", "b"]


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)], ids=["run", "dry-run"])
def test_rows_that_cannot_be_read_end_with_1(
    arguments: tuple[str, ...], sessions: Sessions, sqlite: sa.Engine
) -> None:
    spoil(sessions, sqlite)
    done = invoke(sqlite.url, *TABLE, *arguments)
    assert done.exit_code == ExitCode.FAILURE
    assert "✓" not in done.stdout
    assert "cannot be read  2 (primary keys 1, 2)" in done.stdout
    assert "(primary keys 1, 2)" in done.stderr
    assert "okens that are no JWT need allow_opaque (--allow-opaque)" in done.stderr
    lost = KeyRing([LOST_KEY]).active
    assert f"1 row is under {lost}, a key that the ring lacks." in done.stdout
    assert f"{OLD}, a key" not in done.stdout
    wanted = 0 if arguments else ROWS - 4
    assert sessions.census(sqlite).get((NEW, "current"), 0) == wanted


def test_the_report_of_a_run_that_failed_is_json_too(sessions: Sessions, sqlite: sa.Engine) -> None:
    spoil(sessions, sqlite)
    done = invoke(sqlite.url, *TABLE, "--json")
    assert done.exit_code == ExitCode.FAILURE
    assert json.loads(done.stdout)["undecryptable"] == [1, 2]


def test_many_primary_keys_are_cut_short(sqlite: sa.Engine) -> None:
    create_sessions(sqlite, 30)
    with sqlite.begin() as connection:
        connection.execute(sa.text("UPDATE sessions SET token = x'01'"))
    done = invoke(sqlite.url, *TABLE)
    listed = ", ".join(map(str, range(1, 21)))
    assert f"cannot be read 30 (primary keys {listed}, ...)" in " ".join(done.stdout.split())


def test_what_the_application_did_meanwhile_is_told(
    sessions: Sessions, sqlite: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert_column(*_: Any, **__: Any) -> ReencryptionReport:
        return report_of(1234, superseded=56, retries=7, finished=True)

    monkeypatch.setattr("jwt_column.cli.conversion.convert_column", convert_column)
    done = invoke(sqlite.url, *TABLE)
    assert "written by the application meanwhile  56\n" in done.stdout
    assert re.search(r"batches put off and done again +7\n", done.stdout)
    assert f"✓ 1,234 rows re-encrypted under key {NEW} in 2.0 s, 617 rows/s.\n" in done.stdout


@pytest.mark.parametrize(
    ("choice", "told", "left", "shards"),
    [
        ("keep", "", 12, "1"),
        ("skip", "expired, left as they are  8", 12, "1"),
        ("null", "expired, set to NULL  8", 4, "1"),
        ("delete", "expired, deleted  8", 4, "1"),
        pytest.param("delete", "expired, deleted  8", 4, "2", marks=pytest.mark.exhaustive),
    ],
)
def test_expired_rows_have_the_end_that_was_asked_for(
    choice: str, told: str, left: int, shards: str, sqlite: sa.Engine
) -> None:
    sessions = create_expiring(sqlite, 12)
    arguments = ("--expose-expiry", "--expired", choice)
    rehearsal = invoke(sqlite.url, *TABLE, *arguments, "--dry-run")
    assert rehearsal.exit_code == ExitCode.OK
    assert told.replace("expired, ", "expired, to be ") in rehearsal.stdout
    assert sessions.tokens == sessions.decrypted(sqlite)

    done = invoke(sqlite.url, *TABLE, *arguments, "--shards", shards)
    assert done.exit_code == ExitCode.OK
    assert told in done.stdout
    assert "cannot be read" not in done.stdout
    rows = "12" if choice == "keep" else "4"
    assert f"✓ {rows} rows re-encrypted under key {NEW}" in done.stdout
    is_old_key_idle = choice != "skip"
    assert (f"No row here needs the key {OLD} any more" in done.stdout) == is_old_key_idle
    assert sum(sessions.census(sqlite).values()) == left

    again = json.loads(invoke(sqlite.url, *TABLE, *arguments, "--json").stdout)
    assert (again["reencrypted"], again["expired"]) == (0, 8 if choice == "skip" else 0)


def test_where_all_have_expired_nothing_is_re_encrypted(sqlite: sa.Engine) -> None:
    sessions = create_expiring(sqlite, 12)
    for key in fresh(sessions):
        sessions.put(sqlite, key, None)
    done = invoke(sqlite.url, *TABLE, "--expose-expiry", "--expired", "delete")
    assert done.exit_code == ExitCode.OK
    assert "expired, deleted  8" in done.stdout
    assert "✓ Nothing else to do: no other row was waiting to be re-encrypted" in done.stdout


def test_a_column_that_shows_no_expiry_ends_with_2(sessions: Sessions, sqlite: sa.Engine) -> None:
    done = invoke(sqlite.url, *TABLE, "--expired", "delete")
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert "sessions.token: expired='delete' needs the expiry in the header" in done.stderr
    assert sessions.census(sqlite) == {(OLD, "stale"): ROWS}


def test_rows_that_do_not_fit_are_not_said_to_be_unreadable(sqlite: sa.Engine) -> None:
    sessions = create_sessions(sqlite, 5)
    sessions.put(sqlite, (2,), compact({"alg": "none"}, {"sub": "x"}, b"").encode())
    sessions.put(sqlite, (4,), b"nonsense")
    for dry_run in ([], ["--dry-run"]):
        done = invoke(sqlite.url, *TABLE, *dry_run, name="encrypt")
        assert done.exit_code == ExitCode.FAILURE
        assert re.search(r"cannot be read +1 \(primary keys 4\)\n", done.stdout)
        assert re.search(r"cannot be written +1 \(primary keys 2\)\n", done.stdout)
    assert (
        "a run would leave 1 row that cannot be read (primary keys 4) and 1 row that cannot be written "
        "(primary keys 2) as they are" in done.stderr
    )


def test_plaintext_is_counted_and_left_alone(sessions: Sessions, sqlite: sa.Engine) -> None:
    sessions.put(sqlite, (3,), token(3).encode())
    done = invoke(sqlite.url, *TABLE)
    assert done.exit_code == ExitCode.OK
    assert figures(done.stdout)["none plaintext"] == ["1", "1"]
    assert "1 row is in the clear" in done.stdout
    assert "    jwt-column encrypt --table sessions --column token\n" in done.stdout
    assert sessions.stored(sqlite)[(3,)] == token(3).encode()


def test_the_command_that_is_shown_says_all_but_the_ring(sqlite: sa.Engine, key_file: Path) -> None:
    sessions = create_sessions(sqlite, 2, context="it's ours", fingerprints=["jti"], expose_expiry=True)
    sessions.put(sqlite, (1,), token(1).encode())
    arguments = [
        "--context",
        "it's ours",
        "--fingerprint",
        "jti",
        "--expose-expiry",
        "--keyring",
        f"file:{key_file}",
    ]
    done = invoke(sqlite.url, *TABLE, *arguments)
    assert done.exit_code == ExitCode.OK
    shown = " ".join(done.stdout.split())
    command = (
        "jwt-column encrypt --table sessions --column token --context 'it'\"'\"'s ours' --fingerprint jti "
    )
    assert f"{command}--expose-expiry" in shown
    assert "--keyring" not in shown


def test_a_run_beside_another_one_ends_with_1(postgresql: sa.Engine) -> None:
    create_sessions(postgresql, 1)
    connection = run_connection(postgresql)
    done = invoke(postgresql.url, *TABLE)
    connection.close()
    postgresql.dispose()
    assert (done.exit_code, done.stdout) == (ExitCode.FAILURE, "")
    assert "another run is at work" in done.stderr
    assert "--wait" in done.stderr


def test_a_run_waits_for_another_one(postgresql: sa.Engine) -> None:
    """As on the second host of a deployment."""
    create_sessions(postgresql, 3)
    connection = run_connection(postgresql)
    other = threading.Timer(0.3, connection.close)
    other.start()
    done = invoke(postgresql.url, *TABLE, "--wait", "30")
    other.join()
    postgresql.dispose()
    assert done.exit_code == ExitCode.OK, done.stderr


def test_a_preflight_refuses_what_a_run_would_drop(sqlite: sa.Engine) -> None:
    """The control is the command line that names it."""
    create_sessions(sqlite, 2, name="exposed", expose_expiry=True)
    table = ("--table", "exposed", "--column", "token")
    for arguments in ((), ("--preflight",), ("--preflight", "--json")):
        refused = invoke(sqlite.url, *table, *arguments)
        assert refused.exit_code == ExitCode.USAGE
        assert "a readable expiry (--expose-expiry)" in refused.stderr
        assert "Nothing stands in the way" not in refused.stdout
    assert invoke(sqlite.url, *table, "--expose-expiry", "--preflight").exit_code == ExitCode.OK


def test_a_preflight_shows_what_a_run_would_meet_and_does_nothing(
    sessions: Sessions, sqlite: sa.Engine
) -> None:
    before = sessions.stored(sqlite)
    done = invoke(sqlite.url, *TABLE, "--preflight")
    assert (done.exit_code, done.stderr) == (ExitCode.OK, "")
    assert "Nothing stands in the way of a run." in done.stdout
    with sqlite.begin() as connection:
        connection.exec_driver_sql("CREATE TRIGGER watch AFTER UPDATE ON sessions BEGIN SELECT 1; END")
    done = invoke(sqlite.url, *TABLE, "--preflight")
    assert done.exit_code == ExitCode.OK
    assert done.stdout.startswith("warning  triggers  an UPDATE of sessions fires triggers (watch)")
    refused = invoke(sqlite.url, *TABLE[:2], "--column", "made", "--preflight", "--json")
    assert refused.exit_code == ExitCode.USAGE
    with sqlite.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE sessions ADD made BLOB GENERATED ALWAYS AS (token) VIRTUAL")
    refused = invoke(sqlite.url, *TABLE[:2], "--column", "made", "--preflight", "--json")
    assert refused.exit_code == ExitCode.USAGE
    shown = json.loads(refused.stdout)
    assert not shown["ready"]
    assert [one["code"] for one in shown["findings"]] == ["column-generated", "triggers"]
    assert sessions.stored(sqlite) == before


def test_a_run_on_a_replica_ends_with_2(postgresql_database: Database) -> None:
    """Before anything starts; the same statement that makes transactions read-only stands for the replica."""
    with engine_on(postgresql_database.url()) as engine:
        create_sessions(engine, 1)
        name = engine.url.database
        try:
            with engine.begin() as connection:
                connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            done = invoke(engine.url, *TABLE)
            shown = invoke(engine.url, *TABLE, "--preflight")
        finally:
            with engine.begin() as connection:
                connection.exec_driver_sql(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert "sessions.token cannot be written: transactions are read-only" in done.stderr
    assert shown.exit_code == ExitCode.USAGE
    assert "A run would be refused." in shown.stdout


# -- the column -------------------------------------------------------------------------------------------------------


MODEL: Final = """
from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from jwt_column import JWT, EncryptedJWT

print("the application says something")

class Base(DeclarativeBase):
    metadata = MetaData(schema="main")

class Session(Base):
    __tablename__ = "sessions"
    id: Mapped[int] = mapped_column(primary_key=True)
    secret: Mapped[JWT] = mapped_column("token", EncryptedJWT({type}))

core = Base.metadata.tables["main.sessions"]
number = 3
"""


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Write the application's module into the current directory, and return its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(source: str, name: str = "application_of_the_test") -> str:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    yield write
    sys.modules.pop("application_of_the_test", None)


@pytest.mark.parametrize("path", ["Session.secret", "core.c.token"])
def test_the_model_says_it_all(path: str, sqlite: sa.Engine, application: Callable[[str], str]) -> None:
    options: dict[str, Any] = {"storage": "text", "fingerprints": ["jti"], "expose_expiry": True}
    sessions = create_sessions(sqlite, ROWS, **options)
    type_ = "storage='text', fingerprints=['jti'], expose_expiry=True"
    name = application(MODEL.replace("{type}", type_))
    done = invoke(sqlite.url, "--model", f"{name}:{path}", "--json")
    assert done.exit_code == ExitCode.OK
    # What the application prints when it is imported goes elsewhere.
    assert json.loads(done.stdout)["table"] == "main.sessions"
    assert "the application says something" in done.stderr
    assert_done(sessions, sqlite)


def test_a_model_drops_what_rows_have_only_when_it_is_named(
    sqlite: sa.Engine, application: Callable[[str], str]
) -> None:
    """The model may be that of an older release."""
    sessions = create_sessions(sqlite, 5, fingerprints=["jti"])
    model = ("--model", f"{application(MODEL.replace('{type}', ''))}:Session.secret")
    for more in ((), ("--dry-run",)):
        refused = invoke(sqlite.url, *model, *more)
        assert refused.exit_code == ExitCode.USAGE
        assert "the fingerprint 'jti'" in " ".join(refused.stderr.split())
    assert invoke(sqlite.url, *model, "--drop", "jti").exit_code == ExitCode.OK
    assert {stored[5] for stored in sessions.stored(sqlite).values()} == {0}


@pytest.mark.parametrize(
    ("type_options", "lost"),
    [
        ({"fingerprints": ["jti", "sub"]}, "2 fingerprints where 1 are named"),
        ({"expose_expiry": True}, "a readable expiry"),
        ({"expose_expiry": True, "storage": "text"}, "a readable expiry"),
    ],
)
def test_a_command_line_drops_nothing(type_options: dict[str, Any], lost: str, engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 5, **type_options)
    before = sessions.stored(engine)
    done = invoke(engine.url, *TABLE, "--fingerprint", "jti")
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert lost in done.stderr
    assert "--model" in done.stderr
    assert sessions.stored(engine) == before


def test_a_row_of_a_layout_that_nobody_knows_is_no_reason_to_stop(
    sessions: Sessions, sqlite: sa.Engine
) -> None:
    sessions.put(sqlite, (1,), bytes.fromhex(f"01{OLD}ff") + bytes(60))
    assert "1 (primary keys 1)" in invoke(sqlite.url, *TABLE).stdout


def test_fields_of_the_header_are_kept_as_named(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 5, fingerprints=["jti", "sub"], expose_expiry=True)
    names = ["--fingerprint", "jti", "--fingerprint", "sub", "--expose-expiry"]
    assert invoke(engine.url, *TABLE, *names).exit_code == ExitCode.OK
    assert sessions.census(engine) == {(NEW, "current"): 5}


@pytest.mark.parametrize("storage", ["binary", "text"])
def test_the_database_says_how_tokens_are_stored(storage: str, engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 5, storage=storage)
    other = {"binary": "text", "text": "binary"}[storage]
    refused = invoke(engine.url, *TABLE, "--storage", other)
    assert refused.exit_code == ExitCode.USAGE
    assert f"goes with storage='{storage}' and not with '{other}'" in refused.stderr
    assert invoke(engine.url, *TABLE).exit_code == ExitCode.OK
    assert_done(sessions, engine, 5)


@pytest.mark.parametrize("declared", ["SECRET", ""])
def test_a_type_that_says_nothing_needs_the_option(declared: str, sqlite: sa.Engine) -> None:
    with sqlite.begin() as connection:
        connection.execute(sa.text(f"CREATE TABLE sessions (id INTEGER PRIMARY KEY, token {declared})"))
        connection.execute(sa.text("INSERT INTO sessions (token) VALUES (:token)"), {"token": seal(token(1))})
    done = invoke(sqlite.url, *TABLE)
    assert done.exit_code == ExitCode.USAGE
    assert "give --storage" in done.stderr
    assert invoke(sqlite.url, *TABLE, "--storage", "binary").exit_code == ExitCode.OK


def test_bound_rows_stay_bound(sqlite: sa.Engine) -> None:
    type_ = column_type(KeyRing([OLD_KEY]), bound_to=["id"])
    cipher, ring = type_.cipher(), type_.ring()
    raw = table_of(sa.LargeBinary)
    binding = b"\x00\x02id\x00\x02i1"
    with sqlite.begin() as connection:
        raw.create(connection)
        connection.execute(raw.insert(), {"id": 1, "token": cipher.encrypt(token(1), ring, binding)})
    assert invoke(sqlite.url, *TABLE).exit_code == ExitCode.FAILURE
    assert invoke(sqlite.url, *TABLE, "--bound-to", "id").exit_code == ExitCode.OK
    with sqlite.connect() as connection:
        stored: Any = connection.scalar(sa.select(raw.c.token))
    assert cipher.decrypt(stored, NEW_ONLY, binding) == token(1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "which column?"),
        (("--table", "sessions"), "which column?"),
        (("--table", "nothing", "--column", "token"), "there is no table nothing"),
        (("--table", "sessions", "--column", "nothing"), "there is no column sessions.nothing"),
        ((*TABLE, "--schema", "nothing"), "there is no schema nothing"),
        ((*TABLE, "--key-columns", "nothing"), "there is no column sessions.nothing"),
        ((*TABLE, "--preserve", "nothing"), "there is no column sessions.nothing"),
        (("--table", "sessions", "--column", "number"), "neither bytes nor text"),
        (("--table", "sessions", "--column", "id"), "neither bytes nor text"),
        (("--table", "keyless", "--column", "token"), "no primary key"),
        ((*TABLE, "--fingerprint", "jti", "--fingerprint", "jti"), "fingerprints are different names"),
        ((*TABLE, "--keyring", "vault-of-mine:x"), "no provider of a key ring"),
        ((*TABLE, "--keyring", "file:nothing"), "cannot be read"),
        ((*TABLE, "--shards", "0"), "--shards"),
        ((*TABLE, "--nice", "-1"), "--nice"),
        ((*TABLE, "--storage", "xml"), "--storage"),
        (("--model", "app"), "has the form MODULE:NAME"),
        (("--model", "json:JSONDecoder"), "is no encrypted column of a table; give --model"),
        (("--model", "no_such_module:Session.token"), "there is no module no_such_module"),
        (("--model", "json:JSONDecoder.token"), "has no JSONDecoder.token"),
        (("--model", "json:JSONDecoder.decode"), "is no encrypted column of a table"),
        (("--model", "json:JSONDecoder.decode", "--table", "sessions"), "leave out the options"),
        (("--model", "json:JSONDecoder.decode", "--allow-opaque"), "leave out the options"),
    ],
    ids=lambda value: " ".join(value).removeprefix("--") if isinstance(value, tuple) else "",
)
def test_what_cannot_be_meant_ends_with_2(arguments: tuple[str, ...], said: str, sqlite: sa.Engine) -> None:
    sessions = create_sessions(sqlite, 3, columns=(sa.Column("number", sa.Integer),))
    with sqlite.begin() as connection:
        connection.execute(sa.text("CREATE TABLE keyless (token BLOB)"))
    before = sessions.stored(sqlite)
    done = invoke(sqlite.url, *arguments)
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert sessions.stored(sqlite) == before


@pytest.mark.parametrize("name", ["reencrypt", "encrypt"])
def test_without_a_ring_nothing_is_asked_of_the_database(
    name: str, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JWT_COLUMN_KEYRING")
    done = invoke(f"postgresql+psycopg://u:{PASSWORD}@127.0.0.1:1/x", *TABLE, name=name)
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert "no key ring" in done.stderr


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nothing_like_it", "there is no module nothing_like_it"),
        ("raise ValueError('s3cr3t')", "cannot be imported (ValueError)"),
        ("import sys; sys.exit('s3cr3t')", "cannot be imported (SystemExit)"),
        (MODEL.replace("{type}", "'file:nothing'"), "the key file"),
        (MODEL.replace("{type}", ""), "is a column of text, which goes with storage='text'"),
    ],
    ids=["missing module", "error", "exit", "ring", "storage"],
)
def test_a_model_that_does_not_do_ends_with_2(
    source: str, said: str, sqlite: sa.Engine, application: Callable[[str], str]
) -> None:
    create_sessions(sqlite, 3, storage="text")
    done = invoke(sqlite.url, "--model", f"{application(source)}:Session.secret")
    assert done.exit_code == ExitCode.USAGE
    assert said in done.stderr


def test_a_type_without_a_table_is_no_column(sqlite: sa.Engine, application: Callable[[str], str]) -> None:
    name = application(
        MODEL.replace("{type}", "")
        + "from sqlalchemy import Column\nclass Loose: token = Column(EncryptedJWT())\n"
    )
    done = invoke(sqlite.url, "--model", f"{name}:Loose.token")
    assert done.exit_code == ExitCode.USAGE
    assert "Loose.token is no encrypted column of a table" in done.stderr


# -- the database -----------------------------------------------------------------------------------------------------


@pytest.mark.each_server
@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        (None, 2, f"set {DATABASE_VARIABLE}"),
        ("", 2, f"set {DATABASE_VARIABLE}"),
        (PASSWORD, 2, "cannot be read"),
        (f"postgresql+psycopg://user:{PASSWORD}", 2, "cannot be read"),
        (f"postgresql+psycopg://user:pass@{PASSWORD}@127.0.0.1:5432/x", 2, "percent-encoded"),
        (f"postgres://user:{PASSWORD}@127.0.0.1/x", 2, "SQLAlchemy knows no database 'postgres'"),
        (f"postgresql+pg8000://user:{PASSWORD}@127.0.0.1/x", 2, "there is no module pg8000"),
        (
            f"postgresql+psycopg://user:{PASSWORD}@127.0.0.1/x?colour={PASSWORD}",
            2,
            'invalid connection option "colour"',
        ),
        (
            f"mariadb+pymysql://user:{PASSWORD}@127.0.0.1/x?colour={PASSWORD}",
            2,
            "does not take this URL (TypeError)",
        ),
        (f"postgresql+psycopg://user:{PASSWORD}@127.0.0.1:1/x", 3, "cannot be reached"),
        (f"postgresql+asyncpg://user:{PASSWORD}@127.0.0.1:1/x", 3, "cannot be reached"),
        (f"mariadb+pymysql://user:{PASSWORD}@127.0.0.1:1/x", 3, "cannot be reached"),
        ("sqlite:///no/such/file.sqlite3", 3, "there is no database file no/such/file.sqlite3"),
        ("sqlite:///file:no/such/file.sqlite3?mode=ro&uri=true", 3, "cannot be reached"),
        ("sqlite://", 2, "there is no table sessions"),
    ],
)
def test_a_database_that_is_not_there(
    url: str | None, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke(url, *TABLE)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["jwt.keys"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"postgresql+psycopg://app:hunter@{PASSWORD}/TAIL@127.0.0.1/x", "percent-encoded"),
        (f"postgresql+psycopg://app:hunt?er@a?{PASSWORD}@127.0.0.1/x", "percent-encoded"),
        (f"postgresql+psycopg://a/b:{PASSWORD}@127.0.0.1/x", "percent-encoded"),
        (f"mariadb+pymysql://u@127.0.0.1/x?connect_timeout={PASSWORD}", "look at what stands behind its ?"),
        (f"postgresql+asyncpg://u:{PASSWORD}@127.0.0.1:99999/x", "look at what stands behind its ?"),
        (f"sqlite://u:{PASSWORD}@h/x", "three slashes before a relative path"),
        ("sqlite://file", "three slashes before a relative path"),
        ("postgresql+psycop://h/x", "did you mean 'postgresql+psycopg'?"),
    ],
)
def test_a_url_that_cannot_be_meant_is_one_line_without_its_password(url: str, expected: str) -> None:
    done = invoke(url, *TABLE)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (ExitCode.USAGE, "", 1)
    assert expected in done.stderr
    assert PASSWORD not in done.stderr


def test_a_usage_error_repeats_no_password() -> None:
    """A URL in the place of a command or an argument."""
    url = f"postgresql://u:{PASSWORD}@h/x"
    for name, *arguments in ([url], ["scan", url], ["keys", "list", url]):
        done = invoke_on(None, *arguments, name=name)
        assert done.exit_code == ExitCode.USAGE
        assert "postgresql://u:***@h/x" in done.stderr
        assert PASSWORD not in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        f"dsn: postgresql+psycopg://u:a@{PASSWORD}@h/x",
        f"host=h password={PASSWORD} dbname=x",
        f"host=h password='{PASSWORD} x' dbname=x",
        f"DRIVER={{x}};PWD={{{PASSWORD}}};UID=u",
        f"postgresql://h/x?sslpassword={PASSWORD}&sslmode=require",
    ],
)
def test_passwords_are_found_in_any_text(text: str) -> None:
    assert PASSWORD in text
    shown = without_passwords(text)
    assert PASSWORD not in shown
    assert "***" in shown


def test_what_a_driver_says_is_shown_without_passwords() -> None:
    url = sa.make_url("postgresql+psycopg://user:a%2Fb%20c@host/x?sslpassword=d%26e&sslmode=require")
    text = "no: a/b c, a%2Fb%20c, a%2Fb+c, d&e, d%26e, require"
    assert databases._redacted(text, url) == "no: ***, ***, ***, ***, ***, require"
    assert databases._shown(url) == "postgresql+psycopg://user:***@host/x"


def test_a_database_that_refuses_to_be_looked_at(
    sessions: Sessions, sqlite: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jwt_column.cli.conversion.key_usage", lambda _: sa.text("SELECT no_such_column"))
    done = invoke(sqlite.url, *TABLE)
    assert (done.exit_code, done.stdout) == (ExitCode.DATABASE, "")
    assert done.stderr.endswith("refused: no such column: no_such_column\n")


def test_a_database_that_refuses_to_be_written(sessions: Sessions, sqlite: sa.Engine) -> None:
    url = f"sqlite:///file:{sqlite.url.database}?mode=ro&uri=true"
    done = invoke(url, *TABLE)
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert "sessions.token cannot be written" in done.stderr
    assert invoke(url, *TABLE, "--dry-run").exit_code == ExitCode.OK
    assert invoke(url, *TABLE, "--json").exit_code == ExitCode.USAGE


@pytest.mark.processes
def test_a_database_that_refuses_a_shard(postgresql: sa.Engine) -> None:
    create_sessions(postgresql, 10)
    with postgresql.begin() as connection:
        connection.execute(
            sa.text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'not %', encode(OLD.token, 'hex'); END $$"
            )
        )
        connection.execute(
            sa.text("CREATE TRIGGER refuse BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION refuse()")
        )
    done = invoke(postgresql.url, *TABLE, "--shards", "2")
    postgresql.dispose()
    assert done.exit_code == ExitCode.FAILURE
    assert re.search(r"cannot be written +10 ", done.stdout)
    assert re.search(r"refused by the database +10 \(RaiseException P0001\)", done.stdout)
    assert f"01{OLD}" not in done.stdout + done.stderr


def test_a_connection_that_is_lost_between_batches(
    sessions: Sessions, sqlite: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert_column(*_: Any, **__: Any) -> ReencryptionReport:
        raise OperationalError("SELECT", {"token": PASSWORD}, RuntimeError(PASSWORD))

    monkeypatch.setattr("jwt_column.cli.conversion.convert_column", convert_column)
    done = invoke(sqlite.url, *TABLE)
    assert (done.exit_code, done.stdout) == (ExitCode.DATABASE, "")
    assert done.stderr.startswith(
        "jwt-column: sessions.token: the database refused (RuntimeError: the database cannot be reached, or the "
    )


def test_a_connection_that_is_lost_before_the_run(
    sessions: Sessions, sqlite: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def examine(*_: Any, **__: Any) -> None:
        raise OperationalError("SELECT", {}, RuntimeError("it has gone away"))

    monkeypatch.setattr("jwt_column.cli.columns.examine", examine)
    done = invoke(sqlite.url, *TABLE)
    assert (done.exit_code, done.stdout) == (ExitCode.DATABASE, "")
    assert done.stderr.endswith("refused: it has gone away\n")


# -- a run that is stopped --------------------------------------------------------------------------------------------


def stop_at(row: int, number: int, then: Callable[[], None] = lambda: None) -> type[Reencryption]:
    """Return a conversion during which a signal comes. SQLite swallows what is raised within it."""

    class Stopping(Reencryption):
        def __init__(self, type_: EncryptedJWT, value: Any, **options: Any) -> None:
            super().__init__(type_, value, **options)
            convert, counter = self.convert, count(1)

            def convert_and_stop(*arguments: Any) -> Any:
                if next(counter) == row:
                    signal.raise_signal(number)
                    then()
                return convert(*arguments)

            self.convert = convert_and_stop

    return Stopping


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", ["sqlite", "postgresql"])
def test_a_run_that_is_stopped_goes_on(
    name: str, number: int, code: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    database: Database = request.getfixturevalue(f"{name}_database")
    engine = sa.create_engine(database.url())
    sessions = create_sessions(engine, ROWS)
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr("jwt_column.cli.reencrypt.Reencryption", stop_at(90, number))
        stopped = invoke(engine.url, *TABLE, "--batch-size", "40", "--json")
    assert stopped.exit_code == code
    written = json.loads(stopped.stdout)["reencrypted"]
    assert 0 < written < 90
    assert (
        f"stopped: {written} rows or more were re-encrypted, and stay so. The same command goes on"
        in stopped.stderr
    )
    assert sessions.census(engine)[(NEW, "current")] >= written
    assert signal.getsignal(number) is handler
    assert invoke(engine.url, *TABLE).exit_code == ExitCode.OK
    assert_done(sessions, engine)
    engine.dispose()


def test_a_signal_that_arrives_nowhere_ends_the_run_all_the_same(
    sessions: Sessions, sqlite: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that swallows the exception: the run goes on, and is stopped when it next tells how far it is."""

    class Deaf(Reencryption):
        def __init__(self, type_: EncryptedJWT, value: Any, **options: Any) -> None:
            super().__init__(type_, value, **options)
            convert = self.convert

            def convert_all_the_same(*arguments: Any) -> Any:
                try:
                    signal.raise_signal(signal.SIGINT)
                except KeyboardInterrupt:
                    return convert(*arguments)

            self.convert = convert_all_the_same

    monkeypatch.setattr("jwt_column.cli.reencrypt.Reencryption", Deaf)
    stopped = invoke(sqlite.url, *TABLE, "--dry-run", "--batch-size", "10")
    assert (stopped.exit_code, stopped.stdout) == (130, "")
    assert "stopped: nothing was written." in stopped.stderr


def test_stopping_a_run_before_its_first_row(
    sessions: Sessions, sqlite: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jwt_column.cli.reencrypt.Reencryption", stop_at(1, signal.SIGINT))
    stopped = invoke(sqlite.url, *TABLE)
    assert stopped.exit_code == ExitCode.INTERRUPTED
    assert "stopped: rows may be re-encrypted, and stay so." in stopped.stderr


def test_threads_are_left_alone_by_signals(sqlite: sa.Engine) -> None:
    """Python lets the main thread alone set handlers; where a command runs in another one, it does without."""
    handler = signal.getsignal(signal.SIGINT)

    def run_in_thread() -> sa.Engine:
        with Interruptions() as interruptions:
            interruptions.check()
            return _shard_engine(sqlite.url)

    with ThreadPoolExecutor() as executor:
        executor.submit(run_in_thread).result().dispose()
    assert signal.getsignal(signal.SIGINT) is handler


def is_there(group: int) -> bool:
    """Say whether a process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def current_rows(sessions: Sessions, engine: sa.Engine) -> int:
    return sessions.census(engine).get((NEW, "current"), 0)


def start_shards(sessions: Sessions, engine: sa.Engine) -> subprocess.Popen[str]:
    """Start a slow run in a group of processes, as a shell gives it to each command, and wait for its first rows.

    Ctrl-C reaches all of the group.
    """
    arguments = ("--shards", "2", "--batch-size", "50", "--nice", "20")
    url = text_of(engine.url)
    process = start("reencrypt", *TABLE, *arguments, group=True, JWT_COLUMN_DATABASE_URL=url)
    patience = time.monotonic() + PATIENCE
    while current_rows(sessions, engine) < 100:
        assert time.monotonic() < patience
        time.sleep(0.05)
    return process


@pytest.mark.processes
def test_ctrl_c_ends_shards_too(postgresql: sa.Engine) -> None:
    sessions = create_sessions(postgresql, 2_000)
    process = start_shards(sessions, postgresql)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert "stopped: " in err
    patience = time.monotonic() + PATIENCE
    while is_there(process.pid):
        assert time.monotonic() < patience
        time.sleep(0.05)
    assert invoke(postgresql.url, *TABLE).exit_code == ExitCode.OK
    assert_done(sessions, postgresql, 2_000)


# -- the pace of a run ------------------------------------------------------------------------------------------------


def test_signals_pause_a_run_and_resume_it(
    sessions: Sessions, sqlite: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGUSR1)
    resume = Timer(0.6, lambda: os.kill(os.getpid(), signal.SIGUSR2))
    monkeypatch.setattr("jwt_column.cli.reencrypt.Reencryption", stop_at(10, signal.SIGUSR1, resume.start))
    began = time.monotonic()
    done = invoke(sqlite.url, *TABLE, "--batch-size", "20")
    resume.join()
    assert done.exit_code == ExitCode.OK
    assert time.monotonic() - began > 0.6
    assert re.search(r"rows/s, paused\n", done.stderr)
    assert signal.getsignal(signal.SIGUSR1) is handler
    assert_done(sessions, sqlite)


@pytest.mark.processes
def test_shards_pause_too(postgresql: sa.Engine) -> None:
    sessions = create_sessions(postgresql, 2_000)
    process = start_shards(sessions, postgresql)
    # The shards get it too, and it ends none of them.
    os.killpg(process.pid, signal.SIGUSR1)
    time.sleep(3)
    paused = current_rows(sessions, postgresql)
    time.sleep(2)
    assert paused == current_rows(sessions, postgresql) < 2_000
    os.killpg(process.pid, signal.SIGUSR2)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert_done(sessions, postgresql, 2_000)


def test_until_ends_with_1_and_says_what_is_left(sessions: Sessions, sqlite: sa.Engine) -> None:
    done = invoke(sqlite.url, *TABLE, "--until", "2020-01-01T00:00")
    assert done.exit_code == ExitCode.FAILURE
    assert f"{ROWS} rows still need work, and until= (--until) is over" in done.stderr.replace("\n", " ")
    assert "✓" not in done.stdout
    report = json.loads(invoke(sqlite.url, *TABLE, "--until", "2020-01-01T00:00", "--json").stdout)
    assert (report["reason"], report["remaining"], report["finished"]) == ("until", ROWS, True)


def test_options_of_the_pace_reach_the_engine(sessions: Sessions, sqlite: sa.Engine) -> None:
    now = dt.datetime.now()
    hours = f"{now - dt.timedelta(hours=1):%H:%M}-{now + dt.timedelta(hours=1):%H:%M}"
    query = ("--throttle-query", "SELECT 0.01")
    done = invoke(sqlite.url, *TABLE, "--window", hours, *query, "--max-latency", "1", "--batch-size", "50")
    assert done.exit_code == ExitCode.OK
    assert_done(sessions, sqlite)
    for arguments, said in (
        (("--window", "night"), "22:00-05:00"),
        (("--until", "soon"), "a time of the day"),
        (("--max-latency", "1"), "--throttle-query"),
        (("--max-replica-lag", "1"), "--replica"),
        (("--replica", "sqlite://"), "--max-replica-lag"),
    ):
        refused = invoke(sqlite.url, *TABLE, *arguments)
        assert refused.exit_code == ExitCode.USAGE, arguments
        assert said in refused.stderr.replace("\n", " ")


# -- encrypt ----------------------------------------------------------------------------------------------------------


def overwrite(sessions: Sessions, engine: sa.Engine, make: Callable[[str], str]) -> None:
    """Write every token in another form."""
    for key, value in sessions.tokens.items():
        sessions.put(engine, key, make(value))


def test_tokens_in_the_clear_become_envelopes(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 20, storage="text")
    overwrite(sessions, engine, str)
    rehearsal = encrypt(engine.url, "--dry-run")
    assert rehearsal.exit_code == ExitCode.OK
    assert figures(rehearsal.stdout) == {"none plaintext": ["20"]}
    done = encrypt(engine.url, "--verify")
    assert done.exit_code == ExitCode.OK
    assert figures(done.stdout) == {f"{NEW} current": ["0", "20"], "none plaintext": ["20", "0"]}
    assert f"✓ 20 rows encrypted under key {NEW} in " in done.stdout
    assert "The plaintext is still in backups" in done.stdout
    assert_done(sessions, engine, 20)
    again = encrypt(engine.url)
    assert again.exit_code == ExitCode.OK
    assert "Nothing to do" in again.stdout


def test_encrypting_leaves_stale_rows_and_says_so(sqlite: sa.Engine) -> None:
    sessions = create_sessions(sqlite, 20)
    sessions.put(sqlite, (3,), token(3).encode())
    done = encrypt(sqlite.url)
    assert done.exit_code == ExitCode.OK
    assert "19 rows are under another key or of another layout:" in done.stdout
    assert "    jwt-column reencrypt --table sessions --column token\n" in done.stdout


def test_what_is_no_token_ends_with_1(sqlite: sa.Engine) -> None:
    sessions = create_sessions(sqlite, 20, storage="text")
    overwrite(sessions, sqlite, str)
    sessions.put(sqlite, (3,), "an opaque token")
    done = encrypt(sqlite.url)
    assert done.exit_code == ExitCode.FAILURE
    assert "primary keys 3" in done.stderr
    assert "--from reads the ciphertext of another library." in done.stdout
    assert encrypt(sqlite.url, "--allow-opaque").exit_code == ExitCode.OK


@pytest.mark.parametrize(("source", "shards"), [("file", "2"), ("env", "1")])
def test_another_librarys_format_is_read(
    source: str, shards: str, sqlite: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fernet_key = Fernet.generate_key()
    fernet = Fernet(fernet_key)
    sessions = create_sessions(sqlite, 20, storage="text")
    overwrite(sessions, sqlite, lambda value: fernet.encrypt(value.encode()).decode())
    (tmp_path / "old.key").write_bytes(fernet_key + b"\r\n")
    monkeypatch.setenv("OLD_KEY", fernet_key.decode())
    uri = f"file:{tmp_path}/old.key" if source == "file" else "env:OLD_KEY"
    done = encrypt(sqlite.url, "--from", "fernet", "--from-key", uri, "--shards", shards)
    assert done.exit_code == ExitCode.OK
    assert figures(done.stdout) == {f"{NEW} current": ["0", "20"], "none other format": ["20", "0"]}
    assert fernet_key.decode() not in done.output
    assert_done(sessions, sqlite, 20)


@pytest.mark.parametrize(
    ("arguments", "key", "stored"),
    [
        (("jwe",), "A" * 43, None),
        (("sqlalchemy-utils-aes",), "old", "naive"),
        (("sqlalchemy-utils-aes", "--from-padding", "pkcs5"), "old", "pkcs5"),
        (("sqlalchemy-utils-aes-gcm",), "old", None),
        (("sqlalchemy-utils-fernet",), "old", None),
    ],
)
def test_every_format_has_a_reader(
    arguments: tuple[str, ...],
    key: str,
    stored: str | None,
    sqlite: sa.Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The readers have tests of their own; here each is found, and adopts a token in the clear."""
    monkeypatch.setenv("OLD_KEY", key)
    sessions = create_sessions(sqlite, 3, storage="text")
    overwrite(sessions, sqlite, str)
    readers: list[Any] = []
    adoption = reencrypt_module.Adoption  # type: ignore[attr-defined]

    def adopt(type_: EncryptedJWT, value: Any, *, decrypt_with: Any, **options: Any) -> Any:
        readers.append(decrypt_with)
        return adoption(type_, value, decrypt_with=decrypt_with, **options)

    monkeypatch.setattr("jwt_column.cli.reencrypt.Adoption", adopt)
    assert encrypt(sqlite.url, "--from", *arguments, "--from-key", "env:OLD_KEY").exit_code == ExitCode.OK
    assert_done(sessions, sqlite, 3)
    (reader,) = readers
    engines = {"sqlalchemy-utils-aes": "AesEngine", "sqlalchemy-utils-aes-gcm": "AesGcmEngine"}
    if arguments[0].startswith("sqlalchemy"):
        assert reader.engine == engines.get(arguments[0], "FernetEngine")
    if stored is not None:
        assert reader.padding == stored


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from-key", "env:OLD_KEY"), "go with --from"),
        (("--from-padding", "pkcs5"), "go with --from"),
        (("--from", "fernet"), "--from-key says where"),
        (("--from", "fernet", "--from-key", PASSWORD), "--from-key says where"),
        (("--from", "fernet", "--from-key", "env:"), "--from-key says where"),
        (("--from", "fernet", "--from-key", "file:"), "--from-key says where"),
        (("--from", "fernet", "--from-key", "env:X", "--from-padding", "pkcs5"), "--from-padding goes with"),
        (("--from", "fernet", "--from-key", "env:NO_SUCH_VARIABLE"), "NO_SUCH_VARIABLE is not set"),
        (("--from", "fernet", "--from-key", "file:nothing.key"), "No such file"),
        (("--from", "fernet", "--from-key", "file:binary.key"), "it is no text"),
        (("--from", "nothing", "--from-key", "env:X"), "--from"),
    ],
)
def test_a_format_that_cannot_be_read_ends_with_2(
    arguments: tuple[str, ...], said: str, sqlite: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "binary.key").write_bytes(b"\xff\xfe")
    monkeypatch.chdir(tmp_path)
    sessions = create_sessions(sqlite, 3, storage="text")
    overwrite(sessions, sqlite, lambda value: f"gAAAA{value}")
    done = encrypt(sqlite.url, *arguments)
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert said in done.stderr


# -- terminals --------------------------------------------------------------------------------------------------------


def bars(lines: list[str]) -> list[str]:
    return [line for line in lines if "━" in line]


@pytest.mark.parametrize(("columns", "widest"), [(80, 80), (120, 100)])
def test_a_terminal_sees_a_bar(columns: int, widest: int, sqlite: sa.Engine) -> None:
    create_sessions(sqlite, 2_000)
    arguments = ["reencrypt", *TABLE, "--batch-size", "50", "--nice", "20", "--verify"]
    done = run_in_terminal(*arguments, columns=columns, JWT_COLUMN_DATABASE_URL=text_of(sqlite.url))
    shown = bars(done.lines)
    assert done.returncode == 0
    assert any("2,000 of 2,000" in line or "rows/s" in line for line in shown)
    assert all(line.startswith("sessions.token ") for line in shown)
    assert max(map(len, done.lines)) <= widest
    assert max(map(len, shown)) > widest - 5
    assert any("opened" in line for line in shown)
    assert "rows re-encrypted under key" in done.output
    assert "0 of 2000" not in done.output


def test_a_refusal_in_the_middle_of_a_run_is_explained_without_its_values(sqlite: sa.Engine) -> None:
    with sqlite.connect() as connection:
        with pytest.raises(sa.exc.DBAPIError) as raised:  # The control.
            connection.execute(sa.text("SELECT :one FROM nowhere"), {"one": "eyJsecret"})
        assert "eyJsecret" in str(raised.value)
        with pytest.raises(DatabaseError) as explained, refusals("sessions.token"):
            connection.execute(sa.text("SELECT :one FROM nowhere"), {"one": "eyJsecret"})
    assert str(explained.value).startswith("sessions.token: the database refused (")
    assert "eyJsecret" not in str(explained.value)
    for reason, kind in (("database", DatabaseError), ("rows", ReencryptionError)):
        with pytest.raises(kind, match="said"), refusals("sessions.token"):
            raise ReencryptionError("said", reason=reason)


def test_a_long_name_leaves_room_for_the_bar(sqlite: sa.Engine) -> None:
    name = "sessions_of_everybody_who_has_ever_signed_in_anywhere"
    create_sessions(sqlite, 500, name=name)
    arguments = ["reencrypt", "--table", name, "--column", "token", "--context", "sessions.token"]
    done = run_in_terminal(*arguments, JWT_COLUMN_DATABASE_URL=text_of(sqlite.url))
    assert done.returncode == 0
    assert max(map(len, bars(done.lines))) <= 80


def test_an_error_is_broken_between_words_on_a_terminal() -> None:
    done = run_in_terminal("reencrypt", *TABLE, JWT_COLUMN_DATABASE_URL="")
    assert done.returncode == ExitCode.USAGE
    assert max(map(len, done.lines)) <= 80
    assert "or give --database" in " ".join(done.lines)


@pytest.mark.parametrize("name", ["reencrypt", "encrypt"])
def test_help_is_narrow_and_has_the_exit_codes(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    text = " ".join(done.stdout.split())
    for code in ExitCode:
        assert re.search(rf"(?:Exit codes:|;) {code.value} ", text)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report_of(done: int, total: int = 10, **fields: Any) -> ReencryptionReport:
    return ReencryptionReport("sessions", "token", NEW, total=total, reencrypted=done, seconds=2.0, **fields)


@pytest.mark.parametrize("columns", ["60", "200"])
def test_the_bar_of_a_migration_is_no_wider_than_the_command_line(
    columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    with report_progress("sessions", "token", None) as progress:
        for done in (0, 5, 10):
            progress(report_of(done))
        progress(report_of(10, verified=5))
        progress(report_of(0, 0))
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", terminal.getvalue()))
    assert "sessions.token" in terminal.getvalue()
    assert max(map(len, lines)) <= min(int(columns), WIDEST)


def test_a_migration_elsewhere_logs_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "alembic.runtime.migration")
    with report_progress("sessions", "token", None) as progress:
        progress(report_of(0))
        progress(report_of(5))
        progress(report_of(9, undecryptable_count=1))
        # A second pass: it forgets what it is about to find again.
        progress(report_of(9))
        progress(report_of(9, undecryptable_count=1))
        progress(report_of(8, undecryptable_count=1, unwritable_count=1, finished=True))
    assert caplog.messages == [
        f"sessions.token: 0 of 10 rows under key {NEW}, 0 rows/s",
        f"sessions.token: 8 of 10 rows under key {NEW}, 1 cannot be read, 1 cannot be written, 4 rows/s",
    ]


def test_the_end_of_a_run_with_nothing_to_do_is_its_begin(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "alembic.runtime.migration")
    progress = log_progress()
    for finished in (False, False, True):
        progress(report_of(0, 0, finished=finished))
    assert caplog.messages == [f"sessions.token: 0 of 0 rows under key {NEW}, 0 rows/s"]


def test_the_rows_opened_at_the_end_are_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 15.0, 30.0, 31.0])
    monkeypatch.setattr("migrations_helpers.engine.progress.time.monotonic", lambda: next(clock))
    lines: list[str] = []
    show = line_progress(lines.append)
    for verified in (0, 4, 12, 14):
        show(report_of(10, already_current=4, verified=verified, finished=verified == 14))
    assert [line.partition(", ")[2] for line in lines] == [
        "5 rows/s",
        "4 of 14 opened, 5 rows/s",
        "12 of 14 opened, 5 rows/s",
        "14 of 14 opened, 5 rows/s",
    ]


def test_a_migration_without_rich_logs_lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "alembic.runtime.migration")
    monkeypatch.setattr(sys, "stderr", _Terminal())
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with report_progress("sessions", "token", None) as progress:
        progress(report_of(10))
    assert len(caplog.messages) == 1


def test_a_migration_may_bring_its_own_progress() -> None:
    seen: list[ReencryptionReport] = []
    with report_progress("sessions", "token", seen.append) as progress:
        progress(report_of(10))
    assert [report.reencrypted for report in seen] == [10]


def test_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.9, 10.0, 15.0, 20.0])
    monkeypatch.setattr("migrations_helpers.engine.progress.time.monotonic", lambda: next(clock))
    lines: list[str] = []
    show = line_progress(lines.append)
    for done in (0, 1, 2, 3, 4):
        show(ReencryptionReport("sessions", "token", total=10, reencrypted=done, seconds=1.0))
    assert lines == [f"sessions.token: {done} of 10 rows in the clear, {done} rows/s" for done in (0, 2, 4)]


# -- the reference ----------------------------------------------------------------------------------------------------

PAGE: Final = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")


def options_of(command: Callable[..., None]) -> Iterator[tuple[str, OptionInfo, Any, Any]]:
    """Yield a command's options: name, settings, type, default."""
    for parameter in inspect.signature(command).parameters.values():
        type_, info = get_args(parameter.annotation)
        # Of an optional value, its type.
        type_ = next((one for one in get_args(type_) if get_origin(one) is Literal), type_)
        yield info.default, info, type_, parameter.default


def documented_options(section: str) -> dict[str, str]:
    """Return the rows of a section's table by the option that they are about."""
    rows = re.findall(r"^(\| `(--[a-z-]+)[ `].*)$", section, re.MULTILINE)
    return {name: row for row, name in rows}


def test_the_reference_has_what_the_options_say() -> None:
    """By introspection, so that the page cannot drift from the two commands: names, defaults, limits, choices."""
    sections = dict(re.findall(r"^## (jwt-column [a-z ]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
    for path in ("jwt-column reencrypt", "jwt-column encrypt"):
        shared = re.search(r"All\s+options\s+of\s+`([^`]+)`(?:\s+but\s+([^,]+))?", sections[path])
        rows = documented_options(sections[shared[1]]) if shared else {}
        for name in re.findall("`([^`]+)`", (shared and shared[2]) or ""):
            del rows[name]
        rows |= documented_options(sections[path])
        command = getattr(reencrypt_module, path.split()[1])
        options = {name: rest for name, *rest in options_of(with_options(command))}
        assert set(rows) == set(options), path
        for name, (info, type_, default) in options.items():
            row = rows[name]
            if default is not None and default is not False and default != []:
                shown = f"`{default}`" if isinstance(default, str) else f"{default:,}"
                assert f"default {shown}" in row or f"{shown} (the default)" in row, name
            if info.max is not None:
                assert f"{info.min:,} to {info.max:,}" in row, name
            if get_origin(type_) is Literal:
                assert all(f"`{choice}`" in row for choice in get_args(type_)), name
            assert info.envvar is None or f"`{info.envvar}`" in row, name


def test_the_reference_has_the_exit_codes_and_the_environment() -> None:
    assert re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE) == [str(code.value) for code in ExitCode]
    for variable in (DATABASE_VARIABLE, "JWT_COLUMN_KEYRING", "JWT_COLUMN_KEYS", "NO_COLOR", "COLUMNS"):
        assert re.search(rf"^\| [^|]*`{variable}`", PAGE, re.MULTILINE)


def test_fields_that_rows_have_go_only_when_they_are_named(sqlite: sa.Engine) -> None:
    sessions = create_sessions(sqlite, 3, fingerprints=["token", "jti"])
    refused = invoke(sqlite.url, *TABLE, "--fingerprint", "jti")
    assert (refused.exit_code, sessions.census(sqlite)) == (ExitCode.USAGE, {(OLD, "stale"): 3})
    assert invoke(sqlite.url, *TABLE, "--fingerprint", "jti", "--drop", "token").exit_code == ExitCode.OK
