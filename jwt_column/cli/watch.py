"""``jwt-column audit --watch``: configuration and census of every column, again and again, with rates and time left."""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING

import typer
from rich.live import Live

from ..auditing.columns import columns_of
from ..auditing.counting import census
from ..database.reading import rolled_back
from ..keys.snapshot import parse_key_id
from .console import make_console
from .databases import connect
from .watch_view import duration, totals, unfinished_first, view
from .watched import WatchedColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Engine

    from .columns import Targets

__all__ = ["watch_columns"]


def watch_columns(
    engine: Engine,
    targets: Targets,
    *,
    active: Sequence[str],
    every: float,
    looks: int | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Look at the columns every so many seconds, until the command is interrupted or for so many looks.

    *active* are the key ids that count as active ones; if it is empty, each column's ring tells.
    """
    for key_id in active:
        parse_key_id(key_id)
    with connect(engine) as connection:
        columns = [WatchedColumn(column, active) for column in columns_of(list(targets(connection)))]
    with _shown(every) as show:
        while looks is None or looks > 0:
            begin = clock()
            with connect(engine) as connection, rolled_back(connection):
                for watched in columns:
                    counts = census(connection, watched.column, watched.active, watched.destroyed)
                    watched.add(clock(), Counter({(one.key_id, one.state): one.rows for one in counts}))
            show(columns)
            looks = None if looks is None else looks - 1
            if looks != 0:
                sleep(max(0.0, every - (clock() - begin)))


@contextmanager
def _shown(every: float) -> Iterator[Callable[[Sequence[WatchedColumn]], None]]:
    """Return a function that shows the columns: in place on a terminal, as a line for each elsewhere."""
    console = make_console()
    if not (console.is_interactive and sys.stdout.isatty()):
        yield lambda columns: _print_lines(columns)
        return
    looks = count()
    with Live(console=console, auto_refresh=False) as live:
        yield lambda columns: live.update(view(columns, every, console, next(looks)), refresh=True)


def _print_lines(columns: Sequence[WatchedColumn]) -> None:
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for watched in unfinished_first(columns):
        states: Counter[str] = Counter()
        for (_, state), rows in watched.rows.items():
            states[state] += rows
        listed = ", ".join(f"{states[state]} {state}" for state in sorted(states)) or "no token"
        pace = ""
        if (seconds := watched.left()[1]) is not None:
            pace = f", {watched.speed:.0f} rows/s, {duration(seconds)} left"
        typer.echo(f"{moment} {watched.name}: {listed}{pace}")
    if len(columns) > 1:
        typer.echo(f"{moment} {totals(columns)}")
