"""The operations that create and drop the table of a fleet, and autogenerate, which leaves it alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import UpgradeOps

import migrations_helpers
from jwt_column.fleet import FLEET_TABLE, fleet_table

if TYPE_CHECKING:
    from collections.abc import Callable


def operate(engine: sa.Engine, work: Callable[[Any], object]) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction(), Operations.context(context) as operations:
            work(operations)
        connection.commit()


def generated(engine: sa.Engine, metadata: sa.MetaData) -> list[str]:
    """Return the operations of a revision that autogenerate writes."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"target_metadata": metadata})
        upgrade = produce_migrations(context, metadata).upgrade_ops
    assert upgrade is not None
    lines = render_python_code(upgrade).splitlines()
    return [line.strip() for line in lines if line.strip().startswith("op.")]


def test_create_and_drop(engine: sa.Engine) -> None:
    operate(engine, lambda op: op.create_jwt_fleet_table())
    assert sa.inspect(engine).get_table_names() == [FLEET_TABLE]
    operate(engine, lambda op: op.drop_jwt_fleet_table())
    assert sa.inspect(engine).get_table_names() == []


@pytest.mark.parametrize("name", [FLEET_TABLE, "loaded_keys"])
def test_autogenerate_never_drops_it(engine: sa.Engine, name: str) -> None:
    operate(engine, lambda op: op.create_jwt_fleet_table(name))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE other (id INTEGER)")
    # The control: another table that no model has is dropped.
    assert generated(engine, sa.MetaData()) == ["op.drop_table('other')"]


def test_a_model_that_has_it_is_up_to_date(engine: sa.Engine) -> None:
    metadata = sa.MetaData()
    fleet_table(metadata)
    assert [line.partition("(")[0] for line in generated(engine, metadata)] == ["op.create_table"]
    operate(engine, lambda op: op.create_jwt_fleet_table())
    assert generated(engine, metadata) == []


def test_they_render_and_reverse_each_other() -> None:
    create = migrations_helpers.CreateFleetTableOp("loaded", schema="app")
    drop = create.reverse()
    lines = render_python_code(UpgradeOps([create, drop, drop.reverse()])).splitlines()
    assert [line.strip() for line in lines[1:4]] == [
        "op.create_jwt_fleet_table('loaded', schema='app')",
        "op.drop_jwt_fleet_table('loaded', schema='app')",
        "op.create_jwt_fleet_table('loaded', schema='app')",
    ]
    assert create.to_diff_tuple() == ("create_jwt_fleet_table", "app", "loaded")


def test_a_script_has_the_statement() -> None:
    lines: list[str] = []

    class Buffer:
        write = staticmethod(lines.append)

        def flush(self) -> None: ...

    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": Buffer()}
    )
    op: Any
    with Operations.context(context) as op:
        op.create_jwt_fleet_table()
    assert "CREATE TABLE jwt_column_fleet" in "".join(lines)
