"""``SHOW CREATE TABLE`` of MariaDB and MySQL, answered in the form that SQLAlchemy's reflection reads."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

# ANSI_QUOTES, and the modes that contain it.
_ANSI_MODES: Final = frozenset({"ANSI", "ANSI_QUOTES", "DB2", "MAXDB", "MSSQL", "ORACLE", "POSTGRESQL"})


@contextmanager
def reflectable(connection: Connection) -> Iterator[None]:
    """Take back, within the block, the settings with which SQLAlchemy finds no column in any table.

    It reads names in the quotes that it found when the engine connected first. A later ``SET sql_mode = 'ANSI'``, as in
    an engine's connect event, gives them others, and ``sql_quote_show_create = 0`` none.
    """
    if connection.dialect.name not in ("mysql", "mariadb"):
        yield
        return
    mode, quotes = connection.exec_driver_sql("SELECT @@sql_mode, @@sql_quote_show_create").one()
    kept = ",".join(one for one in str(mode).split(",") if one not in _ANSI_MODES)
    restore: list[str] = []
    if kept != mode and connection.dialect.identifier_preparer.initial_quote == "`":
        connection.exec_driver_sql(f"SET SESSION sql_mode = '{kept}'")
        restore.append(f"SET SESSION sql_mode = '{mode}'")
    if not int(quotes):
        connection.exec_driver_sql("SET SESSION sql_quote_show_create = 1")
        restore.append("SET SESSION sql_quote_show_create = 0")
    try:
        yield
    finally:
        if not connection.invalidated:
            for statement in restore:
                connection.exec_driver_sql(statement)
