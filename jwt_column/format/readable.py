"""Readable JSON Web Tokens anywhere in a text: after ``Bearer``, in JSON, in a connection string, in a log.

The header segment decides: base64url of a JSON object with a text ``alg`` (RFC 7515 section 4.1.1), with two further
segments behind it, or four if it has ``enc``. Random base64url does not decode to that. Opaque tokens count if they
have a well-known prefix.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from ..errors import InvalidTokenError
from . import base64url
from .shape import parse_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Beginnings of the base64url of a JSON object: ``{"``, ``{`` and a space, a line feed, a tab, a carriage return.
_BEGINNINGS: Final = ("eyJ", "eyA", "ewo", "ewk", "ew0")
# The same in base64 once more, and the base64 of "Bearer ey" and "bearer ey".
_ENCODED: Final = ("ZXlK", "ZXlB", "ZXdv", "ZXdr", "ZXcw", "QmVhcmVyIGV5", "YmVhcmVyIGV5")
# Tokens of GitHub, Google and Slack.
_OPAQUE: Final = {
    "gho_": r"[0-9A-Za-z]{36}",
    "ghp_": r"[0-9A-Za-z]{36}",
    "ghr_": r"[0-9A-Za-z]{36}",
    "ghs_": r"[0-9A-Za-z]{36}",
    "ghu_": r"[0-9A-Za-z]{36}",
    "github_pat_": r"[0-9A-Za-z_]{36}",
    "ya29.": r"[0-9A-Za-z_-]{20}",
    "1//": r"[0-9A-Za-z_-]{30}",
    **dict.fromkeys(("xoxa-", "xoxb-", "xoxe-", "xoxp-", "xoxr-", "xoxs-"), r"[0-9A-Za-z-]{20}"),
}

#: Every value with a token that :func:`has_token` finds has one of these in it.
MARKS: Final = (*_BEGINNINGS, *_ENCODED, *_OPAQUE)

# The longest runs of base64url, padding and dots: one pass over any text.
_SEGMENTS: Final = re.compile(r"[A-Za-z0-9_.=-]+")
_BEGINNING: Final = re.compile("|".join(_BEGINNINGS))
_ENCODED_TOKEN: Final = re.compile(f"(?:{'|'.join(_ENCODED)})[A-Za-z0-9+/_-]+")
_OPAQUE_TOKEN: Final = re.compile(
    "(?<![0-9A-Za-z/.])(?:" + "|".join(re.escape(prefix) + rest for prefix, rest in _OPAQUE.items()) + ")"
)
# Behind a segment: it goes on in standard base64, as it is or as a URL, JSON or HTML spells it; with a letter or an
# invisible character that was slipped in; or on the next line, where nothing else stands.
_GOES_ON: Final = re.compile(
    r"[+/]|%(?:25)*2[BbFf]|\\/|\\u002[BbFf]|&(?:#(?:43|47|x2[BbFf])|plus|sol);"
    r"|[^\W\x00-\x7F]|[\x00-\x08\x0E-\x1F\x7F\xAD\u200B-\u200F\u2060-\u2064\uFEFF]"
    rf"|(?:\\[rn]|[\r\n])+[ \t]*(?!{'|'.join(_BEGINNINGS)})[A-Za-z0-9_-]+=*[ \t]*(?:[\r\n\"'\\]|$)"
)

# A line break, as it is, escaped in JSON, or "soft" in quoted-printable, and the indentation behind it.
_LINE_BREAK: Final = re.compile(r"=?(?:\\[rn]|[\r\n])+[ \t]*")

# A header of 16 KB holds a chain of certificates. Places in one segment where a header may begin: after "token_" or
# "n", the rest of an escaped line feed, and not in the middle of other base64.
_SHORTEST_HEADER: Final = 14  # of {"alg":""}
_LONGEST_HEADER: Final = 16_384
_MOST_BEGINNINGS: Final = 8


def has_token(value: object) -> bool:
    """Return True if a value holds a readable token: text, or bytes of any encoding that contains ASCII.

    A token may be wrapped over lines, percent-encoded, or in base64 once more, if it or its ``Bearer`` is the start of
    that.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        value = bytes(value).decode("latin-1")
    if not isinstance(value, str):
        return False
    if _has_jwt(value) or _OPAQUE_TOKEN.search(value):
        return True
    plain = _LINE_BREAK.sub("", value)
    if "%" in plain:
        # Once for a URL in a URL.
        plain = unquote(unquote(plain))
    return (plain != value and _has_jwt(plain)) or any(
        _has_jwt(_decoded(found)) for found in _ENCODED_TOKEN.findall(plain)
    )


def _decoded(text: str) -> str:
    """Return the text of a base64 value of either alphabet, without its last group if that is not whole."""
    whole = text[: len(text) & -4].replace("+", "-").replace("/", "_")
    return (base64url.decode(whole) or b"").decode("latin-1")


def inner_token(text: str) -> str | None:
    """Return the JWS or JWE that a text wraps, without the padding of its segments; None if there is none.

    The first header decides. None if its token is not whole in base64url: a part of a token, or one that stands behind
    it, such as the key binding of an SD-JWT, is another token.
    """
    for run in _runs(text):
        for place, header, following, is_encrypted in _headers_in(run.group(), 1):
            count = _segments_after(following, is_encrypted)
            whole = ".".join(run.group().split(".")[: place + 1 + count])
            if not count or _GOES_ON.match(text, run.start() + len(whole)):
                return None
            return ".".join((header, *following[:count]))
    return None


def _has_jwt(text: str) -> bool:
    return any(
        _segments_after(following, is_encrypted)
        for run in _runs(text)
        for _, _, following, is_encrypted in _headers_in(run.group(), 3)
    )


def _runs(text: str) -> Iterator[re.Match[str]]:
    """Return the runs of segments of a text that may hold a header."""
    return _SEGMENTS.finditer(text) if _BEGINNING.search(text) else iter(())


def _headers_in(run: str, least: int) -> Iterator[tuple[int, str, list[str], bool]]:
    """Yield the headers of a run: its place, its segment, the four segments behind it, and whether it is of a JWE.

    Args:
        run: Segments with dots between them. Their padding is left out.
        least: Segments from a header on, itself included, without which it is not looked at.
    """
    segments = [segment.rstrip("=") for segment in run.split(".")]
    for place in range(len(segments) - least + 1):
        beginnings = zip(range(_MOST_BEGINNINGS), _BEGINNING.finditer(segments[place]), strict=False)
        for _, found in beginnings:
            header = segments[place][found.start() :]
            if _SHORTEST_HEADER <= len(header) <= _LONGEST_HEADER:
                try:
                    is_encrypted = "enc" in parse_header(header)
                except InvalidTokenError:
                    continue
                yield place, header, segments[place + 1 : place + 5], is_encrypted


def _segments_after(following: list[str], is_encrypted: bool) -> int:
    """Return the number of segments that a token has behind its header, of at most four; 0 for no token."""
    # The payload of a JWS, the ciphertext of a JWE: without it there is nothing to protect.
    if is_encrypted:
        return 4 if len(following) >= 4 and following[2] else 0
    return 2 if len(following) >= 2 and following[0] else 0


def without_tokens(keys: Iterable[Any]) -> tuple[Any, ...] | None:
    """Return a primary key for a report; None if it holds a token."""
    key = tuple(keys)
    return None if any(has_token(value) for value in key) else key
