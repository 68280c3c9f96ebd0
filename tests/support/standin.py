"""A provider of somebody else: found by the metadata of an installed distribution, with faults that a test sets.

It wraps with AES-256-GCM under keys that are made of their names, in versions, so that it can rewrap as well.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from jwt_column import KeyRingError, KeyUnavailableError
from jwt_column.keys.data_key import DataKey

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from jwt_column.providers import AssociatedData, WrappedKey

__all__ = ["Standin", "install", "provider"]


class Standin:
    """The provider, and what a test wants of it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what the last test wanted."""
        #: The calls that it got, with how many keys each.
        self.calls: list[tuple[str, str, int]] = []
        self.failure: Exception | None = None
        #: The KEKs that somebody has destroyed.
        self.destroyed: set[str] = set()
        #: The newest version of every KEK.
        self.version = 1
        #: What a wrapper makes of what it has just wrapped or unwrapped.
        self.after_wrap: Callable[[bytes], bytes] = bytes
        self.after_unwrap: Callable[[list[bytes]], list[bytes]] = list
        self.keys: tuple[bytes, ...] = ()

    def open_source(self, rest: str) -> _Source:
        """Return a ring of :attr:`keys`."""
        return _Source(self, rest)

    def open_wrapper(self, rest: str) -> _Wrapper | _Rewrapper:
        """Return a wrapper; one whose name begins with ``old`` cannot rewrap."""
        return (_Wrapper if rest.startswith("old") else _Rewrapper)(self, rest)

    def note(self, what: str, name: str, count: int) -> None:
        """Remember a call, or fail it."""
        self.calls.append((what, name, count))
        if self.failure is not None:
            raise self.failure


class _Source:
    def __init__(self, standin: Standin, rest: str) -> None:
        self._standin, self.name = standin, f"standin:{rest}"

    def load(self) -> tuple[DataKey, ...]:
        self._standin.note("load", self.name, len(self._standin.keys))
        return tuple(DataKey(key) for key in self._standin.keys)


class _Wrapper:
    def __init__(self, standin: Standin, rest: str) -> None:
        self._standin, self.uri = standin, f"standin:{rest}"

    def wrap(self, key: bytes, associated_data: AssociatedData) -> bytes:
        self._standin.note("wrap", self.uri, 1)
        return self._standin.after_wrap(self._seal(key, associated_data))

    def unwrap(self, wrapped: Sequence[WrappedKey]) -> list[bytes]:
        self._standin.note("unwrap", self.uri, len(wrapped))
        if self.uri in self._standin.destroyed:
            raise KeyUnavailableError(f"{self.uri} was destroyed")
        return self._standin.after_unwrap([self._open(one) for one in wrapped])

    def _seal(self, key: bytes, associated_data: AssociatedData) -> bytes:
        nonce, version = os.urandom(12), self._standin.version
        return bytes([version]) + nonce + self._kek(version).encrypt(nonce, key, associated_data.to_bytes())

    def _open(self, wrapped: WrappedKey) -> bytes:
        data = wrapped.ciphertext
        try:
            return self._kek(data[0]).decrypt(data[1:13], data[13:], wrapped.associated_data.to_bytes())
        except (InvalidTag, ValueError):
            raise KeyRingError(f"{self.uri}: not a key of this KEK") from None

    def _kek(self, version: int) -> AESGCM:
        return AESGCM(hashlib.sha256(f"{self.uri} {version}".encode()).digest())


class _Rewrapper(_Wrapper):
    def rewrap(self, wrapped: Sequence[WrappedKey]) -> list[bytes]:
        self._standin.note("rewrap", self.uri, len(wrapped))
        return [self._standin.after_wrap(self._seal(self._open(one), one.associated_data)) for one in wrapped]


#: What the entry point leads to.
provider: Final = Standin()


def install(
    directory: Path,
    *,
    scheme: str = "standin",
    target: str = "tests.support.standin:provider",
    name: str = "standin",
) -> Path:
    """Write the metadata of an installed distribution that offers a provider, and return the directory."""
    metadata = directory / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[jwt_column.providers]\n{scheme} = {target}\n")
    return directory
