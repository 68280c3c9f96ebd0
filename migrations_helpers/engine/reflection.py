"""Look up the table of a run in the database: its columns, and a key to page by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from warnings import catch_warnings, simplefilter

from sqlalchemy import (
    JSON,
    BigInteger,
    LargeBinary,
    Text,
    column,
    inspect,
    literal_column,
    or_,
    select,
    table,
    text,
)
from sqlalchemy.exc import NoSuchTableError, SAWarning
from sqlalchemy.types import NullType

from jwt_column.database.catalogue import IS_NAMED, named
from jwt_column.database.key_order import KeyOrder, is_inexact, key_type, sorts_as_it_compares
from jwt_column.database.reflectable import reflectable
from jwt_column.errors import ReencryptionError

from .schemas import effective_schema, family_of
from .table import RunTable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import ColumnClause, ColumnElement, Connection, Inspector, TableClause
    from sqlalchemy.engine.interfaces import ReflectedColumn

    from jwt_column.column.types import EncryptedJWT


#: The table ``family`` of a table of PostgreSQL and all that hang on it: partitions and tables that inherit from it.
FAMILY: Final = (
    f"WITH RECURSIVE family(oid) AS (SELECT t.oid FROM pg_catalog.pg_class t WHERE {IS_NAMED} "  # noqa: S608
    "UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN family f ON f.oid = i.inhparent)"
)
# As text, because psycopg reads a binary ctid as bytes.
_PLACE: Final[tuple[ColumnElement[Any], ...]] = (
    literal_column("ctid::text", Text()),
    literal_column("tableoid", BigInteger()),
)


@dataclass(frozen=True, slots=True)
class Subject:
    """The column of a run, by its names, and how the run uses it.

    Attributes:
        key_columns: A unique NOT NULL key to page by; None takes the primary key, else finds one.
        preserve: Columns that a rewrite must leave alone although the database updates them by itself.
        shown: The table's name in messages, with the schema that was given.
    """

    table: str
    column: str
    type_: EncryptedJWT
    schema: str | None = None
    key_columns: Sequence[str] | None = None
    preserve: Sequence[str] = ()
    shown: str = ""

    def __post_init__(self) -> None:
        if not self.shown:
            object.__setattr__(self, "shown", f"{self.schema}.{self.table}" if self.schema else self.table)

    @property
    def name(self) -> str:
        """The column's name in messages."""
        return f"{self.shown}.{self.column}"

    def in_schema(self, schema: str) -> Subject:
        """Return the column of the same name in another schema."""
        return replace(self, schema=schema, shown="")

    def found_by(self, connection: Connection) -> Subject:
        """Return the column with the schema in which a connection finds its table."""
        return replace(self, schema=effective_schema(connection, self.table, self.schema))


def find_table(connection: Connection, subject: Subject) -> RunTable:
    """Look a table up in the database.

    Raises:
        ReencryptionError: No such table or column, a column of JSON, or no key to page by.
    """
    with reflectable(connection):
        return _find_table(connection, subject)


def _find_table(connection: Connection, subject: Subject) -> RunTable:
    inspector = inspect(connection)
    column_name, type_, schema = subject.column, subject.type_, subject.schema
    clause = table(subject.table, schema=schema)
    full_name = subject.shown
    try:
        with catch_warnings():
            # A type that SQLAlchemy does not know; it is none to page by.
            simplefilter("ignore", SAWarning)
            columns = {info["name"]: info for info in inspector.get_columns(subject.table, schema=schema)}
    except NoSuchTableError:
        raise ReencryptionError(f"there is no table {full_name}; nothing was done") from None
    for name in (column_name, *(subject.key_columns or ()), *type_.bound_to, *subject.preserve):
        if name not in columns:
            raise ReencryptionError(f"there is no column {full_name}.{name}; nothing was done")
    if _is_json(connection, clause, columns[column_name]):
        raise ReencryptionError(
            f"{full_name}.{column_name} is a column of JSON, which takes no envelope; add a column of bytes or text, "
            "and move the values there through a model that has both. Nothing was done"
        )
    wanted = tuple(subject.key_columns) if subject.key_columns else None
    names, index = _find_key(inspector, clause, full_name, columns, wanted)
    if column_name in names:
        raise ReencryptionError(f"{full_name}.{column_name} is part of the key to page by; nothing was done")
    dialect = family_of(connection)
    typed = tuple(
        column(name, key_type(columns[name]["type"], dialect))
        for name in dict.fromkeys((*names, *type_.bound_to))
    )
    value = column(column_name, Text() if type_.storage == "text" else LargeBinary())
    kept = tuple(dict.fromkeys((*subject.preserve, *_automatic_columns(connection, clause))))
    others: tuple[ColumnClause[Any], ...] = tuple(
        column(name) for name in kept if name not in {known.name for known in typed}
    )
    clause = table(subject.table, *typed, value, *others, schema=schema)
    keys = tuple(clause.c[name] for name in names)
    return RunTable(
        name=full_name,
        clause=clause,
        order=KeyOrder(clause, keys, dialect),
        keys=keys,
        value=clause.c[column_name],
        type_in_database=columns[column_name]["type"],
        bound=tuple(clause.c[name] for name in type_.bound_to),
        dialect=dialect,
        place=_PLACE if dialect == "postgresql" else (),
        preserve=tuple(clause.c[name] for name in kept),
        is_nullable=bool(columns[column_name]["nullable"]),
        triggers=_triggers(connection, clause),
        is_generated="computed" in columns[column_name],
        engine=_storage_engine(connection, clause),
        key_index=index,
    )


