"""XAES-256-GCM, and the only place that sees a nonce.

C2SP XAES-256-GCM (https://c2sp.org/XAES-256-GCM): a NIST SP 800-108r1 KDF in counter mode with CMAC turns the
256-bit key and the first 12 bytes of a 24-byte nonce into an AES-256-GCM key (NIST SP 800-38D), which then takes
the other 12 bytes as its nonce. Random 192-bit nonces take away the 2**32 messages per key of random AES-GCM
nonces (SP 800-38D section 8.3).

The second half of a nonce is hedged (envelope-v1, "Frame"): a MAC of fresh randomness and of the message. Copies of a
process that share their memory, as after a fork, and a random source that repeats itself thus repeat a nonce only for
an identical message.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakSet

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY_LENGTH: Final = 32
NONCE_LENGTH: Final = 24
TAG_LENGTH: Final = 16

#: Bytes of their nonces that the messages of one writer share and begin with.
PREFIX_LENGTH: Final = 12

_HALF: Final = NONCE_LENGTH - PREFIX_LENGTH
_SHORTEST: Final = NONCE_LENGTH + TAG_LENGTH

# Messages that may share the first half of their nonce, and with it one derived key (envelope-v1, "Frame").
_MESSAGES_PER_PREFIX: Final = 2**16

# Derived keys kept per key for reading; each writing process adds one prefix per 2**16 rows.
_CACHED_SUBKEYS: Final = 512

# The random input of a hedged nonce half. One system call draws many: os.urandom costs half as much as encrypting.
_RANDOM_LENGTH: Final = 16
_RANDOMS_PER_DRAW: Final = 256
_pack_length: Final = struct.Struct(">I").pack
_split_draw: Final = struct.Struct(f"{_RANDOM_LENGTH}s" * _RANDOMS_PER_DRAW).unpack


class _Writer(NamedTuple):
    """The state that new messages share.

    Attributes:
        prefix: The first half of their nonces.
        encrypt: AES-256-GCM under the key derived for it.
        randoms: Random inputs of second halves, drawn ahead; each serves one message.
        draws: One element for every draw that the prefix may still have.
    """

    prefix: bytes
    encrypt: Callable[[bytes, bytes, bytes], bytes]
    randoms: list[bytes]
    draws: Iterator[int]


class XAES256GCM:
    """XAES-256-GCM under one key. Safe to share between threads, and after ``fork``.

    Args:
        key: 32 uniformly random bytes, secret.
        nonce_key: 32 bytes, secret, independent of *key*: the MAC key of hedged nonces.
        random: The random source, for tests.

    Raises:
        ValueError: A key has another length.
    """

    __slots__ = ("__weakref__", "_ecb", "_mask", "_new_mac", "_random", "_subkeys", "_writer")

    def __init__(self, key: bytes, nonce_key: bytes, *, random: Callable[[int], bytes] = os.urandom) -> None:
        for one in (key, nonce_key):
            if len(one) != KEY_LENGTH:
                raise ValueError(f"an XAES-256-GCM key has {KEY_LENGTH} bytes, not {len(one)}")
        self._random = random
        # A copy of the keyed state for each message: that costs half of a new HMAC.
        self._new_mac = HMAC(nonce_key, SHA256()).copy
        # Single blocks only, as CMAC is made of: no message is ever encrypted in this mode. An encryptor for each use:
        # before cryptography 50, one that two threads share raises in the second of them.
        self._ecb = Cipher(AES(key), ECB())  # noqa: S305
        # NIST SP 800-38B section 6.1: the CMAC subkey K1 is the encrypted zero block, doubled in GF(2**128).
        doubled = int.from_bytes(self._encrypt_blocks(bytes(16)), "big") << 1
        k1 = (doubled ^ (0x87 if doubled >> 128 else 0)) & (2**128 - 1)
        # Both CMAC inputs are one whole block, so the KDF is two block encryptions. The constants in them,
        # counter || "X" || 0x00 and K1, are folded into one number, to be xored with the nonce half twice over.
        m1 = int.from_bytes(b"\x00\x01X\x00" + bytes(12), "big") ^ k1
        m2 = int.from_bytes(b"\x00\x02X\x00" + bytes(12), "big") ^ k1
        self._mask = m1 << 128 | m2
        self._subkeys: dict[bytes, AESGCM] = {}
        self._writer: _Writer | None = None
        _instances.add(self)

    def seal(self, data: bytes, aad: bytes, before: bytes = b"") -> bytes:
        """Return nonce, ciphertext and tag: ``24 + len(data) + 16`` bytes, under a fresh hedged nonce.

        Args:
            data: The plaintext, secret. May be empty.
            aad: Associated data: authenticated, not encrypted, not stored. May be empty.
            before: The beginning of the returned bytes, neither authenticated nor encrypted.
        """
        prefix, encrypt, randoms, _ = writer = self._writer or self._renew_writer()
        try:
            random = randoms.pop()
        except IndexError:
            (prefix, encrypt, _, _), random = self._draw(writer)
        mac = self._new_mac()
        mac.update(b"".join((random, _pack_length(len(data)), data, aad)))
        half = mac.finalize()[:_HALF]
        return b"".join((before, prefix, half, encrypt(half, data, aad)))

    def open(self, sealed: bytes, aad: bytes, start: int = 0) -> bytes:
        """Return the plaintext of a message of :meth:`seal`.

        Args:
            sealed: Nonce, ciphertext and tag.
            aad: The associated data of :meth:`seal`.
            start: Where the nonce begins in *sealed*; what lies before is not read.

        Raises:
            cryptography.exceptions.InvalidTag: Key, bytes or associated data are not those of :meth:`seal`, or
                there are fewer than 40 bytes.
        """
        if len(sealed) - start < _SHORTEST:
            raise InvalidTag
        prefix = sealed[start : start + 12]
        gcm = self._subkeys.get(prefix) or self._subkey(prefix)
        return gcm.decrypt(sealed[start + 12 : start + 24], sealed[start + 24 :], aad)

    def opener(self, prefix: bytes) -> Callable[[bytes, int, bytes], bytes]:
        """Return :meth:`open` for messages whose nonces begin alike, without a look for their key.

        Args:
            prefix: The first 12 bytes of a message of :meth:`seal`.

        Returns:
            A function of the message, of the place in it that follows the prefix, and of the associated data. It
            raises InvalidTag, as :meth:`open` does, and ValueError for a nonce that ends early.
        """
        decrypt = self._subkey(prefix).decrypt

        def open_next(sealed: bytes, at: int, aad: bytes) -> bytes:
            return decrypt(sealed[at : at + _HALF], sealed[at + _HALF :], aad)

        return open_next

    def _subkey(self, prefix: bytes) -> AESGCM:
        """Return AES-256-GCM under the key derived for this nonce half."""
        gcm = self._subkeys.get(prefix)
        if gcm is None:
            gcm = AESGCM(self._derive(prefix))
            if len(self._subkeys) >= _CACHED_SUBKEYS:
                # Replaced, not emptied: another thread may be reading the old one.
                self._subkeys = {}
            self._subkeys[prefix] = gcm
        return gcm

    def _derive(self, prefix: bytes) -> bytes:
        """Return the 32-byte AES-GCM key of a nonce half (C2SP XAES-256-GCM, steps 1 to 6)."""
        blocks = int.from_bytes(prefix, "big") * (2**128 + 1) ^ self._mask
        return self._encrypt_blocks(blocks.to_bytes(32, "big"))

    def _encrypt_blocks(self, blocks: bytes) -> bytes:
        return self._ecb.encryptor().update(blocks)

    def _renew_writer(self) -> _Writer:
        """Start a new random prefix. Two threads may do so at once; both prefixes are then good."""
        prefix = self._random(PREFIX_LENGTH)
        draws = iter(range(_MESSAGES_PER_PREFIX // _RANDOMS_PER_DRAW))
        self._writer = writer = _Writer(prefix, self._subkey(prefix).encrypt, [], draws)
        return writer

    def _draw(self, writer: _Writer) -> tuple[_Writer, bytes]:
        """Return a random input and the writer to use it with; keep others for later."""
        if next(writer.draws, None) is None:
            writer = self._renew_writer()
            next(writer.draws)
        random, *others = _split_draw(self._random(_RANDOM_LENGTH * _RANDOMS_PER_DRAW))
        writer.randoms.extend(others)
        return writer, random


_instances: WeakSet[XAES256GCM] = WeakSet()


def _forget_randoms_after_fork() -> None:
    """Drop the random inputs that a forked child inherits, so that an identical message has another nonce, too.

    Nonces are safe without it: servers that fork without Python's hooks never call it.
    """
    for instance in _instances:
        instance._writer = None  # noqa: SLF001


if hasattr(os, "register_at_fork"):  # pragma: no branch - absent on Windows only, where nothing forks
    os.register_at_fork(after_in_child=_forget_randoms_after_fork)
