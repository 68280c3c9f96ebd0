"""No write of the application is ever lost, whatever the database, the driver and the strategy.

Beside each proof stands the control: a strategy that reads and then writes by primary key, with neither lock nor
comparison. It must lose updates in the same set-up; where it did not, the proof would prove nothing.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Self

import pytest
import sqlalchemy as sa

from jwt_column import KeyRing
from jwt_column.errors import ReencryptionError
from tests.support.workload import (
    NEW_KEY,
    OLD_KEY,
    PATIENCE,
    Interrupted,
    Sessions,
    Unprotected,
    after,
    application,
    create_sessions,
    engine_on,
    every_server,
    every_storage,
    every_strategy,
    in_thread,
    run,
    seal,
    sync_url,
    token,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from migrations_helpers import ReencryptionReport
    from migrations_helpers.engine.strategies import Strategy
    from tests.support.databases import Database
    from tests.support.workload import AnyEngine


# -- one write at the worst moment ---------------------------------------------------------------------------------


def token_after_write_between_read_and_write(
    engine: AnyEngine, writer: sa.Engine, sessions: Sessions, strategy: str | Strategy
) -> str:
    """Let the application write to a row after its batch was read, and return the token that the row has at the end.

    The application has a thread, because a strategy that locks its rows makes it wait until the batch is done.
    """
    threads = []

    def write() -> None:
        sessions.put(writer, (7,), seal(token(7_000), after(), **sessions.options))

    interrupted = Interrupted(strategy, lambda: threads.append(in_thread(write, 0.5)))
    sessions.reencrypt(engine, strategy=interrupted)
    assert interrupted.happened
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    decrypted = sessions.decrypted(engine)
    assert sessions.tokens | {(7,): decrypted[7,]} == decrypted
    return decrypted[7,]


@every_strategy
@every_storage
def test_a_write_between_read_and_write_of_a_batch_survives(
    driver_engine: sa.Engine, storage: str, strategy: str
) -> None:
    sessions = create_sessions(driver_engine, 50, storage=storage)
    assert token(7_000) == token_after_write_between_read_and_write(
        driver_engine, driver_engine, sessions, strategy
    )


@every_strategy
def test_a_write_between_read_and_write_survives_on_every_asynchronous_driver(
    async_driver_engine: AsyncEngine, strategy: str
) -> None:
    sessions = create_sessions(async_driver_engine, 50)
    with engine_on(sync_url(async_driver_engine)) as writer:
        assert token(7_000) == token_after_write_between_read_and_write(
            async_driver_engine, writer, sessions, strategy
        )


def test_without_protection_that_write_is_lost(driver_engine: sa.Engine) -> None:
    sessions = create_sessions(driver_engine, 50)
    assert token(7) == token_after_write_between_read_and_write(
        driver_engine, driver_engine, sessions, Unprotected()
    )


@every_strategy
def test_a_row_deleted_between_read_and_write_stays_deleted(engine: sa.Engine, strategy: str) -> None:
    sessions = create_sessions(engine, 50)
    statement = sa.delete(sessions.table).where(sessions.table.c.id == 7)
    threads = []

    def delete() -> None:
        run(engine, lambda connection: connection.execute(statement))

    interrupted = Interrupted(strategy, lambda: threads.append(in_thread(delete, 0.5)))
    sessions.reencrypt(engine, strategy=interrupted)
    threads[0].join(PATIENCE)
    del sessions.tokens[7,]
    assert sessions.tokens == sessions.decrypted(engine)


# -- an application that never rests -------------------------------------------------------------------------------

ROWS = 400
COMMITS = 80


def lost_updates(engine: sa.Engine, strategy: str | Strategy, commits: int = COMMITS, **options: Any) -> int:
    """Rotate to and fro while an application writes, and return how many of its rows were lost.

    To and fro, until the application has committed enough meanwhile: a single run may be over before it starts.
    """
    to_and_fro = [after(), KeyRing([OLD_KEY, NEW_KEY])]
    if engine.dialect.name == "sqlite":
        # As an application with more than one process has it: whoever reads does not hold up whoever writes.
        run(engine, lambda connection: connection.exec_driver_sql("PRAGMA journal_mode = WAL"), begin=False)
    sessions = create_sessions(engine, ROWS, **options)
    with application(engine, sessions) as running:
        before = running.commits
        for turn in range(20 * commits):
            if turn >= 2 and running.commits - before >= commits:
                break
            # The way back does not come to an end: what the application writes is stale for it.
            sessions.reencrypt(
                engine, to_and_fro[turn % 2], strategy=strategy, batch_size=50, nice=0.5, max_passes=2
            )
        assert running.commits - before >= commits
        written = running.stop()
    sessions.reencrypt(engine)
    decrypted = sessions.decrypted(engine)
    expected = sessions.tokens | written.tokens
    assert set(expected) == set(decrypted)
    return sum(decrypted[key] != text for key, text in expected.items())


@every_strategy
def test_no_update_of_a_busy_application_is_lost(engine: sa.Engine, strategy: str) -> None:
    assert lost_updates(engine, strategy) == 0


def test_without_protection_updates_of_a_busy_application_are_lost(engine: sa.Engine) -> None:
    # It loses some in every round so far; chance has ten of them.
    assert any(lost_updates(engine, Unprotected(), name=f"round_{number}") for number in range(10))


@pytest.mark.slow
@every_storage
@every_strategy
def test_no_update_is_lost_in_two_thousand_transactions_on_every_driver(
    driver_engine: sa.Engine, strategy: str, storage: str
) -> None:
    assert lost_updates(driver_engine, strategy, 2_000, storage=storage) == 0


# -- batches that the database puts off ----------------------------------------------------------------------------


class PutOff(logging.Handler):
    """Counts the batches that a run says were put off, and does something when the first one was."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self._then = then
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "put off" in message:
            self.messages.append(message)
            if len(self.messages) == 1:
                self._then()

    def __enter__(self) -> Self:
        logger = logging.getLogger("migrations_helpers")
        self._old_level = logger.level
        logger.setLevel(logging.INFO)
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("migrations_helpers")
        logger.removeHandler(self)
        logger.setLevel(self._old_level)


