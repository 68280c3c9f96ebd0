"""The view of ``jwt-column audit --watch``: totals, unfinished columns a page at a time, finished ones in a line."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.text import Text

from .console import counted, key_cells, plain_table, state_order
from .watched import BEHIND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType

    from .watched import WatchedColumn

__all__ = ["duration", "totals", "unfinished_first", "view"]

# Totals, the table's head, finished columns, the footer, and blank lines between them.
_OTHER_LINES: Final = 8


def view(columns: Sequence[WatchedColumn], every: float, console: Console, look: int) -> RenderableType:
    """Return the view, as high as the console at most; each look shows the next page."""
    done = [watched for watched in columns if watched.is_done and watched.rows]
    pages = _pages(
        [one for one in unfinished_first(columns) if one not in done], console.height - _OTHER_LINES
    )
    page = pages[look % len(pages)]
    parts: list[Any] = [Text(totals(columns), "bold"), ""]
    if page:
        parts += [_table(page), ""]
    if done:
        names = ", ".join(watched.name for watched in done)
        parts.append(Text(f"{len(done)} done: {names}", "green", no_wrap=True, overflow="ellipsis"))
    facts = [_facts(watched) for watched in columns]
    used = _OTHER_LINES + sum(max(1, len(one.rows)) for one in page)
    if len(pages) == 1 and used + sum(1 + len(fact) // console.width for fact in facts) <= console.height:
        parts += facts
    moment = datetime.now(UTC).strftime("%H:%M:%S UTC")
    where = "" if len(pages) == 1 else f"page {look % len(pages) + 1} of {len(pages)}, "
    parts.append(Text(f"{where}{moment}, every {every:g} s. Ctrl-C ends.", "dim"))
    return Group(*parts)


def totals(columns: Sequence[WatchedColumn]) -> str:
    """Return all columns in one line: how many are done, the rows left, the rate and the time left."""
    done = sum(watched.is_done for watched in columns)
    rows = sum(sum(watched.rows.values()) for watched in columns)
    left = sum(watched.left()[0] for watched in columns)
    text = f"{counted(len(columns), 'column')}, {done} done; {counted(rows, 'row')}, {left:,} left"
    # Columns are often re-encrypted one after another, at one rate.
    speed = sum(watched.speed for watched in columns)
    return f"{text}, {speed:,.0f} rows/s, {duration(left / speed)} left" if left and speed else text


def unfinished_first(columns: Sequence[WatchedColumn]) -> list[WatchedColumn]:
    """Return the columns with the most rows left first, and those that are done last."""
    return sorted(columns, key=lambda watched: (watched.is_done, -watched.left()[0]))


def _pages(columns: Sequence[WatchedColumn], room: int) -> list[list[WatchedColumn]]:
    """Return the columns in pages of so many lines; a column stays whole."""
    pages: list[list[WatchedColumn]] = [[]]
    free = room
    for watched in columns:
        lines = max(1, len(watched.rows))
        if lines > free and pages[-1]:
            pages.append([])
            free = room
        pages[-1].append(watched)
        free -= lines
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
                duration(seconds) if seconds is not None and key[1] in BEHIND else "",
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
