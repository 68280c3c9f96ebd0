"""``env:NAME``: keys in an environment variable, with commas or white space between them, the first one active.

For development and for platforms that inject secrets this way. Other processes of the same user can read it.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from ...errors import ConfigurationError, KeyUnavailableError
from ..ring_file.plain import key_of, refuse_swallowed_key
from .local import LocalWrapper

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..data_key import DataKey
    from ..wrapping import KeyWrapper


_SEPARATORS: Final = re.compile(r"[,\s]+")


def open_wrapper(rest: str) -> KeyWrapper:
    """Return the wrapper whose KEK is the first key of a variable."""
    return LocalWrapper(EnvironmentSource(rest))


class EnvironmentSource:
    """The keys in one environment variable."""

    def __init__(self, variable: str) -> None:
        if not variable.isidentifier():
            raise ConfigurationError(
                "env: is followed by the name of an environment variable, as in env:JWT_COLUMN_KEYS"
            )
        self._variable = variable
        #: The URI. It holds no secret.
        self.name: str = f"env:{variable}"

    def load(self) -> tuple[DataKey, ...]:
        """Return the keys, the active one first."""
        text = os.environ.get(self._variable, "")
        for number, line in enumerate(map(str.strip, text.splitlines()), 1):
            refuse_swallowed_key(line, f"{self._variable}, line {number}")
        parts = split(text)
        if not parts:
            raise KeyUnavailableError(
                f"the environment variable {self._variable} is not set or holds no key; "
                "'jwt-column keys generate' makes one"
            )
        return keys_of(parts, self._variable)


open_source = EnvironmentSource


def split(text: str) -> list[str]:
    """Split a text at commas and white space. Lines that begin with ``#`` do not count, as in a key file."""
    lines = (line.strip() for line in text.removeprefix("\ufeff").splitlines())
    return [part for line in lines if not line.startswith("#") for part in _SEPARATORS.split(line) if part]


def keys_of(parts: Iterable[str], where: str) -> tuple[DataKey, ...]:
    """Return the keys of these texts."""
    return tuple(key_of(part, f"{where}, key {number}") for number, part in enumerate(parts, 1))
