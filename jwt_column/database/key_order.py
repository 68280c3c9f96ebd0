"""Rows in the order of a key, by conditions for which each database uses the key's index.

Purge, scan, audit and re-encryption page through tables with it. PostgreSQL and SQLite find a range of a composite key
by comparing row values, ``(a, b) > (1, 2)``; spelled as ``a > 1 OR (a = 1 AND b > 2)``, PostgreSQL reads every row
before it. MySQL and MariaDB are the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.mysql import ENUM, SET
from sqlalchemy.dialects.postgresql import HSTORE, INET, INTERVAL, MONEY, REGCLASS, TSQUERY, TSVECTOR
from sqlalchemy.dialects.postgresql.ranges import AbstractMultiRange, AbstractRange
from sqlalchemy.types import TypeDecorator

from ..errors import ConfigurationError
from .column_size import without_domain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy.orm import Session
    from sqlalchemy.types import TypeEngine

    Key = Sequence[Any]

#: The finding of :func:`unreadable_key`, for messages.
UNREADABLE: Final = (
    "it has values that drivers do not read, or read as others, such as infinity, a year before 1, 9999-12-31 with "
    "asyncpg, 24:00, months, or an address with a netmask"
)

# From the year 1 to 9999; and within a day. Infinity is beyond, and so is 24:00 of PostgreSQL.
_FIRST_DAY: Final = "'0001-01-01'"
_LAST_DAY: Final = "'10000-01-01'"
# asyncpg sends the first and last value that Python has as infinity, and reads times in UTC.
_OF_ASYNCPG: Final = {
    "date": ("'0001-01-01'", "'9999-12-31'"),
    "timestamp": ("'0001-01-01'", "'9999-12-31 23:59:59.999999'"),
    "timestamptz": ("'0001-01-01 00:00:00+00'", "'9999-12-31 23:59:59.999999+00'"),
}

# SQLite before 3.32 takes 999 parameters in a statement. The rest is for the statement's other conditions.
_KEY_PARAMETERS: Final = 900
# Alternatives in the condition of one statement.
_ALTERNATIVES: Final = 50

# FLOAT(p) up to this many bits has single precision.
_SINGLE_PRECISION: Final = 24

# Types of PostgreSQL.
_UNPAGED: Final = (
    sa.ARRAY,
    AbstractMultiRange,
    AbstractRange,
    HSTORE,
    sa.JSON,
    MONEY,
    REGCLASS,
    TSQUERY,
    TSVECTOR,
)

# A sample is taken from this many parts of a table: more parts need more statements, fewer are less even.
_PARTS: Final = 10


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Keys after one and up to another, inclusive; None leaves that side open."""

    after: Key | None = None
    up_to: Key | None = None


