"""Frames: the plaintext that an envelope seals (envelope-v1, "Frame"). Knows segments, and no kind of token."""

from __future__ import annotations

import struct
from typing import Final

from pybase64 import b64encode_as_string

from .base64url import ALPHABET, decode_canonical, encode

_VERBATIM: Final = b"\x00"
_MAX_SEGMENTS: Final = 255

#: Bytes that a segment of a packed frame may have, the last one excepted.
MAX_SEGMENT: Final = 2**16 - 1

# A packed frame of three segments: 0x01, their number, the lengths of the first two.
_JWS_PACKED: Final = 0x0103
_JWS_START: Final = struct.Struct(">HHH")
_read_jws_start: Final = _JWS_START.unpack_from

#: Header segments repeat from token to token, so they are worked out once and kept. Headers with a part of their own
#: (a JWE's ephemeral key) fill a cache; it is then emptied. The length keeps it below 8 MB.
CACHED_HEADERS: Final = 1024
LONGEST_CACHED_HEADER: Final = 4096
_header_texts: dict[bytes, str] = {}


def pack(token: str) -> bytes:
    """Return the frame of a token: packed where that loses nothing, else verbatim.

    Args:
        token: Any text that has a UTF-8 form.

    Returns:
        For a canonical JWS 6 bytes more than its decoded segments, about three quarters of its characters;
        for a text that base64url would not give back to the letter, 1 byte more than its UTF-8.
    """
    texts = token.split(".")
    segments = [segment for text in texts if (segment := decode_canonical(text)) is not None]
    lengths = [len(segment) for segment in segments[:-1]]
    is_canonical = len(segments) == len(texts)
    if not is_canonical or len(segments) > _MAX_SEGMENTS or max(lengths, default=0) > MAX_SEGMENT:
        return _VERBATIM + token.encode()
    return b"".join((struct.pack(f">BB{len(lengths)}H", 1, len(segments), *lengths), *segments))


def is_verbatim(frame: bytes) -> bool:
    """Return True if a frame holds the token's characters and not its decoded segments."""
    return frame[:1] == _VERBATIM


def unpack(frame: bytes) -> str | None:
    """Return the token of a frame, exactly the characters that :func:`pack` was given; None for an unknown frame."""
    token = unpack_jws(frame)
    if token is not None:
        return token
    if frame[:1] == _VERBATIM:
        try:
            return frame[1:].decode()
        except UnicodeDecodeError:
            return None
    if frame[:1] == b"\x01" and len(frame) >= 2 and frame[1] and len(frame) >= 2 * frame[1]:
        return _unpack_segments(frame)
    return None


def unpack_jws(frame: bytes) -> str | None:
    """Return the token of a frame that :func:`begins_as_jws`, if its header was seen before; None for any other frame.

    Nearly every frame has such a token: a signed one.
    """
    try:
        start, header_length, payload_length = _read_jws_start(frame)
        payload_at = 6 + header_length
        signature_at = payload_at + payload_length
        signature = frame[signature_at:]
        if start == _JWS_PACKED and signature:
            header = _header_texts[frame[6:payload_at]]
            # encode() without its call.
            payload_text = b64encode_as_string(frame[payload_at:signature_at], ALPHABET).rstrip("=")
            signature_text = b64encode_as_string(signature, ALPHABET).rstrip("=")
            return f"{header}.{payload_text}.{signature_text}"
    except (struct.error, KeyError):
        pass
    return None


def jws_ends(frame: bytes) -> tuple[int, int] | None:
    """Return where header and payload end in a packed frame of three segments; None for any other frame.

    The header begins at 6; the signature follows the payload.
    """
    if len(frame) < _JWS_START.size:
        return None
    start, header_length, payload_length = _read_jws_start(frame)
    header_end = _JWS_START.size + header_length
    payload_end = header_end + payload_length
    return (header_end, payload_end) if start == _JWS_PACKED and payload_end <= len(frame) else None


def begins_as_jws(frame: bytes) -> bool:
    """Return True for a packed frame of three segments whose first one can be a JSON object: nearly every frame."""
    return frame[:2] == b"\x01\x03" and frame[6:7] == b"{"


def is_frame(frame: bytes) -> bool:
    """Return True if :func:`unpack` gives a token for a frame; the common one is not taken apart for it."""
    return jws_ends(frame) is not None or unpack(frame) is not None


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
    if begins_as_jws(frame) and len(segments[0]) <= LONGEST_CACHED_HEADER:
        if len(_header_texts) >= CACHED_HEADERS:
            _header_texts.clear()
        _header_texts[frame[6 : 6 + lengths[0]]] = segments[0]
    return ".".join(segments)
