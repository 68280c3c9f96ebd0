"""Readable JSON Web Tokens anywhere in a text: after ``Bearer``, in JSON, in a connection string, in a log.

The header segment decides: base64url of a JSON object with a text ``alg`` (RFC 7515 section 4.1.1), with two further
segments behind it, or four if it has ``enc``. Random base64url does not decode to that.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from ..errors import InvalidTokenError
from .shape import parse_header

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BEGINNINGS", "has_token", "without_tokens"]

#: Beginnings of the base64url of a JSON object: ``{"``, ``{`` and a space, a line feed, a tab, a carriage return.
BEGINNINGS: Final = ("eyJ", "eyA", "ewo", "ewk", "ew0")

# The longest runs of base64url and dots: one pass over any text.
_SEGMENTS: Final = re.compile(r"[A-Za-z0-9_.-]+")
_BEGINNING: Final = re.compile("|".join(BEGINNINGS))

# A header of 16 KB holds a chain of certificates. Places in one segment where a header may begin: after "token_" or
# "n", the rest of an escaped line feed, and not in the middle of other base64.
_SHORTEST_HEADER: Final = 14  # of {"alg":""}
_LONGEST_HEADER: Final = 16_384
_MOST_BEGINNINGS: Final = 8


def has_token(value: object) -> bool:
    """Return True if a value holds a readable token: text, or bytes of any encoding that contains ASCII."""
    if isinstance(value, bytes | bytearray | memoryview):
        value = bytes(value).decode("latin-1")
    if not isinstance(value, str) or not _BEGINNING.search(value):
        return False
    return any(_is_token(found.split(".")) for found in _SEGMENTS.findall(value))


def _is_token(segments: list[str]) -> bool:
    """Return True if a token begins in one of these segments."""
    return any(
        _begins_token(segments[place][found.start() :], segments[place + 1 : place + 5])
        for place in range(len(segments) - 2)
        for _, found in zip(range(_MOST_BEGINNINGS), _BEGINNING.finditer(segments[place]), strict=False)
    )


def _begins_token(header: str, following: list[str]) -> bool:
    """Return True if a segment is the header of a token that goes on with these segments, at most four."""
    if not _SHORTEST_HEADER <= len(header) <= _LONGEST_HEADER:
        return False
    try:
        fields = parse_header(header)
    except InvalidTokenError:
        return False
    # The payload of a JWS, the ciphertext of a JWE: without it there is nothing to protect.
    return len(following) >= 4 and bool(following[2]) if "enc" in fields else bool(following[0])


def without_tokens(keys: Iterable[Any]) -> tuple[Any, ...] | None:
    """Return a primary key for a report; None if it holds a token."""
    key = tuple(keys)
    return None if any(has_token(value) for value in key) else key
