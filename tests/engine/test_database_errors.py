"""Errors of the database at any moment of a run: always one of ours, with a report, a sentence and no value."""

from __future__ import annotations

import itertools
import re
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from jwt_column import audit, find_plaintext_tokens
from jwt_column.errors import AuditError, ReencryptionError
from migrations_helpers import ReencryptionReport
from tests.support.databases import SYNC_DRIVERS
from tests.support.workload import create_sessions, engine_on, every_server, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.databases import Database
    from tests.support.workload import Sessions

ENDS = {"postgresql": "SELECT pg_terminate_backend(%s)", "mariadb": "KILL %s"}


def number_of(connection: Any) -> int:
    """Return the server's number of a driver's connection."""
    cursor = connection.cursor()
    cursor.execute("SELECT pg_backend_pid()" if hasattr(connection, "info") else "SELECT CONNECTION_ID()")
    number = int(cursor.fetchone()[0])
    cursor.close()
    connection.rollback()
    return number


@contextmanager
def killed_at(url: sa.URL, moment: int) -> Iterator[tuple[sa.Engine, list[str]]]:
    """Return an engine whose connection an administrator ends before its statement of this number."""
    sent: list[str] = []
    with engine_on(url) as engine, engine_on(url, isolation_level="AUTOCOMMIT") as administration:

        @sa.event.listens_for(engine, "before_cursor_execute")
        def end(connection: sa.Connection, cursor: Any, statement: str, *_: Any) -> None:
            sent.append(statement)
            if len(sent) == moment:
                number = connection.info["number"]
                with administration.connect() as other:
                    other.exec_driver_sql(ENDS[url.get_backend_name()] % number)

        @sa.event.listens_for(engine, "connect")
        def note(connection: Any, record: Any) -> None:
            record.info["number"] = number_of(connection)

        yield engine, sent


def killed_at_each_moment(url: sa.URL) -> Iterator[sa.Engine]:
    """Yield engines whose connection ends before the first statement, the second and so on, then one that lives."""
    for moment in itertools.count(1):
        with killed_at(url, moment) as (killed, sent):
            yield killed
        if len(sent) < moment:
            return


@every_server
@pytest.mark.parametrize("is_given", [False, True])
def test_a_connection_that_is_killed_at_any_moment_ends_in_an_error_of_ours(
    engine: sa.Engine, is_given: bool
) -> None:
    """An engine connects again, a connection that was given cannot; the first statements are those of the set-up."""
    sessions = create_sessions(engine, 40)
    failures: list[ReencryptionError] = []
    for killed in killed_at_each_moment(engine.url):
        try:
            with killed.connect() if is_given else nullcontext(killed) as bind:
                report = sessions.reencrypt(bind, batch_size=20, batch_seconds=1e-9)
        except ReencryptionError as error:
            failures.append(error)
        else:
            assert report.is_complete
    assert failures
    assert {failure.reason for failure in failures} == {"database"}
    assert all(isinstance(failure.report, ReencryptionReport) for failure in failures)
    assert sessions.decrypted(engine) == sessions.tokens


@pytest.mark.parametrize("driver", SYNC_DRIVERS["postgresql"])
def test_a_role_without_rights_is_told_what_it_lacks(postgresql_database: Database, driver: str) -> None:
    with engine_on(postgresql_database.url(driver)) as engine:
        create_sessions(engine, 3)
        with engine.connect() as connection:
            connection.exec_driver_sql("CREATE ROLE jwt_column_reader")
            try:
                connection.exec_driver_sql("GRANT SELECT ON sessions TO jwt_column_reader")
                connection.commit()
                connection.exec_driver_sql("SET ROLE jwt_column_reader")
                connection.commit()
                sessions = create_sessions(sa.create_engine("sqlite://"), 0)
                with pytest.raises(ReencryptionError, match="may not write sessions; GRANT UPDATE on it"):
                    sessions.reencrypt(connection)
            finally:
                connection.rollback()
                connection.exec_driver_sql("RESET ROLE")
                connection.exec_driver_sql("DROP OWNED BY jwt_column_reader")
                connection.exec_driver_sql("DROP ROLE jwt_column_reader")
                connection.commit()


