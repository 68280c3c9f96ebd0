"""From one stored form of a token to another, row by row: the rows that need it, and their new values."""

from __future__ import annotations

import logging
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, not_, or_

from jwt_column.column.binding import open_bound
from jwt_column.column.cipher import OTHER_TYPE
from jwt_column.column.header_sql import HeaderSQL
from jwt_column.database.key_order import KeyRange
from jwt_column.errors import (
    ConfigurationError,
    DecryptionError,
    InvalidTokenError,
    JWTColumnError,
    KeyUnavailableError,
    MalformedEnvelopeError,
)
from jwt_column.format import envelope
from jwt_column.option_values import FUNCTION

from .layouts import Allowed, FoundFields, holds_more

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import ColumnClause, ColumnElement, Row, Select

    from jwt_column.column.types import EncryptedJWT
    from jwt_column.format.token import JWT

    from .expired import Expired
    from .table import RunTable

logger: logging.Logger = logging.getLogger("migrations_helpers")

#: A value as the database has it.
Stored = bytes | str

_KEY_ID: Final = slice(
    envelope.KEY_ID_FIELD.offset, envelope.KEY_ID_FIELD.offset + envelope.KEY_ID_FIELD.length
)
_TEXT_KEY_ID: Final = slice(
    len(envelope.TEXT_PREFIX) + 2 * _KEY_ID.start, len(envelope.TEXT_PREFIX) + 2 * _KEY_ID.stop
)
# Why a token that was read is not written: it is longer than the column, or of a form that its type does not take.
_REFUSED_BY_THE_COLUMN: Final = frozenset({OTHER_TYPE, "too long", "unsigned"})
# Rows that are opened to find the names of their fingerprints. A claim that one row lacks, another one may have.
_SAMPLED: Final = 20
# The longest header of an envelope, and the dot that follows it in the text form.
_HEADER_AND_DOT: Final = envelope.Field(0, max(envelope.HEADER_LENGTHS.values()) + 1)
_CUT_ENVELOPE: Final = re.compile(r"jc(?:[0-9a-f]{2}){6}")


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a column by the work that they need: SQL conditions that read a value's first bytes only.

    Attributes:
        pending: Rows to convert.
        expired: Rows that would be converted, had their token not expired; None if a run does not tell them apart.
        removed: Whether those are cleared or deleted.
        protected: Rows that would lose index fields, which no run may take away; None if there cannot be any.
        plaintext: Rows that hold a token in the clear.
        finished: Rows that need no conversion and are no plaintext.
        destroyed: Rows under a key that was destroyed on purpose, which are none of these; None if there is no such
            key.
    """

    pending: ColumnElement[bool]
    expired: ColumnElement[bool] | None
    removed: bool
    protected: ColumnElement[bool] | None
    plaintext: ColumnElement[bool]
    finished: ColumnElement[bool]
    destroyed: ColumnElement[bool] | None = None

    @classmethod
    def of(
        cls,
        value: ColumnClause[Any],
        type_: EncryptedJWT,
        is_pending: Callable[[HeaderSQL], ColumnElement[bool]],
        expired: Expired | None = None,
        allowed: Allowed | None = None,
        destroyed: Sequence[str] = (),
    ) -> Rows:
        """Return the conditions of a column, from the one that tells a conversion's rows from the others."""
        header = HeaderSQL(value, type_)
        pending, plaintext = is_pending(header), header.is_plaintext()
        gone = header.is_under(*destroyed) if destroyed else None
        if gone is not None:
            pending = and_(pending, not_(gone))
        has_value = header.has_value()
        protected = None if allowed is None else holds_more(header, allowed)
        spared = [] if expired is None else [expired.spares(header)]
        spared += [] if protected is None else [not_(protected)]
        return cls(
            pending=and_(has_value, pending, *spared),
            expired=None if expired is None else and_(has_value, pending, expired.covers(header)),
            removed=expired is not None and expired.removes,
            protected=protected,
            plaintext=plaintext,
            finished=and_(has_value, not_(or_(pending, plaintext, *(() if gone is None else (gone,))))),
            destroyed=gone,
        )

    @property
    def work(self) -> ColumnElement[bool]:
        """Rows that a run changes."""
        if self.expired is None or not self.removed:
            return self.pending
        return or_(self.pending, self.expired)


