"""The key-ring file, versions 1 and 2: bytes to :class:`RingFile` and back (``docs/reference/key-ring-file.md``).

This module has the format and the macs of the file. It reads, unwraps and writes nothing.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from dataclasses import dataclass, replace
from enum import StrEnum
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from ...errors import KeyRingError
from ...format import base64url
from ..wrapping import AssociatedData, WrappedKey
from .members import TIME, Members, parse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from ..data_key import DataKey

#: The size limit of a file.
MAX_BYTES: Final = 1024 * 1024

#: A ring is loaded whole, and a search asks for the fingerprint under each of its keys.
MAX_KEYS: Final = 1_000

#: Destroyed keys that a file names.
MAX_DESTROYED: Final = 5_000

_FORMAT: Final = "jwt-column key ring"
_VERSION: Final = 1
# Of a file that names destroyed keys, so that an older release says that it is too old for it.
_WITH_DESTROYED: Final = 2
#: The size limit of one wrapped key, in bytes.
MAX_WRAPPED: Final = 4_096
# The largest integer that every JSON library reads exactly (RFC 7493 section 2.2).
_MAX_REVISION: Final = 2**53 - 1

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_KEY_ID: Final = re.compile(r"[0-9a-f]{8}\Z")
_URI: Final = re.compile(r"[a-z][a-z0-9+.-]*:[!-~]{0,2000}\Z")


class KeyState(StrEnum):
    """The states of a key, by NIST SP 800-57 Part 1 revision 5, section 7."""

    #: It decrypts, and no process encrypts under it yet.
    PRE_ACTIVATION = "pre-activation"
    #: It encrypts and decrypts: one key of the ring, and one of each tenant.
    ACTIVE = "active"
    #: It decrypts; another key took its place.
    DEACTIVATED = "deactivated"
    #: It has leaked: it decrypts, and never becomes active again.
    COMPROMISED = "compromised"


#: The times of a key, in chronological order.
_TIMES: Final = ("created", "activated", "deactivated", "compromised")


@dataclass(frozen=True)
class KeyEntry:
    """One key of a key-ring file. Its times are in UTC, to the second; None is one that it has not had, or not known.

    Attributes:
        state: Decides whether the key encrypts.
        wrapped_by: The URI of the KEK. Holds no secret.
        wrapped: The key under the KEK, 1 to 4,096 bytes.
        tenant: The only tenant whose rows it encrypts, or None.
        mac: The mac of the whole file under this key, 32 bytes; empty before the file is sealed.
    """

    id: str
    state: KeyState
    wrapped_by: str
    wrapped: bytes
    created: datetime | None
    activated: datetime | None = None
    deactivated: datetime | None = None
    compromised: datetime | None = None
    tenant: str | None = None
    mac: bytes = b""


@dataclass(frozen=True)
class DestroyedKey:
    """A key that was destroyed on purpose, and when it was marked: nothing under it will ever be read again."""

    id: str
    destroyed: datetime
    tenant: str | None = None


@dataclass(frozen=True)
class RingFile:
    """A key-ring file.

    Attributes:
        name: The ring's name, to which its wrapped keys are bound: 1 to 64 of ``A-Z a-z 0-9 . _ -``.
        revision: 1 for a new file, and 1 more with each change.
        keys: At least one; of those without a tenant exactly one is active, and of each tenant exactly one.
        destroyed: Keys that it no longer holds, and that nobody is to look for.
    """

    name: str
    revision: int
    keys: tuple[KeyEntry, ...]
    destroyed: tuple[DestroyedKey, ...] = ()

    @classmethod
    def from_bytes(cls, data: bytes) -> RingFile:
        """Parse a file. It is not authenticated before :meth:`check_macs`.

        Raises:
            KeyRingError: It is not a key-ring file of version 1 or 2; the message names the place and shows no content.
        """
        top = Members(parse(data), "")
        if top.take("format", str) != _FORMAT:
            raise KeyRingError(f'it is not a key-ring file: its "format" is not "{_FORMAT}"')
        version = top.take("version", int)
        # Version 2 without them would be no version 2 of ours.
        if version != (_WITH_DESTROYED if "destroyed" in top else _VERSION):
            raise KeyRingError(
                f"it is a key-ring file of another version than {_VERSION}, or {_WITH_DESTROYED} with destroyed keys, "
                "which this release does not read; install the release that wrote it, or a newer one"
            )
        name, revision = top.take("ring", str), top.take("revision", int)
        entries = top.take("keys", list)
        gone = top.take("destroyed", list) if version == _WITH_DESTROYED else []
        top.refuse_others()
        keys = tuple(_entry_of(value, number) for number, value in enumerate(entries, 1))
        destroyed = tuple(_destroyed_of(value, number) for number, value in enumerate(gone, 1))
        if version == _WITH_DESTROYED and not destroyed:
            raise KeyRingError('"destroyed" is empty; a file without destroyed keys has version 1')
        file = cls(name, revision, keys, destroyed)
        file.check()
        return file

    def check(self) -> None:
        """Check the file as a whole: name and numbers, each id once, one active key for the ring and each tenant."""
        if not _NAME.match(self.name):
            raise KeyRingError("a ring's name is 1 to 64 of the characters A-Z a-z 0-9 . _ -")
        if not 1 <= self.revision <= _MAX_REVISION:
            raise KeyRingError('"revision" is out of range')
        if not 1 <= len(self.keys) <= MAX_KEYS:
            raise KeyRingError(f"a key-ring file holds 1 to {MAX_KEYS} keys, not {len(self.keys)}")
        if len(self.destroyed) > MAX_DESTROYED:
            raise KeyRingError(
                f"a key-ring file names at most {MAX_DESTROYED} destroyed keys, not {len(self.destroyed)}"
            )
        seen: set[str] = set()
        marked = [key.id for key in self.destroyed]
        for key_id in (*(key.id for key in self.keys), *marked):
            if key_id in seen:
                held = "is there, and marked as destroyed" if key_id in marked else "is there twice"
                raise KeyRingError(f"the key {key_id} {held}", key_id=key_id)
            seen.add(key_id)
        for tenant in (None, *dict.fromkeys(key.tenant for key in self.keys if key.tenant is not None)):
            active = sum(key.tenant == tenant and key.state is KeyState.ACTIVE for key in self.keys)
            if active != 1:
                of = "the ring" if tenant is None else f"the tenant {tenant}"
                raise KeyRingError(f"{of} has {active} active keys; it needs exactly one")

    @property
    def active(self) -> KeyEntry:
        """The ring's active key."""
        return self.active_of(None)

    def active_of(self, tenant: str | None) -> KeyEntry:
        """Return the active key of a tenant, or of the ring for None."""
        return next(key for key in self.keys if key.tenant == tenant and key.state is KeyState.ACTIVE)

    def entry(self, key_id: str) -> KeyEntry | None:
        """Return the entry with this key id, or None."""
        return next((key for key in self.keys if key.id == key_id), None)

    def wrapped_key(self, entry: KeyEntry) -> WrappedKey:
        """Return the wrapped key of an entry, with its associated data."""
        return WrappedKey(entry.wrapped, AssociatedData(self.name, entry.id))

    def canonical(self) -> bytes:
        """Return the bytes that each key authenticates: the file without any ``mac``, by RFC 8785 (JCS)."""
        # All names and texts are printable ASCII and all numbers are integers, so RFC 8785 reduces to sorting by code
        # points and to these separators.
        return json.dumps(self._to_json(with_macs=False), sort_keys=True, separators=(",", ":")).encode()

    def sealed(self, keys: Mapping[str, DataKey]) -> RingFile:
        """Return the file with a mac by each of its keys."""
        text = self.canonical()
        return replace(
            self, keys=tuple(replace(entry, mac=_mac(keys[entry.id], text)) for entry in self.keys)
        )

    def check_macs(self, keys: Mapping[str, DataKey]) -> None:
        """Refuse a file that was changed without one of the given keys, which are given by key id."""
        text = self.canonical()
        for entry in self.keys:
            key = keys.get(entry.id)
            if key is not None and not compare_digest(_mac(key, text), entry.mac):
                raise KeyRingError(
                    f"the file was changed without its keys: it does not authenticate under key {entry.id}. Put back "
                    "the version that 'jwt-column keys' wrote last, and find out who changed it",
                    key_id=entry.id,
                )

    def to_bytes(self) -> bytes:
        """Return the file as JSON, indented by two spaces, with a line feed at the end."""
        return json.dumps(self._to_json(with_macs=True), indent=2).encode() + b"\n"

    def _to_json(self, *, with_macs: bool) -> dict[str, Any]:
        content = {
            "format": _FORMAT,
            "version": _WITH_DESTROYED if self.destroyed else _VERSION,
            "ring": self.name,
            "revision": self.revision,
            "keys": [_entry_to_json(entry, with_mac=with_macs) for entry in self.keys],
        }
        if self.destroyed:
            content["destroyed"] = [_destroyed_to_json(key) for key in self.destroyed]
        return content


