"""The JSON form of reports: dataclasses of plain values, and primary keys of any type."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def json_dict(report: DataclassInstance, **more: Any) -> dict[str, Any]:
    """Return a dataclass in the types of JSON, *more* in front: tuples become lists, other values text."""
    content: dict[str, Any] = json.loads(json.dumps(more | asdict(report), default=json_text))
    return content


def json_text(value: object) -> str:
    """Return a value that JSON has no type for as text: aware times in UTC, bytes as hex digits."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
