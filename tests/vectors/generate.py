"""Write the vectors of envelope v1: ``python -m tests.vectors.generate``.

Every row comes from :mod:`tests.support.independent_envelope`, never from the project, so the project cannot agree
with its own mistake. Everything that a writer would draw at random is drawn from SHAKE-128 of a label here:
the same rows come out on every machine.

A row that stands in a file is a promise about bytes that lie in somebody's database. The generator therefore
only appends: it stops, and writes nothing, when a committed row would change or vanish.
"""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict, TypeVar

from tests.support import independent_envelope as independent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

HERE = Path(__file__).parent
ACCEPT = HERE / "envelope_v1_accept.json"
REJECT = HERE / "envelope_v1_reject.json"

Frame = Literal["packed", "verbatim"]
ErrorName = Literal[
    "MalformedEnvelopeError", "UnsupportedVersionError", "UnknownKeyError", "AuthenticationError"
]


class BoundRow(TypedDict):
    """One bound row value; *value* is the text, the integer, the UUID's text or the bytes in hex."""

    name: str
    type: Literal["text", "integer", "uuid", "bytes"]
    value: str | int


class AcceptRow(TypedDict):
    """An envelope that opens to *token*, and everything that went into it."""

    name: str
    storage: independent.Storage
    key: str
    key_id: str
    context: str
    fingerprints: list[str]
    expose_expiry: bool
    binding: list[BoundRow]
    nonce: str
    frame: Frame
    token: str
    expiry: int | None
    fingerprint_values: list[str]
    stored: str


class RejectRow(TypedDict):
    """Stored bytes that a reader with *key* must refuse by raising *error*."""

    name: str
    storage: independent.Storage
    key: str
    context: str
    binding: list[BoundRow]
    error: ErrorName
    reason: str
    stored: str


class Case(TypedDict):
    """What an accept row is made from; everything but the name and the token has a default."""

    name: str
    token: str
    key: NotRequired[bytes]
    context: NotRequired[str]
    fingerprints: NotRequired[list[str]]
    expose_expiry: NotRequired[bool]
    binding: NotRequired[list[BoundRow]]
    nonce: NotRequired[bytes]
    frame: NotRequired[Frame]


Row = TypeVar("Row", AcceptRow, RejectRow)


class ChangedRowError(Exception):
    """A committed row would change or vanish."""


# Material

FIRST_KEY = independent.pseudorandom("jwt-column vectors: first data key", 32)
SECOND_KEY = independent.pseudorandom("jwt-column vectors: second data key", 32)
CONTEXT = "sessions.token"


def bound_values(rows: Iterable[BoundRow]) -> list[tuple[str, independent.BoundValue]]:
    """Turn the JSON form of bound row values into the values themselves."""
    read: dict[str, Callable[[str | int], independent.BoundValue]] = {
        "text": str,
        "integer": int,
        "uuid": lambda value: uuid.UUID(str(value)),
        "bytes": lambda value: bytes.fromhex(str(value)),
    }
    return [(row["name"], read[row["type"]](row["value"])) for row in rows]


def nonce_for(name: str) -> bytes:
    """Draw the nonce of the row called *name*; its two storage forms hold the same bytes and share it."""
    return independent.pseudorandom(f"jwt-column vectors: nonce of {name}", independent.NONCE_LENGTH)


def token_with(payload: str, *, alg: str = "HS256", signature_length: int = 32) -> str:
    """Compose a compact JWS whose signature is pseudorandom: an envelope never looks at signatures."""
    header = f'{{"alg":"{alg}","typ":"JWT"}}'
    signature = independent.pseudorandom(f"jwt-column vectors: signature {alg} {payload}", signature_length)
    parts = (header.encode(), payload.encode(), signature)
    return ".".join(independent.to_base64url(part) for part in parts)


