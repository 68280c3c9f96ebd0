"""Every kind of finding of a preflight: its stable code, its severity, and whether it concerns runs that write alone.

docs/reference/alembic.md has the same list for readers.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from jwt_column.auditing import Finding, Severity

__all__ = ["KINDS", "finding"]


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


def finding(code: str, column: str, message: str, action: str) -> Finding:
    """Return a finding of one of these kinds."""
    return Finding(
        code, KINDS[code].severity, column, f"{message}.", 0, (), f"{action[:1].upper()}{action[1:]}."
    )