def _find_key(
    inspector: Inspector,
    clause: TableClause,
    full_name: str,
    columns: dict[str, Any],
    wanted: tuple[str, ...] | None,
) -> tuple[tuple[str, ...], str | None]:
    """Return the key asked for, else the primary key, else another, and its index.

    It is unique, because rows are written by it.
    """
    connection: Any = inspector.bind
    inexact = _inexact_columns(connection, clause, columns)
    passed_over: list[str] = []
    for names, index in _unique_keys(inspector, clause, columns):
        has_order = sorts_as_it_compares(columns[name]["type"] for name in names)
        if has_order and (wanted is None or set(names) <= set(wanted)):
            unequal = [name for name in wanted or names if name in inexact]
            if not unequal:
                return wanted or names, index
            passed_over += unequal
    if passed_over:
        name = passed_over[0]
        raise ReencryptionError(
            f"{full_name} cannot be paged by {name}, of type {inexact[name]}: a value that was read need not equal "
            "itself when it is sent back. Name a unique key of other types with key_columns= (--key-columns), after "
            "adding one if there is none; nothing was done"
        )
    if wanted is not None:
        raise ReencryptionError(
            f"{', '.join(wanted)} is no unique key of {full_name} without NULLs, so it cannot tell its rows "
            "apart; nothing was done"
        )
    raise ReencryptionError(
        f"{full_name} has no primary key and no unique key without NULLs (and without ENUM or SET), so it cannot "
        "be worked through in batches; add one"
    )


def _inexact_columns(connection: Connection, clause: TableClause, columns: dict[str, Any]) -> dict[str, str]:
    """Return the columns that no key may have because their values do not equal themselves, with their types."""
    family = family_of(connection)
    inexact: dict[str, str] = {}
    for name, info in columns.items():
        type_ = key_type(info["type"], family)
        if isinstance(type_, NullType) and family == "postgresql":
            inexact[name] = _type_name(connection, clause, name)
        elif type_ is not None and is_inexact(type_, family):
            inexact[name] = type_.compile(connection.dialect)
    return inexact


def _type_name(connection: Connection, clause: TableClause, column_name: str) -> str:
    """Return the name of a type of PostgreSQL that SQLAlchemy does not know."""
    query = (
        "SELECT pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a "  # noqa: S608
        f"JOIN pg_catalog.pg_class t ON t.oid = a.attrelid WHERE {IS_NAMED} AND a.attname = :column"
    )
    return str(_ask(connection, query, clause, column=column_name)[0])


def _unique_keys(
    inspector: Inspector, clause: TableClause, columns: dict[str, Any]
) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """Yield the keys without NULLs: the primary key, then others, which are looked up only if it does not do."""
    connection: Any = inspector.bind
    primary = tuple(inspector.get_pk_constraint(clause.name, schema=clause.schema)["constrained_columns"])
    if primary and not _holds_null(connection, clause, columns, primary):
        yield primary, "PRIMARY"
    enforced = _enforced_indexes(connection, clause)
    unique = [
        (tuple(found["column_names"]), found["name"])
        for found in inspector.get_unique_constraints(clause.name, schema=clause.schema)
    ]
    unique += [
        (tuple(name for name in found["column_names"] if name is not None), found["name"])
        for found in inspector.get_indexes(clause.name, schema=clause.schema)
        if found["unique"] and None not in found["column_names"] and not _is_partial(found)
    ]
    for names, index in sorted(unique, key=lambda key: len(key[0])):
        if enforced is not None and index not in enforced:
            continue
        if not any(columns[name]["nullable"] for name in names):
            yield names, index


