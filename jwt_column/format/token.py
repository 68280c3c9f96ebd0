"""JSON Web Tokens as values: :class:`JWT`, the shape check, and packing.

The shape is that of the compact serializations: JWS (RFC 7515 section 7.1, three segments) and JWE (RFC 7516
section 7.1, five). Nothing here verifies a signature except :meth:`JWT.verify`, by PyJWT.
"""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from pybase64 import b64encode_as_string

from ..errors import InvalidTokenError
from .base64url import ALPHABET, decode, decode_canonical, decode_canonical_pair, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "JWT",
    "MAX_EXPIRY",
    "Kind",
    "check_text",
    "classify",
    "expiry_of",
    "is_frame",
    "pack",
    "pack_signed",
    "parse_header",
    "read_claims",
    "read_packed_claims",
    "unpack",
]

#: The largest ``exp`` that an envelope can hold, in seconds since 1970; one more means "no ``exp``".
MAX_EXPIRY: Final = 2**48 - 2

_VERBATIM: Final = b"\x00"
_MAX_SEGMENTS: Final = 255
_MAX_SEGMENT: Final = 2**16 - 1

# A packed frame of three segments: 0x01, their number, the lengths of the first two.
_JWS_PACKED: Final = 0x0103
_JWS_START: Final = struct.Struct(">HHH")
_read_jws_start: Final = _JWS_START.unpack_from


class Kind(Enum):
    """What a token is, by its shape alone."""

    SIGNED = "JWS"
    ENCRYPTED = "JWE"
    UNSIGNED = "unsigned JWS"
    OPAQUE = "opaque token"


class _PackedHeader(NamedTuple):
    """A canonical header segment of a signed token, as a packed frame begins with it."""

    start: bytes
    raw: bytes


# Header segments repeat from token to token, and so do verdict and packed form. Headers with a part of their
# own (a JWE's ephemeral key) fill a cache; it is then thrown away whole. The length keeps it below 8 MB.
_CACHED_HEADERS: Final = 1024
_LONGEST_CACHED_HEADER: Final = 4096
_header_kinds: dict[str, Kind] = {}
_packed_headers: dict[str, _PackedHeader] = {}
_header_texts: dict[bytes, str] = {}


