"""Make one test of many small cases: pytest and its workers spend five milliseconds on each test, whatever it does."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["in_one_test"]


def in_one_test(
    parameter: str, cases: Iterable[Any], *, ids: Callable[[Any], object] = repr
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test's body for each case, as ``parametrize`` does, but as one test, whose failure names all cases.

    It is for cases that take no fixture of their own: what a fixture has set up, all of them share.

    Args:
        parameter: The name of the test's parameter.
        cases: Its values.
        ids: What a case is called in a failure.
    """
    values = list(cases)
    assert values, "a test of no case proves nothing"

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*arguments: Any, **fixtures: Any) -> None:
            failures: list[BaseException] = []
            for value in values:
                try:
                    test(*arguments, **{parameter: value}, **fixtures)
                # Where pytest.raises() waited in vain, it raises what is no Exception.
                except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - it is raised below
                    error.add_note(f"{parameter}: {ids(value)}")
                    failures.append(error)
            if len(failures) == 1:
                raise failures[0]
            if failures:
                raise BaseExceptionGroup(f"{len(failures)} of {len(values)} cases", failures)

        signature = inspect.signature(test)
        others = [one for name, one in signature.parameters.items() if name != parameter]
        run.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
        return run

    return decorate
