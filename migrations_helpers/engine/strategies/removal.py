"""Rows whose token has expired, cleared or deleted instead of re-encrypted: one statement per batch, without keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, null, select, update

from .base import KEPT, Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Connection, Delete, Update

    from jwt_column.database.key_order import KeyRange

    from ..connection import RunConnection
    from ..conversions import Conversion
    from ..expired import Expired
    from ..table import Key, RunTable

__all__ = ["ExpiredRemoval"]


class ExpiredRemoval:
    """``DELETE``, or ``UPDATE ... SET token = NULL``, of the rows of a batch that have expired.

    The statement repeats the condition, and the database checks it when it writes the row. So a row that the
    application has given another token since it was read is not touched, with or without locks.

    Args:
        expired: The treatment of such rows.
        skips_locked: Whether locked rows are left out. If not, the statement waits for them as
            long as ``lock_timeout``.
    """

    def __init__(self, expired: Expired, *, skips_locked: bool) -> None:
        self._expired = expired
        self._skips_locked = skips_locked

    def run_batch(
        self,
        connection: RunConnection,
        table: RunTable,
        conversion: Conversion,
        keys: KeyRange,
        limit: int,
        confirm: bool = False,  # noqa: ARG002 - the row count of these statements is exact
    ) -> Batch:
        """Clear or delete the next *limit* rows of a key range that have expired."""
        limit = table.order.rows_at_once(limit)
        condition = conversion.rows.expired
        assert condition is not None  # noqa: S101 - such rows have a strategy only if they are told apart
        select = table.keys_of(condition, keys, limit)
        if self._skips_locked:
            with connection.transaction() as transaction:
                found = transaction.execute(select.with_for_update(skip_locked=True)).all()
                removed, refused = self._removed(transaction, table, condition, found)
        else:
            # Outside the transaction: to find the rows may take long, and SQLite would keep everybody else waiting.
            found = connection.read(select)
            with connection.transaction() as transaction:
                removed, refused = self._removed(transaction, table, condition, found)
        last_key = table.key_of(found[-1]) if found else None
        return Batch(
            read=len(found), last_key=last_key, at_end=len(found) < limit, removed=removed, refused=refused
        )

    def _removed(
        self,
        transaction: Connection,
        table: RunTable,
        expired: ColumnElement[bool],
        found: Sequence[Sequence[Any]],
    ) -> tuple[int, list[tuple[Key, str]]]:
        """Clear or delete rows; return how many these were, and those that the database left as they were."""
        removed = self._remove(transaction, table, expired, found)
        if removed == len(found):
            return removed, []
        among = table.order.among([table.key_of(row) for row in found])
        kept = transaction.execute(select(*table.keys).where(expired, among)).all()
        return len(found) - len(kept) if removed < 0 else removed, [(tuple(key), KEPT) for key in kept]

    def _remove(
        self,
        transaction: Connection,
        table: RunTable,
        expired: ColumnElement[bool],
        found: Sequence[Sequence[Any]],
    ) -> int:
        """Clear or delete those of these rows that are still expired, and return how many these were."""
        if not found:
            return 0
        is_meant = self._is_meant(table, expired, [table.key_of(row) for row in found])
        return transaction.execute(self._statement(table, is_meant)).rowcount

    def _is_meant(
        self, table: RunTable, expired: ColumnElement[bool], found: Sequence[Key]
    ) -> ColumnElement[bool]:
        """Return the condition of the rows that were found, as long as they are as they were found."""
        return and_(table.order.among(found), expired)

    def _statement(self, table: RunTable, condition: ColumnElement[bool]) -> Update | Delete:
        if self._expired.action == "delete":
            return delete(table.clause).where(condition)
        values: dict[Any, Any] = {column: column for column in table.preserve}
        values[table.value] = null()
        return update(table.clause).values(values).where(condition)
