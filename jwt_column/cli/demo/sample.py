"""The sample data: a table, its twin without encryption, and real tokens for both.

The demo prints the source of :class:`Session`, so the code that is shown is the code that runs.
"""

# No "from __future__ import annotations": SQLAlchemy reads the annotations of mapped attributes.

import base64
import json
import os
import time
import uuid
from collections.abc import Iterator
from importlib import resources
from itertools import cycle
from typing import Any, ClassVar, Final, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from sqlalchemy import MetaData, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from ... import JWT, EncryptedJWT

AUDIENCE: Final = "https://app.example.com"

#: One token of each algorithm and every example of the RFCs fit into this many rows.
FEWEST_ROWS: Final = 20

# Half of the tokens, those in odd rows, are RS256, which most identity providers sign with.
_MIX: Final = ("RS256", "ES256", "RS256", "EdDSA", "RS256", "HS256", "RS256", "ES256", "RS256", "EdDSA")


class Base(MappedAsDataclass, DeclarativeBase):
    """The registry of the models."""


class Session(Base):
    """One signed-in user."""

    __tablename__ = "sessions"
    id: Mapped[int] = mapped_column(primary_key=True)
    user: Mapped[str]
    token: Mapped[JWT] = mapped_column(EncryptedJWT(allow_unsigned=True))


class PlainSession(Base):
    """The control: the same row with the token readable, in a file of its own."""

    metadata: ClassVar[MetaData] = MetaData()
    __tablename__ = "sessions"
    id: Mapped[int] = mapped_column(primary_key=True)
    user: Mapped[str]
    token: Mapped[str] = mapped_column(Text)


class UserToken(NamedTuple):
    """One row of the demo: a signed token, or an example of an RFC, whose user is its section.

    The key is the one to verify with; some examples have none.
    """

    user: str
    algorithm: str
    token: str
    key: Any

    @property
    def payload(self) -> tuple[bytes, bytes]:
        """The payload as the token spells it, and as the text that it encodes.

        For a JWE both are those of the ciphertext segment: it has no readable payload.
        """
        segments = self.token.split(".")
        segment = segments[1] if len(segments) == 3 else segments[3]
        return segment.encode(), base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def rfc_tokens() -> list[UserToken]:
    """Return the examples in compact serialization of RFC 7515 and RFC 7519."""
    text = resources.files(__package__).joinpath("rfc_tokens.json").read_text(encoding="utf-8")
    tokens = json.loads(text)["tokens"]
    for fields in tokens:
        jwk = fields.pop("jwk")
        fields["key"] = jwt.PyJWK(jwk, fields["algorithm"]).key if jwk else None
    return [UserToken(**fields) for fields in tokens]


def sign(count: int) -> Iterator[UserToken]:
    """Yield this many tokens, each of a user of its own, signed with one fresh key for each algorithm."""
    private: dict[str, Any] = {
        "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }
    secret = {"HS256": os.urandom(32)}
    signing, verifying = private | secret, {name: key.public_key() for name, key in private.items()} | secret
    now = int(time.time())
    common = {"iss": "https://login.example.com/", "aud": AUDIENCE, "iat": now, "exp": now + 3600}
    common["scope"] = "openid profile email offline_access"
    for number, algorithm in zip(range(1, count + 1), cycle(_MIX), strict=False):
        user = f"user{number:06d}"
        claims = common | {"sub": user, "email": f"{user}@example.org", "jti": str(uuid.uuid4())}
        token = jwt.encode(claims, signing[algorithm], algorithm, {"kid": f"{algorithm.lower()}-1"})
        yield UserToken(user, algorithm, token, verifying[algorithm])
