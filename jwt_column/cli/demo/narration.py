"""The demo's output: headings, blocks of text, code and tables, and checks that are counted."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from ..console import indented, mark

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console, RenderableType

__all__ = ["Narration", "code", "evaluated"]


class Narration:
    """The output of the demo, and the results of its checks."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._step = 0
        self._is_checking = False
        self.held: int = 0
        self.failed: int = 0

    def heading(self, title: str) -> None:
        """Begin the next step."""
        self._step += 1
        text = Text.assemble((f"{self._step}  ", "cyan"), (title, "bold"))
        self._console.print("", Rule(text, align="left", style="dim"))

    def show(self, *renderables: RenderableType) -> None:
        """Print a block: an empty line, and anything below it, indented."""
        self._console.print()
        for one in renderables:
            indented(self._console, one)
        self._is_checking = False

    def check(self, ok: bool, claim: str) -> None:
        """Print a claim and whether it holds; an empty line comes before the first of several."""
        if not self._is_checking:
            self._console.print()
        self._is_checking = True
        self.held, self.failed = self.held + ok, self.failed + (not ok)
        line = Table.grid(padding=(0, 1))
        line.add_row(mark(self._console, ok=ok), Text(claim))
        indented(self._console, line)

    def waiting(self, description: str) -> AbstractContextManager[Any]:
        """Show that something is being done, on a terminal."""
        if not self._console.is_interactive:
            return nullcontext()
        return self._console.status(f"{description} ...", spinner_style="cyan")


def code(source: str) -> Padding:
    """Return Python source code with colours."""
    # The terminal's own sixteen colours, which were chosen for its background.
    highlighted = Syntax("", "python", theme="ansi_dark", background_color="default").highlight(source)
    highlighted.rstrip()
    # On a narrow terminal a long line goes on below; by itself it would be cut off.
    highlighted.no_wrap, highlighted.overflow = False, "fold"
    return Padding.indent(highlighted, 2)


def evaluated(source: str, names: dict[str, Any]) -> tuple[Padding, Padding]:
    """Return an expression and its value, as Python's prompt shows them."""
    value = eval(source, {}, names)  # noqa: S307 - the demo's own expressions, none of them from outside
    return code(f">>> {source}"), Padding.indent(Text(repr(value), "dim"), 2)