@every_server
def test_rows_that_the_application_holds_are_left_for_a_later_pass(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 40)
    with engine.connect() as application:
        lock_row(application, sessions, 7)
        seen: list[tuple[int, int]] = []

        def release(report: ReencryptionReport) -> None:
            seen.append((report.passes, report.reencrypted))
            if report.passes == 2:
                application.rollback()

        report = sessions.reencrypt(engine, progress=release)
    assert (1, 39) in seen
    assert (report.passes, report.reencrypted, report.remaining) == (3, 40, 0)
    assert sessions.tokens == sessions.decrypted(engine)


@every_server
def test_rows_that_stay_locked_are_left_to_the_next_run(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 40)
    with engine.connect() as application:
        lock_row(application, sessions, 7)
        report = sessions.reencrypt(engine, max_passes=2)
        assert (report.reencrypted, report.remaining, report.undecryptable) == (39, 1, [])
        assert (report.passes, report.reason, report.is_complete) == (2, "locks", False)
        application.rollback()
    assert sessions.reencrypt(engine).reencrypted == 1
    assert sessions.tokens == sessions.decrypted(engine)


def lock_row(connection: sa.Connection, sessions: Sessions, number: int) -> None:
    statement = sa.update(sessions.table).where(sessions.table.c.id == number)
    connection.execute(statement.values(token=seal(token(number), **sessions.options)))


def test_a_batch_that_waits_too_long_for_a_lock_is_put_off_and_done_again(driver_engine: sa.Engine) -> None:
    """Compare-and-swap waits for a row where SKIP LOCKED would leave it out."""
    sessions = create_sessions(driver_engine, 40)
    with engine_on(driver_engine.url) as other, other.connect() as application:
        lock_row(application, sessions, 7)
        with PutOff(application.rollback) as put_off:
            arguments = {"timeout": 0.05} if driver_engine.dialect.name == "sqlite" else {}
            with engine_on(driver_engine.url, connect_args=arguments) as engine:
                report = sessions.reencrypt(engine, strategy="cas")
    assert report.retries == len(put_off.messages) >= 1
    assert report.reencrypted == 40
    assert sessions.tokens == sessions.decrypted(driver_engine)


