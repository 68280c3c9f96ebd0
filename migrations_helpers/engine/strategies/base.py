"""The parts that the strategies share."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from sqlalchemy import select

from jwt_column.errors import JWTColumnError, KeyUnavailableError

from ..conversions import was_read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Row, Select

    from jwt_column.database.key_order import KeyRange

    from ..connection import RunConnection
    from ..conversions import Conversion, Stored
    from ..table import Key, RunTable


#: Why a row was not written that the database took without an error.
KEPT: Final = "the database kept the old value, as a trigger can"

# Bytes of a statement for each row beside its values: its key, and the words around it.
_ROW_BYTES: Final = 256


class AlteredError(Exception):
    """The database stored other values than it was given, as a trigger can; the batch is undone."""

    def __init__(self, keys: list[Key]) -> None:
        super().__init__()
        self.keys = keys


@dataclass(slots=True)
class Batch:
    """The outcome of one batch."""

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
    #: Rows that the database did not take, each with the reason.
    refused: list[tuple[Key, str]] = field(default_factory=list)
    #: Rows rewritten, by their form before: a key id, ``plaintext`` or ``foreign``.
    origins: Counter[str] = field(default_factory=Counter)

    def leave(self, key: Key, error: JWTColumnError) -> None:
        """Note a row that is left as it is, and why.

        Raises:
            KeyUnavailableError: A key server did not answer; this is no fault of the row.
        """
        if isinstance(error, KeyUnavailableError):
            raise error
        (self.unwritable if was_read(error) else self.undecryptable).append(key)


@dataclass(slots=True)
class Changes:
    """Rows as they were read (key, bound columns, value), and the new value of each.

    Two lists, not pairs: a pair for each row is one more object for the garbage collector to look at.
    """

    rows: list[Sequence[Any]] = field(default_factory=list)
    new: list[Stored] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: Sequence[Any], new: Stored) -> None:
        """Add the change of one row."""
        self.rows.append(row)
        self.new.append(new)

    @property
    def old(self) -> list[Stored]:
        """The values that the rows had when they were read."""
        return [row[-1] for row in self.rows]


class Task(NamedTuple):
    """One batch to do: the next *limit* rows of a key range that need work.

    Attributes:
        keys: The key range.
        confirm: Whether to look, after the rows were written, for those that the database left as they were.
        reads_back: Whether new values are read again before their transaction ends, and compared.
        known: How many rows need work, if it is the first batch of a pass and they were counted; else 0.
    """

    connection: RunConnection
    table: RunTable
    conversion: Conversion
    keys: KeyRange
    limit: int
    confirm: bool = False
    reads_back: bool = False
    known: int = 0

    @property
    def rows(self) -> Select[Any]:
        """The statement that reads them: key, place, bound columns, value."""
        return self.table.rows(self.conversion.rows.pending, self.keys, self.limit, known=self.known)

    def batch_of(self, rows: Sequence[Sequence[Any]]) -> Batch:
        """Return the batch of rows that were read and not converted yet."""
        last_key = self.table.key_of(rows[-1]) if rows else None
        return Batch(read=len(rows), last_key=last_key, at_end=len(rows) < self.limit)

    def convert(self, rows: Sequence[Sequence[Any]], batch: Batch) -> Changes:
        """Convert rows; return the changes, and note them in the batch."""
        changes, table = Changes(), self.table
        convert, bound_of, is_bound = self.conversion.convert, table.bound_of, bool(table.bound)
        for row in rows:
            try:
                new = convert(row[-1], *bound_of(row)) if is_bound else convert(row[-1])
            except JWTColumnError as error:
                batch.leave(table.key_of(row), error)
            else:
                if new is not row[-1]:
                    changes.rows.append(row)
                    changes.new.append(new)
        batch.origins += self.conversion.origins(changes.old, changes.new)
        return changes

    def count_written(self, changes: Changes, batch: Batch, rowcount: int) -> None:
        """Count the rows that were written, and note those that the database left as they were.

        A trigger may skip a row, which the row count tells, or write the old value back, which it does not. The rows
        are locked until the transaction ends.

        Raises:
            AlteredError: A value that is read back holds another token.
        """
        table, conversion = self.table, self.conversion
        batch.written += len(changes)
        if not changes or (rowcount == len(changes) and not self.confirm and not self.reads_back):
            return
        origin_of = {
            table.identity_of(row): (row, new) for row, new in zip(changes.rows, changes.new, strict=True)
        }
        kept, altered = Changes(), []
        conditions = [] if self.reads_back else [conversion.rows.pending]
        columns = (*table.keys, *table.place[1:], table.value)
        for found in self.read_again(changes, select(*columns).where(*conditions)):
            row, new = origin_of.get(tuple(found[:-1]), (None, None))
            if row is None or new is None or found[-1] == new:
                continue
            if not self.reads_back or found[-1] == row[-1]:
                kept.add(row, new)
            elif not self._is_same_token(row, found[-1], new):
                altered.append(table.key_of(row))
        if altered:
            raise AlteredError(altered)
        if kept:
            batch.written -= len(kept)
            batch.origins -= conversion.origins(kept.old, kept.new)
            batch.refused += [(table.key_of(row), KEPT) for row in kept.rows]

    def read_again(self, changes: Changes, statement: Select[Any]) -> Iterator[Row[Any]]:
        """Read the rows of changes once more, in the same transaction."""
        order = self.table.order
        for part in order.portions([self.table.key_of(row) for row in changes.rows]):
            yield from self.connection.sqlalchemy.execute(statement.where(order.among(part)))

    def _is_same_token(self, row: Sequence[Any], held: Stored | None, new: Stored) -> bool:
        """Return True if two values of a row hold one token: the database may pad a text."""
        token, bound = self.conversion.token, self.table.bound_of(row)
        try:
            return held is not None and token(held, *bound) == token(new, *bound)
        except JWTColumnError:
            return False


class Strategy(Protocol):
    """Reads, converts and writes one batch, in transactions of its own."""

    def run_batch(self, task: Task) -> Batch:
        """Do one batch.

        Raises:
            sqlalchemy.exc.DBAPIError: The database refused; nothing of the batch was kept.
        """


def read_batch(task: Task) -> Batch:
    """Read and convert a batch without writing: a dry run."""
    rows = task.connection.read(task.rows)
    batch = task.batch_of(rows)
    batch.written = len(task.convert(rows, batch))
    return batch


def in_chunks(changes: Changes, most: int, *, with_old: bool) -> Iterator[Changes]:
    """Cut changes so that no statement grows larger than *most* bytes, unless it has a single row."""
    sizes = [len(new) + _ROW_BYTES for new in changes.new]
    if with_old:
        sizes = [new + len(old) for new, old in zip(sizes, changes.old, strict=True)]
    start = 0
    while start < len(sizes):
        within = bisect_right(list(accumulate(sizes[start:])), most)
        end = start + max(1, within)
        yield Changes(changes.rows[start:end], changes.new[start:end])
        start = end
