"""Progress of a long command: a bar on a terminal, lines on standard error elsewhere."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import typer

from migrations_helpers.engine.progress import bars, lines

from .console import make_console
from .verbosity import is_quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from migrations_helpers.engine.progress import Show

__all__ = ["shown_progress", "terminal"]


def terminal() -> Console | None:
    """Return the console of standard error if it is a terminal, else None."""
    console = make_console(stderr=True)
    # Rich takes a pipe for a terminal where the environment says so, which is meant for colours.
    return console if console.is_interactive and sys.stderr.isatty() else None


@contextmanager
def shown_progress() -> Iterator[Show]:
    """Return a function that shows progress; a bar goes when the block ends."""
    console = terminal()
    if is_quiet():
        yield lines(lambda _: None)
    elif console is None:
        yield lines(partial(typer.echo, err=True))
    else:
        with bars(console, transient=True) as show:
            yield show