def _triggers(connection: Connection, clause: TableClause) -> tuple[str, ...]:
    """Return the triggers of the table, and of its parts, that an UPDATE may fire."""
    if connection.dialect.name == "postgresql":
        query = (
            f"{FAMILY} SELECT DISTINCT g.tgname FROM family f "  # noqa: S608
            "JOIN pg_catalog.pg_trigger g ON g.tgrelid = f.oid "
            "WHERE NOT g.tgisinternal AND g.tgenabled <> 'D' AND g.tgtype & 16 <> 0 ORDER BY 1"
        )
    elif family_of(connection) == "mysql":
        query = (
            "SELECT trigger_name FROM information_schema.triggers WHERE event_object_table = :name "
            "AND event_object_schema = COALESCE(:schema, DATABASE()) AND event_manipulation = 'UPDATE' ORDER BY 1"
        )
    elif connection.dialect.name == "sqlite":
        quote = connection.dialect.identifier_preparer.quote
        schema = quote(clause.schema or "main")
        # SQLite has no list of what a trigger is fired by; the word may stand elsewhere in it too.
        query = (
            f"SELECT name FROM {schema}.sqlite_master WHERE type = 'trigger' AND tbl_name = :name "  # noqa: S608
            "AND upper(sql) LIKE '%UPDATE%' ORDER BY 1"
        )
    else:
        return ()
    return tuple(_ask(connection, query, clause))


def _enforced_indexes(connection: Connection, clause: TableClause) -> frozenset[str] | None:
    """Return the unique indexes that PostgreSQL enforces for all rows at once; None for other databases.

    The index of a failed ``CREATE INDEX CONCURRENTLY`` is invalid, a deferrable one is checked at COMMIT.
    """
    if connection.dialect.name != "postgresql":
        return None
    query = (
        "SELECT c.relname FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid "  # noqa: S608
        f"JOIN pg_catalog.pg_class t ON t.oid = i.indrelid WHERE {IS_NAMED} AND i.indisunique AND i.indisvalid "
        "AND i.indisready AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL"
    )
    return frozenset(_ask(connection, query, clause))


def _holds_null(
    connection: Connection, clause: TableClause, columns: dict[str, Any], primary: tuple[str, ...]
) -> bool:
    """Return True if a primary key has NULLs: in SQLite it may, unless it is NOT NULL or the row id."""
    if connection.dialect.name != "sqlite":
        return False
    nullable: list[ColumnClause[Any]] = [column(name) for name in primary if columns[name]["nullable"]]
    if not nullable:
        return False
    a_row = select(*nullable).select_from(clause).where(or_(*(key.is_(None) for key in nullable))).limit(1)
    return connection.execute(a_row).first() is not None


def _is_partial(index: Any) -> bool:
    options = index.get("dialect_options", {})
    return any(name.endswith("_where") and value is not None for name, value in options.items())


def _automatic_columns(connection: Connection, clause: TableClause) -> tuple[str, ...]:
    """Return the columns that MySQL and MariaDB update by themselves with every rewrite of their row."""
    if family_of(connection) != "mysql":
        return ()
    query = (
        "SELECT column_name FROM information_schema.columns WHERE table_name = :name "
        "AND table_schema = COALESCE(:schema, DATABASE()) AND extra LIKE '%on update%'"
    )
    return tuple(_ask(connection, query, clause))


def _storage_engine(connection: Connection, clause: TableClause) -> str | None:
    """Return the engine of a table of MySQL or MariaDB."""
    if family_of(connection) != "mysql":
        return None
    query = (
        "SELECT engine FROM information_schema.tables WHERE table_name = :name "
        "AND table_schema = COALESCE(:schema, DATABASE())"
    )
    return next(iter(_ask(connection, query, clause)), None)


def _is_json(connection: Connection, clause: TableClause, info: ReflectedColumn) -> bool:
    """Return True if the database refuses what is no JSON. SQLite takes any value."""
    dialect = connection.dialect
    if isinstance(info["type"], JSON):
        return dialect.name != "sqlite"
    if not getattr(dialect, "is_mariadb", False):
        return False
    # JSON is a text with a check there, which SQLAlchemy does not reflect.
    query = (
        "SELECT check_clause FROM information_schema.check_constraints "
        "WHERE constraint_schema = coalesce(:schema, database()) AND table_name = :name"
    )
    return f"json_valid(`{info['name']}`)" in _ask(connection, query, clause)


def _ask(connection: Connection, query: str, clause: TableClause, **parameters: str) -> Sequence[Any]:
    """Return the first column of a query about a table, whose name and schema are its parameters."""
    return connection.execute(text(query), named(clause) | parameters).scalars().all()
