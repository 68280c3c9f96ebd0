"""``keys remove``: the one command by which tokens can be lost, so it asks the databases first."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated

import typer

from ...errors import ConfigurationError, JWTColumnError
from ...keys.ring_file import changes as _changes
from ...keys.ring_file import disk as _disk
from ...keys.ring_file.format import RingFile
from ...keys.ring_file.store import StoredRing
from ...keys.ring_file.unwrapping import try_unwrap
from .counting import ColumnOption, DatabaseOption, ModelOption, SchemaOption, TableOption, count_rows
from .rings import FileOption, JsonOption, PlainFile, open_ring
from .showing import show_changed

__all__ = ["remove"]


class KeyInUseError(JWTColumnError):
    """Rows are under the key that was to be removed."""


def remove(
    key_ids: Annotated[
        list[str],
        typer.Argument(metavar="KEY_ID", help="The ids of the keys, 8 hex digits each.", show_default=False),
    ],
    *,
    file: FileOption = None,
    database: DatabaseOption = None,
    model: ModelOption = None,
    table: TableOption = None,
    column: ColumnOption = None,
    schema: SchemaOption = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Remove the keys although rows are under them, or no database was given to look. What is under them "
            "can then never be read again. Asks for each id to be typed, or takes it from --confirm.",
        ),
    ] = False,
    confirm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY_ID", help="The id of a key once more, for --force in scripts.", show_default=False
        ),
    ] = None,
    no_previous: Annotated[
        bool,
        typer.Option(
            "--no-previous",
            help="Do not keep the version before, which holds the keys still, and delete one that was kept earlier.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove keys from a ring, after a look at the databases that no row is under them. Never the active key.

    The version before stays beside the file, as PATH.previous, unless --no-previous is given.
    """
    ring = open_ring(file)
    key_ids = list(dict.fromkeys(key_ids))
    # What cannot be done is said before a database is asked, or anybody has to type.
    write = _removal(ring, key_ids, force=force, keep_previous=not no_previous)
    rows = count_rows(database, model, table, column, schema)
    in_use = {key_id: rows[key_id] for key_id in key_ids if rows is not None and rows.get(key_id)}
    if force:
        _confirm(key_ids, in_use, confirm or [])
    elif rows is None:
        raise ConfigurationError(
            "are there rows under this key? Give --model module:Class.attribute (or --table and --column) for every "
            "column of the ring, with --database; or --force, if rows under it may become unreadable for ever"
        )
    elif in_use:
        raise KeyInUseError(
            f"{_listed(in_use)}; nothing was removed. Re-encrypt them first ('jwt-column reencrypt'), or give --force "
            "if they may become unreadable for ever"
        )
    ring = write()
    hints = ["Bring the file to every host, and reload or restart every process."]
    if not no_previous:
        hints.append(
            f"{_disk.previous_of(ring.path)} still holds what was removed; delete it when all is well."
        )
    noun = "key" if len(key_ids) == 1 else "keys"
    show_changed(ring, f"Removed {noun} {', '.join(key_ids)}.", hints, as_json=as_json, removed=key_ids)


def _removal(
    ring: StoredRing | PlainFile, key_ids: Sequence[str], *, force: bool, keep_previous: bool
) -> Callable[[], StoredRing | PlainFile]:
    """Return what removes the keys, unless they cannot be removed."""
    if isinstance(ring, PlainFile):
        ring.remove(key_ids)
        return partial(ring.write, keep_previous=keep_previous)
    changed = _changes.removed(ring.file, key_ids)
    return partial(_write, ring, changed, force=force, keep_previous=keep_previous)


def _write(ring: StoredRing, changed: RingFile, *, force: bool, keep_previous: bool) -> StoredRing:
    """Write the file without the keys; with force also where the KEK of one that goes is lost."""
    unwrapped = try_unwrap(ring.file)
    kept = {entry.id for entry in changed.keys}
    for key_id, failure in unwrapped.failures.items():
        if key_id in kept or not force:
            failure.args = (f"{ring.path}: {failure}",)
            raise failure
    # A key that cannot be unwrapped says nothing about the file; all others do.
    ring.file.check_macs(unwrapped.keys)
    return ring.write(changed, unwrapped.keys, keep_previous=keep_previous)


def _confirm(key_ids: Sequence[str], in_use: Mapping[str, int], confirmed: Sequence[str]) -> None:
    """Have each id typed back.

    Raises:
        ConfigurationError: It was not.
    """
    for key_id in key_ids:
        if key_id in confirmed:
            continue
        if confirmed or not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise ConfigurationError(
                f"--force needs --confirm {key_id} where nobody can be asked; nothing was removed"
            )
        what = f" {_listed({key_id: in_use[key_id]})}." if key_id in in_use else ""
        typed = typer.prompt(
            f"Without key {key_id} nothing that is under it can be read again.{what}\n"
            "Type the key's id to remove it",
            default="",
            show_default=False,
            err=True,
        )
        if typed.strip() != key_id:
            raise ConfigurationError(f"that is not {key_id}; nothing was removed")


def _listed(in_use: Mapping[str, int]) -> str:
    parts = [
        f"{'1 row is' if rows == 1 else f'{rows:,} rows are'} under key {key_id}"
        for key_id, rows in in_use.items()
    ]
    return ", ".join(parts)