def rfc_token(source: str) -> str:
    """Return the example token of an RFC section from the file beside this one."""
    tokens = json.loads((HERE / "rfc_tokens.json").read_text(encoding="utf-8"))["tokens"]
    return next(str(row["token"]) for row in tokens if str(row["source"]).startswith(source))


def claims_token() -> str:
    """Compose the token with one claim of every kind that a fingerprint can carry."""
    return token_with(
        '{"iss":"https://issuer.example","sub":"Zo\u00eb \U0001f98a","jti":"0b7e4c1a","uid":42,"debt":-7,'
        '"zero":0,"big":340282366920938463463374607431768211456,"empty":"","escaped":"\\u00e9\\n","gr\u00f6\u00dfe":"XL",'
        '"exp":1300819380}'
    )


# Accept


def accept_cases() -> list[Case]:
    """List the envelopes that every reader opens."""
    claims = claims_token()
    hs256 = rfc_token("RFC 7515 A.1")
    unsigned = rfc_token("RFC 7515 A.5")
    encrypted = rfc_token("RFC 7519 A.1")
    direct = ".".join(
        independent.to_base64url(part)
        for part in (
            b'{"alg":"dir","enc":"A256GCM"}',
            b"",
            independent.pseudorandom("jwt-column vectors: JWE initialization vector", 12),
            independent.pseudorandom("jwt-column vectors: JWE ciphertext", 77),
            independent.pseudorandom("jwt-column vectors: JWE tag", 16),
        )
    )
    # A signature of 32 bytes leaves stray bits in its last character. Setting one decodes to the same bytes.
    stray = hs256[:-1] + chr(ord(hs256[-1]) + 1)
    seven = ["token", "jti", "sub", "uid", "iss", "absent", "gr\u00f6\u00dfe"]
    text: BoundRow = {"name": "tenant", "type": "text", "value": "M\u00fcller & S\u00f6hne"}
    integer: BoundRow = {"name": "id", "type": "integer", "value": 7}
    identifier: BoundRow = {"name": "id", "type": "uuid", "value": "6ba7b810-9dad-11d1-80b4-00c04fd430c8"}
    binary: BoundRow = {"name": "digest", "type": "bytes", "value": "00ff10"}
    return [
        {"name": "HS256, the example of RFC 7515 A.1", "token": hs256},
        {"name": "RS256, the example of RFC 7515 A.2", "token": rfc_token("RFC 7515 A.2")},
        {"name": "ES256, the example of RFC 7515 A.3", "token": rfc_token("RFC 7515 A.3")},
        {"name": "ES512 over a payload that is not JSON", "token": rfc_token("RFC 7515 A.4")},
        {"name": "unsigned: the last segment is empty", "token": unsigned},
        {"name": "encrypted JWT, the example of RFC 7519 A.1", "token": encrypted},
        {"name": "nested JWT, the example of RFC 7519 A.2", "token": rfc_token("RFC 7519 A.2")},
        {
            "name": "EdDSA-sized signature",
            "token": token_with('{"sub":"1"}', alg="EdDSA", signature_length=64),
        },
        {
            "name": "RS256-sized signature, every header field",
            "token": token_with('{"jti":"5c1d","exp":1893456000}', alg="RS256", signature_length=256),
            "fingerprints": ["token", "jti"],
            "expose_expiry": True,
        },
        {"name": "JWE with direct encryption: the second segment is empty", "token": direct},
        {"name": "second data key", "token": hs256, "key": SECOND_KEY},
        {"name": "context outside ASCII", "token": hs256, "context": "sch\u00fcssel.\u8868"},
        {
            "name": "context with a dot, a space and a slash",
            "token": hs256,
            "context": "app/public. sessions.token",
        },
        {"name": "nonce of zeros", "token": hs256, "nonce": bytes(24)},
        {"name": "nonce of ones", "token": hs256, "nonce": b"\xff" * 24},
        {"name": "stray low bits in the signature", "token": stray, "frame": "verbatim"},
        {"name": "padded signature", "token": hs256 + "=", "frame": "verbatim"},
        {"name": "opaque token", "token": "opaque:2f6d9c0e-51aa-4b1e", "frame": "verbatim"},
        {"name": "opaque token outside ASCII", "token": "t\u00f6k\u20acn \U0001f511", "frame": "verbatim"},
        {"name": "one segment in base64url", "token": "b3BhcXVl"},
        {"name": "two segments in base64url", "token": "b3BhcXVl.dG9rZW4"},
        {"name": "six segments in base64url, some of them empty", "token": "b3BhcXVl..dG9rZW4...QQ"},
        {"name": "a dot and nothing else", "token": "."},
        {"name": "verbatim although it could be packed", "token": hs256, "frame": "verbatim"},
        {"name": "exp, an integer", "token": hs256, "expose_expiry": True},
        {
            "name": "exp, a float, is rounded down",
            "token": token_with('{"exp":1300819380.999}'),
            "expose_expiry": True,
        },
        {"name": "exp with an exponent", "token": token_with('{"exp":1.5e9}'), "expose_expiry": True},
        {"name": "exp of zero", "token": token_with('{"exp":0}'), "expose_expiry": True},
        {"name": "greatest exp", "token": token_with('{"exp":281474976710654}'), "expose_expiry": True},
        {"name": "no exp: all ones", "token": token_with('{"sub":"1"}'), "expose_expiry": True},
        {"name": "no exp to read in a JWE: all ones", "token": encrypted, "expose_expiry": True},
        {
            "name": "no exp to read in an opaque token: all ones",
            "token": "opaque:2f6d9c0e-51aa-4b1e",
            "frame": "verbatim",
            "expose_expiry": True,
        },
        {
            "name": "no exp to read in a payload that is not JSON: all ones",
            "token": rfc_token("RFC 7515 A.4"),
            "expose_expiry": True,
        },
        *(
            Case(name=f"fingerprints in the header: {count}", token=claims, fingerprints=seven[:count])
            for count in range(len(seven) + 1)
        ),
        {
            "name": "seven fingerprints and the expiry",
            "token": claims,
            "fingerprints": seven,
            "expose_expiry": True,
        },
        {
            "name": "the same fingerprints under the second data key",
            "token": claims,
            "key": SECOND_KEY,
            "fingerprints": seven,
        },
        {
            "name": "the same fingerprints in another context",
            "token": claims,
            "context": "archive.token",
            "fingerprints": seven,
        },
        {
            "name": "integer claims: negative, zero, above 64 bits",
            "token": claims,
            "fingerprints": ["debt", "zero", "big"],
        },
        {
            "name": "an empty claim is not a missing claim",
            "token": claims,
            "fingerprints": ["empty", "absent"],
        },
        {
            "name": "a claim is fingerprinted as its characters, not as its JSON",
            "token": claims,
            "fingerprints": ["escaped"],
        },
        {
            "name": "the text and the integer of one number differ",
            "token": token_with('{"text":"42","number":42}'),
            "fingerprints": ["text", "number"],
        },
        {
            "name": "a JWE has no claims: zeros, and a fingerprint of its characters",
            "token": encrypted,
            "fingerprints": ["jti", "token"],
        },
        {
            "name": "an opaque token has no claims: zeros, and a fingerprint of its characters",
            "token": "opaque:2f6d9c0e-51aa-4b1e",
            "frame": "verbatim",
            "fingerprints": ["jti", "token"],
        },
        {"name": "bound to a text", "token": hs256, "binding": [text]},
        {"name": "bound to an integer", "token": hs256, "binding": [integer]},
        {
            "name": "bound to a negative integer above 64 bits",
            "token": hs256,
            "binding": [{"name": "id", "type": "integer", "value": -18446744073709551617}],
        },
        {"name": "bound to a UUID", "token": hs256, "binding": [identifier]},
        {"name": "bound to bytes", "token": hs256, "binding": [binary]},
        {
            "name": "bound to an empty text",
            "token": hs256,
            "binding": [{"name": "tenant", "type": "text", "value": ""}],
        },
        {
            "name": "bound to four values, with every header field",
            "token": claims,
            "fingerprints": ["token", "jti"],
            "expose_expiry": True,
            "binding": [text, integer, {**identifier, "name": "gr\u00f6\u00dfe"}, binary],
        },
    ]


