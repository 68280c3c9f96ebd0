"""The printed page of the demo: headings, blocks of text, code and tables, and checks that are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from ..console import indented, make_console, mark

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console, RenderableType


class Page:
    """The output of the demo, and the results of its checks."""

    def __init__(self) -> None:
        self.console: Console = make_console()
        self._ends_with_a_check = False
        self.held: int = 0
        self.failed: int = 0

    def heading(self, number: int, title: str) -> None:
        """Begin a step."""
        text = Text.from_markup(f"[cyan]{number}[/]  [bold]{title}")
        self.console.print("", Rule(text, align="left", style="dim"))

    def show(self, *parts: RenderableType) -> None:
        """Print a block: an empty line, and each part below it; a ``str`` may have Rich's markup."""
        self.console.print()
        for part in parts:
            indented(self.console, Text.from_markup(part) if isinstance(part, str) else part)
        self._ends_with_a_check = False

    def check(self, ok: bool, claim: str) -> None:
        """Print a claim and whether it holds; an empty line comes before the first of several."""
        if not self._ends_with_a_check:
            self.console.print()
        self._ends_with_a_check = True
        self.held, self.failed = self.held + ok, self.failed + (not ok)
        line = Table.grid(padding=(0, 1))
        line.add_row(mark(self.console, ok=ok), Text(claim))
        indented(self.console, line)

    def end(self, keep: Path | None, seconds: float) -> None:
        """Print where the files are, and how many of the checks held."""
        if keep is None:
            self.show("[dim]The files were in a temporary directory; --keep DIRECTORY leaves them.")
        else:
            self.console.print(
                f"\n  The files, the key among them, are in {keep}", style="dim", soft_wrap=True
            )
        held, failed = self.held, self.failed
        verdict = f"{failed} of {held + failed} checks failed" if failed else f"All {held} checks held"
        self.check(not failed, f"{verdict}, in {seconds:.1f} s.")


def code(source: str) -> Padding:
    """Return Python source code with colours."""
    # The terminal's own sixteen colours, which were chosen for its background.
    highlighted = Syntax("", "python", theme="ansi_dark", background_color="default").highlight(source)
    highlighted.rstrip()
    # On a narrow terminal a long line goes on below; by itself it would be cut off.
    highlighted.no_wrap, highlighted.overflow = False, "fold"
    return Padding.indent(highlighted, 2)
