"""Every kind of finding of a preflight: its stable code, its severity, and whether it concerns runs that write alone.

docs/reference/alembic.md has the same list for readers.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from jwt_column.auditing import Finding, Severity


class _Kind(NamedTuple):
    severity: Severity
    stops_readers: bool = True


_STOPS = _Kind(Severity.CRITICAL)
_STOPS_WRITERS = _Kind(Severity.CRITICAL, stops_readers=False)
_SLOWS = _Kind(Severity.WARNING)
_NOTES = _Kind(Severity.INFO)

#: By code. What makes a run or a report wrong is critical, and stops it.
KINDS: Final = {
    "replica": _STOPS_WRITERS,
    "read-only": _STOPS_WRITERS,
    "refused": _STOPS,
    "table": _STOPS,
    "relation": _STOPS,
    "key": _STOPS,
    "bytes-altered": _STOPS,
    "rows-hidden": _STOPS,
    "rights-read": _STOPS,
    "rights-write": _STOPS_WRITERS,
    "foreign-part": _STOPS,
    "rule": _STOPS_WRITERS,
    "replica-identity": _STOPS_WRITERS,
    "column-generated": _STOPS_WRITERS,
    "column-type": _STOPS_WRITERS,
    "column-short": _STOPS_WRITERS,
    "replicates": _SLOWS,
    "replica-identity-full": _SLOWS,
    "triggers": _SLOWS,
    "index-invalid": _SLOWS,
    "engine": _SLOWS,
    "history-kept": _SLOWS,
    "rights-vacuum": _SLOWS,
    "disk-short": _SLOWS,
    "packet-short": _SLOWS,
    "parts": _NOTES,
    "pooler": _NOTES,
    "time-outs": _NOTES,
    "packet": _NOTES,
}


class Fact(NamedTuple):
    """A finding without its column: the code of a kind, a clause that says what is the case, and the cure."""

    code: str
    message: str
    action: str


def finding(column: str, fact: Fact) -> Finding:
    """Return a fact as a finding about a column."""
    code, message, action = fact
    severity = KINDS[code].severity
    return Finding(code, severity, column, f"{message}.", 0, (), f"{action[:1].upper()}{action[1:]}.")