def accept_row(case: Case, storage: independent.Storage) -> AcceptRow:
    """Seal one case in one storage form."""
    key = case.get("key", FIRST_KEY)
    context = case.get("context", CONTEXT)
    names = case.get("fingerprints", [])
    expose_expiry = case.get("expose_expiry", False)
    binding = case.get("binding", [])
    frame = case.get("frame", "packed")
    nonce = case.get("nonce", nonce_for(case["name"]))
    header = independent.header_of(
        case["token"], key, context=context, fingerprints=names, expose_expiry=expose_expiry
    )
    packed = independent.packed_frame(case["token"])
    framed = packed if frame == "packed" else independent.verbatim_frame(case["token"])
    if framed is None:
        raise AssertionError(f"{case['name']}: this token cannot be packed")
    stored = independent.seal_frame(
        framed, header, key, context=context, storage=storage, binding=bound_values(binding), nonce=nonce
    )
    parsed = independent.parse(stored)
    return AcceptRow(
        name=f"{case['name']} ({storage})",
        storage=storage,
        key=key.hex(),
        key_id=independent.key_id(key),
        context=context,
        fingerprints=names,
        expose_expiry=expose_expiry,
        binding=binding,
        nonce=nonce.hex(),
        frame=frame,
        token=case["token"],
        expiry=parsed.expiry,
        fingerprint_values=[value.hex() for value in parsed.fingerprints],
        stored=stored if isinstance(stored, str) else stored.hex(),
    )


