"""The token of every program, and what of it must not be shown."""

from __future__ import annotations

from typing import Final

import jwt

__all__ = ["OTHER", "TOKEN", "shows"]

_KEY: Final = "a secret of the tests that is long enough for HS256"
TOKEN: Final = jwt.encode({"sub": "alice", "jti": "a-1", "exp": 2_000_000_000}, _KEY, "HS256")
OTHER: Final = jwt.encode({"sub": "bob", "jti": "b-2", "exp": 2_000_000_001}, _KEY, "HS256")


def shows(text: str) -> bool:
    """Return True if a text has a payload or a signature of one of the tokens."""
    return any(part in text for token in (TOKEN, OTHER) for part in token.split(".")[1:])
