"""Purges: which rows go, which the database keeps, and how the caller learns of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from jwt_column import (
    JWT,
    ConfigurationError,
    EncryptedJWT,
    KeyRing,
    ReencryptionError,
    audit,
    purge_expired,
    set_default_keyring,
)
from jwt_column.purge import PurgedRows
from tests.engine.test_database_errors import killed_at
from tests.engine.test_time_limits import limited
from tests.support.models import store, table_of
from tests.support.tokens import signed_token
from tests.support.workload import engine_on, every_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.databases import Database

RING = KeyRing.generate()
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
EXPIRED = signed_token(exp=int((NOW - timedelta(hours=1)).timestamp()))
VALID = signed_token(exp=int((NOW + timedelta(days=36_500)).timestamp()))


class Base(DeclarativeBase):
    pass


class Login(Base):
    __tablename__ = "logins"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[int] = mapped_column(default=0)
    token: Mapped[JWT | None] = mapped_column(EncryptedJWT(expose_expiry=True))
    text: Mapped[JWT | None] = mapped_column(
        EncryptedJWT(expose_expiry=True, storage="text", allow_opaque=True)
    )
    must: Mapped[JWT] = mapped_column(EncryptedJWT(expose_expiry=True))


class Audited(Base):
    """Rows that the law wants to be kept, with the logins that they name."""

    __tablename__ = "audited"
    id: Mapped[int] = mapped_column(primary_key=True)
    login_id: Mapped[int] = mapped_column(sa.ForeignKey("logins.id", ondelete="RESTRICT"))


LOGINS: Any = Login.__table__


@pytest.fixture(autouse=True)
def _default_ring() -> None:
    set_default_keyring(RING)


@pytest.fixture
def database_of(engine: sa.Engine) -> sa.Engine:
    """1,200 expired logins, of which each hundredth is kept by a foreign key, and 10 valid ones."""
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=ON"))
    Base.metadata.create_all(engine)
    expired = [{"id": n, "tenant": n % 3, "token": EXPIRED, "must": EXPIRED} for n in range(1, 1_201)]
    valid = [{"id": n, "tenant": n % 3, "token": VALID, "must": VALID} for n in range(2_001, 2_011)]
    with engine.begin() as connection:
        connection.execute(LOGINS.insert(), expired + valid)
        connection.execute(sa.insert(Audited), [{"login_id": n} for n in range(100, 1_201, 100)])
    return engine


KEPT = list(range(100, 1_201, 100))


def left(connection: Any, *conditions: Any) -> list[int]:
    return list(connection.scalars(sa.select(LOGINS.c.id).where(*conditions).order_by(LOGINS.c.id)))


def test_rows_that_a_foreign_key_keeps_do_not_stop_the_others(
    database_of: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The control is one statement, which deletes nothing."""
    with pytest.raises(sa.exc.IntegrityError), database_of.begin() as connection:
        connection.execute(LOGINS.delete().where(LOGINS.c.token.expires_at <= NOW))
    steps: list[int] = []
    done = purge_expired(database_of, LOGINS.c.token, before=NOW, progress=steps.append)
    assert (done, type(done)) == (1_188, PurgedRows)
    assert steps[-1] == 1_188
    assert [key for key, _ in done.refused] == [(id_,) for id_ in KEPT]
    (reason,) = {reason for _, reason in done.refused}
    assert ("IntegrityError" in reason) or ("Violation" in reason)
    assert done.refused_count == 12
    assert caplog.messages == [f"logins.token: rows that the database refused to let go: 12 ({reason})"]
    with database_of.connect() as connection:
        assert left(connection) == [*KEPT, *range(2_001, 2_011)]
    # A second one finds the same.
    assert purge_expired(database_of, LOGINS.c.token, before=NOW).refused_count == 12


