"""Purges: which rows go, which the database keeps, and how the caller learns of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from jwt_column import (
    JWT,
    ConfigurationError,
    EncryptedJWT,
    KeyRing,
    audit,
    purge_expired,
    set_default_keyring,
)
from jwt_column.purge import PurgedRows
from tests.support.tokens import signed_token
from tests.support.workload import engine_on, every_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
def _default_ring() -> Iterator[None]:
    set_default_keyring(RING)
    yield
    set_default_keyring(None)


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


@pytest.mark.parametrize("where", ["tenant = 1", True, False, 5, lambda: True, {"tenant": 1}])
def test_what_is_no_condition_is_refused(where: Any) -> None:
    with pytest.raises(ConfigurationError, match="where is a SQL condition"):
        purge_expired(sa.create_engine("sqlite://"), Login.token, where=where)


def test_a_condition_on_another_table_is_a_subquery(database_of: sa.Engine) -> None:
    with pytest.raises(ConfigurationError, match="where names audited"):
        purge_expired(database_of, Login.token, before=NOW, where=Audited.login_id == Login.id)
    of_others = Login.id.not_in(sa.select(Audited.login_id))
    done = purge_expired(database_of, Login.token, before=NOW, where=of_others)
    assert (done, done.refused) == (1_188, [])


def test_an_unknown_action_is_refused() -> None:
    action: Any = "drop"
    with pytest.raises(ConfigurationError, match="'delete' or 'null'"):
        purge_expired(sa.create_engine("sqlite://"), Login.token, action=action)


@pytest.mark.parametrize("storage", ["binary", "text"])
def test_opaque_tokens_are_purged_by_the_expiry_that_they_were_given(engine: sa.Engine, storage: Any) -> None:
    """After a rotation, too; one without an expiry stays."""
    id_ = sa.Column("id", sa.Integer, primary_key=True, autoincrement=False)
    type_ = EncryptedJWT(RING, storage=storage, expose_expiry=True, allow_opaque=True)
    table = sa.Table("opaque", sa.MetaData(), id_, sa.Column("token", type_))
    table.create(engine)
    moments = {1: NOW - timedelta(seconds=1), 2: NOW, 3: NOW + timedelta(seconds=1)}
    with engine.begin() as connection:
        rows: list[dict[str, Any]] = [
            {"id": n, "token": JWT.opaque(f"refresh-{n}", expires_at=when)} for n, when in moments.items()
        ]
        connection.execute(table.insert(), [*rows, {"id": 4, "token": JWT.opaque("refresh-4")}])
        assert purge_expired(connection, table.c.token, before=NOW) == 2
        kept = connection.execute(sa.select(table).order_by(table.c.id)).all()
        assert [(row.id, row.token) for row in kept] == [(3, "refresh-3"), (4, "refresh-4")]
        assert kept[0].token.expires_at == moments[3]


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


def test_a_key_whose_type_the_driver_does_not_know_is_explained(postgresql_database: Database) -> None:
    with engine_on(postgresql_database.url("psycopg")) as engine, engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE places (id pg_lsn PRIMARY KEY, token bytea)")
        type_ = EncryptedJWT(RING, expose_expiry=True)
        table = sa.Table(
            "places", sa.MetaData(), sa.Column("id", sa.Text, primary_key=True), sa.Column("token", type_)
        )
        insert = sa.insert(table).values(id=sa.text("CAST('0/1' AS pg_lsn)"), token=EXPIRED)
        connection.execute(insert)
        with pytest.raises(ConfigurationError, match=r"UndefinedFunction 42883: .*key's columns"):
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
