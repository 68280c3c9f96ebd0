"""Rows per key: the bar, its segments and their widths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..report import ColumnAudit, KeyCount

#: The states of the census in the order of a bar, the wanted ones first.
STATES: Final = ("current", "unknown", "stale", "destroyed", "plaintext", "unreadable")

#: Above this, keys are no longer told apart in a bar, and it has one segment for each state.
MOST_SEGMENTS: Final = 12

#: In percent of the bar: a single row among millions is seen too.
_NARROWEST: Final = 0.6


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar for one of :data:`STATES`: its left edge and its width, in percent of the bar."""

    state: str
    x: float
    width: float


def tokens(column: ColumnAudit) -> int:
    """Return how many rows of a column hold a token, in any state."""
    return sum(count.rows for count in column.keys)


def rows_by_state(columns: Iterable[ColumnAudit]) -> dict[str, int]:
    """Return how many rows of these columns are in each of :data:`STATES`."""
    rows = dict.fromkeys(STATES, 0)
    for column in columns:
        for count in column.keys:
            rows[_state(count)] += count.rows
    return rows


def segments(columns: Sequence[ColumnAudit]) -> tuple[Segment, ...]:
    """Return the bar of these columns: a segment for each key and state where it is one column with few keys."""
    counts: list[tuple[str, int]]
    if len(columns) == 1 and len(columns[0].keys) <= MOST_SEGMENTS:
        counts = [(_state(count), count.rows) for count in columns[0].keys]
        counts.sort(key=lambda pair: (STATES.index(pair[0]), -pair[1]))
    else:
        counts = list(rows_by_state(columns).items())
    shown = [(state, rows) for state, rows in counts if rows > 0]
    total = sum(rows for _, rows in shown)
    widths = [max(100 * rows / total, _NARROWEST) for _, rows in shown]
    scale = 100 / sum(widths) if widths else 1.0
    bar = []
    x = 0.0
    for (state, _), width in zip(shown, widths, strict=True):
        bar.append(Segment(state, round(x, 3), round(width * scale, 3)))
        x += width * scale
    return tuple(bar)


def _state(count: KeyCount) -> str:
    # A baseline may come from a later release, which knows more states.
    return count.state if count.state in STATES else "unknown"
