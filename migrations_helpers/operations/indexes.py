"""``op.create_jwt_index`` and ``op.drop_jwt_index``, and the comparison of these indexes for autogenerate.

Alembic compares no indexes on expressions on SQLite, and sees a column and an index of its own in the generated
columns of MySQL and MariaDB. So these indexes are compared here: by name, uniqueness and position in the envelope.
"""

from __future__ import annotations

import logging
import re
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from alembic.autogenerate import renderers
from alembic.operations import MigrateOperation, Operations, ops
from sqlalchemy import Column, Index, MetaData, Table, inspect, text
from sqlalchemy.exc import DBAPIError

from jwt_column.column.fingerprints import part_of
from jwt_column.column.header_sql import HeaderSQL, generated_column, indexed_part
from jwt_column.column.indexes import (
    AddGeneratedColumn,
    AddGeneratedIndex,
    DropGeneratedColumn,
    DropGeneratedIndex,
    ExpiryIndex,
    FingerprintIndex,
    StaleIndex,
)
from jwt_column.column.spec import WHOLE
from jwt_column.database.catalogue import IS_NAMED
from jwt_column.database.indexes import existing_indexes, positions_of
from jwt_column.database.reading import is_autocommit
from jwt_column.errors import ConfigurationError

from ..engine.reencryption import in_column
from ..engine.rendering import import_of
from .directives import register
from .transactions import outside_transaction

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from alembic.autogenerate.api import AutogenContext

    from jwt_column.column.header_sql import HeaderPart
    from jwt_column.column.spec import PreviousLayout
    from jwt_column.column.types import EncryptedJWT

__all__ = ["CreateIndexOp", "DropIndexOp", "compare_indexes", "existing_indexes", "leave_indexes_to_us"]

_KINDS: Final = ("fingerprint", "expiry", "stale")

# Here a single statement for column and index would copy the table, while writers wait.
_TWO_STEPS: Final = ("mysql", "mariadb")

# Under this name the options of an autogenerate run keep the application's filters.
_FILTERS: Final = "jwt_column_filters"

_INVALID: Final = text(
    "SELECT 1 FROM pg_catalog.pg_class t JOIN pg_catalog.pg_index i ON i.indexrelid = t.oid "  # noqa: S608
    f"WHERE {IS_NAMED} AND NOT i.indisvalid"
)


class _IndexOp(MigrateOperation):
    """An operation on an index of an encrypted column."""

    name: ClassVar[str]

    def __init__(
        self,
        index: str,
        table: str,
        column: str,
        *,
        kind: str = "fingerprint",
        fingerprint: str = WHOLE,
        unique: bool = False,
        layout: PreviousLayout | None = None,
        type_: EncryptedJWT | None = None,
        schema: str | None = None,
        postgresql_concurrently: bool = False,
    ) -> None:
        if kind not in _KINDS:
            raise ConfigurationError(f"kind is one of {', '.join(map(repr, _KINDS))}")
        self.index = index
        self.table = table
        self.column = column
        self.kind = kind
        self.fingerprint = fingerprint
        self.unique = unique
        self.type_: EncryptedJWT = in_column(type_, table, column)
        self.layout: dict[str, Any] | None = (
            None if layout is None else self.type_.spec.previous_of(layout).options()
        )
        self.schema = schema
        self.postgresql_concurrently = postgresql_concurrently

    @classmethod
    def invoke(
        cls,
        operations: Operations,
        index: str,
        table: str,
        column: str,
        *,
        kind: str = "fingerprint",
        fingerprint: str = WHOLE,
        unique: bool = False,
        layout: PreviousLayout | None = None,
        type_: EncryptedJWT | None = None,
        schema: str | None = None,
        postgresql_concurrently: bool = False,
    ) -> None:
        """Carry the operation out: the body of ``op.create_jwt_index()`` and ``op.drop_jwt_index()``."""
        operations.invoke(
            cls(
                index, table, column,
                kind=kind, fingerprint=fingerprint, unique=unique, layout=layout, type_=type_, schema=schema,
                postgresql_concurrently=postgresql_concurrently,
            )
        )  # fmt: skip

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that are not the default."""
        given = {
            "kind": (self.kind, "fingerprint"),
            "fingerprint": (self.fingerprint, WHOLE),
            "unique": (self.unique, False),
            "layout": (self.layout, None),
            "schema": (self.schema, None),
            "postgresql_concurrently": (self.postgresql_concurrently, False),
        }
        return {name: value for name, (value, default) in given.items() if value != default}

    def reverse_as(self, operation: type[_IndexOp]) -> MigrateOperation:
        """Return the operation that undoes this one."""
        return operation(self.index, self.table, self.column, type_=self.type_, **self.arguments())

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the line of ``alembic check``."""
        return (self.name, self.schema, self.table, self.index)

    def to_column(self) -> Column[Any]:
        """Return the encrypted column, on a table that has no other one."""
        column: Column[Any] = Column(self.column, self.type_)
        Table(self.table, MetaData(), column, schema=self.schema)
        return column

    def to_index(self) -> Index:
        """Return the index."""
        column = self.to_column()
        if self.kind == "fingerprint":
            return FingerprintIndex(
                self.index, column, self.fingerprint, unique=self.unique, layout=self.layout
            )
        return (ExpiryIndex if self.kind == "expiry" else StaleIndex)(self.index, column)


