"""``keys list``: what a ring holds."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

from .counting import ColumnOption, DatabaseOption, ModelOption, SchemaOption, TableOption, count_rows
from .rings import FileOption, JsonOption, now, open_ring
from .showing import print_json, ring_to_json, show_ring

__all__ = ["list_keys"]


def list_keys(
    *,
    file: FileOption = None,
    database: DatabaseOption = None,
    model: ModelOption = None,
    table: TableOption = None,
    column: ColumnOption = None,
    schema: SchemaOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the keys of a ring: ids, state, age, what wraps them, and the rows under each of them.

    Shows what the file says; 'check' asks the KEK whether it is true. Rows are counted where a column is named.
    """
    ring = open_ring(file)
    rows = count_rows(database, model, table, column, schema)
    if as_json:
        print_json(ring_to_json(ring, rows))
    else:
        show_ring(ring, now(), rows)
