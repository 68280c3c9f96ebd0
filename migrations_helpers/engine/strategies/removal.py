"""Rows whose token has expired, cleared or deleted instead of re-encrypted: one statement per batch, without keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, delete, null, update

from .base import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Connection, Delete, Update

    from ..connection import Channel
    from ..conversions import Conversion
    from ..expired import Expired
    from ..table import Key, KeyRange, Target

__all__ = ["ExpiredRemoval"]

# Parameters of one statement: SQLite before 3.32 takes 999.
_MOST_PARAMETERS: Final = 900


class ExpiredRemoval:
    """``DELETE``, or ``UPDATE ... SET token = NULL``, of the rows of a batch that have expired.

    The statement says once more which rows these are, and the database looks at what a row holds when it writes it. So
    a row that the application has given another token since it was read is not touched, with or without locks.

    Args:
        expired: What becomes of them.
        skips_locked: Whether rows that somebody else has locked are left out. If not, the statement waits for them as
            long as ``lock_timeout``.
    """

    def __init__(self, expired: Expired, *, skips_locked: bool) -> None:
        self._expired = expired
        self._skips_locked = skips_locked

    def run_batch(
        self, channel: Channel, target: Target, conversion: Conversion, keys: KeyRange, limit: int
    ) -> Batch:
        """Clear or delete the next *limit* rows of a key range that have expired."""
        limit = min(limit, _MOST_PARAMETERS // len(target.keys))
        select = target.expired_keys(conversion, self._expired, keys, limit)
        if self._skips_locked:
            with channel.transaction() as connection:
                found = connection.execute(select.with_for_update(skip_locked=True)).all()
                removed = self._remove(connection, target, conversion, found)
        else:
            # Outside the transaction: to find the rows may take long, and SQLite would keep everybody else waiting.
            found = channel.connection.execute(select).all()
            with channel.transaction() as connection:
                removed = self._remove(connection, target, conversion, found)
        last_key = target.key_of(found[-1]) if found else None
        return Batch(read=len(found), last_key=last_key, at_end=len(found) < limit, removed=removed)

    def _remove(
        self, connection: Connection, target: Target, conversion: Conversion, found: Sequence[Sequence[Any]]
    ) -> int:
        """Clear or delete what still has expired of these rows, and return how many these were."""
        if not found:
            return 0
        is_meant = self._is_meant(target, conversion, [target.key_of(row) for row in found])
        return connection.execute(self._statement(target, is_meant)).rowcount

    def _is_meant(self, target: Target, conversion: Conversion, found: Sequence[Key]) -> ColumnElement[bool]:
        """Return the condition of the rows that were found, as long as they are as they were found."""
        return and_(target.among(found), target.expired(conversion, self._expired))

    def _statement(self, target: Target, condition: ColumnElement[bool]) -> Update | Delete:
        if self._expired.action == "delete":
            return delete(target.table).where(condition)
        values: dict[Any, Any] = {column: column for column in target.preserve}
        values[target.value] = null()
        return update(target.table).values(values).where(condition)
