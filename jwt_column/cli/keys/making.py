"""``keys generate`` and ``keys init``: new keys, in the clear or wrapped."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

from pathlib import Path

import typer
from rich.text import Text

from ...errors import KeyRingError
from ...keys.keks import variable_line
from ...keys.providers.file import uri_of
from ...keys.ring import DataKey, generate_key
from ...keys.ring_file.changes import created
from ...keys.ring_file.format import check_name, check_uri
from ...keys.ring_file.plain import write_key_file
from ...keys.ring_file.store import create_ring_file
from ...keys.ring_file.unwrapping import wrap
from ...keys.schemes import open_source, open_wrapper
from ...wording import counted
from ..console import indented, make_console, print_json
from ..declaring import REQUIRED, value
from ..options import FILE, JSON
from ..verbosity import is_quiet
from .rings import now, open_ring, ring_path
from .showing import ring_to_json, show_changed, state_of

# A ring of more keys than this is a mistake of the keyboard; a rotation has two.
_MOST_KEYS = 100


def generate(
    *,
    file: Path | None = value(
        "--file PATH",
        "Write a key file that only its owner can read, instead of printing. Never replaces a file.",
    ),
    count: int = value(
        "--count",
        "How many, with commas between them; the first one will be active.",
        default=1,
        min=1,
        max=_MOST_KEYS,
    ),
    as_json: bool = JSON,
) -> None:
    """Make keys; see :mod:`jwt_column.cli.keys` for the help text."""
    made = [generate_key() for _ in range(count)]
    if file is not None:
        _write(file, made, as_json=as_json)
        return
    if as_json:
        print_json({"keys": [{"id": DataKey(key).id, "key": key} for key in made]})
        return
    # The form that JWT_COLUMN_KEYS takes. Not through Rich, which would break a long line.
    typer.echo(",".join(made))
    hints = make_console(stderr=True)
    # A script that captures the output needs no hint.
    if hints.is_terminal and make_console().is_terminal and not is_quiet():
        hints.print()
        hints.print(
            "Secret: with this key the tokens can be read, and without it they are lost.", style="dim"
        )
        hints.print("Into the environment:  export JWT_COLUMN_KEYS=$(jwt-column keys generate)", style="dim")
        hints.print("Into a file:           jwt-column keys generate --file jwt.keys", style="dim")


def _write(path: Path, made: list[str], *, as_json: bool) -> None:
    """Write a key file, read it back, and print its key ids."""
    write_key_file(path, made)
    ring = open_ring(path)
    if [key.id for key in ring.file.keys] != [DataKey(key).id for key in made]:
        raise KeyRingError(f"{path} does not hold the keys that were written; write it to another place")
    if as_json:
        print_json(ring_to_json(ring))
        return
    console = make_console()
    console.print(f"Wrote {counted(len(made), 'key')} to {path} (mode 0600).", soft_wrap=True)
    for key in ring.file.keys:
        indented(console, Text.assemble((key.id, "cyan"), f"  {state_of(key)}"))
    setting = f"export JWT_COLUMN_KEYRING={uri_of(path)}"
    console.print(Text.assemble("Use it:  ", (setting, "bold")), soft_wrap=True)
    console.print("Back it up where the database's backups are not: without it the tokens are lost.")


def init(
    *,
    wrapped_by: str = value(
        "--wrapped-by URI",
        "The key-encryption key (KEK), which wraps the data keys: vault-transit:..., pkcs11:... or, for development, "
        "file:kek.key. Never a PIN or token itself.",
        default=REQUIRED,
    ),
    file: Path | None = FILE,
    name: str | None = value(
        "--name NAME",
        "The ring's name, which every wrapped key is bound to. Without it, the file's name up to its dot.",
    ),
    source: str | None = value(
        "--from URI",
        "Take the keys of this ring over, such as file:jwt.keys or env:JWT_COLUMN_KEYS. Without it, make one.",
    ),
    as_json: bool = JSON,
) -> None:
    """Make a key-ring file; see :mod:`jwt_column.cli.keys` for the help text."""
    path = ring_path(file)
    ring_name = check_name(path.name.partition(".")[0] if name is None else name, "key ring (--name)")
    wrapper = open_wrapper(wrapped_by)
    uri = check_uri(wrapper.uri)
    keys = [DataKey(generate_key())] if source is None else list(open_source(source).load())
    wrapped = wrap(wrapper, ring_name, keys)
    entries = [(key.id, ciphertext) for key, ciphertext in zip(keys, wrapped, strict=True)]
    tenants = {key.id: key.tenant for key in keys if key.tenant is not None}
    ring_file = created(ring_name, entries, uri, now(), tenants=tenants)
    ring = create_ring_file(path, ring_file, {key.id: key for key in keys})
    show_changed(
        ring,
        f"Wrote {path}: ring {ring_name}, active key {ring_file.active.id}, wrapped by {uri}.",
        [
            f"Use it:  export JWT_COLUMN_KEYRING={uri_of(path)}",
            f"         export {variable_line(uri)}",
            "Back it up: without this file, or without the key that wraps, the tokens are lost.",
        ],
        as_json=as_json,
    )
