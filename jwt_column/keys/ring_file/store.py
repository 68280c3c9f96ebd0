"""A key-ring file on disk: read, unwrapped, and written so that no other command's change is lost.

A file that is no key-ring file, that others may write, or that was changed without its keys raises a KeyRingError; a
file or KEK that cannot be reached, a KeyUnavailableError; a KEK that is not allowed, a ConfigurationError, and so does
a write that fails and changes nothing.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import JWTColumnError, KeyRingError
from . import disk as _disk
from .format import MAX_BYTES, RingFile
from .unwrapping import unwrap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ..data_key import DataKey

# Its keys are wrapped, so anyone may read it. Only its owner may write it.
_MODE = 0o644


@dataclass(frozen=True)
class StoredRing:
    """A key-ring file as it was read: its path, its bytes and its parsed form."""

    path: Path
    data: bytes
    file: RingFile

    @classmethod
    def read(cls, path: Path) -> StoredRing:
        """Read a file without asking its KEKs. It is not authenticated yet."""
        return cls.of(path, *_disk.read(path, MAX_BYTES))

    @classmethod
    def of(cls, path: Path, data: bytes, mode: int) -> StoredRing:
        """Return the file of these bytes and this mode. It is not authenticated yet."""
        if os.name == "posix" and mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise KeyRingError(
                f"{path} may be written by its group or by others (mode {mode:04o}); run: chmod go-w {path}"
            )
        try:
            return cls(path, data, RingFile.from_bytes(data))
        except KeyRingError as error:
            raise _located(error, path) from None

    def unwrap(self, keks: Sequence[str] | None = None) -> dict[str, DataKey]:
        """Return its keys by key id. They have authenticated the file.

        Args:
            keks: The KEK URIs that the application allows; None for those of ``JWT_COLUMN_KEKS``.
        """
        try:
            return unwrap(self.file, keks)
        except JWTColumnError as error:
            raise _located(error, self.path) from None

    def write(
        self, changed: RingFile, keys: Mapping[str, DataKey], *, keep_previous: bool = True
    ) -> StoredRing:
        """Write the next revision, authenticated by its keys, and return it."""
        data = _loadable(changed.sealed(keys))
        _disk.update(self.path, self.data, data, keep_previous=keep_previous)
        return StoredRing.read(self.path)


def create_ring_file(path: Path, file: RingFile, keys: Mapping[str, DataKey]) -> StoredRing:
    """Write a new key-ring file, authenticated by its keys, and return it."""
    _disk.create(path, _loadable(file.sealed(keys)), _MODE)
    return StoredRing.read(path)


def _located(error: JWTColumnError, path: Path) -> JWTColumnError:
    """Prefix an error with the file's path, without its frames, which hold keys."""
    error.args = (f"{path}: {error}",)
    return error.with_traceback(None)


def _loadable(file: RingFile) -> bytes:
    """Return the bytes of a file, checked by reading them back."""
    data = file.to_bytes()
    if len(data) > MAX_BYTES:
        raise KeyRingError(f"the key-ring file would have {len(data)} bytes; it has at most {MAX_BYTES}")
    if RingFile.from_bytes(data) != file:
        raise KeyRingError("the key-ring file would not read back as written; nothing was written")
    return data
