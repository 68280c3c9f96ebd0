"""What the strategies share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from jwt_column.errors import JWTColumnError, KeyUnavailableError

from ..conversions import was_read

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..channel import Channel
    from ..conversions import Conversion, Stored
    from ..target import Key, KeyRange, Target

    #: A row as it was read (key, bound columns, value), and the value that it is to have.
    Change = tuple[Sequence[Any], Stored]

__all__ = ["Batch", "Strategy", "convert_rows", "in_chunks", "read_batch"]

# A statement stays well under MySQL's max_allowed_packet (16 MiB unless set otherwise), whatever its escaping doubles.
_MAX_STATEMENT_BYTES = 4 * 1024 * 1024


@dataclass(slots=True)
class Batch:
    """What became of one batch."""

    read: int = 0
    last_key: Key | None = None
    #: Whether no row behind this batch needs work.
    at_end: bool = False
    written: int = 0
    #: Rows cleared or deleted because their token has expired.
    removed: int = 0
    #: Rows that could not be read, and rows that were read and cannot be written.
    undecryptable: list[Key] = field(default_factory=list)
    unwritable: list[Key] = field(default_factory=list)
    #: Rows rewritten, by what they were under before.
    origins: Counter[str] = field(default_factory=Counter)

    def leave(self, key: Key, error: JWTColumnError) -> None:
        """Note a row that is left as it is, and why.

        Raises:
            KeyUnavailableError: A key server did not answer; this is no fault of the row.
        """
        if isinstance(error, KeyUnavailableError):
            raise error
        (self.unwritable if was_read(error) else self.undecryptable).append(key)


class Strategy(Protocol):
    """Reads, converts and writes one batch, in transactions of its own."""

    def run_batch(
        self, channel: Channel, target: Target, conversion: Conversion, keys: KeyRange, limit: int
    ) -> Batch:
        """Work on the next *limit* rows of a key range that need it.

        Raises:
            sqlalchemy.exc.DBAPIError: The database refused; nothing of the batch was kept.
        """


def read_batch(channel: Channel, target: Target, conversion: Conversion, keys: KeyRange, limit: int) -> Batch:
    """Read and convert a batch without writing: a dry run."""
    rows = channel.connection.execute(target.batch(conversion, keys, limit)).all()
    batch, changes = convert_rows(target, conversion, rows, limit)
    batch.written = len(changes)
    return batch


def _batch_of(target: Target, rows: Sequence[Sequence[Any]], limit: int) -> Batch:
    last_key = target.key_of(rows[-1]) if rows else None
    return Batch(read=len(rows), last_key=last_key, at_end=len(rows) < limit)


def convert_rows(
    target: Target, conversion: Conversion, rows: Sequence[Sequence[Any]], limit: int
) -> tuple[Batch, list[Change]]:
    """Convert rows of key, bound columns and value; return the batch so far, and what is to be written.

    Raises:
        KeyUnavailableError: A key server did not answer; this is no fault of the row.
    """
    batch = _batch_of(target, rows, limit)
    convert, bound_of, is_bound = conversion.convert, target.bound_of, bool(target.bound)
    changes: list[Change] = []
    for row in rows:
        try:
            changes.append((row, convert(row[-1], *bound_of(row)) if is_bound else convert(row[-1])))
        except JWTColumnError as error:
            batch.leave(target.key_of(row), error)
    batch.origins.update([conversion.origin(row[-1], new) for row, new in changes])
    return batch, changes


def in_chunks(changes: list[Change], *, with_old: bool) -> Iterable[list[Change]]:
    """Cut changes so that no statement grows past what a server takes in one."""
    chunk: list[Change] = []
    size = 0
    for change in changes:
        row, new = change
        length = len(new) + (len(row[-1]) if with_old else 0)
        if chunk and size + length > _MAX_STATEMENT_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(change)
        size += length
    if chunk:
        yield chunk
