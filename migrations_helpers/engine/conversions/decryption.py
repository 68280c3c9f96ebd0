"""Envelopes become plaintext, for leaving this package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import OfEnvelopes, Rows, limited

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import ColumnClause

    from jwt_column.column.types import EncryptedJWT

    from .base import Stored


class Decryption(OfEnvelopes):
    """Envelopes become plaintext, for leaving this package."""

    key_id: str | None = None
    leaves_plaintext = False

    def __init__(self, type_: EncryptedJWT, value: ColumnClause[Any], *, capacity: int | None = None) -> None:
        super().__init__(type_)
        # Envelopes, under any key.
        self.rows: Rows = Rows.of(value, type_, lambda header: header.is_envelope())
        #: Returns the token in the clear.
        self.convert: Callable[..., Stored] = limited(capacity, self._convert, self._cipher.context)

    def _convert(self, stored: Stored, *bound: Any) -> Stored:
        token = str(self.open(stored, *bound))
        return token if self._cipher.storage == "text" else token.encode()
