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

from jwt_column import ConfigurationError, EncryptedJWT, FingerprintIndex, KeyRing
from jwt_column.database.indexes import existing_indexes
from tests.support.tokens import signed_token
from tests.support.workload import every_server

if TYPE_CHECKING:
    from collections.abc import Iterator

RING = KeyRing.generate()
NAMES: dict[str, Any] = {"fingerprints": ["jti"]}
TYPE = EncryptedJWT(RING, **NAMES)


def table_of() -> sa.Table:
    id_ = sa.Column("id", sa.Integer, primary_key=True)
    return sa.Table("sessions", sa.MetaData(), id_, sa.Column("token", TYPE))


def filled(engine: sa.Engine, *jtis: str) -> sa.Table:
    table = table_of()
    table.create(engine)
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"token": signed_token(jti=jti)} for jti in jtis])
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
            other.execute(table.insert(), {"token": signed_token(jti="other")})
        except sa.exc.OperationalError:
            return True
        other.rollback()
    return False


@pytest.mark.parametrize(("concurrently", "expected"), [(True, False), (False, True)])
def test_a_concurrent_build_holds_up_no_writer(
    postgresql_database: Any, concurrently: bool, expected: bool
) -> None:
    """Beside a transaction that has written and stays open; without the option every other writer queues up."""
    engine = sa.create_engine(postgresql_database.url())
    table = filled(engine, "a", "b")
    with engine.connect() as writer:
        writer.execute(table.insert(), {"token": signed_token(jti="c")})

        def build() -> None:
            with operations(engine) as op:
                create(op, unique=True, postgresql_concurrently=concurrently)

        thread = threading.Thread(target=build)
        thread.start()
        waiting = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%INDEX%ix%'"
        )
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watch:
            while not watch.scalar(waiting):
                assert thread.is_alive()
        assert is_held_up(engine, table) is expected
        writer.commit()
        thread.join()
    assert names(engine, table) == {"ix"}
    with operations(engine) as op:
        op.drop_jwt_index("ix", "sessions", "token", postgresql_concurrently=True)
    assert names(engine, table) == set()
    engine.dispose()


def test_what_a_failed_build_has_left_is_dropped(postgresql_database: Any) -> None:
    engine = sa.create_engine(postgresql_database.url())
    table = filled(engine, "twice", "twice")
    with pytest.raises(sa.exc.IntegrityError), operations(engine) as op:
        create(op, unique=True, postgresql_concurrently=True)
    valid = sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix'::regclass")
    with engine.begin() as connection:
        assert connection.scalar(valid) is False
        connection.execute(table.delete().where(table.c.id == 1))
    with operations(engine) as op:
        create(op, unique=True, postgresql_concurrently=True)
        # Alembic's transaction goes on behind it.
        op.execute("INSERT INTO sessions (id) VALUES (5)")
    with engine.connect() as connection:
        assert connection.scalar(valid) is True
        assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 2
    engine.dispose()


def test_it_runs_in_an_autocommit_block_and_says_what_to_change_in_a_transaction(
    postgresql_database: Any,
) -> None:
    engine = sa.create_engine(postgresql_database.url())
    table = filled(engine, "a")
    with operations(engine) as op, op.get_context().autocommit_block():
        create(op, postgresql_concurrently=True)
    with operations(engine, isolation_level="AUTOCOMMIT") as op:
        op.drop_jwt_index("ix", "sessions", "token", postgresql_concurrently=True)
    with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)) as op:
        with pytest.raises(ConfigurationError, match=r"op\.create_jwt_index: .*engine\.connect\(\)"):
            create(op, postgresql_concurrently=True)
        assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 1
    assert names(engine, table) == set()
    engine.dispose()


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
    assert r"WHERE substr(token, 1, 1) = '\x01'::bytea AND substr(token, 6, 1) = '\x02'::bytea;" in script
    assert "COMMIT; DROP INDEX CONCURRENTLY ix; BEGIN;" in script


@every_server
def test_other_databases_know_no_such_option(engine: sa.Engine) -> None:
    table = filled(engine, "a")
    with operations(engine) as op:
        create(op, postgresql_concurrently=True)
    assert names(engine, table) == {"ix"}


def test_mariadb_builds_the_index_while_the_table_is_written(mariadb_database: Any) -> None:
    """Both steps run under the server's strictest demand, under which the one statement of a new table is refused."""
    engine = sa.create_engine(mariadb_database.url())
    table = filled(engine, "a", "b")
    strict = "SET SESSION alter_algorithm = 'NOCOPY'"
    with engine.connect() as connection:
        connection.exec_driver_sql(strict)
        with Operations.context(MigrationContext.configure(connection)) as op:
            create(op, unique=True)
        with Operations.context(MigrationContext.configure(connection)) as op:
            op.drop_jwt_index("ix", "sessions", "token")  # type: ignore[attr-defined]
    with engine.connect() as connection:
        connection.exec_driver_sql(strict)
        index = FingerprintIndex("ix", table.c.token, "jti", unique=True)
        with pytest.raises(sa.exc.DBAPIError, match="1846"):
            index.create(connection)
    assert names(engine, table) == set()
    engine.dispose()


def test_a_build_that_fails_on_mariadb_leaves_no_column(mariadb_database: Any) -> None:
    engine = sa.create_engine(mariadb_database.url())
    table = filled(engine, "twice", "twice")
    with pytest.raises(sa.exc.IntegrityError), operations(engine) as op:
        create(op, unique=True)
    assert {found["name"] for found in sa.inspect(engine).get_columns("sessions")} == {"id", "token"}
    with engine.begin() as connection:
        connection.execute(table.delete().where(table.c.id == 1))
    with operations(engine) as op:
        create(op, unique=True)
    assert names(engine, table) == {"ix"}
    engine.dispose()
