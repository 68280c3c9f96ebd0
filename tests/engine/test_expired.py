"""Stale rows whose token has expired: re-encrypted, left, cleared or deleted, and never with a token that is not."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from jwt_column import EncryptedJWT, KeyRing, decrypt_token
from jwt_column.errors import ConfigurationError, ReencryptionError
from migrations_helpers import reencrypt
from migrations_helpers.engine.conversions import Reencryption
from migrations_helpers.engine.expired import Expired
from migrations_helpers.engine.options import Options
from migrations_helpers.engine.reencryption import convert_column
from migrations_helpers.engine.reflection import Subject
from migrations_helpers.engine.strategies.removal import ExpiredRemoval
from tests.support.databases import DRIVER_MODULES, SYNC_DRIVERS
from tests.support.tokens import signed_token
from tests.support.workload import (
    COMPOSITE,
    CONTEXT,
    INTEGER,
    KEY_KINDS,
    LOST_KEY,
    NEW_KEY,
    OLD,
    PATIENCE,
    KeyKind,
    Sessions,
    after,
    application,
    create_sessions,
    cut_off,
    engine_on,
    every_server,
    every_server_driver,
    every_storage,
    every_strategy,
    fill,
    record_updates,
    run,
    seal,
    sync_url,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from migrations_helpers import ReencryptionReport
    from tests.support.databases import Database
    from tests.support.workload import AnyEngine, Key

PAST: Final = 1_000_000_000  # 2001-09-09
FUTURE: Final = 4_000_000_000  # 2096-10-02

every_end = pytest.mark.parametrize("end", ["null", "delete"])
every_choice = pytest.mark.parametrize("choice", ["keep", "skip", "null", "delete"])


def expiring(number: int, exp: int | None) -> str:
    """Return the token of this number, with this expiry or none."""
    claims: dict[str, Any] = {} if exp is None else {"exp": exp}
    return signed_token(jti=f"{number}", **claims)


def is_expired(number: int) -> bool:
    """Say which rows of a table here have an expired token: two of three."""
    return number % 3 != 0


def create_expiring(engine: AnyEngine, rows: int, kind: KeyKind = INTEGER, **options: Any) -> Sessions:
    """Create a table of which two thirds of the tokens have expired, all under the old key."""
    sessions = create_sessions(engine, 0, kind, **({"expose_expiry": True} | options))
    sessions.tokens = {
        kind.value(n): expiring(n, PAST if is_expired(n) else FUTURE) for n in range(1, rows + 1)
    }
    fill(engine, sessions, create=False)
    return sessions


def fresh(sessions: Sessions, kind: KeyKind = INTEGER) -> dict[Key, str]:
    """Return the rows whose token has not expired."""
    numbers = range(1, len(sessions.tokens) + 1)
    return {kind.value(n): sessions.tokens[kind.value(n)] for n in numbers if not is_expired(n)}


def decrypted(sessions: Sessions, engine: AnyEngine) -> dict[Key, str | None]:
    """Return every token, by key; None for NULL."""
    return {
        key: None if stored is None else str(decrypt_token(stored, after(), context=CONTEXT))
        for key, stored in sessions.stored(engine).items()
    }


# -- what becomes of which row -------------------------------------------------------------------------------------


@every_choice
@every_storage
@every_strategy
def test_expired_rows_have_the_end_that_was_chosen_and_no_others_have(
    engine: sa.Engine, strategy: str, storage: str, choice: str
) -> None:
    """Expired, not expired, without an expiry, of an older layout, current, in the clear, NULL: one of each."""
    sessions = create_expiring(engine, 9, storage=storage)
    without_exp = expiring(10, None)
    older = expiring(11, PAST)
    current = expiring(12, PAST)
    clear = expiring(13, PAST)
    layout: dict[str, Any] = {"storage": storage, "expose_expiry": True}
    others = {
        10: seal(without_exp, **layout),
        11: seal(older, storage=storage),
        12: seal(current, after(), **layout),
        13: clear if storage == "text" else clear.encode(),
        14: None,
    }
    insert = sa.insert(sessions.table)
    rows = [{"id": number, "token": stored} for number, stored in others.items()]
    run(engine, lambda connection: connection.execute(insert, rows))
    expired = {key: text for key, text in sessions.tokens.items() if is_expired(key[0])}
    assert len(expired) == 6

    dry = sessions.reencrypt(engine, expired=choice, dry_run=True, strategy=strategy)
    report = sessions.reencrypt(engine, expired=choice, verify="decrypt", strategy=strategy)

    stored = sessions.stored(engine)
    assert others[12] == stored.pop((12,))
    assert others[13] == stored.pop((13,))
    assert stored.pop((14,)) is None
    opened = {
        key: None if value is None else str(decrypt_token(value, after(), context=CONTEXT))
        for key, value in stored.items()
    }
    expected: dict[Any, str | None] = {**fresh(sessions), (10,): without_exp, (11,): older}
    if choice in ("keep", "skip"):
        expected |= expired
    elif choice == "null":
        expected |= dict.fromkeys(expired)
    assert expected == opened

    ended = 0 if choice == "keep" else 6
    assert (report.total, report.reencrypted, report.expired) == (11, 11 - ended, ended)
    assert (report.already_current, report.remaining, report.superseded, report.plaintext) == (1, 0, 0, 1)
    assert (report.scanned, report.verified) == (12, 12 - ended)
    assert {OLD: 11 - ended} == report.by_key_id
    assert report.is_complete
    assert (dry.total, dry.reencrypted, dry.expired) == (11, 11 - ended, ended)
    assert dry.remaining == (5 if choice == "skip" else 11)
    census = sessions.census(engine)
    assert census.get((OLD, "stale"), 0) == (6 if choice == "skip" else 0)

    second = sessions.reencrypt(engine, expired=choice, strategy=strategy)
    assert (second.reencrypted, second.expired) == (0, ended if choice == "skip" else 0)


@every_end
@every_strategy
def test_every_driver_and_kind_of_key_ends_the_same_rows(
    driver_engine: sa.Engine, strategy: str, end: str
) -> None:
    for kind in (INTEGER, COMPOSITE, KEY_KINDS[-2]):
        ends_expired_rows(driver_engine, kind, strategy, end)


@every_end
def test_every_asynchronous_driver_ends_the_same_rows(async_driver_engine: AsyncEngine, end: str) -> None:
    for kind in (INTEGER, KEY_KINDS[-2]):
        ends_expired_rows(async_driver_engine, kind, "auto", end)


def ends_expired_rows(engine: AnyEngine, kind: KeyKind, strategy: str, end: str) -> None:
    sessions = create_expiring(engine, 60, kind, name=f"sessions {kind.name}")
    report = sessions.reencrypt(
        engine, expired=end, strategy=strategy, batch_size=7, batch_seconds=1e-9, nice=0
    )
    assert (report.expired, report.reencrypted, report.remaining) == (40, 20, 0)
    expected: dict[Any, str | None] = dict(fresh(sessions, kind))
    if end == "null":
        expected = dict.fromkeys(sessions.tokens) | expected
    assert expected == decrypted(sessions, engine)


@every_end
@pytest.mark.parametrize("driver", SYNC_DRIVERS["mariadb"])
def test_a_key_whose_letters_mariadb_cannot_compare_in_a_join_serves_too(
    mariadb_database: Database, driver: str, end: str
) -> None:
    pytest.importorskip(DRIVER_MODULES[driver][0])
    kind = KeyKind(
        "latin",
        lambda: [sa.Column("id", mysql.VARCHAR(20, charset="latin1"), primary_key=True)],
        lambda n: (f"tü{n}",),
    )
    with engine_on(mariadb_database.url(driver)) as engine:
        ends_expired_rows(engine, kind, "auto", end)


def test_a_batch_has_no_more_parameters_than_sqlite_takes(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a key of three columns, a third as many rows. MariaDB takes more, and has them all in one join."""
    kind = KEY_KINDS[-2]
    sessions = create_expiring(engine, 30, kind)
    monkeypatch.setattr("jwt_column.database.key_order._KEY_PARAMETERS", 9)
    deleted: list[int] = []

    @sa.event.listens_for(engine, "after_cursor_execute")
    def count(_c: object, cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith("DELETE"):
            deleted.append(cursor.rowcount)

    assert sessions.reencrypt(engine, expired="delete").expired == 20
    assert deleted == ([20] if engine.dialect.name == "mariadb" else [3] * 6 + [2])


def test_a_token_expires_in_the_second_that_it_names(sqlite_database: Database) -> None:
    at = datetime(2030, 1, 1, tzinfo=UTC)
    second = int(at.timestamp())
    with engine_on(sqlite_database.url()) as engine:
        sessions = create_sessions(engine, 0, expose_expiry=True)
        sessions.tokens = {(n,): expiring(n, second + n - 2) for n in (1, 2, 3)}
        fill(engine, sessions, create=False)
        expired = Expired("delete", at)
        options = Options(expired=expired)
        convert_column(engine, Subject("sessions", "token", sessions.type_()), Reencryption, options)
        assert list(sessions.stored(engine)) == [(3,)]


@every_end
def test_expired_rows_that_nobody_can_read_are_ended_too(engine: sa.Engine, end: str) -> None:
    """SQL decides by the header, and no key is asked for."""
    sessions = create_expiring(engine, 9)
    sessions.put(engine, (4,), seal(expiring(4, PAST), KeyRing([LOST_KEY]), expose_expiry=True))
    sessions.put(engine, (6,), seal(expiring(6, FUTURE), KeyRing([LOST_KEY]), expose_expiry=True))
    with pytest.raises(ReencryptionError, match="1 row cannot be read") as caught:
        sessions.reencrypt(engine, expired=end)
    report: Any = caught.value.report
    assert (report.expired, report.reencrypted, report.undecryptable, report.remaining) == (6, 2, [6], 1)


def test_columns_that_mariadb_updates_by_itself_stay_as_they_are(mariadb_database: Database) -> None:
    moment: Any = mysql.TIMESTAMP()
    changed = sa.Column(
        "changed",
        moment,
        server_default=sa.text("'2020-01-01 00:00:00' ON UPDATE CURRENT_TIMESTAMP"),
        nullable=False,
    )
    with engine_on(mariadb_database.url()) as engine:
        sessions = create_expiring(engine, 6, columns=(changed,))
        sessions.reencrypt(engine, expired="null")
        years = sa.select(sa.extract("year", sessions.table.c.changed)).distinct()
        assert run(engine, lambda connection: connection.execute(years).scalars().all()) == [2020]
        assert [key for key, value in decrypted(sessions, engine).items() if value is None] == [
            (1,),
            (2,),
            (4,),
            (5,),
        ]


def test_columns_that_are_to_be_kept_are_named_where_a_token_is_cleared(memory: sa.Engine) -> None:
    """Set to themselves, as a rewrite sets them; see test_columns_that_a_trigger_fills_can_be_kept()."""
    touched = sa.Column("touched", sa.Integer, server_default="0")
    sessions = create_expiring(memory, 6, columns=(touched,))
    updates = record_updates(memory)
    sessions.reencrypt(memory, expired="null", preserve=["touched"])
    assert [one for one in updates if "NULL" in one.upper()]
    assert all("touched" in one for one in updates)


# -- never a token that has not expired ----------------------------------------------------------------------------


class Careless(ExpiredRemoval):
    """The control: reads which rows have expired, and then clears or deletes them by their key alone."""

    def _is_meant(self, task: Any, is_found: Any) -> Any:
        return is_found


def careless(_connection: object, _strategy: object, expired: Expired) -> ExpiredRemoval:
    return Careless(expired, skips_locked=False)


def before_the_removal(engine: AnyEngine, happen: Callable[[], object]) -> list[str]:
    """Do something each time that a batch was read, and is about to be cleared or deleted; return when that was."""
    seen: list[str] = []
    bind = engine if isinstance(engine, sa.Engine) else engine.sync_engine

    @sa.event.listens_for(bind, "before_cursor_execute")
    def listen(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        is_removal = statement.startswith("DELETE") or "=NULL" in statement.replace(" ", "")
        # In SQLite the application cannot write any more once the transaction has begun.
        begins = statement == "BEGIN IMMEDIATE"
        if begins if bind.dialect.name == "sqlite" else is_removal:
            seen.append(statement)
            happen()

    return seen


def write_before_the_removal(engine: AnyEngine, sessions: Sessions, strategy: str, end: str) -> bool:
    """Let the application give an expired row a new token at the worst moment, and say whether that was kept.

    The application has a thread, because a strategy that locks its rows makes it wait until the batch is done. If the
    row is deleted by then, it is told so: its UPDATE changes no row.
    """
    new = expiring(4_000, FUTURE)
    changed: list[int] = []
    threads: list[threading.Thread] = []

    def write() -> None:
        statement = (
            sa.update(sessions.table)
            .where(sessions.table.c.id == 4)
            .values(token=seal(new, after(), **sessions.options))
        )
        with engine_on(sync_url(engine)) as other:
            changed.append(run(other, lambda connection: connection.execute(statement).rowcount))

    def write_once() -> None:
        if not threads:
            threads.append(threading.Thread(target=write))
            threads[0].start()
            threads[0].join(0.5)

    before_the_removal(engine, write_once)
    sessions.reencrypt(engine, expired=end, strategy=strategy)
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()
    found = decrypted(sessions, engine)
    others = {key: text for key, text in found.items() if key != (4,) and text is not None}
    assert fresh(sessions) == others
    return changed == [0] or found.get((4,)) == new


@every_end
@every_strategy
def test_a_token_that_was_written_before_the_removal_survives(
    driver_engine: sa.Engine, strategy: str, end: str
) -> None:
    sessions = create_expiring(driver_engine, 9)
    assert write_before_the_removal(driver_engine, sessions, strategy, end)


@every_end
def test_asynchronous_drivers_lose_none_either(async_driver_engine: AsyncEngine, end: str) -> None:
    sessions = create_expiring(async_driver_engine, 9)
    assert write_before_the_removal(async_driver_engine, sessions, "auto", end)


@every_end
def test_a_careless_removal_loses_it(engine: sa.Engine, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migrations_helpers.engine.run.choose_removal", careless)
    sessions = create_expiring(engine, 9)
    assert not write_before_the_removal(engine, sessions, "auto", end)


def lost_by_a_busy_application(engine: sa.Engine, strategy: str, name: str = "sessions") -> int:
    """Clear expired rows while an application writes, and return how many of its rows were lost.

    Between reading and writing, each of three batches waits until the application has written, or waits for our locks.
    """
    if engine.dialect.name == "sqlite":
        run(engine, lambda connection: connection.exec_driver_sql("PRAGMA journal_mode = WAL"), begin=False)
    sessions = create_sessions(engine, 0, name=name, expose_expiry=True)
    sessions.tokens = {(n,): expiring(n, PAST) for n in range(1, 121)}
    fill(engine, sessions, create=False)
    patience = 0.3 if strategy == "auto" and engine.dialect.name != "sqlite" else PATIENCE
    # It writes tokens without an expiry, and without a field for it: they are re-encrypted.
    with application(engine, sessions) as running:
        waits = iter(range(3))

        def wait() -> None:
            if next(waits, None) is None:
                return
            enough, deadline = running.commits + 20, time.monotonic() + patience
            while running.commits < enough and time.monotonic() < deadline:
                time.sleep(0.005)

        before_the_removal(engine, wait)
        ended: list[int] = []
        sessions.reencrypt(
            engine,
            expired="null",
            strategy=strategy,
            batch_size=40,
            batch_seconds=1e-9,
            max_passes=1,
            progress=lambda report: ended.append(report.expired),
        )
        written = running.stop()
    assert ended[-1]
    with engine_on(engine.url) as unwatched:
        sessions.reencrypt(unwatched)
    found = decrypted(sessions, engine)
    assert {key for key, text in found.items() if text is not None} <= written.tokens.keys()
    return sum(found[key] != text for key, text in written.tokens.items())


@every_strategy
def test_no_token_of_a_busy_application_is_cleared(engine: sa.Engine, strategy: str) -> None:
    assert lost_by_a_busy_application(engine, strategy) == 0


def test_a_careless_removal_clears_tokens_of_a_busy_application(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("migrations_helpers.engine.run.choose_removal", careless)
    # What was cleared may be written once more, so chance has some rounds.
    assert any(lost_by_a_busy_application(engine, "cas", f"round_{number}") for number in range(5))


@pytest.mark.each_server
@every_server
def test_expired_rows_that_the_application_holds_are_left_for_a_later_pass(engine: sa.Engine) -> None:
    sessions = create_expiring(engine, 9)
    with engine.connect() as holder:
        statement = sa.update(sessions.table).where(sessions.table.c.id == 4)
        holder.execute(statement.values(token=seal(expiring(4, PAST), expose_expiry=True)))

        def release(report: ReencryptionReport) -> None:
            if report.passes == 2:
                holder.rollback()

        report = sessions.reencrypt(engine, expired="delete", progress=release)
    assert (report.expired, report.reencrypted, report.remaining) == (6, 3, 0)
    assert report.passes > 1
    assert fresh(sessions) == sessions.decrypted(engine)


@every_server
def test_a_row_that_another_table_needs_is_listed_and_kept(engine: sa.Engine) -> None:
    """A foreign key: the database refuses it, and the others go."""
    sessions = create_sessions(engine, 0, expose_expiry=True)
    metadata = sessions.table.metadata
    requests = sa.Table("requests", metadata, sa.Column("session", sa.Integer, sa.ForeignKey("sessions.id")))
    sessions.tokens = {(n,): expiring(n, PAST) for n in range(1, 5)}
    fill(engine, sessions, create=False)
    run(engine, requests.create)
    run(engine, lambda connection: connection.execute(sa.insert(requests).values(session=2)))
    with pytest.raises(ReencryptionError, match="1 row was refused by the database") as caught:
        sessions.reencrypt(engine, expired="delete")
    report: Any = caught.value.report
    assert (caught.value.reason, report.expired, report.unwritable) == ("rows", 3, [2])
    assert list(sessions.decrypted(engine)) == [(2,)]
    assert sessions.reencrypt(engine, expired="null").expired == 1


# -- stopped, in shards --------------------------------------------------------------------------------------------


class StoppedError(RuntimeError):
    """Stands for a crash."""


@every_end
@every_strategy
def test_a_run_that_is_stopped_goes_on(engine: sa.Engine, strategy: str, end: str) -> None:
    sessions = create_expiring(engine, 60)
    options: dict[str, Any] = {"batch_size": 5, "batch_seconds": 1e-9, "nice": 0, "strategy": strategy}
    done = []
    for rows in (15, 45):

        def stop(report: ReencryptionReport, rows: int = rows) -> None:
            if report.expired + report.reencrypted >= (rows if rows == 15 else 30):
                done.append((report.expired, report.reencrypted))
                raise StoppedError

        with pytest.raises(StoppedError):
            sessions.reencrypt(engine, expired=end, progress=stop, **options)
    rest = sessions.reencrypt(engine, expired=end, **options)
    assert done == [(15, 0), (25, done[1][1])]
    left = 20 - done[1][1]
    assert (rest.total, rest.expired, rest.reencrypted, rest.remaining) == (left, 0, left, 0)
    assert fresh(sessions) == {k: v for k, v in decrypted(sessions, engine).items() if v is not None}


@every_end
@every_server_driver
def test_a_connection_that_is_lost_before_the_removal_is_replaced(driver_engine: sa.Engine, end: str) -> None:
    """A batch is there as a whole or not at all, so the next one does it."""
    sessions = create_expiring(driver_engine, 30)
    seen: list[int] = []

    @sa.event.listens_for(driver_engine, "before_cursor_execute")
    def cut(connection: sa.Connection, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("DELETE") or "=NULL" in statement.replace(" ", ""):
            seen.append(len(seen))
            if len(seen) == 2:
                cut_off(driver_engine, connection)()

    report = sessions.reencrypt(driver_engine, expired=end, batch_size=10, batch_seconds=1e-9)
    assert (report.expired, report.reencrypted, report.retries) == (20, 10, 1)
    assert len(seen) == 3
    kept = {key: text for key, text in decrypted(sessions, driver_engine).items() if text is not None}
    assert fresh(sessions) == kept


@every_choice
def test_shards_end_the_same_rows(engine: sa.Engine, choice: str) -> None:
    sessions = create_expiring(engine, 90)
    told: list[tuple[int, int]] = []
    with ThreadPoolExecutor(3) as threads:
        report = sessions.reencrypt(
            engine,
            expired=choice,
            shards=3,
            executor=threads,
            progress=lambda report: told.append((report.expired, report.reencrypted)),
        )
    ended = 0 if choice == "keep" else 60
    assert (report.total, report.expired, report.reencrypted, report.remaining) == (90, ended, 90 - ended, 0)
    assert told[-1] == (ended, 90 - ended)
    kept = {key: text for key, text in decrypted(sessions, engine).items() if text is not None}
    assert (sessions.tokens if choice in ("keep", "skip") else fresh(sessions)) == kept


# -- what cannot be meant ------------------------------------------------------------------------------------------


@every_choice
def test_a_column_whose_header_shows_no_expiry_is_refused(sqlite_database: Database, choice: str) -> None:
    with engine_on(sqlite_database.url()) as engine:
        sessions = create_sessions(engine, 3)
        if choice == "keep":
            assert sessions.reencrypt(engine, expired=choice).reencrypted == 3
            return
        with pytest.raises(ConfigurationError, match="needs the expiry in the header") as caught:
            sessions.reencrypt(engine, expired=choice)
        assert caught.value.context == CONTEXT
        assert sessions.census(engine) == {(OLD, "stale"): 3}


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_column_that_takes_no_null_is_not_cleared(engine: sa.Engine, dry_run: bool) -> None:
    """Refused at the start, on an empty table too: it will not always be empty."""
    table = sa.Table(
        "sessions",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("token", sa.LargeBinary, nullable=False),
    )
    sessions = Sessions(table, ("id",), {}, {"expose_expiry": True})
    fill(engine, sessions)
    for rows in (0, 6):
        sessions.tokens = {(n,): expiring(n, PAST) for n in range(1, rows + 1)}
        fill(engine, sessions, create=False)
        with pytest.raises(
            ConfigurationError, match=r"sessions\.token is NOT NULL, so expired='null' cannot"
        ):
            sessions.reencrypt(engine, expired="null", dry_run=dry_run)
    assert sessions.census(engine) == {(OLD, "stale"): 6}
    assert sessions.reencrypt(engine, expired="delete").expired == 6


def test_another_choice_is_refused(sqlite_database: Database) -> None:
    with engine_on(sqlite_database.url()) as engine:
        type_ = EncryptedJWT(after(), expose_expiry=True)
        wrong: Any = "drop"
        with pytest.raises(ConfigurationError, match="expired is 'keep', 'skip', 'null' or 'delete'"):
            reencrypt(engine, "sessions", "token", type_=type_, expired=wrong)


def test_no_old_key_is_needed_where_all_of_its_rows_have_expired(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 0, expose_expiry=True)
    sessions.tokens = {(n,): expiring(n, PAST) for n in range(1, 7)}
    fill(engine, sessions, create=False)
    new_alone = KeyRing([NEW_KEY])
    # The control: to re-encrypt them, it is.
    assert sessions.reencrypt(engine, new_alone, dry_run=True).undecryptable_count == 6
    report = sessions.reencrypt(engine, new_alone, expired="delete")
    assert (report.expired, report.reencrypted) == (6, 0)
    assert sessions.census(engine) == {}
