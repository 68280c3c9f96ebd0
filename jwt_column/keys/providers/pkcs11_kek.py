"""A KEK in an open session of a PKCS#11 token, and the form of a wrapped key.

The first byte of a wrapped key is its form:

======  =======================================================================  ========
``01``  AES-GCM: IV (12 bytes), encrypted data key (32), tag (16)                61 bytes
``02``  AES key wrap (RFC 3394) of data key (32) and SHA-256 of the bound data   73 bytes
======  =======================================================================  ========

The bound data is that first byte and the associated data. For AES-GCM it is the additional authenticated data; AES key
wrap has none, so there its hash is wrapped beside the key and compared afterwards.
"""

from __future__ import annotations

import os
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, Final

from ...errors import ConfigurationError, KeyRingError

if TYPE_CHECKING:
    from ..wrapping import AssociatedData, WrappedKey

IV_LENGTH: Final = 12  # SP 800-38D section 8.2.2: random, 96 bits.

_GCM: Final = b"\x01"
_KEY_WRAP: Final = b"\x02"
_KEY_LENGTH: Final = 32
_TAG_BITS: Final = 128
_METHODS: Final = {_GCM: ("encrypt", "decrypt"), _KEY_WRAP: ("wrap_key", "unwrap_key")}
_LENGTHS: Final = {_GCM: 1 + IV_LENGTH + _KEY_LENGTH + 16, _KEY_WRAP: 1 + 2 * _KEY_LENGTH + 8}


def find(pkcs11: Any, session: Any, label: str | None, key_id: bytes | None, uri: str) -> KEK | None:
    """Return the KEK that a session sees, or None.

    Only private keys count: they are visible after a login only, so creating one takes the PIN.

    Raises:
        ConfigurationError: Several keys have this label and id; labels and ids need not be unique.
    """
    names = pkcs11.Attribute
    template = {
        names.CLASS: pkcs11.ObjectClass.SECRET_KEY,
        names.KEY_TYPE: pkcs11.KeyType.AES,
        names.TOKEN: True,
        names.PRIVATE: True,
    }
    if label is not None:
        template[names.LABEL] = label
    if key_id is not None:
        template[names.ID] = key_id
    keys = list(session.get_objects(template))
    if len(keys) > 1:
        raise ConfigurationError(
            f"{uri}: {len(keys)} keys of the token match; name the KEK by object= and id=, which no other key may share"
        )
    return KEK(pkcs11, session, keys[0], uri) if keys else None


