"""Progress: a bar on a terminal, lines elsewhere. For migrations, and for the ``jwt-column`` command."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from jwt_column.database.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from .report import ReencryptionReport

    Progress = Callable[[ReencryptionReport], None]


logger: logging.Logger = logging.getLogger("alembic.runtime.migration")

#: Columns that output fills at most: longer lines are hard to read, however wide the terminal is.
WIDEST: Final = 100

# Seconds between two lines: enough to see that a long run is alive, few enough to keep its log readable.
_LINE_INTERVAL: Final = 10.0


class Show(Protocol):
    """Shows how far a piece of work is."""

    def __call__(self, name: str, done: int, total: int | None, words: str, phase: str = "") -> None:
        """Show how much is done of how much, which may not be known yet; *words* are the unit, and more.

        Each phase has a bar of its own, and the last one goes.
        """


@contextmanager
def report_progress(table: str, column: str, given: Progress | None) -> Iterator[Progress]:
    """Return the function that a migration calls after each batch: the caller's, a bar, or log lines."""
    if given is not None:
        yield given
        return
    if not sys.stderr.isatty():
        yield log_progress()
        return
    try:
        from rich.console import Console
    except ImportError:
        yield log_progress()
        return
    console = Console(stderr=True)
    console.width = min(console.width, WIDEST)
    with progress_bar(f"{table}.{column}", console) as show:
        yield show


@contextmanager
def bars(console: Console, *, transient: bool = False) -> Iterator[Show]:
    """Show a bar while the block runs; the function that is yielded moves it."""
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    columns = (
        # A name that is longer than this leaves no room for a bar on a terminal of 80 columns.
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=32)),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        TextColumn("{task.fields[state]}", markup=False, table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
    )
    with Bars(*columns, console=console, expand=True, transient=transient) as rows:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int | None, words: str, phase: str = "") -> None:
            if phase not in tasks:
                # Another bar: the rate of one phase, and so its time left, is not that of another.
                for task in tasks.values():
                    rows.remove_task(task)
                tasks.clear()
                tasks[phase] = rows.add_task(name, total=None, state="")
            state = words if total is None else f"{done:,} of {total:,} {words}"
            if total == 0:
                # A bar of nothing is shown as one that is full.
                done = total = 1
            rows.update(tasks[phase], description=printable(name), completed=done, total=total, state=state)

        yield show


def lines(write: Callable[[str], None]) -> Show:
    """Return a function that writes progress as a line now and then."""
    last = time.monotonic()

    def show(name: str, done: int, total: int | None, words: str, phase: str = "") -> None:
        del phase
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_INTERVAL:
            last = now
            write(printable(f"{name}: {done} of {total} {words}"))

    return show


@contextmanager
def progress_bar(name: str, console: Console, *, transient: bool = False) -> Iterator[Progress]:
    """Show a bar while the block runs; the function that is yielded moves it to the state of a report."""
    with bars(console, transient=transient) as show:
        show(name, 0, None, "counting rows", "counting")

        def show_report(report: ReencryptionReport) -> None:
            # A run over several schemas has a bar for one after the other.
            where, tokens = f"{report.table}.{report.column}", report.tokens
            if tokens is not None and not tokens.before:
                show(where, tokens.rows_before, _rows_with_value(report), "digests", f"digests of {where}")
            elif report.verified:
                show(where, report.verified, _rows_to_verify(report), "opened", f"opening {where}")
            else:
                words = f"rows, {_WAITING.get(report.waiting or '', f'{report.rows_per_second:,.0f} rows/s')}"
                show(where, report.done, max(report.total, report.done), words, f"writing {where}")

        yield show_report


def log_progress() -> Progress:
    """Return a function that logs the state of a run at its begin, now and then, and at its end."""
    return line_progress(lambda line: logger.info("%s", line))


def line_progress(write: Callable[[str], None]) -> Progress:
    """Return a function that writes the state of a run as a line: at its begin, now and then, and at its end."""
    last = float("-inf")
    last_state: tuple[object, ...] = ()

    def show(report: ReencryptionReport) -> None:
        nonlocal last, last_state
        now = time.monotonic()
        state = (report.reencrypted, report.expired, report.left, report.verified, report.waiting)
        # Before its end a run may have dealt with every row more than once: it goes over them again.
        is_news = report.finished or bool(last_state and report.waiting != last_state[-1])
        if state == last_state or (not is_news and now - last < _LINE_INTERVAL):
            return
        last, last_state = now, state
        under = "in the clear" if report.key_id is None else f"under key {report.key_id}"
        others = "".join(
            f", {rows} {what}"
            for rows, what in (
                (report.expired, "expired"),
                (report.undecryptable_count, "cannot be read"),
                (report.unwritable_count, "cannot be written"),
                (report.verified, f"of {_rows_to_verify(report)} opened"),
            )
            if rows
        )
        line = (
            f"{report.table}.{report.column}: {report.reencrypted} of {report.total} rows {under}{others}, "
            f"{report.rows_per_second:.0f} rows/s{_time_left(report)}"
        )
        write(printable(line))

    return show


_WAITING: Final = {
    "paused": "paused",
    "window": "waiting for its window",
    "replicas": "waiting for replicas",
    "throttle": "waiting, as the throttle says",
}


def _time_left(report: ReencryptionReport) -> str:
    """Return what a run waits for, or how long it takes, behind a comma."""
    if report.waiting is not None:
        return f", {_WAITING[report.waiting]}"
    seconds = report.seconds_left
    if report.finished or not seconds:
        return ""
    minutes = round(seconds / 60)
    if minutes < 1:
        return ", less than a minute left"
    return f", about {minutes} min left" if minutes < 90 else f", about {minutes / 60:.0f} h left"


def _rows_with_value(report: ReencryptionReport) -> int:
    """Return how many rows have a value when a run begins, as far as is known."""
    counted = report.already_current + report.total + report.plaintext
    return max(counted, 0 if report.tokens is None else report.tokens.rows_before)


def _rows_to_verify(report: ReencryptionReport) -> int:
    """Return how many rows there are to open at the end, as far as is known."""
    return max(report.already_current + report.reencrypted, report.verified)
