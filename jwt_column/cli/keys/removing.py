"""``keys remove``: the one command by which tokens can be lost, so it asks the databases first."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import Column

from ...auditing.columns import AuditedColumn, columns_of
from ...errors import ConfigurationError, JWTColumnError
from ...keys.providers.file import path_of
from ...keys.ring import DataKey
from ...keys.ring_file import changes as _changes
from ...keys.ring_file import disk as _disk
from ...keys.ring_file.format import RingFile
from ...keys.ring_file.store import StoredRing
from ...keys.ring_file.unwrapping import try_unwrap
from ...wording import counted
from ..columns import ChosenColumn
from ..declaring import flag, values
from ..options import FILE, JSON, RowsToCount, given_databases
from .counting import columns_to_count, count_rows
from .fleets import FleetOptions, await_fleet, nothing_written_under
from .rings import PlainFile, now, open_ring, open_wrapped
from .showing import show_changed


class KeyInUseError(JWTColumnError):
    """Rows are under the key that was to be removed."""


def remove(
    key_ids: Annotated[
        list[str],
        typer.Argument(metavar="KEY_ID", help="The ids of the keys, 8 hex digits each.", show_default=False),
    ],
    *,
    file: Path | None = FILE,
    which: RowsToCount,
    fleet: FleetOptions,
    force: bool = flag(
        "--force",
        "Remove the keys although rows are under them, or no database was given to look. What is under them can then "
        "never be read again. Asks for each id to be typed, or takes it from --confirm.",
    ),
    confirm: list[str] = values(
        "--confirm KEY_ID", "The id of a key once more, for --force and --destroyed in scripts."
    ),
    destroyed: bool = flag(
        "--destroyed",
        "The keys are destroyed on purpose: a note of them stays in the ring, by which audits, gates and "
        "re-encryption know their rows. Implies --force and --no-previous. Takes keys that were removed earlier, too.",
    ),
    no_previous: bool = flag(
        "--no-previous",
        "Do not keep the version before, which holds the keys still, and delete one that was kept earlier.",
    ),
    as_json: bool = JSON,
) -> None:
    """Remove keys; see :mod:`jwt_column.cli.keys` for the help text."""
    ring = open_wrapped(file, "note that a key was destroyed") if destroyed else open_ring(file)
    force, no_previous = force or destroyed, no_previous or destroyed
    key_ids = list(dict.fromkeys(key_ids))
    # An impossible removal is refused before a database is asked or a key id has to be typed.
    write = removal(ring, key_ids, force=force, destroyed=destroyed, keep_previous=not no_previous)
    urls, need = given_databases(which.databases), nothing_written_under(key_ids)
    columns = columns_to_count(which) or []
    if not force:
        _refuse_forgotten(ring.path.resolve(), columns)
    # Before the rows are counted: none comes after that.
    await_fleet(urls, fleet, lambda: held_keys(ring), need)
    history: Counter[str | None] = Counter()
    rows = count_rows(which, history)
    in_use = {key_id: rows[key_id] for key_id in key_ids if rows is not None and rows.get(key_id)}
    if force:
        _confirm(key_ids, in_use, confirm, "--destroyed" if destroyed else "--force")
    elif rows is None:
        raise ConfigurationError(
            "are there rows under this key? Give --model MODULE:CLASS.ATTR (or --table and --column) for every "
            "column of the ring, with --database; or --force, if rows under it may become unreadable for ever"
        )
    elif in_use:
        raise KeyInUseError(
            f"{_listed(in_use)}; nothing was removed. Re-encrypt them first ('jwt-column reencrypt'), or give --force "
            "if they may become unreadable for ever"
        )
    elif kept := {key_id: history[key_id] for key_id in key_ids if history[key_id]}:
        listed = ", ".join(
            f"{counted(number, 'old value')} under key {key_id}" for key_id, number in kept.items()
        )
        raise KeyInUseError(
            f"the history of a system-versioned table keeps {listed}; nothing was removed. Delete the history first "
            "(DELETE HISTORY FROM the table), or give --force if old versions of rows may become unreadable for ever"
        )
    ring = write()
    hints = ["Bring the file to every host, and reload or restart every process."]
    if not no_previous:
        hints.append(
            f"{_disk.previous_of(ring.path)} still holds the removed keys; delete it when all is well."
        )
    noun = "key" if len(key_ids) == 1 else "keys"
    done = f"Removed {noun} {', '.join(key_ids)}."
    if destroyed:
        done = f"Marked {noun} {', '.join(key_ids)} as destroyed."
        hints.append(
            "Older versions of the file still hold the keys, wrapped: in backups and in a repository."
        )
        hints += [f"jwt-column purge --key {key_id} removes the rows under it." for key_id in key_ids]
    show_changed(ring, done, hints, as_json=as_json, removed=key_ids)


def _refuse_forgotten(path: Path, columns: Sequence[ChosenColumn]) -> None:
    """Raise if other columns of the models are under the ring: their rows would not be counted."""
    mapped = [column.mapped for column in columns if column.mapped is not None]
    for forgotten in forgotten_columns(path, mapped):
        raise ConfigurationError(
            f"{forgotten.name} is under the ring {path} too; name every column of the ring (--model), so that all "
            "rows are counted. Nothing was removed"
        )


def forgotten_columns(path: Path, named: Collection[Column[Any]]) -> Iterator[AuditedColumn]:
    """Yield the columns of the same MetaData that are under the ring in a file, and are not among those named."""
    for metadata in {column.table.metadata for column in named}:
        for column in columns_of(metadata):
            if not any(column.column is one for one in named) and is_of(path, _uri_of(column)):
                yield column


def is_of(path: Path, uri: str | None) -> bool:
    """Return True if a URI is that of the ring in a file."""
    scheme, _, rest = (uri or "").partition(":")
    return scheme == "file" and path_of(rest).resolve() == path


def _uri_of(column: AuditedColumn) -> str | None:
    """Return the URI of a column's ring; None if it has none, or cannot be loaded here."""
    with suppress(JWTColumnError):
        return column.type_.ring().uri
    return None


