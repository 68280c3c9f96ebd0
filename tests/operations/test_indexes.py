"""Indexes made while the application writes: concurrently on PostgreSQL, in two steps on MariaDB."""

from __future__ import annotations

import io
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from jwt_column import ConfigurationError, EncryptedJWT, FingerprintIndex, KeyRing, ReencryptionError
from jwt_column.database.indexes import existing_indexes
from tests.support.models import store, table_of
from tests.support.tokens import signed_token
from tests.support.workload import every_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.each_server

RING = KeyRing.generate()
NAMES: dict[str, Any] = {"fingerprints": ["jti"]}
TYPE = EncryptedJWT(RING, **NAMES)


def filled(engine: sa.Engine, *jtis: str) -> sa.Table:
    table = table_of(TYPE)
    store(engine, table, [signed_token(jti=jti) for jti in jtis])
    return table


@contextmanager
def operations(engine: sa.Engine, **execution: Any) -> Iterator[Any]:
    """Yield ``op`` as env.py of Alembic's template makes it."""
    with engine.connect().execution_options(**execution) as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction(), Operations.context(context) as op:
            yield op


def names(engine: sa.Engine, table: sa.Table) -> set[str]:
    with engine.connect() as connection:
        return set(existing_indexes(connection, table))


def create(op: Any, **options: Any) -> None:
    op.create_jwt_index("ix", "sessions", "token", fingerprint="jti", type_=TYPE, **options)


def is_held_up(engine: sa.Engine, table: sa.Table) -> bool:
    """Return True if another writer waits while a build waits for the open transaction of the first one."""
    seconds = 1
    limit = (
        f"SET lock_timeout = '{seconds}s'"
        if engine.dialect.name == "postgresql"
        else f"SET lock_wait_timeout = {seconds}"
    )
    with engine.connect() as other:
        other.exec_driver_sql(limit)
        try:
            other.execute(table.insert(), {"id": 9, "token": signed_token(jti="other")})
        except sa.exc.OperationalError:
            return True
        other.rollback()
    return False


@pytest.mark.parametrize(("concurrently", "expected"), [(True, False), (False, True)])
def test_a_concurrent_build_holds_up_no_writer(
    postgresql: sa.Engine, concurrently: bool, expected: bool
) -> None:
    """Beside a transaction that has written and stays open; without the option every other writer queues up."""
    table = filled(postgresql, "a", "b")
    with postgresql.connect() as writer:
        writer.execute(table.insert(), {"id": 3, "token": signed_token(jti="c")})

        def build() -> None:
            with operations(postgresql) as op:
                create(op, unique=True, postgresql_concurrently=concurrently)

        thread = threading.Thread(target=build)
        thread.start()
        waiting = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%INDEX%ix%'"
        )
        with postgresql.connect().execution_options(isolation_level="AUTOCOMMIT") as watch:
            while not watch.scalar(waiting):
                assert thread.is_alive()
        assert is_held_up(postgresql, table) is expected
        writer.commit()
        thread.join()
    assert names(postgresql, table) == {"ix"}
    with operations(postgresql) as op:
        op.drop_jwt_index("ix", "sessions", "token", postgresql_concurrently=True)
    assert names(postgresql, table) == set()


@pytest.mark.parametrize("name", ["sessions", 'a 100% :odd "name"'])
def test_postgresql_knows_what_is_in_a_new_index(postgresql: sa.Engine, name: str) -> None:
    table = table_of(TYPE, name=name)
    store(postgresql, table, [signed_token(jti=str(number)) for number in range(20)])
    statistics = sa.text("SELECT count(*) FROM pg_stats WHERE tablename = :index")
    with operations(postgresql) as op:
        op.create_jwt_index("ix", name, "token", fingerprint="jti", type_=TYPE)
    # The control: SQLAlchemy makes the index alone.
    FingerprintIndex("ix_of_model", table.c.token, "jti").create(postgresql)
    with postgresql.connect() as connection:
        assert connection.scalar(statistics, {"index": "ix"}) == 1
        assert connection.scalar(statistics, {"index": "ix_of_model"}) == 0


