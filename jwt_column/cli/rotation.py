"""The state of a rotation, read from the ring's file alone: nothing else has to be kept between two runs."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ConfigurationError, JWTColumnError
from ..keys.ring_file import disk as _disk
from ..keys.ring_file.format import KeyState
from .keys.rings import PlainFile, open_ring

if TYPE_CHECKING:
    from datetime import datetime

    from ..keys.ring_file.store import StoredRing


class Rotation(NamedTuple):
    """How far the rotation of a ring, or of a tenant's keys, is.

    Attributes:
        active: The active key.
        new: The key that was added and is not active yet, or None.
        replaced: The key that the active one took the place of, if the ring still has it, or None.
        active_since: The time at which the active key became active; None if that is not known.
    """

    active: str
    new: str | None
    replaced: str | None
    active_since: datetime | None = None


def rotation_of(ring: StoredRing | PlainFile, tenant: str | None = None, to: str | None = None) -> Rotation:
    """Return the state of a rotation, of a tenant's keys or of the ring's; *to* is its new key, if that is known."""
    if isinstance(ring, PlainFile):
        if tenant is not None:
            raise ConfigurationError(f"{ring.path} is a file of plain keys, which has no tenants (--tenant)")
        return _of_plain_file(ring, to)
    return _of_ring_file(ring, tenant, to)


def _of_ring_file(ring: StoredRing, tenant: str | None, to: str | None) -> Rotation:
    keys = [key for key in ring.file.keys if key.tenant == tenant]
    if not keys:
        raise ConfigurationError(
            f"the ring has no keys of the tenant {tenant} (--tenant); 'jwt-column keys add --tenant' makes one"
        )
    active = ring.file.active_of(tenant)
    waiting = [key.id for key in keys if key.state is KeyState.PRE_ACTIVATION]
    if to is not None:
        _refuse_absent(to, [key.id for key in keys])
        waiting = [] if to == active.id else [to]
    if len(waiting) > 1:
        raise _ambiguous(waiting)
    # Both times are those of one change of the file. Keys that are kept for backups have others.
    replaced = None
    for key in keys:
        if key.deactivated is not None and key.deactivated == active.activated and not waiting:
            # The last one, if several rotations were made within the second that a file can tell.
            replaced = key.id
    return Rotation(active.id, next(iter(waiting), None), replaced, active.activated)


def _of_plain_file(ring: PlainFile, to: str | None) -> Rotation:
    """Return the state of a file of plain keys: its previous version shows the last change."""
    ids = [key.id for key in ring.file.keys]
    before: list[str] = []
    with suppress(JWTColumnError):
        previous = open_ring(_disk.previous_of(ring.path.resolve()))
        before = [key.id for key in previous.file.keys] if isinstance(previous, PlainFile) else []
    replaced = before[0] if before and before[0] != ids[0] and before[0] in ids else None
    if to is not None:
        _refuse_absent(to, ids)
        return Rotation(ids[0], to, None) if to != ids[0] else Rotation(ids[0], None, replaced)
    if len(ids) > 1 and not before:
        raise _ambiguous(ids)
    added = [key_id for key_id in ids[1:] if key_id not in before]
    if len(added) > 1:
        raise _ambiguous(added)
    return Rotation(ids[0], next(iter(added), None) if replaced is None else None, replaced)


def _refuse_absent(key_id: str, held: list[str]) -> None:
    if key_id not in held:
        raise ConfigurationError(
            f"the ring has no key {key_id} to rotate to (--to); it has {', '.join(held)}"
        )


def _ambiguous(key_ids: list[str]) -> ConfigurationError:
    return ConfigurationError(
        f"the file does not show which of the keys {', '.join(key_ids)} is to become active, or is so already; name it "
        "with --to"
    )
