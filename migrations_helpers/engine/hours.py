"""The hours in which a run works: until a moment, or in a window of every day, in the local time of the process."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Final

from jwt_column.errors import ConfigurationError

_WINDOW: Final = re.compile(r"\s*(\d{1,2}:\d{2})\s*[-\u2013]\s*(\d{1,2}:\d{2})\s*")


@dataclass(frozen=True, slots=True)
class Window:
    """The hours of every day in which a run works; they may cross midnight."""

    opens: time
    closes: time

    def seconds_until_open(self, now: datetime) -> float:
        """Return how long it takes until the window opens; 0 while it is open."""
        clock = now.time()
        if self.opens < self.closes:
            is_open = self.opens <= clock < self.closes
        else:
            is_open = clock >= self.opens or clock < self.closes
        if is_open:
            return 0.0
        opening = datetime.combine(now.date(), self.opens)
        if opening < now:
            opening += timedelta(days=1)
        return (opening - now).total_seconds()

    def __str__(self) -> str:
        return f"{self.opens:%H:%M}-{self.closes:%H:%M}"


def window(given: object) -> Window:
    """Return the window of a text such as ``22:00-05:00``, or of two times; refuse anything else."""
    if isinstance(given, Window):
        return given
    if isinstance(given, str) and (found := _WINDOW.fullmatch(given)):
        given = found.groups()
    if isinstance(given, tuple | list) and len(given) == 2:
        opens, closes = (_time(one) for one in given)
        if opens is not None and closes is not None and opens != closes:
            return Window(opens, closes)
    raise ConfigurationError(
        "window (--window) is two different times of the day with a hyphen between them, as in 22:00-05:00"
    )


def moment(given: object, now: datetime | None = None) -> datetime:
    """Return the moment of a datetime, of a time (its next occurrence), or of a text of either; refuse anything else.

    A datetime without a zone is local.
    """
    if isinstance(given, str):
        found = _time(given)
        try:
            given = found or datetime.fromisoformat(given)
        except ValueError:
            given = None
    if isinstance(given, time) and given.tzinfo is None:
        now = now or datetime.now()
        next_one = datetime.combine(now.date(), given)
        given = next_one if next_one > now else next_one + timedelta(days=1)
    # The last days of the year 9999 are in no other zone.
    with suppress(ValueError, OverflowError):
        if isinstance(given, datetime):
            return given.astimezone(UTC)
    raise ConfigurationError(
        "until (--until) is a time of the day, as 05:00, or a date and a time, as 2026-11-30T05:00"
    )


def _time(given: object) -> time | None:
    if isinstance(given, str) and re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", given):
        try:
            return time.fromisoformat(given.zfill(5) if given.count(":") == 1 else given.zfill(8))
        except ValueError:
            return None
    return given if isinstance(given, time) and given.tzinfo is None else None
