"""The kinds of values that options take. An error names the option, its kind, and what was given instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from numbers import Integral, Real
from typing import Any, Final

from .errors import ConfigurationError


@dataclass(frozen=True)
class Kind:
    """A kind of values, in words behind "is", with a test that takes any object, SQL expressions too.

    ``of_texts`` says that all of them are texts.
    """

    says: str
    has: Callable[[Any], bool]
    of_texts: bool = False

    def check(self, **options: object) -> None:
        """Check the values of options by name.

        Raises:
            ConfigurationError: A value is of another kind. A text is not shown: it may be a secret in a wrong place.
        """
        for name, value in options.items():
            if not self.has(value):
                shown = value if isinstance(value, Real) else type(value).__name__
                but = "" if self.of_texts and isinstance(value, str) else f", not {shown}"
                raise ConfigurationError(f"{name} is {self.says}{but}")

    @property
    def or_none(self) -> Kind:
        """The same kind with None."""
        return Kind(self.says, lambda value: value is None or self.has(value), self.of_texts)


def choice(*values: str) -> Kind:
    """Return the kind of a few texts."""
    *others, last = map(repr, values)
    return Kind(f"{', '.join(others)} or {last}", lambda value: isinstance(value, str) and value in values)


def instance(says: str, *classes: type) -> Kind:
    """Return the kind of instances of these classes."""
    return Kind(says, lambda value: isinstance(value, classes))


def number(
    says: str, *, at_least: float = 0, above: float | None = None, whole: bool = False, endless: bool = False
) -> Kind:
    """Return the kind of numbers from a limit on, or above one. True, False and NaN are none."""
    kind: Any = Integral if whole else Real

    def has(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        is_large = value >= at_least if above is None else value > above
        return is_large and (endless or value < math.inf)

    return Kind(says, has)


#: True or False, and nothing that Python takes for one of them: the text "no" would be True.
FLAG: Final = instance("True or False", bool)

#: A text that is not empty.
TEXT: Final = Kind(
    "a text that is not empty", lambda value: isinstance(value, str) and bool(value), of_texts=True
)

#: A datetime with a zone: another one would be a guess.
AWARE_TIME: Final = Kind(
    "a datetime with a time zone, such as datetime.now(UTC)",
    lambda value: isinstance(value, datetime) and value.utcoffset() is not None,
)

#: Anything that can be called.
FUNCTION: Final = Kind("a function", callable)


def texts_of(option: str, given: object, meaning: str) -> tuple[str, ...]:
    """Return the texts that an option lists.

    Raises:
        ConfigurationError: It is no list of texts that are not empty; *meaning* says in the message what they are.
    """
    if isinstance(given, str):
        raise ConfigurationError(f"{option} is a list of {meaning}; put the one text into brackets")
    listed = tuple(given) if isinstance(given, Iterable) else (given,)
    for one in listed:
        if not isinstance(one, str) or not one:
            raise ConfigurationError(f"{option} is a list of {meaning}, not of {type(one).__name__}")
    return listed
