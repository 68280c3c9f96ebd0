"""``keys check``: whether a ring would load, and whether it should look as it does."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Annotated, NamedTuple

import typer
from rich.text import Text

from ...errors import JWTColumnError
from ...keys.ring_file import disk as _disk
from ...keys.ring_file.format import KeyState
from ...keys.ring_file.store import StoredRing
from ...keys.ring_file.unwrapping import try_unwrap
from ..console import ExitCode, counted, indented, make_console, mark
from .rings import FileOption, JsonOption, PlainFile, now, open_ring, views_of
from .showing import print_json, ring_to_json

__all__ = ["check"]

_DAYS = 90


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: What it is called in JSON.
        ok: Whether it is as it should be.
        text: The same in words.
        key_id: The key that it is about, or None.
        retryable: Whether that may get better without anyone's doing.
    """

    name: str
    ok: bool
    text: str
    key_id: str | None = None
    retryable: bool = False


def check(
    *,
    file: FileOption = None,
    max_age: Annotated[
        int, typer.Option("--max-age", metavar="DAYS", min=1, help="How old an active key may be.")
    ] = _DAYS,
    as_json: JsonOption = False,
) -> None:
    """Check that a ring loads: permissions, every key unwraps and has its id, nobody changed the file, ages.

    Ends with 1 if something is not as it should be, so that it can watch over a ring, and with 3 if the system that
    holds the KEK cannot be reached.
    """
    ring = open_ring(file)
    findings = [Finding("permissions", True, "Nobody else may change the file.")]
    if isinstance(ring, PlainFile):
        findings = [
            Finding("permissions", True, "Only its owner may read or write the file."),
            Finding("keys", True, f"{counted(len(ring.keys), 'key')} in the clear; their age is not known."),
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
    try:
        ring.file.check_macs(unwrapped.keys)
    except JWTColumnError as error:
        yield Finding("integrity", False, str(error), error.key_id)
    else:
        yield Finding(
            "integrity",
            bool(unwrapped.keys),
            f"The file is vouched for by {counted(len(unwrapped.keys), 'key')}.",
        )


def _ages(ring: StoredRing, at: datetime, most: int) -> Iterator[Finding]:
    for entry in ring.file.keys:
        if entry.state is KeyState.ACTIVE and entry.activated is not None:
            days = max(0, (at - entry.activated) // timedelta(days=1))
            text = f"Key {entry.id} has been active for {days} days"
            if days <= most:
                yield Finding("age", True, f"{text}.", entry.id)
            else:
                yield Finding("age", False, f"{text}, more than {most}; rotate it.", entry.id)
        elif entry.state is KeyState.COMPROMISED:
            text = f"Key {entry.id} is compromised; re-encrypt its rows and remove it."
            yield Finding("compromised", False, text, entry.id)


def _previous(ring: StoredRing | PlainFile) -> Iterator[Finding]:
    """Say so where the previous version holds a key that was removed: a safety net, until it is forgotten."""
    path = _disk.previous_of(ring.path.resolve())
    try:
        before = open_ring(path)
    except JWTColumnError:
        # There is none, or nothing that could be loaded.
        return
    gone = sorted({view.id for view in views_of(before)} - {view.id for view in views_of(ring)})
    if gone:
        yield Finding("previous", True, f"{path.name} still holds the removed {', '.join(gone)}.")
