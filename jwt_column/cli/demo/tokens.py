"""Real tokens: signed here by PyJWT with fresh keys, and the examples of RFC 7515 and RFC 7519."""

from __future__ import annotations

import base64
import json
import os
import time
import uuid
from importlib import resources
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["AUDIENCE", "FEWEST_ROWS", "Issuer", "RFCToken", "SignedToken", "payload_texts", "rfc_tokens"]

# Half of the tokens are RS256, which most identity providers sign with.
_MIX: Final = ("RS256", "ES256", "RS256", "EdDSA", "RS256", "HS256", "RS256", "ES256", "RS256", "EdDSA")

AUDIENCE: Final = "https://app.example.com"

#: One of each algorithm and every example of the RFCs fit into this many rows.
FEWEST_ROWS: Final = 20


class SignedToken(NamedTuple):
    """One row of the demo."""

    user: str
    algorithm: str
    token: str


class RFCToken(NamedTuple):
    """An example of an RFC, with the key that the RFC gives for it if PyJWT can use it."""

    section: str
    algorithm: str
    token: str
    jwk: dict[str, Any] | None

    @property
    def has_claims(self) -> bool:
        """Whether it is signed by a key that the RFC gives, and its payload is a JSON object."""
        return self.jwk is not None and payload_texts(self.token)[1].startswith(b"{")

    @property
    def key(self) -> Any:
        """The RFC's own key, by which the example verifies."""
        return jwt.PyJWK(self.jwk or {}, self.algorithm).key


def rfc_tokens() -> list[RFCToken]:
    """Return the examples in compact serialization of RFC 7515 and RFC 7519."""
    text = resources.files(__package__).joinpath("rfc_tokens.json").read_text(encoding="utf-8")
    return [RFCToken(**fields) for fields in json.loads(text)["tokens"]]


class Issuer:
    """An identity provider: one fresh key for each algorithm, and the sessions that it opens."""

    def __init__(self) -> None:
        private: dict[str, Any] = {
            "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        }
        secret = {"HS256": os.urandom(32)}
        self._signing: dict[str, Any] = {**private, **secret}
        #: The keys to verify with: public keys, and for HS256 the shared secret.
        self.verifying: dict[str, Any] = {name: key.public_key() for name, key in private.items()} | secret

    def sign(self, count: int) -> Iterator[SignedToken]:
        """Yield this many tokens, each of a user of its own, the algorithms mixed."""
        now = int(time.time())
        for number, algorithm in zip(range(1, count + 1), cycle(_MIX), strict=False):
            user = f"user{number:06d}"
            claims = {
                "iss": "https://login.example.com/",
                "sub": user,
                "aud": AUDIENCE,
                "email": f"{user}@example.org",
                "scope": "openid profile email offline_access",
                "iat": now,
                "exp": now + 3600,
                "jti": str(uuid.uuid4()),
            }
            headers = {"kid": f"{algorithm.lower()}-1"}
            yield SignedToken(
                user, algorithm, jwt.encode(claims, self._signing[algorithm], algorithm, headers)
            )


def payload_texts(token: str) -> tuple[bytes, bytes]:
    """Return a token's payload as the token spells it, and as the text that it encodes.

    For a JWE both are those of the ciphertext segment: it has no readable payload.
    """
    segments = token.split(".")
    segment = segments[1] if len(segments) == 3 else segments[3]
    return segment.encode(), base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