def test_what_a_failed_build_has_left_is_dropped(postgresql: sa.Engine) -> None:
    table = filled(postgresql, "twice", "twice")
    with pytest.raises(ConfigurationError, match="rows have the same jti"), operations(postgresql) as op:
        create(op, unique=True, postgresql_concurrently=True)
    valid = sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix'::regclass")
    with postgresql.begin() as connection:
        assert connection.scalar(valid) is False
        connection.execute(table.delete().where(table.c.id == 1))
    with operations(postgresql) as op:
        create(op, unique=True, postgresql_concurrently=True)
        # Alembic's transaction goes on behind it.
        op.execute("INSERT INTO sessions (id) VALUES (5)")
    with postgresql.connect() as connection:
        assert connection.scalar(valid) is True
        assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 2


def test_it_runs_in_an_autocommit_block_and_says_what_to_change_in_a_transaction(
    postgresql: sa.Engine,
) -> None:
    table = filled(postgresql, "a")
    with operations(postgresql) as op, op.get_context().autocommit_block():
        create(op, postgresql_concurrently=True)
    with operations(postgresql, isolation_level="AUTOCOMMIT") as op:
        op.drop_jwt_index("ix", "sessions", "token", postgresql_concurrently=True)
    with postgresql.begin() as connection, Operations.context(MigrationContext.configure(connection)) as op:
        with pytest.raises(ConfigurationError, match=r"op\.create_jwt_index: .*engine\.connect\(\)"):
            create(op, postgresql_concurrently=True)
        assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 1
    assert names(postgresql, table) == set()


def test_a_script_and_a_revision_have_the_option() -> None:
    written = io.StringIO()
    options = {"as_sql": True, "output_buffer": written}
    with Operations.context(MigrationContext.configure(dialect_name="postgresql", opts=options)) as op:
        previous = EncryptedJWT(expose_expiry=True, **NAMES, previous=[NAMES])
        create(op, postgresql_concurrently=True, schema="auth")
        op.create_jwt_index(  # type: ignore[attr-defined]
            "old", "sessions", "token", fingerprint="jti", unique=True, layout=NAMES, type_=previous
        )
        op.drop_jwt_index("ix", "sessions", "token", postgresql_concurrently=True)  # type: ignore[attr-defined]
    script = " ".join(written.getvalue().split())
    assert "COMMIT; CREATE INDEX CONCURRENTLY ix ON auth.sessions (nullif(substr(token, 7, 16)" in script
    assert r"WHERE substr(token, 1, 1) = E'\\x01'::bytea AND substr(token, 6, 1) = E'\\x02'::bytea;" in script
    assert script.count("ANALYZE (SKIP_LOCKED) auth.sessions; BEGIN;") == 1
    assert "COMMIT; DROP INDEX CONCURRENTLY ix; BEGIN;" in script


@every_server
def test_other_databases_know_no_such_option(engine: sa.Engine) -> None:
    table = filled(engine, "a")
    with operations(engine) as op:
        create(op, postgresql_concurrently=True)
    assert names(engine, table) == {"ix"}


def test_mariadb_builds_the_index_while_the_table_is_written(mariadb: sa.Engine) -> None:
    """Both steps run under the server's strictest demand, under which the one statement of a new table is refused."""
    table = filled(mariadb, "a", "b")
    strict = "SET SESSION alter_algorithm = 'NOCOPY'"
    with mariadb.connect() as connection:
        connection.exec_driver_sql(strict)
        with Operations.context(MigrationContext.configure(connection)) as op:
            create(op, unique=True)
        with Operations.context(MigrationContext.configure(connection)) as op:
            op.drop_jwt_index("ix", "sessions", "token")  # type: ignore[attr-defined]
    with mariadb.connect() as connection:
        connection.exec_driver_sql(strict)
        index = FingerprintIndex("ix", table.c.token, "jti", unique=True)
        with pytest.raises(sa.exc.DBAPIError, match="1846"):
            index.create(connection)
    assert names(mariadb, table) == set()


def test_a_build_that_fails_on_mariadb_leaves_no_column(mariadb: sa.Engine) -> None:
    table = filled(mariadb, "twice", "twice")
    with pytest.raises(ConfigurationError, match="rows have the same jti"), operations(mariadb) as op:
        create(op, unique=True)
    assert {found["name"] for found in sa.inspect(mariadb).get_columns("sessions")} == {"id", "token"}
    with mariadb.begin() as connection:
        connection.execute(table.delete().where(table.c.id == 1))
    with operations(mariadb) as op:
        create(op, unique=True)
    assert names(mariadb, table) == {"ix"}


