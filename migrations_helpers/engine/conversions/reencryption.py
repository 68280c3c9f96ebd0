"""Stale envelopes become current ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, not_

from .base import RowBinding, Rows, count_key_ids, limited

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from sqlalchemy import ColumnClause, ColumnElement

    from jwt_column.column.header_sql import HeaderSQL
    from jwt_column.column.types import EncryptedJWT

    from ..expired import Expired
    from .base import Stored

__all__ = ["Reencryption"]


class Reencryption:
    """Stale envelopes become current ones.

    Args:
        type_: The column's type.
        value: The column, with its raw type.
        capacity: Bytes that the column holds; a row that would need more is left as it is. None for no limit.
        expired: The treatment of expired rows; None re-encrypts them too.
    """

    calls_out = False
    leaves_plaintext = True

    def __init__(
        self,
        type_: EncryptedJWT,
        value: ColumnClause[Any],
        *,
        capacity: int | None = None,
        expired: Expired | None = None,
    ) -> None:
        self._cipher = type_.cipher()
        self._ring = type_.ring()
        self.key_id: str | None = self._ring.active
        self._stamps = [self._cipher.stamp(key_id) for key_id in self._ring.current_key_ids]
        self.rows = Rows.of(value, type_, self._is_stale, expired)
        self._row = RowBinding(type_)
        self._reseal = self._cipher.resealer(self._ring)
        #: Returns the same token in a new envelope; without a detour where no row values are bound.
        self.convert = limited(
            capacity, self._convert_bound if type_.bound_to else self._reseal, self._cipher.context
        )

    def _is_stale(self, header: HeaderSQL) -> ColumnElement[bool]:
        """Envelopes with another stamp than the one that the column writes today, and values that are no token."""
        return and_(not_(header.has_stamp(*self._stamps)), not_(header.is_plaintext()))

    def _convert_bound(self, stored: Stored, *bound: Any) -> Stored:
        return self._row.open(lambda binding: self._reseal(stored, binding), bound)

    @staticmethod
    def origins(old: Sequence[Stored], new: Sequence[Stored]) -> Counter[str]:  # noqa: ARG004
        """Count the key ids of the old envelopes."""
        return count_key_ids(old)

    def check(self, stored: Stored, *bound: Any) -> None:
        """Open an envelope."""
        self._row.open(lambda binding: self._cipher.decrypt(stored, self._ring, binding), bound)
