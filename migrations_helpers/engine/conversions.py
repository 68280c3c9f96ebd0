"""What one run does to a stored value: which rows need it, and what they become."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from uuid import UUID

from sqlalchemy import and_, not_, or_

from jwt_column.column.cipher import bind_values
from jwt_column.errors import (
    AuthenticationError,
    ConfigurationError,
    DecryptionError,
    InvalidTokenError,
    JWTColumnError,
    MalformedEnvelopeError,
)
from jwt_column.format import envelope

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnElement

    from jwt_column.column.header_sql import HeaderSQL
    from jwt_column.column.types import EncryptedJWT

    from .expired import Expired

    Stored = bytes | str

__all__ = ["Adoption", "Conversion", "Reencryption", "Removal", "was_read"]

_Opened = TypeVar("_Opened")

# The longest header of an envelope, and room for the dot that follows it in the text form.
_HEADER_AND_DOT: Final = envelope.Field(0, max(envelope.HEADER_LENGTHS.values()) + 1)
_CUT_ENVELOPE: Final = re.compile(r"jc(?:[0-9a-f]{2}){6}")
_KEY_ID: Final = slice(
    envelope.KEY_ID_FIELD.offset, envelope.KEY_ID_FIELD.offset + envelope.KEY_ID_FIELD.length
)
_TEXT_KEY_ID: Final = slice(
    len(envelope.TEXT_PREFIX) + 2 * _KEY_ID.start, len(envelope.TEXT_PREFIX) + 2 * _KEY_ID.stop
)
# Why a token that was read is not written: it is longer than the column, or of a form that its type does not take.
_REFUSED_BY_THE_COLUMN: Final = frozenset({"too long", "exp", "claim", "unsigned"})


class Conversion(Protocol):
    """From one stored form to another, row by row; done when no row is pending."""

    #: The key id that rows are written under; None where they become plaintext.
    key_id: str | None
    #: What becomes of expired rows; None where they are treated as any others.
    expired: Expired | None
    #: Whether it calls functions of the application's, which may use the connection of the run.
    calls_out: bool

    def is_pending(self, stored: HeaderSQL) -> ColumnElement[bool]:
        """Return the SQL condition of rows that need work. It reads a value's first bytes only."""

    @property
    def convert(self) -> Callable[..., Stored]:
        """Return the function that makes the new value of a row, from the old one and the bound values.

        It raises JWTColumnError where the value cannot be read or its token not be written; the row is then left as
        it is, and :func:`was_read` tells the two apart.
        """

    def origins(self, old: Sequence[Stored], new: Sequence[Stored]) -> Counter[str]:
        """Count converted rows by what they were under before: a key id, ``plaintext`` or ``foreign``."""

    def check(self, stored: Stored, *bound: Any) -> None:
        """Read a value that needs no work.

        Raises:
            JWTColumnError: The value cannot be read.
        """


def was_read(error: JWTColumnError) -> bool:
    """Say whether a row was read, and it is the column or its type that does not take what was found."""
    return isinstance(error, InvalidTokenError) and error.reason in _REFUSED_BY_THE_COLUMN


class RowBinding:
    """The binding of an envelope to values of its row, as the database gives them back."""

    def __init__(self, type_: EncryptedJWT) -> None:
        self._names = type_.bound_to

    def open(self, action: Callable[[bytes], _Opened], values: Sequence[Any]) -> _Opened:
        """Do something with the binding of a row's values.

        A UUID that the application bound comes back as text from a database without such a type. Under the wrong
        binding nothing authenticates, so the one that does is the one that was meant.

        Raises:
            AuthenticationError: The values are not those that the envelope is bound to.
        """
        try:
            return action(bind_values(zip(self._names, values, strict=True)))
        except AuthenticationError:
            read_as_uuids = [_as_uuid(value) for value in values]
            if read_as_uuids == list(values):
                raise
        return action(bind_values(zip(self._names, read_as_uuids, strict=True)))


