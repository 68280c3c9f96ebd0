"""Values of primary keys as JSON has them."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["plain"]


def plain(value: object) -> str:
    """Return as text what JSON has no type for: times, UUIDs, bytes as hex digits. For ``json.dumps(default=)``."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
