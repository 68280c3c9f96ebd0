"""Expiry over time as a plot: its bars, their places, and the marks on its axes.

Places on the time axis are in percent, because the plot is as wide as the page; heights are in pixels.
"""

from __future__ import annotations

import math
from datetime import date, timedelta
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple

from ..report import utc

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from ..report import ExpiryCount

__all__ = ["HEIGHT", "Bar", "ExpiryPlot", "Tick", "expiry_plot"]

#: Height of the axis of rows, in pixels.
HEIGHT: Final = 160

# 20 years before and after the audit are drawn: one token of the year 9999 would squeeze all others into one bar.
_DRAWN: Final = timedelta(days=7_305)
_FEWEST_PLACES: Final = 14
_FILL: Final = 0.84  # of a bar's place
_LOWEST: Final = 2.0  # pixels: one row beside a million is seen too
_MOST_TICKS_X, _MOST_TICKS_Y = 7, 4


class _Unit(NamedTuple):
    """The time that one bar stands for, in days or months; a plot of more than *longest* takes the next unit."""

    name: str
    form: str
    longest: float
    steps: Sequence[int]
    size: int = 1
    in_months: bool = False

    def number(self, day: date) -> int:
        return (12 * day.year + day.month - 1 if self.in_months else day.toordinal() - 1) // self.size

    def start(self, number: int) -> date:
        first = number * self.size
        return date(first // 12, first % 12 + 1, 1) if self.in_months else date.fromordinal(first + 1)

    def label(self, number: int) -> str:
        return self.start(number).strftime(self.form)


# The limits leave a bar about six pixels on a wide page and two on a phone. Weeks begin on Monday, as 0001-01-01 does.
_UNITS: Final = (
    _Unit("day", "%Y-%m-%d", 92, (1, 2, 7, 14)),
    _Unit("week", "%Y-%m-%d", 105, (1, 2, 4, 8, 16), size=7),
    _Unit("month", "%Y-%m", 132, (1, 2, 3, 6, 12, 24), in_months=True),
    _Unit("year", "%Y", math.inf, (1, 2, 5, 10), size=12, in_months=True),
)


class Bar(NamedTuple):
    """One unit of time: rows that expired before the day of the audit, and those valid on it, one on the other."""

    label: str
    expired: int
    valid: int
    x: float
    width: float
    expired_height: float
    valid_height: float


class Tick(NamedTuple):
    """A mark on an axis: in percent from the left, or in pixels above the time axis."""

    label: str
    place: float


class ExpiryPlot(NamedTuple):
    """A plot; ``earlier`` and ``later`` are rows that expire outside it, ``audited`` is the day of the audit."""

    unit: str
    bars: Sequence[Bar]
    ticks_x: Sequence[Tick]
    ticks_y: Sequence[Tick]
    audited: float
    first: str
    last: str
    earlier: int
    later: int
    peak: Bar | None


def expiry_plot(counts: Sequence[ExpiryCount], created: datetime) -> ExpiryPlot:
    """Return the plot of rows per day of expiry, with the day of the audit on its time axis."""
    today = utc(created).date()
    drawn = [one for one in counts if abs(one.day - today) <= _DRAWN]
    first, last = (pick([today, *(one.day for one in drawn)]) for pick in (min, max))
    unit = next(one for one in _UNITS if one.number(last) - one.number(first) < one.longest)
    start = unit.number(first)
    places = max(unit.number(last) - start + 1, _FEWEST_PLACES)

    def percent(number: float) -> float:
        return round(100 * (number - start) / places, 3)

    rows: dict[int, list[int]] = {}
    for one in drawn:
        rows.setdefault(unit.number(one.day), [0, 0])[one.day >= today] += one.rows
    most = max(map(sum, rows.values()), default=0)
    round_numbers = (digit * 10**power for power in count() for digit in (1, 2, 5))
    step = next(number for number in round_numbers if _MOST_TICKS_Y * number >= most)
    lines = math.ceil(most / step)

    def height(part: int) -> float:
        return round(max(HEIGHT * part / (step * lines), _LOWEST), 2) if part else 0.0

    width = round(100 * _FILL / places, 3)
    bars = [
        Bar(unit.label(n), old, new, percent(n + (1 - _FILL) / 2), width, height(old), height(new))
        for n, (old, new) in sorted(rows.items())
    ]
    # Marks stand on multiples of their step, so that of months January is marked.
    stride = next((stride for stride in unit.steps if places / stride <= _MOST_TICKS_X), unit.steps[-1])
    marked = [number for number in range(start, start + places) if number % stride == 0]
    current = unit.number(today)
    begin, end = unit.start(current), unit.start(current + 1)
    return ExpiryPlot(
        unit=unit.name,
        bars=bars,
        ticks_x=[Tick(unit.label(number), percent(number + 0.5)) for number in marked],
        ticks_y=[Tick(_short(step * n), round(HEIGHT * n / lines, 2)) for n in range(1, lines + 1)],
        audited=percent(current + (today - begin) / (end - begin)),
        first=unit.label(start),
        last=unit.label(start + places - 1),
        earlier=sum(one.rows for one in counts if today - one.day > _DRAWN),
        later=sum(one.rows for one in counts if one.day - today > _DRAWN),
        peak=max(bars, key=lambda bar: bar.expired + bar.valid, default=None),
    )


def _short(rows: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if rows >= size:
            return f"{rows / size:g}{letter}"
    return str(rows)
