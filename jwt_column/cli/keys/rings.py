"""The ring that a command works on: a key-ring file or a file of plain keys, with one interface as far as it goes."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from ...errors import ConfigurationError, KeyRingError, UnknownKeyError
from ...keys.providers.file import path_of
from ...keys.ring_file import disk as _disk
from ...keys.ring_file.format import MAX_BYTES, KeyState, is_ring_file
from ...keys.ring_file.plain import key_file_bytes, read_plain_keys
from ...keys.ring_file.store import StoredRing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ...keys.ring import DataKey

__all__ = [
    "KeyView",
    "PlainFile",
    "destroyed_views_of",
    "now",
    "open_ring",
    "open_wrapped",
    "ring_path",
    "views_of",
]


class KeyView(NamedTuple):
    """A key as commands show it. A plain key has an id, and is the first or not; nothing else is known of it."""

    id: str
    state: str
    tenant: str | None = None
    created: datetime | None = None
    activated: datetime | None = None
    deactivated: datetime | None = None
    compromised: datetime | None = None
    destroyed: datetime | None = None
    wrapped_by: str | None = None


def now() -> datetime:
    """Return the time, as a key-ring file has it."""
    return datetime.now(UTC).replace(microsecond=0)


def ring_path(file: Path | None) -> Path:
    """Return where the ring is."""
    if file is not None:
        return file.absolute()
    scheme, _, rest = os.environ.get("JWT_COLUMN_KEYRING", "").partition(":")
    if scheme.lower() != "file":
        raise ConfigurationError(
            "which key ring? Give --file PATH, or set JWT_COLUMN_KEYRING to the URI of a file, such as "
            "file:/etc/app/ring.json"
        )
    return path_of(rest)


def open_ring(file: Path | None) -> StoredRing | PlainFile:
    """Return the ring that a command works on; no KEK is asked yet.

    Raises:
        ConfigurationError: No file is named.
        KeyRingError: It is no ring, or others have too many rights on it.
        KeyUnavailableError: It cannot be read.
    """
    path = ring_path(file)
    data, mode = _disk.read(path, MAX_BYTES)
    if is_ring_file(data):
        return StoredRing.read(path)
    return PlainFile(path, data, read_plain_keys(path, data, mode))


def open_wrapped(file: Path | None, doing: str) -> StoredRing:
    """Return the key-ring file that a command works on."""
    ring = open_ring(file)
    if isinstance(ring, PlainFile):
        raise ConfigurationError(
            f"{ring.path} is a file of plain keys, which cannot {doing}. 'jwt-column keys init --file PATH "
            f"--wrapped-by URI --from file:{ring.path}' makes a key-ring file of it"
        )
    return ring


class PlainFile:
    """A file of plain keys: the first is active, the others decrypt only."""

    def __init__(self, path: Path, data: bytes, keys: Sequence[DataKey]) -> None:
        self.path = path
        self._data = data
        self.keys: list[DataKey] = list(keys)

    def key(self, key_id: str) -> DataKey:
        """Return the key of this id."""
        for key in self.keys:
            if key.id == key_id:
                return key
        held = ", ".join(key.id for key in self.keys)
        raise UnknownKeyError(f"{self.path} has no key {key_id} (it has {held})", key_id=key_id)

    def activate(self, key_id: str) -> None:
        """Move a key to the top."""
        key = self.key(key_id)
        if key is self.keys[0]:
            raise KeyRingError(f"key {key_id} is active already", key_id=key_id)
        self.keys.remove(key)
        self.keys.insert(0, key)

    def remove(self, key_ids: Sequence[str]) -> None:
        """Take keys away."""
        for key_id in key_ids:
            key = self.key(key_id)
            if key is self.keys[0]:
                raise KeyRingError(
                    f"key {key_id} is the active key, which is not removed; activate another one, and re-encrypt",
                    key_id=key_id,
                )
            self.keys.remove(key)

    def write(self, *, keep_previous: bool = True) -> PlainFile:
        """Write the file, without its comments, and return the new state."""
        data = key_file_bytes(key.secret_material() for key in self.keys)
        _disk.update(self.path, self._data, data, keep_previous=keep_previous)
        return PlainFile(self.path, data, self.keys)


def views_of(ring: StoredRing | PlainFile) -> list[KeyView]:
    """Return the keys of a ring, the active one first."""
    if isinstance(ring, PlainFile):
        states = [KeyState.ACTIVE, *["decrypts only"] * len(ring.keys)]
        return [KeyView(key.id, state) for key, state in zip(ring.keys, states, strict=False)]
    times = ("created", "activated", "deactivated", "compromised")
    return [
        KeyView(
            entry.id,
            entry.state.value,
            entry.tenant,
            wrapped_by=entry.wrapped_by,
            **{name: getattr(entry, name) for name in times},
        )
        for entry in sorted(ring.file.keys, key=lambda entry: entry is not ring.file.active)
    ]


def destroyed_views_of(ring: StoredRing | PlainFile) -> list[KeyView]:
    """Return the keys that a ring notes as destroyed."""
    if isinstance(ring, PlainFile):
        return []
    return [KeyView(key.id, "destroyed", key.tenant, destroyed=key.destroyed) for key in ring.file.destroyed]