@every_server
def test_a_batch_that_is_put_off_becomes_smaller_until_it_gets_through(engine: sa.Engine) -> None:
    """Of many rows an application that writes all the time always holds one; of a few, it does not."""
    sessions = create_sessions(engine, 40)
    with engine.connect() as application:
        lock_row(application, sessions, 7)
        seen: list[int] = []

        def release(report: ReencryptionReport) -> None:
            seen.append(report.reencrypted)
            if report.reencrypted == 6:
                application.rollback()

        with PutOff() as put_off:
            report = sessions.reencrypt(engine, strategy="cas", batch_size=16, progress=release)
    # 16 and 8 rows include the one that is held, 4 do not; of the next 8, 2 do not.
    assert [count for count in seen if 0 < count <= 6] == [4, 6]
    assert report.retries == len(put_off.messages) == 4
    assert report.reencrypted == 40
    assert sessions.tokens == sessions.decrypted(engine)


def test_a_batch_that_is_always_put_off_ends_the_run(driver_engine: sa.Engine) -> None:
    sessions = create_sessions(driver_engine, 40)
    with engine_on(driver_engine.url) as other, other.connect() as application:
        lock_row(application, sessions, 7)
        arguments = {"timeout": 0.05} if driver_engine.dialect.name == "sqlite" else {}
        with (
            engine_on(driver_engine.url, connect_args=arguments) as engine,
            pytest.raises(ReencryptionError, match="the database refused a batch") as caught,
        ):
            sessions.reencrypt(engine, strategy="cas", max_retries=1)
        report: Any = caught.value.report
        assert (report.retries, report.reencrypted) == (1, 0)
        application.rollback()
    assert sessions.reencrypt(driver_engine).reencrypted == 40


def test_a_table_that_is_locked_as_a_whole_puts_a_batch_off(postgresql_database: Database) -> None:
    """As an ALTER TABLE of somebody else locks it."""
    with engine_on(postgresql_database.url()) as engine, engine.connect() as other:
        sessions = create_sessions(engine, 40)

        def lock(report: ReencryptionReport) -> None:
            if report.reencrypted == 10:
                other.exec_driver_sql("LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE")

        with PutOff(other.rollback) as put_off:
            report = sessions.reencrypt(engine, batch_size=10, batch_seconds=1e-9, progress=lock)
        assert put_off.messages == ["sessions.token: batch put off (LockNotAvailable 55P03)"]
        assert report.reencrypted == 40


def test_a_reader_that_keeps_sqlite_from_committing_puts_the_batch_off(sqlite_database: Database) -> None:
    """Without a write-ahead log a commit waits for readers, and leaves the transaction open when it gives up."""
    with (
        engine_on(sqlite_database.url()) as engine,
        engine_on(sqlite_database.url(), connect_args={"timeout": 0.05}) as impatient,
        engine.connect() as reader,
    ):
        sessions = create_sessions(engine, 40)
        reader.exec_driver_sql("BEGIN")
        reader.exec_driver_sql("SELECT * FROM sessions").all()
        for strategy in ("auto", "cas"):
            with PutOff(reader.rollback) as put_off:
                report = sessions.reencrypt(impatient, strategy=strategy)
            assert report.retries == len(put_off.messages) >= 1
            assert report.reencrypted == 40
            assert sessions.tokens == sessions.decrypted(engine)
            reader.exec_driver_sql("BEGIN")
            reader.exec_driver_sql("SELECT * FROM sessions").all()
            sessions.options = {"expose_expiry": strategy == "auto"}


@every_server
def test_an_application_that_locks_rows_in_another_order_is_never_the_victim(engine: sa.Engine) -> None:
    """It holds a late row and wants an early one, while compare-and-swap has the early row and wants the late one.

    PostgreSQL: we give up long before a deadlock is looked for. MariaDB ends the transaction that changed fewer rows,
    which is ours here; with SKIP LOCKED, the default, there is no deadlock at all.
    """
    sessions = create_sessions(engine, 40)
    weight = create_sessions(engine, 200, name="weight")
    waits = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND wait_event_type = 'Lock'",
        "mariadb": "SELECT count(*) FROM information_schema.innodb_trx JOIN information_schema.processlist "
        "ON id = trx_mysql_thread_id WHERE trx_state = 'LOCK WAIT' AND db = DATABASE()",
    }[engine.dialect.name]
    is_done = []

    def work(connection: sa.Connection) -> None:
        with engine.connect() as observer:
            observer.execution_options(isolation_level="AUTOCOMMIT")
            for _ in range(500):
                if observer.exec_driver_sql(waits).scalar():
                    break
                # MariaDB answers from memory who asks again within 0.1 seconds.
                time.sleep(0.02 if engine.dialect.name == "postgresql" else 0.15)
        write(connection, 1)
        connection.commit()
        is_done.append(True)

    def write(connection: sa.Connection, number: int) -> None:
        new = seal(token(1_000 + number), after())
        connection.execute(sa.update(sessions.table).where(sessions.table.c.id == number).values(token=new))

    with engine.connect() as connection:
        connection.execute(sa.update(weight.table).values(token=b"changed"))
        write(connection, 30)
        thread = in_thread(lambda: work(connection), 0)
        report = sessions.reencrypt(engine, strategy="cas")
        thread.join(PATIENCE)
    assert is_done
    assert report.retries >= 1
    assert report.superseded == 2
    expected = sessions.tokens | {(number,): token(1_000 + number) for number in (1, 30)}
    assert expected == sessions.decrypted(engine)


