"""The ring that a command works on: a key-ring file or a file of plain keys, with one interface as far as it goes."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ...errors import ConfigurationError
from ...keys.providers.file import path_of
from ...keys.ring_file import disk as _disk
from ...keys.ring_file.format import MAX_BYTES, KeyEntry, KeyState, RingFile, is_ring_file
from ...keys.ring_file.plain import key_file_bytes, read_plain_keys
from ...keys.ring_file.store import StoredRing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ...keys.ring import DataKey


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
    """Return the ring that a command works on; no KEK is asked yet."""
    path = ring_path(file)
    data, mode = _disk.read(path, MAX_BYTES)
    if is_ring_file(data):
        return StoredRing.of(path, data, mode)
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
    """A file of plain keys, in the shape of a :class:`StoredRing`: the first is active, the others decrypt only.

    Nothing but the order of the keys is known of them: its entries have no KEK and no times.
    """

    def __init__(self, path: Path, data: bytes, keys: Sequence[DataKey]) -> None:
        self.path = path
        self._data = data
        self._keys = {key.id: key for key in keys}
        states = (KeyState.ACTIVE, *[KeyState.DEACTIVATED] * (len(keys) - 1))
        self.file: RingFile = RingFile(
            "plain",
            1,
            tuple(KeyEntry(key.id, state, "", b"", None) for key, state in zip(keys, states, strict=True)),
        )

    def unwrap(self) -> dict[str, DataKey]:
        """Return the keys by key id."""
        return dict(self._keys)

    def write(
        self, changed: RingFile, keys: Mapping[str, DataKey], *, keep_previous: bool = True
    ) -> PlainFile:
        """Write the file as it was changed, without its comments, and return the new state."""
        in_order = [keys[entry.id] for entry in active_first(changed)]
        data = key_file_bytes(key.secret_material() for key in in_order)
        _disk.update(self.path, self._data, data, keep_previous=keep_previous)
        return PlainFile(self.path, data, in_order)


def active_first(file: RingFile) -> list[KeyEntry]:
    """Return the keys of a ring, the active one first."""
    return sorted(file.keys, key=lambda entry: entry is not file.active)
