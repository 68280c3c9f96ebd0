"""The table that the caller's connection means, and no other of its name, in every statement and every shard."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from jwt_column import ReencryptionError
from migrations_helpers import reencrypt
from tests.support.databases import KINDS
from tests.support.workload import NEW, OLD, Sessions, create_sessions, engine_on

if TYPE_CHECKING:
    from collections.abc import Iterator


ROWS = 60


@pytest.fixture
def tenants(postgresql: sa.Engine) -> tuple[Sessions, Sessions]:
    """The same table in two schemas, with stale rows in both: ``public`` and ``tena``."""
    with postgresql.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA tena")
    return create_sessions(postgresql, ROWS), create_sessions(postgresql, ROWS, schema="tena")


def keys(engine: sa.Engine, tenants: tuple[Sessions, Sessions]) -> list[set[str | None]]:
    """Return the key ids in use, of public and of tena."""
    return [{key_id for key_id, _ in sessions.census(engine)} for sessions in tenants]


@pytest.mark.parametrize("shards", [1, 2])
def test_search_path(shards: int, postgresql: sa.Engine, tenants: tuple[Sessions, Sessions]) -> None:
    with postgresql.connect() as connection, ThreadPoolExecutor(2) as executor:
        connection.exec_driver_sql("SET search_path TO tena")
        connection.commit()
        report = reencrypt(
            connection, "sessions", "token", type_=tenants[0].type_(), shards=shards, executor=executor
        )
        connection.exec_driver_sql("RESET search_path")
        connection.commit()
    assert (report.table, report.reencrypted, report.total) == ("sessions", ROWS, ROWS)
    assert keys(postgresql, tenants) == [{OLD}, {NEW}]


@pytest.fixture
def owner(postgresql: sa.Engine) -> Iterator[str]:
    """A role that is not the one that logs in; its name needs quoting. Roles are those of the whole server."""
    name = f'jwt "%" {uuid4().hex[:12]}'
    quoted = '"' + name.replace('"', '""') + '"'
    with postgresql.begin() as connection:
        connection.execute(sa.text(f"CREATE ROLE {quoted}"))
        connection.execute(sa.text(f"GRANT ALL ON SCHEMA public TO {quoted}"))
    yield name
    with postgresql.begin() as connection:
        connection.execute(sa.text(f"DROP OWNED BY {quoted}"))
        connection.execute(sa.text(f"DROP ROLE {quoted}"))


@pytest.mark.parametrize("assumes_it", [True, False])
@pytest.mark.parametrize("shards", [1, 2])
def test_set_role(shards: int, assumes_it: bool, postgresql: sa.Engine, owner: str) -> None:
    """Each worker writes as the run's role. The control: without SET ROLE, as the one that logs in."""
    sessions = create_sessions(postgresql, ROWS)
    quoted = '"' + owner.replace('"', '""') + '"'
    with postgresql.begin() as connection:
        for statement in (
            f"GRANT ALL ON sessions TO {quoted}",
            "CREATE TABLE writers (name TEXT, process INT)",
            f"GRANT ALL ON writers TO {quoted}",
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "INSERT INTO writers VALUES (CURRENT_USER, pg_backend_pid()); RETURN NEW; END $$",
            "CREATE TRIGGER note BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION note()",
        ):
            connection.execute(sa.text(statement))
        login = connection.scalar(sa.text("SELECT SESSION_USER"))
    with postgresql.connect() as connection, ThreadPoolExecutor(2) as executor:
        if assumes_it:
            connection.execute(sa.text(f"SET ROLE {quoted}"))
            connection.commit()
        report = reencrypt(
            connection, "sessions", "token", type_=sessions.type_(), shards=shards, executor=executor
        )
        connection.execute(sa.text("RESET ROLE"))
        connection.commit()
        writers = connection.execute(sa.text("SELECT DISTINCT name, process FROM writers")).all()
    assert (report.reencrypted, len(writers)) == (ROWS, shards)
    assert {name for name, _ in writers} == {owner if assumes_it else login}


