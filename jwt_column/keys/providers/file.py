"""``file:PATH``: a key-ring file, whose keys are wrapped; or plain keys, one to a line, the first one active.

A key-ring file is JSON and may be readable by others. In a file of plain keys ``#`` begins a line of comment, and
nobody but its owner may read it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from ...errors import ConfigurationError, JWTColumnError, KeyRingError
from ...format.base64url import encode
from ..ring import DataKey, KeyRing
from ..ring_file import disk as _disk
from ..ring_file.format import MAX_BYTES, KeyState, RingFile, is_ring_file
from ..ring_file.unwrapping import unwrap
from .local import LocalWrapper

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..wrapping import KeyWrapper

__all__ = [
    "FileSource",
    "key_file_bytes",
    "open_source",
    "open_wrapper",
    "path_of",
    "read_plain_keys",
    "read_ring_file",
    "uri_of",
    "write_key_file",
]

# A key is 43 characters; a file of plain keys past this size is a wrong path.
_MAX_PLAIN_BYTES = 64 * 1024


def open_source(rest: str) -> FileSource:
    """Return the source of what follows ``file:``."""
    return FileSource(path_of(rest))


def open_wrapper(rest: str) -> KeyWrapper:
    """Return the wrapper under the first key of a file of plain keys."""
    return LocalWrapper(_PlainSource(path_of(rest)))


def path_of(rest: str) -> Path:
    """Return the path in what follows ``file:``, as in ``file:///a/b``, ``file:/a/b`` and ``file:b``.

    A relative path counts from where the process is now, not from where it is at a later reload.

    Raises:
        ConfigurationError: It is no path on this machine.
    """
    path = unquote(rest.removeprefix("//") if rest.startswith("///") else rest)
    if not path or path.startswith("//") or "\0" in path:
        raise ConfigurationError("file: is followed by a path on this machine, as in file:/etc/app/jwt.keys")
    return Path(path).absolute()


def uri_of(path: Path) -> str:
    """Return the URI of a file, absolute and percent-encoded."""
    return f"file:{quote(str(path.absolute()))}"


class FileSource:
    """The keys in one file, wrapped or plain."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        """The URI: it holds no secret."""
        return uri_of(self._path)

    def load(self) -> tuple[DataKey, ...]:
        """Return the keys, the active one first."""
        path = self._path
        data, mode = _disk.read(path, MAX_BYTES)
        return _load_ring(path, data, mode) if is_ring_file(data) else read_plain_keys(path, data, mode)


class _PlainSource(FileSource):
    """KEKs in a file of plain keys: a key-ring file whose keys are under itself would never load."""

    def load(self) -> tuple[DataKey, ...]:
        data, mode = _disk.read(self._path, MAX_BYTES)
        if is_ring_file(data):
            raise KeyRingError(
                f"{self._path} is a key-ring file, and its keys wrap no others; name a file of plain keys, an HSM or "
                "a KMS"
            )
        return read_plain_keys(self._path, data, mode)


def read_ring_file(path: Path, data: bytes, mode: int) -> RingFile:
    """Return what the bytes of a key-ring file say. Nobody vouches for it yet.

    Raises:
        KeyRingError: Others may write it, or it is no key-ring file.
    """
    if os.name == "posix" and mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KeyRingError(f"its group or others may write {path} (mode {mode:04o}); run: chmod go-w {path}")
    try:
        return RingFile.from_bytes(data)
    except KeyRingError as error:
        raise _located(error, path) from None


def _load_ring(path: Path, data: bytes, mode: int) -> tuple[DataKey, ...]:
    file = read_ring_file(path, data, mode)
    try:
        keys = unwrap(file)
    except JWTColumnError as error:
        raise _located(error, path) from None
    # The active key first, and of each tenant its active one first.
    order = sorted(file.keys, key=lambda key: (key is not file.active, key.state is not KeyState.ACTIVE))
    return tuple(keys[entry.id] for entry in order)


def _located(error: JWTColumnError, path: Path) -> JWTColumnError:
    """Put the file's name in front of an error, without the frames in which keys are."""
    error.args = (f"{path}: {error}",)
    return error.with_traceback(None)


def read_plain_keys(path: Path, data: bytes, mode: int) -> tuple[DataKey, ...]:
    """Return the keys of a file of plain keys.

    Raises:
        KeyRingError: Others may read or write it, or a line of it is no key, or it has none.
    """
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyRingError(
            f"{path} is open to its group or to others (mode {mode:04o}); run: chmod 600 {path}"
        )
    if len(data) > _MAX_PLAIN_BYTES:
        raise KeyRingError(f"{path} has more than {_MAX_PLAIN_BYTES} bytes; it is no key file")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = None
    if text is None:
        raise KeyRingError(f"{path} is not a text file")
    keys = []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        try:
            keys.append(DataKey(line))
        except KeyRingError as error:
            raise KeyRingError(f"{path}, line {number}: {error}") from None
    if not keys:
        raise KeyRingError(f"{path} holds no key; 'jwt-column keys generate --file {path}' makes one")
    return tuple(keys)


def key_file_bytes(keys: Iterable[bytes | str]) -> bytes:
    """Return a file of plain keys.

    Raises:
        KeyRingError: The keys are no key ring: a file that cannot be loaded must not replace one that can.
    """
    text = "# jwt-column data keys, the active one first; keep this file secret and backed up\n"
    text += "".join(f"{encode(key.secret_material())}\n" for key in KeyRing(keys).keys)
    return text.encode()


def write_key_file(path: Path, keys: Iterable[bytes | str], *, overwrite: bool = False) -> None:
    """Write keys to a file that only its owner can read, whole or not at all.

    Args:
        path: Where the file goes. Its directory must exist.
        keys: As :class:`KeyRing` takes them, the active key first. Secret.
        overwrite: Whether a file that is there is replaced; its keys are then gone. At the end of a symbolic
            link, the file that it leads to is replaced.

    Raises:
        KeyRingError: The keys are no key ring; nothing was changed.
        ConfigurationError: The file is there, or cannot be written; nothing was changed.
    """
    data = key_file_bytes(keys)
    (_disk.replace if overwrite else _disk.create)(path, data, 0o600)
