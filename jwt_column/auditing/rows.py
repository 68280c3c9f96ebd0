"""The rows of one column with their stored values, read in batches by primary key and opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import select, type_coerce
from sqlalchemy.types import NullType

from ..column.binding import open_bound
from ..database.key_order import KeyOrder, KeyRange, sampled
from ..database.reading import rolled_back, streamed
from ..errors import AuthenticationError, ConfigurationError, JWTColumnError, KeyRingError
from ..format import envelope
from ..format.token import JWT, unchecked_jwt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection

    from ..column.cipher import TokenCipher
    from ..keys.ring import KeyRing
    from .columns import AuditedColumn

__all__ = ["Opened", "Opener", "StoredRow", "batches"]

#: Rows that are in memory at once.
BATCH: Final = 500

_STAMP_LENGTH: Final = envelope.STAMP_FIELD.length


class StoredRow(NamedTuple):
    """One row: its primary key, the values that its token is bound to, and the stored value."""

    key: tuple[Any, ...]
    bound: tuple[Any, ...]
    stored: Any


def batches(
    connection: Connection, column: AuditedColumn, rows: int, sample: int | None
) -> Iterator[list[StoredRow]]:
    """Yield the rows that hold a value: all, or an even sample.

    Args:
        connection: Each batch is a transaction of its own on it, except for a table without a primary key.
        column: The column.
        rows: The number of rows with a value.
        sample: The number of rows to read, or None for all.
    """
    # The value as the driver returns it: a column of bytes may hold text in SQLite.
    columns = (*column.bound, type_coerce(column.column, NullType()))
    has_value = column.header.has_value()
    keys = column.keys
    if not keys:
        yield from _stream(connection, column, columns, sample)
        return
    order = KeyOrder(column.table, keys, connection.dialect.name)
    parts: Iterator[tuple[KeyRange, int | None]] = iter([(KeyRange(), None)])
    if sample is not None and sample < rows:
        parts = sampled(connection, order, rows, sample, has_value)
    while True:
        with rolled_back(connection):
            part = next(parts, None)
        if part is None:
            return
        window, left = part
        while left is None or left > 0:
            size = BATCH if left is None else min(BATCH, left)
            with rolled_back(connection):
                found = connection.execute(order.batch(columns, window, size, has_value)).all()
            if found:
                yield [_row(found_row, len(keys)) for found_row in found]
                window = KeyRange(after=order.key_of(found[-1]))
            if len(found) < size:
                break
            left = None if left is None else left - size


def _stream(
    connection: Connection, column: AuditedColumn, columns: Sequence[Any], sample: int | None
) -> Iterator[list[StoredRow]]:
    """Yield the rows of a table without a primary key, in any order."""
    statement = select(*columns).where(column.header.has_value()).limit(sample)
    with rolled_back(connection):
        result = connection.execute(statement.execution_options(**streamed(connection, BATCH)))
        try:
            for found in result.partitions(BATCH):
                yield [_row(row, 0) for row in found]
        finally:
            result.close()


def _row(row: Sequence[Any], keys: int) -> StoredRow:
    stored = row[-1]
    if isinstance(stored, bytearray | memoryview):
        stored = bytes(stored)
    return StoredRow(tuple(row[:keys]), tuple(row[keys:-1]), stored)


class Opened(NamedTuple):
    """The result of opening a stored value.

    Attributes:
        token: The token, or None.
        code: The code of a finding, or None.
        origin: With ``"moved"``, the column that the envelope was written for.
    """

    token: JWT | None
    code: str | None = None
    origin: str = ""


_NOTHING: Final = Opened(None)


class Opener:
    """Opens the stored values of one column, and finds out why some do not open.

    Args:
        column: The column.
        ring: Its key ring.
        others: The other columns of the audit with their rings, one for each context; an envelope may be one of theirs.
    """

    def __init__(
        self, column: AuditedColumn, ring: KeyRing, others: Sequence[tuple[AuditedColumn, KeyRing]]
    ) -> None:
        self._cipher = column.type_.cipher()
        self._ring = ring
        self._names = column.type_.bound_to
        self._others: Sequence[tuple[str, TokenCipher, KeyRing]] = [
            (other.name, other.type_.cipher(), other_ring) for other, other_ring in others
        ]

    def open(self, row: StoredRow) -> Opened:
        """Open one row.

        Values that are no envelopes and envelopes under a key that the ring lacks are counted by SQL; they are no
        findings here.
        """
        stored = row.stored
        if not _is_envelope(stored):
            return Opened(_plaintext(stored))
        try:
            return Opened(self._open(row))
        except KeyRingError:
            return _NOTHING
        except AuthenticationError:
            pass
        except Exception:  # noqa: BLE001 - one damaged row does not end the audit of the others
            return Opened(None, "undecryptable")
        return self._explain(stored)

    def _open(self, row: StoredRow) -> JWT:
        if not self._names:
            return self._cipher.decrypt(row.stored, self._ring)
        return open_bound(
            lambda binding: self._cipher.decrypt(row.stored, self._ring, binding), self._names, row.bound
        )

    def _explain(self, stored: Any) -> Opened:
        """Find out why an envelope does not authenticate: written for another column, bound to no row, or changed."""
        if self._names:
            token = _try(self._cipher, stored, self._ring)
            if token is not None:
                return Opened(token, "unbound")
        for name, cipher, ring in self._others:
            token = _try(cipher, stored, ring)
            if token is not None:
                return Opened(token, "moved", name)
        return Opened(None, "undecryptable")


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
    """Raise for a column whose rows cannot be opened because a bound column is unknown.

    Raises:
        ConfigurationError: A name of ``bound_to`` is no column of the table.
    """
    if len(column.bound) != len(column.type_.bound_to):
        raise ConfigurationError(
            f"{column.name} is bound to attributes that are no columns of {column.table.fullname}; audit the mapped "
            "attribute or its class, which says what they are",
            context=column.context,
        )
