"""Alembic as teams use it: several databases, stamps, scripts, savepoints, and SQLite's batch mode."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.migration import MigrationContext
from alembic.operations import Operations

from jwt_column import FingerprintIndex, ReencryptionError
from jwt_column.errors import ConfigurationError
from tests.operations.test_operations import CREATE, NEXT, REENCRYPT, REVISION, Project, inserted
from tests.support.models import table_of
from tests.support.workload import NEW, OLD, after, column_type, engine_on, token

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.databases import Database

pytestmark = pytest.mark.usefixtures("host_ring")


# -- several databases ---------------------------------------------------------------------------------------------

# The env.py of "alembic init -t multidb", without offline mode, two-phase commits and comments.
MULTIDB = """
    import sqlalchemy as sa
    from alembic import context
    import migrations_helpers

    config = context.config
    engines = {name: {"engine": sa.create_engine(url, poolclass=sa.pool.NullPool)}
               for name, url in config.attributes["urls"].items()}
    for name, rec in engines.items():
        rec["connection"] = conn = rec["engine"].connect()
        rec["transaction"] = conn.begin()
    try:
        for name, rec in engines.items():
            context.configure(
                connection=rec["connection"],
                upgrade_token="%s_upgrades" % name,
                downgrade_token="%s_downgrades" % name,
            )
            context.run_migrations(engine_name=name)
        for rec in engines.values():
            rec["transaction"].commit()
    except:
        for rec in engines.values():
            rec["transaction"].rollback()
        raise
    finally:
        for rec in engines.values():
            rec["connection"].close()
"""

# As docs/reference/alembic.md has it.
ONE_BY_ONE = """
    import sqlalchemy as sa
    from alembic import context
    import migrations_helpers

    for name, url in context.config.attributes["urls"].items():
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        with engine.connect() as connection:
            context.configure(
                connection=connection,
                upgrade_token="%s_upgrades" % name,
                downgrade_token="%s_downgrades" % name,
                transaction_per_migration=True,
            )
            with context.begin_transaction():
                context.run_migrations(engine_name=name)
