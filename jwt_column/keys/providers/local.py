"""A KEK in this process: the first key that a file, a variable or the operating system's key store holds.

For development, and for tests without an HSM: a reader of the KEK and of the key-ring file has the data keys.
A wrapped key is one byte ``01``, the KEK's key id (4 bytes), and the data key sealed with XAES-256-GCM under a key
derived from the KEK: 77 bytes. The id tells several KEKs apart, so that a KEK can be replaced: put the new one first,
rewrap, and remove the old one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ...errors import KeyRingError
from ...format.aead import KEY_LENGTH, XAES256GCM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..data_key import DataKey
    from ..source import KeySource
    from ..wrapping import AssociatedData, WrappedKey

_VERSION: Final = b"\x01"
_INFO: Final = b"jwt-column/key-ring/v1/local-kek"
_HEADER_LENGTH: Final = 5


class LocalWrapper:
    """Wraps under the first key of a source, and unwraps under any. Each call loads it, so no KEK stays in memory."""

    def __init__(self, source: KeySource) -> None:
        self._source = source
        self.uri: str = source.name

    def wrap(self, key: bytes, associated_data: AssociatedData) -> bytes:
        """Return the data key under the first KEK."""
        kek = self._source.load()[0]
        header = _VERSION + kek.id_bytes
        return _cipher(kek).seal(key, header + associated_data.to_bytes(), header)

    def unwrap(self, wrapped: Sequence[WrappedKey]) -> list[bytes]:
        """Return the data keys, in order."""
        keks = {_VERSION + kek.id_bytes: kek for kek in self._source.load()}
        return [self._unwrap(one, keks) for one in wrapped]

    def _unwrap(self, wrapped: WrappedKey, keks: dict[bytes, DataKey]) -> bytes:
        key_id = wrapped.associated_data.key_id
        header = wrapped.ciphertext[:_HEADER_LENGTH]
        kek = keks.get(header)
        if kek is None:
            raise KeyRingError(
                f"{self.uri} does not hold the key that wrapped {key_id}; put it back, or rewrap from a version of the "
                "key-ring file whose KEK is available",
                key_id=key_id,
            )
        try:
            return _cipher(kek).open(
                wrapped.ciphertext, header + wrapped.associated_data.to_bytes(), _HEADER_LENGTH
            )
        except InvalidTag:
            raise KeyRingError(
                f"the wrapped key {key_id} does not open under key {kek.id} of {self.uri}: it was changed, or wrapped "
                "for another key ring or key id",
                key_id=key_id,
            ) from None


def _cipher(kek: DataKey) -> XAES256GCM:
    """Return the cipher of a KEK. Its keys are derived, so they differ from those that would encrypt tokens."""
    derived = HKDF(algorithm=SHA256(), length=2 * KEY_LENGTH, salt=None, info=_INFO).derive(
        kek.secret_material()
    )
    return XAES256GCM(derived[:KEY_LENGTH], derived[KEY_LENGTH:])
