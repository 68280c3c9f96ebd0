"""The rows of one column with their stored values, read in batches by primary key and opened."""

from __future__ import annotations

import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import select, type_coerce
from sqlalchemy.types import NullType

from ..column.binding import open_bound
from ..database.key_order import KeyOrder, KeyRange, paged_by, sampled, unreadable_key
from ..database.reading import rolled_back, streamed
from ..errors import AuthenticationError, ConfigurationError, JWTColumnError, KeyRingError
from ..format import envelope
from ..format.token import JWT, unchecked_jwt

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from sqlalchemy import Connection

    from ..column.cipher import TokenCipher
    from ..keys.ring import KeyRing
    from .columns import AuditedColumn

#: Rows that are in memory at once.
BATCH: Final = 500

#: Rows of a column that may open nowhere before the other columns of the audit are no longer tried.
PATIENCE: Final = 1_000

_STAMP_LENGTH: Final = envelope.STAMP_FIELD.length


class StoredRow(NamedTuple):
    """One row: its primary key, the values that its token is bound to, and the stored value."""

    key: tuple[Any, ...]
    bound: tuple[Any, ...]
    stored: Any


def batches(
    connection: Connection, column: AuditedColumn, rows: int, sample: int | None
) -> Iterator[list[StoredRow]]:
    """Yield the rows that hold a value, *rows* in number, or an even sample of them.

    Each batch is a transaction of its own, except for a table that cannot be paged by its primary key.
    """
    # The value as the driver returns it: a column of bytes may hold text in SQLite.
    columns = (*column.bound, type_coerce(column.column, NullType()))
    has_value = column.header.has_value()
    dialect = connection.dialect.name
    order = None
    with suppress(ConfigurationError):
        order = KeyOrder(column.table, paged_by(column.table, dialect), dialect)
        with rolled_back(connection):
            if unreadable_key(connection, order, connection.dialect.driver, has_value) is not None:
                order = None
    if order is None:
        yield from _stream(connection, column, columns, sample)
        return
    parts = iter([(KeyRange(), sys.maxsize)])
    if sample is not None and sample < rows:
        parts = sampled(connection, order, rows, sample, has_value)
    while True:
        with rolled_back(connection):
            part = next(parts, None)
        if part is None:
            return
        window, left = part
        while left > 0:
            size = min(BATCH, left)
            with rolled_back(connection):
                found = connection.execute(order.batch(columns, window, size, has_value)).all()
            if found:
                yield [_row(found_row, len(order.keys)) for found_row in found]
                window = KeyRange(after=order.key_of(found[-1]))
            left = left - size if len(found) == size else 0


def _stream(
    connection: Connection, column: AuditedColumn, columns: Sequence[Any], sample: int | None
) -> Iterator[list[StoredRow]]:
    """Yield the rows of a table that cannot be paged by its primary key, or has none, in any order."""
    statement = select(*column.keys, *columns).where(column.header.has_value()).limit(sample)
    statement = statement.execution_options(**streamed(connection, BATCH))
    with rolled_back(connection), closing(connection.execute(statement)) as result:
        for found in result.partitions(BATCH):
            yield [_row(row, len(column.keys)) for row in found]


def _row(row: Sequence[Any], keys: int) -> StoredRow:
    stored = row[-1]
    if isinstance(stored, bytearray | memoryview):
        stored = bytes(stored)
    return StoredRow(tuple(row[:keys]), tuple(row[keys:-1]), stored)


class Opened(NamedTuple):
    """The result of opening a stored value: the token, and the code of a finding, if there is one.

    With ``"moved"`` the origin is the column that the envelope was written for, with ``"other-context"`` its context.
    """

    token: JWT | None
    code: str | None = None
    origin: str = ""


_NOTHING: Final = Opened(None)


class Origin(NamedTuple):
    """A context of the audit, from which an envelope may have been moved into a column of another one."""

    column: str
    cipher: TokenCipher
    ring: KeyRing