@pytest.mark.parametrize("shards", [1, 2])
def test_schema_translate_map(shards: int, postgresql: sa.Engine, tenants: tuple[Sessions, Sessions]) -> None:
    translations = {None: "tena", "tena": "elsewhere"}
    with (
        postgresql.connect().execution_options(schema_translate_map=translations) as connection,
        ThreadPoolExecutor(2) as executor,
    ):
        report = reencrypt(
            connection, "sessions", "token", type_=tenants[0].type_(), shards=shards, executor=executor
        )
        assert connection.get_execution_options()["schema_translate_map"] == translations
    assert report.reencrypted == ROWS
    assert keys(postgresql, tenants) == [{OLD}, {NEW}]


def test_schema_translate_map_of_an_engine(postgresql: sa.Engine, tenants: tuple[Sessions, Sessions]) -> None:
    tenant = postgresql.execution_options(schema_translate_map={None: "tena"})
    reencrypt(tenant, "sessions", "token", type_=tenants[0].type_())
    assert keys(postgresql, tenants) == [{OLD}, {NEW}]


def test_operation_and_gate_translate_the_schema(
    postgresql: sa.Engine, tenants: tuple[Sessions, Sessions]
) -> None:
    """As ``op.create_table`` does."""
    with postgresql.connect().execution_options(schema_translate_map={None: "tena"}) as connection:
        context = MigrationContext.configure(connection)
        with Operations.context(context) as op:
            behind: Any = op
            with pytest.raises(ReencryptionError, match=f"{ROWS} rows are stale"):
                behind.ensure_jwt_column_current("sessions", "token", type_=tenants[0].type_())
            connection.rollback()
            behind.reencrypt_jwt_column("sessions", "token", type_=tenants[0].type_())
            behind.ensure_jwt_column_current("sessions", "token", type_=tenants[0].type_())
    assert keys(postgresql, tenants) == [{OLD}, {NEW}]


def test_a_shard_that_connects_to_another_database_refuses_its_table(tmp_path: Any) -> None:
    urls = [f"sqlite:///{tmp_path / name}" for name in ("one.db", "other.db")]
    with engine_on(sa.make_url(urls[0])) as engine, engine_on(sa.make_url(urls[1])) as other:
        ours, theirs = create_sessions(engine, ROWS), create_sessions(other, ROWS)
        elsewhere = partial(sa.create_engine, urls[1])
        with (
            ThreadPoolExecutor(2) as executor,
            pytest.raises(ReencryptionError, match="leads to another table of this name"),
        ):
            ours.reencrypt(engine, shards=2, executor=executor, make_engine=elsewhere, nice=0)
        assert theirs.census(other) == {(OLD, "stale"): ROWS}


@pytest.mark.processes
def test_a_shard_that_connects_to_another_server_of_mariadb_refuses_its_table(
    mariadb: sa.Engine, mariadb_database: Any
) -> None:
    server = KINDS["mariadb"].private()
    try:
        url = server.url.set(database=mariadb_database.url().database)
        with engine_on(server.url) as root, root.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE `{url.database}`")
        with engine_on(url) as other, ThreadPoolExecutor(2) as executor:
            ours, theirs = create_sessions(mariadb, ROWS), create_sessions(other, ROWS)
            options: dict[str, Any] = {"shards": 2, "executor": executor, "nice": 0}
            with pytest.raises(ReencryptionError, match="leads to another table of this name"):
                ours.reencrypt(mariadb, make_engine=partial(sa.create_engine, url), **options)
            assert theirs.census(other) == {(OLD, "stale"): ROWS}
            # The control: a connection of its own to the same server works on the table.
            ours.reencrypt(mariadb, make_engine=partial(sa.create_engine, mariadb.url), **options)
            assert ours.census(mariadb) == {(NEW, "current"): ROWS}
    finally:
        server.close()