# Serialization failure, deadlock, lock not available; lock wait time-out, deadlock (also Galera's conflict), record
# changed since the last read, a Galera node that is not ready.
REFUSALS = {
    "postgresql": ["40001", "40P01", "55P03"],
    "mariadb": ["1205", "1213", "1020", "1047"],
    "sqlite": [],
}


@every_strategy
def test_a_batch_that_the_database_refuses_for_now_is_done_again(
    driver_engine: sa.Engine, strategy: str
) -> None:
    """A trigger raises each error twice."""
    for number, code in enumerate(REFUSALS[driver_engine.dialect.name]):
        sessions = create_sessions(driver_engine, 30, name=f"sessions_{number}")
        run(driver_engine, lambda connection: refuse_updates(connection, sessions, code, times=2))  # noqa: B023
        with PutOff() as put_off:
            report = sessions.reencrypt(driver_engine, strategy=strategy)
        assert (report.retries, report.reencrypted) == (2, 30)
        assert len(put_off.messages) == 2
        assert all(f" {code})" in message for message in put_off.messages)
        assert sessions.tokens == sessions.decrypted(driver_engine)


def test_a_batch_of_an_asynchronous_driver_is_done_again_too(async_driver_engine: AsyncEngine) -> None:
    for number, code in enumerate(REFUSALS[async_driver_engine.dialect.name]):
        sessions = create_sessions(async_driver_engine, 30, name=f"sessions_{number}")
        run(async_driver_engine, lambda connection: refuse_updates(connection, sessions, code, times=2))  # noqa: B023
        report = sessions.reencrypt(async_driver_engine)
        assert (report.retries, report.reencrypted) == (2, 30)


@pytest.mark.parametrize("strategy", ["auto", "cas"])
def test_an_error_that_stays_ends_the_run_and_shows_no_parameter(
    driver_engine: sa.Engine, strategy: str
) -> None:
    sessions = create_sessions(driver_engine, 30)
    run(driver_engine, lambda connection: refuse_updates(connection, sessions, "23514", times=10**9))
    with pytest.raises(ReencryptionError, match="the database refused a batch") as caught:
        sessions.reencrypt(driver_engine, strategy=strategy, on_row_error="fail")
    report: Any = caught.value.report
    assert (report.retries, report.reencrypted) == (0, 0)
    assert "UPDATE" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert sessions.tokens == sessions.decrypted(driver_engine)


def refuse_updates(connection: sa.Connection, sessions: Sessions, code: str, times: int) -> None:
    """Let the database refuse the next updates of the table with this error; a sequence counts them past rollbacks."""
    table, execute = sessions.table.name, connection.exec_driver_sql
    trigger = f"CREATE TRIGGER refuse_{table} BEFORE UPDATE ON {table}"
    if connection.dialect.name == "postgresql":
        execute(f"CREATE SEQUENCE refused_{table}")
        execute(
            f"CREATE FUNCTION refuse_{table}() RETURNS trigger AS $$ BEGIN "
            f"IF nextval('refused_{table}') <= {times} THEN RAISE EXCEPTION 'refused' USING ERRCODE = '{code}'; "
            "END IF; RETURN NEW; END $$ LANGUAGE plpgsql"
        )
        execute(f"{trigger} FOR EACH ROW EXECUTE FUNCTION refuse_{table}()")
    elif connection.dialect.name == "mariadb":
        execute(f"CREATE SEQUENCE refused_{table}")
        execute(
            f"{trigger} FOR EACH ROW IF NEXTVAL(refused_{table}) <= {times} THEN "
            f"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'refused'; END IF"
        )
    else:
        execute(f"{trigger} BEGIN SELECT RAISE(ABORT, 'refused'); END")
