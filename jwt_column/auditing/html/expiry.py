"""Expiry over time: tokens in spans of time before and after the audit."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from ..report import utc

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from ..report import ColumnAudit

#: Spans in days before the day of the audit, and from it on, in the order of time.
EXPIRED_SPANS: Final = ("over 365", "31\N{EN DASH}365", "8\N{EN DASH}30", "1\N{EN DASH}7")
VALID_SPANS: Final = ("0\N{EN DASH}6", "7\N{EN DASH}29", "30\N{EN DASH}364", "over 364")

# The first day of each span but the first, in days from the audit's.
_STARTS: Final = (-365, -30, -7, 0, 7, 30, 365)

#: Of a chart's height, in percent: one row beside a million is seen too.
_LOWEST: Final = 6.0


def expiry_spans(columns: Iterable[ColumnAudit], created: datetime) -> list[int]:
    """Return the number of tokens that expire in each span; days are those of UTC."""
    rows = [0] * (len(_STARTS) + 1)
    audited = utc(created).date()
    for column in columns:
        for count in column.expiry:
            rows[bisect_right(_STARTS, (count.day - audited).days)] += count.rows
    return rows


def heights(rows: list[int]) -> list[float]:
    """Return the heights of a chart's bars, in percent of the highest."""
    most = max(rows)
    return [round(max(100 * one / most, _LOWEST), 1) if one else 0.0 for one in rows]
