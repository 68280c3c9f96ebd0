"""``jwt-column audit --watch``: configuration and census of every column, again and again, with rates and time left."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from ..auditing.columns import columns_of
from ..auditing.counting import census
from ..auditing.declaration import configuration_of
from ..database.printable import printable
from ..database.reading import rolled_back
from ..errors import ConfigurationError, KeyUnavailableError
from ..keys.snapshot import parse_key_id
from .console import STATE_STYLES, make_console, plain_table, state_order
from .databases import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import RenderableType
    from sqlalchemy import Engine

    from ..auditing.columns import AuditedColumn
    from .columns import Targets

    Key = tuple[str | None, str]

__all__ = ["WatchedColumn", "watch_columns"]

# Censuses that a rate is computed from: enough to even batches out, few enough to show a change.
_LOOKS: Final = 15

# States of rows that a rotation or an adoption has still to rewrite.
_BEHIND: Final = ("stale", "plaintext")


class WatchedColumn:
    """One column, and its last censuses."""

    def __init__(self, column: AuditedColumn, active: Sequence[str]) -> None:
        self.column = column
        #: Key ids that count as active ones; empty where none is known.
        self.active = tuple(active)
        self.configuration = configuration_of(column, None)
        if not active:
            try:
                ring = column.type_.ring()
            except (ConfigurationError, KeyUnavailableError):
                pass  # Every envelope is then of an unknown state.
            else:
                self.active = tuple(ring.current_key_ids)
                self.configuration = configuration_of(column, ring)
        self._looks: deque[tuple[float, Counter[Key]]] = deque(maxlen=_LOOKS)

    @property
    def name(self) -> str:
        """The column's name for display."""
        return printable(self.column.name)

    @property
    def rows(self) -> Counter[Key]:
        """Rows per key id and state, at the last look."""
        return self._looks[-1][1]

    def add(self, moment: float, rows: Counter[Key]) -> None:
        """Take the census of a moment, in seconds of any clock."""
        self._looks.append((moment, rows))

    def rate(self, *keys: Key) -> float:
        """Return the recent growth of these, in rows per second."""
        (then, before), (now, rows) = self._looks[0], self._looks[-1]
        change = sum(rows[key] - before[key] for key in keys)
        return change / (now - then) if now > then else 0.0

    def left(self) -> tuple[int, float | None]:
        """Return the rows that are behind, and the seconds until none is; None while their number stays."""
        behind = [key for _, rows in self._looks for key in rows if key[1] in _BEHIND]
        keys = set(behind)
        rows = sum(self.rows[key] for key in keys)
        rate = self.rate(*keys)
        return rows, rows / -rate if rows and rate < 0 else None


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
    """Look at the columns until the command is interrupted.

    Args:
        engine: The database.
        targets: The columns.
        active: Key ids that count as active ones; empty takes them from each column's ring.
        every: Seconds from one look to the next.
        looks: How often; None for ever.
        clock: The time, in seconds.
        sleep: Waits.

    Raises:
        DatabaseError: The database cannot be reached, or refuses.
        KeyRingError: One of *active* is no key id.
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
                    counts = census(connection, watched.column, watched.active)
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
    with Live(console=console, auto_refresh=False) as live:
        yield lambda columns: live.update(_view(columns, every), refresh=True)


def _print_lines(columns: Sequence[WatchedColumn]) -> None:
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for watched in columns:
        states: Counter[str] = Counter()
        for (_, state), rows in watched.rows.items():
            states[state] += rows
        listed = ", ".join(f"{states[state]} {state}" for state in sorted(states)) or "no token"
        typer.echo(f"{moment} {watched.name}: {listed}{_pace(watched)}")


def _pace(watched: WatchedColumn) -> str:
    _, seconds = watched.left()
    if seconds is None:
        return ""
    keys = [key for key in watched.rows if key[1] not in _BEHIND]
    return f", {max(watched.rate(*keys), 0):.0f} rows/s, {_duration(seconds)} left"


def _view(columns: Sequence[WatchedColumn], every: float) -> RenderableType:
    table = plain_table("column", "key id", "state", ">rows", ">rows/s", ">left")
    facts = []
    for watched in columns:
        _, seconds = watched.left()
        for place, key in enumerate(sorted(watched.rows, key=state_order)):
            key_id, state = key
            rate = watched.rate(key)
            table.add_row(
                Text("" if place else watched.name),
                Text(key_id or "none", "cyan"),
                Text(state, STATE_STYLES.get(state, "red")),
                f"{watched.rows[key]:,}",
                f"{rate:+,.0f}" if round(rate) else "",
                _duration(seconds) if seconds is not None and state in _BEHIND else "",
            )
        if not watched.rows:
            table.add_row(Text(watched.name), "", Text("no token", "dim"), "0", "", "")
        parameters = {"active key": ", ".join(watched.active) or "not known"} | watched.configuration
        facts.append(
            Text(f"{watched.name}: " + ", ".join(f"{name} {value}" for name, value in parameters.items()))
        )
    moment = datetime.now(UTC).strftime("%H:%M:%S UTC")
    footer = Text(f"{moment}, every {every:g} s. Ctrl-C ends.", "dim")
    parts: list[Any] = [table, "", *facts, "", footer]
    return Group(*parts)


def _duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours."""
    whole = max(1, round(seconds))
    if whole < 120:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 120 else f"{round(minutes / 60)} h"