@pytest.mark.parametrize("concurrently", [False, True])
def test_what_the_database_refuses_is_explained_without_a_value(
    engine: sa.Engine, concurrently: bool
) -> None:
    """The control is the database's own error, which has the fingerprint that two rows share."""
    options = {"postgresql_concurrently": True} if concurrently else {}
    table = filled(engine, "twice", "twice")
    with engine.connect() as connection:
        stored = connection.scalar(sa.select(sa.cast(table.c.token, sa.LargeBinary)).limit(1))
    assert stored is not None
    if engine.dialect.name == "postgresql":
        raw = "CREATE UNIQUE INDEX raw ON sessions (substr(token, 7, 16))"
        with (
            pytest.raises(sa.exc.IntegrityError, match=bytes(stored)[6:22].hex()),
            engine.begin() as connection,
        ):
            connection.exec_driver_sql(raw)
    with (
        pytest.raises(ConfigurationError, match="cannot be unique; delete all but one") as caught,
        operations(engine) as op,
    ):
        create(op, unique=True, **options)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    with operations(engine) as op:
        op.create_jwt_index("here", "sessions", "token", kind="stale")
    drop = {"postgresql_concurrently": True} if concurrently else {}
    calls: list[Callable[[Any], object]] = [
        lambda op: op.create_jwt_index("here", "sessions", "token", kind="stale", **options),
        lambda op: op.create_jwt_index("new", "nowhere", "token", kind="stale", **options),
        lambda op: op.create_jwt_index("new", "sessions", "nothing", kind="stale", **options),
        lambda op: op.drop_jwt_index("gone", "sessions", "token", **drop),
    ]
    for call in calls:
        with (
            pytest.raises(ConfigurationError, match=r"op\..*_jwt_index\('.*: the database refused \(.*: "),
            operations(engine) as op,
        ):
            call(op)
    if engine.dialect.name != "sqlite":
        with pytest.raises(ConfigurationError, match=r"too long.* shorten it"), operations(engine) as op:
            op.create_jwt_index("i" * 70, "sessions", "token", kind="stale", **options)


@every_server
def test_a_lock_of_others_is_explained(engine: sa.Engine) -> None:
    table = filled(engine, "a")
    limit = {"postgresql": "SET lock_timeout = 100", "mariadb": "SET SESSION lock_wait_timeout = 1"}
    with engine.connect() as other, engine.connect() as connection:
        other.execute(table.update().values(id=7))
        connection.exec_driver_sql(limit[engine.dialect.name])
        with (
            pytest.raises(ReencryptionError, match="held their locks for too long") as caught,
            Operations.context(MigrationContext.configure(connection)) as op,
        ):
            create(op)
        assert caught.value.reason == "database"
        other.rollback()
        connection.rollback()
        with Operations.context(MigrationContext.configure(connection)) as op:
            create(op)
        connection.commit()
    assert names(engine, table) == {"ix"}


@every_server
def test_no_time_out_ends_the_building_of_an_index(engine: sa.Engine) -> None:
    """The control is a statement after it, which the time-out ends."""
    table = filled(engine, "a")
    limit, slow = {
        "postgresql": ("SET statement_timeout = 200", "SELECT pg_sleep(1)"),
        "mariadb": (
            "SET SESSION max_statement_time = 0.2",
            "SELECT SLEEP(1) FROM sessions WHERE SLEEP(1) = 0",
        ),
    }[engine.dialect.name]
    with engine.connect() as connection:
        connection.exec_driver_sql(limit)
        connection.commit()

        @sa.event.listens_for(connection, "before_cursor_execute")
        def delay(_c: Any, cursor: Any, statement: str, *_: Any) -> None:
            if "INDEX" in statement:
                cursor.execute(slow.replace("SELECT SLEEP(1) FROM", "SELECT 1 FROM"))
                cursor.fetchall()

        with Operations.context(MigrationContext.configure(connection)) as op:
            create(op)
        connection.commit()
        with pytest.raises(sa.exc.DBAPIError):
            connection.exec_driver_sql(slow).all()
        connection.rollback()
    assert names(engine, table) == {"ix"}
