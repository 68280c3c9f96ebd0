"""``op.create_jwt_index`` and ``op.drop_jwt_index``, and the comparison of these indexes for autogenerate.

Alembic compares no indexes on expressions on SQLite, and sees a column and an index of its own in the generated
columns of MySQL and MariaDB. So these indexes are compared here: by name, uniqueness and position in the envelope.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any, cast

from alembic.autogenerate import renderers
from alembic.operations import MigrateOperation, Operations, ops
from sqlalchemy import Column, Index, MetaData, Table, inspect

from jwt_column.column.header_sql import generated_column
from jwt_column.column.indexes import ExpiryIndex, FingerprintIndex, StaleIndex, is_header_index
from jwt_column.column.spec import WHOLE
from jwt_column.database.indexes import existing_indexes, positions_of
from jwt_column.errors import ConfigurationError

from ..engine.reencryption import in_column

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from alembic.autogenerate.api import AutogenContext

    from jwt_column.column.types import EncryptedJWT

__all__ = ["CreateIndexOp", "DropIndexOp", "compare_indexes", "existing_indexes", "silence_reflection"]

_KINDS = ("fingerprint", "expiry", "stale")


class _IndexOp(MigrateOperation):
    """An operation on an index of an encrypted column."""

    name: str

    def __init__(
        self,
        index: str,
        table: str,
        column: str,
        *,
        kind: str = "fingerprint",
        fingerprint: str = WHOLE,
        unique: bool = False,
        type_: EncryptedJWT | None = None,
        schema: str | None = None,
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
        self.schema = schema

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that are not the default."""
        given = {
            "kind": (self.kind, "fingerprint"),
            "fingerprint": (self.fingerprint, WHOLE),
            "unique": (self.unique, False),
            "schema": (self.schema, None),
        }
        return {name: value for name, (value, default) in given.items() if value != default}

    def reverse_as(self, operation: type[_IndexOp]) -> MigrateOperation:
        """Return the operation that undoes this one."""
        return operation(self.index, self.table, self.column, type_=self.type_, **self.arguments())

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the line of ``alembic check``."""
        return (self.name, self.schema, self.table, self.index)

    def to_index(self) -> Index:
        """Return the index, on a table that has no other column than the encrypted one."""
        column: Column[Any] = Column(self.column, self.type_)
        Table(self.table, MetaData(), column, schema=self.schema)
        if self.kind == "fingerprint":
            return FingerprintIndex(self.index, column, self.fingerprint, unique=self.unique)
        return (ExpiryIndex if self.kind == "expiry" else StaleIndex)(self.index, column)


@Operations.register_operation("create_jwt_index")
class CreateIndexOp(_IndexOp):
    """An index on the envelope headers of a column."""

    name = "create_jwt_index"

    @classmethod
    def create_jwt_index(
        cls,
        operations: Operations,
        index: str,
        table: str,
        column: str,
        *,
        kind: str = "fingerprint",
        fingerprint: str = WHOLE,
        unique: bool = False,
        type_: EncryptedJWT | None = None,
        schema: str | None = None,
    ) -> None:
        """Create an index on an encrypted column.

        Args:
            operations: Given by Alembic.
            index: The index's name.
            table: The table's name.
            column: The encrypted column's name.
            kind: ``"fingerprint"``, ``"expiry"`` or ``"stale"``.
            fingerprint: With ``"fingerprint"``: ``"token"``, or a claim.
            unique: With ``"fingerprint"``: whether the index is unique.
            type_: The column's type as the model has it, because its ``fingerprints`` and ``expose_expiry`` say where
                in an envelope the index looks; None means ``EncryptedJWT()``.
            schema: The table's schema.

        Raises:
            ConfigurationError: The type does not store that fingerprint, or no expiry.
        """
        operations.invoke(
            cls(
                index, table, column,
                kind=kind, fingerprint=fingerprint, unique=unique, type_=type_, schema=schema,
            )
        )  # fmt: skip

    def reverse(self) -> MigrateOperation:
        """Return the operation that drops the index."""
        return self.reverse_as(DropIndexOp)


@Operations.register_operation("drop_jwt_index")
class DropIndexOp(_IndexOp):
    """The index goes."""

    name = "drop_jwt_index"

    @classmethod
    def drop_jwt_index(
        cls,
        operations: Operations,
        index: str,
        table: str,
        column: str,
        *,
        kind: str = "fingerprint",
        fingerprint: str = WHOLE,
        unique: bool = False,
        type_: EncryptedJWT | None = None,
        schema: str | None = None,
    ) -> None:
        """Drop an index that ``create_jwt_index`` or the model has made, with its generated column if there is one.

        Args:
            operations: Given by Alembic.
            index: The index's name.
            table: The table's name.
            column: The encrypted column's name.
            kind: As it was created, like the following; only a program that reverses the operation needs them.
            fingerprint: As it was created.
            unique: As it was created.
            type_: As it was created.
            schema: The table's schema.
        """
        operations.invoke(
            cls(
                index, table, column,
                kind=kind, fingerprint=fingerprint, unique=unique, type_=type_, schema=schema,
            )
        )  # fmt: skip

    def reverse(self) -> MigrateOperation:
        """Return the operation that creates the index."""
        return self.reverse_as(CreateIndexOp)


@Operations.implementation_for(CreateIndexOp)
def _create(operations: Operations, operation: CreateIndexOp) -> None:
    operations.impl.create_index(operation.to_index())


@Operations.implementation_for(DropIndexOp)
def _drop(operations: Operations, operation: DropIndexOp) -> None:
    # The stamp needs nothing of the type, so a model that has dropped the fingerprint can drop its index.
    operations.impl.drop_index(_StampOf(operation).to_index())


class _StampOf(_IndexOp):
    name = ""

    def __init__(self, operation: _IndexOp) -> None:
        super().__init__(
            operation.index, operation.table, operation.column,
            kind="stale", type_=operation.type_, schema=operation.schema,
        )  # fmt: skip


@renderers.dispatch_for(CreateIndexOp)
@renderers.dispatch_for(DropIndexOp)
def _render(context: AutogenContext, operation: _IndexOp) -> str:
    """Return an operation as a line of a revision."""
    context.imports.add("import migrations_helpers")
    arguments = [repr(operation.index), repr(operation.table), repr(operation.column)]
    arguments += [f"{name}={value!r}" for name, value in operation.arguments().items()]
    if repr(operation.type_) != repr(in_column(None, operation.table, operation.column)):
        context.imports.add("from jwt_column import EncryptedJWT")
        arguments.append(f"type_={operation.type_!r}")
    prefix = context.opts.get("alembic_module_prefix") or "op."
    return f"{prefix}{operation.name}({', '.join(arguments)})"


# -- comparison ------------------------------------------------------------------------------------------------------


def _header_indexes(metadata: Collection[MetaData]) -> Iterator[tuple[Table, Index]]:
    for one in metadata:
        for table in one.tables.values():
            for index in sorted(table.indexes, key=lambda index: str(index.name)):
                if is_header_index(index):
                    yield table, index


def _metadata_of(context: AutogenContext) -> Collection[MetaData]:
    found: Any = context.metadata
    return list(found) if isinstance(found, list | tuple) else [found]


def silence_reflection(context: AutogenContext, *_: Any) -> None:
    """Ignore that SQLAlchemy and Alembic cannot compare our own indexes on SQLite, because it is done here."""
    for _table, index in _header_indexes(_metadata_of(context)):
        name = re.escape(str(index.name))
        warnings.filterwarnings("ignore", message=rf"(?s).*expression-based index '?{name}\b")


def compare_indexes(context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: Any) -> None:
    """Replace the operations that Alembic found for our indexes by the right ones."""
    connection = context.connection
    assert connection is not None  # noqa: S101 - autogenerate does not run offline
    ours: dict[tuple[str | None, str], set[str]] = {}
    for table, index in _header_indexes(_metadata_of(context)):
        ours.setdefault((table.schema, table.name), set()).add(str(index.name))
    if not ours:
        return
    _strip(upgrade_ops, ours)
    inspector = inspect(connection)
    for table, index in _header_indexes(_metadata_of(context)):
        if (
            schemas is not None
            and table.schema not in schemas
            and not (table.schema is None and "" in schemas)
        ):
            continue
        if not context.run_object_filters(index, index.name, "index", False, None):
            continue
        exists = inspector.has_table(table.name, schema=table.schema)
        found = existing_indexes(connection, table).get(str(index.name)) if exists else None
        create = _operation_for(table, index)
        if found is None:
            upgrade_ops.ops.append(create)
        elif found.unique != bool(index.unique) or found.positions != positions_of(
            index.expressions[0], connection
        ):
            upgrade_ops.ops += [create.reverse(), create]


def _operation_for(table: Table, index: Index) -> CreateIndexOp:
    part: Any = index.expressions[0]
    (column,) = index.columns
    type_ = cast("EncryptedJWT", column.type)
    fingerprint, kind = WHOLE, part.kind
    if kind == "fingerprint":
        fingerprint = next(
            name for name in type_.fingerprints if _same(FingerprintIndex, table, column, name, part)
        )
    return CreateIndexOp(
        str(index.name), table.name, column.name,
        kind=kind, fingerprint=fingerprint, unique=bool(index.unique), type_=type_, schema=table.schema,
    )  # fmt: skip


def _same(kind: Any, table: Table, column: Column[Any], name: str, part: Any) -> bool:
    other = Column(column.name, column.type)
    Table(table.name, MetaData(), other)
    made: Any = kind("ix", other, name).expressions[0]
    return bool(made.identity() == part.identity())


def _strip(container: ops.OpContainer, ours: dict[tuple[str | None, str], set[str]]) -> None:
    """Remove the operations on our indexes and their generated columns."""
    for operation in list(container.ops):
        if isinstance(operation, ops.OpContainer):
            _strip(operation, ours)
            if not operation.ops:
                container.ops.remove(operation)
            continue
        names = ours.get((getattr(operation, "schema", None), getattr(operation, "table_name", "")), set())
        is_index = (
            isinstance(operation, ops.CreateIndexOp | ops.DropIndexOp) and operation.index_name in names
        )
        is_column = isinstance(operation, ops.DropColumnOp) and operation.column_name in map(
            generated_column, names
        )
        if is_index or is_column:
            container.ops.remove(operation)
