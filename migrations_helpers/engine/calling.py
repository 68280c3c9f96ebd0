"""Functions of the caller's that may take an argument, or none."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable


_Result = TypeVar("_Result")

_POSITIONAL: Final = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.VAR_POSITIONAL)


def call(function: Callable[..., _Result], argument: Any) -> _Result:
    """Call a function, with the argument if it takes one."""
    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):
        # A function of C that does not tell.
        return function()
    takes_one = any(parameter.kind in _POSITIONAL for parameter in parameters)
    return function(argument) if takes_one else function()