def accept_rows() -> list[AcceptRow]:
    """Seal every case in both storage forms."""
    forms: tuple[independent.Storage, ...] = ("binary", "text")
    return [accept_row(case, storage) for case in accept_cases() for storage in forms]


# Reject


class RejectRows:
    """Collects reject rows; its methods fill in what most rows have in common."""

    def __init__(self) -> None:
        self.rows: list[RejectRow] = []

    def add(
        self,
        name: str,
        stored: bytes | str,
        error: ErrorName,
        reason: str,
        *,
        context: str = CONTEXT,
        binding: Sequence[BoundRow] = (),
    ) -> None:
        """Add one row, once the independent reader has refused it for that very reason."""
        opens_as = None
        try:
            opens_as = independent.open_(stored, FIRST_KEY, context=context, binding=bound_values(binding))
        except ValueError as refusal:
            if str(refusal) != reason:
                raise AssertionError(f"{name}: refused as {refusal}, not as {reason}") from refusal
        if opens_as is not None:
            raise AssertionError(f"{name}: opens")
        self.rows.append(
            RejectRow(
                name=name,
                storage="text" if isinstance(stored, str) else "binary",
                key=FIRST_KEY.hex(),
                context=context,
                binding=list(binding),
                error=error,
                reason=reason,
                stored=stored if isinstance(stored, str) else stored.hex(),
            )
        )

    def malformed(self, name: str, stored: bytes | str, reason: str) -> None:
        """Add a row that contradicts the format."""
        self.add(name, stored, "MalformedEnvelopeError", reason)

    def forged(
        self,
        name: str,
        stored: bytes | str,
        *,
        context: str = CONTEXT,
        binding: Sequence[BoundRow] = (),
    ) -> None:
        """Add a row that has the format but not the tag."""
        self.add(name, stored, "AuthenticationError", "tag", context=context, binding=binding)


