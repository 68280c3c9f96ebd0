"""MariaDB and MySQL: lock the unlocked rows of a batch, write them in the fastest form of the driver."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BINARY, VARBINARY, LargeBinary
from sqlalchemy.exc import DBAPIError

from jwt_column.database.driver_errors import mysql_code

from .base import in_chunks
from .removal import ExpiredRemoval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnClause, Dialect

    from ..expired import Expired
    from ..table import Key, RunTable
    from .base import Batch, Task


_ILLEGAL_MIX_OF_COLLATIONS: Final = 1267


class _Writer:
    """Writes rows by their keys: by the mariadb connector's bulk protocol, or by one join for the other drivers.

    A join has one round trip where an executemany has one for each row. ``DELETE ... WHERE id IN (...)`` may read more
    rows than it names, and then waits for those that are locked.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._in_bulk = dialect.driver == "mariadbconnector"

    def write(self, task: Task, rows: list[tuple[Any, ...]], action: str) -> int:
        """Write rows of keys, and return how many the database found.

        *action* is ``"null"``, ``"delete"``, or ``"replace"`` where a new value stands before each key.
        """
        if not rows:
            return 0
        send = task.connection.sqlalchemy.exec_driver_sql
        columns = (*([task.table.value] if action == "replace" else []), *task.table.keys)
        rows = _to_driver(self._dialect, columns, rows)
        if not self._in_bulk:
            try:
                return send(
                    self._join(task.table, columns, len(rows), action),
                    tuple(itertools.chain.from_iterable(rows)),
                ).rowcount
            except DBAPIError as error:
                # A text key with letters that the column's character set has and the join cannot compare.
                if mysql_code(error.orig) != _ILLEGAL_MIX_OF_COLLATIONS:
                    raise
                self._in_bulk = True
        # Written out: the work of SQLAlchemy for each row of parameters costs more than the encryption.
        return send(self._bulk(task.table, columns, action), rows).rowcount

    def _bulk(self, table: RunTable, columns: Sequence[ColumnClause[Any]], action: str) -> str:
        """Return the statement that is sent with many rows of parameters (COM_STMT_BULK_EXECUTE)."""
        name = self._dialect.identifier_preparer.format_table(table.clause)
        marks = [_mark(self._dialect, column) for column in columns]
        is_it, new = self._parts(table, "", marks)
        if action == "delete":
            return f"DELETE FROM {name} WHERE {is_it}"  # noqa: S608 - quoted identifiers, here and below
        return f"UPDATE {name} SET {new} WHERE {is_it}"  # noqa: S608

    def _join(self, table: RunTable, columns: Sequence[ColumnClause[Any]], rows: int, action: str) -> str:
        """Return the statement that joins the table (``t``) with the rows (``d``) by its key.

        Of a small table the server would rather read every row, and then wait for those that are locked, so it is told
        which index to use.
        """
        preparer = self._dialect.identifier_preparer
        marks = [_mark(self._dialect, column) for column in columns]
        first = "SELECT " + ", ".join(f"{mark} AS c{number}" for number, mark in enumerate(marks))
        values = " UNION ALL ".join([first] + ["SELECT " + ", ".join(marks)] * (rows - 1))
        is_it, new = self._parts(table, "t.", [f"d.c{number}" for number in range(len(marks))])
        name = preparer.format_table(table.clause)
        index = f" FORCE INDEX ({preparer.quote(table.key_index)})" if table.key_index else ""
        joined = f"({values}) AS d STRAIGHT_JOIN {name} AS t{index} ON {is_it}"
        return f"DELETE t FROM {joined}" if action == "delete" else f"UPDATE {joined} SET {new}"  # noqa: S608

    def _parts(self, table: RunTable, prefix: str, sources: Sequence[str]) -> tuple[str, str]:
        """Return the condition of a row, and what is assigned to its columns."""
        quote = self._dialect.identifier_preparer.quote
        keys = sources[-len(table.keys) :]
        is_it = " AND ".join(
            f"{prefix}{quote(key.name)} = {source}" for key, source in zip(table.keys, keys, strict=True)
        )
        new = sources[0] if len(sources) > len(keys) else "NULL"
        kept = [f"{prefix}{quote(column.name)} = {prefix}{quote(column.name)}" for column in table.preserve]
        return is_it, ", ".join([f"{prefix}{quote(table.value.name)} = {new}", *kept])


class MySQLSkipLocked:
    """``SELECT ... FOR UPDATE SKIP LOCKED``, then a write by key."""

    def __init__(self, dialect: Dialect) -> None:
        self._writer = _Writer(dialect)

    @staticmethod
    def is_supported(dialect: Any, table: RunTable) -> bool:
        """Return True if rows can be locked and SKIP LOCKED is known: InnoDB, MariaDB from 10.6, MySQL from 8.0.1."""
        version: tuple[int, ...] = dialect.server_version_info or ()
        first = (10, 6) if getattr(dialect, "is_mariadb", False) else (8, 0, 1)
        return version >= first and table.engine == "InnoDB"

    def run_batch(self, task: Task) -> Batch:
        """Lock, read, convert and write in one transaction; rows that are locked are left out."""
        connection, key_of = task.connection, task.table.key_of
        with connection.transaction() as transaction:
            rows = transaction.execute(task.rows.with_for_update(skip_locked=True)).all()
            batch = task.batch_of(rows)
            changes, rowcount = task.convert(rows, batch), 0
            for chunk in in_chunks(changes, connection.statement_bytes, with_old=False):
                new = [(new, *key_of(row)) for row, new in zip(chunk.rows, chunk.new, strict=True)]
                rowcount += self._writer.write(task, new, "replace")
            task.count_written(changes, batch, rowcount)
        return batch


class MySQLExpiredRemoval(ExpiredRemoval):
    """The same for rows that are cleared or deleted; goes with :class:`MySQLSkipLocked`.

    The rows cannot have changed: they are locked since they were read.
    """

    def __init__(self, expired: Expired, dialect: Dialect) -> None:
        super().__init__(expired, skips_locked=True)
        self._writer = _Writer(dialect)

    def _remove(self, task: Task, keys: list[Key]) -> int:
        return self._writer.write(task, keys, self._expired.action)


def _to_driver(
    dialect: Dialect, columns: Sequence[ColumnClause[Any]], rows: list[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    """Return rows of values as the driver wants them, which takes bytes as they are."""
    converters = [
        None
        if isinstance(column.type, LargeBinary)
        else column.type.dialect_impl(dialect).bind_processor(dialect)
        for column in columns
    ]
    if any(converters):
        values = (
            column if convert is None else map(convert, column)
            for convert, column in zip(converters, zip(*rows, strict=True), strict=True)
        )
        rows = list(zip(*values, strict=True))
    return rows


def _mark(dialect: Dialect, column: ColumnClause[Any]) -> str:
    """Return the placeholder of a column's value: mysqlclient does not mark bytes as such, PyMySQL does."""
    if dialect.paramstyle == "qmark":
        return "?"
    is_binary = isinstance(column.type, LargeBinary | BINARY | VARBINARY)
    return "_binary%s" if is_binary and dialect.driver == "mysqldb" else "%s"
