"""A ring for display: as a table, or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from ...keys.providers.file import uri_of
from ...keys.ring_file.format import KeyState
from ..console import counted, indented, make_console, plain_table, print_json
from ..verbosity import is_quiet
from .rings import PlainFile, destroyed_views_of, views_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from ...keys.ring_file.store import StoredRing
    from .rings import KeyView

__all__ = ["age", "ring_to_json", "show_changed", "show_ring"]

_STYLES: Final = {KeyState.ACTIVE: "green", KeyState.COMPROMISED: "bold red"}
_TIMES: Final = ("created", "activated", "deactivated", "compromised", "destroyed")


def ring_to_json(ring: StoredRing | PlainFile, rows: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Return a ring as the commands' ``--json`` has it; with the rows of each key where they were counted."""
    shown: dict[str, Any] = {"file": str(ring.path), "uri": uri_of(ring.path)}
    if not isinstance(ring, PlainFile):
        shown |= {"ring": ring.file.name, "revision": ring.file.revision}
    views = views_of(ring)
    shown["active"] = views[0].id
    shown["keys"] = [_view_to_json(view, rows) for view in views]
    destroyed = destroyed_views_of(ring)
    if destroyed:
        shown["destroyed"] = [_view_to_json(view, rows) for view in destroyed]
    if rows is not None:
        shown["missing"] = [
            {"id": key_id, "rows": count} for key_id, count in missing([*views, *destroyed], rows).items()
        ]
    return shown


def _view_to_json(view: KeyView, rows: Mapping[str, int] | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": view.id, "state": view.state}
    if view.tenant is not None:
        shown["tenant"] = view.tenant
    for name in _TIMES:
        time: datetime | None = getattr(view, name)
        if time is not None:
            shown[name] = time.strftime("%Y-%m-%dT%H:%M:%SZ")
    if view.wrapped_by is not None:
        shown["wrapped_by"] = view.wrapped_by
    if rows is not None:
        shown["rows"] = rows.get(view.id, 0)
    return shown


def show_ring(ring: StoredRing | PlainFile, at: datetime, rows: Mapping[str, int] | None = None) -> None:
    """Print a ring as a table."""
    console = make_console()
    title = str(ring.path)
    if not isinstance(ring, PlainFile):
        title = f"{ring.file.name}, revision {ring.file.revision}: {ring.path}"
    console.print(Text(title, "bold"), soft_wrap=True)
    console.print()
    views = [*views_of(ring), *destroyed_views_of(ring)]
    has_tenants = any(view.tenant for view in views)
    columns = ["key id", "state", ">age"]
    columns += ["tenant"] if has_tenants else []
    columns += [">rows"] if rows is not None else []
    table = plain_table(*columns, "wrapped by")
    for view in views:
        cells = [Text(view.id, "cyan"), Text(view.state, _STYLES.get(view.state, "")), Text(age(view, at))]  # type: ignore[call-overload]
        if has_tenants:
            cells.append(Text(view.tenant or ""))
        if rows is not None:
            cells.append(Text(f"{rows.get(view.id, 0):,}"))
        wrapped_by = "" if view.destroyed else view.wrapped_by or "nothing: the file holds it in the clear"
        table.add_row(*cells, Text(wrapped_by))
    indented(console, table)
    for key_id, count in missing(views, rows or {}).items():
        console.print()
        lost = counted(count, "row", ("is", "are"))
        indented(console, Text.assemble(f"{lost} under ", (key_id, "cyan"), ", a key that the ring lacks."))


def missing(views: Sequence[KeyView], rows: Mapping[str, int]) -> dict[str, int]:
    """Return rows by key id, where the ring does not have the key."""
    held = {view.id for view in views}
    return {key_id: count for key_id, count in sorted(rows.items()) if key_id not in held}


def age(view: KeyView, at: datetime) -> str:
    """Return the age of a key in days, or in hours on its first day; of a destroyed one, since it was destroyed."""
    begin = view.created or view.destroyed
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
