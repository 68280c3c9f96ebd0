"""The parts that the conversions share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import and_, not_, or_

from jwt_column.column.binding import open_bound
from jwt_column.column.cipher import OTHER_TYPE
from jwt_column.column.header_sql import HeaderSQL
from jwt_column.errors import InvalidTokenError, JWTColumnError
from jwt_column.format import envelope

from ..layouts import holds_more

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnClause, ColumnElement

    from jwt_column.column.types import EncryptedJWT
    from jwt_column.format.token import JWT

    from ..expired import Expired
    from ..layouts import Allowed


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


class Conversion(Protocol):
    """From one stored form to another, row by row; done when no row is pending.

    It is made of the column's type, the raw column, and ``capacity=``: a row that would need more bytes is left.
    """

    #: The key id that rows are written under; None if they become plaintext.
    key_id: str | None
    #: Whether it calls functions of the application's, which may use the connection of the run.
    calls_out: bool
    #: Whether plaintext is left as it is: such rows are neither pending nor current.
    leaves_plaintext: bool
    rows: Rows

    @property
    def convert(self) -> Callable[..., Stored]:
        """The function that makes the new value of a row, from the old one and the bound values.

        It raises JWTColumnError where the value cannot be read or its token not be written; the row is then left as
        it is, and :func:`was_read` tells the two apart.
        """

    def origins(self, old: Sequence[Stored], new: Sequence[Stored]) -> Counter[str]:
        """Count converted rows by their form before: a key id, ``plaintext`` or ``foreign``."""

    def token(self, stored: Stored, *bound: Any) -> Stored:
        """Return the token that a value holds, whether the value needs work or not.

        Raises:
            JWTColumnError: The value cannot be read.
        """


class OfEnvelopes:
    """The part of a conversion that reads envelopes."""

    calls_out = False

    def __init__(self, type_: EncryptedJWT) -> None:
        self.type_ = type_
        self._cipher = type_.cipher()
        self._ring = type_.ring()

    @staticmethod
    def origins(old: Sequence[Stored], new: Sequence[Stored]) -> Counter[str]:  # noqa: ARG004
        """Count envelopes by their key id."""
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
        """Return the token of an envelope; plaintext is one."""
        return self.open(stored, *bound) if envelope.looks_like_envelope(stored) else stored


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
