"""A snapshot of a ring's keys: by key id, the active key, and each tenant's active key."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import KeyRingError, UnknownKeyError
from ..format.envelope import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .data_key import DataKey

_KEY_ID: Final = re.compile(r"[0-9a-f]{8}\Z")


class Keys(NamedTuple):
    """The keys of a ring at one moment. A reload replaces the whole value, so a reader never sees half of it.

    Attributes:
        active: The active key of the ring.
        by_prefix: Every key by the first 5 bytes of its envelopes.
        tenants: The active key of each tenant.
    """

    active: DataKey
    by_prefix: dict[bytes, DataKey]
    tenants: dict[str, DataKey]

    @property
    def encrypting(self) -> tuple[str, ...]:
        """The ids of the active key and of each tenant's active key."""
        return (self.active.id, *(key.id for key in self.tenants.values()))

    def in_order(self) -> tuple[DataKey, ...]:
        """Return every key, the active one first."""
        if len(self.by_prefix) == 1:
            return (self.active,)  # Of most rings, at every look-up.
        return (self.active, *(key for key in self.by_prefix.values() if key is not self.active))

    def successor(self, key: DataKey) -> DataKey:
        """Return the key that rows under this one are re-encrypted under: a tenant's rows stay with the tenant."""
        # A tenant that was added after this snapshot has no other key in it.
        return self.active if key.tenant is None else self.tenants.get(key.tenant, key)


def index_keys(keys: Iterable[DataKey], active: str | None) -> Keys:
    """Return the snapshot of these keys.

    Args:
        keys: Each tenant's active key before its other keys.
        active: Key id of the active key; None for the first.

    Raises:
        KeyRingError: No key, one key twice, or an active key that belongs to a tenant.
        UnknownKeyError: *active* is not among the keys.
    """
    by_prefix: dict[bytes, DataKey] = {}
    tenants: dict[str, DataKey] = {}
    for key in keys:
        if key.stamp_prefix in by_prefix:
            raise KeyRingError(
                f"two keys of the ring have the id {key.id}; a key id is derived from its key, so one key is there "
                "twice",
                key_id=key.id,
            )
        by_prefix[key.stamp_prefix] = key
        if key.tenant is not None:
            tenants.setdefault(key.tenant, key)
    if not by_prefix:
        raise KeyRingError("a key ring needs at least one key; make one with generate_key()")
    prefix = next(iter(by_prefix)) if active is None else VERSION + parse_key_id(active)
    chosen = by_prefix.get(prefix)
    if chosen is None:
        held = ", ".join(key.id for key in by_prefix.values())
        raise UnknownKeyError(
            f"the key ring has no key {active} to make active (it has {held})", key_id=active
        )
    if chosen.tenant is not None:
        raise KeyRingError(
            f"key {chosen.id} encrypts rows of the tenant {chosen.tenant} only and cannot be the ring's active key; "
            "ring.using() encrypts under it",
            key_id=chosen.id,
        )
    return Keys(chosen, by_prefix, tenants)


def parse_key_id(key_id: str) -> bytes:
    """Return the 4 bytes of a key id; raise a KeyRingError for anything but 8 lower-case hex digits."""
    if not isinstance(key_id, str) or not _KEY_ID.match(key_id):
        raise KeyRingError("a key id is 8 lower-case hex digits, as in KeyRing.key_ids")
    return bytes.fromhex(key_id)