@register
class CreateIndexOp(_IndexOp):
    """Create an index on an encrypted column.

    MySQL and MariaDB add a generated column at once, and build the index on it while the table is written.

    Args:
        index: The index's name.
        table: The table's name.
        column: The encrypted column's name.
        kind: ``"fingerprint"``, ``"expiry"`` or ``"stale"``.
        fingerprint: With ``"fingerprint"``: ``"token"``, or a claim.
        unique: With ``"fingerprint"``: whether the index is unique.
        layout: With ``"fingerprint"``: an entry of the type's ``previous``, for the rows of that layout.
        type_: The column's type as the model has it, because its ``fingerprints`` and ``expose_expiry`` say where
            in an envelope the index looks; None means ``EncryptedJWT()``.
        schema: The table's schema.
        postgresql_concurrently: Let PostgreSQL build the index without a lock that writers wait for. It runs outside
            the migration's transaction, which is committed first. What a build that failed has left is dropped.

    Raises:
        ConfigurationError: The type does not store that fingerprint, or no expiry.
    """

    name = "create_jwt_index"

    def reverse(self) -> MigrateOperation:
        """Return the operation that drops the index."""
        return self.reverse_as(DropIndexOp)


@register
class DropIndexOp(_IndexOp):
    """Drop an index that ``create_jwt_index`` or the model has made, with its generated column if there is one.

    Args:
        index: The index's name.
        table: The table's name.
        column: The encrypted column's name.
        kind: As it was created, like the following; only a program that reverses the operation needs them.
        fingerprint: As it was created.
        unique: As it was created.
        layout: As it was created.
        type_: As it was created.
        schema: The table's schema.
        postgresql_concurrently: Let PostgreSQL drop it without a lock that others wait for, outside the migration's
            transaction, which is committed first.
    """

    name = "drop_jwt_index"

    def reverse(self) -> MigrateOperation:
        """Return the operation that creates the index."""
        return self.reverse_as(CreateIndexOp)


@Operations.implementation_for(CreateIndexOp)
def _create(operations: Operations, operation: CreateIndexOp) -> None:
    index = operation.to_index()
    impl: Any = operations.impl
    if _is_concurrent(operations, operation):
        index.dialect_kwargs["postgresql_concurrently"] = True
        with _outside_transaction(operations, operation):
            _drop_invalid(operations, index)
            operations.impl.create_index(index)
    elif impl.dialect.name not in _TWO_STEPS:
        impl.create_index(index)
    else:
        impl.execute(AddGeneratedColumn(index))
        try:
            impl.execute(AddGeneratedIndex(index))
        except DBAPIError:
            impl.execute(DropGeneratedColumn(index))
            raise


@Operations.implementation_for(DropIndexOp)
def _drop(operations: Operations, operation: DropIndexOp) -> None:
    # The stamp needs nothing of the type, so a model that has dropped the fingerprint can drop its index.
    index = StaleIndex(operation.index, operation.to_column())
    impl: Any = operations.impl
    if _is_concurrent(operations, operation):
        index.dialect_kwargs["postgresql_concurrently"] = True
        with _outside_transaction(operations, operation):
            impl.drop_index(index)
    elif impl.dialect.name in _TWO_STEPS:
        impl.execute(DropGeneratedIndex(index))
        impl.execute(DropGeneratedColumn(index))
    else:
        impl.drop_index(index)


def _is_concurrent(operations: Operations, operation: _IndexOp) -> bool:
    return operation.postgresql_concurrently and operations.impl.dialect.name == "postgresql"


