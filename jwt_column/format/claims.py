"""Claims of a payload, read as PyJWT reads them (RFC 7519 section 4), and their form in an envelope's header.

Nothing is verified. A claim that an envelope cannot index counts as absent (envelope-v1, "Fingerprints"), so that an
index aid never decides whether a token is stored.
"""

from __future__ import annotations

import json
from json.scanner import make_scanner
from typing import Any, Final

#: The largest ``exp`` that an envelope can hold, in seconds since 1970; one more means "no ``exp``".
MAX_EXPIRY: Final = 2**48 - 2

#: The end of the year 9999: a later time is one in milliseconds.
LATEST_EXPIRY: Final = 253_402_300_799

# An integer of more digits counts as absent; Python writes and reads no longer one by default.
_TOO_LONG: Final = 10**4300

_scan_once: Final = make_scanner(json.JSONDecoder())  # type: ignore[arg-type]  # typeshed: itself


def parse_object(data: bytes) -> dict[str, Any] | None:
    """Return the JSON object that these bytes hold, or None if they hold something else.

    As ``json.loads`` reads bytes, and so PyJWT: UTF-8 with or without a mark, UTF-16, UTF-32, NaN and Infinity; of
    duplicate members the last one counts.
    """
    try:
        # UTF-8 without a mark or white space around it, as nearly every payload. In no other encoding does JSON
        # pass this, and json.loads() would look for them first.
        text = data.decode()
        parsed, end = _scan_once(text, 0)
        if end != len(text):
            parsed = json.loads(data)
    except (ValueError, StopIteration):
        parsed = _parse_long_integers(data)
    except RecursionError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _parse_long_integers(data: bytes) -> Any:
    """Return the JSON value of these bytes, with integers of too many digits as infinity; None if it is none."""
    try:
        return json.loads(data, parse_int=parse_integer)
    except (ValueError, RecursionError):
        return None


def parse_integer(text: str) -> int | float:
    """Return a JSON integer; infinity for one of more digits than Python reads, which no claim may be."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def claim_input(value: object) -> bytes | None:
    """Return the input of a claim's fingerprint: ``s`` and UTF-8, or ``i`` and decimal digits.

    None for a value without a fingerprint: any other JSON type, a text without a UTF-8 form, an integer of more than
    4,300 digits.
    """
    if isinstance(value, str):
        try:
            return b"s" + value.encode()
        except UnicodeEncodeError:
            return None
    if isinstance(value, int) and not isinstance(value, bool) and -_TOO_LONG < value < _TOO_LONG:
        return b"i%d" % value
    return None


def expiry_of(claims: dict[str, Any] | None, name: str = "exp") -> int | None:
    """Return ``exp`` of these claims, or the claim of another name, in whole seconds since 1970, rounded down.

    None without ``exp``, and for one that an envelope cannot hold: not a number, negative, or not below 2**48 - 1.
    """
    exp = None if claims is None else claims.get(name)
    if type(exp) is int:
        return exp if 0 <= exp <= MAX_EXPIRY else None
    return int(exp) if type(exp) is float and 0 <= exp < MAX_EXPIRY + 1 else None
