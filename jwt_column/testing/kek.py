"""A KEK in this process that counts its calls and fails when a test says so.

Its scheme, ``fake-kek:``, exists inside :func:`fake_kek` only. It is no entry point, so that no deployment can name it.
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ..errors import KeyUnavailableError
from ..keys.data_key import DataKey
from ..keys.providers.local import LocalWrapper
from ..keys.schemes import TEMPORARY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..keys.wrapping import AssociatedData, WrappedKey

__all__ = ["FakeKEK", "fake_kek"]

_SCHEME: Final = "fake-kek"


class FakeKEK:
    """The provider of ``fake-kek:``. Every name after the colon is the same KEK.

    Attributes:
        uri: The URI to give to ``jwt-column keys init --wrapped-by`` or to ``rewrap``.
        wrapped: Number of keys that it has wrapped.
        unwrapped: Number of keys that it has unwrapped.
        is_available: Set it to False, and each call raises :class:`~jwt_column.KeyUnavailableError`.
    """

    def __init__(self) -> None:
        self.uri = f"{_SCHEME}:test"
        #: The URI, as a source of keys names itself.
        self.name = self.uri

        self.wrapped: int = 0
        self.unwrapped: int = 0
        self.is_available = True
        self._wrapper = LocalWrapper(self)
        self._kek = DataKey(secrets.token_bytes(32))

    def load(self) -> tuple[DataKey, ...]:
        """Return the KEK, as a source of keys does."""
        return (self._kek,)

    def open_wrapper(self, rest: str) -> FakeKEK:  # noqa: ARG002 - every name is this KEK
        """Return the wrapper for a URI, as a provider does."""
        return self

    def wrap(self, key: bytes, associated_data: AssociatedData) -> bytes:
        """Return the data key, encrypted."""
        self._require()
        self.wrapped += 1
        return self._wrapper.wrap(key, associated_data)

    def unwrap(self, wrapped: Sequence[WrappedKey]) -> list[bytes]:
        """Return the data keys, in order."""
        self._require()
        self.unwrapped += len(wrapped)
        return self._wrapper.unwrap(wrapped)

    def _require(self) -> None:
        if not self.is_available:
            raise KeyUnavailableError(f"{self.uri} is not available, as the test wants it", retryable=True)


@contextmanager
def fake_kek() -> Iterator[FakeKEK]:
    """Register a :class:`FakeKEK` under the scheme ``fake-kek:`` of this process, and remove it on exit."""
    kek = FakeKEK()
    TEMPORARY[_SCHEME] = kek
    try:
        yield kek
    finally:
        TEMPORARY.pop(_SCHEME, None)