class _Fragment(str):
    """A slice of a token. Its repr is redacted too: debuggers shorten a string before they show it."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> str:
        return _Fragment(str.__getitem__(self, index))

    def __repr__(self) -> str:
        return f"<redacted, {len(self)} characters>"


class JWT(str):
    """A JSON Web Token: a ``str`` whose ``repr`` shows nothing of it.

    ``str(token)`` and string formatting give the characters, as an ``Authorization`` header needs them;
    ``repr``, and with it parameter dumps, debug logs and tracebacks that show local variables, do not.

    Args:
        value: A compact JWS or JWE. Its shape is checked, its signature is not.

    Raises:
        InvalidTokenError: Not a ``str``, not a compact JWS or JWE, or not signed (``alg: none``).

    >>> token = JWT("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl")
    >>> token
    JWT(redacted, 54 characters)
    >>> token.unverified_claims
    {'sub': 'alice'}
    """

    __slots__ = ("_frame", "_kind")
    #: What :func:`pack_signed` made of it, from the check until it is asked for again.
    _frame: bytes | None
    _kind: Kind

    def __new__(cls, value: str) -> Self:
        """Check the shape of *value*, and make the token."""
        kind = classify(value)
        if kind is Kind.UNSIGNED:
            raise InvalidTokenError(
                "not a token that can be trusted: its algorithm is none; only a column with "
                "allow_unsigned=True takes it",
                reason="unsigned",
            )
        return cls._unchecked(value, kind)

    @classmethod
    def _unchecked(cls, value: str, kind: Kind | None = None, frame: bytes | None = None) -> Self:
        """Return a JWT without a shape check: of a stored value, which was checked when it was bound."""
        # str() of an enumeration's member is its name, not the characters that it stands for.
        token = str.__new__(cls, str.__str__(value))
        if kind is not None:
            token._kind = kind  # noqa: SLF001
        if frame is not None:
            token._frame = frame  # noqa: SLF001
        return token

    def __repr__(self) -> str:
        return f"JWT(redacted, {len(self)} characters)"

    def __getitem__(self, index: Any) -> str:
        return _Fragment(str.__getitem__(self, index))

    def __copy__(self) -> JWT:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> JWT:
        return self

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        # An opaque or unsigned token of a column that allows it must survive a pickle: no shape check here.
        return JWT._unchecked, (str(self),)

    @property
    def kind(self) -> Kind:
        """What the token is by its shape. ``Kind.OPAQUE`` where it is not a JWT."""
        try:
            return self._kind
        except AttributeError:
            try:
                self._kind = kind = classify(self)
            except InvalidTokenError:
                self._kind = kind = Kind.OPAQUE
            return kind

    @property
    def unverified_header(self) -> dict[str, Any]:
        """The header (RFC 7515 section 4, RFC 7516 section 4), parsed at each access. Not verified.

        Raises:
            InvalidTokenError: The token is opaque.
        """
        if self.kind is Kind.OPAQUE:
            raise InvalidTokenError("an opaque token has no header", reason="opaque")
        return parse_header(self.partition(".")[0])[1]

    @property
    def unverified_claims(self) -> dict[str, Any]:
        """The claims of the payload (RFC 7519 section 4), parsed at each access. Not verified.

        Raises:
            InvalidTokenError: The payload cannot be read: a JWE, an opaque token, a payload that is not a
                JSON object.
        """
        claims = read_claims(self)
        if claims is None:
            raise InvalidTokenError(
                f"this {self.kind.value} has no readable claims", reason="no readable claims"
            )
        return claims

    @property
    def expires_at(self) -> datetime | None:
        """The ``exp`` claim (RFC 7519 section 4.1.4) in UTC, whole seconds, not verified.

        None without a readable payload or without ``exp``. A time past the year 9999 is shown as its end.

        Raises:
            InvalidTokenError: ``exp`` is not a number of seconds, is negative, or is 2**48 - 1 or more.
        """
        seconds = expiry_of(read_claims(self))
        if seconds is None:
            return None
        try:
            return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
        except OverflowError:
            return datetime.max.replace(tzinfo=UTC)

    def is_expired(self, *, at: datetime | None = None, leeway: float = 0) -> bool:
        """Say whether ``exp`` has passed; a token without ``exp`` never expires.

        Args:
            at: The time to compare with, timezone-aware; None means now.
            leeway: Seconds that the clocks may differ by.

        Raises:
            InvalidTokenError: As :attr:`expires_at`.
        """
        expires_at = self.expires_at
        if expires_at is None:
            return False
        # Not added to the expiry, which may be the last moment that Python has.
        return (at or datetime.now(UTC)) - timedelta(seconds=leeway) >= expires_at

    def verify(self, key: Any, algorithms: Sequence[str], **options: Any) -> dict[str, Any]:
        """Verify signature and registered claims with PyJWT, and return the claims.

        Args:
            key: The verification key, as :func:`jwt.decode` takes it.
            algorithms: The algorithms to accept, e.g. ``["RS256"]``. Never taken from the token.
            **options: Further arguments of :func:`jwt.decode`: ``audience``, ``issuer``, ``leeway``.

        Raises:
            jwt.PyJWTError: The token is not valid; the subclass says why.
        """
        import jwt  # PyJWT takes a tenth of a second to import, and most processes only store.

        try:
            claims: dict[str, Any] = jwt.decode(str(self), key, algorithms=list(algorithms), **options)
        except Exception as error:  # noqa: BLE001 - raised again below
            failure = error.with_traceback(None)
        else:
            return claims
        # PyJWT's frames hold the token in local variables, which error reporters show, and so do those of the
        # errors that this one was raised from; ours holds a redacted token.
        failure.__context__ = None
        raise failure from None


def classify(token: str) -> Kind:
    """Return what a token is, or say why it is none.

    Raises:
        InvalidTokenError: Not a compact JWS or JWE. ``reason`` is short and stable; neither it nor the
            message holds a part of the value.
    """
    if not isinstance(token, str):
        raise InvalidTokenError(f"not a token: expected str, got {type(token).__name__}", reason="not a str")
    if pack_signed(token) is not None:
        return Kind.SIGNED  # Nearly every token, and a third cheaper than what follows.
    check_text(token)
    header_text, *segments = token.split(".")
    if len(segments) not in (2, 4):
        raise InvalidTokenError(
            f"not a compact JWT: {len(segments) + 1} dot-separated segments where a JWS has 3 and a JWE 5",
            reason="segments",
        )
    kind = _kind_of_header(header_text)
    if (kind is Kind.ENCRYPTED) != (len(segments) == 4):
        raise InvalidTokenError(
            "not a compact JWT: a header with enc has 5 segments, any other 3", reason="segments"
        )
    for segment in segments:
        if decode(segment) is None:
            raise InvalidTokenError("not a compact JWT: a segment is not base64url", reason="not base64url")
    if kind is Kind.SIGNED and not segments[1]:
        raise InvalidTokenError("not a compact JWT: the signature is empty", reason="no signature")
    return kind


def check_text(token: str) -> None:
    """Refuse what no kind of token is: nothing, white space around it, an HTTP authentication scheme."""
    if not token:
        raise InvalidTokenError("not a token: the text is empty; store None instead", reason="empty")
    if token != token.strip():
        raise InvalidTokenError("not a token: there is white space around it", reason="white space")
    if token[:7].lower() == "bearer ":
        raise InvalidTokenError(
            "not a token: it still has the 'Bearer ' of its HTTP header; store what follows", reason="bearer"
        )


def _kind_of_header(segment: str) -> Kind:
    """Return the kind of token that a header segment says it begins."""
    kind = _header_kinds.get(segment)
    if kind is not None:
        return kind
    raw, fields = parse_header(segment)
    if "enc" in fields:
        kind = Kind.ENCRYPTED
    elif fields["alg"].lower() == "none":
        # RFC 7518 section 3.6 says "none"; every spelling counts, because verifiers have accepted them.
        kind = Kind.UNSIGNED
    else:
        kind = Kind.SIGNED
    if len(segment) <= _LONGEST_CACHED_HEADER:
        if len(_header_kinds) >= _CACHED_HEADERS:
            _header_kinds.clear()
            _packed_headers.clear()
        _header_kinds[segment] = kind
        if kind is Kind.SIGNED and encode(raw) == segment:
            _packed_headers[segment] = _PackedHeader(b"\x01\x03" + len(raw).to_bytes(2, "big"), raw)
    return kind


def parse_header(segment: str) -> tuple[bytes, dict[str, Any]]:
    """Return a header segment, decoded and parsed: a JSON object with ``alg`` (RFC 7515 section 4.1.1)."""
    raw = decode(segment)
    if raw is None or not raw.startswith(b"{"):
        raise InvalidTokenError(
            "not a compact JWT: the first segment is not a base64url JSON object", reason="header"
        )
    fields = _parse_object(raw)
    if fields is None or not isinstance(fields.get("alg"), str):
        raise InvalidTokenError(
            "not a compact JWT: the header is not a JSON object with an alg", reason="header"
        )
    return raw, fields


def _parse_integer(text: str) -> int | float:
    """Parse a JSON integer. Past Python's limit of digits it becomes infinite, which no claim may be."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _refuse_constant(_name: str) -> None:
    """Refuse NaN and Infinity, which Python's parser takes and JSON (RFC 8259 section 6) does not have."""
    raise ValueError("not JSON")


