"""``keys add``, ``activate``, ``compromise`` and ``rewrap``: each is one revision of the file."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from ...errors import ConfigurationError
from ...keys.keks import variable_line
from ...keys.ring import DataKey, generate_key
from ...keys.ring_file import changes as _changes
from ...keys.ring_file.format import KeyState, check_name, check_uri
from ...keys.ring_file.store import StoredRing
from ...keys.ring_file.unwrapping import rewrap as wrap_anew
from ...keys.ring_file.unwrapping import wrap
from ...keys.schemes import open_wrapper
from ...wording import counted
from ..declaring import value
from ..options import DATABASES, FILE, JSON, given_databases
from .fleets import FleetOptions, await_fleet, key_everywhere
from .rings import PlainFile, now, open_ring, open_wrapped
from .showing import show_changed

KeyIdArgument = Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id, 8 hex digits.")]


def add(
    *,
    file: Path | None = FILE,
    wrapped_by: str | None = value(
        "--wrapped-by URI", "The key that wraps the new one. Without it, the one that wraps the active key."
    ),
    tenant: str | None = value(
        "--tenant NAME", "Make a key for the rows of one tenant. The first one of a tenant is active at once."
    ),
    as_json: bool = JSON,
) -> None:
    """Add a key; see :mod:`jwt_column.cli.keys` for the help text."""
    ring, key = add_key(open_ring(file), wrapped_by, tenant)
    is_active = ring.file.active_of(tenant).id == key.id
    state = KeyState.ACTIVE if is_active else KeyState.PRE_ACTIVATION
    hints = [
        "Bring the file to every host, and reload or restart every process; then run: "
        f"jwt-column keys activate {key.id}"
    ]
    if state is KeyState.ACTIVE:
        hints = [f"It encrypts inside 'with ring.using(ring.tenants[{tenant!r}])'."]
    show_changed(ring, f"Added key {key.id} ({state.value}).", hints, as_json=as_json, added=key.id)


def add_key(
    ring: StoredRing | PlainFile, wrapped_by: str | None = None, tenant: str | None = None
) -> tuple[StoredRing | PlainFile, DataKey]:
    """Add a new key, wrapped as the active one is without *wrapped_by*; return the written ring and the key."""
    key = DataKey(generate_key(), tenant=None if tenant is None else check_name(tenant, "tenant (--tenant)"))
    keys = ring.unwrap()
    if isinstance(ring, PlainFile):
        if wrapped_by is not None or tenant is not None:
            raise ConfigurationError(
                f"{ring.path} is a file of plain keys, which has no KEK and no tenants; leave --wrapped-by and "
                "--tenant out, or make a key-ring file with 'jwt-column keys init'"
            )
        kek, wrapped = "", b""
    else:
        wrapper = open_wrapper(ring.file.active.wrapped_by if wrapped_by is None else wrapped_by)
        kek, (wrapped,) = check_uri(wrapper.uri), wrap(wrapper, ring.file.name, [key])
    changed = _changes.added(ring.file, key.id, kek, wrapped, now(), tenant=key.tenant)
    return ring.write(changed, {**keys, key.id: key}), key


def activate_key(
    ring: StoredRing | PlainFile,
    key_id: str,
    before: Callable[[Callable[[], Iterable[DataKey]]], object] = lambda _: None,
) -> StoredRing | PlainFile:
    """Activate a key of a ring, and return the ring as it was written.

    *before* is called when it is known that the file can be written, and before it is, with a function that returns the
    keys of the ring.
    """
    keys = ring.unwrap()
    _changes.activated(ring.file, key_id, now())
    before(keys.values)
    return ring.write(_changes.activated(ring.file, key_id, now()), keys)


def activate(
    key_id: KeyIdArgument,
    *,
    file: Path | None = FILE,
    databases: list[str] = DATABASES,
    fleet: FleetOptions,
    as_json: bool = JSON,
) -> None:
    """Activate a key; see :mod:`jwt_column.cli.keys` for the help text."""
    urls, need = given_databases(databases), key_everywhere(key_id)
    ring = activate_key(open_ring(file), key_id, lambda keys: await_fleet(urls, fleet, keys, need))
    hints = [
        "Bring the file to every host, and reload or restart every process; then re-encrypt: "
        "op.reencrypt_jwt_column, or 'jwt-column reencrypt'."
    ]
    show_changed(ring, f"Key {key_id} is active.", hints, as_json=as_json)


def compromise(key_id: KeyIdArgument, *, file: Path | None = FILE, as_json: bool = JSON) -> None:
    """Mark a key as compromised; see :mod:`jwt_column.cli.keys` for the help text."""
    ring = open_wrapped(file, "mark a key")
    keys = ring.unwrap()
    ring = ring.write(_changes.compromised(ring.file, key_id, now()), keys)
    hints = [f"Re-encrypt every column of the ring, then run: jwt-column keys remove {key_id}"]
    show_changed(ring, f"Key {key_id} is marked as compromised.", hints, as_json=as_json)


def rewrap(
    *,
    file: Path | None = FILE,
    wrapped_by: str | None = value(
        "--wrapped-by URI",
        "The new KEK, for all keys of the file. Without it, the newest version of the one that wraps the active key.",
    ),
    as_json: bool = JSON,
) -> None:
    """Wrap keys anew; see :mod:`jwt_column.cli.keys` for the help text."""
    ring = open_wrapped(file, "be rewrapped")
    keys = ring.unwrap()
    wrapper = open_wrapper(ring.file.active.wrapped_by if wrapped_by is None else wrapped_by)
    wrapped = wrap_anew(wrapper, ring.file, keys)
    ring = ring.write(_changes.rewrapped(ring.file, check_uri(wrapper.uri), wrapped), keys)
    hints = [
        f"Every host must allow the KEK first: export {variable_line(wrapper.uri)}",
        "Bring the file to every host. Keep the old KEK until every process has loaded the new file, and as long as "
        "an older copy of the file may have to be loaded.",
    ]
    count = counted(len(wrapped), "key", ("is", "are"))
    show_changed(ring, f"{count} wrapped by {wrapper.uri}.", hints, as_json=as_json)
