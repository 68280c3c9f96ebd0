"""Every strategy on every database, driver and kind of key, and what a driver says about the rows it changed."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa

from jwt_column.errors import ConfigurationError, ReencryptionError
from migrations_helpers.engine.reflection import Subject, find_table
from migrations_helpers.engine.strategies import CompareAndSwap, choose_strategy
from migrations_helpers.engine.strategies.mysql import MySQLSkipLocked
from tests.support.databases import DRIVER_MODULES
from tests.support.workload import (
    BYTES,
    COMPOSITE,
    INTEGER,
    KEY_KINDS,
    NEW,
    OLD,
    PATIENCE,
    Interrupted,
    KeyKind,
    Sessions,
    after,
    column_type,
    create_sessions,
    engine_on,
    every_server_driver,
    every_strategy,
    in_thread,
    run,
    seal,
    sync_url,
    token,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.support.databases import Database
    from tests.support.workload import AnyEngine

ROWS = 120


def rotate_and_check(engine: AnyEngine, sessions: Sessions, strategy: str) -> None:
    """Re-encrypt a table; every token must be there, the census clean, and a second run idle."""
    rows = len(sessions.tokens)
    report = sessions.reencrypt(engine, strategy=strategy, batch_size=50, batch_seconds=1e-9, nice=0)
    assert sessions.tokens == sessions.decrypted(engine)
    assert {(NEW, "current"): rows} == sessions.census(engine)
    assert (rows, rows, 0, 0) == (report.total, report.reencrypted, report.already_current, report.remaining)
    assert {OLD: rows} == report.by_key_id
    assert report.key_id == NEW

    untouched = sessions.stored(engine)
    second = sessions.reencrypt(engine, strategy=strategy)
    assert (0, 0, rows, 0) == (second.total, second.reencrypted, second.already_current, second.remaining)
    # It has counted, and not gone over the table.
    assert (second.passes, second.finished) == (0, True)
    assert untouched == sessions.stored(engine)


def rotate_tables_of_every_kind(engine: AnyEngine, strategy: str) -> None:
    """One after the other in one database, each called by its kind: creating a database costs more than a table."""
    for kind in KEY_KINDS:
        rotate_and_check(engine, create_sessions(engine, ROWS, kind, name=f"sessions {kind.name}"), strategy)
    for kind in (INTEGER, COMPOSITE):
        name = f"text {kind.name}"
        rotate_and_check(engine, create_sessions(engine, ROWS, kind, name=name, storage="text"), strategy)


@pytest.mark.matrix
def test_every_token_survives_on_every_driver_with_every_kind_of_key(driver_engine: sa.Engine) -> None:
    rotate_tables_of_every_kind(driver_engine, "auto")


def test_compare_and_swap_keeps_every_token_with_every_kind_of_key(driver_engine: sa.Engine) -> None:
    rotate_tables_of_every_kind(driver_engine, "cas")


@every_strategy
def test_every_token_survives_on_every_asynchronous_driver_with_every_kind_of_key(
    async_driver_engine: AsyncEngine, strategy: str
) -> None:
    rotate_tables_of_every_kind(async_driver_engine, strategy)


def before_rows_are_read(engine: sa.Engine, look: Callable[[Any, str, Any], None]) -> None:
    """Call a function before each statement that reads rows of the sessions, with a cursor of its connection."""

    @sa.event.listens_for(engine, "before_cursor_execute")
    def call(
        connection: Any, _cursor: object, statement: str, parameters: Any, _context: object, _many: object
    ) -> None:
        if "LIMIT" in statement and "sessions.token \nFROM" in statement:
            look(connection.connection.cursor(), statement, parameters)


def plan_of(cursor: Any, statement: str, parameters: Any) -> str:
    return "\n".join(row[0] for row in cursor.execute(f"EXPLAIN {statement}", parameters))


@every_strategy
def test_a_table_without_statistics_is_read_along_its_key(postgresql: sa.Engine, strategy: str) -> None:
    """As it is when it was just restored. A batch that sorts all rows that are left makes a run quadratic."""
    sessions = create_sessions(postgresql, 2_000)
    run(postgresql, lambda c: c.exec_driver_sql("ALTER TABLE sessions SET (autovacuum_enabled = off)"))
    plans: dict[str, list[str]] = {"on": [], "off": []}

    def look(cursor: Any, statement: str, parameters: Any) -> None:
        chosen = cursor.execute("SHOW enable_sort").fetchone()[0]
        for setting in {"on", chosen}:
            cursor.execute(f"SET LOCAL enable_sort = {setting}")
            plans[setting].append(plan_of(cursor, statement, parameters))
        cursor.execute(f"SET LOCAL enable_sort = {chosen}")

    before_rows_are_read(postgresql, look)
    rotate_and_check(postgresql, sessions, strategy)
    # Not before the first batch: where statistics tell that few rows are stale, a sort of them is faster.
    assert len(plans["on"]) > len(plans["off"]) > 2_000 / 50 - 2
    assert not any("Sort" in plan for plan in plans["off"])
    # The control: what PostgreSQL does by itself.
    assert any("Sort" in plan for plan in plans["on"])


@every_strategy
def test_the_few_rows_that_are_left_are_not_looked_for_along_the_key(
    postgresql: sa.Engine, strategy: str
) -> None:
    sessions = create_sessions(postgresql, 2_000, KEY_KINDS[3])
    sessions.reencrypt(postgresql)
    run(postgresql, lambda c: c.exec_driver_sql("ANALYZE sessions"))
    for number in (7, 700, 1_700):
        sessions.put(postgresql, KEY_KINDS[3].value(number), seal(token(number)))
    plans: list[str] = []

    def look(cursor: Any, statement: str, parameters: Any) -> None:
        # The second is the control: what PostgreSQL does by itself.
        by_itself = re.sub(r"coalesce\((\S+), \1\)", r"\1", statement)
        plans.extend(plan_of(cursor, one, parameters) for one in (statement, by_itself))

    before_rows_are_read(postgresql, look)
    report = sessions.reencrypt(postgresql, strategy=strategy)
    assert (report.reencrypted, report.remaining, report.passes) == (3, 0, 1)
    assert sessions.tokens == sessions.decrypted(postgresql)
    # For the sample of the rows' fields, and for the batch.
    assert len(plans) == 4
    assert all("Seq Scan" in plan for plan in plans[::2])
    assert all("Index Scan" in plan and "Sort" not in plan for plan in plans[1::2])


# -- what is counted -----------------------------------------------------------------------------------------------


def rotate_while_rows_change(engine: AnyEngine, kind: KeyKind, strategy: str) -> None:
    """Let an application replace, delete and re-encrypt rows between read and write; every count must be exact."""
    sessions = create_sessions(engine, 60, kind, name=f"sessions {kind.name}")
    change, delete = kind.value(7), kind.value(33)
    current = {change: token(7_000), kind.value(21): token(21_000)}

    def write() -> None:
        with engine_on(sync_url(engine)) as other:
            for key, text in current.items():
                sessions.put(other, key, seal(text, after()))
            run(
                other,
                lambda connection: connection.execute(sa.delete(sessions.table).where(*sessions.at(delete))),
            )

    interrupted = Interrupted(strategy, write)
    report = sessions.reencrypt(engine, strategy=interrupted)
    assert interrupted.happened
    del sessions.tokens[delete]
    assert sessions.tokens | current == sessions.decrypted(engine)
    assert (report.reencrypted, report.superseded, report.by_key_id) == (57, 3, {OLD: 57})
    assert (report.total, report.remaining, report.undecryptable) == (60, 0, [])


@pytest.mark.parametrize("kind", [INTEGER, KEY_KINDS[4]], ids=lambda kind: kind.name)
def test_compare_and_swap_counts_what_it_wrote_and_nothing_else(
    driver_engine: sa.Engine, kind: KeyKind
) -> None:
    """Whatever the driver says: some count the rows of an executemany, some those of its last part, some none."""
    rotate_while_rows_change(driver_engine, kind, "cas")


@pytest.mark.parametrize("kind", [INTEGER, KEY_KINDS[4]], ids=lambda kind: kind.name)
def test_compare_and_swap_counts_on_every_asynchronous_driver(
    async_driver_engine: AsyncEngine, kind: KeyKind
) -> None:
    rotate_while_rows_change(async_driver_engine, kind, "cas")


@pytest.mark.parametrize("mode", ["values_only", "values_plus_batch"])
def test_compare_and_swap_counts_in_both_modes_of_psycopg2(postgresql_database: Database, mode: str) -> None:
    """In the second mode the driver counts the rows of the last page only."""
    url = postgresql_database.url("psycopg2")
    with engine_on(url, executemany_mode=mode, executemany_batch_page_size=7) as engine:
        rotate_while_rows_change(engine, INTEGER, "cas")


# -- other ways to the same databases ------------------------------------------------------------------------------


@every_strategy
def test_a_cursor_that_binds_in_the_client_serves_too(postgresql_database: Database, strategy: str) -> None:
    """What those use whose pooler knows no prepared statements; it cannot fetch bytes as bytes."""
    with engine_on(
        postgresql_database.url("psycopg"), connect_args={"cursor_factory": psycopg.ClientCursor}
    ) as engine:
        rotate_and_check(engine, create_sessions(engine, ROWS), strategy)


@every_strategy
@pytest.mark.parametrize("driver", ["mysql+pymysql", "mysql+mysqldb", "mysql+mariadbconnector"])
def test_mariadb_under_the_name_of_mysql_is_served_too(
    mariadb_database: Database, driver: str, strategy: str
) -> None:
    pytest.importorskip(DRIVER_MODULES[driver.partition("+")[2]][0])
    with engine_on(mariadb_database.url(driver)) as engine:
        rotate_and_check(engine, create_sessions(engine, ROWS, BYTES), strategy)


@pytest.mark.parametrize(
    ("version", "is_mariadb", "expected"),
    [
        ((10, 5, 9), True, CompareAndSwap),
        ((10, 6, 0), True, MySQLSkipLocked),
        ((5, 7, 44), False, CompareAndSwap),
        ((8, 0, 1), False, MySQLSkipLocked),
        (None, False, CompareAndSwap),
    ],
)
def test_a_server_without_skip_locked_gets_compare_and_swap(
    mariadb_database: Database, version: Any, is_mariadb: bool, expected: type
) -> None:
    with engine_on(mariadb_database.url("mysql+pymysql")) as engine:
        create_sessions(engine, 0)
        assert strategy_of(engine, version, is_mariadb) is expected


def strategy_of(engine: sa.Engine, version: Any = (10, 6), is_mariadb: bool = True) -> type:
    with engine.connect() as connection:
        table = find_table(connection, Subject("sessions", "token", column_type()))
        connection.dialect.server_version_info = version
        connection.dialect.is_mariadb = is_mariadb  # type: ignore[attr-defined]
        return type(choose_strategy(connection, table, "auto"))


def test_a_table_that_locks_no_rows_gets_compare_and_swap_and_loses_nothing(
    mariadb_database: Database,
) -> None:
    """MyISAM takes FOR UPDATE SKIP LOCKED without a word; the control shows that it locks nothing."""
    with engine_on(mariadb_database.url()) as engine:
        sessions = create_sessions(engine, 30)
        for strategy, expected in ((MySQLSkipLocked(engine.dialect), token(7)), ("auto", token(7_000))):
            run(engine, lambda connection: connection.exec_driver_sql("ALTER TABLE sessions ENGINE = MyISAM"))
            assert strategy_of(engine) is CompareAndSwap
            sessions.put(engine, (7,), seal(token(7)))
            interrupted = Interrupted(
                strategy, lambda: sessions.put(engine, (7,), seal(token(7_000), after()))
            )
            sessions.reencrypt(engine, strategy=interrupted)
            assert expected == sessions.decrypted(engine)[7,]
            sessions.options = {"expose_expiry": True}


def test_any_other_database_gets_compare_and_swap_and_runs_it(sqlite_database: Database) -> None:
    """SQLite under another name stands for it: standard SQL alone, and one transaction statement, BEGIN."""
    with engine_on(sqlite_database.url()) as engine:
        # Of standard SQL, and in SQLite from 3.43 on.
        sa.event.listen(engine, "connect", lambda driver, _: driver.create_function("octet_length", 1, len))
        sessions = create_sessions(engine, ROWS, COMPOSITE)
        engine.dialect.name = "other"
        report = sessions.reencrypt(engine)
        engine.dialect.name = "sqlite"
        assert report.reencrypted == ROWS
        assert sessions.tokens == sessions.decrypted(engine)


@every_strategy
def test_batches_of_one_row_and_of_two_serve_too(engine: sa.Engine, strategy: str) -> None:
    for size in (1, 2):
        sessions = create_sessions(engine, 7, COMPOSITE, name=f"sessions_{size}")
        report = sessions.reencrypt(engine, strategy=strategy, batch_size=size, batch_seconds=1e-9, nice=0)
        assert report.reencrypted == 7
        assert sessions.tokens == sessions.decrypted(engine)


@every_strategy
def test_rows_that_need_nothing_at_the_end_of_a_table_end_a_pass(memory: sa.Engine, strategy: str) -> None:
    sessions = create_sessions(memory, 30)
    for number in range(21, 31):
        sessions.put(memory, (number,), seal(token(number), after()))
    report = sessions.reencrypt(memory, strategy=strategy, batch_size=20, nice=0)
    assert (report.reencrypted, report.already_current, report.passes) == (20, 10, 1)
    assert sessions.tokens == sessions.decrypted(memory)


@pytest.mark.each_server
@pytest.mark.parametrize("kind", [INTEGER, KEY_KINDS[-1]], ids=lambda kind: kind.name)
@every_server_driver
def test_a_row_that_somebody_else_has_locked_is_not_waited_for(
    driver_engine: sa.Engine, kind: KeyKind
) -> None:
    """In a small table neither, of which MariaDB would rather read every row than look some up by their key."""
    for rows, gone, locked in ((9, (1, 2, 5, 7, 8), 4), (3, (), 1)):
        sessions = create_sessions(driver_engine, rows, kind, name=f"sessions_{rows}")
        with driver_engine.begin() as connection:
            for number in gone:
                connection.execute(sa.delete(sessions.table).where(*sessions.at(kind.value(number))))
        with driver_engine.connect() as holder:
            held = sa.update(sessions.table).where(*sessions.at(kind.value(locked)))
            holder.execute(held.values(token=seal(token(locked), after())))
            report = sessions.reencrypt(driver_engine, max_passes=1)
            holder.rollback()
        left = rows - len(gone) - 1
        assert (report.reencrypted, report.retries, report.remaining) == (left, 0, 1)


def test_an_unknown_strategy_is_refused(sqlite_database: Database) -> None:
    with engine_on(sqlite_database.url()) as engine:
        sessions = create_sessions(engine, 3)
        with pytest.raises(ConfigurationError, match="strategy is 'auto' or 'cas'"):
            sessions.reencrypt(engine, strategy="fastest")


# -- collations ----------------------------------------------------------------------------------------------------


COLLATIONS = {"sqlite": "NOCASE", "mariadb": "utf8mb4_general_ci", "postgresql": "any_case"}


@every_strategy
def test_a_write_that_a_collation_takes_for_equal_is_not_overwritten(
    database: Database, strategy: str
) -> None:
    """An envelope with another case, or with a space behind it, is another value to us, whatever the column says."""
    with engine_on(database.url()) as engine:
        if database.name == "postgresql":
            create = "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
            run(engine, lambda connection: connection.exec_driver_sql(create))
        token_type = sa.Text(collation=COLLATIONS[database.name])
        sessions = create_sessions(engine, 30, storage="text", token_type=token_type)
        stored = str(sessions.stored(engine)[7,])
        header, dot, body = stored.partition(".")
        written = header + dot + body.swapcase()
        equal = sa.select(sa.func.count()).where(sessions.table.c.token == written)
        # The control: the database does take the two for equal.
        assert run(engine, lambda connection: connection.execute(equal).scalar()) == 1

        threads: list[threading.Thread] = []
        interrupted = Interrupted(
            strategy, lambda: threads.append(in_thread(lambda: sessions.put(engine, (7,), written), 0.5))
        )
        with suppress(ReencryptionError):
            sessions.reencrypt(engine, strategy=interrupted)
        threads[0].join(PATIENCE)
        assert written == sessions.stored(engine)[7,]
