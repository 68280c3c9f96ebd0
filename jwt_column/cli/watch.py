"""``jwt-column audit --watch``: configuration and census of every column, again and again, with rates and time left."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
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
from ..wording import counted
from .console import key_cells, make_console, plain_table, state_order
from .databases import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console, RenderableType
    from sqlalchemy import Engine

    from ..auditing.columns import AuditedColumn
    from .columns import Targets

    Key = tuple[str | None, str]

# Censuses that a rate is computed from: enough to even batches out, few enough to show a change.
_LOOKS: Final = 15

# States of rows that a rotation or an adoption has still to rewrite.
_BEHIND: Final = ("stale", "plaintext")

# Totals, the table's head, finished columns, the footer, and blank lines between them.
_OTHER_LINES: Final = 8


class WatchedColumn:
    """One column, and its last censuses."""

    def __init__(self, column: AuditedColumn, active: Sequence[str]) -> None:
        self.column = column
        #: Key ids that count as active ones; empty where none is known.
        self.active: tuple[str, ...] = tuple(active)
        #: Key ids whose rows nobody will re-encrypt.
        self.destroyed: tuple[str, ...] = ()
        ring = None
        if not active:
            try:
                ring = column.type_.ring()
            except (ConfigurationError, KeyUnavailableError):
                pass  # Every envelope is then of an unknown state.
            else:
                self.active, self.destroyed = tuple(ring.current_key_ids), ring.destroyed_key_ids
        self.configuration: dict[str, str] = configuration_of(column, ring)
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

    @property
    def speed(self) -> float:
        """The rows that become current, in rows per second."""
        return max(0.0, self.rate(*(key for key in self.rows if key[1] not in _BEHIND)))

    @property
    def is_done(self) -> bool:
        """Whether every row is current."""
        return all(state in ("current", "destroyed") for _, state in self.rows)

    def left(self) -> tuple[int, float | None]:
        """Return the rows that are behind, and the seconds until none is; None while their number stays."""
        keys = {key for _, rows in self._looks for key in rows if key[1] in _BEHIND}
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
        yield _print_lines
        return
    looks = count()
    with Live(console=console, auto_refresh=False) as live:
        yield lambda columns: live.update(view(columns, every, console, next(looks)), refresh=True)


def _print_lines(columns: Sequence[WatchedColumn]) -> None:
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for watched in _unfinished_first(columns):
        states: Counter[str] = Counter()
        for (_, state), rows in watched.rows.items():
            states[state] += rows
        listed = ", ".join(f"{states[state]} {state}" for state in sorted(states)) or "no token"
        pace = ""
        if (seconds := watched.left()[1]) is not None:
            pace = f", {watched.speed:.0f} rows/s, {duration(seconds)} left"
        typer.echo(f"{moment} {watched.name}: {listed}{pace}")
    if len(columns) > 1:
        typer.echo(f"{moment} {_totals(columns)}")


def view(columns: Sequence[WatchedColumn], every: float, console: Console, look: int) -> RenderableType:
    """Return totals, unfinished columns and finished ones, as high as the console; each look shows the next page."""
    done = [watched for watched in columns if watched.is_done and watched.rows]
    unfinished = [one for one in _unfinished_first(columns) if one not in done]
    pages = _pages(unfinished, console.height - _OTHER_LINES)
    page = pages[look % len(pages)]
    parts: list[Any] = [Text(_totals(columns), "bold"), ""]
    if page:
        parts += [_table(page), ""]
    if done:
        names = ", ".join(watched.name for watched in done)
        parts.append(Text(f"{len(done)} done: {names}", "green", no_wrap=True, overflow="ellipsis"))
    facts = [_facts(watched) for watched in columns]
    used = _OTHER_LINES + sum(map(_height, page))
    if len(pages) == 1 and used + sum(1 + len(fact) // console.width for fact in facts) <= console.height:
        parts += facts
    moment = datetime.now(UTC).strftime("%H:%M:%S UTC")
    where = "" if len(pages) == 1 else f"page {look % len(pages) + 1} of {len(pages)}, "
    parts.append(Text(f"{where}{moment}, every {every:g} s. Ctrl-C ends.", "dim"))
    return Group(*parts)


def _totals(columns: Sequence[WatchedColumn]) -> str:
    """Return all columns in one line: how many are done, the rows left, the rate and the time left."""
    done = sum(watched.is_done for watched in columns)
    rows = sum(sum(watched.rows.values()) for watched in columns)
    left = sum(watched.left()[0] for watched in columns)
    text = f"{counted(len(columns), 'column')}, {done} done; {counted(rows, 'row')}, {left:,} left"
    # Columns are often re-encrypted one after another, at one rate.
    speed = sum(watched.speed for watched in columns)
    return f"{text}, {speed:,.0f} rows/s, {duration(left / speed)} left" if left and speed else text


def _unfinished_first(columns: Sequence[WatchedColumn]) -> list[WatchedColumn]:
    """Return the columns with the most rows left first, and those that are done last."""
    return sorted(columns, key=lambda watched: (watched.is_done, -watched.left()[0]))


def _height(watched: WatchedColumn) -> int:
    """Return the lines of a column in the table."""
    return max(1, len(watched.rows))


def _pages(columns: Sequence[WatchedColumn], room: int) -> list[list[WatchedColumn]]:
    """Return the columns in pages of so many lines; a column stays whole."""
    pages: list[list[WatchedColumn]] = [[]]
    for watched in columns:
        if pages[-1] and sum(map(_height, [*pages[-1], watched])) > room:
            pages.append([])
        pages[-1].append(watched)
    return pages


def _table(columns: Sequence[WatchedColumn]) -> RenderableType:
    table = plain_table("column", "key id", "state", ">rows", ">rows/s", ">left")
    table.columns[0].no_wrap, table.columns[0].overflow = True, "ellipsis"
    for watched in columns:
        _, seconds = watched.left()
        for place, key in enumerate(sorted(watched.rows, key=state_order)):
            rate = watched.rate(key)
            table.add_row(
                Text("" if place else watched.name),
                *key_cells(key),
                f"{watched.rows[key]:,}",
                f"{rate:+,.0f}" if round(rate) else "",
                duration(seconds) if seconds is not None and key[1] in _BEHIND else "",
            )
        if not watched.rows:
            table.add_row(Text(watched.name), "", Text("no token", "dim"), "0", "", "")
    return table


def _facts(watched: WatchedColumn) -> Text:
    parameters = {"active key": ", ".join(watched.active) or "not known"} | watched.configuration
    return Text(f"{watched.name}: " + ", ".join(f"{name} {value}" for name, value in parameters.items()))


def duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours."""
    whole = max(1, round(seconds))
    if whole < 120:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 120 else f"{round(minutes / 60)} h"
