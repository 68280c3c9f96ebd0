"""Declarations of commands: their modules are imported when they are named."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from .declaring import with_options

if TYPE_CHECKING:
    from collections.abc import Mapping


class Command(NamedTuple):
    """A command of a group, before its module is imported.

    Attributes:
        function: ``module:function`` below this package, or ``module:app`` for a group of commands.
        help: The help text; its first paragraph stands in the list of commands. A docstring would be lost under
            ``PYTHONOPTIMIZE=2``.
        exit_codes: The text below the help.
    """

    function: str
    help: str
    exit_codes: str | None = None


class _PlainFlags:
    """Options without a value show none in a help text; Typer gives each the type ``<bool>``."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False) and param.metavar is None:
                param.metavar = ""
        return params


class _Command(_PlainFlags, TyperCommand):
    """A command that is loaded."""


def group_of(commands: Mapping[str, Command]) -> type[TyperGroup]:
    """Return the class of a group of these commands, for ``typer.Typer(cls=...)``."""

    class Group(_PlainFlags, TyperGroup):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            for name, command in commands.items():
                self.add_command(Unloaded(name, command))

    return Group


class Unloaded(TyperCommand):
    """The help text of a command; the command itself takes its place when it is invoked or completed."""

    def __init__(self, name: str, command: Command) -> None:
        super().__init__(name, help=command.help)
        self._command = command

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        """Parse the arguments of the command itself."""
        return self.load().make_context(*arguments, **named)

    def load(self) -> Any:
        """Import the command and return it."""
        module, _, name = self._command.function.partition(":")
        found = getattr(import_module(f".{module}", __package__), name)
        if not isinstance(found, typer.Typer):
            app = typer.Typer(add_completion=False)
            declare = app.command(
                self.name, cls=_Command, help=self._command.help, epilog=self._command.exit_codes
            )
            declare(with_options(found))
            found = app
        return typer.main.get_command(found)