class Conversion:
    """From one stored form to another, row by row; done when no row is pending. Here, of envelopes.

    It is made of the column's type, the raw column, and ``capacity=``: a row that would need more bytes is left.

    Attributes:
        key_id: The key id that rows are written under; None if they become plaintext.
        calls_out: Whether it calls functions of the application's, which may use the connection of the run.
        leaves_plaintext: Whether plaintext is left as it is: such rows are neither pending nor current.
        rows: The rows by the work that they need.
        convert: Makes the new value of a row, from the old one and the bound values. It raises JWTColumnError where the
            value cannot be read or its token not be written; the row is then left as it is, and :func:`was_read` tells
            the two apart.
    """

    key_id: str | None = None
    calls_out: bool = False
    leaves_plaintext: bool = False
    rows: Rows
    convert: Callable[..., Stored]

    def __init__(self, type_: EncryptedJWT) -> None:
        self.type_ = type_
        self._cipher = type_.cipher()
        self._ring = type_.ring()

    def origins(self, old: Sequence[Stored], new: Sequence[Stored]) -> Counter[str]:  # noqa: ARG002
        """Count converted rows by their form before: a key id, ``plaintext`` or ``foreign``."""
        # Of many values few begin differently, and only those are written in hex.
        counted = Counter([value[_KEY_ID] if type(value) is bytes else value[_TEXT_KEY_ID] for value in old])
        key_ids: Counter[str] = Counter()
        for key_id, rows in counted.items():
            key_ids[key_id.hex() if isinstance(key_id, bytes) else key_id] += rows
        return key_ids

    def open(self, stored: Stored, *bound: Any) -> JWT:
        """Return the token of an envelope."""
        return open_bound(
            lambda binding: self._cipher.decrypt(stored, self._ring, binding), self.type_.bound_to, bound
        )

    def token(self, stored: Stored, *bound: Any) -> Stored:
        """Return the token that a value holds, whether the value needs work or not.

        Raises:
            JWTColumnError: The value cannot be read.
        """
        return self.open(stored, *bound) if envelope.looks_like_envelope(stored) else stored

    def token_or_none(self, stored: Stored, *bound: Any) -> Stored | None:
        """Return the token that a value holds, or None if it cannot be read.

        Raises:
            KeyUnavailableError: A key server did not answer; this is no fault of the row.
        """
        try:
            return self.token(stored, *bound)
        except KeyUnavailableError:
            raise
        except JWTColumnError:
            return None


def was_read(error: JWTColumnError) -> bool:
    """Return True if the row decrypted but its token does not fit the column."""
    return isinstance(error, InvalidTokenError) and error.reason in _REFUSED_BY_THE_COLUMN


def limited(capacity: int | None, convert: Callable[..., Stored], context: str) -> Callable[..., Stored]:
    """Return a function that also refuses a new value of more than *capacity* bytes.

    The database cannot be left to it. In the UPDATE with a join that is the fastest there, MariaDB stores the rest of
    the value's length divided by the column's, without a warning and in strict mode too.
    """
    if capacity is None:
        return convert

    def convert_within(stored: Stored, *bound: Any) -> Stored:
        new = convert(stored, *bound)
        size = len(new if isinstance(new, bytes) else new.encode())
        if size > capacity:
            raise InvalidTokenError(
                f"{context}: the new value has {size} bytes, and the column holds {capacity}",
                reason="too long",
                context=context,
            )
        return new

    return convert_within


class Reencryption(Conversion):
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
        # Without a detour where no row values are bound.
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


class Decryption(Conversion):
    """Envelopes become plaintext, for leaving this package."""

    def __init__(self, type_: EncryptedJWT, value: ColumnClause[Any], *, capacity: int | None = None) -> None:
        super().__init__(type_)
        # Envelopes, under any key.
        self.rows: Rows = Rows.of(value, type_, lambda header: header.is_envelope())
        self.convert: Callable[..., Stored] = limited(capacity, self._convert, self._cipher.context)

    def _convert(self, stored: Stored, *bound: Any) -> Stored:
        token = str(self.open(stored, *bound))
        return token if self._cipher.storage == "text" else token.encode()


class Adoption(Conversion):
    """Plaintext, or the ciphertext of another library, becomes envelopes.

    *decrypt_with* reads a stored value of another format and returns the token; None reads plaintext.

    Raises:
        ConfigurationError: The column is bound to values of its row, which a run over one column does not read.
    """

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
        super().__init__(type_)
        self._read = decrypt_with or _read_plaintext
        self._reads_plaintext = decrypt_with is None
        self.calls_out: bool = decrypt_with is not None
        self.key_id: str | None = self._ring.active
        self.rows: Rows = Rows.of(value, type_, self._is_no_envelope, destroyed=self._ring.destroyed_key_ids)
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


def find_lost_fields(
    read: Callable[[Select[Any]], Iterable[Row[Any]]],
    table: RunTable,
    conversion: Reencryption,
    *,
    protected: int = _SAMPLED,
    pending: int = _SAMPLED,
) -> str | None:
    """Return a sentence on the index fields that a run would drop, with the type that keeps them, or None.

    *protected* and *pending* are how many rows there are of these kinds, if they were counted. A protected one has more
    fields than the conversion may drop; of the others, names are compared.
    """
    found = FoundFields(conversion.type_, conversion.open)
    for condition, known in ((conversion.rows.protected, protected), (conversion.rows.pending, pending)):
        if condition is not None and known:
            for row in read(table.rows(condition, KeyRange(), _SAMPLED, known=known)):
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