@pytest.mark.parametrize("kind", ["session", "connection", "autocommit"])
def test_a_refused_batch_takes_nothing_else_of_a_transaction_back(database_of: sa.Engine, kind: str) -> None:
    if kind == "session":
        with Session(database_of) as session:
            session.add(Audited(login_id=2_001))
            session.flush()
            kept, gone = session.get_one(Login, 100), session.get_one(Login, 101)
            done = purge_expired(session, Login.token, before=NOW)
            assert (kept in session, gone in session) == (True, False)
            assert session.get_one(Login, 100).token == EXPIRED
            session.commit()
    elif kind == "connection":
        with database_of.begin() as connection:
            connection.execute(sa.insert(Audited), {"login_id": 2_001})
            done = purge_expired(connection, Login.token, before=NOW)
    else:
        with database_of.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.insert(Audited), {"login_id": 2_001})
            done = purge_expired(connection, Login.token, before=NOW)
    assert (done, done.refused_count) == (1_188, 12)
    with database_of.connect() as connection:
        assert left(connection) == [*KEPT, *range(2_001, 2_011)]
        assert connection.scalar(sa.select(sa.func.count()).select_from(Audited)) == 13


def test_a_purge_that_is_rolled_back_has_removed_nothing(database_of: sa.Engine) -> None:
    with Session(database_of) as session:
        assert purge_expired(session, Login.token, before=NOW) == 1_188
        session.rollback()
        assert len(left(session)) == 1_210


def test_the_token_goes_and_the_row_stays(database_of: sa.Engine) -> None:
    """Rows that a foreign key keeps lose their token, too."""
    with Session(database_of) as session:
        first = session.get_one(Login, 1)
        done = purge_expired(session, Login.token, before=NOW, action="null")
        assert (done, done.refused) == (1_200, [])
        assert first.token is None
        session.commit()
    with database_of.connect() as connection:
        assert left(connection, LOGINS.c.token.is_not(None)) == list(range(2_001, 2_011))
        assert len(left(connection)) == 1_210
    assert purge_expired(database_of, LOGINS.c.token, before=NOW, action="null") == 0


def test_a_column_that_is_not_null_is_not_cleared(database_of: sa.Engine) -> None:
    with pytest.raises(ConfigurationError, match=r"logins\.must is NOT NULL, so action='null'"):
        purge_expired(database_of, Login.must, before=NOW, action="null")
    # Nor one that is so in the database only.
    id_ = sa.Column("id", sa.Integer, primary_key=True)
    other = sa.Table("logins", sa.MetaData(), id_, sa.Column("must", EncryptedJWT(RING, expose_expiry=True)))
    with pytest.raises(ConfigurationError, match=r"logins\.must is NOT NULL"):
        purge_expired(database_of, other.c.must, before=NOW, action="null")
    with database_of.connect() as connection:
        assert len(left(connection, LOGINS.c.must.is_not(None))) == 1_210


@pytest.mark.parametrize(
    "where",
    [
        lambda: Login.tenant == 1,
        lambda: LOGINS.c.tenant == 1,
        lambda: sa.text("tenant = 1"),
        lambda: sa.and_(Login.tenant == 1, sa.true()),
    ],
)  # fmt: skip
@pytest.mark.parametrize("column", [Login.token, LOGINS.c.token])
def test_a_condition_limits_a_purge(engine: sa.Engine, where: Callable[[], Any], column: Any) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        rows = [Login(id=n, tenant=n % 3, token=EXPIRED, must=EXPIRED) for n in range(1, 10)]
        session.add_all(rows)
        session.flush()
        assert purge_expired(session, column, before=NOW, where=where()) == 3
        assert left(session) == [2, 3, 5, 6, 8, 9]