_json = json.JSONDecoder(parse_int=_parse_integer, parse_constant=_refuse_constant)
_JSON_SPACE: Final = " \t\n\r"  # RFC 8259 section 2


def _parse_object(data: bytes) -> dict[str, Any] | None:
    """Return the JSON object that these bytes hold, or None when they hold something else."""
    try:
        text = data.decode().strip(_JSON_SPACE)
        # What decode() does, without its two searches for white space.
        parsed, end = _json.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) and end == len(text) else None


def read_claims(token: JWT) -> dict[str, Any] | None:
    """Return the claims of a JWS, not verified; None where there is no payload that is a JSON object."""
    if token.kind not in (Kind.SIGNED, Kind.UNSIGNED):
        return None
    payload = decode(token.split(".")[1])
    return None if payload is None else _parse_object(payload)


def read_packed_claims(frame: bytes) -> dict[str, Any] | None:
    """Return what :func:`read_claims` gives for the token of a frame of :func:`pack_signed`."""
    _, header_length, payload_length = _read_jws_start(frame)
    payload_at = _JWS_START.size + header_length
    return _parse_object(frame[payload_at : payload_at + payload_length])


def expiry_of(claims: dict[str, Any] | None) -> int | None:
    """Return ``exp`` of these claims in whole seconds since 1970, rounded down; None when there is none.

    Raises:
        InvalidTokenError: ``exp`` is not a number, is negative, or is not below 2**48 - 1.
    """
    if claims is None or "exp" not in claims:
        return None
    exp = claims["exp"]
    if type(exp) is not int and type(exp) is not float:
        raise InvalidTokenError("the exp claim is not a number of seconds", reason="exp")
    if not 0 <= exp < MAX_EXPIRY + 1:
        raise InvalidTokenError("the exp claim is not between 0 and 2**48 - 2 seconds", reason="exp")
    return int(exp)


