"""Row-level security of PostgreSQL: a report about all rows must fail where policies hide some of them.

A role under a policy sees fewer rows and no error, so a census would call a key unused that hidden rows need. The audit
and the scan read with ``row_security = off``, with which the server raises instead. A bare SELECT that the caller
executes cannot change a setting in time; :class:`AllRowsVisible` stands among its conditions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Boolean, TableClause, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.visitors import InternalTraversal

from .catalogue import IS_NAMED

if TYPE_CHECKING:
    from sqlalchemy import Connection, FromClause
    from sqlalchemy.sql.compiler import SQLCompiler

_POLICIES: Final = text(
    "SELECT CURRENT_USER, pg_catalog.pg_get_userbyid(relowner), relforcerowsecurity FROM pg_catalog.pg_class t "  # noqa: S608
    f"WHERE {IS_NAMED} AND pg_catalog.row_security_active(t.oid)"
)


def hidden_rows(connection: Connection, table: FromClause) -> str | None:
    """Return the reason if row-level security may hide rows of a table from this role, else None.

    The reason names the table, the role, and a role that sees every row.
    """
    if connection.dialect.name != "postgresql" or not isinstance(table, TableClause):
        return None
    named: Any = table
    schema = connection.schema_for_object(named)
    found = connection.execute(_POLICIES, {"name": table.name, "schema": schema}).first()
    if found is None:
        return None
    role, owner, is_forced = found
    sees_all = (
        "a role with BYPASSRLS" if is_forced else f"the table's owner, {owner}, or a role with BYPASSRLS"
    )
    return f"row-level security may hide rows of {table.fullname} from the role {role}; use {sees_all}"


def raise_for_hidden_rows(connection: Connection) -> None:
    """Make the server raise until the end of this transaction or savepoint where it would hide rows."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL row_security = off")


class AllRowsVisible(ColumnElement[bool]):
    """A condition that is true, and on PostgreSQL an error where row-level security applies to a table of *source*."""

    # Not a child element: adapted to an alias, the table would lose its name.
    _traverse_internals = [("tables", InternalTraversal.dp_plain_obj)]  # noqa: RUF012
    type: Boolean = Boolean()

    def __init__(self, source: FromClause) -> None:
        found = (one for one in visitors.iterate(source) if isinstance(one, TableClause))
        self.tables: tuple[TableClause, ...] = tuple(dict.fromkeys(found))


@compiles(AllRowsVisible)
def _compile(element: AllRowsVisible, compiler: SQLCompiler, **_: Any) -> str:
    if compiler.dialect.name != "postgresql":
        return "1 = 1"
    # The planner neither evaluates CURRENT_USER beforehand nor needs a row to evaluate the condition. Dollar quotes,
    # because the name of a translated schema is put in later and may have an apostrophe.
    guards = [
        f"CASE WHEN pg_catalog.row_security_active($jwt_column${name}$jwt_column$::pg_catalog.regclass) THEN CAST("
        f"'row-level security may hide rows of ' || $jwt_column${name}$jwt_column$ || ' from the role ' || "
        "CURRENT_USER || '; use the table''s owner or a role with BYPASSRLS' AS INTEGER) = 0 ELSE true END"
        for name in map(compiler.preparer.format_table, element.tables)
    ]
    return " AND ".join(guards) or "true"
