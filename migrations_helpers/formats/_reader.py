"""The base of all readers: the source of the key, the treatment of plaintext, pickling."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

from jwt_column.errors import (
    ConfigurationError,
    DecryptionError,
    InvalidTokenError,
    KeyUnavailableError,
    PlaintextFoundError,
)
from jwt_column.format.shape import shape_of
from jwt_column.option_values import choice

if TYPE_CHECKING:
    from collections.abc import Callable

    #: Returns the token of a stored text, or None if it does not open.
    Opener = Callable[[str], str | None]


_ENV: Final = "env:"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Reader(ABC):
    """Reads one format of one other library."""

    key: Any = None
    key_from: str | Callable[[], Any] | None = None
    plaintext: Literal["adopt", "refuse"] = "adopt"

    def __post_init__(self) -> None:
        if (self.key is None) == (self.key_from is None):
            raise ConfigurationError(f"{self._name} takes key_from or key, one of the two")
        if isinstance(self.key_from, str):
            if not self.key_from.startswith(_ENV) or not self._variable.isidentifier():
                raise ConfigurationError(
                    "key_from is 'env:' with the name of an environment variable, as in 'env:OLD_KEY', or a function "
                    "without arguments"
                )
        elif self.key_from is not None and not callable(self.key_from):
            raise ConfigurationError(f"key_from is a text or a function, not {type(self.key_from).__name__}")
        choice("adopt", "refuse").check(plaintext=self.plaintext)
        if self.key is not None:
            # A malformed key is found where it is given, and not at the first row.
            self._open  # noqa: B018

    def __call__(self, stored: object) -> str:
        """Return the token that a stored value holds. It is checked by the column that it is for, not here.

        Raises:
            DecryptionError: The value is not of this format, was changed, or was written under another key.
            PlaintextFoundError: The value is a compact JWT in the clear, and ``plaintext`` is ``"refuse"``.
            KeyUnavailableError: The key could not be had, or is malformed; this is no fault of the row.
        """
        text = _as_text(stored)
        if text is None:
            raise DecryptionError(
                f"{self._name} reads text and bytes of ASCII, not this {type(stored).__name__}"
            )
        if self._is_plaintext(text):
            if self.plaintext == "adopt":
                return text
            raise PlaintextFoundError(
                f"{self._name}: a readable token ({len(text)} characters) where an encrypted one is required; "
                "plaintext='adopt' takes it"
            )
        token = self._open(text)
        if token is None:
            raise DecryptionError(
                f"{self._name}: the value ({len(text)} characters) does not open: it is of another format, was "
                "changed, or was written under another key"
            )
        return token

    @abstractmethod
    def _opener(self, key: Any) -> Opener:
        """Return the function that opens values under a key.

        Raises:
            ConfigurationError: The key is malformed; the message holds nothing of it.
        """

    def _is_plaintext(self, text: str) -> bool:
        """Return True if a stored text is a token in the clear."""
        try:
            shape_of(text)
        except InvalidTokenError:
            return False
        return True

    # -- the key ---------------------------------------------------------------------------------------------

    @cached_property
    def _open(self) -> Opener:
        """The function that opens values; the key is fetched once in each process, when the first row needs it."""
        if self.key_from is None:
            return self._opener(self.key)
        try:
            return self._opener(self._fetch_key())
        except ConfigurationError as error:
            failure = f"{self._name}, {self._shown_source}: {error}"
        # An error of any other class would be taken for a fault of the row.
        raise KeyUnavailableError(failure)

    def _fetch_key(self) -> Any:
        if isinstance(self.key_from, str):
            key = os.environ.get(self._variable)
        else:
            assert self.key_from is not None  # noqa: S101 - one of the two is there
            key, failure = None, ""
            try:
                key = self.key_from()
            except KeyUnavailableError:
                raise
            except Exception as error:  # noqa: BLE001 - its text may hold the key
                failure = type(error).__name__
            if failure:
                raise KeyUnavailableError(f"{self._name}: {self._shown_source} failed ({failure})")
        if not key:
            raise KeyUnavailableError(f"{self._name}: {self._shown_source} is not set or holds no key")
        return key

    @property
    def _variable(self) -> str:
        return str(self.key_from).removeprefix(_ENV)

    # -- showing and travelling ------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _shown_source(self) -> str:
        """The source of the key in words; the repr of a function may hold the arguments that it was bound to."""
        if isinstance(self.key_from, str):
            return f"the environment variable {self._variable}"
        return f"key_from ({getattr(self.key_from, '__qualname__', type(self.key_from).__name__)})"

    def __repr__(self) -> str:
        shown = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if field.name == "key" or (field.name == "key_from" and not isinstance(value, str)):
                shown.append(f"{field.name}=...")
            else:
                shown.append(f"{field.name}={value!r}")
        return f"{self._name}({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        if self.key is not None:
            raise ConfigurationError(
                f"a {self._name} that was given its key cannot be pickled, because the key would travel to another "
                "process or machine; give key_from, and the key there"
            )
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _as_text(stored: object) -> str | None:
    """Return a stored value as ASCII text, which all these formats are, or None."""
    if isinstance(stored, str):
        return stored if stored.isascii() else None
    if isinstance(stored, bytes | bytearray | memoryview):
        return ascii_text(bytes(stored))
    return None


def ascii_text(data: bytes) -> str | None:
    """Return bytes as text, or None; a UnicodeDecodeError would carry them along."""
    return data.decode("ascii") if data.isascii() else None
