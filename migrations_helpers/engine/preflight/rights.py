"""Findings about the rights of the role: to read the columns, to write the encrypted one, to vacuum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError

from jwt_column.database.catalogue import IS_NAMED, named
from jwt_column.database.driver_errors import mysql_code

from .kinds import Fact

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection

    from ..table import RunTable


# Command denied on a table, a column, a routine; a right that is needed.
_DENIED: Final = frozenset({1142, 1143, 1370, 1227})


def rights_facts(connection: Connection, table: RunTable) -> Iterator[Fact]:
    """Yield the facts about the rights on a table and the columns that a run reads and writes."""
    reads = (*table.keys, *table.bound, table.value)
    if table.dialect == "postgresql":
        # The place of a row is no column that a right can be granted on: it takes one on the table.
        columns = ["ctid", "tableoid", *(column.name for column in reads)]
        yield from _postgresql_facts(connection, table, columns)
    elif table.dialect == "mysql":
        # The server checks the rights of a statement that it only explains.
        of_nothing = table.keys[0].is_(None)
        if _is_denied(connection, select(*reads).where(of_nothing)):
            yield _lacking("rights-read", table, "this user", "SELECT")
        if _is_denied(connection, update(table.clause).values({table.value: table.value}).where(of_nothing)):
            yield _lacking("rights-write", table, "this user", "UPDATE")


def _postgresql_facts(connection: Connection, table: RunTable, reads: Sequence[str]) -> Iterator[Fact]:
    parameters: dict[str, Any] = dict(named(table.clause))

    def has(right: str, columns: Sequence[str]) -> str:
        names = {f"{right}_{number}": column for number, column in enumerate(columns)}
        parameters.update(names)
        return " AND ".join(f"pg_catalog.has_column_privilege(t.oid, :{name}, '{right}')" for name in names)

    can_read = has("SELECT", reads)
    can_write = has("UPDATE", [column.name for column in (table.value, *table.preserve)])
    query = (
        f"SELECT CURRENT_USER, {can_read}, {can_write}, pg_catalog.pg_has_role(t.relowner, 'USAGE'), "  # noqa: S608
        f"pg_catalog.pg_get_userbyid(t.relowner) FROM pg_catalog.pg_class t WHERE {IS_NAMED}"
    )
    role, reads_all, writes_all, owns, owner = connection.execute(text(query), parameters).one()
    if not reads_all:
        yield _lacking("rights-read", table, f"the role {role}", "SELECT")
    if not writes_all:
        yield _lacking("rights-write", table, f"the role {role}", "UPDATE")
    if not owns:
        yield Fact(
            "rights-vacuum",
            f"the role {role} does not own {table.name} and cannot VACUUM it, so the table may double in size",
            f"run as its owner, {owner}, or VACUUM it beside the run",
        )


def _lacking(code: str, table: RunTable, who: str, right: str) -> Fact:
    verb = "read" if right == "SELECT" else "write"
    return Fact(code, f"{who} may not {verb} {table.name}", f"GRANT {right} on it")


def _is_denied(connection: Connection, statement: Any) -> bool:
    try:
        connection.exec_driver_sql(f"EXPLAIN {statement.compile(dialect=connection.dialect)}").close()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return mysql_code(error.orig) in _DENIED
    return False
