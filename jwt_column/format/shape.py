"""The shape check: the kind of a token, by its form alone. It packs the token as it looks.

The shapes are those of the compact serializations: JWS (RFC 7515 section 7.1, three segments) and JWE (RFC 7516
section 7.1, five). No signature is verified here.
"""

from __future__ import annotations

import json
import sys
from enum import Enum
from typing import Any, Final, NamedTuple
from unicodedata import category

from pybase64 import b64decode

from ..errors import InvalidTokenError
from ..wording import counted
from .base64url import ALPHABET, CANONICAL_PADDING, decode, encode
from .claims import parse_integer
from .frame import CACHED_HEADERS, LONGEST_CACHED_HEADER, is_verbatim, jws_ends, pack, unpack


class Kind(Enum):
    """The kind of a token, by its shape alone."""

    SIGNED = "JWS"
    ENCRYPTED = "JWE"
    UNSIGNED = "unsigned JWS"
    OPAQUE = "opaque token"


class Shape(NamedTuple):
    """The kind of a token, its frame, and the payload if it is a JWS."""

    kind: Kind
    frame: bytes
    payload: bytes | None = None


class _PackedHeader(NamedTuple):
    """A canonical header segment of a signed token, as a packed frame begins with it."""

    start: bytes
    raw: bytes


_kinds: dict[bytes, Kind] = {}
_packed_headers: dict[str, _PackedHeader] = {}


def shape_of(token: str) -> Shape:
    """Return the shape of a token.

    Raises:
        InvalidTokenError: Not a compact JWS or JWE. ``reason`` is short and stable; neither it nor the
            message holds a part of the value.
    """
    if not isinstance(token, str):
        raise InvalidTokenError(f"not a token: expected str, got {type(token).__name__}", reason="not a str")
    packed = pack_signed(token)
    if packed is not None:
        return Shape(Kind.SIGNED, *packed)  # Nearly every token, and a third cheaper than the full check.
    check_text(token)
    header_text, *segments = token.split(".")
    if len(segments) not in (2, 4):
        raise InvalidTokenError(
            f"not a compact JWT: {counted(len(segments) + 1, 'dot-separated segment')} where a JWS has 3 and a JWE 5",
            reason="segments",
        )
    kind = _kind_of_segment(header_text)
    if (kind is Kind.ENCRYPTED) != (len(segments) == 4):
        raise InvalidTokenError(
            "not a compact JWT: a header with enc has 5 segments, any other 3", reason="segments"
        )
    if not token.isascii():
        raise InvalidTokenError("not a compact JWT: a segment is not base64url", reason="not base64url")
    frame = pack(token)
    if is_verbatim(frame) and any(decode(segment) is None for segment in segments):
        padding = ": it is padded with '='" if "=" in token else ""
        raise InvalidTokenError(
            f"not a compact JWT: a segment is not base64url{padding}", reason="not base64url"
        )
    if kind is Kind.SIGNED and not segments[1]:
        raise InvalidTokenError("not a compact JWT: the signature is empty", reason="no signature")
    return Shape(kind, frame, None if kind is Kind.ENCRYPTED else decode(segments[0]))


def pack_signed(token: object, longest: int = sys.maxsize) -> tuple[bytes, bytes] | None:
    """Return frame and payload of a canonical signed JWS whose header was seen before; None for any other value.

    That is nearly every token, and the frame proves the shape: :func:`shape_of` would say ``Kind.SIGNED``.

    Args:
        token: The value.
        longest: Characters that the token may have.
    """
    if not isinstance(token, str) or len(token) > longest:
        return None
    try:
        # decode_canonical() without its calls, and with one look for foreign characters. partition() finds a dot
        # faster than split(); a third dot is a foreign character of the signature.
        header_text, _, rest = token.partition(".")
        header, raw_header = _packed_headers[header_text]
        payload_text, _, signature_text = rest.partition(".")
        if "+" in token or "/" in token or "=" in token:
            return None
        payload_padding = CANONICAL_PADDING[len(payload_text) & 3][payload_text[-1]]
        signature_padding = CANONICAL_PADDING[len(signature_text) & 3][signature_text[-1]]
        payload = b64decode(payload_text + payload_padding, ALPHABET, True)
        signature = b64decode(signature_text + signature_padding, ALPHABET, True)
        length = len(payload).to_bytes(2, "big")
        return b"".join((header, length, raw_header, payload, signature)), payload
    except (LookupError, ValueError, OverflowError):
        return None