def envelope(
    name: str,
    *,
    frame: bytes | None = None,
    header: bytes | None = None,
    key: bytes = FIRST_KEY,
    binding: Sequence[BoundRow] = (),
) -> bytes:
    """Seal any frame under any header; by default a valid row with an expiry and two fingerprints."""
    token = claims_token()
    stored = independent.seal_frame(
        independent.frame_of(token) if frame is None else frame,
        independent.header_of(
            token, FIRST_KEY, context=CONTEXT, fingerprints=["token", "jti"], expose_expiry=True
        )
        if header is None
        else header,
        key,
        context=CONTEXT,
        binding=bound_values(binding),
        nonce=nonce_for(name),
    )
    assert isinstance(stored, bytes)
    return stored


def flipped(stored: bytes, position: int, bit: int = 0) -> bytes:
    """Flip one bit of one byte; a negative position counts from the end."""
    changed = bytearray(stored)
    changed[position] ^= 1 << bit
    return bytes(changed)


def replaced(stored: bytes, position: int, value: int) -> bytes:
    """Set one byte."""
    changed = bytearray(stored)
    changed[position] = value
    return bytes(changed)


def add_headers(rows: RejectRows, stored: bytes) -> None:
    """Add unknown versions, reserved bits, truncations and unknown keys, in both forms."""
    digits = stored[:44].hex()
    body = independent.to_base64url(stored[44:])
    rows.malformed("empty (binary)", b"", "empty")
    rows.malformed("empty (text)", "", "empty")
    for version in (0x00, 0x02, 0xFF):
        name = f"version {version:#04x}"
        rows.add(f"{name} (binary)", replaced(stored, 0, version), "UnsupportedVersionError", "version")
        rows.add(
            f"{name} (text)", f"jc{version:02x}{digits[2:]}.{body}", "UnsupportedVersionError", "version"
        )
    for bit in (4, 5, 6, 7):
        changed = flipped(stored, 5, bit)
        name = f"reserved layout bit {bit}"
        rows.malformed(f"{name} (binary)", changed, "reserved-layout-bit")
        rows.malformed(f"{name} (text)", f"jc{changed[:44].hex()}.{body}", "reserved-layout-bit")
    boundaries = {
        "version": 1,
        "key id": 5,
        "layout": 6,
        "expiry": 12,
        "first fingerprint": 28,
        "last fingerprint": 44,
        "first half of the nonce": 56,
        "nonce": 68,
    }
    for field, end in boundaries.items():
        rows.malformed(f"nothing after the {field} (binary)", stored[:end], "truncated")
        if end > 1:
            rows.malformed(f"{field} one byte short (binary)", stored[: end - 1], "truncated")
        if end < 44:
            rows.malformed(
                f"header ends after the {field} (text)", f"jc{digits[: 2 * end]}.{body}", "truncated"
            )
        else:
            rest = independent.to_base64url(stored[44:end])
            rows.malformed(f"nothing after the {field} (text)", f"jc{digits}.{rest}", "truncated")
    rows.malformed("one byte short of a tag (binary)", stored[: 68 + 15], "truncated")
    rows.malformed(
        "one byte short of a tag (text)",
        f"jc{digits}.{independent.to_base64url(stored[44 : 68 + 15])}",
        "truncated",
    )
    rows.malformed(
        "layout that names more fingerprints than there are bytes (binary)",
        replaced(stored[:84], 5, 7 << 1 | 1),
        "truncated",
    )
    foreign = bytes.fromhex(independent.key_id(SECOND_KEY))
    unknown = {
        "key id with a flipped bit": flipped(stored, 4),
        "key id of zeros": stored[:1] + bytes(4) + stored[5:],
        "key id of another key": stored[:1] + foreign + stored[5:],
    }
    for name, changed in unknown.items():
        rows.add(f"{name} (binary)", changed, "UnknownKeyError", "key-id")
        rows.add(f"{name} (text)", independent.to_text(changed), "UnknownKeyError", "key-id")