def _as_uuid(value: Any) -> Any:
    try:
        return UUID(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _within(room: int | None, convert: Callable[..., Stored], context: str) -> Callable[..., Stored]:
    """Return a function that also refuses a new value of more than so many bytes.

    The database cannot be left to it: MariaDB stores of a long value what is left modulo the length of the column, in
    the UPDATE with a join that is the fastest there, without a warning and in strict mode too.
    """
    if room is None:
        return convert

    def convert_within(stored: Stored, *bound: Any) -> Stored:
        new = convert(stored, *bound)
        size = len(new if isinstance(new, bytes) else new.encode())
        if size > room:
            raise InvalidTokenError(
                f"{context}: the new value has {size} bytes, and the column holds {room}",
                reason="too long",
                context=context,
            )
        return new

    return convert_within


class Reencryption:
    """Stale envelopes become current ones.

    Args:
        type_: The column.
        room: Bytes that a value may have; a row that would need more is left as it is. None for no limit.
        expired: What becomes of expired rows; None re-encrypts them too.
    """

    calls_out: bool = False

    def __init__(
        self, type_: EncryptedJWT, *, room: int | None = None, expired: Expired | None = None
    ) -> None:
        self._cipher = type_.cipher()
        self._ring = type_.ring()
        self.key_id: str | None = self._ring.active
        self.expired = expired
        self._stamps = [self._cipher.stamp(key_id) for key_id in self._ring.current_key_ids]
        self._row = RowBinding(type_)
        self._reseal = self._cipher.resealer(self._ring)
        #: Returns the same token in a new envelope; without a detour where no row values are bound.
        self.convert = _within(
            room, self._convert_bound if type_.bound_to else self._reseal, self._cipher.context
        )

    def _convert_bound(self, stored: Stored, *bound: Any) -> Stored:
        return self._row.open(lambda binding: self._reseal(stored, binding), bound)

    def is_pending(self, stored: HeaderSQL) -> ColumnElement[bool]:
        """Envelopes whose stamp is not the one that the column writes today, and what is no token at all."""
        return and_(not_(stored.has_stamp(*self._stamps)), not_(stored.is_plaintext()))

    @staticmethod
    def origins(old: Sequence[Stored], new: Sequence[Stored]) -> Counter[str]:  # noqa: ARG004
        """Count the key ids of the old envelopes."""
        return _count_key_ids(old)

    def check(self, stored: Stored, *bound: Any) -> None:
        """Open an envelope."""
        self._row.open(lambda binding: self._cipher.decrypt(stored, self._ring, binding), bound)


class Adoption:
    """Plaintext, or what another library wrote, becomes envelopes.

    Args:
        type_: The column.
        decrypt_with: Reads a stored value of another format and returns the token; None reads plaintext.
        room: Bytes that a value may have; a row that would need more is left as it is. None for no limit.

    Raises:
        ConfigurationError: The column is bound to values of its row, which a run over one column does not read.
    """

    expired: Expired | None = None

    def __init__(
        self,
        type_: EncryptedJWT,
        decrypt_with: Callable[[Any], str] | None = None,
        *,
        room: int | None = None,
    ) -> None:
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
        self.calls_out = decrypt_with is not None
        self.key_id: str | None = self._ring.active
        #: Returns the envelope of the token that a value holds.
        self.convert = _within(room, self._convert, self._cipher.context)

    def is_pending(self, stored: HeaderSQL) -> ColumnElement[bool]:
        """Whatever is no envelope.

        In the text form that takes a look at the dot behind the header too: of random base64, which is what the
        formats of other libraries and opaque tokens are, one value in 16 million begins like an envelope.
        """
        if self._cipher.storage == "binary":
            return not_(stored.is_envelope())
        return or_(
            not_(stored.is_envelope()), not_(stored.field(_HEADER_AND_DOT, from_start=True).contains("."))
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
        """Count the values that were tokens themselves, and those of which a reader has made one."""
        if self._reads_plaintext:
            return Counter(plaintext=len(old))
        return Counter(
            "plaintext" if self._is_token_of(*pair) else "foreign" for pair in zip(old, new, strict=True)
        )

    def _is_token_of(self, stored: Stored, envelope_of_it: Stored) -> bool:
        data = stored.encode() if isinstance(stored, str) else bytes(stored)
        return data == self._cipher.decrypt(envelope_of_it, self._ring).encode()

    def check(self, stored: Stored, *_bound: Any) -> None:
        """Open the envelope of a row that was adopted before."""
        self._cipher.decrypt(stored, self._ring)

    def _token(self, stored: Stored) -> str:
        if isinstance(stored, str) and _CUT_ENVELOPE.match(stored):
            # Where the column takes opaque tokens, it would pass for one, and be encrypted a second time.
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
        # Whatever a reader raises may hold the value; only its class is passed on.
        raise InvalidTokenError(
            f"{self._cipher.context}: the value could not be read ({failure})",
            reason="unreadable",
            context=self._cipher.context,
        )


class Removal:
    """Envelopes become plaintext, for leaving this package.

    Args:
        type_: The column.
        room: Bytes that a value may have; a row that would need more is left as it is. None for no limit.
    """

    key_id: str | None = None
    expired: Expired | None = None
    calls_out: bool = False

    def __init__(self, type_: EncryptedJWT, *, room: int | None = None) -> None:
        self._cipher = type_.cipher()
        self._ring = type_.ring()
        self._row = RowBinding(type_)
        #: Returns the token in the clear.
        self.convert = _within(room, self._convert, self._cipher.context)

    def is_pending(self, stored: HeaderSQL) -> ColumnElement[bool]:
        """Envelopes, under any key."""
        return stored.is_envelope()

    def _convert(self, stored: Stored, *bound: Any) -> Stored:
        token = str(self._row.open(lambda binding: self._cipher.decrypt(stored, self._ring, binding), bound))
        return token if self._cipher.storage == "text" else token.encode()

    @staticmethod
    def origins(old: Sequence[Stored], new: Sequence[Stored]) -> Counter[str]:  # noqa: ARG004
        """Count the key ids of the old envelopes."""
        return _count_key_ids(old)

    def check(self, stored: Stored, *bound: Any) -> None:
        """Open what is left of an envelope: nothing is read of a token in the clear."""
        if envelope.looks_like_envelope(stored):
            self._row.open(lambda binding: self._cipher.decrypt(stored, self._ring, binding), bound)


def _count_key_ids(stored: Sequence[Stored]) -> Counter[str]:
    # Of many values few begin differently, and only those are written in hex.
    counted = Counter([value[_KEY_ID] if type(value) is bytes else value[_TEXT_KEY_ID] for value in stored])
    key_ids: Counter[str] = Counter()
    for key_id, rows in counted.items():
        key_ids[key_id.hex() if isinstance(key_id, bytes) else key_id] += rows
    return key_ids


def _read_plaintext(stored: Stored) -> str:
    try:
        return stored if isinstance(stored, str) else stored.decode()
    except UnicodeDecodeError:
        raise InvalidTokenError("neither an envelope nor text", reason="not UTF-8") from None
