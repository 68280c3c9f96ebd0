"""Time-outs and packets of servers that were set for an application, and a run that takes its time."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from jwt_column import audit
from migrations_helpers.engine.conversions import Adoption
from migrations_helpers.engine.options import Options
from migrations_helpers.engine.reencryption import convert_column
from migrations_helpers.engine.reflection import Subject
from migrations_helpers.engine.strategies import mysql
from tests.support.models import table_of
from tests.support.workload import create_sessions, engine_on, every_server, run, token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from migrations_helpers.engine.strategies.base import Changes
    from tests.support.databases import Database

pytestmark = pytest.mark.each_server


@contextmanager
def limited(engine: sa.Engine, seconds: float) -> Iterator[sa.Engine]:
    """Return an engine of the same database whose statements and transactions may take so long."""
    with engine_on(engine.url) as short:

        @sa.event.listens_for(short, "connect")
        def limit(connection: Any, _: Any) -> None:
            cursor = connection.cursor()
            if engine.dialect.name == "postgresql":
                for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
                    cursor.execute(f"SET {name} = {round(seconds * 1000)}")
                connection.commit()
            else:
                cursor.execute(f"SET SESSION max_statement_time = {seconds}")
            cursor.close()

        yield short


def slow_updates(engine: sa.Engine) -> None:
    """Let an update of a row take a twentieth of a second."""
    if engine.dialect.name == "postgresql":
        statements = [
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql "
            "AS 'BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END'",
            "CREATE TRIGGER slow BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION slow()",
        ]
    else:
        statements = ["CREATE TRIGGER slow BEFORE UPDATE ON sessions FOR EACH ROW DO SLEEP(0.05)"]
    run(engine, lambda connection: [connection.exec_driver_sql(statement) for statement in statements])


@every_server
@pytest.mark.parametrize("strategy", ["auto", "cas"])
def test_no_time_out_of_statements_ends_a_run(engine: sa.Engine, strategy: str) -> None:
    sessions = create_sessions(engine, 6)
    slow_updates(engine)
    with limited(engine, 0.03) as short:
        with pytest.raises(DBAPIError), short.begin() as connection:
            # The control: an application's statement ends.
            connection.exec_driver_sql("UPDATE sessions SET token = ''")
        report = sessions.reencrypt(short, strategy=strategy)
        assert (report.reencrypted, report.retries) == (6, 0)
        with short.connect() as connection:
            names = {"postgresql": "SHOW statement_timeout", "mariadb": "SELECT @@max_statement_time"}
            assert connection.exec_driver_sql(names[engine.dialect.name]).scalar() in ("30ms", 0.03)


def test_a_transaction_may_wait_for_the_application_to_convert(postgresql_database: Database) -> None:
    with engine_on(postgresql_database.url()) as engine, limited(engine, 0.03) as short:
        sessions = create_sessions(engine, 3, storage="text")
        for number in range(1, 4):
            sessions.put(engine, (number,), f"foreign {number}")

        def decrypt(stored: str) -> str:
            time.sleep(0.05)
            return token(int(stored[-1]))

        def adopt(type_: Any, value: Any, **options: Any) -> Adoption:
            return Adoption(type_, value, decrypt, **options)

        report = convert_column(short, Subject("sessions", "token", sessions.type_()), adopt, Options())
        assert (report.reencrypted, report.retries) == (3, 0)


@every_server
def test_no_time_out_ends_an_audit(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 200)
    table = table_of(sessions.type_())
    asked: list[str] = []
    shown = {"postgresql": "SHOW statement_timeout", "mariadb": "SELECT @@max_statement_time"}
    with limited(engine, 5.0) as short:

        @sa.event.listens_for(short, "after_cursor_execute")
        def ask(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            if "count(" in statement.lower():
                cursor = connection.connection.cursor()
                cursor.execute(shown[engine.dialect.name])
                asked.append(str(cursor.fetchone()[0]))

        report = audit(short, table.c.token)
    assert report.columns[0].rows == 200
    assert asked
    assert all(float(value) == 0 for value in asked)


# -- packets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_packets(mariadb_database: Database) -> Iterator[Callable[[str], sa.URL]]:
    """A MariaDB that takes statements of 1 MiB, and that other tests of this process share."""
    with engine_on(mariadb_database.url(), isolation_level="AUTOCOMMIT") as administration:
        with administration.connect() as connection:
            old = connection.exec_driver_sql("SELECT @@global.max_allowed_packet").scalar()
            connection.exec_driver_sql("SET GLOBAL max_allowed_packet = 1048576")
        yield mariadb_database.url
        with administration.connect() as connection:
            connection.exec_driver_sql(f"SET GLOBAL max_allowed_packet = {old}")


@pytest.mark.parametrize("strategy", ["auto", "cas"])
def test_statements_are_no_larger_than_the_server_takes(
    small_packets: Callable[[str], sa.URL], strategy: str
) -> None:
    with engine_on(small_packets("pymysql")) as engine:
        sessions = create_sessions(engine, 300, size=8_000)
        with engine.connect() as connection:
            report = sessions.reencrypt(connection, batch_size=300, batch_seconds=60, strategy=strategy)
        assert (report.reencrypted, report.retries) == (300, 0)
        assert sessions.decrypted(engine) == sessions.tokens


def test_a_packet_that_is_too_large_is_halved(
    small_packets: Callable[[str], sa.URL], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy may take less than the server says."""

    def uncut(changes: Changes, *_: Any, **__: Any) -> Iterator[Changes]:
        yield changes

    monkeypatch.setattr(mysql, "in_chunks", uncut)
    with engine_on(small_packets("pymysql")) as engine:
        sessions = create_sessions(engine, 300, size=8_000)
        report = sessions.reencrypt(engine, batch_size=300, batch_seconds=60)
        assert report.reencrypted == 300
        assert 1 <= report.retries <= 8
        assert sessions.decrypted(engine) == sessions.tokens
