"""What the measured tables hold: some thousand different values, each in many rows, about 900 bytes long."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.fernet import Fernet, MultiFernet

from jwt_column import EncryptedJWT, KeyRing, decrypt_token, encrypt_token
from jwt_column.errors import JWTColumnError
from jwt_column.format import base64url
from tests.benchmarks.subjects import make_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "AES",
    "BACK_VARIABLES",
    "CONTEXT",
    "DISTINCT",
    "ENVELOPES",
    "FERNET",
    "NEW_FERNET",
    "PGP",
    "RING_VARIABLES",
    "Content",
    "back_ring",
    "column_type",
    "count_opened",
    "distinct_tokens",
    "ring",
]

#: Different values; row 1 has the first, row 2 the second, and so on, over and over.
DISTINCT: Final = 2_000
CONTEXT: Final = "sessions.token"

# An envelope has 0.8 bytes for a character of its token.
_CHARACTERS: Final = 1_120
# So many processes of an application have written the rows: each has nonces of its own, and so a derived key.
_WRITERS: Final = 16

_OLD: Final = hashlib.sha256(b"the old key of the benchmarks").digest()
_NEW: Final = hashlib.sha256(b"the new key of the benchmarks").digest()
_OLD_FERNET: Final = Fernet(base64url.encode(_OLD) + "=")

#: :func:`ring`, as processes find it.
RING_VARIABLES: Final = {"JWT_COLUMN_KEYS": f"{base64url.encode(_NEW)},{base64url.encode(_OLD)}"}
#: :func:`back_ring`, likewise.
BACK_VARIABLES: Final = {"JWT_COLUMN_BENCHMARK_BACK": f"{base64url.encode(_OLD)},{base64url.encode(_NEW)}"}
#: The same for Fernet.
NEW_FERNET: Final = MultiFernet([Fernet(base64url.encode(_NEW) + "="), _OLD_FERNET])


def ring() -> KeyRing:
    """Return the ring of whoever re-encrypts: the new key is active, the old one still opens."""
    return KeyRing([_NEW, _OLD])


def back_ring() -> KeyRing:
    """Return the ring of a way back, in which the old key is active."""
    return KeyRing([_OLD, _NEW])


def column_type(keyring: KeyRing | None = None) -> EncryptedJWT:
    """Return the column's type; without a ring it has the one in the environment, :data:`RING_VARIABLES`."""
    return EncryptedJWT(keyring, context=CONTEXT)


@functools.cache
def distinct_tokens() -> list[str]:
    """Return the tokens in the order of the rows that hold them."""
    return make_tokens("RS256", _CHARACTERS, DISTINCT)


def _envelopes() -> list[bytes]:
    """Return the tokens, sealed under the old key."""
    rings = [KeyRing([_OLD]) for _ in range(_WRITERS)]
    sealed = (
        encrypt_token(token, rings[number % _WRITERS], context=CONTEXT)
        for number, token in enumerate(distinct_tokens())
    )
    return [stored for stored in sealed if isinstance(stored, bytes)]


def count_opened(rows: Iterable[tuple[int, bytes]], *, is_back: bool = False) -> tuple[int, int]:
    """Open re-encrypted rows of id and envelope, under the new key alone; on the way back also under the other.

    Returns:
        How many rows there are, and how many of them do not give their token back.
    """
    # A service that goes on writes under the new key.
    new_ring = back_ring() if is_back else KeyRing([_NEW])
    expected = distinct_tokens()
    found = failed = 0
    for number, stored in rows:
        found += 1
        try:
            failed += decrypt_token(stored, new_ring, context=CONTEXT) != expected[(number - 1) % DISTINCT]
        except JWTColumnError:
            failed += 1
    return found, failed


@dataclass(frozen=True)
class Content:
    """What a table holds.

    Attributes:
        values: Makes the different values.
        in_database: An expression of PostgreSQL that turns such a value, ``token``, into what is to be stored.
    """

    values: Callable[[], list[bytes]]
    in_database: str | None = None


def _plain() -> list[bytes]:
    return [token.encode() for token in distinct_tokens()]


ENVELOPES: Final = Content(_envelopes)
FERNET: Final = Content(lambda: [_OLD_FERNET.encrypt(token) for token in _plain()])
PGP: Final = Content(_plain, "pgp_sym_encrypt_bytea(token, 'the old passphrase')")
AES: Final = Content(_plain, "encrypt(token, sha256('the old key'), 'aes')")