@pytest.mark.parametrize(
    "where",
    [
        "tenant = 1", True, False, 5, lambda: True, {"tenant": 1}, [Login.tenant == 1], Login, LOGINS,
        Login.tenant, Login.tenant.label("one"), sa.literal(1), sa.select(Login.id), sa.func.count(Login.id),
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused(where: Any) -> None:
    """MySQL and SQLite would take a number for true, and purge nearly all rows."""
    with pytest.raises(ConfigurationError, match="where is a SQL condition"):
        purge_expired(sa.create_engine("sqlite://"), Login.token, where=where)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (lambda: sa.text("no_such_column = 1"), "the database refused"),
        (lambda: sa.func.count(Login.id) > 1, "the database refused"),
        (lambda: sa.literal_column("tenant %%", sa.Boolean), "the database refused"),
        (lambda: sa.bindparam("nobody", type_=sa.Integer) == 1, "SQLAlchemy refused"),
        (
            lambda: sa.orm.aliased(Login).tenant == 1,
            "where names an alias of logins, and a purge is of logins",
        ),
    ],
)
def test_a_condition_that_the_database_does_not_take_is_no_raw_error(
    database_of: sa.Engine, where: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        purge_expired(database_of, Login.token, before=NOW, where=where())
    with database_of.connect() as connection:
        assert len(left(connection)) == 1_210


@pytest.mark.parametrize(
    "bind",
    [
        None,
        "sqlite://",
        sa.make_url("sqlite://"),
        sessionmaker(),
        sa.create_engine("sqlite://").raw_connection(),
    ],
)
def test_what_is_no_session_is_refused(bind: Any) -> None:
    with pytest.raises(ConfigurationError, match="takes a Session, a Connection or an Engine, not"):
        purge_expired(bind, Login.token)


def test_a_session_without_a_database_is_no_raw_error(engine: sa.Engine) -> None:
    with pytest.raises(ConfigurationError, match=r"SQLAlchemy refused \(UnboundExecutionError\)"):
        purge_expired(Session(), Login.token)
    connection = engine.connect()
    connection.close()
    with pytest.raises(ConfigurationError, match=r"SQLAlchemy refused \(ResourceClosedError\)"):
        purge_expired(connection, Login.token)


def test_a_scoped_session_is_a_session(database_of: sa.Engine) -> None:
    session = scoped_session(sessionmaker(database_of))
    assert purge_expired(session, Login.token, before=NOW, where=Login.id < 50) == 49  # type: ignore[arg-type]
    session.rollback()
    session.remove()
    with database_of.connect() as connection:
        assert len(left(connection)) == 1_210


# Nothing says so: no error, and of an UPDATE not even the row count.
KEEPING = {
    ("postgresql", "delete"): (
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN IF old.id % 400 = 1 THEN RETURN NULL; END IF; RETURN old; END'",
        "CREATE TRIGGER keep BEFORE DELETE ON logins FOR EACH ROW EXECUTE FUNCTION keep()",
    ),
    ("postgresql", "null"): (
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN IF old.id % 400 = 1 THEN new.token := old.token; END IF; RETURN new; END'",
        "CREATE TRIGGER keep BEFORE UPDATE ON logins FOR EACH ROW EXECUTE FUNCTION keep()",
    ),
    ("sqlite", "delete"): (
        "CREATE TRIGGER keep BEFORE DELETE ON logins WHEN old.id % 400 = 1 BEGIN SELECT RAISE(IGNORE); END",
    ),
    ("sqlite", "null"): (
        "CREATE TRIGGER keep AFTER UPDATE OF token ON logins WHEN old.id % 400 = 1 AND new.token IS NULL "
        "BEGIN UPDATE logins SET token = old.token WHERE id = old.id; END",
    ),
    ("mariadb", "null"): (
        "CREATE TRIGGER keep BEFORE UPDATE ON logins FOR EACH ROW "
        "SET new.token = IF(old.id % 400 = 1, old.token, new.token)",
    ),
}


@pytest.mark.each_server
@pytest.mark.parametrize("action", ["delete", "null"])
def test_rows_that_a_trigger_keeps_are_listed(database_of: sa.Engine, action: Any) -> None:
    """A trigger of MariaDB cannot keep a row from a DELETE without an error. The control is the statement itself."""
    name = database_of.dialect.name
    with database_of.begin() as connection:
        connection.execute(sa.delete(Audited))
        for statement in KEEPING.get((name, action), ()):
            connection.execute(sa.text(statement.replace(":", "\\:")))
    kept = [1, 401, 801] if (name, action) in KEEPING else []
    with database_of.connect() as connection:
        naive = LOGINS.delete() if action == "delete" else LOGINS.update().values({LOGINS.c.token: None})
        count = connection.execute(naive.where(LOGINS.c.id == 1)).rowcount
        assert count == (1 if action == "null" or not kept else 0)
        connection.rollback()
    done = purge_expired(database_of, LOGINS.c.token, before=NOW, action=action)
    assert (done, done.refused_count) == (1_200 - len(kept), len(kept))
    assert [key for key, _ in done.refused] == [(id_,) for id_ in kept]
    assert all("the database kept it" in reason for _, reason in done.refused)
    with database_of.connect() as connection:
        assert left(connection, LOGINS.c.token.is_not(None)) == [*kept, *range(2_001, 2_011)]


def test_a_rule_in_place_of_a_delete_is_told(postgresql_database: Database) -> None:
    with engine_on(postgresql_database.url()) as engine:
        Base.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(LOGINS.insert(), {"id": 1, "token": EXPIRED, "must": EXPIRED})
            connection.exec_driver_sql("CREATE RULE keep AS ON DELETE TO logins DO INSTEAD NOTHING")
        done = purge_expired(engine, LOGINS.c.token, before=NOW)
        assert (done, done.refused_count) == (0, 1)


@every_server
@pytest.mark.parametrize("kind", ["engine", "session"])
def test_a_connection_that_is_killed_at_any_moment_ends_in_an_error_of_ours(
    engine: sa.Engine, kind: str
) -> None:
    """The report has what was removed, which a transaction of the caller's takes back."""
    Base.metadata.create_all(engine)
    rows = [{"id": n, "token": EXPIRED, "must": EXPIRED} for n in range(1, 601)]
    moment, failures = 0, list[tuple[ReencryptionError, int]]()
    while True:
        moment += 1
        with engine.begin() as connection:
            connection.execute(LOGINS.delete())
            connection.execute(LOGINS.insert(), rows)
        with killed_at(engine.url, moment) as (killed, sent):
            try:
                if kind == "engine":
                    purge_expired(killed, LOGINS.c.token, before=NOW)
                else:
                    with Session(killed) as session:
                        purge_expired(session, Login.token, before=NOW)
                        session.commit()
            except ReencryptionError as error:
                with engine.connect() as connection:
                    failures.append((error, len(left(connection))))
            if len(sent) < moment:
                break
    assert {failure.reason for failure, _ in failures} == {"database"}
    assert all("the connection was lost" in str(failure) for failure, _ in failures)
    reports = [(failure.report, rows) for failure, rows in failures]
    assert {report for report, _ in reports} == {0, 500}
    assert all(isinstance(report, PurgedRows) for report, _ in reports)
    assert all(rows == (600 - int(report) if kind == "engine" else 600) for report, rows in reports)  # type: ignore[call-overload]


@pytest.mark.each_server
@every_server
@pytest.mark.parametrize("kind", ["engine", "session"])
def test_no_time_out_of_statements_ends_the_search_for_expired_rows(engine: sa.Engine, kind: str) -> None:
    """On a large table without expired rows it takes long. The control is another statement, before and after."""
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(LOGINS.insert(), {"id": 1, "token": VALID, "must": VALID})
    slow, shown = {
        "postgresql": ("pg_sleep(0.4) IS NOT NULL", "SHOW statement_timeout"),
        "mariadb": ("SLEEP(0.4) = 0", "SELECT @@max_statement_time"),
    }[engine.dialect.name]
    searched: list[str] = []
    with limited(engine, 0.2) as short:

        @sa.event.listens_for(short, "before_cursor_execute", retval=True)
        def delay(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
            if "LIMIT" in statement:
                searched.append(statement)
                statement = statement.replace("WHERE ", f"WHERE {slow} AND ", 1)
            return statement, parameters

        with Session(short) as session:
            before = session.execute(sa.text(shown)).scalar()
            # Or an engine's purge outlasts what this transaction may be idle.
            session.commit()
            purge_expired(short if kind == "engine" else session, LOGINS.c.token, before=NOW)
            assert session.execute(sa.text(shown)).scalar() == before
            with pytest.raises(sa.exc.DBAPIError):
                session.execute(sa.select(LOGINS.c.id).where(LOGINS.c.id > 0).limit(1))
    assert len(searched) == 2


def test_a_server_that_is_not_there_is_no_raw_error() -> None:
    engine = sa.create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with pytest.raises(ReencryptionError, match="cannot be reached"):
        purge_expired(engine, Login.token)


def test_a_condition_on_another_table_is_a_subquery(database_of: sa.Engine) -> None:
    with pytest.raises(ConfigurationError, match="where names audited"):
        purge_expired(database_of, Login.token, before=NOW, where=Audited.login_id == Login.id)
    of_others = Login.id.not_in(sa.select(Audited.login_id))
    done = purge_expired(database_of, Login.token, before=NOW, where=of_others)
    assert (done, done.refused) == (1_188, [])


def test_a_progress_that_is_no_function_is_refused_before_a_row_goes(database_of: sa.Engine) -> None:
    progress: Any = "bar"
    with pytest.raises(ConfigurationError, match="progress is a function, not str"):
        purge_expired(database_of, Login.token, before=NOW, progress=progress)
    assert purge_expired(database_of, Login.token, before=NOW) > 0


def test_an_unknown_action_is_refused() -> None:
    action: Any = "drop"
    with pytest.raises(ConfigurationError, match="'delete' or 'null'"):
        purge_expired(sa.create_engine("sqlite://"), Login.token, action=action)


@pytest.mark.parametrize("storage", ["binary", "text"])
def test_opaque_tokens_are_purged_by_the_expiry_that_they_were_given(engine: sa.Engine, storage: Any) -> None:
    """After a rotation, too; one without an expiry stays."""
    table = table_of(EncryptedJWT(RING, storage=storage, expose_expiry=True, allow_opaque=True))
    moments = {1: NOW - timedelta(seconds=1), 2: NOW, 3: NOW + timedelta(seconds=1)}
    tokens = [JWT.opaque(f"refresh-{n}", expires_at=when) for n, when in moments.items()]
    store(engine, table, [*tokens, JWT.opaque("refresh-4")])
    with engine.begin() as connection:
        assert purge_expired(connection, table.c.token, before=NOW) == 2
        kept = connection.execute(sa.select(table).order_by(table.c.id)).all()
        assert [(row.id, row.token) for row in kept] == [(3, "refresh-3"), (4, "refresh-4")]
        assert kept[0].token.expires_at == moments[3]


@pytest.mark.each_server
@every_server
def test_a_table_whose_keys_do_not_equal_themselves_is_refused_and_audited(engine: sa.Engine) -> None:
    """The control is the key that the driver gives: sent back, it finds no row."""
    type_ = sa.REAL() if engine.dialect.name == "postgresql" else mysql.FLOAT()
    key: sa.Column[Any] = sa.Column("key", type_, primary_key=True, autoincrement=False)
    table = sa.Table(
        "singles", sa.MetaData(), key, sa.Column("token", EncryptedJWT(RING, expose_expiry=True))
    )
    table.create(engine)
    with engine.begin() as connection:
        keys = [0.1 + n / 3 for n in range(700)]
        connection.execute(table.insert(), [{"key": one, "token": EXPIRED} for one in keys])
        read = connection.scalars(sa.select(table.c.key).order_by(table.c.key).limit(5)).all()
        found = sa.select(sa.func.count()).where(table.c.key.in_(read))
        assert connection.execute(found).scalar_one() < 5
        with pytest.raises(ConfigurationError, match="singles cannot be paged by key, of type"):
            purge_expired(connection, table.c.token, before=NOW)
        assert audit(connection, table, deep=True).columns[0].examined == 700
        assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 700


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_key_with_infinity_is_refused_and_audited(postgresql_database: Database, driver: str) -> None:
    """Psycopg 2 reads infinity as the end of the year 9999, which finds no row, and no end. The control is a date."""
    table = sa.Table(
        "periods",
        sa.MetaData(),
        sa.Column("until", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("token", EncryptedJWT(RING, expose_expiry=True)),
    )
    with engine_on(postgresql_database.url(driver)) as engine:
        table.create(engine)
        with engine.begin() as connection:
            rows = [{"until": NOW, "id": number, "token": EXPIRED} for number in range(600)]
            connection.execute(table.insert(), rows)
            connection.execute(table.update().where(table.c.id > 5).values(until=sa.text("'infinity'")))
        with pytest.raises(ConfigurationError, match=r"cannot be purged by the key until: .* infinity"):
            purge_expired(engine, table.c.token, before=NOW)
        (column,) = audit(engine, table, deep=True).columns
        assert column.examined == (600 if driver == "psycopg2" else 0)
        assert purge_expired(engine, table.c.token, before=NOW, where=table.c.id <= 5) == 6


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("date", ["0001-01-01", "9999-12-31"]),
        ("timestamp", ["0001-01-01", "9999-12-31 23:59:59.999999"]),
        ("timestamptz", ["0001-01-01 00:00+00", "9999-12-31 23:59:59.999999+00", "0001-01-01 00:00+05"]),
    ],
)
def test_a_key_that_asyncpg_sends_back_as_infinity_is_refused(
    postgresql_database: Database, kind: str, ends: list[str]
) -> None:
    """The row stayed, in silence, or its key could not be read. The control is the same key with psycopg."""
    types: dict[str, Any] = {
        "date": sa.Date(),
        "timestamp": sa.DateTime(),
        "timestamptz": sa.DateTime(timezone=True),
    }
    table = sa.Table(
        "periods",
        sa.MetaData(),
        sa.Column("until", types[kind], primary_key=True),
        sa.Column("token", EncryptedJWT(RING, expose_expiry=True)),
    )

    async def purge() -> PurgedRows:
        engine = create_async_engine(postgresql_database.url("asyncpg"), poolclass=NullPool)
        async with engine.begin() as connection:
            return await connection.run_sync(purge_expired, table.c.token, before=NOW)

    with engine_on(postgresql_database.url("psycopg")) as engine:
        table.create(engine)
        for end in ends:
            with engine.begin() as connection:
                key = sa.text(f"CAST('{end}' AS {kind})".replace(":", "\\:"))
                connection.execute(table.insert().values(until=key, token=EXPIRED).inline())
            with pytest.raises(ConfigurationError, match="cannot be purged by the key until"):
                asyncio.run(purge())
            if not end.endswith("+05"):
                assert purge_expired(engine, table.c.token, before=NOW) == 1
            else:
                with engine.begin() as connection:
                    connection.execute(table.delete())
        with engine.begin() as connection:
            connection.execute(table.insert().values(until=sa.text("CURRENT_DATE"), token=EXPIRED))
        assert asyncio.run(purge()) == 1


def test_a_key_whose_type_the_driver_does_not_know_is_explained(postgresql_database: Database) -> None:
    with engine_on(postgresql_database.url("psycopg")) as engine, engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE places (id pg_lsn PRIMARY KEY, token bytea)")
        type_ = EncryptedJWT(RING, expose_expiry=True)
        table = sa.Table(
            "places", sa.MetaData(), sa.Column("id", sa.Text, primary_key=True), sa.Column("token", type_)
        )
        insert = sa.insert(table).values(id=sa.text("CAST('0/1' AS pg_lsn)"), token=EXPIRED)
        connection.execute(insert)
        with pytest.raises(ConfigurationError, match=r"UndefinedFunction 42883: .*columns have the types"):
            purge_expired(connection, table.c.token, before=NOW)


def test_a_double_is_no_such_key(engine: sa.Engine) -> None:
    key: sa.Column[Any] = sa.Column("key", sa.Double(), primary_key=True, autoincrement=False)
    table = sa.Table(
        "doubles", sa.MetaData(), key, sa.Column("token", EncryptedJWT(RING, expose_expiry=True))
    )
    table.create(engine)
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"key": 0.1 + n / 3, "token": EXPIRED} for n in range(700)])
        # As a command reads it, without the model.
        found = sa.Table("doubles", sa.MetaData(), autoload_with=connection)
        columns = [
            sa.Column("key", found.c.key.type, primary_key=True),
            sa.Column("token", table.c.token.type),
        ]
        reflected = sa.Table("doubles", sa.MetaData(), *columns)
        assert purge_expired(connection, reflected.c.token, before=NOW) == 700


