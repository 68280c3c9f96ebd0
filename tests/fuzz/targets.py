"""The targets. Each takes any bytes and raises nothing but the errors that the function under test documents.

The first byte of an input chooses among the variants of a target; see :func:`pick`.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Final, TypeVar

from jwt_column import (
    JWT,
    ConfigurationError,
    DecryptionError,
    InvalidTokenError,
    KeyRing,
    KeyRingError,
    decrypt_token,
)
from jwt_column.fleet import _from_json as report_members
from jwt_column.format.claims import expiry_of, parse_object
from jwt_column.format.frame import pack, unpack
from jwt_column.format.readable import has_token
from jwt_column.keys.ring_file.format import RingFile
from jwt_column.providers import open_source, open_wrapper
from migrations_helpers.formats import FernetReader, JWEReader, SQLAlchemyUtilsReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["CONTEXT", "RING", "TARGETS"]

T = TypeVar("T")

#: The keys of the corpora.
RING: Final = KeyRing([bytes(range(32)), bytes(range(32, 64))])
CONTEXT: Final = "fuzz.token"
FOREIGN_KEY: Final = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
READERS: Final = (
    FernetReader(key=FOREIGN_KEY),
    JWEReader(key=bytes(range(32))),
    SQLAlchemyUtilsReader(key=FOREIGN_KEY, engine="AesEngine"),
    SQLAlchemyUtilsReader(key=FOREIGN_KEY, engine="AesGcmEngine"),
    SQLAlchemyUtilsReader(key=FOREIGN_KEY, engine="FernetEngine"),
)


def pick(data: bytes, variants: Sequence[T]) -> tuple[T, bytes]:
    """Return the variant that the first byte chooses, and the rest of the input."""
    return variants[data[0] % len(variants)] if data else variants[0], data[1:]


def envelope(data: bytes) -> None:
    """Open a stored value, as bytes or as text."""
    is_text, rest = pick(data, (False, True))
    with contextlib.suppress(DecryptionError, KeyRingError):
        decrypt_token(rest.decode("latin-1") if is_text else rest, RING, context=CONTEXT)


def claims(data: bytes) -> None:
    """Make a token of a text, pack it, and read its claims."""
    expiry_of(parse_object(data))
    text = data.decode("latin-1")
    has_token(text)
    try:
        token = JWT(text)
    except InvalidTokenError:
        return
    assert unpack(pack(text)) == text
    with contextlib.suppress(InvalidTokenError):
        expiry_of(token.unverified_claims)


def ring_file(data: bytes) -> None:
    """Read a key-ring file; one that is accepted is written so that it reads the same."""
    try:
        file = RingFile.from_bytes(data)
    except KeyRingError:
        return
    assert RingFile.from_bytes(file.to_bytes()) == file


def uris(data: bytes) -> None:
    """Open a ring or a KEK by its URI, which does no I/O."""
    is_ring, rest = pick(data, (True, False))
    uri = rest.decode("utf-8", "replace")
    with contextlib.suppress(ConfigurationError):
        open_source(uri) if is_ring else open_wrapper(uri)


def foreign(data: bytes) -> None:
    """Read another library's ciphertext."""
    reader, rest = pick(data, READERS)
    with contextlib.suppress(DecryptionError):
        reader(rest)


def fleet(data: bytes) -> None:
    """Read a row of the table of a fleet; one that is read is written so that it reads the same."""
    members = report_members(data.decode("utf-8", "replace"))
    if members is not None:
        assert report_members(json.dumps(members)) == members


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "envelope": envelope,
    "claims": claims,
    "ring_file": ring_file,
    "uris": uris,
    "foreign": foreign,
    "fleet": fleet,
}
