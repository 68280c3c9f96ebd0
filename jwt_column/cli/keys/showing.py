"""A ring for display: as a table, or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from ...keys.providers.file import uri_of
from ...keys.ring_file.format import DestroyedKey, KeyState
from ...keys.ring_file.members import TIME
from ...wording import counted
from ..console import indented, make_console, plain_table, print_json
from ..verbosity import is_quiet
from .rings import PlainFile, active_first

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from ...keys.ring_file.format import KeyEntry, RingFile
    from ...keys.ring_file.store import StoredRing

_STYLES: Final[dict[str, str]] = {KeyState.ACTIVE: "green", KeyState.COMPROMISED: "bold red"}
_TIMES: Final = ("created", "activated", "deactivated", "compromised", "destroyed")


def ring_to_json(ring: StoredRing | PlainFile, rows: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Return a ring as the commands' ``--json`` has it; with the rows of each key where they were counted."""
    shown: dict[str, Any] = {"file": str(ring.path), "uri": uri_of(ring.path)}
    if not isinstance(ring, PlainFile):
        shown |= {"ring": ring.file.name, "revision": ring.file.revision}
    keys = active_first(ring.file)
    shown["active"] = keys[0].id
    shown["keys"] = [_key_to_json(key, rows) for key in keys]
    if ring.file.destroyed:
        shown["destroyed"] = [_key_to_json(key, rows) for key in ring.file.destroyed]
    if rows is not None:
        shown["missing"] = [
            {"id": key_id, "rows": count} for key_id, count in missing(ring.file, rows).items()
        ]
    return shown


def _key_to_json(key: KeyEntry | DestroyedKey, rows: Mapping[str, int] | None) -> dict[str, Any]:
    times = {name: getattr(key, name, None) for name in _TIMES}
    shown = {
        "id": key.id,
        "state": state_of(key),
        "tenant": key.tenant,
        **{name: time and time.strftime(TIME) for name, time in times.items()},
        "wrapped_by": _kek_of(key) or None,
        "rows": None if rows is None else rows.get(key.id, 0),
    }
    return {name: value for name, value in shown.items() if value is not None}


def state_of(key: KeyEntry | DestroyedKey) -> str:
    """Return the state of a key in words."""
    if isinstance(key, DestroyedKey):
        return "destroyed"
    # No states are written down for plain keys.
    return str(key.state) if key.wrapped_by or key.state is KeyState.ACTIVE else "decrypts only"


def _kek_of(key: KeyEntry | DestroyedKey) -> str:
    return "" if isinstance(key, DestroyedKey) else key.wrapped_by


def show_ring(ring: StoredRing | PlainFile, at: datetime, rows: Mapping[str, int] | None = None) -> None:
    """Print a ring as a table."""
    console = make_console()
    title = str(ring.path)
    if not isinstance(ring, PlainFile):
        title = f"{ring.file.name}, revision {ring.file.revision}: {ring.path}"
    console.print(Text(title, "bold"), soft_wrap=True)
    console.print()
    keys: list[KeyEntry | DestroyedKey] = [*active_first(ring.file), *ring.file.destroyed]
    has_tenants = any(key.tenant for key in keys)
    columns = ["key id", "state", ">age"]
    columns += ["tenant"] if has_tenants else []
    columns += [">rows"] if rows is not None else []
    table = plain_table(*columns, "wrapped by")
    for key in keys:
        state = state_of(key)
        cells = [Text(key.id, "cyan"), Text(state, _STYLES.get(state, "")), Text(age(key, at))]
        if has_tenants:
            cells.append(Text(key.tenant or ""))
        if rows is not None:
            cells.append(Text(f"{rows.get(key.id, 0):,}"))
        kek = "nothing: the file holds it in the clear" if isinstance(ring, PlainFile) else _kek_of(key)
        table.add_row(*cells, Text(kek))
    indented(console, table)
    for key_id, count in missing(ring.file, rows or {}).items():
        console.print()
        lost = counted(count, "row", ("is", "are"))
        indented(console, Text.assemble(f"{lost} under ", (key_id, "cyan"), ", a key that the ring lacks."))


def missing(file: RingFile, rows: Mapping[str, int]) -> dict[str, int]:
    """Return rows by key id, where the ring does not have the key."""
    held = {key.id for key in file.keys} | {key.id for key in file.destroyed}
    return {key_id: count for key_id, count in sorted(rows.items()) if key_id not in held}


def age(key: KeyEntry | DestroyedKey, at: datetime) -> str:
    """Return the age of a key in days, or in hours on its first day; of a destroyed one, since it was destroyed."""
    begin = key.destroyed if isinstance(key, DestroyedKey) else key.created
    if begin is None:
        return "unknown"
    seconds = max(0.0, (at - begin).total_seconds())
    days, hours = divmod(int(seconds // 3600), 24)
    return f"{days} d" if days else f"{hours} h"


def show_changed(
    ring: StoredRing | PlainFile, done: str, hints: Sequence[str], *, as_json: bool, **more: Any
) -> None:
    """Print the change that a command made and the next steps; or the ring as JSON."""
    if as_json:
        print_json(ring_to_json(ring) | more)
        return
    console = make_console()
    console.print(done, soft_wrap=True)
    for hint in () if is_quiet() else hints:
        console.print(Text(hint, "dim"), soft_wrap=not console.is_terminal)