def held_keys(ring: StoredRing | PlainFile) -> Iterable[DataKey]:
    """Return the keys of a ring that unwrap."""
    return (ring.unwrap() if isinstance(ring, PlainFile) else try_unwrap(ring.file).keys).values()


def removal(
    ring: StoredRing | PlainFile,
    key_ids: Sequence[str],
    *,
    force: bool,
    destroyed: bool = False,
    keep_previous: bool,
) -> Callable[[], StoredRing | PlainFile]:
    """Return the function that removes the keys; raise if they cannot be removed."""
    file = ring.file
    changed = _changes.destroyed(file, key_ids, now()) if destroyed else _changes.removed(file, key_ids)
    return lambda: ring.write(changed, _unwrapped(ring, changed, force=force), keep_previous=keep_previous)


def _unwrapped(ring: StoredRing | PlainFile, changed: RingFile, *, force: bool) -> Mapping[str, DataKey]:
    """Return the keys of the file that is to be written; with force also where the KEK of one that goes is lost."""
    if isinstance(ring, PlainFile):
        return ring.unwrap()
    unwrapped = try_unwrap(ring.file)
    kept = {entry.id for entry in changed.keys}
    for key_id, failure in unwrapped.failures.items():
        if key_id in kept or not force:
            failure.args = (f"{ring.path}: {failure}",)
            raise failure
    # A key that cannot be unwrapped says nothing about the file; all others do.
    ring.file.check_macs(unwrapped.keys)
    return unwrapped.keys


def _confirm(
    key_ids: Sequence[str], in_use: Mapping[str, int], confirmed: Sequence[str], option: str
) -> None:
    """Ask for each key id to be typed."""
    for key_id in key_ids:
        if key_id in confirmed:
            continue
        if confirmed or not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise ConfigurationError(
                f"{option} needs --confirm {key_id} without a terminal; nothing was removed"
            )
        rows = f" {_listed({key_id: in_use[key_id]})}." if key_id in in_use else ""
        typed = typer.prompt(
            f"Without key {key_id} nothing that is under it can be read again.{rows}\n"
            "Type the key's id to remove it",
            default="",
            show_default=False,
            err=True,
        )
        if typed.strip() != key_id:
            raise ConfigurationError(f"that is not {key_id}; nothing was removed")


def _listed(in_use: Mapping[str, int]) -> str:
    return ", ".join(
        f"{counted(rows, 'row', ('is', 'are'))} under key {key_id}" for key_id, rows in in_use.items()
    )
