"""Progress of a long command: a bar on a terminal, lines on standard error elsewhere."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import typer

from migrations_helpers.engine.progress import bars, line_progress, lines, progress_bar

from .console import make_console
from .verbosity import is_quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from rich.console import Console

    from migrations_helpers.engine.progress import Progress, Show

_Show = TypeVar("_Show")


def _terminal() -> Console | None:
    """Return the console of standard error if it is a terminal, else None."""
    console = make_console(stderr=True)
    # Rich takes a pipe for a terminal where the environment says so, which is meant for colours.
    return console if console.is_interactive and sys.stderr.isatty() else None


def shown_progress() -> AbstractContextManager[Show]:
    """Return a function that shows progress; a bar goes when the block ends."""
    return _progress(lines, partial(bars, transient=True))


def run_progress(column: str) -> AbstractContextManager[Progress]:
    """Return a function that shows the report of a run over a column, as :func:`shown_progress` shows a number."""
    return _progress(line_progress, partial(progress_bar, column, transient=True))


@contextmanager
def _progress(
    as_lines: Callable[[Callable[[str], None]], _Show],
    as_bar: Callable[..., AbstractContextManager[_Show]],
) -> Iterator[_Show]:
    console = _terminal()
    if is_quiet():
        yield as_lines(lambda _: None)
    elif console is None:
        yield as_lines(partial(typer.echo, err=True))
    else:
        with as_bar(console=console) as show:
            yield show
