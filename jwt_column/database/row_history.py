"""System versioning of MariaDB: the server keeps each old version of a row, and with it the old envelope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Connection, FromClause

#: The hint behind a table's name with which a statement reads old versions of rows too.
EVERY_VERSION: Final = "FOR SYSTEM_TIME ALL"

_TABLE_TYPE: Final = text(
    "SELECT table_type FROM information_schema.tables WHERE table_name = :name "
    "AND table_schema = COALESCE(:schema, DATABASE())"
)


def keeps_history(connection: Connection, table: FromClause) -> bool:
    """Return True if the database keeps old versions of a table's rows."""
    if connection.dialect.name not in ("mysql", "mariadb"):
        return False
    name, schema = getattr(table, "name", None), getattr(table, "schema", None)
    type_: object = connection.scalar(_TABLE_TYPE, {"name": name, "schema": schema})
    return type_ == "SYSTEM VERSIONED"
