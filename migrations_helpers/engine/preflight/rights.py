"""Findings about the rights of the role: to read the columns, to write the encrypted one, to vacuum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError

from jwt_column.database.catalogue import IS_NAMED
from jwt_column.database.driver_errors import mysql_code

from .kinds import finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection

    from jwt_column.auditing import Finding

    from ..table import RunTable

__all__ = ["rights_findings"]

_HAS_RIGHT: Final = text(
    "SELECT CURRENT_USER, pg_catalog.has_column_privilege(t.oid, :column, :right) "  # noqa: S608
    f"FROM pg_catalog.pg_class t WHERE {IS_NAMED}"
)
_OWNS: Final = text(
    "SELECT pg_catalog.pg_has_role(t.relowner, 'USAGE'), CURRENT_USER, pg_catalog.pg_get_userbyid(t.relowner) "  # noqa: S608
    f"FROM pg_catalog.pg_class t WHERE {IS_NAMED}"
)
# Command denied on a table, a column, a routine; a right that is needed.
_DENIED: Final = frozenset({1142, 1143, 1370, 1227})


def rights_findings(connection: Connection, name: str, table: RunTable) -> Iterator[Finding]:
    """Yield the findings about the rights on a table and the columns that a run reads and writes."""
    reads = (*table.keys, *table.bound, table.value)
    if connection.dialect.name == "postgresql":
        # The place of a row is no column that a right can be granted on: it takes one on the table.
        columns = ["ctid", "tableoid", *(column.name for column in reads)]
        yield from _postgresql_findings(connection, name, table, columns)
    elif connection.dialect.name in ("mysql", "mariadb"):
        # The server checks the rights of a statement that it only explains.
        of_nothing = table.keys[0].is_(None)
        if _is_denied(connection, select(*reads).where(of_nothing)):
            yield _lacking("rights-read", name, table, "this user", "SELECT")
        if _is_denied(connection, update(table.clause).values({table.value: table.value}).where(of_nothing)):
            yield _lacking("rights-write", name, table, "this user", "UPDATE")


def _postgresql_findings(
    connection: Connection, name: str, table: RunTable, reads: Sequence[str]
) -> Iterator[Finding]:
    named = {"name": table.clause.name, "schema": table.clause.schema}
    for code, right, columns in (
        ("rights-read", "SELECT", reads),
        ("rights-write", "UPDATE", [column.name for column in (table.value, *table.preserve)]),
    ):
        for column in columns:
            role, has = connection.execute(_HAS_RIGHT, named | {"column": column, "right": right}).one()
            if not has:
                yield _lacking(code, name, table, f"the role {role}", right)
                break
    owns, role, owner = connection.execute(_OWNS, named).one()
    if not owns:
        yield finding(
            "rights-vacuum",
            name,
            f"the role {role} does not own {table.name} and cannot VACUUM it, so the table may double in size",
            f"run as its owner, {owner}, or VACUUM it beside the run",
        )


def _lacking(code: str, name: str, table: RunTable, who: str, right: str) -> Finding:
    verb = "read" if right == "SELECT" else "write"
    return finding(code, name, f"{who} may not {verb} {table.name}", f"GRANT {right} on it")


def _is_denied(connection: Connection, statement: Any) -> bool:
    try:
        connection.exec_driver_sql(f"EXPLAIN {statement.compile(dialect=connection.dialect)}").close()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return mysql_code(error.orig) in _DENIED
    return False
