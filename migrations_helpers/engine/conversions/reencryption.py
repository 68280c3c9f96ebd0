"""Stale envelopes become current ones."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, not_

from jwt_column.column.binding import open_bound
from jwt_column.database.key_order import KeyRange

from ..layouts import Allowed, FoundFields
from .base import OfEnvelopes, Rows, limited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import ColumnClause, ColumnElement, Row, Select

    from jwt_column.column.header_sql import HeaderSQL
    from jwt_column.column.types import EncryptedJWT

    from ..expired import Expired
    from ..table import RunTable
    from .base import Stored


logger: logging.Logger = logging.getLogger("migrations_helpers")

# Rows that are opened to find the names of their fingerprints. A claim that one row lacks, another one may have.
_SAMPLED: Final = 20


class Reencryption(OfEnvelopes):
    """Stale envelopes become current ones.

    *drop* names index fields that rows may lose; see :class:`~migrations_helpers.engine.layouts.Allowed`.
    """

    leaves_plaintext = True

    def __init__(
        self,
        type_: EncryptedJWT,
        value: ColumnClause[Any],
        *,
        capacity: int | None = None,
        expired: Expired | None = None,
        drop: tuple[str, ...] = (),
    ) -> None:
        super().__init__(type_)
        self.key_id: str | None = self._ring.active
        self._stamps = [self._cipher.stamp(key_id) for key_id in self._ring.current_key_ids]
        self.allowed: Allowed = Allowed(type_, drop)
        self.rows: Rows = Rows.of(
            value, type_, self._is_stale, expired, self.allowed, self._ring.destroyed_key_ids
        )
        self._reseal = self._cipher.resealer(self._ring)
        #: Returns the same token in a new envelope; without a detour where no row values are bound.
        self.convert: Callable[..., Stored] = limited(
            capacity, self._convert_bound if type_.bound_to else self._reseal, self._cipher.context
        )

    def _is_stale(self, header: HeaderSQL) -> ColumnElement[bool]:
        """Envelopes with another stamp than the one that the column writes today, and values that are no token."""
        return and_(not_(header.has_stamp(*self._stamps)), not_(header.is_plaintext()))

    def _convert_bound(self, stored: Stored, *bound: Any) -> Stored:
        return open_bound(lambda binding: self._reseal(stored, binding), self.type_.bound_to, bound)


class Recomputation(Reencryption):
    """Current envelopes whose index fields are not those of their token get a new envelope; others stay as they are.

    An older release may have made other fingerprints or another expiry of a token. No condition of SQL tells such rows,
    so every current one is opened.
    """

    def __init__(self, type_: EncryptedJWT, value: ColumnClause[Any], *, capacity: int | None = None) -> None:
        super().__init__(type_, value, capacity=capacity)
        rows = self.rows
        self.rows: Rows = replace(rows, pending=rows.finished, expired=None, removed=False, protected=None)
        self._convert = self.convert
        self.convert: Callable[..., Stored] = self._convert_others

    def _convert_others(self, stored: Stored, *bound: Any) -> Stored:
        """Return the new envelope of a row, or the very value if it needs none."""
        token = self.open(stored, *bound)
        if not self._cipher.has_other_fields(stored, token, self._ring):
            return stored
        return self._convert(stored, *bound)


def find_lost_fields(
    read: Callable[[Select[Any]], Iterable[Row[Any]]],
    table: RunTable,
    conversion: Reencryption,
    *,
    is_any_protected: bool,
) -> str | None:
    """Return a sentence on the index fields that a run would drop, with the type that keeps them, or None.

    If no row is protected, which is one with more fields than the conversion may drop, names are compared.
    """
    found = FoundFields(conversion.type_, conversion.open)
    conditions = [conversion.rows.pending]
    if is_any_protected and conversion.rows.protected is not None:
        conditions.insert(0, conversion.rows.protected)
    for condition in conditions:
        for row in read(table.rows(condition, KeyRange(), _SAMPLED)):
            found.add(row[-1], table.bound_of(row))
    name = f"{table.name}.{table.value.name}"
    lost = found.lost(conversion.allowed)
    if not lost:
        absent = found.absent(conversion.allowed.drop)
        if absent:
            # No error: of rows that are done, or that never had the field, the same migration has nothing to drop.
            logger.warning(
                "%s: drop names %s, which none of the first rows has; is it misspelt?",
                name,
                ", ".join(map(repr, absent)),
            )
        return None
    return (
        f"{name}: rows have {' and '.join(lost)}, which type_ does not make and a run would "
        f"drop. Write type_={found.rendered()}"
    )