class Opener:
    """Opens the stored values of one column, and finds out why some do not open.

    The column may have had one of *try_contexts* before a rename.
    """

    def __init__(
        self,
        column: AuditedColumn,
        ring: KeyRing,
        origins: Iterable[Origin],
        try_contexts: Collection[str] = (),
    ) -> None:
        self._cipher = column.type_.cipher()
        self._ring = ring
        self._names = column.type_.bound_to
        #: The other contexts of the audit, those that an envelope was found to be from first.
        self._origins = [one for one in origins if one.cipher.context != self._cipher.context]
        self._found_origins: set[str] = set()
        self._earlier = [column.type_.in_context(one).cipher() for one in try_contexts]
        #: Returns the tokens that a decrypted value holds.
        self.tokens_in: Callable[[JWT], Iterable[JWT]] = self._cipher.tokens_in
        #: Returns the claims of a token that the column cannot index, and whether its expiry is one of them.
        self.unindexed: Callable[[JWT], tuple[Sequence[str], bool]] = self._cipher.unindexed
        #: Envelopes that opened in the column's context or an earlier one.
        self.opened: int = 0
        #: Envelopes that authenticated in no context that was tried.
        self.unauthenticated: int = 0

    def open(self, row: StoredRow) -> Opened:
        """Open one row.

        Values that are no envelopes and envelopes under a key that the ring lacks are counted by SQL; they are no
        findings here.
        """
        stored = row.stored
        if not _is_envelope(stored):
            return Opened(_plaintext(stored))
        try:
            token = self._open(row, self._cipher)
        except KeyRingError:
            return _NOTHING
        except AuthenticationError:
            pass
        except Exception:  # noqa: BLE001 - one damaged row does not end the audit of the others
            return Opened(None, "undecryptable")
        else:
            self.opened += 1
            if self._cipher.is_of_another_type(token):
                return Opened(token, "other-type")
            differs = self._cipher.has_other_fields(stored, token, self._ring)
            return Opened(token, "index-differs" if differs else None)
        return self._explain(row)

    def _open(self, row: StoredRow, cipher: TokenCipher) -> JWT:
        if not self._names:
            return cipher.decrypt(row.stored, self._ring)
        return open_bound(
            lambda binding: cipher.decrypt(row.stored, self._ring, binding), self._names, row.bound
        )

    def _explain(self, row: StoredRow) -> Opened:
        """Find out why an envelope does not authenticate: another name or column, bound to no row, or changed."""
        stored = row.stored
        for cipher in self._earlier:
            with suppress(JWTColumnError):
                opened = Opened(self._open(row, cipher), "other-context", cipher.context)
                self.opened += 1
                return opened
        if self._names:
            token = _try(self._cipher, stored, self._ring)
            if token is not None:
                return Opened(token, "unbound")
        return self._moved(stored) or Opened(None, "undecryptable")

    def _moved(self, stored: Any) -> Opened | None:
        """Return the token and the column of an envelope that opens in another context of the audit."""
        for place, origin in enumerate(self._origins):
            token = _try(origin.cipher, stored, origin.ring)
            if token is not None:
                self._origins.insert(0, self._origins.pop(place))
                self._found_origins.add(origin.column)
                return Opened(token, "moved", origin.column)
        self.unauthenticated += 1
        if self.unauthenticated == PATIENCE:
            # As after a rename: the rows that follow open nowhere, either, and each would be tried in every context.
            self._origins = [one for one in self._origins if one.column in self._found_origins]
        return None


def _try(cipher: TokenCipher, stored: Any, ring: KeyRing) -> JWT | None:
    try:
        return cipher.decrypt(stored, ring)
    except JWTColumnError:
        return None


def _is_envelope(stored: Any) -> bool:
    """Return True if a value begins like an envelope of this version, as HeaderSQL.is_envelope() decides it."""
    if isinstance(stored, str):
        start = envelope.TEXT_PREFIX + envelope.VERSION.hex()
        return stored.startswith(start) and len(stored) >= len(envelope.TEXT_PREFIX) + 2 * _STAMP_LENGTH
    return isinstance(stored, bytes) and stored.startswith(envelope.VERSION) and len(stored) >= _STAMP_LENGTH


def _plaintext(stored: Any) -> JWT | None:
    """Return the value as a JWT if it may be plaintext, else None."""
    if isinstance(stored, bytes):
        try:
            stored = stored.decode()
        except UnicodeDecodeError:
            return None
    return unchecked_jwt(stored) if isinstance(stored, str) else None


def check_bound(column: AuditedColumn) -> None:
    """Raise a ConfigurationError if a name of ``bound_to`` is no column of the table, so that no row can be opened."""
    if len(column.bound) != len(column.type_.bound_to):
        raise ConfigurationError(
            f"{column.name} is bound to attributes that are no columns of {column.table.fullname}; audit the mapped "
            "attribute or its class, which says what they are",
            context=column.context,
        )
