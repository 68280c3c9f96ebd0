"""Who wraps data keys: what a key-encryption key (KEK) can do, whichever system holds it.

A wrapped key is bound to its ring and to its key id by associated data, so that a wrapped key that was moved to
another place of the key-ring file, or into the file of another ring, does not unwrap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AssociatedData", "KeyWrapper", "Rewrapper", "WrappedKey"]


class AssociatedData(NamedTuple):
    """What a wrapped key is bound to. Not secret; providers may log it.

    Attributes:
        ring: Name of the key ring: 1 to 64 of the characters ``A-Z a-z 0-9 . _ -``.
        key_id: Key id of the data key, 8 lower-case hex digits.
    """

    ring: str
    key_id: str

    def to_bytes(self) -> bytes:
        """Return it for a provider that authenticates bytes. Neither part can hold a zero byte."""
        return b"\x00".join((b"jwt-column/key-ring/v1", self.ring.encode(), self.key_id.encode()))

    def to_mapping(self) -> dict[str, str]:
        """Return it for a provider that authenticates names and values."""
        return {"jwt-column:ring": self.ring, "jwt-column:key-id": self.key_id}


class WrappedKey(NamedTuple):
    """A data key under a KEK.

    Attributes:
        ciphertext: What :meth:`KeyWrapper.wrap` returned. Opaque, at most 4,096 bytes.
        associated_data: What it was wrapped with.
    """

    ciphertext: bytes
    associated_data: AssociatedData


class KeyWrapper(Protocol):
    """One KEK, named by a URI. Making one reaches nothing yet; threads may share it.

    Every call ends within the wrapper's time-out, retries included. Errors of both calls:

    Raises:
        KeyUnavailableError: The system was not reached, is sealed, refuses this caller, or has disabled the
            KEK. ``retryable`` says whether the same call may work later without anyone's doing.
        KeyRingError: It was reached, and this is not a key that the KEK wrapped with this associated data.
        ConfigurationError: The URI, or what it refers to (a PIN file, a variable), is wrong.
    """

    @property
    def uri(self) -> str:
        """The URI of the KEK as a key-ring file keeps it. Holds no secret."""

    def wrap(self, key: bytes, associated_data: AssociatedData) -> bytes:
        """Return the data key of 32 bytes under the KEK."""

    def unwrap(self, wrapped: Sequence[WrappedKey]) -> list[bytes]:
        """Return the data keys of 32 bytes each, in order, by one login and as few calls as there can be."""


@runtime_checkable
class Rewrapper(Protocol):
    """A wrapper whose system can put a wrapped key under the newest version of its KEK by itself."""

    def rewrap(self, wrapped: Sequence[WrappedKey]) -> list[bytes]:
        """Return the keys wrapped anew, in order; no data key leaves the system. Errors as of ``unwrap``."""
