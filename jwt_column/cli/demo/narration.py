"""How the demo speaks: headings, words, code, and checks that are counted."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.rule import Rule
from rich.syntax import Syntax
from rich.text import Text

from ..console import indented, mark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console, RenderableType

__all__ = ["Narration"]


class Narration:
    """What the demo says, and what it found to be true or not."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._step = 0
        self.held = 0
        self.failed: list[str] = []

    def heading(self, title: str) -> None:
        """Begin the next step."""
        self._step += 1
        self.console.print()
        self.console.print(
            Rule(Text.assemble((f"{self._step}  ", "cyan"), (title, "bold")), align="left", style="dim")
        )
        self.console.print()

    def say(self, *parts: str | tuple[str, str]) -> None:
        """Print a paragraph; a part may come with a style."""
        self.show(Text.assemble(*parts))

    def show(self, renderable: RenderableType, *, by: int = 2) -> None:
        """Print anything, indented."""
        indented(self.console, renderable, by=by)

    def blank(self) -> None:
        """Print an empty line."""
        self.console.print()

    def code(self, source: str) -> None:
        """Print Python source code."""
        # The terminal's own sixteen colours, which were chosen for its background.
        syntax = Syntax("", "python", theme="ansi_dark", background_color="default")
        highlighted = syntax.highlight(source)
        highlighted.rstrip()
        # On a narrow terminal a long line goes on below; by itself it would be cut off.
        highlighted.no_wrap, highlighted.overflow = False, "fold"
        self.show(highlighted, by=4)

    def evaluate(self, source: str, names: dict[str, Any]) -> Any:
        """Print an expression and what it gives, as Python's prompt does: what is shown is what was run."""
        value = eval(source, {}, names)  # noqa: S307 - the demo's own expressions, none of them from outside
        self.code(f">>> {source}")
        self.show(Text(repr(value), "dim"), by=4)
        return value

    def check(self, ok: bool, *parts: str | tuple[str, str]) -> None:
        """Print what was checked and whether it holds."""
        claim = Text.assemble(*parts)
        if ok:
            self.held += 1
        else:
            self.failed.append(claim.plain)
        sign = mark(self.console, ok=ok)
        width = self.console.width - 2 - len(sign.plain) - 1
        lines = claim.wrap(self.console, width)
        for number, line in enumerate(lines):
            line.rstrip()
            lead = sign if number == 0 else Text(" " * len(sign.plain))
            self.show(Text.assemble(lead, " ", line))

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[], None]]:
        """Show a bar while something is done; each call of what is yielded counts one. Only on a terminal."""
        bar = Progress(
            TextColumn(f"  {description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_interactive,
        )
        with bar:
            task = bar.add_task(description, total=total)
            yield lambda: bar.advance(task)

    @contextmanager
    def waiting(self, description: str) -> Iterator[None]:
        """Show that something is being done. Only on a terminal."""
        if self.console.is_interactive:
            with self.console.status(f"{description} ...", spinner_style="cyan"):
                yield
        else:
            yield
