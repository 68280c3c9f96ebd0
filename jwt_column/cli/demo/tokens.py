"""Real tokens: signed here by PyJWT with fresh keys, and the examples of RFC 7515 and RFC 7519."""

from __future__ import annotations

import base64
import json
import os
import time
import uuid
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["AUDIENCE", "FEWEST_ROWS", "Issuer", "RFCToken", "SignedToken", "payload_texts", "rfc_tokens"]

#: Out of a hundred signed tokens. RS256 is what most identity providers sign with.
_SHARES: Final = {"RS256": 50, "ES256": 20, "EdDSA": 20, "HS256": 10}

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
    what: str
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
        rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        ec_key = ec.generate_private_key(ec.SECP256R1())
        ed_key = ed25519.Ed25519PrivateKey.generate()
        secret = os.urandom(32)
        self._signing: dict[str, Any] = {
            "RS256": rsa_key,
            "ES256": ec_key,
            "EdDSA": ed_key,
            "HS256": secret,
        }
        #: What verifies: public keys, and for HS256 the shared secret.
        self.verifying: dict[str, Any] = {
            "RS256": rsa_key.public_key(),
            "ES256": ec_key.public_key(),
            "EdDSA": ed_key.public_key(),
            "HS256": secret,
        }
        self._key_ids = {algorithm: f"{algorithm.lower()}-{uuid.uuid4().hex[:8]}" for algorithm in _SHARES}

    def sign(self, count: int) -> Iterator[SignedToken]:
        """Yield this many tokens, each of a user of its own, the algorithms mixed as they are in the wild."""
        now = int(time.time())
        algorithms = _mixed_algorithms()
        for number in range(1, count + 1):
            algorithm = next(algorithms)
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
            headers = {"kid": self._key_ids[algorithm]}
            token = jwt.encode(claims, self._signing[algorithm], algorithm, headers=headers)
            yield SignedToken(user, algorithm, token)


def _mixed_algorithms() -> Iterator[str]:
    """Yield algorithms in their shares, the first few all different, without end."""
    used = dict.fromkeys(_SHARES, 0)
    while True:
        # The one that is furthest behind its share comes next.
        algorithm = min(_SHARES, key=lambda name: (used[name] + 0.5) / _SHARES[name])
        used[algorithm] += 1
        yield algorithm


def payload_texts(token: str) -> tuple[bytes, bytes]:
    """Return a token's payload as the token spells it, and as the text that it encodes.

    For a JWE both are those of the ciphertext segment: there is no readable payload to look for.
    """
    segments = token.split(".")
    segment = segments[1] if len(segments) == 3 else segments[3]
    return segment.encode(), base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
