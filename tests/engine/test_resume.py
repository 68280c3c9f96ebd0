"""Runs that are cut off: killed, disconnected, or out of disk. Nothing is lost, and the next run does the rest."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from jwt_column.errors import ReencryptionError
from migrations_helpers import reencrypt
from tests.support.workload import (
    NEW,
    OLD,
    PATIENCE,
    Interrupted,
    Sessions,
    column_type,
    create_sessions,
    cut_off,
    engine_on,
    every_server_driver,
    every_strategy,
    processes,
    run,
    run_connection,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe

    from sqlalchemy.ext.asyncio import AsyncEngine

    from migrations_helpers import ReencryptionReport
    from migrations_helpers.engine.connection import RunConnection
    from tests.support.databases import Database
    from tests.support.workload import AnyEngine

# -- killed --------------------------------------------------------------------------------------------------------


def work_until_killed(url: sa.URL, strategy: str, pipe: Pipe) -> None:
    """Re-encrypt in small batches, and say so at the first one and at the end."""

    def tell(report: ReencryptionReport) -> None:
        if report.reencrypted and not told:
            told.append(True)
            pipe.send("at work")
        # However slow the machine is, there is work left when the signal arrives.
        time.sleep(0.002)

    told: list[bool] = []
    engine = sa.create_engine(url)
    options: dict[str, Any] = {"batch_size": 5, "batch_seconds": 1e-9, "nice": 0, "strategy": strategy}
    for _ in range(200):
        try:
            reencrypt(engine, "sessions", "token", type_=column_type(), progress=tell, **options)
        except ReencryptionError as error:
            # The server may not have noticed yet that the process before this one is dead, and its lock free.
            if "another run is at work" not in str(error):
                raise
            time.sleep(0.05)
        else:
            break
    pipe.send("finished")


def kill_at_work(engine: sa.Engine, strategy: str, delay: float) -> str:
    """Start a process that re-encrypts, kill it while it does, and return the last that was heard from it."""
    pipe, other = processes.Pipe(duplex=False)
    process = processes.Process(target=work_until_killed, args=(engine.url, strategy, other), daemon=True)
    process.start()
    other.close()
    assert pipe.poll(PATIENCE), "the process hangs"
    heard = str(pipe.recv())
    time.sleep(delay)
    process.kill()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    process.close()
    while pipe.poll():
        try:
            heard = str(pipe.recv())
        except EOFError:
            break
    pipe.close()
    return heard


@pytest.mark.processes
@pytest.mark.parametrize(("strategy", "kills"), [("auto", 9), ("cas", 8)])
def test_a_run_killed_again_and_again_loses_no_token(engine: sa.Engine, strategy: str, kills: int) -> None:
    """17 times on each of three databases, each time in the middle of the work; then one run finishes it."""
    rows = 4_000
    sessions = create_sessions(engine, rows, size=200)
    chance = random.Random(strategy)
    stale = rows
    for _ in range(kills):
        assert kill_at_work(engine, strategy, chance.random() * 0.04) == "at work"
        census = sessions.census(engine)
        assert {(OLD, "stale"), (NEW, "current")} == set(census)
        assert rows == sum(census.values())
        assert census[OLD, "stale"] < stale
        stale = census[OLD, "stale"]
    assert sessions.tokens == sessions.decrypted(engine)
    report = finish(sessions, engine, strategy=strategy)
    assert (stale, rows - stale) == (report.reencrypted, report.already_current)
    assert sessions.tokens == sessions.decrypted(engine)
    assert {(NEW, "current"): rows} == sessions.census(engine)


def finish(sessions: Sessions, engine: AnyEngine, **options: Any) -> ReencryptionReport:
    """Run to the end, as soon as the server has noticed that the one before is dead."""
    for _ in range(200):
        try:
            return sessions.reencrypt(engine, **options)
        except ReencryptionError as error:
            if "another run is at work" not in str(error):
                raise
            time.sleep(0.05)
    pytest.fail("the lock of a killed run is never free")


# -- disconnected --------------------------------------------------------------------------------------------------


class CutOff(Interrupted):
    """A strategy that loses its connection in the middle of some batches: after reading and before writing."""

    def __init__(self, strategy: str, engine: AnyEngine, batches: set[int]) -> None:
        super().__init__(strategy, self._cut_off)
        self._engine = engine
        self._batches = batches
        self._number = 0

    def run_batch(self, task: Any) -> Any:
        self._number += 1
        # Asked before the batch: in its middle the connection may be busy.
        self._end_connection = cut_off(self._engine, task.connection.sqlalchemy)
        self.happened = self._number not in self._batches
        return super().run_batch(task)

    def _cut_off(self) -> None:
        self._end_connection()


class Asking(Interrupted):
    """A strategy whose conversion asks the database something, as a reader of another format may."""

    calls_out = True

    def __init__(self, strategy: str) -> None:
        super().__init__(strategy, self._ask)
        self.answers: list[object] = []

    def run_batch(self, task: Any) -> Any:
        self._connection = task.connection
        return super().run_batch(task)

    def _ask(self) -> None:
        self.answers.append(self._connection.sqlalchemy.exec_driver_sql("SELECT 42").scalar())


@pytest.mark.matrix
@every_strategy
@every_server_driver
def test_a_conversion_may_use_the_connection_of_its_run(driver_engine: sa.Engine, strategy: str) -> None:
    """A driver that is sending a batch in parts would wait for itself, for ever."""
    sessions = create_sessions(driver_engine, 20)
    asking = Asking(strategy)
    sessions.reencrypt(driver_engine, strategy=asking)
    assert asking.answers == [42]
    assert sessions.tokens == sessions.decrypted(driver_engine)


@every_strategy
@every_server_driver
def test_a_run_on_an_engine_reconnects_and_finishes(driver_engine: sa.Engine, strategy: str) -> None:
    sessions = create_sessions(driver_engine, 50)
    cut = CutOff(strategy, driver_engine, {2, 3, 5})
    report = sessions.reencrypt(driver_engine, strategy=cut, batch_size=10, batch_seconds=1e-9)
    assert (report.reencrypted, report.retries) == (50, 3)
    assert sessions.tokens == sessions.decrypted(driver_engine)


@every_strategy
@every_server_driver
def test_a_run_on_a_connection_that_is_lost_fails_with_its_report(
    driver_engine: sa.Engine, strategy: str
) -> None:
    sessions = create_sessions(driver_engine, 50)
    cut = CutOff(strategy, driver_engine, {3})
    options: dict[str, Any] = {"batch_size": 10, "batch_seconds": 1e-9, "strategy": cut}
    with driver_engine.connect() as connection:
        with pytest.raises(ReencryptionError, match="20 rows were rewritten before") as caught:
            reencrypt(connection, "sessions", "token", type_=column_type(), **options)
        report: Any = caught.value.report
        assert (report.reencrypted, report.retries) == (20, 1)
        # It is of use again once its owner has ended the transaction that was lost.
        connection.rollback()
        assert connection.scalar(sa.select(sa.func.count()).select_from(sessions.table)) == 50
    assert sessions.tokens == sessions.decrypted(driver_engine)
    assert sessions.census(driver_engine) == {(NEW, "current"): 20, (OLD, "stale"): 30}
    assert finish(sessions, driver_engine).reencrypted == 30


@every_strategy
@pytest.mark.parametrize(
    "async_driver_engine",
    [("postgresql", driver) for driver in ("asyncpg", "psycopg")],
    indirect=True,
    ids="-".join,
)
def test_a_run_on_a_connection_of_an_asynchronous_driver_fails_with_its_report_too(
    async_driver_engine: AsyncEngine, strategy: str
) -> None:
    sessions = create_sessions(async_driver_engine, 50)
    cut = CutOff(strategy, async_driver_engine, {3})
    with pytest.raises(ReencryptionError, match="20 rows were rewritten before"):
        sessions.reencrypt(async_driver_engine, batch_size=10, batch_seconds=1e-9, strategy=cut)
    assert finish(sessions, async_driver_engine).reencrypted == 30
    assert sessions.tokens == sessions.decrypted(async_driver_engine)


@every_server_driver
def test_a_connection_lost_between_two_batches_is_replaced(driver_engine: sa.Engine) -> None:
    sessions = create_sessions(driver_engine, 50)
    connections: list[Any] = []
    sa.event.listen(driver_engine, "engine_connect", connections.append)

    def cut(report: ReencryptionReport) -> None:
        if report.reencrypted == 20 and not report.retries:
            cut_off(driver_engine, connections[0])()

    report = sessions.reencrypt(driver_engine, batch_size=10, batch_seconds=1e-9, progress=cut)
    assert (report.reencrypted, report.retries) == (50, 1)
    assert sessions.tokens == sessions.decrypted(driver_engine)


@every_server_driver
def test_a_server_that_is_away_for_a_while_is_waited_for(driver_engine: sa.Engine) -> None:
    sessions = create_sessions(driver_engine, 50)
    engine = driver_engine
    cut = CutOff("auto", engine, {2})
    refused: list[bool] = []

    @sa.event.listens_for(engine, "do_connect")
    def refuse(dialect: sa.Dialect, *_: Any) -> None:
        if cut.happened and len(refused) < 2 and cut._number == 2:
            refused.append(True)
            raise dialect.loaded_dbapi.OperationalError("the server is starting up")

    report = sessions.reencrypt(engine, strategy=cut, batch_size=10, batch_seconds=1e-9)
    assert (report.reencrypted, len(refused)) == (50, 2)


@every_server_driver
def test_a_server_that_stays_away_ends_the_run_with_its_report(driver_engine: sa.Engine) -> None:
    sessions = create_sessions(driver_engine, 50)
    cut = CutOff("auto", driver_engine, {2})
    with engine_on(driver_engine.url) as engine:

        @sa.event.listens_for(engine, "do_connect")
        def refuse(dialect: sa.Dialect, *_: Any) -> None:
            if cut.happened and cut._number == 2:
                raise dialect.loaded_dbapi.OperationalError("the server is gone")

        with pytest.raises(ReencryptionError, match="10 rows were rewritten before") as caught:
            sessions.reencrypt(engine, strategy=cut, batch_size=10, batch_seconds=1e-9, max_retries=1)
        report: Any = caught.value.report
        assert report.reencrypted == 10
    assert sessions.tokens == sessions.decrypted(driver_engine)


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_server_that_keeps_the_lock_of_a_lost_connection_for_a_while_is_waited_for(
    engine: sa.Engine,
) -> None:
    """As it does where the network failed and it has not noticed; another session stands for the lost one.

    On PostgreSQL the lock belongs to another connection.
    """
    sessions = create_sessions(engine, 50)
    cut = CutOff("auto", engine, {2})
    attempts: list[RunConnection] = []

    with engine_on(engine.url) as elsewhere, engine_on(engine.url) as ours:

        @sa.event.listens_for(ours, "engine_connect")
        def hold_lock(_: sa.Connection) -> None:
            if not cut.happened or cut._number != 2:
                return
            if not attempts:
                attempts.append(run_connection(elsewhere))
            elif len(attempts) == 1:
                attempts.append(attempts[0])
            else:
                attempts[0].close()

        report = sessions.reencrypt(ours, strategy=cut, batch_size=10, batch_seconds=1e-9)
    assert (report.reencrypted, len(attempts)) == (50, 2)


def test_rows_that_are_gone_when_the_work_begins_are_superseded(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 30)
    gone: list[bool] = []

    def delete(report: ReencryptionReport) -> None:
        if not gone:
            gone.append(True)
            run(engine, lambda connection: connection.execute(sa.delete(sessions.table)))

    report = sessions.reencrypt(engine, progress=delete)
    assert (report.total, report.superseded, report.reencrypted, report.remaining) == (30, 30, 0, 0)


# -- out of disk ---------------------------------------------------------------------------------------------------


@every_strategy
def test_a_full_disk_ends_the_run_and_loses_nothing(sqlite_database: Database, strategy: str) -> None:
    """Envelopes with fingerprints are longer, so the file has to grow; SQLite is told how far it may."""
    with engine_on(sqlite_database.url()) as engine:
        sessions = create_sessions(engine, 400)
        # Rows went in in any order; packed closely, they have no room to grow.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM")
        pages = ask_sqlite(engine, "PRAGMA page_count")
        sessions.options = {"fingerprints": ["token", "jti", "sub"]}

        with engine_on(sqlite_database.url()) as full:
            limit = f"PRAGMA max_page_count = {pages + 3}"
            sa.event.listen(full, "connect", lambda connection, _: connection.execute(limit))
            with pytest.raises(ReencryptionError, match="SQLITE_FULL") as caught:
                sessions.reencrypt(full, batch_size=20, batch_seconds=1e-9, strategy=strategy)
        report: Any = caught.value.report
        assert 0 < report.reencrypted < 400
        assert sessions.tokens == sessions.decrypted(engine)

        rest = sessions.reencrypt(engine)
        assert (rest.already_current, rest.reencrypted) == (report.reencrypted, 400 - report.reencrypted)
        assert sessions.tokens == sessions.decrypted(engine)
        assert ask_sqlite(engine, "PRAGMA integrity_check") == "ok"


def ask_sqlite(engine: sa.Engine, statement: str) -> Any:
    """Return the one value that a PRAGMA gives."""
    return run(engine, lambda connection: connection.exec_driver_sql(statement).scalar_one(), begin=False)
