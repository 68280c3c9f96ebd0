"""The table of a run: its key, its columns, and the statements that page through it.

The column is addressed by its raw type. Through the encrypted type, binding would encrypt an old value again and a
comparison with it would match no row. Which rows a statement is about is a condition that the caller gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Uuid,
    case,
    cast,
    func,
    literal_column,
    select,
)

from jwt_column.column.header_sql import has_value
from jwt_column.database.key_order import KeyRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import ColumnClause, ColumnElement, Row, Select, TableClause
    from sqlalchemy.types import TypeEngine

    from jwt_column.database.key_order import KeyOrder

    Key = tuple[Any, ...]
    #: Executes a statement.
    Read = Callable[[Select[Any]], Sequence[Row[Any]]]


# Rows that a look at the whole table holds in memory at once.
_PAGE: Final = 500
_KNOWN_TO_PSYCOPG: Final = (Integer, Uuid, String, LargeBinary, Numeric, DateTime, Date, Boolean)


@dataclass(frozen=True, slots=True)
class RunTable:
    """One column of one table, as the database has it.

    Attributes:
        name: The table's name in messages and reports.
        clause: The table with the columns that a run names.
        value: The column that is rewritten, with the raw type of its storage form.
        type_in_database: The type of that column as the database declares it.
        bound: The columns that an envelope is bound to, in the order of the type's ``bound_to``.
        place: The place of a row, on PostgreSQL ``ctid`` and ``tableoid``: a locked row is written by it, since tables
            that inherit from this one may have the same keys.
        dialect: ``postgresql``, ``mysql`` (MariaDB too), ``sqlite`` or another name of SQLAlchemy's.
        preserve: Columns that a rewrite must leave alone although the database updates them by itself.
        triggers: The triggers that an UPDATE fires, as far as this role can see.
        engine: The storage engine of MySQL and MariaDB. MyISAM and its kin take FOR UPDATE, and lock nothing.
        key_index: The name that MySQL and MariaDB give the index of the key.
    """

    name: str
    clause: TableClause
    order: KeyOrder
    keys: tuple[ColumnClause[Any], ...]
    value: ColumnClause[Any]
    type_in_database: TypeEngine[Any]
    bound: tuple[ColumnClause[Any], ...]
    dialect: str
    place: tuple[ColumnElement[Any], ...] = ()
    preserve: tuple[ColumnClause[Any], ...] = ()
    is_nullable: bool = True
    triggers: tuple[str, ...] = ()
    is_generated: bool = False
    engine: str | None = None
    key_index: str | None = None

    @property
    def has_binary_form(self) -> bool:
        """Whether psycopg 3 can read the key and the bound columns in binary; text is the same in either form."""
        return all(isinstance(column.type, _KNOWN_TO_PSYCOPG) for column in (*self.keys, *self.bound))

    @property
    def has_value(self) -> ColumnElement[bool]:
        """The condition of rows with a value that is neither NULL nor empty."""
        return has_value(self.value)

    def key_of(self, row: Sequence[Any]) -> Key:
        """Return the key of a row that was read."""
        return tuple(row[: len(self.keys)])

    def bound_of(self, row: Sequence[Any]) -> Sequence[Any]:
        """Return the bound values of a row that was read."""
        return row[len(self.keys) + len(self.place) : -1]

    def place_of(self, row: Sequence[Any]) -> Sequence[Any]:
        """Return the place of a row that was read."""
        return row[len(self.keys) : len(self.keys) + len(self.place)]

    def identity_of(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """Return the key of a row and, on PostgreSQL, its table: tables that inherit may repeat a key.

        NaN, which is a key in PostgreSQL, does not equal itself in Python: it has its text here.
        """
        key = [str(value) if value != value else value for value in self.key_of(row)]
        return (*key, *self.place_of(row)[1:])

    # -- statements ------------------------------------------------------------------------------------------

    def rows(
        self, condition: ColumnElement[bool], keys: KeyRange, limit: int, *, known: int = 0
    ) -> Select[Any]:
        """Return the statement that reads the next rows: key, place, bound columns, value.

        Of a *known* number of rows below the limit, PostgreSQL is to read the table as it lies and to sort these: it
        would look for them along the key, and if that is random, it takes ten times as long.
        """
        rows = self.order.batch((*self.place, *self.bound, self.value), keys, limit, condition)
        if self.dialect == "postgresql" and 0 < known < limit:
            # An expression, whose order no index has.
            rows = rows.order_by(None).order_by(*(func.coalesce(key, key) for key in self.keys))
        return rows

    def pages(
        self, read: Read, condition: ColumnElement[bool], keys: KeyRange, *more: ColumnElement[Any]
    ) -> Iterator[Sequence[Row[Any]]]:
        """Yield the rows of a key range, a few at a time, as :meth:`rows` has them with *more* columns at their end."""
        columns = (*self.place, *self.bound, self.value, *more)
        while True:
            rows = read(self.order.batch(columns, keys, _PAGE, condition))
            if rows:
                yield rows
            if len(rows) < _PAGE:
                return
            keys = KeyRange(self.key_of(rows[-1]), keys.up_to)

    def keys_of(self, condition: ColumnElement[bool], keys: KeyRange, limit: int) -> Select[Any]:
        """Return the statement that reads the keys of the next rows."""
        return self.order.batch((), keys, limit, condition)

    def any_row(self) -> Select[Any]:
        """Return the statement that finds one row with a value."""
        # No value of it: a driver may have none for a key.
        return select(literal_column("1")).select_from(self.clause).where(self.has_value).limit(1)

    def count(self, *conditions: ColumnElement[bool]) -> Select[Any]:
        """Return the statement that counts the rows with a value for which all conditions hold."""
        return select(func.count()).select_from(self.clause).where(self.has_value, *conditions)

    def counts(self, conditions: Sequence[ColumnElement[bool] | None], keys: KeyRange) -> Select[Any]:
        """Return the statement that counts, in one scan, the rows with a value and those of each condition.

        A condition that is None counts nothing.
        """
        columns: list[ColumnElement[Any]] = [func.count(), *map(_count_if, conditions)]
        return select(*columns).select_from(self.clause).where(self.has_value, *self.order.within(keys))

    def boundaries(self, condition: ColumnElement[bool], rows: int, parts: int) -> Select[Any]:
        """Return the statement that finds the keys which cut *rows* rows into even parts."""
        # Not count() OVER (), which would keep every key until the last one is counted.
        numbered = (
            select(*self.keys, func.row_number().over(order_by=self.keys).label("jwt_column_row"))
            .where(condition)
            .subquery()
        )
        cuts = {rows * part // parts for part in range(1, parts)}
        return (
            select(*(numbered.c[key.name] for key in self.keys))
            .where(numbered.c.jwt_column_row.in_(sorted(cuts)))
            .order_by(*(numbered.c[key.name] for key in self.keys))
        )


def _count_if(condition: ColumnElement[bool] | None) -> ColumnElement[int]:
    counted = 0 if condition is None else func.sum(case((condition, 1), else_=0))
    return cast(func.coalesce(counted, 0), BigInteger)