def payload_of(frame: bytes) -> bytes | None:
    """Return the payload of a frame whose token is a JWS, signed or not; None for any other token."""
    ends = jws_ends(frame)
    if ends is not None:
        header_end, payload_end = ends
        header = frame[6:header_end]
        kind = _kinds.get(header)
        if kind is None:
            try:
                kind = _kind_of_header(header)
            except InvalidTokenError:
                return None
        is_jws = payload_end < len(frame) if kind is Kind.SIGNED else kind is Kind.UNSIGNED
        return frame[header_end:payload_end] if is_jws else None
    token = unpack(frame)
    if token is None:
        return None
    try:
        return shape_of(token).payload
    except InvalidTokenError:
        return None


#: The reason of :func:`check_characters`.
UNPRINTABLE: Final = "control character"
_SCHEMES: Final = ("Bearer", "JWT", "DPoP", "Token", "OAuth")
_QUOTES: Final = "\"'`\u2018\u2019\u201c\u201d"


def check_text(token: str) -> None:
    """Refuse the texts that are no token of any kind: empty, or a token with something around it."""
    if not token:
        raise InvalidTokenError("not a token: the text is empty; store None instead", reason="empty")
    if token != token.strip():
        raise InvalidTokenError("not a token: there is white space around it", reason="white space")
    if "Cf" in (category(token[0]), category(token[-1])):
        raise InvalidTokenError(
            "not a token: it begins or ends with an invisible character, such as a byte order mark",
            reason="white space",
        )
    if not token.strip("*"):
        # A client sends back the answer that it was given, an admin page its own export.
        raise InvalidTokenError(
            "not a token: these asterisks are the mask that is shown in place of one; leave the token out, or send "
            "the token itself",
            reason="mask",
        )
    if token[0] in _QUOTES or token[-1] in _QUOTES:
        raise InvalidTokenError(
            "not a token: it has quotes around it; store what is between them", reason="quotes"
        )
    for scheme in _SCHEMES:
        beginning, rest = token[: len(scheme)], token[len(scheme) :]
        # A space of another kind, and one that a URL encodes.
        if beginning.lower() == scheme.lower() and (rest[:1].isspace() or rest.startswith(("%20", "+"))):
            raise InvalidTokenError(
                f"not a token: it still has the '{scheme} ' of its HTTP header; store what follows",
                reason="bearer",
            )


def check_characters(token: str) -> None:
    """Refuse an opaque token with a character that nobody sees, such as a line break; RFC 6749 appendix A has none.

    It has none outside ASCII either. Those that are seen are taken all the same: no paste has slipped them in.
    """
    if not token.isprintable():
        raise InvalidTokenError(
            "not a token: there is a line break, a tab, another control character or an invisible character in it",
            reason=UNPRINTABLE,
        )


def _kind_of_segment(segment: str) -> Kind:
    """Return the kind of token that a header segment begins, and keep its packed form for later tokens."""
    raw = decode(segment)
    if raw is None:
        raise _bad_header()
    kind = _kinds.get(raw)
    if kind is None:
        kind = _kind_of_header(raw)
    if kind is Kind.SIGNED and len(segment) <= LONGEST_CACHED_HEADER and encode(raw) == segment:
        if len(_packed_headers) >= CACHED_HEADERS:
            _packed_headers.clear()
        _packed_headers[segment] = _PackedHeader(b"\x01\x03" + len(raw).to_bytes(2, "big"), raw)
    return kind


def _kind_of_header(raw: bytes) -> Kind:
    """Return the kind of token that a decoded header begins."""
    fields = _header_fields(raw)
    if "enc" in fields:
        kind = Kind.ENCRYPTED
    elif fields["alg"].lower() == "none":
        # RFC 7518 section 3.6 says "none"; every spelling counts, because verifiers have accepted them.
        kind = Kind.UNSIGNED
    else:
        kind = Kind.SIGNED
    if len(raw) <= LONGEST_CACHED_HEADER:
        if len(_kinds) >= CACHED_HEADERS:
            _kinds.clear()
        _kinds[raw] = kind
    return kind


def parse_header(segment: str) -> dict[str, Any]:
    """Return a header segment, parsed: a JSON object with ``alg`` (RFC 7515 section 4.1.1).

    Raises:
        InvalidTokenError: Anything else.
    """
    raw = decode(segment)
    if raw is None:
        raise _bad_header()
    return _header_fields(raw)


def _header_fields(raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise _bad_header()
    try:
        # Stricter than a payload: RFC 8259 knows neither NaN nor another encoding than UTF-8.
        fields = json.loads(raw.decode(), parse_int=parse_integer, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        fields = {}
    if not isinstance(fields.get("alg"), str):
        raise InvalidTokenError(
            "not a compact JWT: the header is not a JSON object with an alg", reason="header"
        )
    return fields  # type: ignore[no-any-return]


def _refuse_constant(_name: str) -> None:
    raise ValueError("not JSON")


def _bad_header() -> InvalidTokenError:
    return InvalidTokenError(
        "not a compact JWT: the first segment is not a base64url JSON object", reason="header"
    )
