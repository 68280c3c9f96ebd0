"""Expiry over time as a plot: which bars it has, where they stand and what its axes say.

Places along the time axis are in percent, so that the plot is as wide as the page is and its text stays as large as the
page's; heights are in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Final

from ..report import utc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from ..report import ExpiryCount

__all__ = ["HEIGHT", "Bar", "ExpiryPlot", "Tick", "expiry_plot"]

#: Height of the tallest bar's axis, in pixels.
HEIGHT: Final = 160

#: Years before and after the audit that are drawn. ``exp`` may be any number, and one token of the year 9999 would
#: squeeze all others into one bar; such rows are counted beside the plot.
_YEARS: Final = 20

#: A plot has at least so many bars' places: one day of expiry is then a bar and not a wall.
_FEWEST: Final = 14

#: Of a bar's place, the part that the bar takes.
_FILL: Final = 0.84

#: In pixels: one row beside a million is seen too.
_LOWEST: Final = 2.0

_MOST_TICKS_X: Final = 7
_MOST_TICKS_Y: Final = 4


@dataclass(frozen=True, slots=True)
class _Unit:
    """A length of time that one bar stands for.

    Attributes:
        name: In the singular.
        number: Which of these the day is in, counted without gaps.
        start: The first day of the one with a number.
        form: How it is written, for :meth:`datetime.date.strftime`.
        longest: Spans of more than so many get the next unit.
        steps: How many may lie between two ticks.
    """

    name: str
    number: Callable[[date], int]
    start: Callable[[int], date]
    form: str
    longest: float
    steps: tuple[int, ...]


# The limits leave a bar about six pixels on a wide page and two on a phone. Weeks begin on Monday, as 0001-01-01 does.
_UNITS: Final = (
    _Unit(
        "day",
        lambda day: day.toordinal() - 1,
        lambda n: date.fromordinal(n + 1),
        "%Y-%m-%d",
        92,
        (1, 2, 7, 14),
    ),
    _Unit(
        "week",
        lambda day: (day.toordinal() - 1) // 7,
        lambda n: date.fromordinal(7 * n + 1),
        "%Y-%m-%d",
        105,
        (1, 2, 4, 8, 16),
    ),
    _Unit(
        "month",
        lambda day: day.year * 12 + day.month - 1,
        lambda n: date(n // 12, n % 12 + 1, 1),
        "%Y-%m",
        132,
        (1, 2, 3, 6, 12, 24),
    ),
    _Unit("year", lambda day: day.year, lambda n: date(n, 1, 1), "%Y", math.inf, (1, 2, 5, 10)),
)


@dataclass(frozen=True, slots=True)
class Bar:
    """The rows of one unit of time.

    Attributes:
        label: The unit's first day, or its month or year.
        expired: Rows that expire on days before the day of the audit.
        valid: Rows that expire on the day of the audit or later.
        x: Left edge, in percent.
        width: In percent.
        expired_height: In pixels; this part stands on the axis.
        valid_height: In pixels; this part stands on the other.
    """

    label: str
    expired: int
    valid: int
    x: float
    width: float
    expired_height: float
    valid_height: float


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: in percent from the left, or in pixels above the time axis."""

    label: str
    place: float


@dataclass(frozen=True, slots=True)
class ExpiryPlot:
    """Everything that the template draws.

    Attributes:
        unit: ``"day"``, ``"week"``, ``"month"`` or ``"year"``.
        bars: Those with rows, in the order of time.
        ticks_x: On the time axis.
        ticks_y: On the axis of rows, without zero.
        audited: Place of the beginning of the audit's day, in percent.
        first: Label of the first bar's place.
        last: Label of the last bar's place.
        earlier: Rows that expire before what is drawn.
        later: Rows that expire after what is drawn.
        peak: The bar with the most rows; None without bars.
    """

    unit: str
    bars: tuple[Bar, ...]
    ticks_x: tuple[Tick, ...]
    ticks_y: tuple[Tick, ...]
    audited: float
    first: str
    last: str
    earlier: int
    later: int
    peak: Bar | None


