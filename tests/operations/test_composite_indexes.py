"""Alembic and indexes on a token and more: made, dropped, compared, kept by batch mode."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from jwt_column import ConfigurationError, EncryptedJWT, FingerprintIndex, KeyRing, set_default_keyring
from jwt_column.database.indexes import existing_indexes
from tests.column.test_composite_indexes import NAMES, table_of
from tests.column.test_indexes import STORAGES, difference, revision, run
from tests.support.tokens import signed_token
from tests.support.workload import every_server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jwt_column.format.envelope import Storage

pytestmark = pytest.mark.each_server

TYPE = "type_=EncryptedJWT(context='sessions.token', fingerprints=['token', 'iss', 'jti'])"
OWN = {"id", "user_id", "token"}


@pytest.fixture(autouse=True)
def _default_ring() -> None:
    set_default_keyring(KeyRing.generate())


def declared(**options: Any) -> sa.Table:
    return table_of(
        FingerprintIndex("ux_user", "user_id", "token", unique=True),
        FingerprintIndex("ux_claims", "token", ("iss", "jti"), unique=True),
        FingerprintIndex("ix_all", "token", ("iss", "jti"), "user_id"),
        **options,
    )


def parts(engine: sa.Engine) -> dict[str, Any]:
    """Return the indexes by name, each with its columns and positions.

    Not with its uniqueness, which the downgrade of `op.drop_index()` forgets that Alembic 1.13.0 writes.
    """
    with engine.connect() as connection:
        found = existing_indexes(connection, table_of())
    return {name: (one.columns, one.positions) for name, one in found.items()}


def columns(engine: sa.Engine) -> set[str]:
    return {found["name"] for found in sa.inspect(engine).get_columns("sessions")}


@pytest.mark.parametrize("storage", STORAGES)
def test_there_is_no_difference_where_there_is_none(engine: sa.Engine, storage: Storage) -> None:
    table = declared(storage=storage)
    table.create(engine)
    assert difference(engine, table.metadata) == []
    copied = table.to_metadata(sa.MetaData())
    assert difference(engine, copied.metadata) == []


def test_nor_with_previous_layouts(engine: sa.Engine) -> None:
    old = {"fingerprints": ["iss", "jti"]}
    table = table_of(fingerprints=["iss", "jti"], expose_expiry=True, previous=[old])
    FingerprintIndex("ux_new", table.c.user_id, table.c.token, ("iss", "jti"), unique=True)
    FingerprintIndex("ux_old", table.c.user_id, table.c.token, ("iss", "jti"), unique=True, layout=old)
    bare = table_of(fingerprints=["iss", "jti"])
    bare.create(engine)
    upgrade, downgrade = revision(engine, table.metadata)
    assert "columns=['user_id', 'token'], unique=True, layout={'fingerprints': ['iss', 'jti']}" in upgrade
    run(engine, upgrade)
    assert difference(engine, table.metadata) == []
    run(engine, downgrade)
    assert difference(engine, bare.metadata) == []
    assert columns(engine) == OWN


def test_a_revision_makes_the_indexes_and_another_drops_them(engine: sa.Engine) -> None:
    table = declared()
    table_of().create(engine)
    upgrade, downgrade = revision(engine, table.metadata)
    for line in (
        f"op.create_jwt_index('ux_user', 'sessions', 'token', columns=['user_id', 'token'], unique=True, {TYPE})",
        f"op.create_jwt_index('ux_claims', 'sessions', 'token', fingerprint=['iss', 'jti'], unique=True, {TYPE})",
        "op.create_jwt_index('ix_all', 'sessions', 'token', fingerprint=['iss', 'jti'], "
        f"columns=['token', 'user_id'], {TYPE})",
    ):
        assert line in upgrade
    run(engine, upgrade)
    assert difference(engine, table.metadata) == []
    run(engine, downgrade)
    assert len(difference(engine, table.metadata)) == 3
    assert columns(engine) == OWN


def test_a_new_table_comes_with_its_indexes(engine: sa.Engine) -> None:
    table = declared()
    upgrade, downgrade = revision(engine, table.metadata)
    run(engine, upgrade)
    assert difference(engine, table.metadata) == []
    run(engine, downgrade)
    assert not sa.inspect(engine).has_table("sessions")


def test_an_index_that_is_declared_no_more_is_dropped(engine: sa.Engine) -> None:
    """On SQLite too, of which SQLAlchemy reflects no index on an expression."""
    table = declared()
    table.create(engine)
    FingerprintIndex("ix_jti", table.c.token, "jti").create(engine)
    before = parts(engine)
    kept = table_of(FingerprintIndex("ux_user", "user_id", "token", unique=True))

    def only_declared(item: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
        return not reflected or other is not None

    assert difference(engine, kept.metadata, include_object=only_declared) == []
    upgrade, downgrade = revision(engine, kept.metadata)
    run(engine, upgrade)
    assert set(parts(engine)) == {"ux_user"}
    assert columns(engine) - {"ux_user_value"} == OWN
    assert difference(engine, kept.metadata) == []
    run(engine, downgrade)
    assert parts(engine) == before


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
def test_other_expressions_of_sqlite_are_not_ours(sqlite_database: Any) -> None:
    engine = sa.create_engine(sqlite_database.url())
    table = table_of()
    table.create(engine)
    old = {"fingerprints": ["jti"]}
    both = table_of(fingerprints=["jti"], expose_expiry=True, previous=[old])
    FingerprintIndex("ux_old", both.c.token, "jti", unique=True, layout=old).create(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE INDEX ix_digits ON sessions (substr(user_id, 1, 2), token)")
    before = parts(engine)
    assert [one[0] for one in difference(engine, table.metadata)] == ["remove_index"]
    upgrade, downgrade = revision(engine, table.metadata)
    assert "op.drop_index('ux_old', table_name='sessions'" in upgrade
    run(engine, upgrade)
    assert set(parts(engine)) == {"ix_digits"}
    run(engine, downgrade)
    assert parts(engine) == before
    engine.dispose()


Parts = dict[str, Any]
CHANGES: dict[str, tuple[Sequence[Any], Sequence[Any], Parts]] = {
    "a column before it": (["token", "jti"], ["user_id", "token", "jti"], {}),
    "no column any more": (["user_id", "token", "jti"], ["token", "jti"], {}),
    "another claim": (["user_id", "token", "jti"], ["user_id", "token", "iss"], {}),
    "one claim more": (["token", "iss"], ["token", ("iss", "jti")], {}),
    "one claim less": (["token", ("iss", "jti")], ["token", "iss"], {}),
    "another order of claims": (["token", ("iss", "jti")], ["token", ("jti", "iss")], {}),
    "another order of columns": (["user_id", "token", "jti"], ["token", "jti", "user_id"], {}),
    "unique": (["user_id", "token"], ["user_id", "token"], {"unique": True}),
}


@pytest.mark.parametrize("case", CHANGES)
def test_an_index_on_other_parts_is_made_anew(engine: sa.Engine, case: str) -> None:
    before, after, options = CHANGES[case]
    table_of(FingerprintIndex("ix", *before)).create(engine)
    table = table_of(FingerprintIndex("ix", *after, **options))
    assert [one[::3] for one in difference(engine, table.metadata)] == [
        ("drop_jwt_index", "ix"),
        ("create_jwt_index", "ix"),
    ]
    run(engine, revision(engine, table.metadata)[0])
    assert difference(engine, table.metadata) == []
    run(engine, "    op.drop_jwt_index('ix', 'sessions', 'token')")
    assert columns(engine) == OWN


def test_a_script_names_the_generated_columns() -> None:
    def script(write: Callable[[Any], None], dialect: str) -> str:
        written = io.StringIO()
        options = {"as_sql": True, "output_buffer": written}
        with Operations.context(MigrationContext.configure(dialect_name=dialect, opts=options)) as op:
            write(op)
        return " ".join(written.getvalue().split())

    type_ = EncryptedJWT(fingerprints=NAMES)
    index: dict[str, Any] = {"fingerprint": ("iss", "jti"), "columns": ("user_id", "token"), "type_": type_}

    def create(op: Any) -> None:
        op.create_jwt_index("ux", "sessions", "token", unique=True, **index)

    assert (
        "CREATE UNIQUE INDEX ux ON sessions (user_id, nullif(substr(token, 23, 16), "
        r"E'\\x00000000000000000000000000000000'::bytea), nullif(substr(token, 39, 16), "
    ) in script(create, "postgresql")
    made = script(create, "mysql")
    assert "ADD COLUMN ux_value VARBINARY(16) GENERATED ALWAYS AS (nullif(substr(token, 23, 16)," in made
    assert "ADD COLUMN ux_value_2 VARBINARY(16) GENERATED ALWAYS AS (nullif(substr(token, 39, 16)," in made
    assert made.endswith("ALTER TABLE sessions ADD UNIQUE INDEX ux (user_id, ux_value, ux_value_2);")
    dropped = script(lambda op: op.drop_jwt_index("ux", "sessions", "token", **index), "mysql")
    assert dropped.endswith("ALTER TABLE sessions DROP COLUMN ux_value, DROP COLUMN ux_value_2;")


@pytest.mark.parametrize("columns", [["user_id"], ["token", "token"], []])
def test_the_columns_of_an_operation_hold_its_own_once(columns: list[str]) -> None:
    with Operations.context(MigrationContext.configure(dialect_name="sqlite", opts={"as_sql": True})) as op:
        create: Any = op.create_jwt_index  # type: ignore[attr-defined]
        with pytest.raises(
            ConfigurationError, match=r"ux: columns lists the columns .* with 'token' among them"
        ):
            create("ux", "sessions", "token", columns=columns)


@every_server
def test_a_build_that_fails_leaves_nothing(engine: sa.Engine) -> None:
    table = table_of()
    table.create(engine)
    twice = {"user_id": 1, "token": signed_token(iss="a", jti="b")}
    with engine.begin() as connection:
        connection.execute(table.insert(), [twice, twice])
    index = FingerprintIndex("ux", table.c.user_id, table.c.token, ("iss", "jti"), unique=True)
    upgrade = revision(engine, table.metadata)[0]
    assert "fingerprint=['iss', 'jti'], columns=['user_id', 'token']" in upgrade
    with pytest.raises(ConfigurationError, match="rows have the same user_id and iss and jti, so"):
        run(engine, upgrade)
    assert columns(engine) == OWN
    with engine.begin() as connection:
        connection.execute(table.delete().where(table.c.id == 1))
    run(engine, upgrade)
    assert difference(engine, table.metadata) == []
    index.drop(engine)
    assert columns(engine) == OWN


def test_mariadb_keeps_an_index_that_a_foreign_key_needs(mariadb_database: Any) -> None:
    engine = sa.create_engine(mariadb_database.url())
    table = table_of(FingerprintIndex("ux", "user_id", "token", unique=True))
    sa.Table("users", table.metadata, sa.Column("id", sa.Integer, primary_key=True))
    table.append_constraint(sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk"))
    table.metadata.create_all(engine)
    drop = "    op.drop_jwt_index('ux', 'sessions', 'token')"
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX IF EXISTS fk ON sessions")
    with pytest.raises(ConfigurationError, match="a foreign key needs this index: create another one"):
        run(engine, drop)
    assert difference(engine, table.metadata) == []
    run(engine, "    op.create_index('ix_user', 'sessions', ['user_id'])\n" + drop)
    assert columns(engine) == OWN
    engine.dispose()


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
def test_batch_mode_keeps_them(sqlite_database: Any) -> None:
    engine = sa.create_engine(sqlite_database.url())
    table = declared()
    table.create(engine)
    with engine.connect() as connection:
        before = existing_indexes(connection, table)
    run(
        engine,
        "    with op.batch_alter_table('sessions') as batch:\n"
        "        batch.add_column(sa.Column('more', sa.String(9)))\n"
        "        batch.alter_column('user_id', nullable=False)",
    )
    assert columns(engine) == OWN | {"more"}
    with engine.connect() as connection:
        assert existing_indexes(connection, table) == before
    engine.dispose()