def add_forgeries(rows: RejectRows, stored: bytes) -> None:
    """Add everything that only the tag can catch."""
    changes = {
        "expiry": flipped(stored, 11),
        "first fingerprint": flipped(stored, 12),
        "last fingerprint": flipped(stored, 43, 7),
        "first half of the nonce": flipped(stored, 44),
        "second half of the nonce": flipped(stored, 67, 7),
        "first byte of the ciphertext": flipped(stored, 68),
        "first byte of the tag": flipped(stored, -16, 7),
        "last byte of the tag": flipped(stored, -1),
    }
    for field, changed in changes.items():
        rows.forged(f"flipped bit in the {field} (binary)", changed)
        rows.forged(f"flipped bit in the {field} (text)", independent.to_text(changed))
    rows.forged("layout without the expiry that is there", flipped(stored, 5))
    rows.forged("layout with one fingerprint fewer than there are", replaced(stored, 5, 1 << 1 | 1))
    rows.forged("layout with one fingerprint more than there are", replaced(stored, 5, 3 << 1 | 1))
    rows.forged("last byte cut off", stored[:-1])
    rows.forged("ciphertext cut down to one byte", stored[:69] + stored[-16:])
    rows.forged("trailing zero byte (binary)", stored + b"\x00")
    rows.forged("trailing newline (binary)", stored + b"\n")
    rows.forged("two envelopes in a row (binary)", stored + stored)
    rows.forged("other context", stored, context="archive.token")
    rows.forged("context in another case", stored, context="Sessions.token")
    rows.forged("context with a trailing space", stored, context=CONTEXT + " ")
    rows.forged("first half of the context", stored, context="sessions")
    rows.forged("other context (text)", independent.to_text(stored), context="archive.token")
    rows.forged(
        "sealed by another key under this key's id",
        envelope("sealed by another key under this key's id", key=SECOND_KEY),
    )
    other = envelope("another row of the column")
    rows.forged("nonce of another row", stored[:44] + other[44:68] + stored[68:])
    rows.forged("frame of another row", stored[:68] + other[68:])


def add_bindings(rows: RejectRows) -> None:
    """Add envelopes that were moved to another row, or whose row values were changed."""
    tenant: BoundRow = {"name": "tenant", "type": "text", "value": "5"}
    identifier: BoundRow = {"name": "id", "type": "integer", "value": 7}
    stored = envelope("bound to a text and an integer", binding=[tenant, identifier])
    unbound = envelope("bound to nothing")
    rows.forged("bound row read without its binding", stored)
    rows.forged("unbound row read with a binding", unbound, binding=[tenant])
    rows.forged("one bound value fewer", stored, binding=[tenant])
    rows.forged("other bound text", stored, binding=[{**tenant, "value": "6"}, identifier])
    rows.forged("other bound integer", stored, binding=[tenant, {**identifier, "value": 8}])
    rows.forged("bound values in another order", stored, binding=[identifier, tenant])
    rows.forged("bound value under another name", stored, binding=[{**tenant, "name": "owner"}, identifier])
    rows.forged(
        "bound integer read as a text", stored, binding=[tenant, {"name": "id", "type": "text", "value": "7"}]
    )
    rows.forged(
        "bound text read as bytes",
        stored,
        binding=[{"name": "tenant", "type": "bytes", "value": "35"}, identifier],
    )
    rows.forged(
        "bound UUID read as its sixteen bytes",
        envelope(
            "bound to a UUID",
            binding=[{"name": "id", "type": "uuid", "value": "6ba7b810-9dad-11d1-80b4-00c04fd430c8"}],
        ),
        binding=[{"name": "id", "type": "bytes", "value": "6ba7b8109dad11d180b400c04fd430c8"}],
    )
    # Both bindings are the same characters one after the other; only the length fields tell them apart.
    rows.forged(
        "bound characters moved from a name to its value",
        envelope("characters moved", binding=[{"name": "a", "type": "text", "value": "sb"}]),
        binding=[{"name": "as", "type": "text", "value": "b"}],
    )