@pytest.mark.each_server
def test_a_database_that_is_read_only_is_named(database_of: sa.Engine) -> None:
    """As a replica is. The control is a row that can be deleted elsewhere."""
    read_only = {
        "postgresql": ("SET default_transaction_read_only = on", "transactions are read-only"),
        "mysql": ("SET SESSION TRANSACTION READ ONLY", "transactions are read-only"),
        "mariadb": ("SET SESSION TRANSACTION READ ONLY", "transactions are read-only"),
        "sqlite": ("PRAGMA query_only = on", "query_only"),
    }
    statement, shown = read_only[database_of.dialect.name]
    engine = sa.create_engine(database_of.url, poolclass=sa.StaticPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
        connection.commit()
        with pytest.raises(ConfigurationError, match=rf"logins\.token cannot be purged: .*{shown}"):
            purge_expired(connection, LOGINS.c.token, before=NOW)
    engine.dispose()
    assert purge_expired(database_of, LOGINS.c.token, before=NOW) == 1_188


class Account(Base):
    """Three classes in two tables."""

    __tablename__ = "accounts"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "account"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(20))
    token: Mapped[JWT | None] = mapped_column(EncryptedJWT(expose_expiry=True))


class Robot(Account):
    __mapper_args__ = {"polymorphic_identity": "robot"}  # noqa: RUF012


