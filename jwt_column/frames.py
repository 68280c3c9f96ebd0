"""Errors without the frames below: reporters show local variables, and ours hold tokens and keys."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_R = TypeVar("_R")


def hides_locals(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a public function whose arguments are secret: its errors carry no frame in which they are."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - raised again below
            failure = error
        del args, kwargs
        _drop_frames(failure)
        raise failure

    return call


def _drop_frames(error: BaseException) -> None:
    """Take away the frames of an error, and of those that it was raised from."""
    pending, seen = [error], set()
    while pending:
        one = pending.pop()
        if id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            pending += [other for other in (one.__cause__, one.__context__) if other is not None]
