"""``file:PATH``: a key-ring file, whose keys are wrapped; or plain keys, one to a line, the first one active.

A key-ring file is JSON, and others may read it. A file of plain keys may be read by its owner only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from ...errors import ConfigurationError, KeyRingError
from ..ring_file import disk as _disk
from ..ring_file.format import MAX_BYTES, KeyState, RingFile, is_ring_file
from ..ring_file.plain import read_plain_keys
from ..ring_file.store import StoredRing
from .local import LocalWrapper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from ..data_key import DataKey
    from ..wrapping import KeyWrapper

#: KEKs that need no other system.
_LOCAL_KEKS: Final = ("file:", "env:")


def open_source(rest: str) -> FileSource:
    """Return the source of a ``file:`` URI, given without its scheme."""
    return FileSource(path_of(rest))


def open_wrapper(rest: str) -> KeyWrapper:
    """Return the wrapper whose KEK is the first key of a file of plain keys."""
    return LocalWrapper(_PlainSource(path_of(rest)))


def path_of(rest: str) -> Path:
    """Return the path of a ``file:`` URI, given without its scheme: ``///a/b``, ``/a/b`` or ``b``.

    A relative path is resolved now, not against the working directory of a later reload.
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
        #: The URI. It holds no secret.
        self.name: str = uri_of(path)
        self.keks: Sequence[str] | None = None
        self.revision: int = 0
        #: The times at which keys became active, by key id, as of the last load.
        self.activated: Mapping[str, datetime] = {}
        #: The times at which keys were marked as destroyed, by key id, as of the last load.
        self.destroyed: Mapping[str, datetime] = {}

    def stamp(self) -> tuple[int, ...] | None:
        """Return the file's identity, size and times; None if it is not there."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def is_local(self) -> bool:
        """Return True if the keys are plain, or wrapped by a KEK of this machine."""
        try:
            data, _ = _disk.read(self._path, MAX_BYTES)
            return not is_ring_file(data) or all(
                entry.wrapped_by.startswith(_LOCAL_KEKS) for entry in RingFile.from_bytes(data).keys
            )
        except KeyRingError:
            return True

    def load(self) -> tuple[DataKey, ...]:
        """Return the keys, the active one first."""
        data, mode = _disk.read(self._path, MAX_BYTES)
        if not is_ring_file(data):
            self.revision, self.activated, self.destroyed = 0, {}, {}
            return read_plain_keys(self._path, data, mode)
        stored = StoredRing.of(self._path, data, mode)
        keys, file = stored.unwrap(self.keks), stored.file
        self.revision = file.revision
        self.activated = {entry.id: entry.activated for entry in file.keys if entry.activated is not None}
        self.destroyed = {key.id: key.destroyed for key in file.destroyed}
        # The active key first, and each tenant's active key before its others.
        order = sorted(file.keys, key=lambda key: (key is not file.active, key.state is not KeyState.ACTIVE))
        return tuple(keys[entry.id] for entry in order)


class _PlainSource(FileSource):
    """KEKs in a file of plain keys. A key-ring file is refused: one that wraps itself would never load."""

    def load(self) -> tuple[DataKey, ...]:
        data, mode = _disk.read(self._path, MAX_BYTES)
        if is_ring_file(data):
            raise KeyRingError(
                f"{self._path} is a key-ring file, and its keys cannot be KEKs; name a file of plain keys, an HSM or "
                "a KMS"
            )
        return read_plain_keys(self._path, data, mode)
