"""How far a deep audit or a scan is: a bar on a terminal, lines on standard error elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from .console import make_console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..auditing import AuditProgress
    from ..scanning import ScanProgress

__all__ = ["shown_bar", "shown_progress", "shown_scan"]

# Seconds between two lines: enough to see that a long run is alive, few enough to keep its log readable.
_LINE_INTERVAL: Final = 10.0


@contextmanager
def shown_bar() -> Iterator[Callable[[str, int, int, str], None]]:
    """Return what shows a name, how much is done, of how much, and of what; it goes when the block ends."""
    console = make_console(stderr=True)
    # Rich takes a pipe for a terminal where the environment says so, which is meant for colours.
    if not (console.is_interactive and sys.stderr.isatty()):
        yield _lines()
        return
    columns = (
        # A name that is longer than this leaves no room for a bar on a terminal of 80 columns.
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=32)),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        TextColumn("{task.fields[state]}", markup=False, table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=console, expand=True, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int, unit: str) -> None:
            key = name if unit == "rows" else unit
            if key not in tasks:
                for task in tasks.values():
                    bars.remove_task(task)
                tasks.clear()
                tasks[key] = bars.add_task(name, total=None, state="")
            state = f"{done:,} of {total:,} {unit}"
            bars.update(tasks[key], description=name, completed=done, total=total, state=state)

        yield show


def _lines() -> Callable[[str, int, int, str], None]:
    last = time.monotonic()

    def show(name: str, done: int, total: int, unit: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_INTERVAL:
            last = now
            typer.echo(f"{name}: {done} of {total} {unit}", err=True)

    return show


@contextmanager
def shown_progress() -> Iterator[Callable[[AuditProgress], None]]:
    """Return what shows how far a deep audit is."""
    with shown_bar() as show:
        yield lambda progress: show(progress.column, progress.examined, progress.rows, "rows")


@contextmanager
def shown_scan() -> Iterator[Callable[[ScanProgress], None]]:
    """Return what shows how far a scan is."""
    with shown_bar() as show:
        yield lambda progress: show(progress.table, progress.done, progress.tables, "tables")
