"""The protocol of a key-encryption key (KEK), the same for every system that holds one.

Associated data binds a wrapped key to its ring and to its key id. A wrapped key that was moved to another entry of the
key-ring file, or into the file of another ring, does not unwrap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence


class AssociatedData(NamedTuple):
    """The ring and the key id that a wrapped key is bound to. Not secret; providers may log it.

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
        ciphertext: The result of :meth:`KeyWrapper.wrap`. Opaque, at most 4,096 bytes.
        associated_data: The ring and the key id that it was wrapped with.
    """

    ciphertext: bytes
    associated_data: AssociatedData


class KeyWrapper(Protocol):
    """One KEK, named by a URI. Its constructor does no I/O, and threads may share it.

    Every call ends within the wrapper's time-out, retries included. Errors of both calls:

    Raises:
        KeyUnavailableError: The system was not reached, is sealed, refuses this caller, or has disabled the
            KEK. ``retryable`` is True if the same call may work later without a change.
        KeyRingError: The KEK did not wrap this key with this associated data.
        ConfigurationError: The URI, or a PIN file or variable that it names, is wrong.
    """

    @property
    def uri(self) -> str:
        """The URI of the KEK, as a key-ring file stores it. Holds no secret."""

    def wrap(self, key: bytes, associated_data: AssociatedData) -> bytes:
        """Return the data key of 32 bytes under the KEK."""

    def unwrap(self, wrapped: Sequence[WrappedKey]) -> list[bytes]:
        """Return the data keys of 32 bytes each, in order, with one login and as few calls as possible."""


@runtime_checkable
class Rewrapper(Protocol):
    """A wrapper whose system moves a wrapped key to the newest version of its KEK by itself."""

    def rewrap(self, wrapped: Sequence[WrappedKey]) -> list[bytes]:
        """Return the keys wrapped again, in order; no data key leaves the system. Errors are those of ``unwrap``."""