class KEK:
    """An AES-256 key of a token, usable while its session is open.

    Its methods let the token's ``PKCS11Error`` through.
    """

    def __init__(self, pkcs11: Any, session: Any, key: Any, uri: str) -> None:
        self._pkcs11 = pkcs11
        self._session = session
        self._key = key
        self._uri = uri

    def wrap(self, key: bytes, associated_data: AssociatedData, iv: bytes) -> bytes:
        """Return a wrapped data key.

        Args:
            key: The data key, 32 bytes. Secret.
            associated_data: The ring and the key id that it is bound to.
            iv: 12 random bytes for AES-GCM; AES key wrap ignores them.

        Raises:
            ConfigurationError: The KEK cannot wrap, or could be extracted from the token.
        """
        form = self._form()
        bound = form + associated_data.to_bytes()
        if form == _GCM:
            return form + iv + self._encrypt(key, iv, bound)
        return form + self._wrap(key + sha256(bound).digest())

    def unwrap(self, wrapped: WrappedKey) -> bytes:
        """Return the data key of 32 bytes."""
        ciphertext, associated_data = wrapped
        form, rest = ciphertext[:1], ciphertext[1:]
        bound = form + associated_data.to_bytes()
        # The binding gives a key only the methods that its attributes allow.
        if len(ciphertext) == _LENGTHS.get(form) and hasattr(self._key, _METHODS[form][1]):
            try:
                if form == _GCM:
                    return self._decrypt(rest[IV_LENGTH:], rest[:IV_LENGTH], bound)
                unwrapped = self._unwrap(rest)
                if compare_digest(unwrapped[_KEY_LENGTH:], sha256(bound).digest()):
                    return unwrapped[:_KEY_LENGTH]
            except self._pkcs11.PKCS11Error:
                # Tokens report "general error" both for a changed wrapped key and for errors of their own.
                if not self._works(form):
                    raise
        raise KeyRingError(
            f"{self._uri} does not unwrap key {associated_data.key_id}: it was changed, or wrapped by another KEK or "
            "for another key ring or key id",
            key_id=associated_data.key_id,
        )

    def _form(self) -> bytes:
        names = self._pkcs11.Attribute
        key = self._key
        if key[names.VALUE_LEN] != _KEY_LENGTH or key[names.EXTRACTABLE] or not key[names.SENSITIVE]:
            raise ConfigurationError(
                f"{self._uri} cannot be a KEK: it needs 256 bits, CKA_SENSITIVE and not CKA_EXTRACTABLE, so that it "
                "cannot leave the token"
            )
        mechanisms = self._session.token.slot.get_mechanisms()
        known = self._pkcs11.Mechanism
        if known.AES_GCM in mechanisms and key[names.ENCRYPT] and key[names.DECRYPT]:
            return _GCM
        if known.AES_KEY_WRAP in mechanisms and key[names.WRAP] and key[names.UNWRAP]:
            return _KEY_WRAP
        raise ConfigurationError(
            f"{self._uri} cannot wrap: it needs CKA_ENCRYPT and CKA_DECRYPT on a token with AES-GCM, or CKA_WRAP and "
            "CKA_UNWRAP on one with AES key wrap"
        )

    def _works(self, form: bytes) -> bool:
        """Return True if the KEK unwraps a probe, so that a failure was the fault of the wrapped key."""
        probe, iv = os.urandom(2 * _KEY_LENGTH), os.urandom(IV_LENGTH)
        try:
            if not hasattr(self._key, _METHODS[form][0]):
                # A retired KEK may only unwrap, and cannot make a probe. An answer of the token must do.
                return bool(self._key[self._pkcs11.Attribute.VALUE_LEN] == _KEY_LENGTH)
            if form == _GCM:
                return self._decrypt(self._encrypt(probe, iv, b""), iv, b"") == probe
            return self._unwrap(self._wrap(probe)) == probe
        except self._pkcs11.PKCS11Error:
            return False

    def _gcm(self, iv: bytes, bound: bytes) -> dict[str, Any]:
        parameters = self._pkcs11.GCMParams(iv, bound, _TAG_BITS)
        return {"mechanism": self._pkcs11.Mechanism.AES_GCM, "mechanism_param": parameters}

    def _encrypt(self, key: bytes, iv: bytes, bound: bytes) -> bytes:
        return bytes(self._key.encrypt(key, **self._gcm(iv, bound)))

    def _decrypt(self, ciphertext: bytes, iv: bytes, bound: bytes) -> bytes:
        return bytes(self._key.decrypt(ciphertext, **self._gcm(iv, bound)))

    def _wrap(self, secret: bytes) -> bytes:
        """Return a secret under AES key wrap. Tokens wrap objects only, so it becomes one for the call."""
        template = {self._pkcs11.Attribute.VALUE: secret, **self._passing()}
        passing = self._session.create_object(template)
        try:
            return bytes(self._key.wrap_key(passing, mechanism=self._pkcs11.Mechanism.AES_KEY_WRAP))
        finally:
            passing.destroy()

    def _unwrap(self, wrapped: bytes) -> bytes:
        passing = self._key.unwrap_key(
            self._pkcs11.ObjectClass.SECRET_KEY,
            self._pkcs11.KeyType.GENERIC_SECRET,
            wrapped,
            mechanism=self._pkcs11.Mechanism.AES_KEY_WRAP,
            template=self._passing(),
        )
        try:
            return bytes(passing[self._pkcs11.Attribute.VALUE])
        finally:
            passing.destroy()

    def _passing(self) -> dict[Any, Any]:
        """Return the attributes of a session object whose value can be read."""
        names = self._pkcs11.Attribute
        return {
            names.CLASS: self._pkcs11.ObjectClass.SECRET_KEY,
            names.KEY_TYPE: self._pkcs11.KeyType.GENERIC_SECRET,
            names.TOKEN: False,
            names.PRIVATE: True,
            names.EXTRACTABLE: True,
            names.SENSITIVE: False,
        }
