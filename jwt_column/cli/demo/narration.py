"""The demo's output: headings, words, code, and checks that are counted."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from rich.rule import Rule
from rich.syntax import Syntax
from rich.text import Text

from ..console import indented, mark

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console, RenderableType

__all__ = ["Narration"]


class Narration:
    """The output of the demo, and the results of its checks."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._step = 0
        self.held: int = 0
        self.failed: list[str] = []

    def heading(self, title: str) -> None:
        """Begin the next step."""
        self._step += 1
        rule = Rule(Text.assemble((f"{self._step}  ", "cyan"), (title, "bold")), align="left", style="dim")
        self.console.print("", rule, "")

    def say(self, *parts: str | tuple[str, str], after: bool = False) -> None:
        """Print a paragraph; a part may come with a style, and an empty line may follow."""
        self.show(Text.assemble(*parts), after=after)

    def show(self, renderable: RenderableType, *, by: int = 2, after: bool = False) -> None:
        """Print anything, indented."""
        indented(self.console, renderable, by=by)
        if after:
            self.console.print()

    def code(self, source: str, *, after: bool = False) -> None:
        """Print Python source code."""
        # The terminal's own sixteen colours, which were chosen for its background.
        syntax = Syntax("", "python", theme="ansi_dark", background_color="default")
        highlighted = syntax.highlight(source)
        highlighted.rstrip()
        # On a narrow terminal a long line goes on below; by itself it would be cut off.
        highlighted.no_wrap, highlighted.overflow = False, "fold"
        self.show(highlighted, by=4, after=after)

    def evaluate(self, source: str, names: dict[str, Any]) -> Any:
        """Evaluate an expression, and print it with its value as Python's prompt does."""
        value = eval(source, {}, names)  # noqa: S307 - the demo's own expressions, none of them from outside
        self.code(f">>> {source}")
        self.show(Text(repr(value), "dim"), by=4)
        return value

    def check(self, ok: bool, claim: str) -> None:
        """Print a claim and whether it holds."""
        if ok:
            self.held += 1
        else:
            self.failed.append(claim)
        sign = mark(self.console, ok=ok)
        lead = len(sign.plain) + 1
        for number, line in enumerate(Text(claim).wrap(self.console, self.console.width - 2 - lead)):
            line.rstrip()
            self.show(Text.assemble(*((sign, " ") if number == 0 else (" " * lead,)), line))

    def waiting(self, description: str) -> AbstractContextManager[Any]:
        """Show that something is being done, on a terminal."""
        if not self.console.is_interactive:
            return nullcontext()
        return self.console.status(f"{description} ...", spinner_style="cyan")
