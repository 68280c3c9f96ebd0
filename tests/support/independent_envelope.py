"""A second implementation of envelope v1: slow, obvious, and written from the format's page alone.

The vectors are made by this file and the project has to agree with them, so it shares nothing with the
project: no import, no helper, no table. Where the project takes a fast or cached route this file takes
another: HKDF is spelled out over :mod:`hmac`, and the subkey of XAES-256-GCM comes from the library's
SP 800-108 KDF.

A refusal is a :class:`ValueError` whose text is a short code, for example ``"truncated"``: tests compare the
code, and a code holds no byte of a token, key or ciphertext.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFCMAC, CounterLocation, Mode

Storage = Literal["binary", "text"]
BoundValue = str | int | uuid.UUID | bytes
Binding = Sequence[tuple[str, BoundValue]]

VERSION = 1
NONCE_LENGTH = 24
TAG_LENGTH = 16
FINGERPRINT_LENGTH = 16
MOST_FINGERPRINTS = 7
#: All ones in 48 bits stands for a token without ``exp``, so no real expiry may reach it.
NO_EXPIRY = 2**48 - 1

HEX_DIGITS = frozenset("0123456789abcdef")
BASE64URL_ALPHABET = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


# Derived keys


def hkdf_sha256(key: bytes, info: bytes, length: int) -> bytes:
    """Derive *length* bytes (at most 32) from *key* by RFC 5869 with SHA-256 and no salt.

    One block of output is all that the format asks for, so the expand step has no loop.
    """
    if len(key) != 32:
        raise ValueError("key-length")
    pseudorandom_key = hmac.digest(bytes(32), key, "sha256")
    return hmac.digest(pseudorandom_key, info + b"\x01", "sha256")[:length]


def encryption_key(key: bytes) -> bytes:
    """Derive the 32-byte key that seals frames."""
    return hkdf_sha256(key, b"jwt-column/v1/encryption", 32)


def key_id(key: bytes) -> str:
    """Derive the key id, shown as eight lower-case hex digits."""
    return hkdf_sha256(key, b"jwt-column/v1/key-id", 4).hex()


def fingerprint_key(key: bytes, context: str, name: str) -> bytes:
    """Derive the 32-byte key of the fingerprints called *name* in *context*."""
    info = b"jwt-column/v1/fingerprint" + b"\x00" + context.encode() + b"\x00" + name.encode()
    return hkdf_sha256(key, info, 32)


# XAES-256-GCM


def xaes_subkey(key: bytes, nonce: bytes) -> bytes:
    """Derive the AES-256-GCM key for the first half of *nonce*.

    The counter has 16 bits and stands before the fixed input; the fixed input is the label ``X``, a zero byte
    and the twelve nonce bytes. It is given whole, because the library cannot otherwise leave out the length.
    """
    kdf = KBKDFCMAC(
        algorithm=AES,
        mode=Mode.CounterMode,
        length=32,
        rlen=2,
        llen=None,
        location=CounterLocation.BeforeFixed,
        label=None,
        context=None,
        fixed=b"X\x00" + nonce[:12],
    )
    return kdf.derive(key)


def xaes_encrypt(key: bytes, nonce: bytes, data: bytes, aad: bytes) -> bytes:
    """Encrypt under the 32-byte *key* and the 24-byte *nonce*; the tag follows the ciphertext."""
    if len(key) != 32 or len(nonce) != NONCE_LENGTH:
        raise ValueError("size")
    return AESGCM(xaes_subkey(key, nonce)).encrypt(nonce[12:], data, aad)


def xaes_decrypt(key: bytes, nonce: bytes, data: bytes, aad: bytes) -> bytes:
    """Decrypt what :func:`xaes_encrypt` made, or raise :class:`cryptography.exceptions.InvalidTag`."""
    if len(key) != 32 or len(nonce) != NONCE_LENGTH:
        raise ValueError("size")
    return AESGCM(xaes_subkey(key, nonce)).decrypt(nonce[12:], data, aad)


# Base64url


def to_base64url(data: bytes) -> str:
    """Encode *data* without padding."""
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def decode_leniently(text: str) -> bytes | None:
    """Decode unpadded base64url, or return ``None``; stray low bits in the last character are forgiven."""
    if not set(text) <= BASE64URL_ALPHABET or len(text) % 4 == 1:
        return None
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def decode_canonically(text: str) -> bytes | None:
    """Decode *text* only if re-encoding gives the same characters, else return ``None``."""
    data = decode_leniently(text)
    return data if data is not None and to_base64url(data) == text else None


# Claims


def claims_of(token: str) -> dict[str, object]:
    """Read the payload of a JWS; every other token has no claims.

    An empty answer means "no claims" and "not readable" alike, for the format does not tell them apart.
    """
    segments = token.split(".")
    if len(segments) != 3:
        return {}
    payload = decode_leniently(segments[1])
    if payload is None:
        return {}
    try:
        claims = json.loads(payload, parse_int=lambda text: int(text) if len(text) <= 4300 else math.inf)
    except (ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def fingerprint(key: bytes, context: str, name: str, token: str) -> bytes:
    """Compute the 16-byte fingerprint *name* of *token*; zeros where a claim has none."""
    if name == "token":
        given = token.encode()
    else:
        claim = claims_of(token).get(name)
        # Python calls True an integer and JSON does not.
        if isinstance(claim, bool) or not isinstance(claim, str | int):
            return bytes(FINGERPRINT_LENGTH)
        try:
            given = b"s" + claim.encode() if isinstance(claim, str) else b"i" + str(claim).encode("ascii")
        except UnicodeEncodeError:
            # JSON can spell half a surrogate pair, and UTF-8 cannot.
            return bytes(FINGERPRINT_LENGTH)
    return hmac.digest(fingerprint_key(key, context, name), given, "sha256")[:FINGERPRINT_LENGTH]


def expiry_of(token: str) -> int:
    """Compute the expiry field of *token*: whole seconds, or all ones for none that the field can hold."""
    exp = claims_of(token).get("exp")
    if isinstance(exp, bool) or not isinstance(exp, int | float) or not 0 <= exp < NO_EXPIRY:
        return NO_EXPIRY
    return math.floor(exp)


# Frame


def verbatim_frame(token: str) -> bytes:
    """Frame *token* as its own characters."""
    return b"\x00" + token.encode()


def packed_frame(token: str) -> bytes | None:
    """Frame *token* as its decoded segments, or return ``None`` where that would not give it back exactly.

    A token without a dot is one segment and no length field.
    """
    decoded = []
    for segment in token.split("."):
        data = decode_canonically(segment)
        if data is None:
            return None
        decoded.append(data)
    if len(decoded) > 255 or any(len(data) > 65535 for data in decoded[:-1]):
        return None
    lengths = b"".join(len(data).to_bytes(2, "big") for data in decoded[:-1])
    return b"\x01" + bytes([len(decoded)]) + lengths + b"".join(decoded)


def frame_of(token: str) -> bytes:
    """Frame *token* as a writer must: packed where that is exact, else verbatim."""
    packed = packed_frame(token)
    return verbatim_frame(token) if packed is None else packed


def token_of(frame: bytes) -> str:
    """Read a frame back.

    Raises:
        ValueError: The frame is none of the two kinds, or contradicts itself.
    """
    if not frame:
        raise ValueError("frame-empty")
    if frame[0] == 0:
        try:
            return frame[1:].decode("utf-8")
        except UnicodeDecodeError:
            # The exception would carry the frame, so it must not be the cause either.
            raise ValueError("frame-not-utf-8") from None
    if frame[0] != 1:
        raise ValueError("frame-kind")
    if len(frame) < 2:
        raise ValueError("frame-truncated")
    count = frame[1]
    if count == 0:
        raise ValueError("segment-count")
    position = 2 + 2 * (count - 1)
    if len(frame) < position:
        raise ValueError("frame-truncated")
    segments = []
    for index in range(count - 1):
        length = int.from_bytes(frame[2 + 2 * index : 4 + 2 * index], "big")
        if position + length > len(frame):
            raise ValueError("segment-lengths")
        segments.append(frame[position : position + length])
        position += length
    segments.append(frame[position:])
    return ".".join(to_base64url(segment) for segment in segments)


# Header, associated data, the two forms


@dataclass(frozen=True)
class Parsed:
    """The fields of stored bytes, none of them authenticated yet."""

    header: bytes
    key_id: str
    expiry: int | None
    fingerprints: tuple[bytes, ...]
    nonce: bytes
    sealed: bytes


def header_length(layout: int) -> int:
    """Compute how many bytes a header with this layout byte has."""
    if layout & 0xF0:
        raise ValueError("reserved-layout-bit")
    return 6 + (6 if layout & 1 else 0) + FINGERPRINT_LENGTH * (layout >> 1 & 7)


def header_of(
    token: str, key: bytes, *, context: str, fingerprints: Sequence[str] = (), expose_expiry: bool = False
) -> bytes:
    """Write the header of *token*: stamp, expiry, fingerprints."""
    if len(fingerprints) > MOST_FINGERPRINTS:
        raise ValueError("too-many-fingerprints")
    header = bytes([VERSION]) + bytes.fromhex(key_id(key)) + bytes([len(fingerprints) << 1 | expose_expiry])
    if expose_expiry:
        header += expiry_of(token).to_bytes(6, "big")
    for name in fingerprints:
        header += fingerprint(key, context, name, token)
    return header


def with_length(data: bytes) -> bytes:
    """Put the length of *data* before it as a u16."""
    if len(data) > 65535:
        raise ValueError("too-long-to-bind")
    return len(data).to_bytes(2, "big") + data


def canonical_value(value: BoundValue) -> bytes:
    """Write a bound row value with the letter of its type, so that no two types share a form."""
    if isinstance(value, bool):
        raise ValueError("bound-type")  # noqa: TRY004 - every refusal of this file is one type.
    if isinstance(value, str):
        return b"s" + value.encode()
    if isinstance(value, int):
        return b"i" + str(value).encode("ascii")
    if isinstance(value, uuid.UUID):
        return b"u" + value.bytes
    return b"b" + value


def associated_data(header: bytes, context: str, binding: Binding = ()) -> bytes:
    """Write what the tag covers beside the frame: the header, the context and the bound row values."""
    bound = b"".join(
        with_length(name.encode()) + with_length(canonical_value(value)) for name, value in binding
    )
    return header + with_length(context.encode()) + bound


def to_text(stored: bytes) -> str:
    """Convert the binary form to the text form; no key is needed."""
    end = header_length(stored[5])
    return "jc" + stored[:end].hex() + "." + to_base64url(stored[end:])


def to_binary(stored: str) -> bytes:
    """Convert the text form to the binary form; no key is needed.

    Raises:
        ValueError: The text is not exactly what :func:`to_text` would write.
    """
    if not stored.startswith("jc"):
        raise ValueError("prefix" if stored else "empty")
    digits, dot, rest = stored[2:].partition(".")
    if not dot:
        raise ValueError("no-dot")
    if not set(digits) <= HEX_DIGITS:
        raise ValueError("header-not-lower-case-hex")
    if len(digits) % 2:
        raise ValueError("header-odd-hex")
    header = bytes.fromhex(digits)
    if header and header[0] != VERSION:
        raise ValueError("version")
    # The dot has to stand where the layout ends the header; else two texts would hold the same bytes.
    if len(header) < 6 or len(header) < header_length(header[5]):
        raise ValueError("truncated")
    if len(header) > header_length(header[5]):
        raise ValueError("header-too-long")
    body = decode_canonically(rest)
    if body is None:
        raise ValueError("body-not-canonical-base64url")
    return header + body


def parse(stored: bytes | str) -> Parsed:
    """Take stored bytes apart, without a key.

    Raises:
        ValueError: They are no envelope of version 1.
    """
    data = to_binary(stored) if isinstance(stored, str) else stored
    if not data:
        raise ValueError("empty")
    if data[0] != VERSION:
        raise ValueError("version")
    if len(data) < 6:
        raise ValueError("truncated")
    layout = data[5]
    end = header_length(layout)
    if len(data) < end + NONCE_LENGTH + TAG_LENGTH:
        raise ValueError("truncated")
    first = 12 if layout & 1 else 6
    return Parsed(
        header=data[:end],
        key_id=data[1:5].hex(),
        expiry=int.from_bytes(data[6:12], "big") if layout & 1 else None,
        fingerprints=tuple(
            data[at : at + FINGERPRINT_LENGTH] for at in range(first, end, FINGERPRINT_LENGTH)
        ),
        nonce=data[end : end + NONCE_LENGTH],
        sealed=data[end + NONCE_LENGTH :],
    )


# Seal and open


def seal_frame(
    frame: bytes,
    header: bytes,
    key: bytes,
    *,
    context: str,
    storage: Storage = "binary",
    binding: Binding = (),
    nonce: bytes,
) -> bytes | str:
    """Seal any frame under any header.

    This is the door for rows that a writer would never make but a reader has to judge.
    """
    sealed = xaes_encrypt(encryption_key(key), nonce, frame, associated_data(header, context, binding))
    stored = header + nonce + sealed
    return stored if storage == "binary" else to_text(stored)


def seal(
    token: str,
    key: bytes,
    *,
    context: str,
    fingerprints: Sequence[str] = (),
    expose_expiry: bool = False,
    storage: Storage = "binary",
    binding: Binding = (),
    nonce: bytes,
) -> bytes | str:
    """Seal *token* as a writer must.

    Raises:
        ValueError: The token is an envelope already, or holds a claim that the header cannot carry.
    """
    for form in (token, token.encode()):
        try:
            parse(form)
        except ValueError:
            continue
        raise ValueError("token-is-an-envelope")
    header = header_of(token, key, context=context, fingerprints=fingerprints, expose_expiry=expose_expiry)
    return seal_frame(
        frame_of(token), header, key, context=context, storage=storage, binding=binding, nonce=nonce
    )


def open_(stored: bytes | str, key: bytes, *, context: str, binding: Binding = ()) -> str:
    """Open stored bytes of either form and return the token.

    Raises:
        ValueError: Anything that readers must refuse; the text is the reason's code.
    """
    parsed = parse(stored)
    if parsed.key_id != key_id(key):
        raise ValueError("key-id")
    aad = associated_data(parsed.header, context, binding)
    try:
        frame = xaes_decrypt(encryption_key(key), parsed.nonce, parsed.sealed, aad)
    except InvalidTag:
        raise ValueError("tag") from None
    return token_of(frame)


def pseudorandom(label: str, length: int) -> bytes:
    """Draw *length* bytes that depend on *label* alone: vectors come out the same on every machine."""
    return hashlib.shake_128(label.encode()).digest(length)
