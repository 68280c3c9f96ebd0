"""What is compared, by the names that it has in the tables, and the tokens that it is given."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Text

from jwt_column import EncryptedJWT, KeyRing
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

__all__ = ["BINARY", "TEXT", "WITH_FIELDS", "encrypted_jwt", "make_tokens", "peer_types"]

BINARY: Final = "EncryptedJWT, binary"
TEXT: Final = "EncryptedJWT, text"
WITH_FIELDS: Final = "EncryptedJWT, jti and expiry"

# Of sqlalchemy-utils, those that authenticate: its default engine does not.
_PEER_ENGINES: Final = ("AesGcmEngine", "FernetEngine")


def make_tokens(algorithm: str, length: int, count: int) -> list[str]:
    """Return different tokens, really signed, of about this many characters."""

    def token(number: int, padding: int) -> str:
        return signed_token(
            algorithm,
            iss="https://id.example",
            sub=f"user-{number:06}",
            jti=os.urandom(8).hex(),
            exp=1_790_000_000 + number,
            # Random, because some databases compress what they store.
            nonce=os.urandom(padding).hex()[:padding],
        )

    # Base64url has four characters for three of JSON.
    missing = max(length - len(token(0, 0)), 0) * 3 // 4
    return [token(number, missing) for number in range(count)]


def encrypted_jwt(**options: Any) -> EncryptedJWT:
    """Return the column type with a key ring of its own."""
    return EncryptedJWT(KeyRing.generate(), context="sessions.token", **options)


def peer_types() -> dict[str, TypeEngine[Any]]:
    """Return the column types of sqlalchemy-utils; none where it is not installed."""
    try:
        utils = importlib.import_module("sqlalchemy_utils.types.encrypted.encrypted_type")
    except ImportError:
        return {}
    key = os.urandom(32).hex()
    return {
        f"sqlalchemy-utils {name}": utils.StringEncryptedType(Text, key, getattr(utils, name))
        for name in _PEER_ENGINES
    }
