"""The output of every command: width, colour, marks, tables, JSON, errors and exit codes.

Colour and animation are for terminals. What goes into a pipe or a file is plain text of 80 columns, which
``COLUMNS`` changes; ``NO_COLOR`` takes the colour away everywhere.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ..database.printable import printable
from ..errors import ConfigurationError, JWTColumnError, KeyRingError, KeyUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rich.console import ConsoleOptions, RenderableType

_Value = TypeVar("_Value")

# Every control character but the line feed, and those that turn a line around.
_CONTROL: Final = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

#: The styles of rows by state; any other is red.
STATE_STYLES: Final = {"current": "green", "stale": "yellow", "unknown": "yellow", "destroyed": "dim"}

_PIPED_WIDTH: Final = 80

# Columns of text that is short.
_SHORT: Final = ("key id", "state")

# Longer lines are hard to read, however wide the terminal is.
_WIDEST: Final = 100


class ExitCode(IntEnum):
    """The exit status of a command."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    DATABASE = 3
    #: The system that holds the keys, or the key that wraps them; the same number, because the cure is the same.
    UNREACHABLE = 3
    INTERRUPTED = 130


class DatabaseError(JWTColumnError):
    """The database cannot be reached, or refused; the same command may do better later."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a question with the name that is most like this one, or an empty text."""
    matches = get_close_matches(name, names, n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


class _Console(Console):
    """A console that obeys no control character of a text; a name in a database may hold terminal commands."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield the segments of anything that is printed, with control characters written out."""
        for segment in super().render(renderable, options):
            if segment.control is None and _CONTROL.search(segment.text):
                text = _CONTROL.sub(lambda found: printable(found[0]), segment.text)
                yield Segment(text, segment.style)
            else:
                yield segment


def written_out(value: _Value) -> _Value:
    """Return a report, or a part of one, with every text of it printable; see :func:`printable`."""
    changed: Any = value
    if isinstance(value, str):
        changed = printable(value)
    elif isinstance(value, tuple):
        changed = tuple(map(written_out, value))
    elif isinstance(value, dict):
        changed = {name: written_out(one) for name, one in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        changed = replace(
            value, **{one.name: written_out(getattr(value, one.name)) for one in fields(value) if one.init}
        )
    return changed  # type: ignore[no-any-return]


def make_console(*, stderr: bool = False) -> Console:
    """Return a console on standard output or standard error, as they are at this moment."""
    # Automatic highlighting colours every number, markup eats square brackets, and :names: become pictures.
    console = _Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        console.width = min(console.width, _WIDEST)
    elif not os.environ.get("COLUMNS", "").isdigit():
        # Without this, the width would be that of the terminal on standard input, if there happens to be one.
        console.width = _PIPED_WIDTH
    return console


def is_utf8(console: Console) -> bool:
    """Return True if the stream behind a console takes characters outside ASCII."""
    return console.encoding.startswith("utf")


def mark(console: Console, *, ok: bool) -> Text:
    """Return the mark in front of something that was checked."""
    if is_utf8(console):
        return Text("✓", "green") if ok else Text("✗", "bold red")
    return Text("ok", "green") if ok else Text("FAILED", "bold red")


def verdict(console: Console, text: str, *, ok: bool) -> Text:
    """Return the line at the end of a report: a mark, and a text that stands out."""
    return Text.assemble(mark(console, ok=ok), " ", (text, "bold"))


def indented(console: Console, renderable: RenderableType) -> None:
    """Print something two columns to the right, without the blanks that Rich puts at the ends of lines."""
    for line in _lines(console, renderable, console.width - 2):
        console.print(Text.assemble("  ", line) if line else "", no_wrap=True, overflow="ignore", crop=False)


def _lines(console: Console, renderable: RenderableType, width: int) -> Iterator[Text]:
    """Yield the lines that Rich renders."""
    options = console.options.update(width=width, height=None)
    for segments in console.render_lines(renderable, options, pad=False):
        line = Text.assemble(*((segment.text, segment.style or "") for segment in segments))
        line.rstrip()
        yield line


def plain_table(*columns: str) -> Table:
    """Return an empty table as all commands show one; a column that begins with ``>`` is one of numbers."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim", border_style="dim"
    )
    for name in columns:
        is_number = name.startswith(">")
        table.add_column(
            name.removeprefix(">"),
            justify="right" if is_number else "left",
            no_wrap=is_number or name in _SHORT,
            overflow="fold",
        )
    return table


def key_cells(key: tuple[str | None, str]) -> tuple[Text, Text]:
    """Return the cells of a key id and the state of the rows under it."""
    key_id, state = key
    return Text(key_id or "none", "cyan"), Text(state, STATE_STYLES.get(state, "red"))


def state_order(key: tuple[str | None, str]) -> tuple[Any, ...]:
    """Sort key of a key id and state: current rows first, rows without an envelope last."""
    key_id, state = key
    return key_id is None, state != "current", key_id or "", state


def print_json(value: Mapping[str, Any]) -> None:
    """Print JSON on standard output."""
    # Not through Rich, which would break long lines.
    typer.echo(json.dumps(value, indent=2))


def print_problem(text: str) -> None:
    """Print an error on standard error, as one line, which a terminal is not left to break within words."""
    console = make_console(stderr=True)
    line = Text.assemble(("jwt-column: ", "bold red"), printable(" ".join(text.split())))
    console.print(line, soft_wrap=not console.is_terminal)


def print_error(error: JWTColumnError) -> ExitCode:
    """Print an error as one line on standard error, and return the exit code that goes with it.

    The messages of this package hold no part of a token or a key, so all of it may be shown.
    """
    print_problem(str(error))
    if isinstance(error, DatabaseError):
        return ExitCode.DATABASE
    if isinstance(error, KeyUnavailableError) and error.retryable:
        return ExitCode.UNREACHABLE
    is_setup = isinstance(error, ConfigurationError | KeyRingError)
    return ExitCode.USAGE if is_setup else ExitCode.FAILURE