def is_ring_file(data: bytes) -> bool:
    """Return True for a file in JSON, as opposed to a file of plain keys."""
    return data.removeprefix(BOM_UTF8).lstrip().startswith(b"{")


def _mac(key: DataKey, text: bytes) -> bytes:
    mac = HMAC(key.integrity_key(), SHA256())
    mac.update(text)
    return mac.finalize()


def _entry_to_json(entry: KeyEntry, *, with_mac: bool) -> dict[str, str]:
    members = {"id": entry.id, "state": entry.state.value}
    if entry.tenant is not None:
        members["tenant"] = entry.tenant
    for name in _TIMES:
        time = getattr(entry, name)
        if time is not None:
            members[name] = time.strftime(TIME)
    members["wrapped_by"] = entry.wrapped_by
    members["wrapped"] = base64url.encode(entry.wrapped)
    if with_mac:
        members["mac"] = base64url.encode(entry.mac)
    return members


def _destroyed_to_json(key: DestroyedKey) -> dict[str, str]:
    tenant = {} if key.tenant is None else {"tenant": key.tenant}
    return {"id": key.id, **tenant, "destroyed": key.destroyed.strftime(TIME)}


def _destroyed_of(value: object, number: int) -> DestroyedKey:
    """Parse the *number*-th destroyed key of the file."""
    members = Members(value, f"destroyed key {number}: ")
    key_id, tenant = _id_of(members), _tenant_of(members)
    time = members.take_time("destroyed")
    members.refuse_others()
    return DestroyedKey(key_id, time, tenant)


