"""A data key: 32 secret bytes, its key id, and the keys that are derived from it."""

from __future__ import annotations

import os
from typing import final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import KeyRingError
from ..format import base64url
from ..format.aead import KEY_LENGTH, XAES256GCM
from ..format.envelope import VERSION


def generate_key() -> str:
    """Return a new data key: 32 bytes from the operating system as 43 characters of base64url. Secret."""
    return base64url.encode(os.urandom(KEY_LENGTH))


def decode_key(key: bytes | str) -> bytes:
    """Return the 32 bytes of a key given as bytes or as text.

    Raises:
        KeyRingError: The key is malformed. The message describes the form and shows nothing of the key.
    """
    if isinstance(key, bytes):
        if len(key) != KEY_LENGTH:
            raise KeyRingError(
                f"a data key has {KEY_LENGTH} bytes, not {len(key)}; make one with generate_key()"
            )
        return key
    if not isinstance(key, str):
        raise KeyRingError(f"a data key is bytes or base64url text, not {type(key).__name__}")
    decoded = base64url.decode_canonical(key.removesuffix("="))
    if decoded is None or len(decoded) != KEY_LENGTH:
        raise KeyRingError(
            f"a data key as text is 43 characters of base64url, not these {len(key)}; make one with "
            "generate_key()"
        )
    return decoded


@final
class DataKey:
    """A data key of 32 secret bytes and the keys that envelope-v1 derives from it by HKDF-SHA256 (RFC 5869).

    Attributes:
        id: The key id, 8 lower-case hex digits. Not secret.
        id_bytes: The key id as 4 bytes, as an envelope holds it.
        stamp_prefix: The first 5 bytes of every envelope under this key.
        aead: The cipher under the derived encryption key.
        tenant: The only tenant whose rows it encrypts, or None.
    """

    __slots__ = ("_fingerprint_macs", "_secret", "aead", "id", "id_bytes", "stamp_prefix", "tenant")

    def __init__(self, secret: bytes | str, *, tenant: str | None = None) -> None:
        self._secret = decode_key(secret)
        self.tenant: str | None = tenant
        self.id_bytes: bytes = self._derive(b"jwt-column/v1/key-id", 4)
        self.id: str = self.id_bytes.hex()
        self.stamp_prefix: bytes = VERSION + self.id_bytes
        encryption, nonce = b"jwt-column/v1/encryption", b"jwt-column/v1/nonce"
        self.aead: XAES256GCM = XAES256GCM(
            self._derive(encryption, KEY_LENGTH), self._derive(nonce, KEY_LENGTH)
        )
        self._fingerprint_macs: dict[tuple[str, str], HMAC] = {}

    def __repr__(self) -> str:
        # A traceback also shows a key whose construction failed.
        return f"DataKey({getattr(self, 'id', '')})"

    def __reduce__(self) -> str:
        raise KeyRingError("a data key cannot be pickled; load the key ring from its URI where it is needed")

    def fingerprint_key(self, context: str, name: str) -> bytes:
        """Return the 32-byte key of the fingerprints called *name* in *context*. Secret."""
        info = b"\x00".join((b"jwt-column/v1/fingerprint", context.encode(), name.encode()))
        return self._derive(info, 32)

    def fingerprint_mac(self, context: str, name: str) -> HMAC:
        """Return HMAC-SHA256 under :meth:`fingerprint_key`, to be copied for each message: it is keyed once."""
        mac = self._fingerprint_macs.get((context, name))
        if mac is None:
            mac = self._fingerprint_macs[context, name] = HMAC(self.fingerprint_key(context, name), SHA256())
        return mac

    def integrity_key(self) -> bytes:
        """Return the 32-byte key that authenticates a key-ring file which holds this key. Secret."""
        return self._derive(b"jwt-column/key-ring/v1/integrity", 32)

    def fleet_key(self) -> bytes:
        """Return the 32-byte key that authenticates what a process reports of its ring. Secret."""
        return self._derive(b"jwt-column/fleet/v1/report", 32)

    def secret_material(self) -> bytes:
        """Return the 32 secret bytes, to wrap or store them. Key material leaves the object here only."""
        return self._secret

    def _derive(self, info: bytes, length: int) -> bytes:
        return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(self._secret)
