"""Runs through PgBouncer, beside an application in the same pool, and the lease that stands in for an advisory lock."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from jwt_column import EncryptedJWT, audit, purge_expired
from jwt_column.errors import ConfigurationError, ReencryptionError
from tests.conftest import _give_up
from tests.support.databases import Unavailable, databases_required
from tests.support.models import table_of
from tests.support.pgbouncer import Pool, pooled
from tests.support.tokens import signed_token
from tests.support.workload import (
    CONTEXT,
    after,
    create_sessions,
    cut_off,
    engine_on,
    every_server,
    run_connection,
    seal,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from migrations_helpers import ReencryptionReport
    from tests.support.databases import Database
    from tests.support.workload import AnyEngine

DRIVERS = ["psycopg", "psycopg2", "asyncpg"]


@pytest.fixture(params=["transaction", "session"])
def pool(request: pytest.FixtureRequest, postgresql_database: Database) -> Iterator[Pool]:
    # In session mode every connection keeps a server.
    servers = 3 if request.param == "transaction" else 12
    try:
        with pooled(postgresql_database, request.param, servers) as pool:
            yield pool
    except Unavailable as reason:
        _give_up(reason, required=databases_required(os.environ))


@contextmanager
def engine_through(pool: Pool, driver: str) -> Iterator[AnyEngine]:
    if driver != "asyncpg":
        with engine_on(pool.url(driver)) as engine:
            yield engine
        return
    asynchronous = create_async_engine(pool.url(driver), poolclass=NullPool)
    yield asynchronous
    asyncio.run(asynchronous.dispose())


#: Of this database: other tests may be at work on the server.
ADVISORY_LOCKS = (
    "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
    "WHERE l.locktype = 'advisory' AND d.datname = current_database()"
)


@contextmanager
def busy(pool: Pool) -> Iterator[None]:
    """Use all servers of the pool in turn, as an application does, so that a run gets another one each time."""
    stop = threading.Event()
    failures: list[Exception] = []

    def work(engine: sa.Engine) -> None:
        while not stop.is_set():
            try:
                with engine.connect() as connection:
                    connection.exec_driver_sql("SELECT pg_sleep(0.002)")
            except SQLAlchemyError as error:
                failures.append(error)

    with engine_on(pool.url("psycopg2"), poolclass=NullPool) as engine:
        threads = [threading.Thread(target=work, args=(engine,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert failures == []


def state(pool: Pool) -> set[tuple[Any, ...]]:
    """Return what the servers of the pool were left with, as the application meets them."""
    names = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "role")
    found = set()
    with engine_on(pool.url("psycopg2"), pool_size=3) as engine:
        connections = [engine.connect() for _ in range(3)]
        for connection in connections:
            found.add(tuple(connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names))
        for connection in connections:
            connection.close()
    with engine_on(pool.direct) as direct, direct.connect() as connection:
        assert connection.exec_driver_sql(ADVISORY_LOCKS).scalar() == 0
    return found


@pytest.mark.parametrize(
    ("pool", "driver"),
    [
        *(("transaction", driver) for driver in DRIVERS),
        ("session", DRIVERS[0]),
        *(pytest.param("session", driver, marks=pytest.mark.exhaustive) for driver in DRIVERS[1:]),
    ],
    indirect=["pool"],
)
def test_a_run_through_a_pooler_leaves_nothing_to_the_application(pool: Pool, driver: str) -> None:
    """A prepared statement, a setting or a lock of the session would be another connection's a moment later."""
    with engine_on(pool.direct) as direct:
        sessions = create_sessions(direct, 1_500)
        before = state(pool)
        with busy(pool), engine_through(pool, driver) as engine:
            first = sessions.reencrypt(engine, batch_size=60, batch_seconds=1e-9)
            second = sessions.reencrypt(engine, batch_size=60)
        assert (first.reencrypted, first.remaining, second.total) == (1_500, 0, 0)
        assert state(pool) == before
        assert sessions.decrypted(direct) == sessions.tokens


@pytest.mark.parametrize("pool", ["transaction"], indirect=True)
def test_compare_and_swap_shards_and_an_audit_go_through_a_pooler(pool: Pool) -> None:
    with engine_on(pool.direct) as direct:
        sessions = create_sessions(direct, 600)
        before = state(pool)
        with busy(pool), engine_on(pool.url("psycopg")) as engine:
            with ThreadPoolExecutor(2) as executor:
                report = sessions.reencrypt(engine, shards=2, executor=executor, batch_size=40)
            assert (report.reencrypted, report.remaining) == (600, 0)
            others = create_sessions(direct, 300, name="others")
            report = others.reencrypt(engine, strategy="cas", batch_size=40, batch_seconds=1e-9)
            assert (report.reencrypted, report.remaining) == (300, 0)
            table = table_of(sessions.type_())
            assert audit(engine, table.c.token, deep=True).columns[0].examined == 600
        assert state(pool) == before


