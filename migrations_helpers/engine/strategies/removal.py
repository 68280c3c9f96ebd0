"""Rows whose token has expired, cleared or deleted instead of re-encrypted: one statement per batch, without keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, null, select, update

from .base import KEPT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Delete, Row, Update

    from ..expired import Expired
    from ..table import Key
    from .base import Batch, Task


class ExpiredRemoval:
    """``DELETE``, or ``UPDATE ... SET token = NULL``, of the rows of a batch that have expired.

    The statement repeats the condition, and the database checks it when it writes the row. So a row that the
    application has given another token since it was read is not touched, with or without locks.

    It leaves locked rows out, or waits for them as long as ``lock_timeout``.
    """

    def __init__(self, expired: Expired, *, skips_locked: bool) -> None:
        self._expired = expired
        self._skips_locked = skips_locked

    def run_batch(self, task: Task) -> Batch:
        """Clear or delete the next rows of a key range that have expired. The row count of this is exact."""
        connection, select = task.connection, task.table.keys_of(_expired(task), task.keys, task.limit)
        if self._skips_locked:
            with connection.transaction() as transaction:
                found = transaction.execute(select.with_for_update(skip_locked=True)).all()
                return self._removed(task, found)
        # Outside the transaction: to find the rows may take long, and SQLite would keep everybody else waiting.
        found = connection.read(select)
        with connection.transaction():
            return self._removed(task, found)

    def _removed(self, task: Task, found: Sequence[Row[Any]]) -> Batch:
        """Clear or delete the rows that were found, and note those that the database left as they were."""
        batch, execute = task.batch_of(found), task.connection.sqlalchemy.execute
        keys, order = [tuple(key) for key in found], task.table.order
        batch.removed = self._remove(task, keys)
        if batch.removed != len(keys):
            held = select(*task.table.keys).where(_expired(task))
            kept = [key for part in order.portions(keys) for key in execute(held.where(order.among(part)))]
            batch.refused = [(tuple(key), KEPT) for key in kept]
            if batch.removed < 0:
                batch.removed = len(keys) - len(kept)
        return batch

    def _remove(self, task: Task, keys: list[Key]) -> int:
        """Clear or delete those of these rows that are still expired, and return how many these were."""
        table, removed = task.table, 0
        for part in table.order.portions(keys):
            statement: Update | Delete = delete(table.clause)
            if self._expired.action == "null":
                values: dict[Any, Any] = {column: column for column in table.preserve}
                statement = update(table.clause).values(values | {table.value: null()})
            is_meant = self._is_meant(task, table.order.among(part))
            removed += task.connection.sqlalchemy.execute(statement.where(is_meant)).rowcount
        return removed

    def _is_meant(self, task: Task, is_found: ColumnElement[bool]) -> ColumnElement[bool]:
        """Return the condition of the rows that were found, as long as they are as they were found."""
        return and_(is_found, _expired(task))


def _expired(task: Task) -> ColumnElement[bool]:
    condition = task.conversion.rows.expired
    assert condition is not None  # noqa: S101 - such rows have a strategy only if they are told apart
    return condition
