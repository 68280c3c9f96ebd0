"""``op.create_jwt_fleet_table`` and ``op.drop_jwt_fleet_table``; autogenerate never drops the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.autogenerate import renderers
from alembic.operations import MigrateOperation, Operations, ops
from sqlalchemy import MetaData

from jwt_column.fleet import FLEET_TABLE, fleet_table
from jwt_column.option_values import TEXT

from .directives import Directive, register, rendered

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext


class _FleetTableOp(Directive):
    """An operation on the table of a fleet."""

    def __init__(self, table: str = FLEET_TABLE, *, schema: str | None = None) -> None:
        TEXT.check(table=table)
        TEXT.or_none.check(schema=schema)
        self.table = table
        self.schema = schema

    def to_diff_tuple(self) -> tuple[str | None, ...]:
        """Return the line of ``alembic check``."""
        return (self.name, self.schema, self.table)


@register
class CreateFleetTableOp(_FleetTableOp):
    """Create the table in which the processes of a fleet report their keys."""

    name = "create_jwt_fleet_table"

    def reverse(self) -> MigrateOperation:
        """Return the operation that drops the table."""
        return DropFleetTableOp(self.table, schema=self.schema)


@register
class DropFleetTableOp(_FleetTableOp):
    """Drop the table of a fleet."""

    name = "drop_jwt_fleet_table"

    def reverse(self) -> MigrateOperation:
        """Return the operation that creates the table."""
        return CreateFleetTableOp(self.table, schema=self.schema)


@Operations.implementation_for(CreateFleetTableOp)
def _create(operations: Operations, operation: CreateFleetTableOp) -> None:
    operations.impl.create_table(fleet_table(MetaData(), name=operation.table, schema=operation.schema))


@Operations.implementation_for(DropFleetTableOp)
def _drop(operations: Operations, operation: DropFleetTableOp) -> None:
    operations.impl.drop_table(fleet_table(MetaData(), name=operation.table, schema=operation.schema))


@renderers.dispatch_for(CreateFleetTableOp)
@renderers.dispatch_for(DropFleetTableOp)
def _render(context: AutogenContext, operation: _FleetTableOp) -> str:
    """Return an operation as a line of a revision."""
    schema = [] if operation.schema is None else [f"schema={operation.schema!r}"]
    return rendered(context, operation, repr(operation.table), *schema)


def keep_fleet_tables(container: ops.OpContainer) -> None:
    """Remove the operations that would drop the table of a fleet, which the application's MetaData need not have."""
    for operation in list(container.ops):
        if isinstance(operation, ops.OpContainer):
            keep_fleet_tables(operation)
        elif isinstance(operation, ops.DropTableOp) and _is_fleet_table(operation):
            container.ops.remove(operation)


def _is_fleet_table(operation: ops.DropTableOp) -> bool:
    """Return True for a table of any name with exactly the columns of a fleet."""
    wanted = fleet_table(MetaData()).columns.keys()
    return sorted(operation.to_table().columns.keys()) == sorted(wanted)