@dataclass(frozen=True, slots=True)
class KeyOrder:
    """The order of a table's rows by a key: the columns of a unique key without NULLs."""

    table: sa.FromClause
    keys: Sequence[sa.ColumnElement[Any]]
    dialect: str

    @property
    def _compares_rows(self) -> bool:
        return self.dialect in ("postgresql", "sqlite")

    def within(self, keys: KeyRange) -> Sequence[sa.ColumnElement[bool]]:
        """Return the conditions of the rows in a range; none for a range that is open on both sides."""
        conditions = []
        if keys.after is not None:
            conditions.append(self._compare(keys.after, greater=True))
        if keys.up_to is not None:
            conditions.append(self._compare(keys.up_to, greater=False))
        return conditions

    def _compare(self, bound: Key, *, greater: bool) -> sa.ColumnElement[bool]:
        """Return ``key > bound`` or ``key <= bound`` in the order of the key's columns."""
        # SQLAlchemy compares a column with True and False for equality alone, unless they are parameters.
        bound = [
            sa.literal(value, key.type) if isinstance(value, bool) else value
            for key, value in zip(self.keys, bound, strict=True)
        ]
        if len(self.keys) == 1:
            single: sa.ColumnElement[bool] = self.keys[0] > bound[0] if greater else self.keys[0] <= bound[0]
            return single
        if self._compares_rows:
            row: sa.ColumnElement[Any] = sa.tuple_(*self.keys)
            values: sa.ColumnElement[Any] = sa.tuple_(*bound, types=[key.type for key in self.keys])
            return row > values if greater else row <= values
        alternatives = []
        for place, key in enumerate(self.keys):
            beyond = key > bound[place] if greater else key < bound[place]
            alternatives.append(sa.and_(*self._equal(bound[:place]), beyond))
        if not greater:
            alternatives.append(sa.and_(*self._equal(bound)))
        return sa.or_(*alternatives)

    def _equal(self, values: Key) -> Sequence[sa.ColumnElement[bool]]:
        return [key == value for key, value in zip(self.keys, values, strict=False)]

    def among(self, keys: Sequence[Key]) -> sa.ColumnElement[bool]:
        """Return the condition of the rows with one of these keys, as :meth:`portions` yields them.

        Keys that differ in the last column alone share an alternative: databases plan a statement in a time that
        grows with the alternatives, PostgreSQL in one that grows with their square.
        """
        groups = groupby(keys, key=_all_but_last)
        return sa.or_(
            *(
                sa.and_(*self._equal(first), self.keys[-1].in_([key[-1] for key in group]))
                for first, group in groups
            )
        )

    def portions(self, keys: Iterable[Key]) -> Iterator[Sequence[Key]]:
        """Yield keys, which are in their order, in parts of which each makes a small statement."""
        most_alternatives = min(_ALTERNATIVES, _KEY_PARAMETERS // len(self.keys))
        most_keys = _KEY_PARAMETERS - most_alternatives * (len(self.keys) - 1)
        part: list[Key] = []
        alternatives = 0
        for key in keys:
            alternatives += not part or _all_but_last(key) != _all_but_last(part[-1])
            if len(part) == most_keys or alternatives > most_alternatives:
                yield part
                part, alternatives = [], 1
            part.append(key)
        if part:
            yield part

    def batch(
        self,
        columns: Sequence[sa.ColumnElement[Any]],
        keys: KeyRange,
        rows: int,
        *conditions: sa.ColumnElement[bool],
    ) -> sa.Select[Any]:
        """Return the statement that reads the first rows of a range: the key's columns, then *columns*."""
        return (
            sa.select(*self.keys, *columns)
            .select_from(self.table)
            .where(*conditions, *self.within(keys))
            .order_by(*self.keys)
            .limit(rows)
        )

    def row_after(self, keys: KeyRange, skipped: int, *conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
        """Return the statement that reads the key of the row *skipped* places behind the first of a range."""
        return self.batch((), keys, 1, *conditions).offset(skipped)

    def last(self) -> sa.Select[Any]:
        """Return the statement that reads the last key of the table."""
        return (
            sa.select(*self.keys)
            .select_from(self.table)
            .order_by(*(key.desc() for key in self.keys))
            .limit(1)
        )

    def key_of(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """Return the key of a row that :meth:`batch` has read."""
        return tuple(row[: len(self.keys)])


def _all_but_last(key: Key) -> tuple[Any, ...]:
    return tuple(key[:-1])


def key_type(type_: TypeEngine[Any], dialect: str) -> TypeEngine[Any] | None:
    """Return the type under which a key that was read is sent back unchanged, from the type in the database."""
    if dialect == "sqlite":
        # A value of SQLite has its own type, which need not be that of its column.
        return None
    type_ = without_domain(type_)
    if isinstance(type_, sa.String) and type_.collation is not None:
        type_ = type_.copy()
        type_.collation = None
    if isinstance(type_, sa.Float) and type_.asdecimal:
        # MySQL's DOUBLE, which would be read as a decimal of ten digits.
        type_ = type_.copy()
        type_.asdecimal = False
    return type_


def is_inexact(type_: TypeEngine[Any] | None, dialect: str) -> bool:
    """Return True if a value of this type may differ from itself after it was read and sent back.

    A number of single precision is shown with fewer digits than it has, and compared in double precision. Of the
    types of PostgreSQL here, drivers send no value back as one of that type, or not in an array. Python takes 12:00+02
    and 10:00+00 for one time of day.
    """
    if dialect == "postgresql" and (
        isinstance(type_, _UNPAGED) or (isinstance(type_, sa.Time) and type_.timezone)
    ):
        return True
    if dialect == "sqlite" or not isinstance(type_, sa.Float):
        return False
    if type_.asdecimal:
        return True
    if isinstance(type_, sa.Double):
        return False
    if isinstance(type_, sa.REAL):
        return dialect == "postgresql"
    if type_.precision is None:
        return dialect in ("mysql", "mariadb")
    return type_.precision <= _SINGLE_PRECISION


def _unreadable(key: sa.ColumnElement[Any], dialect: str, driver: str) -> sa.ColumnElement[bool] | None:
    """Return the condition of rows whose key drivers cannot read, or read as another value; None if there are none."""
    type_ = key.type
    if dialect == "postgresql":
        if isinstance(type_, sa.DateTime | sa.Date):
            if driver == "asyncpg":
                name = "date"
                if isinstance(type_, sa.DateTime):
                    name = "timestamptz" if type_.timezone else "timestamp"
                first, last = _OF_ASYNCPG[name]
                return sa.or_(key <= sa.literal_column(first), key >= sa.literal_column(last))
            return sa.or_(key < sa.literal_column(_FIRST_DAY), key >= sa.literal_column(_LAST_DAY))
        if isinstance(type_, sa.Interval | INTERVAL):
            # They would come back as days.
            return sa.or_(sa.extract("year", key) != 0, sa.extract("month", key) != 0)
        if isinstance(type_, sa.Numeric) and not isinstance(type_, sa.Float):
            # Psycopg 2 sends them back as NaN. As texts: PostgreSQL 13 has no such numbers.
            return sa.cast(key, sa.String).in_(["Infinity", "-Infinity"])
        if isinstance(type_, INET):
            # Among other addresses, psycopg sends it back without its netmask.
            return sa.func.masklen(key) != sa.case((sa.func.family(key) == 4, 32), else_=128)
    if isinstance(type_, sa.Time) and not type_.timezone and dialect in ("postgresql", "mysql", "mariadb"):
        return sa.or_(key < sa.literal_column("'00:00:00'"), key >= sa.literal_column("'24:00:00'"))
    return None


def unreadable_key(
    bind: sa.Connection | Session, order: KeyOrder, driver: str, *conditions: sa.ColumnElement[bool]
) -> sa.ColumnElement[Any] | None:
    """Return the column of a key with values that drivers do not read, or read as others; None if there is none.

    A row with such a key is not found again, and the pages after it would begin anew. Only rows that meet *conditions*
    count.
    """
    for key in order.keys:
        unreadable = _unreadable(key, order.dialect, driver)
        if unreadable is not None:
            rows: sa.Select[Any] = (
                sa.select(sa.literal_column("1")).select_from(order.table).where(unreadable, *conditions)
            )
            if bind.execute(rows.limit(1)).first() is not None:
                return key
    return None


def paged_by(table: sa.Table, dialect: str) -> Sequence[sa.ColumnElement[Any]]:
    """Return the primary key of a table, to page by it.

    Raises:
        ConfigurationError: It has none, or one whose values may not equal themselves when they are sent back.
    """
    keys = []
    for column in table.primary_key.columns:
        type_ = plain_type(column.type, dialect)
        exact = key_type(type_, dialect)
        if is_inexact(exact, dialect) or not sorts_as_it_compares([type_]):
            raise ConfigurationError(
                f"{table.fullname} cannot be paged by {column.name}, of type {type_!r}: a value that was read need not "
                "equal itself when it is sent back. Give the table a primary key of another type"
            )
        keys.append(column if exact is None or exact is type_ else sa.type_coerce(column, exact))
    if not keys:
        raise ConfigurationError(f"{table.fullname} has no primary key to find its rows by")
    return keys


def plain_type(type_: TypeEngine[Any], dialect: str) -> TypeEngine[Any]:
    """Return the type that stands behind decorators, and variants for a database."""
    variants: Mapping[str, TypeEngine[Any]] = type_._variant_mapping  # noqa: SLF001 - with_variant() keeps them there
    type_ = variants.get(dialect, type_)
    return plain_type(type_.impl_instance, dialect) if isinstance(type_, TypeDecorator) else type_


def sorts_as_it_compares(types: Iterable[TypeEngine[Any]]) -> bool:
    """Return True if a key of these types can be paged by: MySQL's ENUM sorts by number and compares by text."""
    return not any(isinstance(type_, ENUM | SET) for type_ in types)


def sampled(
    connection: sa.Connection, order: KeyOrder, rows: int, sample: int, *conditions: sa.ColumnElement[bool]
) -> Iterator[tuple[KeyRange, int]]:
    """Yield ranges and how many rows to read from the start of each: *sample* of *rows* rows, spread evenly.

    Only rows that meet *conditions* count. The connection may be used for other statements between two steps.
    """
    parts = min(_PARTS, sample)
    keys = KeyRange()
    for part in range(parts):
        yield keys, sample * (part + 1) // parts - sample * part // parts
        skipped = rows * (part + 1) // parts - rows * part // parts
        found = connection.execute(order.row_after(keys, skipped - 1, *conditions)).first()
        if found is None:
            return
        keys = KeyRange(order.key_of(found))
