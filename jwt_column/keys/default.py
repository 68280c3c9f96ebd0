"""The key ring of a column: the one that it names, the ring of a URI, or the default of this process."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

from ..errors import ConfigurationError
from ..frames import hides_locals
from .process import PerProcess
from .ring import KeyRing

if TYPE_CHECKING:
    from collections.abc import Sequence

_default: KeyRing | None = None
_lock: Final = PerProcess(threading.Lock)
_by_uri: dict[str, KeyRing] = {}


@hides_locals
def set_default_keyring(ring: KeyRing | None) -> None:
    """Set the ring of every column that names none. None: read the environment again at the next use."""
    global _default
    if ring is not None and not isinstance(ring, KeyRing):
        raise ConfigurationError(f"the default key ring is a KeyRing, not {type(ring).__name__}")
    _default = ring
    if ring is None:
        _by_uri.clear()


def explicit_default() -> KeyRing | None:
    """Return the ring that set_default_keyring() was given last."""
    return _default


def default_keyring() -> KeyRing:
    """Return the default ring: the one set, else JWT_COLUMN_KEYRING's URI, else env:JWT_COLUMN_KEYS.

    Raises:
        ConfigurationError: No ring was set, and neither variable is there.
        KeyRingError: The variable leads to something that is not a valid key ring.
        KeyUnavailableError: The keys could not be reached or read.
    """
    if _default is not None:
        return _default
    uri = os.environ.get("JWT_COLUMN_KEYRING")
    if not uri:
        if "JWT_COLUMN_KEYS" not in os.environ:
            raise ConfigurationError(
                "no key ring: call set_default_keyring(), or set JWT_COLUMN_KEYRING to a URI such as "
                "file:/etc/app/jwt.keys, or JWT_COLUMN_KEYS to keys ('jwt-column keys generate' makes one)"
            )
        uri = "env:JWT_COLUMN_KEYS"
    return keyring_of_uri(uri)


def keyring_of_uri(uri: str, keks: Sequence[str] | None = None) -> KeyRing:
    """Return this process's ring of a URI, loaded at first use, with the KEKs allowed then, and then shared."""
    ring = _by_uri.get(uri)
    if ring is None:
        with _lock.get():
            ring = _by_uri.get(uri)
            if ring is None:
                ring = _by_uri[uri] = KeyRing.from_uri(uri, keks=keks)
    return ring


def resolve_keyring(keyring: KeyRing | str | None) -> KeyRing:
    """Return the ring that a column or a call names: a ring, a URI, or None for the default."""
    if isinstance(keyring, KeyRing):
        return keyring
    return default_keyring() if keyring is None else keyring_of_uri(keyring)
