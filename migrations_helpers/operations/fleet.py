"""``op.create_jwt_fleet_table`` and ``op.drop_jwt_fleet_table``; autogenerate never drops the table."""

from __future__ import annotations

from alembic.operations import Operations, ops
from sqlalchemy import MetaData

from jwt_column.fleet import FLEET_TABLE, fleet_table
from jwt_column.option_values import TEXT

from .directives import Directive, register


class _FleetTableOp(Directive):
    """An operation on the table of a fleet."""

    def __init__(self, table: str = FLEET_TABLE, *, schema: str | None = None) -> None:
        TEXT.check(table=table)
        TEXT.or_none.check(schema=schema)
        self.table = table
        self.schema = schema


@register
class CreateFleetTableOp(_FleetTableOp):
    """Create the table in which the processes of a fleet report their keys."""

    name = "create_jwt_fleet_table"
    undone_by = "drop_jwt_fleet_table"


@register
class DropFleetTableOp(_FleetTableOp):
    """Drop the table of a fleet."""

    name = "drop_jwt_fleet_table"
    undone_by = "create_jwt_fleet_table"


@Operations.implementation_for(CreateFleetTableOp)
def _create(operations: Operations, operation: CreateFleetTableOp) -> None:
    operations.impl.create_table(fleet_table(MetaData(), name=operation.table, schema=operation.schema))


@Operations.implementation_for(DropFleetTableOp)
def _drop(operations: Operations, operation: DropFleetTableOp) -> None:
    operations.impl.drop_table(fleet_table(MetaData(), name=operation.table, schema=operation.schema))


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
