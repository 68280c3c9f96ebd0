"""The tables of a database, and the statements that search one of them.

A statement returns only values that may hold a token: the database searches for the first characters of the base64url
of a JSON object.
"""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.mysql import SET
from sqlalchemy.exc import SAWarning
from sqlalchemy.types import NullType

from ..column.row_binding import python_type_of
from ..database.column_size import without_domain
from ..database.key_order import KeyOrder, KeyRange, is_inexact, key_type, sorts_as_it_compares
from .marks import any_of, may_hold_token

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.types import TypeEngine

    #: The kind of a column's values, which decides how they are read.
    Form = Literal["text", "bytes", "other"]

# Python types of columns that cannot hold text.
_NO_TEXT: Final = (bool, int, float, decimal.Decimal, dt.date, dt.time, dt.timedelta, uuid.UUID)

_MYSQL: Final = ("mysql", "mariadb")
_SYSTEM_SCHEMAS: Final = ("information_schema", "pg_")


def table_names(connection: sa.Connection, schema: str | None) -> list[tuple[str | None, str]]:
    """Return schema and name of every table: no views, and no partitions beside their partitioned table.

    Without *schema*, these are those of all schemas but the system's on PostgreSQL, elsewhere of the default one. The
    default schema is returned as ``None``.
    """
    inspector = sa.inspect(connection)
    schemas: list[str | None] = [schema]
    if schema is None and connection.dialect.name == "postgresql":
        schemas = [name for name in inspector.get_schema_names() if not name.startswith(_SYSTEM_SCHEMAS)]
    default = inspector.default_schema_name
    parts = _partitions(connection)
    return [
        (None if one == default and schema is None else one, name)
        for one in schemas
        for name in sorted(inspector.get_table_names(schema=one))
        if (one, name) not in parts
    ]


def _partitions(connection: sa.Connection) -> set[tuple[str, str]]:
    if connection.dialect.name != "postgresql":
        return set()
    found = connection.execute(
        sa.text(
            "SELECT nspname, relname FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace "
            "ON pg_namespace.oid = relnamespace WHERE relispartition"
        )
    )
    return {(schema, name) for schema, name in found}


@dataclass(frozen=True, slots=True)
class ScannedTable:
    """One table of the database.

    Attributes:
        keys: The names of the columns of its primary key, if it has one.
        forms: Its columns that can hold text or bytes, with the form of each.
        order: The order of its rows; None without a key that sorts as it compares.
    """

    source: sa.TableClause
    keys: Sequence[str]
    forms: dict[str, Form]
    order: KeyOrder | None
    dialect: str

    def everything(self) -> tuple[sa.Select[Any], sa.Select[Any]]:
        """Return the statement that searches the whole table, and the one that counts its rows."""
        return self._statements(self.source)

    def sample(self, connection: sa.Connection, rows: int) -> Iterator[tuple[sa.Select[Any], sa.Select[Any]]]:
        """Yield the statements that search a sample, each with the one that counts its rows.

        Half of a sample are the first rows by primary key and half are the last: the oldest and the newest ones if
        keys are counted up. Both are found without reading the rows between.
        """
        half = (rows + 1) // 2
        columns = list(self.source.columns)
        middle = None
        if self.order is not None:
            middle = connection.execute(self.order.row_after(KeyRange(), half - 1)).first()
        if self.order is None or middle is None or rows == 1:
            yield self._statements(sa.select(*columns).limit(rows).subquery())
            return
        keys = self.order.keys
        first = sa.select(*columns).order_by(*keys).limit(half)
        behind = sa.select(*columns).where(*self.order.within(KeyRange(after=tuple(middle))))
        last = behind.order_by(*(key.desc() for key in keys)).limit(rows - half)
        yield self._statements(first.subquery())
        yield self._statements(last.subquery())

    def _statements(self, source: sa.FromClause) -> tuple[sa.Select[Any], sa.Select[Any]]:
        """Return the statement that reads keys and values, and the one that counts all rows.

        A value that cannot hold a token is NULL in it, and a row without another is left out.
        """
        values = [_value(source.c[name], form, self.dialect) for name, form in self.forms.items()]
        conditions = [
            may_hold_token(value, form, self.dialect)
            for value, form in zip(values, self.forms.values(), strict=True)
        ]
        found = sa.select(
            *(source.c[name].label(f"key_{place}") for place, name in enumerate(self.keys)),
            *(
                sa.case((condition, value)).label(f"value_{place}")
                for place, (condition, value) in enumerate(zip(conditions, values, strict=True))
            ),
        )
        return found.where(any_of(conditions)), sa.select(sa.func.count()).select_from(source)


def read_table(connection: sa.Connection, schema: str | None, name: str) -> ScannedTable:
    """Return a table from the catalogue of the database."""
    dialect = connection.dialect.name
    inspector = sa.inspect(connection)
    with warnings.catch_warnings():
        # SQLAlchemy warns of types that it does not know; their values are read as text all the same.
        warnings.simplefilter("ignore", SAWarning)
        types = {info["name"]: info["type"] for info in inspector.get_columns(name, schema=schema)}
    keys = inspector.get_pk_constraint(name, schema=schema)["constrained_columns"]
    forms = {one: form for one, type_ in types.items() if (form := _form(type_, dialect)) is not None}
    source = sa.table(
        name,
        *(sa.column(one, key_type(type_, dialect) if one in keys else None) for one, type_ in types.items()),
        schema=schema,
    )
    has_order = (
        bool(keys)
        and sorts_as_it_compares(types[key] for key in keys)
        and not any(is_inexact(source.c[key].type, dialect) for key in keys)
    )
    order = KeyOrder(source, [source.c[key] for key in keys], dialect) if has_order else None
    return ScannedTable(source, keys, forms, order, dialect)


def _form(type_: TypeEngine[Any], dialect: str) -> Form | None:
    """Return the form in which a column of this type is read; None if it cannot hold text or bytes."""
    if dialect == "sqlite":
        return "bytes"  # Any column of SQLite takes any value.
    type_ = without_domain(type_)
    if isinstance(type_, sa.Enum | SET) or (isinstance(type_, NullType) and dialect in _MYSQL):
        return None
    held = python_type_of(type_) or object
    if issubclass(held, _NO_TEXT):
        return None
    return "bytes" if issubclass(held, bytes) else "text" if isinstance(type_, sa.String) else "other"


def _value(stored: sa.ColumnElement[Any], form: Form, dialect: str) -> sa.ColumnElement[Any]:
    """Return the expression that reads a value: as the driver returns it, or as text."""
    if dialect == "sqlite":
        return sa.cast(stored, sa.LargeBinary)
    if form == "bytes" or (form == "text" and dialect in _MYSQL):
        return sa.type_coerce(stored, NullType())
    return sa.cast(stored, sa.CHAR if dialect in _MYSQL else sa.Text)
