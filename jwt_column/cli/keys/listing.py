"""``keys list``: the keys of a ring."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

from pathlib import Path

from ..console import print_json
from ..options import FILE, JSON, RowsToCount
from .rings import now, open_ring
from .showing import ring_to_json, show_ring


def list_keys(*, file: Path | None = FILE, which: RowsToCount, as_json: bool = JSON) -> None:
    """List keys; see :mod:`jwt_column.cli.keys` for the help text."""
    ring = open_ring(file)
    rows = None
    if which != RowsToCount():
        # It takes SQLAlchemy and the engine.
        from .counting import count_rows

        rows = count_rows(which)
    if as_json:
        print_json(ring_to_json(ring, rows))
    else:
        show_ring(ring, now(), rows)
