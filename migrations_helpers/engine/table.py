"""The table that a run works on: its key, and the statements that page through it.

The column is addressed by its raw type. Through the encrypted type, binding would encrypt an old value again and a
comparison with it would match no row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Text,
    Uuid,
    and_,
    case,
    cast,
    column,
    func,
    inspect,
    literal_column,
    not_,
    or_,
    select,
    table,
    tuple_,
)
from sqlalchemy.dialects.mysql import ENUM, SET
from sqlalchemy.dialects.postgresql import DOMAIN
from sqlalchemy.exc import NoSuchTableError

from jwt_column.column.header_sql import HeaderSQL
from jwt_column.errors import ReencryptionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import ColumnClause, ColumnElement, Connection, Select, TableClause
    from sqlalchemy.types import TypeEngine

    from jwt_column.column.types import EncryptedJWT

    from .conversions import Conversion
    from .expired import Expired

    Key = tuple[Any, ...]

__all__ = ["KeyRange", "Survey", "Target", "find_target"]


_KNOWN_TO_PSYCOPG: Final = (Integer, Uuid, String, LargeBinary, Numeric, DateTime, Date, Boolean)


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Keys after one and up to another; None leaves that side open."""

    after: Key | None = None
    up_to: Key | None = None


class Survey(NamedTuple):
    """Rows with a value: how many there are, need work, are in the clear, and have expired and would need work."""

    rows: int
    pending: int
    plaintext: int
    expired: int


