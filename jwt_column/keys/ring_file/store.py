"""A key-ring file on disk: opened with its keys, changed, and written so that no other command's change is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import JWTColumnError, KeyRingError
from ..providers.file import read_ring_file
from . import disk as _disk
from .format import MAX_BYTES, RingFile
from .unwrapping import unwrap

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..ring import DataKey

__all__ = ["StoredRing", "create_ring_file"]

# Anybody may read it: that is what the wrapping is for. Nobody but its owner may write it.
_MODE = 0o644


@dataclass(frozen=True)
class StoredRing:
    """A key-ring file as it was read.

    Attributes:
        path: Where it is.
        data: Its bytes.
        file: What they say.
    """

    path: Path
    data: bytes
    file: RingFile

    @classmethod
    def read(cls, path: Path) -> StoredRing:
        """Return a file without asking its KEKs; nobody vouches for it yet.

        Raises:
            KeyRingError: It is no key-ring file, or others may write it.
            KeyUnavailableError: It cannot be read.
        """
        data, mode = _disk.read(path, MAX_BYTES)
        return cls(path, data, read_ring_file(path, data, mode))

    def unwrap(self) -> dict[str, DataKey]:
        """Return its keys by key id, which vouch for the file.

        Raises:
            KeyRingError: A key is not what the file says, or the file was changed without its keys.
            KeyUnavailableError: A KEK is not to be had.
            ConfigurationError: The URI of a KEK, or what it refers to, is wrong.
        """
        try:
            return unwrap(self.file)
        except JWTColumnError as error:
            error.args = (f"{self.path}: {error}",)
            raise error.with_traceback(None) from None

    def write(
        self, changed: RingFile, keys: Mapping[str, DataKey], *, keep_previous: bool = True
    ) -> StoredRing:
        """Write the next revision, vouched for by its keys, and return it.

        Raises:
            ConfigurationError: Somebody changed the file meanwhile, or it cannot be written; nothing was changed.
            KeyRingError: The next revision could not be loaded; nothing was changed.
        """
        data = _loadable(changed.sealed(keys))
        _disk.update(self.path, self.data, data, keep_previous=keep_previous)
        return StoredRing.read(self.path)


def create_ring_file(path: Path, file: RingFile, keys: Mapping[str, DataKey]) -> StoredRing:
    """Write a new key-ring file, vouched for by its keys, and return it.

    Raises:
        ConfigurationError: The file is there, or cannot be written; nothing was changed.
        KeyRingError: It could not be loaded; nothing was changed.
    """
    _disk.create(path, _loadable(file.sealed(keys)), _MODE)
    return StoredRing.read(path)


def _loadable(file: RingFile) -> bytes:
    """Return the bytes of a file that says the same when it is read."""
    data = file.to_bytes()
    if len(data) > MAX_BYTES:
        raise KeyRingError(f"the key-ring file would have {len(data)} bytes; it has at most {MAX_BYTES}")
    if RingFile.from_bytes(data) != file:
        raise KeyRingError("the key-ring file would not say what it is meant to; nothing was written")
    return data
