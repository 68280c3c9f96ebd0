"""Tokens to test with: really signed ones, those of the RFCs, a strategy; and what errors show of them.

The keys are made once in each process, and no test may depend on what they are.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import hypothesis.strategies as st
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from jwt_column.format import base64url

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "ALGORITHMS",
    "chain_of",
    "compact",
    "locals_shown_by",
    "revealed_by",
    "rfc_token",
    "signed_token",
    "signing_key",
    "tokens",
    "verification_key",
]

ALGORITHMS: Final = ("HS256", "RS256", "ES256", "EdDSA")

_RFC_FILE: Final = Path(__file__).parent.parent / "vectors" / "rfc_tokens.json"
_RFC_TOKENS: Final[dict[str, str]] = {
    row["name"]: row["token"] for row in json.loads(_RFC_FILE.read_text(encoding="utf-8"))["tokens"]
}


@functools.cache
def signing_key(algorithm: str) -> Any:
    """Return the key of this process that signs with an algorithm."""
    match algorithm:
        case "RS256":
            return rsa.generate_private_key(public_exponent=65_537, key_size=2048)
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        case "EdDSA":
            return ed25519.Ed25519PrivateKey.generate()
    return "a secret of the tests that is long enough for HS256"


def verification_key(algorithm: str) -> Any:
    """Return the key that verifies what :func:`signing_key` signs."""
    key = signing_key(algorithm)
    return key if isinstance(key, str) else key.public_key()


def signed_token(algorithm: str = "HS256", **claims: Any) -> str:
    """Return a token with these claims and no others, really signed."""
    return jwt.encode(claims, signing_key(algorithm), algorithm)


def rfc_token(name: str) -> str:
    """Return the token of an RFC by its name in ``vectors/rfc_tokens.json``, for example ``"A.1 HS256"``."""
    return _RFC_TOKENS[name]


def compact(header: Any, payload: Any, *others: bytes) -> str:
    """Join segments to a token: bytes as they are, anything else as JSON; nothing is signed or checked."""
    parts = (part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload))
    return ".".join(base64url.encode(part) for part in (*parts, *others))


def tokens() -> st.SearchStrategy[str]:
    """Return a strategy of signed tokens with claims of every JSON type, in every algorithm."""
    claims = st.fixed_dictionaries(
        {},
        optional={
            "jti": st.text(max_size=40) | st.integers(),
            "sub": st.text(max_size=40),
            "exp": st.integers(0, 2**48 - 2),
            "scope": st.lists(st.text(max_size=10), max_size=3) | st.none() | st.booleans() | st.floats(0, 1),
        },
    )
    return st.builds(
        lambda algorithm, content: signed_token(algorithm, **content), st.sampled_from(ALGORITHMS), claims
    )


def chain_of(error: BaseException | None) -> list[BaseException]:
    """Return an error and everything that it was raised from or during, suppressed or not."""
    chain: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in chain:
            chain.append(one)
            waiting += [one.__cause__, one.__context__]
    return chain


def revealed_by(error: BaseException, *secrets: str | bytes, window: int = 8) -> set[str]:
    """Return every piece of *window* characters of a secret that an error or one of its causes shows.

    What counts is the text, the arguments and the attributes; bytes are looked for as they are, as hex and as
    base64url.
    """
    shown = ""
    for one in chain_of(error):
        for part in (str(one), *one.args, *vars(one).values()):
            shown += part.decode("latin-1") if isinstance(part, bytes) else str(part)
            shown += "\n"
    forms: list[str] = []
    for secret in secrets:
        if isinstance(secret, str):
            forms.append(secret)
        else:
            forms += [secret.decode("latin-1"), secret.hex(), base64url.encode(secret)]
    pieces = {form[at : at + window] for form in forms for at in range(len(form) - window + 1)}
    return {piece for piece in pieces if piece in shown}


def locals_shown_by(error: BaseException) -> str:
    """Return the local variables of every frame below the caller, as error reporters show them.

    The frames of everything that the error was raised from or during count, to the first.
    """
    shown = ""
    for one in chain_of(error):
        traceback: TracebackType | None = one.__traceback__
        if one is error:
            assert traceback is not None
            traceback = traceback.tb_next
        while traceback is not None:
            shown += repr(traceback.tb_frame.f_locals)
            traceback = traceback.tb_next
    return shown