def _id_of(members: Members) -> str:
    key_id: str = members.take("id", str)
    if not _KEY_ID.match(key_id):
        raise members.error("id", "is not 8 lower-case hex digits")
    members.where = f"key {key_id}: "
    return key_id


def _tenant_of(members: Members) -> str | None:
    tenant: str | None = members.take("tenant", str) if "tenant" in members else None
    if tenant is not None and not _NAME.match(tenant):
        raise members.error("tenant", "is not 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    return tenant


def _entry_of(value: object, number: int) -> KeyEntry:
    """Parse the *number*-th key of the file."""
    members = Members(value, f"key {number}: ")
    key_id = _id_of(members)
    state = members.take("state", str)
    if state not in set(KeyState):
        raise members.error("state", f"is none of {', '.join(KeyState)}")
    tenant = _tenant_of(members)
    times = {name: members.take_time(name) for name in _TIMES if name in members or name == "created"}
    wrapped_by = members.take("wrapped_by", str)
    if not _URI.match(wrapped_by):
        raise members.error("wrapped_by", "is not the URI of a KEK")
    wrapped, mac = members.take_bytes("wrapped", MAX_WRAPPED), members.take_bytes("mac", 32)
    members.refuse_others()
    return KeyEntry(key_id, KeyState(state), wrapped_by, wrapped, **times, tenant=tenant, mac=mac)


def check_uri(uri: str) -> str:
    """Return the URI of a KEK after a check of its characters."""
    if not _URI.match(uri):
        raise KeyRingError("a key-ring file holds KEK URIs of printable ASCII, at most 2000 characters long")
    return uri


def check_name(name: str, kind: str) -> str:
    """Return the name of a ring or tenant after a check of its characters."""
    if not _NAME.match(name):
        raise KeyRingError(f"the name of a {kind} is 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    return name
