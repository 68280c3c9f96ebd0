"""Unpadded base64url (RFC 4648 section 5), decoded strictly.

pybase64 because the standard library's decoder costs more than encrypting the token; the strictness is ours.
"""

from __future__ import annotations

from typing import Final

from pybase64 import b64decode, b64encode_as_string

#: The two characters in which this alphabet differs from that of RFC 4648 section 4, as pybase64 takes them.
ALPHABET: Final = b"-_"

# The padding of a text of this length modulo 4; one left-over character decodes to nothing.
_PADDING: Final = ("", "", "==", "=")
#: The same by the last character, where its spare bits are zero as the canonical spelling has them (RFC 4648
#: section 3.5).
CANONICAL_PADDING: Final[tuple[dict[str, str], ...]] = (
    dict.fromkeys("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", ""),
    {},
    dict.fromkeys("AQgw", "=="),
    dict.fromkeys("AEIMQUYcgkosw048", "="),
)


def encode(data: bytes) -> str:
    """Return the canonical text of these bytes."""
    return b64encode_as_string(data, ALPHABET).rstrip("=")


def decode(text: str) -> bytes | None:
    """Return the bytes of a text in the URL-safe alphabet without padding; None for anything else.

    Several texts can stand for the same bytes: see :func:`decode_canonical`.
    """
    spare = len(text) & 3
    # pybase64 takes the standard alphabet beside the URL-safe one, and padding that is already there.
    if spare == 1 or "+" in text or "/" in text or "=" in text:
        return None
    try:
        return b64decode(text + _PADDING[spare], ALPHABET, True)  # validate=True costs a fifth more
    except ValueError:
        return None


def decode_canonical(text: str) -> bytes | None:
    """Return the bytes whose :func:`encode` is this text to the letter; None if there are none."""
    if not text:
        return b""
    if "+" in text or "/" in text or "=" in text:
        return None
    try:
        return b64decode(text + CANONICAL_PADDING[len(text) & 3][text[-1]], ALPHABET, True)
    except (LookupError, ValueError):
        return None
