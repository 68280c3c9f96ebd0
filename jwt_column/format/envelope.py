"""The stored form of a token: envelope v1 (docs/reference/envelope-v1.md), bytes to fields and back.

The *header* is everything before the nonce; its first six bytes are the *stamp*: version, key id, layout. SQL
reads header fields at the offsets given here, so nothing else in the package counts bytes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import MalformedEnvelopeError, UnsupportedVersionError
from . import base64url
from .aead import NONCE_LENGTH, TAG_LENGTH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

    Storage = Literal["binary", "text"]

VERSION: Final = b"\x01"
TEXT_PREFIX: Final = "jc"

EXPIRY_LENGTH: Final = 6
FINGERPRINT_LENGTH: Final = 16
MAX_FINGERPRINTS: Final = 7

#: The expiry field of a token without ``exp``.
NO_EXPIRY: Final = b"\xff" * EXPIRY_LENGTH
#: The fingerprint of a claim that the token does not have.
NO_FINGERPRINT: Final = bytes(FINGERPRINT_LENGTH)


class Field(NamedTuple):
    """The place of a header field in the binary form, in bytes; in the text form it is at 2 + twice the offset."""

    offset: int
    length: int


VERSION_FIELD: Final = Field(0, 1)
KEY_ID_FIELD: Final = Field(1, 4)
LAYOUT_FIELD: Final = Field(5, 1)
STAMP_FIELD: Final = Field(0, 6)
#: Of the layouts that have one.
EXPIRY_FIELD: Final = Field(STAMP_FIELD.length, EXPIRY_LENGTH)

_SHORTEST_BODY: Final = NONCE_LENGTH + TAG_LENGTH


class Layout(NamedTuple):
    """Which optional fields the header has."""

    has_expiry: bool
    fingerprints: int

    @property
    def byte(self) -> bytes:
        """The layout byte: bit 0 expiry, bits 1 to 3 the number of fingerprints."""
        return bytes([self.has_expiry | self.fingerprints << 1])

    @property
    def header_length(self) -> int:
        """Length of the header in bytes."""
        return STAMP_FIELD.length + EXPIRY_LENGTH * self.has_expiry + FINGERPRINT_LENGTH * self.fingerprints

    def fingerprint_field(self, index: int) -> Field:
        """Return the place of the fingerprint with this index, counted from 0 in the order of the column."""
        first = STAMP_FIELD.length + EXPIRY_LENGTH * self.has_expiry
        return Field(first + FINGERPRINT_LENGTH * index, FINGERPRINT_LENGTH)


#: Header length by layout byte; a byte that is not here has a reserved bit set.
HEADER_LENGTHS: Final[Mapping[int, int]] = {
    layout.byte[0]: layout.header_length
    for layout in (Layout(expiry, count) for expiry in (False, True) for count in range(MAX_FINGERPRINTS + 1))
}


class Envelope(NamedTuple):
    """The fields of a stored token. Nothing here is secret, and nothing was authenticated yet."""

    key_id: str
    layout: Layout
    expiry: int | None
    fingerprints: Sequence[bytes]
    header: bytes
    sealed: bytes


def split(stored: bytes) -> int:
    """Check the structure of a binary envelope, and return the length of its header.

    The hot half of :func:`parse`: nonce, ciphertext and tag follow the header.

    Raises:
        UnsupportedVersionError: Another version.
        MalformedEnvelopeError: No envelope; ``reason`` says which rule it breaks.
    """
    if stored[:1] == VERSION and len(stored) >= STAMP_FIELD.length:
        header_length = HEADER_LENGTHS.get(stored[5])
        if header_length is not None and len(stored) >= header_length + _SHORTEST_BODY:
            return header_length
    raise _explain(stored, f"{len(stored)} bytes")


def _explain(stored: bytes, size: str) -> MalformedEnvelopeError | UnsupportedVersionError:
    """Return the error that says why these bytes are no envelope, or do not begin one."""
    if not stored:
        return MalformedEnvelopeError("the stored value is empty", reason="empty")
    if stored[:1] != VERSION:
        if _TEXT_ENVELOPE.match(stored.decode("latin-1")):
            return MalformedEnvelopeError(
                f"the stored value ({size}) is an envelope in the text form in a column of bytes: declare "
                "storage='text' and a text column, or write binary envelopes",
                reason="not an envelope",
            )
        if stored.isascii() and stored.decode().isprintable():
            return MalformedEnvelopeError(
                f"the stored value ({size}) is not an envelope", reason="not an envelope"
            )
        return UnsupportedVersionError(
            f"the stored value ({size}) is no envelope of version {VERSION[0]}: a newer release of "
            "jwt-column wrote it, or another program"
        )
    if len(stored) < STAMP_FIELD.length:
        return MalformedEnvelopeError(f"the envelope ({size}) ends within its stamp", reason="truncated")
    key_id = stored[1:5].hex()
    if stored[5] not in HEADER_LENGTHS:
        return _malformed(size, key_id, "has a reserved layout bit set", "reserved layout bit")
    return _malformed(size, key_id, "ends too early: it was truncated", "truncated")


def _malformed(size: str, key_id: str, problem: str, reason: str) -> MalformedEnvelopeError:
    return MalformedEnvelopeError(
        f"the envelope ({size}, key {key_id}) {problem}", reason=reason, key_id=key_id
    )


def parse(stored: bytes | str) -> Envelope:
    """Return the fields of a stored value in either form, without any key.

    Raises:
        UnsupportedVersionError: Another version.
        MalformedEnvelopeError: No envelope; ``reason`` says which rule it breaks.
    """
    binary = to_binary(stored) if isinstance(stored, str) else stored
    header_length = split(binary)
    layout = Layout(bool(binary[5] & 1), binary[5] >> 1)
    expiry = None
    if layout.has_expiry:
        raw = binary[EXPIRY_FIELD.offset : EXPIRY_FIELD.offset + EXPIRY_LENGTH]

        expiry = None if raw == NO_EXPIRY else int.from_bytes(raw, "big")
    fingerprints = []
    for index in range(layout.fingerprints):
        offset, length = layout.fingerprint_field(index)
        fingerprints.append(binary[offset : offset + length])
    return Envelope(
        binary[1:5].hex(), layout, expiry, fingerprints, binary[:header_length], binary[header_length:]
    )


def to_text(stored: bytes, header_length: int) -> str:
    """Return the text form of a binary envelope; needs no key."""
    return as_text(stored[:header_length], stored[header_length:])


def as_text(header: bytes, body: bytes) -> str:
    """Return the text form of an envelope."""
    return f"{TEXT_PREFIX}{header.hex()}.{base64url.encode(body)}"


def to_binary(text: str) -> bytes:
    """Return the binary form of a text envelope; needs no key.

    Two spellings of one envelope would let an attacker mark rows unseen, so one alone is read.

    Raises:
        UnsupportedVersionError: Another version.
        MalformedEnvelopeError: Not the text form, or not its one canonical spelling; ``reason`` says why.
    """
    start, _, body = text.partition(".")
    header = _stamps.get(start) or _header_of(start)
    if header is not None:
        raw_body = base64url.decode_canonical(body)
        if raw_body is not None and len(raw_body) >= _SHORTEST_BODY:
            return header + raw_body
    raise _explain_text(text)


# A header without optional fields is the same for every row under one key.
_CACHED_STAMPS: Final = 1024
_stamps: dict[str, bytes] = {}


def _header_of(start: str) -> bytes | None:
    """Return the header of a text envelope from the characters before its dot; None if they are none.

    A layout that belongs to another length is none either: the dot stands in the wrong place.
    """
    try:
        header = bytes.fromhex(start[len(TEXT_PREFIX) :])
    except ValueError:
        return None
    # Not another spelling: upper-case digits, or spaces between them.
    is_header = start == TEXT_PREFIX + header.hex() and len(header) >= STAMP_FIELD.length
    if not is_header or header[:1] != VERSION or HEADER_LENGTHS.get(header[5]) != len(header):
        return None
    if len(header) == STAMP_FIELD.length:
        if len(_stamps) >= _CACHED_STAMPS:
            _stamps.clear()
        _stamps[start] = header
    return header


_HEX: Final = re.compile(r"(?:[0-9a-f]{2})+\Z")


def _explain_text(text: str) -> MalformedEnvelopeError | UnsupportedVersionError:
    """Return the error that says why a text is no envelope."""
    size = f"{len(text)} characters"
    if _HEX_OF_BINARY.match(text):
        return MalformedEnvelopeError(
            f"the stored value ({size}) is a binary envelope that the database wrote as text: its column is a text "
            "column, so declare storage='text', or make it a column of bytes",
            reason="not an envelope",
        )
    if not text.startswith(TEXT_PREFIX):
        return MalformedEnvelopeError(
            f"the stored value ({size}) is not an envelope", reason="not an envelope"
        )
    header, dot, body = text[len(TEXT_PREFIX) :].partition(".")
    if not dot or not _HEX.match(header):
        return MalformedEnvelopeError(
            f"the envelope ({size}) does not begin with lower-case hex and a dot", reason="header is not hex"
        )
    raw_header = bytes.fromhex(header)
    if raw_header[:1] != VERSION or len(raw_header) < STAMP_FIELD.length:
        return _explain(raw_header, size)
    key_id = header[2:10]
    raw_body = base64url.decode_canonical(body)
    if raw_body is None:
        return _malformed(size, key_id, "is not canonical base64url", "not base64url")
    # The header says how long it is; the dot must stand behind it.
    length = HEADER_LENGTHS.get(raw_header[5])
    if length is not None and length + _SHORTEST_BODY <= len(raw_header) + len(raw_body):
        return _malformed(size, key_id, "has its dot in the wrong place", "dot")
    return _explain(raw_header + raw_body, f"{len(raw_header) + len(raw_body)} bytes")


# The text that PostgreSQL makes of bytes; an envelope begins with its version.
_HEX_OF_BINARY: Final = re.compile(r"\\x01(?:[0-9a-f]{2}){5,}\Z")
_TEXT_ENVELOPE: Final = re.compile(r"jc(?:[0-9a-f]{2}){6,}\.")


def looks_like_envelope(value: bytes | str) -> bool:
    """Return True for a stored value that begins as an envelope, of any version.

    A compact JWT begins with ``e``, so it never does.
    """
    if isinstance(value, str):
        return _TEXT_ENVELOPE.match(value) is not None
    return 0 < (value[0] if value else 0) < 0x20


def looks_like_binary_as_text(value: str) -> bool:
    """Return True for a text that a driver, or PostgreSQL in a text column, makes of a binary envelope's bytes."""
    starts_with_control = "\x00" < value[:1] < " " and not value[0].isspace()
    return starts_with_control or _HEX_OF_BINARY.match(value) is not None
