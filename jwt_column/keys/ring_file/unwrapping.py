"""Unwrapping and wrapping the keys of a key-ring file, with one call of each KEK for all of its keys."""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING, NamedTuple

from ...errors import JWTColumnError, KeyRingError, KeyUnavailableError
from ..data_key import DataKey
from ..keks import check_allowed
from ..schemes import open_wrapper
from ..wrapping import AssociatedData, Rewrapper, WrappedKey
from .format import MAX_WRAPPED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..wrapping import KeyWrapper
    from .format import KeyEntry, RingFile


class Unwrapped(NamedTuple):
    """The keys of a key-ring file that unwrapped and have the key id of their entry, and the errors of the others."""

    keys: dict[str, DataKey]
    failures: dict[str, JWTColumnError]


def unwrap(file: RingFile, keks: Sequence[str] | None = None) -> dict[str, DataKey]:
    """Return all keys of a file by key id, after they have authenticated it; see :meth:`StoredRing.unwrap`."""
    check_allowed((entry.wrapped_by for entry in file.keys), keks)
    keys = {}
    for uri, entries in _by_kek(file.keys).items():
        keys.update(_unwrap_by(open_wrapper(uri), file, entries))
    file.check_macs(keys)
    return keys


def try_unwrap(file: RingFile) -> Unwrapped:
    """Return the keys that unwrap, and the errors of the others. Does not authenticate the file."""
    unwrapped = Unwrapped({}, {})
    waiting = list(_by_kek(file.keys).values())
    while waiting:
        entries = waiting.pop(0)
        uri = entries[0].wrapped_by
        try:
            check_allowed([uri], None)
            unwrapped.keys.update(_unwrap_by(open_wrapper(uri), file, entries))
            continue
        except JWTColumnError as error:
            failure = _bare(error)
        if (
            len(entries) > 1
            and isinstance(failure, KeyRingError)
            and not isinstance(failure, KeyUnavailableError)
        ):
            # One bad key fails the call for all of them. Single calls find it.
            waiting[:0] = [[entry] for entry in entries]
        else:
            unwrapped.failures.update({entry.id: failure for entry in entries})
    return unwrapped


def wrap(wrapper: KeyWrapper, ring: str, keys: Sequence[DataKey]) -> list[bytes]:
    """Return data keys under a KEK, bound to the ring of this name.

    Each is unwrapped again and compared: they may become the only copies.
    """
    bound = [(key, AssociatedData(ring, key.id)) for key in keys]
    wrapped = [WrappedKey(wrapper.wrap(key.secret_material(), data), data) for key, data in bound]
    return _compared(wrapper, wrapped, keys)


def rewrap(wrapper: KeyWrapper, file: RingFile, keys: Mapping[str, DataKey]) -> list[bytes]:
    """Return all keys of a file, in order, under a KEK, compared as :func:`wrap` does.

    If all of them are under this KEK already, and its system can rewrap, no data key leaves the system to be rewrapped.
    """
    in_order = [keys[entry.id] for entry in file.keys]
    if not isinstance(wrapper, Rewrapper) or any(entry.wrapped_by != wrapper.uri for entry in file.keys):
        return wrap(wrapper, file.name, in_order)
    old = [file.wrapped_key(entry) for entry in file.keys]
    new = wrapper.rewrap(old)
    wrapped = [WrappedKey(ciphertext, one.associated_data) for ciphertext, one in zip(new, old, strict=True)]
    return _compared(wrapper, wrapped, in_order)


def _by_kek(entries: Sequence[KeyEntry]) -> dict[str, list[KeyEntry]]:
    by_kek: dict[str, list[KeyEntry]] = {}
    for entry in entries:
        by_kek.setdefault(entry.wrapped_by, []).append(entry)
    return by_kek


def _unwrap_by(wrapper: KeyWrapper, file: RingFile, entries: Sequence[KeyEntry]) -> dict[str, DataKey]:
    """Return the keys of the entries that one KEK has wrapped."""
    secrets = wrapper.unwrap([file.wrapped_key(entry) for entry in entries])
    keys = {}
    for entry, secret in zip(entries, secrets, strict=True):
        key = DataKey(secret, tenant=entry.tenant)
        if key.id != entry.id:
            raise KeyRingError(
                f"the entry of key {entry.id} holds another key, {key.id}; restore the file", key_id=entry.id
            )
        keys[entry.id] = key
    return keys


def _compared(wrapper: KeyWrapper, wrapped: Sequence[WrappedKey], keys: Sequence[DataKey]) -> list[bytes]:
    """Return the ciphertexts, after a check that a file can hold them and that they unwrap to the same keys."""
    for one in wrapped:
        if not 1 <= len(one.ciphertext) <= MAX_WRAPPED:
            raise KeyRingError(
                f"{wrapper.uri} made {len(one.ciphertext)} bytes of a data key; a key-ring file holds 1 to "
                f"{MAX_WRAPPED}"
            )
    for key, secret in zip(keys, wrapper.unwrap(wrapped), strict=True):
        if not compare_digest(key.secret_material(), secret):
            raise KeyRingError(
                f"{wrapper.uri}: key {key.id} was wrapped and did not unwrap to the same key; nothing was written",
                key_id=key.id,
            )
    return [one.ciphertext for one in wrapped]


def _bare(error: JWTColumnError) -> JWTColumnError:
    """Return an error without its frames: they hold keys in local variables, which error reporters show."""
    error.__context__ = None
    return error.with_traceback(None)
