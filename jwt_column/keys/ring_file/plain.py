"""Files of plain keys: one key to a line, the active one first; ``#`` begins a line of comment.

Keys that are malformed, and a file that others may read, raise a KeyRingError, which says where.
"""

from __future__ import annotations

import os
import stat
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from typing import TYPE_CHECKING, Final

from ...errors import KeyRingError
from ...format.base64url import decode_canonical, encode
from ..data_key import DataKey
from ..snapshot import index_keys
from . import disk as _disk

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_KEY_CHARACTERS: Final = 43

# A larger file is not a file of keys.
_MAX_BYTES: Final = 64 * 1024


def read_plain_keys(path: Path, data: bytes, mode: int) -> tuple[DataKey, ...]:
    """Return the keys of a file of plain keys with this path, these bytes, which are secret, and these permissions."""
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyRingError(
            f"{path} is open to its group or to others (mode {mode:04o}); run: chmod 600 {path}"
        )
    if len(data) > _MAX_BYTES:
        raise KeyRingError(f"{path} has more than {_MAX_BYTES} bytes; it is not a key file")
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise KeyRingError(f"{path} is a text in UTF-16; save it in UTF-8")
    try:
        text = data.removeprefix(BOM_UTF8).decode()
    except UnicodeDecodeError:
        text = None
    if text is None:
        raise KeyRingError(f"{path} is not a text file in UTF-8")
    keys = []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        refuse_swallowed_key(line, f"{path}, line {number}")
        if not line or line.startswith("#"):
            continue
        keys.append(key_of(line, f"{path}, line {number}"))
    if not keys:
        raise KeyRingError(f"{path} holds no key; 'jwt-column keys generate --file {path}' makes one")
    return tuple(keys)


def key_of(text: str, where: str) -> DataKey:
    """Return the key of a text."""
    try:
        return DataKey(text)
    except KeyRingError as error:
        raise KeyRingError(f"{where}: {error}") from None


def refuse_swallowed_key(line: str, where: str) -> None:
    """Raise a KeyRingError that says where for a line of comment that a key follows."""
    if line.startswith("#") and _ends_with_key(line):
        raise KeyRingError(
            f"{where}: a key follows a comment, as after an append to a file without a line feed at its end; put the "
            "key on a line of its own, or remove it"
        )


def _ends_with_key(comment: str) -> bool:
    """Return True if a key follows the words of a comment. A comment of a key alone is a key that was commented out."""
    text = comment.lstrip("#").strip().removesuffix("=")
    return len(text) > _KEY_CHARACTERS and decode_canonical(text[-_KEY_CHARACTERS:]) is not None


def key_file_bytes(keys: Iterable[bytes | str]) -> bytes:
    """Return the bytes of a file of plain keys, which make a key ring, so that it can be loaded. Secret."""
    ring = index_keys([DataKey(key) for key in keys], None)
    text = "# jwt-column data keys, the active one first; keep this file secret and backed up\n"
    text += "".join(f"{encode(key.secret_material())}\n" for key in ring.in_order())
    return text.encode()


def write_key_file(path: Path, keys: Iterable[bytes | str], *, overwrite: bool = False) -> None:
    """Write keys to a file that only its owner can read, atomically.

    Args:
        path: Path of the file. Its directory must exist.
        keys: As :class:`KeyRing` takes them, the active key first. Secret.
        overwrite: Replace an existing file; its keys are lost. The target of a symbolic link is replaced, not the
            link.

    Raises:
        KeyRingError: The keys do not make a key ring; nothing was changed.
        ConfigurationError: The file exists, or cannot be written; nothing was changed.
    """
    data = key_file_bytes(keys)
    (_disk.replace if overwrite else _disk.create)(path, data, 0o600)