@pytest.mark.each_server
def test_a_database_that_is_not_there_is_no_raw_error(database: Database, tmp_path: Path) -> None:
    """While it connects, no driver says the same."""
    url = database.url().set(database=str(tmp_path / "no" / "file") if database.name == "sqlite" else "gone")
    sessions = create_sessions(sa.create_engine("sqlite://"), 0)
    with (
        engine_on(url) as engine,
        pytest.raises(
            ReencryptionError, match=r"refused before the first batch .*nothing was done"
        ) as caught,
    ):
        sessions.reencrypt(engine)
    assert isinstance(caught.value.report, ReencryptionReport)
    assert not re.search("eyJ", str(caught.value))


def test_a_pool_that_is_used_up_is_no_raw_error(postgresql_database: Database) -> None:
    with engine_on(postgresql_database.url(), pool_size=1, max_overflow=0, pool_timeout=0.05) as engine:
        sessions = create_sessions(engine, 1)
        with engine.connect(), pytest.raises(ReencryptionError, match="TimeoutError"):
            sessions.reencrypt(engine)
        # The lock has a connection beside the pool.
        assert sessions.reencrypt(engine).reencrypted == 1


def test_a_limit_of_temporary_files_is_named(postgresql_database: Database) -> None:
    options = {"options": "-c temp_file_limit=0 -c work_mem=64kB"}
    with engine_on(postgresql_database.url("psycopg")) as engine:
        sessions = create_sessions(engine, 3)
    with (
        engine_on(postgresql_database.url("psycopg"), connect_args=options) as engine,
        pytest.raises(ReencryptionError, match=r"53400: .*temp_file_limit"),
    ):
        sessions.reencrypt(engine)


def test_a_disk_that_is_full_is_named(tmp_path: Path) -> None:
    with engine_on(sa.URL.create("sqlite", database=str(tmp_path / "full.sqlite3"))) as engine:
        sessions = create_sessions(engine, 50)

        @sa.event.listens_for(engine, "connect")
        def fill(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA max_page_count = 1")

        engine.dispose()
        run(engine, lambda c: c.exec_driver_sql("UPDATE sessions SET token = token"))
        larger = {"fingerprints": [f"claim{number}" for number in range(7)]}
        sessions.options = larger
        with pytest.raises(ReencryptionError, match="SQLITE_FULL: the disk of the database is full"):
            sessions.reencrypt(engine)


@every_server
@pytest.mark.parametrize("deep", [False, True])
def test_an_audit_whose_connection_is_killed_ends_in_an_error_of_ours(engine: sa.Engine, deep: bool) -> None:
    sessions = create_sessions(engine, 3)
    id_ = sa.Column("id", sa.Integer, primary_key=True)
    table = sa.Table("sessions", sa.MetaData(), id_, sa.Column("token", sessions.type_()))
    failures, answers = list[AuditError](), 0
    for killed in killed_at_each_moment(engine.url):
        try:
            assert audit(killed, table, deep=deep).columns[0].rows == 3
            answers += 1
        except AuditError as error:
            failures.append(error)
    assert answers == 1
    assert all("the connection was lost" in str(error) and error.report is None for error in failures)


@pytest.mark.parametrize("function", [audit, find_plaintext_tokens])
def test_a_server_that_does_not_answer_an_audit_is_no_raw_error(function: Any) -> None:
    sessions = create_sessions(sa.create_engine("sqlite://"), 0)
    target = [] if function is find_plaintext_tokens else [sa.Table("t", sa.MetaData(), _token_of(sessions))]
    for url in ("postgresql+psycopg://nobody@127.0.0.1:1/none", "mysql+pymysql://nobody@127.0.0.1:1/none"):
        with pytest.raises(
            AuditError, match=f"{function.__name__}.. was not finished, and there is no report"
        ):
            function(sa.create_engine(url), *target)


def _token_of(sessions: Sessions) -> sa.Column[Any]:
    return sa.Column("token", sessions.type_())


@every_server
def test_alembic_does_not_hide_the_reason_of_a_lost_connection(engine: sa.Engine) -> None:
    """Nor where the connection is lost while the operation has not begun; the control is a migration that ends."""
    sessions = create_sessions(engine, 10)
    messages, migrations = list[str](), 0
    for killed in killed_at_each_moment(engine.url):
        try:
            _migrate(killed, sessions)
            migrations += 1
        except ReencryptionError as error:
            messages.append(str(error))
    assert migrations == 1
    assert all("the connection was lost" in message for message in messages)
    assert sessions.decrypted(engine) == sessions.tokens


def _migrate(engine: sa.Engine, sessions: Sessions) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction():
            Operations(context).reencrypt_jwt_column("sessions", "token", type_=sessions.type_())  # type: ignore[attr-defined]