@dataclass(frozen=True, slots=True)
class Target:
    """One column of one table, as the database has it."""

    table: TableClause
    keys: tuple[ColumnClause[Any], ...]
    value: ColumnClause[Any]
    #: What the database says of the column's type, where the value's own type is only its storage form.
    type_in_database: TypeEngine[Any]
    #: The columns of the row that its envelope is bound to, in the order of the type's ``bound_to``.
    bound: tuple[ColumnClause[Any], ...]
    header: HeaderSQL
    dialect: str
    preserve: tuple[ColumnClause[Any], ...] = ()
    is_nullable: bool = True
    #: What MySQL and MariaDB call the index of the key.
    key_index: str | None = None

    @property
    def name(self) -> str:
        """The table's name, with its schema if it has one."""
        return self.table.fullname

    @property
    def has_binary_form(self) -> bool:
        """Whether psycopg 3 can read the key and the bound columns in binary; text is the same in either form."""
        return all(isinstance(column.type, _KNOWN_TO_PSYCOPG) for column in (*self.keys, *self.bound))

    def work(self, conversion: Conversion) -> ColumnElement[bool]:
        """Return the condition of rows with which something is to be done; with NULL there is nothing."""
        if conversion.expired is not None and not conversion.expired.removes:
            return self.pending(conversion)
        return and_(self.value.is_not(None), conversion.is_pending(self.header))

    def pending(self, conversion: Conversion) -> ColumnElement[bool]:
        """Return the condition of rows that are to be converted."""
        spared = [] if conversion.expired is None else [conversion.expired.spares(self.header)]
        return and_(self.value.is_not(None), conversion.is_pending(self.header), *spared)

    def expired(self, conversion: Conversion, expired: Expired) -> ColumnElement[bool]:
        """Return the condition of rows that would be converted, had they not expired."""
        return and_(self.value.is_not(None), conversion.is_pending(self.header), expired.covers(self.header))

    def within(self, keys: KeyRange) -> Sequence[ColumnElement[bool]]:
        """Return the conditions of a key range, spelled as this database can use its index for them."""
        conditions = []
        if keys.after is not None:
            conditions.append(self._compare(keys.after, greater=True))
        if keys.up_to is not None:
            conditions.append(self._compare(keys.up_to, greater=False))
        return conditions

    def _compare(self, bound: Key, *, greater: bool) -> ColumnElement[bool]:
        """Return ``key > bound`` or ``key <= bound`` in the order of the key's columns."""
        if len(self.keys) == 1:
            single: ColumnElement[bool] = self.keys[0] > bound[0] if greater else self.keys[0] <= bound[0]
            return single
        if self.dialect in ("postgresql", "sqlite"):
            row: ColumnElement[Any] = tuple_(*self.keys)
            values: ColumnElement[Any] = tuple_(*bound, types=[key.type for key in self.keys])
            return row > values if greater else row <= values
        # MySQL and MariaDB scan the whole index for row values, and use a range for this.
        alternatives = []
        for position, key in enumerate(self.keys):
            equal = [earlier == value for earlier, value in zip(self.keys, bound[:position], strict=False)]
            beyond = key > bound[position] if greater else key < bound[position]
            alternatives.append(and_(*equal, beyond))
        if not greater:
            alternatives.append(and_(*(key == value for key, value in zip(self.keys, bound, strict=True))))
        return or_(*alternatives)

    def batch(self, conversion: Conversion, keys: KeyRange, limit: int) -> Select[Any]:
        """Return the statement that reads the next rows that need work: key, bound columns, value."""
        return (
            select(*self.keys, *self.bound, self.value)
            .where(self.pending(conversion), *self.within(keys))
            .order_by(*self.keys)
            .limit(limit)
        )

    def key_of(self, row: Sequence[Any]) -> Key:
        """Return the key of a row that was read."""
        return tuple(row[: len(self.keys)])

    def bound_of(self, row: Sequence[Any]) -> Sequence[Any]:
        """Return the bound values of a row that was read."""
        return row[len(self.keys) : -1]

    def expired_keys(
        self, conversion: Conversion, expired: Expired, keys: KeyRange, limit: int
    ) -> Select[Any]:
        """Return the statement that reads the keys of the next rows that have expired."""
        return (
            select(*self.keys)
            .where(self.expired(conversion, expired), *self.within(keys))
            .order_by(*self.keys)
            .limit(limit)
        )

    def among(self, keys: Sequence[Key]) -> ColumnElement[bool]:
        """Return the condition of rows with one of these keys."""
        if len(self.keys) == 1:
            return self.keys[0].in_([key[0] for key in keys])
        return tuple_(*self.keys).in_(keys)

    def first_pending(self, conversion: Conversion, keys: KeyRange) -> Select[Any]:
        """Return the statement that finds the next row that needs work."""
        return (
            select(*self.keys)
            .where(self.pending(conversion), *self.within(keys))
            .order_by(*self.keys)
            .limit(1)
        )

    def row_after(self, keys: KeyRange, count: int) -> Select[Any]:
        """Return the statement that finds the row *count* places on; it reads keys only."""
        return select(*self.keys).where(*self.within(keys)).order_by(*self.keys).limit(1).offset(count)

    def finished(self, conversion: Conversion, keys: KeyRange, limit: int) -> Select[Any]:
        """Return the statement that reads the next rows that need no work and are not in the clear."""
        needs_none = not_(or_(conversion.is_pending(self.header), self.header.is_plaintext()))
        return (
            select(*self.keys, *self.bound, self.value)
            .where(self.value.is_not(None), needs_none, *self.within(keys))
            .order_by(*self.keys)
            .limit(limit)
        )

    def any_row(self) -> Select[Any]:
        """Return the statement that finds one row with a value."""
        return select(*self.keys).where(self.value.is_not(None)).limit(1)

    def last_key(self) -> Select[Any]:
        """Return the statement that finds the table's last key."""
        return select(*self.keys).order_by(*(key.desc() for key in self.keys)).limit(1)

    def survey(self, conversion: Conversion, keys: KeyRange) -> Any:
        """Return the statement that makes a :class:`Survey` of a key range, in one scan."""
        expired = conversion.expired
        return (
            select(
                func.count(),
                _count_if(self.pending(conversion)),
                _count_if(self.header.is_plaintext()),
                literal_column("0") if expired is None else _count_if(self.expired(conversion, expired)),
            )
            .select_from(self.table)
            .where(self.value.is_not(None), *self.within(keys))
        )

    def count(self, condition: ColumnElement[bool]) -> Select[Any]:
        """Return the statement that counts rows with a value of which a condition holds."""
        return select(func.count()).select_from(self.table).where(self.value.is_not(None), condition)

    def boundaries(self, conversion: Conversion, rows: int, parts: int) -> Select[Any]:
        """Return the statement that finds the keys which cut *rows* rows that need work into even parts."""
        # Not count() OVER (), which would keep every key until the last one is counted.
        numbered = (
            select(*self.keys, func.row_number().over(order_by=self.keys).label("jwt_column_row"))
            .where(self.work(conversion))
            .subquery()
        )
        cuts = {rows * part // parts for part in range(1, parts)}
        return (
            select(*(numbered.c[key.name] for key in self.keys))
            .where(numbered.c.jwt_column_row.in_(sorted(cuts)))
            .order_by(*(numbered.c[key.name] for key in self.keys))
        )


def _count_if(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return cast(func.coalesce(func.sum(case((condition, 1), else_=0)), 0), BigInteger)


def find_target(
    connection: Connection,
    table_name: str,
    column_name: str,
    type_: EncryptedJWT,
    *,
    schema: str | None = None,
    key_columns: Sequence[str] | None = None,
    preserve: Sequence[str] = (),
) -> Target:
    """Look the table up in the database.

    Args:
        connection: Where to look.
        table_name: The table.
        column_name: The encrypted column.
        type_: Its type: the storage form says how the raw column is addressed.
        schema: The table's schema, or None for the default.
        key_columns: A unique NOT NULL key to page by; None takes the primary key, else finds one.
        preserve: Columns that a rewrite must leave alone although the database updates them by itself.

    Raises:
        ReencryptionError: No such table or column, or no key to page by.
    """
    inspector = inspect(connection)
    where = f"{schema}.{table_name}" if schema else table_name
    try:
        columns = {info["name"]: info for info in inspector.get_columns(table_name, schema=schema)}
    except NoSuchTableError:
        raise ReencryptionError(f"there is no table {where}; nothing was done") from None
    for name in (column_name, *(key_columns or ()), *type_.bound_to, *preserve):
        if name not in columns:
            raise ReencryptionError(f"there is no column {where}.{name}; nothing was done")
    wanted = tuple(key_columns) if key_columns else None
    names, index = _find_key(connection, table(table_name, schema=schema), columns, wanted)
    if column_name in names:
        raise ReencryptionError(f"{where}.{column_name} is part of the key to page by; nothing was done")
    typed = tuple(
        column(name, _plain_type(connection, columns[name]["type"]))
        for name in dict.fromkeys((*names, *type_.bound_to))
    )
    value = column(column_name, Text() if type_.storage == "text" else LargeBinary())
    automatic = _automatic_columns(connection, table_name, schema)
    kept = tuple(dict.fromkeys((*preserve, *automatic)))
    others: tuple[ColumnClause[Any], ...] = tuple(
        column(name) for name in kept if name not in {known.name for known in typed}
    )
    raw = table(table_name, *typed, value, *others, schema=schema)
    return Target(
        table=raw,
        keys=tuple(raw.c[name] for name in names),
        value=raw.c[column_name],
        type_in_database=columns[column_name]["type"],
        bound=tuple(raw.c[name] for name in type_.bound_to),
        header=HeaderSQL(raw.c[column_name], type_),
        dialect=_family(connection.dialect.name),
        preserve=tuple(raw.c[name] for name in kept),
        is_nullable=bool(columns[column_name]["nullable"]),
        key_index=index,
    )


def _family(dialect: str) -> str:
    return "mysql" if dialect == "mariadb" else dialect


def _plain_type(connection: Connection, type_: TypeEngine[Any]) -> TypeEngine[Any] | None:
    """Return the type under which a value that was read goes back as it was."""
    if connection.dialect.name == "sqlite":
        # A value has its own type there, whatever its column's is called.
        return None
    while isinstance(type_, DOMAIN):
        type_ = type_.data_type
    if isinstance(type_, String) and type_.collation is not None:
        type_ = type_.copy()
        type_.collation = None
    return type_


def _find_key(
    connection: Connection,
    where: TableClause,
    columns: dict[str, Any],
    wanted: tuple[str, ...] | None,
) -> tuple[tuple[str, ...], str | None]:
    """Return the key asked for, else the primary key, else another, and its index.

    It is unique, because rows are written by it.
    """
    for names, index in _unique_keys(connection, where, columns):
        if _has_order(connection, columns, names) and (wanted is None or set(names) <= set(wanted)):
            return wanted or names, index
    if wanted is not None:
        raise ReencryptionError(
            f"{', '.join(wanted)} is no unique key of {where.fullname} without NULLs, so it cannot tell its rows "
            "apart; nothing was done"
        )
    raise ReencryptionError(
        f"{where.fullname} has no primary key and no unique key without NULLs (and without ENUM or SET), so it cannot "
        "be worked through in batches; add one"
    )


def _unique_keys(
    connection: Connection, where: TableClause, columns: dict[str, Any]
) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """Yield the keys without NULLs: the primary key, then others, which are looked up only if it does not do."""
    inspector = inspect(connection)
    primary = tuple(inspector.get_pk_constraint(where.name, schema=where.schema)["constrained_columns"])
    if primary and not _holds_null(connection, where, columns, primary):
        yield primary, "PRIMARY"
    unique = [
        (tuple(found["column_names"]), found["name"])
        for found in inspector.get_unique_constraints(where.name, schema=where.schema)
    ]
    unique += [
        (tuple(name for name in found["column_names"] if name is not None), found["name"])
        for found in inspector.get_indexes(where.name, schema=where.schema)
        if found["unique"] and None not in found["column_names"] and not _is_partial(found)
    ]
    for names, index in sorted(unique, key=lambda key: len(key[0])):
        if not any(columns[name]["nullable"] for name in names):
            yield names, index


def _has_order(connection: Connection, columns: dict[str, Any], names: tuple[str, ...]) -> bool:
    """Say whether a key compares in the order in which it sorts: MySQL's ENUM sorts by number, compares by text."""
    return _family(connection.dialect.name) != "mysql" or not any(
        isinstance(columns[name]["type"], ENUM | SET) for name in names
    )


def _holds_null(
    connection: Connection, where: TableClause, columns: dict[str, Any], primary: tuple[str, ...]
) -> bool:
    """Say whether a primary key has NULLs: in SQLite it may, unless it is declared otherwise or is the row id."""
    if connection.dialect.name != "sqlite":
        return False
    nullable: list[ColumnClause[Any]] = [column(name) for name in primary if columns[name]["nullable"]]
    if not nullable:
        return False
    a_row = select(*nullable).select_from(where).where(or_(*(key.is_(None) for key in nullable))).limit(1)
    return connection.execute(a_row).first() is not None


def _is_partial(index: Any) -> bool:
    options = index.get("dialect_options", {})
    return any(name.endswith("_where") and value is not None for name, value in options.items())


def _automatic_columns(connection: Connection, table_name: str, schema: str | None) -> tuple[str, ...]:
    """Return the columns that MySQL and MariaDB update by themselves with every rewrite of their row."""
    if connection.dialect.name not in ("mysql", "mariadb"):
        return ()
    found = connection.exec_driver_sql(
        "SELECT column_name FROM information_schema.columns WHERE table_name = %s "
        "AND table_schema = COALESCE(%s, DATABASE()) AND extra LIKE '%%on update%%'",
        (table_name, schema),
    )
    return tuple(found.scalars())