def pack_signed(token: str) -> bytes | None:
    """Return the packed frame of a canonical signed JWS whose header was seen before; None for anything else.

    That is nearly every token, and a frame proves its shape: :func:`classify` would say ``Kind.SIGNED``. A frame that a
    token has kept is handed out once, so that no token goes on to hold its characters twice.
    """
    if type(token) is JWT:
        kept: bytes | None = getattr(token, "_frame", None)
        if kept is not None:
            token._frame = None  # noqa: SLF001
            return kept
    header_text, _, rest = token.partition(".")
    header = _packed_headers.get(header_text)
    if header is None:
        return None
    segments = decode_canonical_pair(rest)
    if segments is None:
        return None
    payload, signature = segments
    if len(payload) > _MAX_SEGMENT:
        return None
    return b"".join((header.start, len(payload).to_bytes(2, "big"), header.raw, payload, signature))


def pack(token: str) -> bytes:
    """Return the frame of a token (envelope-v1, "Frame"): packed where that loses nothing, else verbatim.

    Args:
        token: Any text that has a UTF-8 form.

    Returns:
        For a canonical JWS 6 bytes more than its decoded segments, about three quarters of its characters;
        for anything that base64url would not give back to the letter, 1 byte more than its UTF-8.
    """
    texts = token.split(".")
    segments = [segment for text in texts if (segment := decode_canonical(text)) is not None]
    lengths = [len(segment) for segment in segments[:-1]]
    is_canonical = len(segments) == len(texts)
    if not is_canonical or len(segments) > _MAX_SEGMENTS or max(lengths, default=0) > _MAX_SEGMENT:
        return _VERBATIM + token.encode()
    return b"".join((struct.pack(f">BB{len(lengths)}H", 1, len(segments), *lengths), *segments))


def unpack(frame: bytes) -> str | None:
    """Return the token of a frame, exactly the characters that :func:`pack` was given; None for another."""
    # Nearly every row is a signed token under a header that was seen before.
    try:
        start, header_length, payload_length = _read_jws_start(frame)
        payload_at = 6 + header_length
        signature_at = payload_at + payload_length
        signature = frame[signature_at:]
        if start == _JWS_PACKED and signature:
            header = _header_texts[frame[6:payload_at]]
            # What encode() does, without its call.
            payload_text = b64encode_as_string(frame[payload_at:signature_at], ALPHABET).rstrip("=")
            signature_text = b64encode_as_string(signature, ALPHABET).rstrip("=")
            return f"{header}.{payload_text}.{signature_text}"
    except (struct.error, KeyError):
        pass
    return _unpack_any(frame)


def _unpack_any(frame: bytes) -> str | None:
    """Do what :func:`unpack` does, for every frame."""
    if frame[:1] == _VERBATIM:
        try:
            return frame[1:].decode()
        except UnicodeDecodeError:
            return None
    if frame[:1] == b"\x01" and len(frame) >= 2 and frame[1] and len(frame) >= 2 * frame[1]:
        return _unpack_segments(frame)
    return None


def is_frame(frame: bytes) -> bool:
    """Say whether :func:`unpack` gives a token for a frame; the common one is not taken apart for it."""
    if len(frame) >= _JWS_START.size:
        start, header_length, payload_length = _read_jws_start(frame)
        if start == _JWS_PACKED:
            return bool(_JWS_START.size + header_length + payload_length <= len(frame))
    return unpack(frame) is not None


def _unpack_segments(frame: bytes) -> str | None:
    """Return the token of a packed frame with any number of segments; keep the header of a JWS for others."""
    count = frame[1]
    lengths = struct.unpack_from(f">{count - 1}H", frame, 2)
    position = 2 * count
    segments = []
    for length in lengths:
        segments.append(encode(frame[position : position + length]))
        position += length
    if position > len(frame):
        return None
    segments.append(encode(frame[position:]))
    if count == 3 and len(segments[0]) <= _LONGEST_CACHED_HEADER:
        if len(_header_texts) >= _CACHED_HEADERS:
            _header_texts.clear()
        _header_texts[frame[6 : 6 + lengths[0]]] = segments[0]
    return ".".join(segments)