@contextmanager
def _outside_transaction(operations: Operations, operation: _IndexOp) -> Iterator[None]:
    """Run a block in autocommit mode.

    Raises:
        ConfigurationError: Another program has begun a transaction on Alembic's connection.
    """
    if not operations.get_context().as_sql and is_autocommit(operations.get_bind()):
        yield
        return
    with outside_transaction(operations) as is_outside:
        if not is_outside:
            raise ConfigurationError(
                f"op.{operation.name}: PostgreSQL does not work concurrently in a transaction, and the connection "
                "that env.py gives Alembic is in one already, or in a savepoint. Give it engine.connect() instead of "
                "engine.begin(), or leave postgresql_concurrently out"
            )
        yield


def _drop_invalid(operations: Operations, index: Index) -> None:
    """Drop the index of this name that a concurrent build has left when it failed; nothing uses it."""
    if operations.get_context().as_sql:
        return
    assert index.table is not None  # noqa: S101 - it was put into one
    named = {"name": index.name, "schema": index.table.schema}
    if operations.get_bind().execute(_INVALID, named).first() is not None:
        operations.impl.drop_index(index)


@renderers.dispatch_for(CreateIndexOp)
@renderers.dispatch_for(DropIndexOp)
def _render(context: AutogenContext, operation: _IndexOp) -> str:
    """Return an operation as a line of a revision."""
    context.imports.add("import migrations_helpers")
    arguments = [repr(operation.index), repr(operation.table), repr(operation.column)]
    arguments += [f"{name}={value!r}" for name, value in operation.arguments().items()]
    if repr(operation.type_) != repr(in_column(None, operation.table, operation.column)):
        context.imports.add(import_of(operation.type_))
        arguments.append(f"type_={operation.type_!r}")
    prefix = context.opts.get("alembic_module_prefix") or "op."
    return f"{prefix}{operation.name}({', '.join(arguments)})"


class _NoSignature(logging.Filter):
    """Leaves out Alembic's warning that it makes an approximate signature of an index, which is ours."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True for other records."""
        ours = isinstance(record.args, tuple) and any(
            isinstance(one, Index) and indexed_part(one) is not None for one in record.args
        )
        return not ours


logging.getLogger("alembic.ddl.impl").addFilter(_NoSignature())


# -- comparison ------------------------------------------------------------------------------------------------------


def _header_indexes(metadata: Collection[MetaData]) -> Iterator[tuple[Table, Index, HeaderPart]]:
    for one in metadata:
        for table in one.tables.values():
            for index in sorted(table.indexes, key=lambda index: str(index.name)):
                part = indexed_part(index)
                if part is not None:
                    yield table, index, part


def _metadata_of(context: AutogenContext) -> Collection[MetaData]:
    found: Any = context.metadata
    return list(found) if isinstance(found, list | tuple) else [found]


def leave_indexes_to_us(context: AutogenContext, *_: Any) -> None:
    """Keep SQLAlchemy and Alembic from comparing our indexes and their generated columns, which they cannot."""
    ours: set[tuple[str | None, str, str]] = set()
    for table, index, _part in _header_indexes(_metadata_of(context)):
        name = str(index.name)
        warnings.filterwarnings("ignore", message=rf"(?s).*expression-based index '?{re.escape(name)}\b")
        ours |= {(table.schema, table.name, one) for one in (name, generated_column(name))}

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
    for table, index, part in _header_indexes(_metadata_of(context)):
        if (
            schemas is not None
            and table.schema not in schemas
            and not (table.schema is None and "" in schemas)
        ):
            continue
        if not all(one(index, index.name, "index", False, None) for one in context.opts[_FILTERS]):
            continue
        exists = inspector.has_table(table.name, schema=table.schema)
        found = existing_indexes(connection, table).get(str(index.name)) if exists else None
        create = _operation_for(table, index, part)
        if found is None:
            upgrade_ops.ops.append(create)
        elif found.unique != bool(index.unique) or found.positions != positions_of(part, connection):
            upgrade_ops.ops += [create.reverse(), create]


def _operation_for(table: Table, index: Index, part: HeaderPart) -> CreateIndexOp:
    (column,) = index.columns
    type_ = cast("EncryptedJWT", column.type)
    options: dict[str, Any] = {"kind": part.kind}
    if part.kind == "fingerprint":
        header = HeaderSQL(column, type_)
        spec, name = next(
            (spec, name)
            for spec in type_.spec.layouts
            for name in spec.fingerprints
            if part_of(header, spec, name, for_layout=bool(part.layout)).identity() == part.identity()
        )
        options |= {"fingerprint": name, "layout": None if spec is type_.spec else spec}
    return CreateIndexOp(
        str(index.name), table.name, column.name,
        unique=bool(index.unique), type_=type_, schema=table.schema, **options,
    )  # fmt: skip
