"""SQLite's batch mode keeps the indexes of encrypted columns.

``op.batch_alter_table`` makes a new table, copies the rows, drops the old table and renames the new one. It gives the
new table the indexes that SQLAlchemy reflects, and that reflects none on an expression: without this module they would
be gone, and with a unique fingerprint index its promise.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from alembic.ddl.impl import DefaultImpl
from sqlalchemy import Table, event
from sqlalchemy.exc import OperationalError

from jwt_column.database.indexes import existing_indexes

if TYPE_CHECKING:
    from sqlalchemy import Connection


logger: logging.Logger = logging.getLogger("migrations_helpers")

# Alembic's name for the new table, until it is renamed.
_TEMPORARY: Final = "_alembic_tmp_"
# The key of Table.info under which the indexes of a table wait.
_LOST: Final = "jwt_column_lost_indexes"


@event.listens_for(Table, "before_drop")
def _remember(table: Table, connection: Connection | None, _ddl_runner: Any = None, **_: Any) -> None:
    """Note the indexes that Alembic would not create again."""
    if connection is None or connection.dialect.name != "sqlite" or not isinstance(_ddl_runner, DefaultImpl):
        return
    known = {index.name for index in table.indexes}
    lost = {
        name: found.definition
        for name, found in existing_indexes(connection, table).items()
        if found.positions and name not in known
    }
    if lost:
        table.info[_LOST] = lost


@event.listens_for(Table, "after_drop")
def _await_new_table(table: Table, connection: Connection | None, **_: Any) -> None:
    """Create them again if the next statement renames the new table. Otherwise the table was dropped for good."""
    lost = table.info.pop(_LOST, None)
    if lost is None or connection is None:
        return

    @event.listens_for(connection, "after_cursor_execute", once=True)
    def look(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if _TEMPORARY in statement and "RENAME TO" in statement.upper():
            for name, definition in lost.items():
                _create(connection, table, name, definition)


def _create(connection: Connection, table: Table, name: str, definition: str) -> None:
    if table.schema is not None:
        schema = connection.dialect.identifier_preparer.quote(table.schema)
        definition = definition.replace(" INDEX ", f" INDEX {schema}.", 1)
    try:
        connection.exec_driver_sql(definition)
    except OperationalError as error:
        logger.warning(
            "%s: the index %s was not created again (%s), because its column is gone or has another name; "
            "op.create_jwt_index creates one for the new name",
            table.fullname,
            name,
            error.orig,
        )