class Person(Account):
    __tablename__ = "persons"
    __mapper_args__ = {"polymorphic_identity": "person"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(sa.ForeignKey("accounts.id"), primary_key=True)
    own: Mapped[JWT | None] = mapped_column(EncryptedJWT(expose_expiry=True))


@pytest.fixture
def accounts(engine: sa.Engine) -> sa.Engine:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Account(id=1, token=EXPIRED))
        session.add_all([Robot(id=2, token=EXPIRED), Robot(id=3, token=VALID)])
        session.flush()
        session.add_all([Person(id=4, token=EXPIRED, own=VALID), Person(id=5, token=VALID, own=EXPIRED)])
        session.commit()
    return engine


@pytest.mark.parametrize("kind", ["engine", "session"])
@pytest.mark.parametrize("action", ["delete", "null"])
def test_a_class_of_a_table_purges_its_own_rows(accounts: sa.Engine, kind: str, action: Any) -> None:
    """The control is the class of the table, of which all rows are."""
    held = sa.select(Account.id).where(Account.token.is_not(None)).order_by(Account.id)
    with Session(accounts) as session:
        bind = accounts if kind == "engine" else session
        done = purge_expired(bind, Robot.token, before=NOW, action=action)
        assert (done, done.refused) == (1, [])
        assert session.scalars(held).all() == [1, 3, 4, 5]
        # MariaDB would show this transaction the rows of its first look again.
        session.commit()
        with pytest.raises(
            ConfigurationError, match=r"Person.token stands in accounts, .* no Person; .*where="
        ):
            purge_expired(bind, Person.token, before=NOW, action=action)
        assert purge_expired(bind, Person.own, before=NOW, action="null") == 1
        assert purge_expired(bind, Account.token, before=NOW, action="null") == 2
        assert session.scalars(held).all() == [3, 5]


def test_rows_that_a_session_leaves_out_are_not_listed(database_of: sa.Engine) -> None:
    """As an application leaves out the rows of other tenants. The control is a session without the filter."""
    with Session(database_of) as session:

        @sa.event.listens_for(session, "do_orm_execute")
        def limit(state: sa.orm.ORMExecuteState) -> None:
            state.statement = state.statement.options(
                sa.orm.with_loader_criteria(Login, lambda cls: cls.tenant == 1)
            )

        done = purge_expired(session, Login.token, before=NOW, action="null")
        assert (done, done.refused) == (400, [])
        session.commit()
    with Session(database_of) as session:
        assert purge_expired(session, Login.token, before=NOW, action="null") == 800
