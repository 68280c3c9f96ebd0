"""SQLite: one UPDATE that calls a Python function, under the only write lock that there is."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, update
from sqlalchemy.exc import DBAPIError

from jwt_column.database.key_order import KeyRange
from jwt_column.errors import JWTColumnError

from .base import Batch, Changes

if TYPE_CHECKING:
    from ..conversions import Stored
    from ..table import Key
    from .base import Task


_FUNCTION: Final = "jwt_column_convert"


class SQLiteFunction:
    """``UPDATE t SET token = convert(token)`` over a window of keys.

    The window's end is read without a lock; reading and writing of its rows is one statement, so no write of the
    application can come between. The statement is a transaction by itself: within a longer one SQLite keeps a copy of
    every page that it changes, to be able to undo it alone.
    """

    def run_batch(self, task: Task) -> Batch:
        """Find the window, then convert its rows inside the database."""
        end = self._find_end(task)
        if end is None:
            return Batch(at_end=True)
        connection, table, conversion = task.connection, task.table, task.conversion
        window = KeyRange(task.keys.after, end)
        batch = Batch(last_key=end, at_end=end == task.keys.up_to)
        fatal: list[JWTColumnError] = []
        new_value = conversion.convert
        changes = Changes()
        arguments = (*table.keys, *table.bound, table.value)
        is_bound, unchanged = bool(table.bound), 0

        def convert(*row: Any) -> Stored:
            nonlocal unchanged
            stored: Stored = row[-1]
            try:
                new = new_value(stored, *table.bound_of(row)) if is_bound else new_value(stored)
            except JWTColumnError as error:
                try:
                    batch.leave(table.key_of(row), error)
                except JWTColumnError as failure:
                    # Undoes the batch, and reaches us as a text of SQLite's, so it is kept here.
                    fatal.append(failure)
                    raise
                new = stored
            if new is stored:
                unchanged += 1
                return stored
            changes.rows.append(row)
            changes.new.append(new)
            return new

        driver_connection: Any = connection.sqlalchemy.connection.dbapi_connection
        driver_connection.create_function(_FUNCTION, len(arguments), convert)
        values: dict[Any, Any] = {column: column for column in table.preserve}
        values[table.value] = getattr(func, _FUNCTION)(*arguments)
        try:
            # The look at the written rows may find the file locked; with the rows, it is undone and done again.
            with connection.transaction() if task.confirm or task.reads_back else nullcontext():
                result = connection.sqlalchemy.execute(
                    update(table.clause)
                    .values(values)
                    .where(conversion.rows.pending, *table.order.within(window))
                )
                batch.origins = conversion.origins(changes.old, changes.new)
                # The statement has written the others too, as they were.
                task.count_written(changes, batch, result.rowcount - unchanged)
        except DBAPIError:
            if fatal:
                raise fatal[0] from None
            raise
        finally:
            driver_connection.create_function(_FUNCTION, len(arguments), None)
        # Every row of the window was looked at, and took its time, also where few of them needed work.
        left = len(batch.undecryptable) + len(batch.unwritable)
        batch.read = batch.written + left if batch.at_end else task.limit
        return batch

    @staticmethod
    def _find_end(task: Task) -> Key | None:
        """Return the key that ends a window of *limit* rows, the first of which needs work; None if none does.

        Rows in it that need none are left alone by the UPDATE; to count only those that do would read each twice.
        """
        execute, table, limit = task.connection.sqlalchemy.execute, task.table, task.limit
        first = execute(table.keys_of(task.conversion.rows.pending, task.keys, 1)).first()
        if first is None:
            return None
        if limit == 1:
            return tuple(first)
        rest = replace(task.keys, after=tuple(first))
        last = execute(table.order.row_after(rest, limit - 2)).first()
        end = task.keys.up_to if last is None else last
        return None if end is None else tuple(end)
