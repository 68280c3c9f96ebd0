"""The comparison of indexes on envelope headers for autogenerate.

Alembic compares no indexes on expressions on SQLite, and sees columns and an index of its own in the generated columns
of MySQL and MariaDB. So these indexes are compared here: by name, uniqueness, columns and positions in the envelope.
"""

from __future__ import annotations

import logging
import re
import warnings
from typing import TYPE_CHECKING, Any, Final, cast

from alembic.operations import ops
from sqlalchemy import Index, MetaData, Table, inspect, literal_column

from jwt_column.column.fingerprints import part_of
from jwt_column.column.header_sql import HeaderSQL, generated_columns, indexed_parts
from jwt_column.column.types import EncryptedJWT
from jwt_column.database.indexes import existing_indexes, is_as_declared

from .indexes import CreateIndexOp

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from alembic.autogenerate.api import AutogenContext
    from sqlalchemy import Connection

    from jwt_column.column.header_sql import HeaderPart
    from jwt_column.column.spec import ColumnSpec
    from jwt_column.database.indexes import FoundIndex


# Under this name the options of an autogenerate run keep the application's filters.
_FILTERS: Final = "jwt_column_filters"


class _NoSignature(logging.Filter):
    """Leaves out Alembic's warning that it makes an approximate signature of an index, which is ours."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True for other records."""
        ours = isinstance(record.args, tuple) and any(
            isinstance(one, Index) and indexed_parts(one) for one in record.args
        )
        return not ours


logging.getLogger("alembic.ddl.impl").addFilter(_NoSignature())


def _header_indexes(metadata: Collection[MetaData]) -> Iterator[tuple[Table, Index]]:
    for one in metadata:
        for table in one.tables.values():
            for index in sorted(table.indexes, key=lambda index: str(index.name)):
                if indexed_parts(index):
                    yield table, index


def _metadata_of(context: AutogenContext) -> Collection[MetaData]:
    found: Any = context.metadata
    return list(found) if isinstance(found, list | tuple) else [found]


def leave_indexes_to_us(context: AutogenContext, *_: Any) -> None:
    """Keep SQLAlchemy and Alembic from comparing our indexes and their generated columns, which they cannot."""
    ours: set[tuple[str | None, str, str]] = set()
    metadata = _metadata_of(context)
    names = [str(index.name) for _, index in _header_indexes(metadata)]
    names += [name for _, name, _ in _undeclared(context.connection, metadata)]
    for name in names:
        warnings.filterwarnings("ignore", message=rf"(?s).*expression-based index '?{re.escape(name)}\b")
    for table, index in _header_indexes(metadata):
        name = str(index.name)
        ours |= {(table.schema, table.name, one) for one in (name, *generated_columns(name))}

    def is_theirs(item: Any, name: str | None, kind: str, *_: Any) -> bool:
        if kind not in ("index", "column") or item.table is None:
            return True
        return (item.table.schema, item.table.name, name) not in ours

    # The filters of the application stay what they are for compare_indexes().
    context.opts[_FILTERS] = list(context._object_filters)  # noqa: SLF001 - Alembic has no other way in
    context._object_filters = [*context._object_filters, is_theirs]  # noqa: SLF001


def compare_indexes(context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: Any) -> None:
    """Replace the operations that Alembic found for our indexes by the right ones."""
    connection = context.connection
    assert connection is not None  # noqa: S101 - autogenerate does not run offline
    inspector = inspect(connection)
    metadata = _metadata_of(context)

    def is_compared(table: Table) -> bool:
        return schemas is None or table.schema in schemas or (table.schema is None and "" in schemas)

    for table, index in _header_indexes(metadata):
        if not is_compared(table):
            continue
        if not all(one(index, index.name, "index", False, None) for one in context.opts[_FILTERS]):
            continue
        exists = inspector.has_table(table.name, schema=table.schema)
        found = existing_indexes(connection, table).get(str(index.name)) if exists else None
        create = _operation_for(table, index)
        if found is None:
            upgrade_ops.ops.append(create)
        elif not is_as_declared(found, index, connection):
            upgrade_ops.ops += [create.reverse(), create]
    for table, name, found in _undeclared(connection, metadata):
        index = _reflected(table, name, found)
        parents: Any = {"schema_name": table.schema, "table_name": table.name}
        is_wanted = context.run_name_filters(name, "index", parents) and context.run_object_filters(
            index, name, "index", True, None
        )
        if is_compared(table) and is_wanted:
            upgrade_ops.ops.append(ops.DropIndexOp.from_index(index))


def _undeclared(
    connection: Connection | None, metadata: Collection[MetaData]
) -> Iterator[tuple[Table, str, FoundIndex]]:
    """Yield SQLite's indexes on envelopes that are not declared: SQLAlchemy reflects no index on an expression."""
    if connection is None or connection.dialect.name != "sqlite":
        return
    for table in (table for one in metadata for table in one.tables.values()):
        tokens = [re.escape(column.name) for column in table.columns if isinstance(column.type, EncryptedJWT)]
        on_token = re.compile(rf"\bsubstr\(\W?({'|'.join(tokens)})\W?,", re.IGNORECASE)
        declared = {index.name for index in table.indexes}
        for name, found in existing_indexes(connection, table).items() if tokens else ():
            if name not in declared and on_token.search(found.definition):
                yield table, name, found


def _reflected(table: Table, name: str, found: FoundIndex) -> Index:
    """Return an index of SQLite as its definition has it, on a table of its own."""
    on, *where = re.split(r"\sWHERE\s", found.definition, maxsplit=1, flags=re.IGNORECASE)
    columns: Any = literal_column(on[on.index("(") + 1 : on.rindex(")")])
    index = Index(
        name, columns, unique=found.unique, sqlite_where=literal_column(where[0]) if where else None
    )
    Table(table.name, MetaData(), index, schema=table.schema)
    return index


def _operation_for(table: Table, index: Index) -> CreateIndexOp:
    parts = indexed_parts(index)
    (column,) = (one for one in index.columns if isinstance(one.type, EncryptedJWT))
    type_ = cast("EncryptedJWT", column.type)
    options: dict[str, Any] = {"kind": parts[0].kind, "columns": [one.name for one in index.columns]}
    if parts[0].kind == "fingerprint":
        header = HeaderSQL(column, type_)
        spec, names = next(
            (spec, names)
            for spec in type_.spec.layouts
            if None not in (names := [_fingerprint_of(part, header, spec) for part in parts])
        )
        options |= {"fingerprint": names, "layout": None if spec is type_.spec else spec}
    return CreateIndexOp(
        str(index.name), table.name, column.name,
        unique=bool(index.unique), type_=type_, schema=table.schema, **options,
    )  # fmt: skip


def _fingerprint_of(part: HeaderPart, header: HeaderSQL, spec: ColumnSpec) -> str | None:
    """Return the name of the fingerprint that a part is in a layout, or None."""
    places = {
        part_of(header, spec, name, for_layout=bool(part.layout)).identity(): name
        for name in spec.fingerprints
    }
    return places.get(part.identity())
