"""The schema in which the run's connection finds a table: worked out once, and named in every statement and shard.

A connection may be told to look elsewhere than others do: by ``schema_translate_map``, ``SET search_path``, ``USE`` or
``SET ROLE``. The connections of shards are not told, and would work on the table of another tenant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from jwt_column.column.stored_type import translated_schema
from jwt_column.database.catalogue import IS_NAMED, named

if TYPE_CHECKING:
    from sqlalchemy import Connection, TableClause


def family_of(connection: Connection) -> str:
    """Return ``postgresql``, ``mysql`` (MariaDB too), ``sqlite`` or another name of SQLAlchemy's."""
    name = connection.dialect.name
    return "mysql" if name == "mariadb" else name


def effective_schema(connection: Connection, table_name: str | None, schema: str | None) -> str | None:
    """Return the schema that a table's name means for a connection; None for SQLite's main database."""
    schema = translated_schema(connection, schema)
    if schema is not None:
        return schema
    found: str | None = None
    if connection.dialect.name == "postgresql":
        statement = text(
            "SELECT nspname FROM pg_catalog.pg_class t JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace "  # noqa: S608
            f"WHERE {IS_NAMED}"
        )
        found = connection.execute(statement, {"name": table_name, "schema": None}).scalar()
        found = found or connection.exec_driver_sql("SELECT current_schema()").scalar()
    elif family_of(connection) == "mysql":
        found = connection.exec_driver_sql("SELECT DATABASE()").scalar()
    return found


def table_identity(connection: Connection, clause: TableClause) -> str | None:
    """Return a text that differs between two tables of one name in different databases; None if none is known."""
    if connection.dialect.name == "postgresql":
        statement = text(
            "SELECT pg_catalog.current_database() || ' ' || CAST(t.oid AS TEXT) "  # noqa: S608
            f"FROM pg_catalog.pg_class t WHERE {IS_NAMED}"
        )
        return connection.execute(statement, named(clause)).scalar()
    if connection.dialect.name == "sqlite":
        files = "SELECT file FROM pragma_database_list WHERE name = 'main'"
        return connection.exec_driver_sql(files).scalar()
    if family_of(connection) == "mysql":
        return f"{_server_of(connection)} {clause.schema}"
    return None


def _server_of(connection: Connection) -> str | None:
    """Return a text that differs between two servers of MySQL or MariaDB; the nodes of a Galera cluster have one."""
    cluster = connection.exec_driver_sql("SHOW GLOBAL STATUS LIKE 'wsrep_cluster_state_uuid'").first()
    if cluster is not None and cluster[1]:
        return str(cluster[1])
    return connection.exec_driver_sql("SELECT CONCAT_WS(' ', @@hostname, @@port, @@datadir)").scalar()


def assumed_role(connection: Connection) -> str | None:
    """Return the role that ``SET ROLE`` gave a connection to PostgreSQL; None for the one that logged in."""
    if connection.dialect.name != "postgresql":
        return None
    statement = "SELECT CURRENT_USER WHERE CURRENT_USER <> SESSION_USER"
    return connection.exec_driver_sql(statement).scalar()
