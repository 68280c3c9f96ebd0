"""Plaintext, or the ciphertext of another library, becomes envelopes."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import not_, or_

from jwt_column.errors import (
    ConfigurationError,
    DecryptionError,
    InvalidTokenError,
    JWTColumnError,
    MalformedEnvelopeError,
)
from jwt_column.format import envelope
from jwt_column.option_values import FUNCTION

from .base import Rows, limited

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnClause, ColumnElement

    from jwt_column.column.header_sql import HeaderSQL
    from jwt_column.column.types import EncryptedJWT

    from .base import Stored


# The longest header of an envelope, and the dot that follows it in the text form.
_HEADER_AND_DOT: Final = envelope.Field(0, max(envelope.HEADER_LENGTHS.values()) + 1)
_CUT_ENVELOPE: Final = re.compile(r"jc(?:[0-9a-f]{2}){6}")


class Adoption:
    """Plaintext, or the ciphertext of another library, becomes envelopes.

    *decrypt_with* reads a stored value of another format and returns the token; None reads plaintext.

    Raises:
        ConfigurationError: The column is bound to values of its row, which a run over one column does not read.
    """

    leaves_plaintext = False

    def __init__(
        self,
        type_: EncryptedJWT,
        value: ColumnClause[Any],
        decrypt_with: Callable[[Any], str] | None = None,
        *,
        capacity: int | None = None,
    ) -> None:
        FUNCTION.or_none.check(decrypt_with=decrypt_with)
        if type_.bound_to:
            raise ConfigurationError(
                f"{type_.context} is bound to {', '.join(type_.bound_to)} of its row, and envelopes made here would "
                "not be; write such rows through the ORM",
                context=type_.context,
            )
        self._cipher = type_.cipher()
        self._ring = type_.ring()
        self._read = decrypt_with or _read_plaintext
        self._reads_plaintext = decrypt_with is None
        self.calls_out: bool = decrypt_with is not None
        self.key_id: str | None = self._ring.active
        self.rows: Rows = Rows.of(value, type_, self._is_no_envelope, destroyed=self._ring.destroyed_key_ids)
        #: Returns the envelope of the token that a value holds.
        self.convert: Callable[..., Stored] = limited(capacity, self._convert, self._cipher.context)

    def _is_no_envelope(self, header: HeaderSQL) -> ColumnElement[bool]:
        """Values that are no envelope.

        The text form looks at the dot behind the header too. Formats of other libraries and opaque tokens are random
        base64, of which one value in 16 million begins like an envelope.
        """
        if self._cipher.storage == "binary":
            return not_(header.is_envelope())
        return or_(
            not_(header.is_envelope()), not_(header.field(_HEADER_AND_DOT, from_start=True).contains("."))
        )

    def _convert(self, stored: Stored, *_bound: Any) -> Stored:
        token = self._token(stored)
        new = self._cipher.encrypt(token, self._ring)
        # It is about to replace the only copy of the token.
        if self._cipher.decrypt(new, self._ring) != token:
            raise DecryptionError(
                f"{self._cipher.context}: a new envelope did not give its token back; it was not used. "
                "This is a fault of the machine or of this package",
                context=self._cipher.context,
            )
        return new

    def origins(self, old: Sequence[Stored], new: Sequence[Stored]) -> Counter[str]:
        """Count plaintext values, and values that a reader decrypted."""
        if self._reads_plaintext:
            return Counter(plaintext=len(old))
        return Counter(
            "plaintext" if self._is_token_of(*pair) else "foreign" for pair in zip(old, new, strict=True)
        )

    def _is_token_of(self, stored: Stored, envelope_of_it: Stored) -> bool:
        data = stored.encode() if isinstance(stored, str) else bytes(stored)
        return data == self._cipher.decrypt(envelope_of_it, self._ring).encode()

    def token(self, stored: Stored, *_bound: Any) -> Stored:
        """Return the token of a row that was adopted, or that is yet to be."""
        if envelope.looks_like_envelope(stored):
            # Ciphertext of another library can begin as an envelope does.
            with suppress(MalformedEnvelopeError):
                return self._cipher.decrypt(stored, self._ring)
        return self._token(stored)

    def _token(self, stored: Stored) -> str:
        if isinstance(stored, str) and _CUT_ENVELOPE.match(stored):
            # In a column of opaque tokens it would pass for one, and be encrypted a second time.
            raise MalformedEnvelopeError(
                f"{self._cipher.context}: the value ({len(stored)} characters) begins as an envelope and does not go "
                "on as one",
                reason="truncated",
                context=self._cipher.context,
            )
        try:
            return self._cipher.check(self._read(stored), keep_frame=True)
        except JWTColumnError:
            raise
        except Exception as error:  # noqa: BLE001
            failure = type(error).__name__
        # The exception of a reader may hold the value; only its class is passed on.
        raise InvalidTokenError(
            f"{self._cipher.context}: the value could not be read ({failure})",
            reason="unreadable",
            context=self._cipher.context,
        )


def _read_plaintext(stored: Stored) -> str:
    try:
        return stored if isinstance(stored, str) else stored.decode()
    except UnicodeDecodeError:
        raise InvalidTokenError("neither an envelope nor text", reason="not UTF-8") from None
