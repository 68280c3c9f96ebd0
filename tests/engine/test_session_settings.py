"""Session variables of MariaDB that an application's engine sets as it connects, and a run that is right or refuses."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from jwt_column import Severity, audit, find_plaintext_tokens, purge_expired
from jwt_column.database.drivers import without_chains
from jwt_column.errors import ConfigurationError, ReencryptionError
from migrations_helpers import preflight
from tests.support.databases import SYNC_DRIVERS, ensure_driver
from tests.support.models import store, table_of
from tests.support.workload import column_type, create_sessions, engine_on, every_server, token

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.databases import Database
    from tests.support.workload import Sessions

pytestmark = pytest.mark.each_server


@contextmanager
def engine_that_sets(url: sa.URL, *statements: str) -> Iterator[sa.Engine]:
    """Return an engine that sends these statements on each new connection."""
    with engine_on(url) as engine:

        @sa.event.listens_for(engine, "connect")
        def send(connection: Any, _: Any) -> None:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement)
            cursor.close()
            connection.commit()

        yield engine


def store_in_the_clear(engine: sa.Engine, count: int) -> None:
    """Write tokens into a text column of another table."""
    store(engine, table_of(sa.Text, name="plain"), map(token, range(1, count + 1)))


def column_of(sessions: Sessions) -> sa.Column[Any]:
    return table_of(column_type(**sessions.options), name=sessions.table.name).c.token


def mysqlclient(mariadb: sa.Engine) -> sa.URL:
    pytest.importorskip("MySQLdb")
    return mariadb.url.set(drivername="mysql+mysqldb").update_query_dict({"charset": "utf8mb4"})


@pytest.mark.parametrize("strategy", ["auto", "cas"])
@pytest.mark.parametrize("variable", ["client", "connection"])
def test_a_character_set_that_the_driver_knows_nothing_of_stops_a_run(
    mariadb: sa.Engine, variable: str, strategy: str
) -> None:
    sessions = create_sessions(mariadb, 12)
    before = sessions.stored(mariadb)
    url = mysqlclient(mariadb)
    with engine_that_sets(url, f"SET SESSION character_set_{variable} = 'latin1'") as engine:
        with pytest.raises(ReencryptionError, match=r"reads other bytes .* give charset=utf8mb4 in the URL"):
            sessions.reencrypt(engine, strategy=strategy)
        with pytest.raises(ReencryptionError, match="reads other bytes"):
            sessions.reencrypt(engine, dry_run=True)
        (finding,) = preflight(engine, column_of(sessions))
        assert (finding.code, finding.severity) == ("bytes-altered", Severity.CRITICAL)
        # The control: what it says is so.
        with engine.begin() as connection:
            connection.execute(sessions.table.insert().values(id=99, token=bytes(range(256))))
            (garbled,) = connection.execute(sa.select(sessions.table.c.token).filter_by(id=99)).one()
            assert garbled != bytes(range(256))
            connection.execute(sessions.table.delete().filter_by(id=99))
    assert sessions.stored(mariadb) == before
    with engine_on(url) as plain:
        assert sessions.reencrypt(plain, strategy=strategy).reencrypted == 12


@pytest.mark.parametrize("driver", ["mysqldb", "pymysql"])
@pytest.mark.parametrize("statement", ["SET NAMES latin1", "SET SESSION character_set_results = 'latin1'"])
def test_a_character_set_that_leaves_bytes_alone_stops_no_run(
    mariadb: sa.Engine, driver: str, statement: str
) -> None:
    sessions = create_sessions(mariadb, 12)
    url = mysqlclient(mariadb).set(drivername=f"mysql+{driver}")
    with engine_that_sets(url, statement) as engine:
        assert sessions.reencrypt(engine).reencrypted == 12
    assert sessions.decrypted(mariadb) == sessions.tokens


def test_texts_are_sent_as_letters_that_every_character_set_has(mariadb: sa.Engine) -> None:
    sessions = create_sessions(mariadb, 12, storage="text")
    with engine_that_sets(mysqlclient(mariadb), "SET SESSION character_set_client = 'latin1'") as engine:
        assert sessions.reencrypt(engine).reencrypted == 12


# -- limits of rows --------------------------------------------------------------------------------------------------

ROW_LIMIT = "SET SESSION sql_select_limit = 1"


def row_limit_of(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT @@sql_select_limit").scalar_one())


@pytest.mark.parametrize("driver", SYNC_DRIVERS["mariadb"])
@pytest.mark.parametrize("strategy", ["auto", "cas"])
def test_a_limit_of_rows_is_lifted_for_a_run_and_set_back(
    mariadb: sa.Engine, mariadb_database: Database, driver: str, strategy: str
) -> None:
    ensure_driver(driver)
    sessions = create_sessions(mariadb, 120)
    with engine_that_sets(mariadb_database.url(driver), ROW_LIMIT) as engine:
        assert sessions.reencrypt(engine, strategy=strategy, verify="decrypt").verified == 120
        assert row_limit_of(engine) == 1
        with engine.connect() as connection:
            assert sessions.reencrypt(connection).already_current == 120
            assert connection.exec_driver_sql("SELECT @@sql_select_limit").scalar_one() == 1
    assert sessions.decrypted(mariadb) == sessions.tokens


def test_a_limit_of_rows_hides_nothing_from_those_that_read(mariadb: sa.Engine) -> None:
    sessions = create_sessions(mariadb, 30)
    other = create_sessions(mariadb, 3, name="others")
    store_in_the_clear(mariadb, 5)
    columns = [column_of(one) for one in (sessions, other)]
    with engine_that_sets(mariadb.url, ROW_LIMIT) as engine:
        for bind in (engine, mariadb):
            report = audit(bind, columns, deep=True)
            assert [one.rows for one in report.columns] == [3, 30]
        cut, whole = (find_plaintext_tokens(bind) for bind in (engine, mariadb))
        assert [(one.table, one.column, one.rows) for one in cut] == [
            (one.table, one.column, one.rows) for one in whole
        ]
        assert row_limit_of(engine) == 1


# -- the ends of transactions -----------------------------------------------------------------------------------------


@contextmanager
def engine_that_completes(url: sa.URL, completion: str) -> Iterator[sa.Engine]:
    """Return an engine whose connections have this ``completion_type``, which a COMMIT would not survive."""
    with engine_on(url) as engine:

        @sa.event.listens_for(engine, "connect")
        def send(connection: Any, _: Any) -> None:
            with connection.cursor() as cursor:
                cursor.execute(f"SET SESSION completion_type = '{completion}'")

        yield engine


@pytest.mark.parametrize("strategy", ["auto", "cas"])
@pytest.mark.parametrize("completion", ["CHAIN", "RELEASE"])
def test_a_commit_of_a_run_chains_no_transaction_and_ends_no_connection(
    mariadb: sa.Engine, completion: str, strategy: str
) -> None:
    sessions = create_sessions(mariadb, 30, expose_expiry=True)
    column = table_of(column_type(**sessions.options), name=sessions.table.name).c.token
    with engine_that_completes(mariadb.url, completion) as engine:
        assert sessions.reencrypt(engine, strategy=strategy, batch_size=7).reencrypted == 30
        assert [one.rows for one in audit(engine, [column], deep=True).columns] == [30]
        assert find_plaintext_tokens(engine).rows > 0
        assert preflight(engine, column) == []
        assert purge_expired(engine, column) == 0


def test_the_completion_type_is_set_back_on_the_caller_s_connection(mariadb: sa.Engine) -> None:
    sessions = create_sessions(mariadb, 30)
    column = table_of(column_type(**sessions.options), name=sessions.table.name).c.token
    shown = "SELECT @@completion_type"
    with engine_that_completes(mariadb.url, "CHAIN") as engine, engine.connect() as connection:
        assert sessions.reencrypt(connection, strategy="cas", batch_size=7).reencrypted == 30
        assert [one.rows for one in audit(connection, [column]).columns] == [30]
        assert not connection.in_transaction()
        assert connection.exec_driver_sql(shown).scalar_one() == "CHAIN"


def test_a_transaction_that_a_commit_has_chained_is_ended_and_one_of_the_caller_is_not(
    mariadb: sa.Engine,
) -> None:
    """In one that has begun, no isolation level can be set, which the control shows."""
    sessions = create_sessions(mariadb, 12)
    level = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
    with engine_that_completes(mariadb.url, "CHAIN") as engine, engine.connect() as connection:
        connection.connection.rollback()
        with pytest.raises(sa.exc.OperationalError, match="1568"):
            connection.exec_driver_sql(level)
        connection.rollback()
        with without_chains(connection):
            connection.exec_driver_sql(level)
        connection.execute(sa.delete(sessions.table).where(sessions.table.c.id == 1))
        assert [one.rows for one in audit(connection, [column_of(sessions)]).columns] == [11]
        connection.commit()
    assert len(sessions.stored(mariadb)) == 11


def test_a_connection_that_ends_with_its_commit_is_refused(mariadb: sa.Engine) -> None:
    sessions = create_sessions(mariadb, 3)
    with (
        engine_that_completes(mariadb.url, "RELEASE") as engine,
        engine.connect() as connection,
        pytest.raises(ConfigurationError, match="ends this connection with each COMMIT"),
    ):
        sessions.reencrypt(connection)
    assert sessions.reencrypt(mariadb).reencrypted == 3


# -- the form of a table's definition ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        *(
            f"SET SESSION sql_mode = '{mode}'"
            for mode in ("ANSI", "ANSI_QUOTES,NO_ZERO_DATE", "ORACLE", "MSSQL")
        ),
        "SET SESSION sql_quote_show_create = 0",
    ],
)
@pytest.mark.parametrize("strategy", ["auto", "cas"])
def test_a_definition_in_other_quotes_is_read(mariadb: sa.Engine, statement: str, strategy: str) -> None:
    sessions = create_sessions(mariadb, 12)
    store_in_the_clear(mariadb, 1)
    column = column_of(sessions)
    with engine_that_sets(mariadb.url, statement) as engine:
        settings = "SELECT @@sql_mode, @@sql_quote_show_create"
        with engine.connect() as connection:
            before = connection.exec_driver_sql(settings).one()
            # The control: SQLAlchemy does not read it.
            with pytest.warns(sa.exc.SAWarning, match="Unknown schema content"):
                assert "token" not in {one["name"] for one in sa.inspect(connection).get_columns("sessions")}
        assert preflight(engine, column) == []
        assert sessions.reencrypt(engine, strategy=strategy).reencrypted == 12
        assert [one.rows for one in audit(engine, [column]).columns] == [12]
        assert [one.table for one in find_plaintext_tokens(engine)] == ["plain"]
        with engine.connect() as connection:
            assert connection.exec_driver_sql(settings).one() == before
    assert sessions.decrypted(mariadb) == sessions.tokens


# -- settings that refuse statements -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "strategy", "cure"),
    [
        ("SET SESSION sql_safe_updates = 1", "auto", "set it to 0"),
        ("SET SESSION max_join_size = 1", "auto", "set sql_big_selects to 1"),
        ("SET SESSION max_join_size = 1", "cas", "set sql_big_selects to 1"),
    ],
)
def test_a_statement_that_a_setting_refuses_is_explained(
    mariadb: sa.Engine, statement: str, strategy: str, cure: str
) -> None:
    sessions = create_sessions(mariadb, 12)
    before = sessions.stored(mariadb)
    with engine_that_sets(mariadb.url, statement) as engine, pytest.raises(ReencryptionError, match=cure):
        sessions.reencrypt(engine, strategy=strategy)
    assert sessions.stored(mariadb) == before


@every_server
def test_the_application_s_isolation_level_is_in_its_pool_after_a_run(engine: sa.Engine) -> None:
    """SQLAlchemy sets a level that was changed back to the engine's own, which the control shows."""
    sessions = create_sessions(engine, 12)
    set_to, shown = {
        "postgresql": ("SET default_transaction_isolation = 'serializable'", "SHOW transaction_isolation"),
        "mariadb": ("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SELECT @@tx_isolation"),
    }[engine.dialect.name]
    with engine_that_sets(engine.url, set_to) as app:

        def look() -> object:
            with app.connect() as connection:
                return connection.exec_driver_sql(shown).scalar()

        before = look()
        for strategy in ("auto", "cas"):
            sessions.reencrypt(app, strategy=strategy)
            with app.connect() as connection:
                sessions.reencrypt(connection, strategy=strategy)
                assert connection.exec_driver_sql(shown).scalar() == before
            assert look() == before
            audit(app, table_of(column_type(**sessions.options), name=sessions.table.name).c.token)
            assert look() == before
        with app.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
        assert look() != before
