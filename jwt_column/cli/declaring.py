"""Declarations of options: each is one statement, as a field of a group or as a parameter of a command."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, dataclass_transform, get_type_hints

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_Group = TypeVar("_Group", bound=type)

#: The default of an option that must be given.
REQUIRED: Final[Any] = inspect.Parameter.empty


@dataclass(frozen=True)
class Option:
    """An option, before the command that takes it is built.

    Attributes:
        label: Its name, and behind a space the word that stands for its value in the help text.
        panel: The heading that it stands under; None for that of its group.
        settings: Further arguments of ``typer.Option``.
    """

    label: str
    text: str
    default: Any
    panel: str | None
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name with its dashes."""
        return self.label.partition(" ")[0]

    def field(self, panel: str | None) -> Any:
        """Return the field of a group with this heading."""
        metadata = {"option": replace(self, panel=self.panel or panel)}
        if isinstance(self.default, list):
            return field(default_factory=self.default.copy, metadata=metadata)
        return field(default=self.default, metadata=metadata)

    def parameter(self, name: str, type_: Any) -> inspect.Parameter:
        """Return the parameter of a command as Typer reads it."""
        information: Any = typer.Option(
            self.name,
            metavar=self.label.partition(" ")[2] or None,
            help=self.text,
            # The help text says what an empty default, or that of a list, means.
            show_default=isinstance(self.default, str | int | float) and bool(self.default),
            rich_help_panel=self.panel,
            **self.settings,
        )
        keyword = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(
            name, keyword, default=self.default, annotation=Annotated[type_, information]
        )


def flag(name: str, text: str, *, panel: str | None = None) -> Any:
    """Declare an option without a value: ``flag("--dry-run", "Write nothing.")``."""
    return Option(name, text, False, panel, {})


def value(
    label: str,
    text: str,
    *,
    default: Any = None,
    panel: str | None = None,
    **settings: Any,
) -> Any:
    """Declare an option with a value: ``value("--wait SECONDS", "Wait so long.", default=10, min=0)``."""
    return Option(label, text, default, panel, settings)


def values(label: str, text: str, *, default: list[str] | None = None, panel: str | None = None) -> Any:
    """Declare an option that is given once for each value, which makes a list."""
    return Option(label, text, default or [], panel, {})


@dataclass_transform(frozen_default=True)
def option_group(panel: str | None = None) -> Callable[[_Group], _Group]:
    """Make a class a frozen dataclass of options, under one heading of the help text.

    So a group of options that several commands take is written once, and a command receives it as one value.
    """

    def decorate(group: Any) -> Any:
        for name, option in list(vars(group).items()):
            if isinstance(option, Option):
                setattr(group, name, option.field(panel))
        return dataclass(frozen=True)(group)

    return decorate


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose parameters are those of a function, with each group among them as one option a field."""
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        kind, option = parameter.annotation, parameter.default
        if is_dataclass(kind):
            groups[parameter.name] = kind
            hints = get_type_hints(kind)
            parameters += [
                one.metadata["option"].parameter(one.name, hints[one.name]) for one in fields(kind)
            ]
        elif isinstance(option, Option):
            parameters.append(option.parameter(parameter.name, kind))
        else:
            parameters.append(parameter)

    def command(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{one.name: given.pop(one.name) for one in fields(kind)})
        function(**given)

    command.__name__ = function.__name__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command
