"""``keys check``: a ring loads, and is in order."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import typer
from rich.text import Text

from ...errors import JWTColumnError
from ...keys.ring_file import disk as _disk
from ...keys.ring_file.format import KeyState
from ...keys.ring_file.store import StoredRing
from ...keys.ring_file.unwrapping import try_unwrap
from ...wording import counted
from ..console import ExitCode, indented, make_console, mark, print_json
from ..declaring import value
from ..options import FILE, JSON
from .rings import PlainFile, now, open_ring
from .showing import ring_to_json

_DAYS = 90


class Finding(NamedTuple):
    """The result of one check, as JSON has it."""

    name: str
    ok: bool
    text: str
    key_id: str | None = None
    retryable: bool = False


def check(
    *,
    file: Path | None = FILE,
    max_age: int = value("--max-age DAYS", "How old an active key may be.", default=_DAYS, min=1),
    as_json: bool = JSON,
) -> None:
    """Check a ring; see :mod:`jwt_column.cli.keys` for the help text."""
    ring = open_ring(file)
    findings = [Finding("permissions", True, "Only its owner may change the file.")]
    if isinstance(ring, PlainFile):
        findings = [
            Finding("permissions", True, "Only its owner may read or write the file."),
            Finding(
                "keys", True, f"{counted(len(ring.file.keys), 'key')} in the clear; their age is not known."
            ),
        ]
    else:
        findings += _keys(ring)
        findings += _ages(ring, now(), max_age)
    findings += _previous(ring)
    is_ok = all(finding.ok for finding in findings)
    if as_json:
        checks = [finding._asdict() for finding in findings]
        print_json(ring_to_json(ring) | {"ok": is_ok, "checks": checks})
    else:
        console = make_console()
        console.print(Text(str(ring.path), "bold"), soft_wrap=True)
        console.print()
        for finding in findings:
            indented(console, Text.assemble(mark(console, ok=finding.ok), " ", finding.text))
    if any(finding.retryable for finding in findings):
        raise typer.Exit(ExitCode.UNREACHABLE)
    if not is_ok:
        raise typer.Exit(ExitCode.FAILURE)


def _keys(ring: StoredRing) -> Iterator[Finding]:
    """Unwrap every key, and ask them about the file."""
    unwrapped = try_unwrap(ring.file)
    for entry in ring.file.keys:
        failure = unwrapped.failures.get(entry.id)
        text = f"Key {entry.id} unwraps." if failure is None else f"Key {entry.id}: {failure}"
        yield Finding("unwraps", failure is None, text, entry.id, getattr(failure, "retryable", False))
    if not unwrapped.keys:
        # Not a word about the codes: this is a KEK that is away, not a file that was changed.
        text = "The file could not be authenticated, because no key unwraps."
        retryable = all(getattr(failure, "retryable", False) for failure in unwrapped.failures.values())
        yield Finding("integrity", False, text, retryable=retryable)
        return
    try:
        ring.file.check_macs(unwrapped.keys)
    except JWTColumnError as error:
        yield Finding("integrity", False, str(error), error.key_id)
    else:
        yield Finding(
            "integrity",
            True,
            f"The MACs of the file are right under {counted(len(unwrapped.keys), 'key')}.",
        )


def _ages(ring: StoredRing, at: datetime, most: int) -> Iterator[Finding]:
    for entry in ring.file.keys:
        if entry.state is KeyState.ACTIVE and entry.activated is not None:
            days = max(0, (at - entry.activated) // timedelta(days=1))
            text = f"Key {entry.id} has been active for {counted(days, 'day')}"
            if days <= most:
                yield Finding("age", True, f"{text}.", entry.id)
            else:
                yield Finding("age", False, f"{text}, more than {most}; rotate it.", entry.id)
        elif entry.state is KeyState.COMPROMISED:
            text = f"Key {entry.id} is compromised; re-encrypt its rows and remove it."
            yield Finding("compromised", False, text, entry.id)


def _previous(ring: StoredRing | PlainFile) -> Iterator[Finding]:
    """Report a previous version that still holds a removed key."""
    path = _disk.previous_of(ring.path.resolve())
    try:
        before = open_ring(path)
    except JWTColumnError:
        # There is none, or none that loads.
        return
    held, held_before = ({key.id for key in one.file.keys} for one in (ring, before))
    if not held & held_before:
        text = f"The file has none of the keys of {path.name}: running processes refuse to load it."
        yield Finding("continuity", False, text)
    elif (
        isinstance(ring, StoredRing)
        and isinstance(before, StoredRing)
        and ring.file.revision <= before.file.revision
    ):
        text = f"The file is revision {ring.file.revision}, and {path.name} is revision {before.file.revision}: an "
        text += "older version was put back, which running processes refuse to load."
        yield Finding("continuity", False, text)
    gone = sorted(held_before - held)
    if gone:
        yield Finding("previous", True, f"{path.name} still holds the removed {', '.join(gone)}.")
