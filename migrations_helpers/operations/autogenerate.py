"""Alembic's autogenerate: plain column types, and rows that are behind.

A revision names an encrypted column by its type in the database, ``sa.LargeBinary()`` or ``sa.Text()``: it then runs
without this package, and holds nothing of a key.

With ``context.configure(..., jwt_column={"compare_rows": True})`` the rows are compared too: a table with stale or
plaintext rows makes ``alembic check`` fail, and ``alembic revision --autogenerate`` writes the operation that mends it.
That reads the first bytes of every row, so it is not done unasked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic.autogenerate import comparators
from alembic.operations import ops
from sqlalchemy import Column, LargeBinary, MetaData, Table, Text, inspect, select

from jwt_column.census import key_usage
from jwt_column.column.types import EncryptedJWT
from jwt_column.errors import ConfigurationError

from .directives import ColumnOp, EncryptColumnOp, ReencryptColumnOp
from .fleet import keep_fleet_tables
from .index_comparison import compare_indexes, leave_indexes_to_us

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from alembic.autogenerate.api import AutogenContext
    from sqlalchemy.types import TypeEngine


#: The keyword of ``context.configure`` that holds our options.
OPTION = "jwt_column"
_COMPARE_ROWS = "compare_rows"


def _register(function: Callable[..., None], *, first: bool = False) -> None:
    """Have a function called after Alembic's own comparisons, or before them."""
    try:
        from alembic.util import DispatchPriority
    except ImportError:
        # Before 1.18 there is no order but that of registration.
        comparators.dispatch_for("schema")(function)
        if first:
            registered: Any = comparators._registry["schema", "default"]  # noqa: SLF001
            registered.insert(0, registered.pop())
        return
    priority = DispatchPriority.FIRST if first else DispatchPriority.LAST
    comparators.dispatch_for("schema", priority=priority)(function)


def complete(context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: Any) -> None:
    """Put plain types into the operations found, and add those that the rows need."""
    for operation in list(_walk(upgrade_ops)):
        _use_plain_types(operation)
    keep_fleet_tables(upgrade_ops)
    compare_indexes(context, upgrade_ops, schemas)
    options = context.opts.get(OPTION) or {}
    if not isinstance(options, dict) or set(options) - {_COMPARE_ROWS}:
        raise ConfigurationError(f"context.configure({OPTION}=...) takes {{{_COMPARE_ROWS!r}: True}}")
    if options.get(_COMPARE_ROWS):
        upgrade_ops.ops.extend(_operations_for_rows(context))


_register(leave_indexes_to_us, first=True)
_register(complete)


def _walk(container: ops.OpContainer) -> Iterator[ops.MigrateOperation]:
    """Return every operation, those of one table that are kept together among them."""
    for operation in container.ops:
        if isinstance(operation, ops.OpContainer):
            yield from _walk(operation)
        else:
            yield operation


def _use_plain_types(operation: ops.MigrateOperation) -> None:
    """Replace encrypted types by their types in the database. The model's own columns stay as they are."""
    if isinstance(operation, ops.CreateTableOp):
        operation.columns = [_plain_column(item) for item in operation.columns]
    elif isinstance(operation, ops.AddColumnOp):
        operation.column = _plain_column(operation.column)
    elif isinstance(operation, ops.AlterColumnOp):
        for name in ("modify_type", "existing_type"):
            if isinstance(getattr(operation, name), EncryptedJWT):
                setattr(operation, name, _plain_type(getattr(operation, name)))


def _plain_type(type_: EncryptedJWT) -> TypeEngine[Any]:
    return Text() if type_.storage == "text" else LargeBinary()


def _plain_column(item: Any) -> Any:
    """Return a copy of an encrypted column with a plain type, and anything else as it is."""
    if not isinstance(item, Column) or not isinstance(item.type, EncryptedJWT):
        return item
    # A table of its own makes the copy: a column's copy is no public operation, a table's is.
    copy = item.table.to_metadata(MetaData()).columns[item.key]
    copy.type = _plain_type(item.type)
    return copy


def _operations_for_rows(context: AutogenContext) -> Iterator[ColumnOp]:
    """Return the operation for each encrypted column whose rows are behind."""
    connection = context.connection
    assert connection is not None  # noqa: S101 - autogenerate does not run offline
    inspector = inspect(connection)
    for table in context.sorted_tables:
        for column in table.columns:
            type_ = column.type
            if not isinstance(type_, EncryptedJWT) or not _exists(inspector, table, column):
                continue
            a_row = select(column.is_(None)).where(column.is_not(None)).limit(1)
            if connection.execute(a_row).first() is None:
                continue  # an empty table needs no key, so a fresh database has no key ring to ask for
            states = {row.state for row in connection.execute(key_usage(column))}
            if "plaintext" in states:
                yield EncryptColumnOp(table.name, column.name, type_=type_, schema=table.schema)
            if "stale" in states:
                yield ReencryptColumnOp(table.name, column.name, type_=type_, schema=table.schema)


def _exists(inspector: Any, table: Table, column: Column[Any]) -> bool:
    name, schema = table.name, table.schema
    return inspector.has_table(name, schema=schema) and any(
        found["name"] == column.name for found in inspector.get_columns(name, schema=schema)
    )
