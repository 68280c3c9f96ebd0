"""``StringEncryptedType`` and ``EncryptedType`` of SQLAlchemy-Utils. Nothing of that library is imported."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from jwt_column.column.spec import utf8
from jwt_column.errors import ConfigurationError
from jwt_column.option_values import choice

from ._reader import Reader, ascii_text
from .fernet import fernet_opener

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._reader import Opener


Engine = Literal["AesEngine", "AesGcmEngine", "FernetEngine"]

_ENGINES: Final = get_args(Engine)
_BLOCK: Final = 16
_IV: Final = 12
_TAG: Final = 16


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SQLAlchemyUtilsReader(Reader):
    """Reads the values of ``StringEncryptedType`` and ``EncryptedType`` of SQLAlchemy-Utils, text or bytes of base64.

    The engines and paddings are called as that library calls them, and the defaults are its own. FernetBackend of
    Advanced Alchemy's ``EncryptedString`` writes the format that ``engine="FernetEngine"`` reads.

    .. warning::
        ``AesEngine`` (AES-256-CBC) does not authenticate. A wrong key and a changed value are noticed by the
        result: by the padding, by characters that no token has, and by the shape of a JWT, which the column asks for
        last. A block of 16 random bytes passes for base64url once in 3 * 10**9 times. With ``allow_opaque=True`` the
        shape is no net: a token of up to 15 characters then passes under a wrong key once in 10**8 times. Padding
        ``"naive"`` lost the asterisks at the end of an opaque token when the value was written.

    Args:
        key_from: Where the key is: ``"env:NAME"``, or a function without arguments. Best in a revision.
        key: The key itself, as ``key_from`` gives it: the key of ``StringEncryptedType``, a text or bytes of any
            length, not empty, taken to the letter (a newline at its end too). Secret. A reader that has it cannot be
            pickled, so it does not work in shards.
        engine: ``"AesEngine"``, ``"AesGcmEngine"`` or ``"FernetEngine"``.
        padding: ``"naive"``, ``"pkcs5"``, ``"oneandzeroes"`` or ``"zeroes"``; of ``AesEngine`` alone.
        plaintext: ``"adopt"`` takes rows that hold a compact JWT in the clear as they are; ``"refuse"`` lists them.

    Raises:
        ConfigurationError: Neither or both of ``key_from`` and ``key``, a key that is neither text nor bytes, or an
            engine or padding that there is not.
    """

    key: str | bytes | None = None
    key_from: str | Callable[[], str | bytes] | None = None
    engine: Engine = "AesEngine"
    padding: Literal["naive", "pkcs5", "oneandzeroes", "zeroes"] = "naive"

    def __post_init__(self) -> None:
        choice(*_ENGINES).check(engine=self.engine)
        choice(*_UNPAD).check(padding=self.padding)
        super().__post_init__()

    def _opener(self, key: Any) -> Opener:
        material = utf8(key) if isinstance(key, str) else key
        if not isinstance(material, bytes) or not material:
            raise ConfigurationError("the key is a text or bytes, not empty")
        digest = hashlib.sha256(material).digest()
        if self.engine == "AesEngine":
            return _aes_opener(digest, _UNPAD[self.padding])
        if self.engine == "AesGcmEngine":
            return _aes_gcm_opener(digest)
        return fernet_opener([base64.urlsafe_b64encode(digest)])


def _aes_opener(key: bytes, unpad: Callable[[bytes], int]) -> Opener:
    """AES-256-CBC, whose IV is the first half of its key, base64."""
    cipher = Cipher(AES(key), CBC(key[:_BLOCK]))

    def open_value(text: str) -> str | None:
        data = _from_base64(text)
        if not data or len(data) % _BLOCK:
            return None
        decryptor = cipher.decryptor()
        padded = decryptor.update(data) + decryptor.finalize()
        length = unpad(padded)
        # No longer than a block, because that is how all four pad: a value that was cut after a block has no padding.
        if not 1 <= length <= _BLOCK:
            return None
        token = ascii_text(padded[:-length])
        # A token is made of visible characters (RFC 6749, appendix A.12), which is all that tells it from noise.
        return token if token and token.isprintable() else None

    return open_value


def _aes_gcm_opener(key: bytes) -> Opener:
    """AES-256-GCM: 12 bytes of nonce, 16 of tag, then the ciphertext, base64."""
    cipher = AESGCM(key)

    def open_value(text: str) -> str | None:
        data = _from_base64(text)
        if data is None or len(data) < _IV + _TAG:
            return None
        iv, tag, ciphertext = data[:_IV], data[_IV : _IV + _TAG], data[_IV + _TAG :]
        try:
            token = cipher.decrypt(iv, ciphertext + tag, None)
        except InvalidTag:
            return None
        return ascii_text(token)

    return open_value


# Each returns the length of the padding at the end of the blocks, 0 where there is none.


def _naive(padded: bytes) -> int:
    """Asterisks."""
    return len(padded) - len(padded.rstrip(b"*"))


def _pkcs5(padded: bytes) -> int:
    """N bytes with the value N."""
    length = padded[-1]
    return length if padded.endswith(bytes([length]) * length) else 0


def _one_and_zeroes(padded: bytes) -> int:
    """0x80, then zeros."""
    start = padded.rstrip(b"\x00")
    return len(padded) - len(start) + 1 if start.endswith(b"\x80") else 0


def _zeroes(padded: bytes) -> int:
    """Zeros, then the length of all."""
    length = padded[-1]
    return length if length and padded.endswith(bytes(length - 1) + bytes([length])) else 0


_UNPAD: Final[Mapping[str, Callable[[bytes], int]]] = {
    "naive": _naive,
    "pkcs5": _pkcs5,
    "oneandzeroes": _one_and_zeroes,
    "zeroes": _zeroes,
}


def _from_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