def add_frames(rows: RejectRows) -> None:
    """Add frames that are sealed correctly and say nothing that can be read."""
    frames = {
        "empty frame": (b"", "frame-empty"),
        "frame of kind 0x02": (b"\x02" + claims_token().encode(), "frame-kind"),
        "frame of kind 0xff": (b"\xff", "frame-kind"),
        "frame without its kind": (claims_token().encode(), "frame-kind"),
        "verbatim frame that is not UTF-8": (b"\x00eyJ\xff", "frame-not-utf-8"),
        "verbatim frame with half a surrogate pair": (b"\x00\xed\xa0\x80", "frame-not-utf-8"),
        "packed frame without a count": (b"\x01", "frame-truncated"),
        "packed frame of 0 segments": (b"\x01\x00", "segment-count"),
        "packed frame of 0 segments and some bytes": (b"\x01\x00{}", "segment-count"),
        "packed frame without its lengths": (b"\x01\x03", "frame-truncated"),
        "packed frame with half a length": (b"\x01\x03\x00\x00\x00", "frame-truncated"),
        "packed frame of 255 segments in 9 bytes": (b"\x01\xff" + b"\x00" * 7, "frame-truncated"),
        "first segment past the frame": (b"\x01\x03\x00\x03\x00\x00{}", "segment-lengths"),
        "second segment past the frame": (b"\x01\x03\x00\x02\x00\x01{}", "segment-lengths"),
        "segment of 65535 bytes past the frame": (b"\x01\x02\xff\xff{}", "segment-lengths"),
    }
    for name, (frame, reason) in frames.items():
        rows.malformed(name, envelope(name, frame=frame), reason)


def add_texts(rows: RejectRows, stored: bytes) -> None:
    """Add texts that another decoder might forgive; forgiving would give one envelope several texts."""
    text = independent.to_text(stored)
    digits, body = text[2:].split(".")
    first_letter = next(at for at, digit in enumerate(digits) if digit.isalpha())
    upper = digits[:first_letter] + digits[first_letter].upper() + digits[first_letter + 1 :]
    bad_headers = {
        "one upper-case hex digit": upper,
        "upper-case hex": digits.upper(),
        "letter that is no hex digit": digits[:2] + "g" + digits[3:],
        "hex with a 0x before it": "0x" + digits[2:],
        "space before a hex pair": digits[:2] + " " + digits[2:],
        "newline after the hex": digits + "\n",
        "fullwidth digit": "0\uff11" + digits[2:],
        "minus sign in the hex": digits[:2] + "-" + digits[3:],
    }
    for name, header in bad_headers.items():
        rows.malformed(name, f"jc{header}.{body}", "header-not-lower-case-hex")
    rows.malformed("odd number of hex digits: one too few", f"jc{digits[:-1]}.{body}", "header-odd-hex")
    rows.malformed("odd number of hex digits: one too many", f"jc{digits}0.{body}", "header-odd-hex")
    rows.malformed("header one byte too long for its layout", f"jc{digits}00.{body}", "header-too-long")
    rows.malformed("header one byte too short for its layout", f"jc{digits[:-2]}.{body}", "truncated")
    moved = independent.to_base64url(stored[43:])
    rows.malformed("dot one byte too early for the layout", f"jc{digits[:-2]}.{moved}", "truncated")
    rows.malformed("prefix alone", "jc", "no-dot")
    rows.malformed("prefix and dot alone", "jc.", "truncated")
    rows.malformed("missing dot", f"jc{digits}{body}", "no-dot")
    rows.malformed("header without dot and body", f"jc{digits}", "no-dot")
    rows.malformed("header without body", f"jc{digits}.", "truncated")
    last = body[-1]
    assert len(body) % 4 in (2, 3), "the body must end in a character that has stray bits"
    bad_bodies = {
        "padded body": body + "=" * (-len(body) % 4),
        "body with one padding character too many": body + "=" * (-len(body) % 4 + 1),
        "stray low bits in the last character": body[:-1] + chr(ord(last) + 1),
        "body of an impossible length": body + "A" * (5 - len(body) % 4),
        "plus sign in the body": body[:8] + "+" + body[9:],
        "slash in the body": body[:8] + "/" + body[9:],
        "space in the body": body[:8] + " " + body[8:],
        "newline after the body": body + "\n",
        "carriage return and newline after the body": body + "\r\n",
        "zero character after the body": body + "\x00",
        "dot after the body": body + ".",
        "second body": f"{body}.{body}",
        "letter outside ASCII in the body": body[:8] + "\u00e9" + body[9:],
        "two dots": "." + body,
    }
    for name, changed in bad_bodies.items():
        rows.malformed(name, f"jc{digits}.{changed}", "body-not-canonical-base64url")
    rows.malformed(
        "newline after a body of whole groups", whole_groups() + "\n", "body-not-canonical-base64url"
    )
    rows.malformed(
        "padding after a body of whole groups", whole_groups() + "=", "body-not-canonical-base64url"
    )
    rows.forged("trailing characters that are canonical base64url", whole_groups() + "AAAA")