def _ask_often(engine: sa.Engine, statement: sa.Select[Any]) -> None:
    for _ in range(100):
        with engine.begin() as connection:
            connection.execute(statement)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize("pool", ["transaction"], indirect=True)
def test_a_purge_goes_through_a_pooler(pool: Pool, driver: str) -> None:
    """Of one statement, psycopg prepares the sixth; another server does not know it, as the control shows."""
    with engine_on(pool.direct) as direct:
        create_sessions(direct, 0)
        expired = EncryptedJWT(after(), context=CONTEXT, expose_expiry=True)
        stored: Any = seal(signed_token(exp=1_000), after(), expose_expiry=True)
        table = table_of(expired)
        with direct.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO sessions (id, token) SELECT n, decode(%(stored)s, 'hex') FROM generate_series(1, 9000) n",
                {"stored": stored.hex()},
            )
        before = state(pool)
        with busy(pool), engine_on(pool.url(driver)) as engine:
            assert purge_expired(engine, table.c.token) == 9_000
            if driver == "psycopg":
                with pytest.raises(SQLAlchemyError):
                    _ask_often(engine, sa.select(table.c.id).where(table.c.id == 1))
        assert state(pool) == before


@pytest.mark.parametrize("pool", ["transaction"], indirect=True)
def test_the_danger_is_real(pool: Pool) -> None:
    """The control: what earlier releases did leaves a lock and a time-out in the pool."""
    with engine_on(pool.url("psycopg2"), isolation_level="AUTOCOMMIT", poolclass=NullPool) as engine:
        with engine.connect() as connection:
            connection.exec_driver_sql("SET lock_timeout = 200")
            connection.exec_driver_sql("SELECT pg_try_advisory_lock(1)")
        with engine_on(pool.direct) as direct, direct.connect() as connection:
            assert connection.exec_driver_sql(ADVISORY_LOCKS).scalar() == 1
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "200ms"


# -- one run at a time ---------------------------------------------------------------------------------------------


@every_server
def test_a_second_run_waits_and_finds_nothing_to_do(engine: sa.Engine) -> None:
    """As a second host of a deployment; without wait it fails, which the first run sees happen."""
    sessions = create_sessions(engine, 60)
    reports: list[ReencryptionReport] = []
    threads: list[threading.Thread] = []

    def start_second(report: ReencryptionReport) -> None:
        if report.reencrypted == 10 and not threads:
            with (
                engine_on(engine.url) as other,
                pytest.raises(ReencryptionError, match=r"after 0\.3 seconds"),
            ):
                sessions.reencrypt(other, wait=0.3)
            thread = threading.Thread(target=wait_for_first)
            threads.append(thread)
            thread.start()

    def wait_for_first() -> None:
        with engine_on(engine.url) as other:
            reports.append(sessions.reencrypt(other, wait=60))

    first = sessions.reencrypt(engine, batch_size=10, batch_seconds=1e-9, progress=start_second)
    threads[0].join()
    assert (first.reencrypted, first.superseded) == (60, 0)
    assert (reports[0].total, reports[0].already_current) == (0, 60)


@pytest.mark.parametrize("wait", [-1, float("nan")])
def test_a_time_to_wait_that_is_none_is_refused(memory: sa.Engine, wait: float) -> None:
    with pytest.raises(ConfigurationError, match="wait is a number of seconds"):
        create_sessions(memory, 1).reencrypt(memory, wait=wait)


def test_a_lease_outlives_the_time_outs_of_its_server_and_is_taken_again(
    postgresql_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine_on(postgresql_database.url(), pool_size=1, max_overflow=0) as engine:
        create_sessions(engine, 1)
        with engine.begin() as connection:
            name = connection.engine.url.database
            connection.exec_driver_sql(
                f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '50ms'"
            )
        engine.dispose()
        first = run_connection(engine)
        time.sleep(0.3)

        def is_free() -> bool:
            with engine_on(engine.url) as other:
                try:
                    run_connection(other).close()
                except ReencryptionError:
                    return False
            return True

        try:
            assert not is_free()
            lease: Any = first._lease
            cut_off(engine, lease._connection)()
            # The control: it is lost.
            assert is_free()
            monkeypatch.setattr("migrations_helpers.engine.lease._KEEP_INTERVAL", 0.0)
            with first.reading():
                assert not is_free()
        finally:
            first.close()
        assert is_free()
