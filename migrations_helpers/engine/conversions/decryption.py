"""Envelopes become plaintext, for leaving this package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jwt_column.column.binding import open_bound
from jwt_column.format import envelope

from .base import Rows, count_key_ids, limited

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnClause

    from jwt_column.column.types import EncryptedJWT
    from jwt_column.format.token import JWT

    from .base import Stored

__all__ = ["Decryption"]


class Decryption:
    """Envelopes become plaintext, for leaving this package.

    Args:
        type_: The column's type.
        value: The column, with its raw type.
        capacity: Bytes that the column holds; a row that would need more is left as it is. None for no limit.
    """

    key_id: str | None = None
    calls_out = False
    leaves_plaintext = False

    def __init__(self, type_: EncryptedJWT, value: ColumnClause[Any], *, capacity: int | None = None) -> None:
        self._cipher = type_.cipher()
        self._ring = type_.ring()
        self._names = type_.bound_to
        # Envelopes, under any key.
        self.rows: Rows = Rows.of(value, type_, lambda header: header.is_envelope())
        #: Returns the token in the clear.
        self.convert: Callable[..., Stored] = limited(capacity, self._convert, self._cipher.context)

    def _convert(self, stored: Stored, *bound: Any) -> Stored:
        token = str(self._open(stored, bound))
        return token if self._cipher.storage == "text" else token.encode()

    @staticmethod
    def origins(old: Sequence[Stored], new: Sequence[Stored]) -> Counter[str]:  # noqa: ARG004
        """Count the key ids of the old envelopes."""
        return count_key_ids(old)

    def token(self, stored: Stored, *bound: Any) -> Stored:
        """Return the token of an envelope; plaintext is one."""
        return self._open(stored, bound) if envelope.looks_like_envelope(stored) else stored

    def _open(self, stored: Stored, bound: Sequence[Any]) -> JWT:
        return open_bound(
            lambda binding: self._cipher.decrypt(stored, self._ring, binding), self._names, bound
        )
