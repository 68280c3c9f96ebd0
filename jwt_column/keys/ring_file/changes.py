"""The changes of a key-ring file. Each returns a new :class:`RingFile` with the next revision.

Nothing is read, written or wrapped here: keys come wrapped, and :meth:`RingFile.sealed` authenticates the result. A key
that the file does not hold raises an UnknownKeyError, a change that its keys do not allow a KeyRingError.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import KeyRingError, UnknownKeyError
from ..snapshot import parse_key_id
from .format import DestroyedKey, KeyEntry, KeyState, RingFile

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime


def created(
    name: str,
    keys: Sequence[tuple[str, bytes]],
    wrapped_by: str,
    now: datetime,
    *,
    tenants: Mapping[str, str] | None = None,
) -> RingFile:
    """Return a new file of wrapped keys by id; *tenants* maps key ids to tenants.

    The first key is active, and so is the first of each tenant; the others only decrypt. The creation time of a key
    from elsewhere is unknown; it gets that of the file.
    """
    entries: list[KeyEntry] = []
    for key_id, wrapped in keys:
        tenant = (tenants or {}).get(key_id)
        is_first = all(entry.tenant != tenant for entry in entries)
        state = KeyState.ACTIVE if is_first else KeyState.DEACTIVATED
        activated = now if is_first else None
        entries.append(KeyEntry(key_id, state, wrapped_by, wrapped, now, activated, tenant=tenant))
    return RingFile(name, 1, tuple(entries))


def added(
    file: RingFile, key_id: str, wrapped_by: str, wrapped: bytes, now: datetime, *, tenant: str | None = None
) -> RingFile:
    """Return the file with one more key, which only decrypts. The first key of a tenant is active at once."""
    entry = KeyEntry(key_id, KeyState.PRE_ACTIVATION, wrapped_by, wrapped, now, tenant=tenant)
    if all(key.tenant != tenant for key in file.keys):
        entry = replace(entry, state=KeyState.ACTIVE, activated=now)
    return _next(file, [*file.keys, entry])


def activated(file: RingFile, key_id: str, now: datetime) -> RingFile:
    """Return the file with this key active, in place of the ring's or its tenant's active key."""
    chosen = _entry(file, key_id)
    if chosen.state is KeyState.COMPROMISED:
        raise KeyRingError(
            f"key {key_id} is marked as compromised and does not become active again", key_id=key_id
        )
    before = file.active_of(chosen.tenant)
    if chosen is before:
        raise KeyRingError(f"key {key_id} is active already", key_id=key_id)

    def change(key: KeyEntry) -> KeyEntry:
        if key is chosen:
            return replace(key, state=KeyState.ACTIVE, activated=now, deactivated=None)
        if key is before:
            return replace(key, state=KeyState.DEACTIVATED, deactivated=now)
        return key

    return _next(file, map(change, file.keys))


def compromised(file: RingFile, key_id: str, now: datetime) -> RingFile:
    """Return the file with this key marked as compromised: it decrypts, and never becomes active again."""
    chosen = _entry(file, key_id)
    if chosen.state is KeyState.ACTIVE:
        raise KeyRingError(
            f"key {key_id} is the active key, and new rows are written under it; activate another key first",
            key_id=key_id,
        )
    if chosen.state is KeyState.COMPROMISED:
        raise KeyRingError(f"key {key_id} is marked as compromised already", key_id=key_id)
    marked = replace(chosen, state=KeyState.COMPROMISED, compromised=now)
    return _next(file, (marked if key is chosen else key for key in file.keys))


def removed(file: RingFile, key_ids: Collection[str]) -> RingFile:
    """Return the file without these keys."""
    for key_id in key_ids:
        entry = _entry(file, key_id)
        if entry is file.active:
            raise KeyRingError(
                f"key {key_id} is the active key, which is not removed; activate another one, and re-encrypt",
                key_id=key_id,
            )
        others = [key.id for key in file.keys if key.tenant == entry.tenant and key.id not in key_ids]
        if entry.state is KeyState.ACTIVE and others:
            raise KeyRingError(
                f"key {key_id} is the active key of the tenant {entry.tenant}, which has others ({', '.join(others)}); "
                "activate another one first, or remove all keys of the tenant together",
                key_id=key_id,
            )
    return _next(file, (key for key in file.keys if key.id not in key_ids))


def destroyed(file: RingFile, key_ids: Collection[str], now: datetime) -> RingFile:
    """Return the file without these keys, and with the note that they were destroyed on purpose.

    A key that was removed earlier gets the note, too.
    """
    noted = {key.id for key in file.destroyed}
    marks = []
    for key_id in key_ids:
        parse_key_id(key_id)
        if key_id in noted:
            raise KeyRingError(f"key {key_id} is marked as destroyed already", key_id=key_id)
        entry = file.entry(key_id)
        marks.append(DestroyedKey(key_id, now, None if entry is None else entry.tenant))
    removed(file, [key_id for key_id in key_ids if file.entry(key_id) is not None])
    kept = (key for key in file.keys if key.id not in key_ids)
    return _next(replace(file, destroyed=(*file.destroyed, *marks)), kept)


def rewrapped(file: RingFile, wrapped_by: str, wrapped: Sequence[bytes]) -> RingFile:
    """Return the file with all of its keys under one KEK; *wrapped* has them in the file's order."""
    return _next(
        file,
        (
            replace(key, wrapped_by=wrapped_by, wrapped=ciphertext)
            for key, ciphertext in zip(file.keys, wrapped, strict=True)
        ),
    )


def _entry(file: RingFile, key_id: str) -> KeyEntry:
    entry = file.entry(key_id)
    if entry is None:
        held = ", ".join(key.id for key in file.keys)
        raise UnknownKeyError(f"the key ring has no key {key_id} (it has {held})", key_id=key_id)
    return entry


def _next(file: RingFile, keys: Iterable[KeyEntry]) -> RingFile:
    changed = replace(file, revision=file.revision + 1, keys=tuple(keys))
    changed.check()
    return changed