def expiry_plot(counts: Sequence[ExpiryCount], created: datetime) -> ExpiryPlot:
    """Return the plot of these counts, by day, week, month or year, whichever still shows all of them apart.

    Args:
        counts: Rows per day of expiry, in any order.
        created: When the audit was; its day is always on the time axis.
    """
    today = utc(created).date()
    first, last = _years_from(today, -_YEARS), _years_from(today, _YEARS)
    drawn = [count for count in counts if first <= count.day <= last]
    days = [today, *(count.day for count in drawn)]
    unit = next(unit for unit in _UNITS if _length(unit, days) <= unit.longest)
    start = unit.number(min(days))
    places = max(_length(unit, days), _FEWEST)

    rows: dict[int, list[int]] = {}
    for count in drawn:
        expired_and_valid = rows.setdefault(unit.number(count.day) - start, [0, 0])
        expired_and_valid[count.day >= today] += count.rows
    top, ticks_y = _rows_axis(max((sum(pair) for pair in rows.values()), default=0))
    bars = tuple(
        Bar(
            label=unit.start(start + place).strftime(unit.form),
            expired=expired,
            valid=valid,
            x=round(100 * (place + (1 - _FILL) / 2) / places, 3),
            width=round(100 * _FILL / places, 3),
            expired_height=_height(expired, top),
            valid_height=_height(valid, top),
        )
        for place, (expired, valid) in sorted(rows.items())
    )
    return ExpiryPlot(
        unit=unit.name,
        bars=bars,
        ticks_x=_time_axis(unit, start, places),
        ticks_y=ticks_y,
        audited=round(100 * _place_of(unit, start, today) / places, 3),
        first=unit.start(start).strftime(unit.form),
        last=unit.start(start + places - 1).strftime(unit.form),
        earlier=sum(count.rows for count in counts if count.day < first),
        later=sum(count.rows for count in counts if count.day > last),
        peak=max(bars, key=lambda bar: bar.expired + bar.valid, default=None),
    )


def _years_from(day: date, years: int) -> date:
    # The first of the month, because not every year has a 29 February.
    return day.replace(day=1, year=day.year + years)


def _length(unit: _Unit, days: Sequence[date]) -> int:
    return unit.number(max(days)) - unit.number(min(days)) + 1


def _place_of(unit: _Unit, start: int, day: date) -> float:
    """Return where a day begins, in bars' places from the left."""
    number = unit.number(day)
    begin, end = unit.start(number), unit.start(number + 1)
    return number - start + (day - begin) / (end - begin)


def _height(rows: int, top: int) -> float:
    return round(max(HEIGHT * rows / top, _LOWEST), 2) if rows > 0 else 0.0


def _time_axis(unit: _Unit, start: int, places: int) -> tuple[Tick, ...]:
    # Ticks stand on whole multiples of the step, so that months are marked at January rather than anywhere.
    step = next((step for step in unit.steps if places / step <= _MOST_TICKS_X), unit.steps[-1])
    return tuple(
        Tick(unit.start(number).strftime(unit.form), round(100 * (number - start + 0.5) / places, 3))
        for number in range(start, start + places)
        if number % step == 0
    )


def _rows_axis(most: int) -> tuple[int, tuple[Tick, ...]]:
    """Return the axis' highest number, and its ticks at 1, 2 or 5 times a power of ten."""
    if most <= 0:
        return 1, ()
    power = 10 ** max(math.floor(math.log10(most)) - 1, 0)
    step = next(step * power for step in (1, 2, 5, 10, 20, 50) if most <= _MOST_TICKS_Y * step * power)
    count = math.ceil(most / step)
    ticks = (Tick(_short(step * n), round(HEIGHT * n / count, 2)) for n in range(1, count + 1))
    return step * count, tuple(ticks)


def _short(rows: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if rows >= size:
            return f"{rows / size:g}{letter}"
    return str(rows)
