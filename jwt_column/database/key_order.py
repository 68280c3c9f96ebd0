"""A table read in the order of its key, in batches: all of it, or an even sample. Each statement is bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, or_, select, tuple_

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import ColumnElement, Connection, FromClause, Select

    Key = Sequence[Any]

__all__ = ["KeyOrder", "sampled"]

# Parts of a table that a sample is taken from: more of them make more statements, fewer a less even sample.
_PARTS: Final = 10


@dataclass(frozen=True, slots=True)
class KeyOrder:
    """The order of a table's rows by its key.

    Attributes:
        table: The table.
        keys: The columns of a unique key without NULLs.
        dialect: The name of the database's dialect.
    """

    table: FromClause
    keys: Sequence[ColumnElement[Any]]
    dialect: str

    def after(self, key: Key | None) -> Sequence[ColumnElement[bool]]:
        """Return the conditions of the rows behind a key; none where there is no key yet."""
        if key is None:
            return ()
        if len(self.keys) == 1:
            return (self.keys[0] > key[0],)
        if self.dialect in ("postgresql", "sqlite"):
            row: ColumnElement[Any] = tuple_(*self.keys)
            return (row > tuple_(*key, types=[column.type for column in self.keys]),)
        # MySQL and MariaDB scan the whole index for row values, and use a range for this.
        return (
            or_(
                *(
                    and_(*(self.keys[at] == key[at] for at in range(place)), self.keys[place] > key[place])
                    for place in range(len(self.keys))
                )
            ),
        )

    def batch(
        self,
        columns: Sequence[ColumnElement[Any]],
        key: Key | None,
        rows: int,
        *conditions: ColumnElement[bool],
    ) -> Select[Any]:
        """Return the statement that reads the next rows behind a key: the key's columns, and others."""
        return (
            select(*self.keys, *columns)
            .select_from(self.table)
            .where(*conditions, *self.after(key))
            .order_by(*self.keys)
            .limit(rows)
        )

    def key_of(self, row: Sequence[Any]) -> Key:
        """Return the key of a row that :meth:`batch` has read."""
        return tuple(row[: len(self.keys)])


def sampled(
    connection: Connection, order: KeyOrder, rows: int, sample: int, *conditions: ColumnElement[bool]
) -> Iterator[tuple[Key | None, int]]:
    """Yield where to begin reading and how many rows to read there, so that a sample is spread evenly over a table.

    Args:
        connection: Reads keys; may be used for other statements between two steps.
        order: The table's order.
        rows: How many rows it has.
        sample: How many rows to read in all.
        *conditions: Of the rows that count.
    """
    parts = min(_PARTS, sample)
    key: Key | None = None
    for part in range(parts):
        yield key, sample * (part + 1) // parts - sample * part // parts
        skipped = rows * (part + 1) // parts - rows * part // parts
        statement = order.batch((), key, 1, *conditions).offset(skipped - 1)
        found = connection.execute(statement).first()
        if found is None:
            return
        key = order.key_of(found)