"""

# Both env.py files give the name of the database to upgrade() and downgrade().
NAMED_REVISION = REVISION.replace("():", "(engine_name):")


@pytest.mark.parametrize("env", [MULTIDB, ONE_BY_ONE], ids=["template", "one-by-one"])
def test_two_databases(
    tmp_path: Path, sqlite_database: Database, postgresql_database: Database, env: str
) -> None:
    urls = {"first": sqlite_database.url(), "second": postgresql_database.url()}
    project = Project(
        tmp_path / "migrations", urls["first"], CREATE, REENCRYPT, env=env, revision=NAMED_REVISION
    )
    project.config.attributes["urls"] = urls
    project.upgrade("r1")
    with engine_on(urls["first"]) as first, engine_on(urls["second"]) as second:
        tables = {engine: inserted(engine, 20) for engine in (first, second)}
        if env == MULTIDB:
            # The transactions of both databases end together, which batches do not.
            with pytest.raises(ConfigurationError, match=r"connect\(\) instead"):
                project.upgrade()
            assert [sessions.census(engine) for engine, sessions in tables.items()] == [
                {(OLD, "stale"): 20}
            ] * 2
            assert project.version == "r1"
            return
        project.upgrade()
        for engine, sessions in tables.items():
            assert sessions.census(engine) == {(NEW, "current"): 20}
            project.url = engine.url
            assert project.version == "r2"


# -- stamps, scripts, savepoints -----------------------------------------------------------------------------------


def test_a_stamp_does_nothing_and_the_gate_knows(
    tmp_path: Path, database: Database, engine: sa.Engine
) -> None:
    gate = "op.ensure_jwt_column_current('sessions', 'token')"
    project = Project(tmp_path / "migrations", database.url(), CREATE, REENCRYPT, gate)
    project.upgrade("r1")
    sessions = inserted(engine, 20)
    command.stamp(project.config, "r2")
    assert project.version == "r2"
    assert sessions.census(engine) == {(OLD, "stale"): 20}
    with pytest.raises(ReencryptionError, match="20 rows are stale"):
        project.upgrade()
    # As after "jwt-column reencrypt", where a host of its own has the keys.
    sessions.reencrypt(engine)
    project.upgrade()
    assert project.version == "r3"


def test_indexes_are_written_into_scripts(tmp_path: Path, database: Database) -> None:
    create = "op.create_jwt_index('ix_token', 'sessions', 'token', kind='stale')"
    project = Project(tmp_path / "migrations", database.url(), CREATE, create)
    project.upgrade("r1:r2", sql=True)
    script = project.output.getvalue()
    assert "ix_token" in script
    assert "UPDATE alembic_version" in script
    # It is what the database would have been told.
    statements = [one.strip() for one in script.split(";") if "ix_token" in one]
    project.upgrade("r1")
    with engine_on(database.url()) as engine, engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement.replace("%", "%%"))


def test_a_savepoint_is_refused_and_kept(engine: sa.Engine) -> None:
    """To end it would commit what surrounds it."""
    table = table_of(sa.LargeBinary)
    table.create(engine)
    sessions = inserted(engine, 5)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        op: Any = Operations(context)
        with context.begin_transaction(), connection.begin_nested() as savepoint:
            connection.execute(sa.insert(table).values(id=6))
            with pytest.raises(ConfigurationError, match="a transaction or a savepoint already"):
                op.reencrypt_jwt_column("sessions", "token", type_=column_type())
            assert savepoint.is_active
        assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 6
        connection.rollback()
    assert sessions.census(engine) == {(OLD, "stale"): 5}


# -- batch mode of SQLite ------------------------------------------------------------------------------------------

COLUMN = "type_=EncryptedJWT(fingerprints=['jti'], expose_expiry=True)"
INDEXES = (
    f"[op.create_jwt_index('ux_jti', 'sessions', 'token', fingerprint='jti', unique=True, {COLUMN}), "
    f"op.create_jwt_index('ix_expiry', 'sessions', 'token', kind='expiry', {COLUMN}), "
    "op.create_index('ix_note', 'sessions', ['note'])]"
)


def batch(*changes: str) -> str:
    lines = "\n            ".join(changes)
    return f"with op.batch_alter_table('sessions') as batch:\n            {lines}"


def indexes(engine: sa.Engine) -> dict[str, str]:
    statement = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    with engine.connect() as connection:
        return dict(connection.exec_driver_sql(statement).all())


def project_of(tmp_path: Path, engine: sa.Engine, *changes: str) -> Project:
    project = Project(tmp_path / "migrations", engine.url, CREATE, NEXT, INDEXES, *changes)
    project.upgrade("r3")
    assert set(indexes(engine)) == {"ux_jti", "ix_expiry", "ix_note"}
    return project


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
def test_batch_mode_keeps_the_indexes(tmp_path: Path, sqlite: sa.Engine) -> None:
    changes = batch(
        "batch.add_column(sa.Column('more', sa.String(9)))",
        "batch.alter_column('note', nullable=False, server_default='')",
    )
    project = project_of(tmp_path, sqlite, changes)
    before = indexes(sqlite)
    type_ = column_type(fingerprints=["jti"], expose_expiry=True)
    stored = type_.cipher().encrypt(token(1), after())
    insert = sa.text("INSERT INTO sessions (id, token, note) VALUES (:id, :token, '')")
    with sqlite.begin() as connection:
        connection.execute(insert, {"id": 1, "token": stored})
    project.upgrade()
    assert indexes(sqlite) == before
    with pytest.raises(sa.exc.IntegrityError), sqlite.begin() as connection:
        connection.execute(insert, {"id": 2, "token": type_.cipher().encrypt(token(1), after())})


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
def test_an_index_of_a_column_that_goes_is_named(
    tmp_path: Path, sqlite: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    project = project_of(tmp_path, sqlite, batch("batch.alter_column('token', new_column_name='jwt')"))
    with caplog.at_level(logging.WARNING, "migrations_helpers"):
        project.upgrade()
    assert set(indexes(sqlite)) == {"ix_note"}
    messages = " ".join(record.getMessage() for record in caplog.records)
    assert "the index ux_jti was not created again (no such column: token)" in messages
    assert "the index ix_expiry was not created again" in messages


def test_a_table_that_is_dropped_takes_its_indexes_along(tmp_path: Path, sqlite: sa.Engine) -> None:
    project = project_of(tmp_path, sqlite, "[op.drop_table('sessions'), " + CREATE + "]")
    project.upgrade()
    assert indexes(sqlite) == {}


def test_an_index_that_alembic_knows_is_created_once(sqlite: sa.Engine) -> None:
    table = table_of(column_type(fingerprints=["jti"]))
    FingerprintIndex("ux_jti", table.c.token, "jti", unique=True)
    table.create(sqlite)
    before = indexes(sqlite)
    with sqlite.connect() as connection, connection.begin():
        op = Operations(MigrationContext.configure(connection))
        with op.batch_alter_table("sessions", copy_from=table, recreate="always") as changes:
            changes.add_column(sa.Column("more", sa.String(9)))
    assert set(indexes(sqlite)) == set(before) == {"ux_jti"}


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
def test_an_attached_database_keeps_its_indexes(sqlite: sa.Engine, tmp_path: Path) -> None:
    table = table_of(column_type(fingerprints=["jti"]), schema="tenant")
    FingerprintIndex("ux_jti", table.c.token, "jti", unique=True)
    with sqlite.connect() as connection:
        connection.exec_driver_sql(f"ATTACH '{tmp_path / 'tenant'}' AS tenant")
        connection.commit()
        table.create(connection)
        op = Operations(MigrationContext.configure(connection))
        with op.batch_alter_table("sessions", schema="tenant", recreate="always") as changes:
            changes.add_column(sa.Column("more", sa.String(9)))
        found = connection.exec_driver_sql("SELECT name FROM tenant.sqlite_master WHERE type = 'index'")
        assert found.scalars().all() == ["ux_jti"]
        connection.commit()


def test_a_table_is_dropped_on_any_database(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE others (id INTEGER)")
        Operations(MigrationContext.configure(connection)).drop_table("others")
    assert not sa.inspect(engine).has_table("others")
