"""Indexes on envelope headers: made, dropped, and used, as the plans of three databases say."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from jwt_column import (
    JWT,
    ConfigurationError,
    EncryptedJWT,
    ExpiryIndex,
    FingerprintIndex,
    KeyRing,
    StaleIndex,
    generate_key,
    set_default_keyring,
)
from jwt_column.column.header_sql import generated_columns
from jwt_column.database.indexes import existing_indexes
from tests.support.models import table_of
from tests.support.tokens import compact, signed_token

if TYPE_CHECKING:
    from jwt_column.format.envelope import Storage

pytestmark = pytest.mark.each_server

OLD_KEY, NEW_KEY = generate_key(), generate_key()
OLD, BOTH = KeyRing([OLD_KEY]), KeyRing([NEW_KEY, OLD_KEY])
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
STORAGES: tuple[Storage, ...] = ("binary", "text")
ROWS = 2000


@pytest.fixture(autouse=True)
def _default_ring() -> None:
    set_default_keyring(BOTH)


def token(number: int) -> JWT:
    expiry = int((NOW + timedelta(minutes=number)).timestamp())
    return JWT(compact({"alg": "HS256"}, {"jti": f"j{number}", "exp": expiry}, b"signature"))


def model(storage: Storage = "binary", *, indexed: bool = True, **options: Any) -> sa.Table:
    """A table with each index; without is the control."""
    options = {"fingerprints": ["token", "jti"], "expose_expiry": True, **options}
    indexes = (
        FingerprintIndex("ix_token", "token"),
        FingerprintIndex("ix_jti", "token", "jti", unique=True),
        ExpiryIndex("ix_expiry", "token"),
        StaleIndex("ix_stale", "token"),
    )
    return table_of(EncryptedJWT(storage=storage, **options), *(indexes if indexed else ()))


def fill(connection: sa.Connection, table: sa.Table) -> None:
    """Enough rows for a planner to prefer an index; the last ten are stale."""
    table.create(connection)
    connection.execute(table.insert(), [{"id": n, "token": token(n)} for n in range(ROWS - 10)])
    set_default_keyring(OLD)
    connection.execute(table.insert(), [{"id": n, "token": token(n)} for n in range(ROWS - 10, ROWS)])
    set_default_keyring(BOTH)
    analyze = {"mysql": "ANALYZE TABLE sessions", "mariadb": "ANALYZE TABLE sessions"}
    connection.exec_driver_sql(analyze.get(connection.dialect.name, "ANALYZE")).close()


def plan(connection: sa.Connection, statement: Any) -> str:
    """Return what the database says it does for a statement, with its real parameters."""
    compiled = statement.compile(dialect=connection.dialect, compile_kwargs={"render_postcompile": True})
    explain = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
    processors = compiled._bind_processors
    values = {
        name: processors[name](value) if name in processors else value
        for name, value in compiled.params.items()
    }
    given: Any = tuple(values[name] for name in compiled.positiontup) if compiled.positional else values
    return "\n".join(str(tuple(row)) for row in connection.exec_driver_sql(explain + str(compiled), given))


def statements(table: Any) -> dict[str, Any]:
    column: Any = table.c.token
    return {
        "ix_token": sa.select(table.c.id).where(column == token(5)),
        "ix_jti": sa.select(table.c.id).where(column.claim("jti").in_(["j5", "j7"])),
        "ix_expiry": sa.select(table.c.id).where(column.expires_at < NOW + timedelta(minutes=3)),
        "ix_stale": sa.select(table.c.id).where(column.is_stale),
    }


EXPECTED = {
    "ix_token": [5],
    "ix_jti": [5, 7],
    "ix_expiry": [0, 1, 2],
    "ix_stale": list(range(ROWS - 10, ROWS)),
}


@pytest.mark.parametrize("storage", STORAGES)
def test_the_planner_uses_each_index(engine: sa.Engine, storage: Storage) -> None:
    table = model(storage)
    with engine.begin() as connection:
        fill(connection, table)
        for source in (table, table.alias("aliased")):
            for name, statement in statements(source).items():
                assert name in plan(connection, statement), plan(connection, statement)
                assert sorted(connection.scalars(statement)) == EXPECTED[name]
        removal = table.delete().where(table.c.token == token(5))
        assert "ix_token" in plan(connection, removal)
        assert connection.execute(removal).rowcount == 1


@pytest.mark.parametrize("storage", STORAGES)
def test_without_the_indexes_the_same_statements_read_every_row(engine: sa.Engine, storage: Storage) -> None:
    """The control: same rows, same answers, no index in the plan."""
    table = model(storage, indexed=False)
    with engine.begin() as connection:
        fill(connection, table)
        for name, statement in statements(table).items():
            assert "ix_" not in plan(connection, statement)
            assert re.search("SCAN|Seq Scan|ALL|index", plan(connection, statement))
            assert sorted(connection.scalars(statement)) == EXPECTED[name]


def test_expiry_is_sorted_by_its_index(engine: sa.Engine) -> None:
    table = model()
    with engine.begin() as connection:
        fill(connection, table)
        expires_at = table.c.token.expires_at
        first = sa.select(table.c.id).where(expires_at.is_not(None)).order_by(expires_at).limit(3)
        assert "ix_expiry" in plan(connection, first)
        assert connection.scalars(first).all() == [0, 1, 2]


def test_statements_that_postgresql_prepares_use_the_index(postgresql_database: Any) -> None:
    """psycopg prepares a statement that is repeated; the plan must not depend on the values then."""
    engine = sa.create_engine(postgresql_database.url("psycopg"), connect_args={"prepare_threshold": 0})
    table = model()
    with engine.begin() as connection:
        fill(connection, table)
        connection.exec_driver_sql("SET plan_cache_mode = force_generic_plan")
        for number in range(8):
            assert connection.scalars(sa.select(table.c.id).where(table.c.token == token(number))).all() == [
                number
            ]
        prepared = connection.exec_driver_sql("SELECT name, statement FROM pg_prepared_statements").all()
        (name,) = {name for name, statement in prepared if "substr(sessions.token, 13, 16)" in statement}
        shown = connection.exec_driver_sql(f"EXPLAIN EXECUTE \"{name}\" ('\\x01', '\\x02')").all()
        assert "ix_token" in str(shown)
    engine.dispose()


def test_a_unique_index_refuses_the_same_and_lets_what_is_missing_be(engine: sa.Engine) -> None:
    table = model()
    with engine.begin() as connection:
        table.create(connection)
        bare = signed_token(sub="without jti")
        rows: list[dict[str, Any]] = [{"id": 1, "token": token(1)}, *({"id": n, "token": None} for n in (2, 3)),
                *({"id": n, "token": bare} for n in (4, 5))]  # fmt: skip
        connection.execute(table.insert(), rows)
        assert sorted(
            connection.scalars(sa.select(table.c.id).where(table.c.token.claim("jti").is_(None)))
        ) == [4, 5]
    with engine.connect() as connection, pytest.raises(sa.exc.IntegrityError):
        connection.execute(table.insert(), {"id": 6, "token": token(1)})


class Base(DeclarativeBase):
    pass


class Session(Base):
    __tablename__ = "mapped_sessions"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[JWT | None] = mapped_column(EncryptedJWT(fingerprints=["token", "jti"], expose_expiry=True))
    __table_args__ = (FingerprintIndex("ix_mapped_token", "token"), StaleIndex("ix_mapped_stale", token))


FingerprintIndex("ix_mapped_jti", Session.token, "jti")
ExpiryIndex("ix_mapped_expiry", Session.__table__.c.token)


def test_indexes_are_declared_with_names_attributes_and_columns(engine: sa.Engine) -> None:
    wanted = {"ix_mapped_token", "ix_mapped_stale", "ix_mapped_jti", "ix_mapped_expiry"}
    table: Any = Session.__table__
    assert {index.name for index in table.indexes} == wanted
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        assert wanted <= set(existing_indexes(connection, table))
        connection.execute(table.insert(), [{"id": n, "token": token(n)} for n in range(1, 500)])
        other = aliased(Session)
        found = sa.select(other.id).where(other.token == token(3), other.token.claim("jti") == "j3")
        assert connection.scalars(found).all() == [3]
        subquery = sa.select(Session).subquery()
        assert connection.scalars(sa.select(subquery.c.id).where(subquery.c.token == token(3))).all() == [3]
    Base.metadata.drop_all(engine)
    assert not sa.inspect(engine).has_table("mapped_sessions")


def test_an_index_is_created_and_dropped_by_itself_and_in_a_copy(engine: sa.Engine) -> None:
    """``to_metadata`` copies indexes as plain ones; they mean the same."""
    copied = model("text").to_metadata(sa.MetaData())
    copied.create(engine)
    with engine.begin() as connection:
        assert "ix_token" in existing_indexes(connection, copied)
        index = next(index for index in copied.indexes if index.name == "ix_token")
        index.drop(connection)
        assert "ix_token" not in existing_indexes(connection, copied)
        assert "ix_token_value" not in {
            found["name"] for found in sa.inspect(connection).get_columns("sessions")
        }
        index.create(connection)
        assert "ix_token" in existing_indexes(connection, copied)


def test_generated_columns_are_numbered_from_the_second_on_and_have_names_that_mariadb_takes() -> None:
    endings = ["_value", "_value_2", "_value_3", "_value_4", "_value_5", "_value_6", "_value_7"]
    assert generated_columns("ix") == [f"ix{ending}" for ending in endings]
    assert generated_columns("i" * 64) == [f"{'i' * (64 - len(ending))}{ending}" for ending in endings]


def test_other_indexes_are_what_they_were(engine: sa.Engine) -> None:
    table = sa.Table("t", sa.MetaData(), sa.Column("id", sa.Integer), sa.Column("name", sa.String(20)))
    index = sa.Index("ix_name", table.c.name)
    table.create(engine)
    assert [found["name"] for found in sa.inspect(engine).get_indexes("t")] == ["ix_name"]
    index.drop(engine)
    assert sa.inspect(engine).get_indexes("t") == []


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: FingerprintIndex("ix", model(indexed=False).c.token, "sub"),
            r"fingerprints=\['token', 'jti', 'sub'\]",
        ),
        (lambda: ExpiryIndex("ix", model(indexed=False, expose_expiry=False).c.token), "expose_expiry=True"),
        (lambda: StaleIndex("ix", model(indexed=False).c.id), "EncryptedJWT"),
        (lambda: StaleIndex("", "token"), "name"),
        (lambda: StaleIndex("ix", sa.func.length("x")), "mapped attribute"),
        (lambda: StaleIndex("ix", 5), "mapped attribute"),
    ],
)
def test_an_index_that_cannot_be_is_refused(make: Any, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        make()


# -- Alembic ---------------------------------------------------------------------------------------------------------


def context_of(connection: sa.Connection, metadata: sa.MetaData, **options: Any) -> MigrationContext:
    return MigrationContext.configure(connection, opts={"target_metadata": metadata, **options})


def difference(engine: sa.Engine, metadata: sa.MetaData, **options: Any) -> list[Any]:
    with engine.connect() as connection:
        return list(compare_metadata(context_of(connection, metadata, **options), metadata))


def revision(engine: sa.Engine, metadata: sa.MetaData) -> tuple[str, str]:
    with engine.connect() as connection:
        script = produce_migrations(context_of(connection, metadata), metadata)
    assert script.upgrade_ops is not None
    assert script.downgrade_ops is not None
    return render_python_code(script.upgrade_ops), render_python_code(script.downgrade_ops)


def run(engine: sa.Engine, script: str) -> None:
    """Run the lines that a revision would have."""
    with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)) as op:
        exec(f"if True:\n{script}", {"op": op, "sa": sa, "EncryptedJWT": EncryptedJWT})


@pytest.mark.parametrize("storage", STORAGES)
def test_autogenerate_sees_no_difference_where_there_is_none(engine: sa.Engine, storage: Storage) -> None:
    table = model(storage)
    table.create(engine)
    assert difference(engine, table.metadata) == []


def test_autogenerate_writes_a_revision_that_makes_the_indexes_and_one_that_drops_them(
    engine: sa.Engine,
) -> None:
    table = model()
    model(indexed=False).create(engine)
    names = sorted(str(index.name) for index in table.indexes)
    assert difference(engine, table.metadata) == [
        ("create_jwt_index", None, "sessions", name) for name in names
    ]
    upgrade, downgrade = revision(engine, table.metadata)
    type_ = "type_=EncryptedJWT(context='sessions.token', fingerprints=['token', 'jti'], expose_expiry=True)"
    assert f"op.create_jwt_index('ix_token', 'sessions', 'token', {type_})" in upgrade
    assert (
        f"op.create_jwt_index('ix_jti', 'sessions', 'token', fingerprint='jti', unique=True, {type_})"
        in upgrade
    )
    assert f"op.create_jwt_index('ix_expiry', 'sessions', 'token', kind='expiry', {type_})" in upgrade
    assert f"op.drop_jwt_index('ix_stale', 'sessions', 'token', kind='stale', {type_})" in downgrade
    run(engine, upgrade)
    assert difference(engine, table.metadata) == []
    run(engine, downgrade)
    assert len(difference(engine, table.metadata)) == 4


def test_a_new_table_comes_with_its_indexes(engine: sa.Engine) -> None:
    table = model("text")
    upgrade, downgrade = revision(engine, table.metadata)
    run(engine, upgrade)
    assert difference(engine, table.metadata) == []
    run(engine, downgrade)
    assert not sa.inspect(engine).has_table("sessions")


def test_an_index_that_looks_at_the_wrong_place_or_is_not_unique_is_made_anew(engine: sa.Engine) -> None:
    """Another fingerprint moved it: the index would find nothing, and nobody would be told."""
    model().create(engine)
    moved = model(fingerprints=["sub", "token", "jti"])
    changed = [entry[::3] for entry in difference(engine, moved.metadata)]
    assert changed == [
        (action, name) for name in ("ix_jti", "ix_token") for action in ("drop_jwt_index", "create_jwt_index")
    ]
    run(engine, revision(engine, moved.metadata)[0])
    assert difference(engine, moved.metadata) == []
    plain = model(indexed=False)
    for name in ("token", "jti"):
        FingerprintIndex(f"ix_{name}", plain.c.token, name)
    ExpiryIndex("ix_expiry", plain.c.token)
    StaleIndex("ix_stale", plain.c.token)
    with engine.begin() as connection:
        moved.drop(connection)
        model().create(connection)
    assert [entry[::3] for entry in difference(engine, plain.metadata)] == [
        ("drop_jwt_index", "ix_jti"),
        ("create_jwt_index", "ix_jti"),
    ]


def test_other_differences_are_still_seen(engine: sa.Engine) -> None:
    table = model()
    table.create(engine)
    sa.Index("ix_plain", table.c.id)
    assert [entry[0] for entry in difference(engine, table.metadata)] == ["add_index"]


def test_operations_write_sql_scripts_and_check_what_they_are_given() -> None:
    written = io.StringIO()
    options = {"as_sql": True, "output_buffer": written}
    with Operations.context(MigrationContext.configure(dialect_name="postgresql", opts=options)) as context:
        op: Any = context
        op.create_jwt_index(
            "ix", "sessions", "token", type_=EncryptedJWT(fingerprints=["token"]), schema="auth"
        )
        op.drop_jwt_index("ix", "sessions", "token", schema="auth")
        with pytest.raises(ConfigurationError, match="kind is 'fingerprint', 'expiry' or 'stale'"):
            op.create_jwt_index("ix", "sessions", "token", kind="other")
        with pytest.raises(ConfigurationError, match="declare"):
            op.create_jwt_index("ix", "sessions", "token")
    assert "CREATE INDEX ix ON auth.sessions (substr(token, 7, 16))" in written.getvalue()
    assert "DROP INDEX auth.ix" in written.getvalue()
