"""Fernet and MultiFernet of ``cryptography``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from jwt_column.errors import ConfigurationError

from ._reader import Reader, ascii_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._reader import Opener


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FernetReader(Reader):
    """Reads Fernet tokens: AES-128-CBC and HMAC-SHA256, base64url, beginning with ``gAAAA``.

    A column of text or of bytes. The time in the Fernet token is not looked at: a value does not expire by being old.

    Args:
        key_from: Where the keys are: ``"env:NAME"``, or a function without arguments. Best in a revision.
        key: The keys themselves, as ``key_from`` gives them: one or several of 32 bytes in base64url, 44 characters,
            separated by commas or white space, or as a sequence. Each is tried, so their order does not matter.
            Secret. A reader that has them cannot be pickled, so it does not work in shards.
        plaintext: ``"adopt"`` takes rows that hold a compact JWT in the clear as they are; ``"refuse"`` lists them.

    Raises:
        ConfigurationError: Neither or both of ``key_from`` and ``key``, or no Fernet key.
    """

    key: str | bytes | Iterable[str | bytes] | None = None
    key_from: str | Callable[[], str | bytes | Iterable[str | bytes]] | None = None

    def _opener(self, key: Any) -> Opener:
        return fernet_opener(_split(key))


def fernet_opener(keys: Iterable[str | bytes]) -> Opener:
    """Return the function that opens Fernet tokens under any of several keys.

    Raises:
        ConfigurationError: There is none, or one that is malformed.
    """
    fernets = [_parse_key(key) for key in keys]
    usable = [fernet for fernet in fernets if fernet is not None]
    if not usable or len(usable) < len(fernets):
        raise ConfigurationError("a Fernet key has 32 bytes in base64url, 44 characters; this is none")
    decrypt = MultiFernet(usable).decrypt

    def open_token(text: str) -> str | None:
        try:
            data = decrypt(text.encode())
        except InvalidToken:
            return None
        return ascii_text(data)

    return open_token


def _parse_key(key: str | bytes) -> Fernet | None:
    try:
        return Fernet(key)
    except (ValueError, TypeError):
        return None


def _split(key: Any) -> list[str | bytes]:
    """Return the keys of a text, or of a sequence."""
    if isinstance(key, bytes):
        key = ascii_text(key) or ""
    if isinstance(key, str):
        return [part for part in re.split(r"[\s,]+", key) if part]
    return list(key) if isinstance(key, Iterable) else []