def whole_groups() -> str:
    """Return the text of an envelope whose body is a whole number of base64 groups.

    What follows such a body cannot be caught by its length alone.
    """
    name = "body of whole groups"
    # 24 bytes of nonce, 16 of tag and 5 of frame are 15 groups of three bytes.
    text = independent.to_text(envelope(name, frame=b"\x00eyJ."))
    assert len(text.split(".")[1]) % 4 == 0
    return text


def reject_rows() -> list[RejectRow]:
    """List what every reader refuses."""
    rows = RejectRows()
    stored = envelope("the row that the others are made from")
    add_headers(rows, stored)
    add_forgeries(rows, stored)
    add_bindings(rows)
    add_frames(rows)
    add_texts(rows, stored)
    return rows.rows


# Files

ABOUT_ACCEPT = [
    "Every row opens to its token under its key, context and binding.",
    "stored is hex for binary rows and the text itself for text rows.",
    "expiry and fingerprint_values are what stands in the header.",
    "Rows are added and never edited.",
]
ABOUT_REJECT = [
    "A reader whose ring holds only key raises error; reason says why, in a word.",
    "stored is hex for binary rows and the text itself for text rows.",
    "Rows are added and never edited.",
]


def appended(committed: Sequence[Row], generated: Sequence[Row]) -> list[Row]:
    """Return the committed rows, untouched, and the generated rows that are new.

    Raises:
        ChangedRowError: A committed row is generated differently, or no longer, or two rows share a name.
    """
    by_name = {row["name"]: row for row in generated}
    if len(by_name) != len(generated):
        raise ChangedRowError("Two generated rows share a name.")
    for row in committed:
        if by_name.pop(row["name"], None) != row:
            raise ChangedRowError(f"The committed row {row['name']!r} would change or vanish.")
    rows = list(committed)
    rows.extend(by_name.values())
    return rows


def committed_rows(path: Path) -> list[Any]:
    """Return the rows of a file; no file is no rows."""
    if not path.exists():
        return []
    rows: list[Any] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def render(about: list[str], rows: object) -> str:
    """Write a file's text; ASCII alone, so that no editor normalizes a character."""
    return json.dumps({"about": about, "rows": rows}, indent=1, ensure_ascii=True) + "\n"


def main() -> int:
    """Bring both files up to date, or neither."""
    try:
        accepted = appended(committed_rows(ACCEPT), accept_rows())
        rejected = appended(committed_rows(REJECT), reject_rows())
    except ChangedRowError as error:
        print(error, file=sys.stderr)
        return 1
    ACCEPT.write_text(render(ABOUT_ACCEPT, accepted), encoding="utf-8")
    REJECT.write_text(render(ABOUT_REJECT, rejected), encoding="utf-8")
    print(f"{len(accepted)} rows to accept, {len(rejected)} rows to reject")
    return 0


if __name__ == "__main__":
    sys.exit(main())
