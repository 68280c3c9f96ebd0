"""Compare-and-swap for any database: a row is written only if it still holds the value that was read.

The old value of an adoption is a token, and no statement may carry one: statements are logged. So the rows are locked
and compared here. A database that cannot lock rows compares a digest, or as the last resort the value itself.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

from sqlalchemy import LargeBinary, Text, bindparam, cast, func, literal_column, select, text, update

from .base import KEPT, Changes, in_chunks

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, TextClause, Update

    from ..conversions import Stored
    from ..table import RunTable
    from .base import Batch, Task


class CompareAndSwap:
    """One ``UPDATE ... WHERE key = ?`` for each row that is unchanged, sent together.

    Args:
        can_lock: Whether the database locks rows, so that they are compared here.
    """

    def __init__(self, *, can_lock: bool) -> None:
        self._can_lock = can_lock

    def run_batch(self, task: Task) -> Batch:
        """Read without locks, convert, and write the rows that are unchanged."""
        connection = task.connection
        rows = connection.read(task.rows)
        batch = task.batch_of(rows)
        changes = task.convert(rows, batch)
        if not changes:
            return batch
        write = self._write_locked if self._can_lock else self._write_compared
        with connection.transaction():
            for chunk in in_chunks(changes, connection.statement_bytes, with_old=True):
                write(task, chunk, batch)
        return batch

    # -- where rows can be locked ----------------------------------------------------------------------------

    def _write_locked(self, task: Task, chunk: Changes, batch: Batch) -> None:
        table = task.table
        unchanged, lost = self._lock(task, chunk)
        batch.origins -= task.conversion.origins(lost.old, lost.new)
        if not unchanged:
            return
        parameters = [
            _key_parameters(table, row)
            | dict(zip(_PLACE, table.place_of(row), strict=False))
            | {"new_value": new}
            for row, new in zip(unchanged.rows, unchanged.new, strict=True)
        ]
        conditions = [_IS_AT_PLACE] if table.place else []
        result = task.connection.sqlalchemy.execute(_update(table, *conditions), parameters)
        rowcount = result.rowcount if result.supports_sane_multi_rowcount() else -1
        task.count_written(unchanged, batch, rowcount)

    @staticmethod
    def _lock(task: Task, chunk: Changes) -> tuple[Changes, Changes]:
        """Lock rows; return the changes of those that hold the old value, and of those that the application wrote."""
        table = task.table
        statement = (
            select(*table.keys, *table.place, *table.bound, table.value)
            .order_by(*table.keys)
            .with_for_update(key_share=True)
        )
        if table.dialect == "mysql" and table.key_index:
            # Of a small table the server would rather read every row, and wait for those that are locked.
            quote = task.connection.sqlalchemy.dialect.identifier_preparer.quote
            statement = statement.with_hint(table.clause, f"FORCE INDEX ({quote(table.key_index)})", "*")
        held = {table.identity_of(found): found for found in task.read_again(chunk, statement)}
        unchanged, lost = Changes(), Changes()
        for row, new in zip(chunk.rows, chunk.new, strict=True):
            now = held.get(table.identity_of(row))
            if now is not None and now[-1] == row[-1]:
                unchanged.add(now, new)
            else:
                lost.add(row, new)
        return unchanged, lost

    # -- where they cannot -----------------------------------------------------------------------------------

    def _write_compared(self, task: Task, chunk: Changes, batch: Batch) -> None:
        table = task.table
        digests = table.dialect == "mysql"
        parameters = [
            _key_parameters(table, row)
            | {"old_value": _digest(row[-1]) if digests else row[-1], "new_value": new}
            for row, new in zip(chunk.rows, chunk.new, strict=True)
        ]
        result = task.connection.sqlalchemy.execute(_update(table, _is_unchanged(table)), parameters)
        batch.written += len(chunk)
        # Not every driver counts the rows of an executemany, and none says which row was not written.
        is_sane = result.supports_sane_multi_rowcount() and result.rowcount == len(chunk)
        if is_sane and not task.confirm:
            return
        now = {
            (table.key_of(row), row[-1]) for row in task.read_again(chunk, select(*table.keys, table.value))
        }
        lost = Changes()
        for row, new in zip(chunk.rows, chunk.new, strict=True):
            key = table.key_of(row)
            if (key, new) in now:
                continue
            lost.add(row, new)
            # The application was quicker to replace or delete the others.
            if (key, row[-1]) in now:
                batch.refused.append((key, KEPT))
        batch.written -= len(lost)
        batch.origins -= task.conversion.origins(lost.old, lost.new)


_PLACE = ("place", "origin")
# A ctid goes as text: drivers have forms of their own for it.
_IS_AT_PLACE = text("ctid = CAST(CAST(:place AS TEXT) AS tid) AND tableoid = CAST(:origin AS oid)")


def _key_parameters(table: RunTable, row: Any) -> dict[str, Any]:
    return {f"key_{i}": value for i, value in enumerate(table.key_of(row))}


def _update(table: RunTable, *conditions: ColumnElement[bool] | TextClause) -> Update:
    """Return the statement that writes one row of a key, if the conditions hold."""
    is_row = [key == bindparam(f"key_{i}", type_=key.type) for i, key in enumerate(table.keys)]
    values: dict[Any, Any] = {column: column for column in table.preserve}
    values[table.value] = bindparam("new_value", type_=table.value.type)
    return update(table.clause).values(values).where(*is_row, *conditions)


def _is_unchanged(table: RunTable) -> ColumnElement[bool]:
    """Compare byte by byte: the column's collation may take different values for equal."""
    if table.dialect == "mysql":
        value: ColumnElement[Any] = table.value
        if not isinstance(value.type, LargeBinary):
            value = func.convert(value.op("USING")(literal_column("utf8mb4")))
        return cast(func.sha2(value, 256), Text()) == bindparam("old_value", type_=Text())
    return table.value == bindparam("old_value", type_=table.value.type)


def _digest(stored: Stored) -> str:
    return sha256(stored.encode() if isinstance(stored, str) else stored).hexdigest()
