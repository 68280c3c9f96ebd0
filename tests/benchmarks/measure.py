"""Figures that a busy machine does not spoil.

A shared machine is fast in one second and slow in the next, so nothing is measured alone: each sample times the floor
and then the subject, at once, and what counts is the ratio of the two. The median of many such ratios is the figure.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Figure", "Measurement", "Table", "Work", "compare"]

_UNITS_PER_SECOND: Final = {"us": 1_000_000, "ms": 1_000}


@dataclass(frozen=True)
class Measurement:
    """How many times as long as its floor a subject takes.

    Attributes:
        median: The median of the samples' ratios.
        lowest: The lowest of them.
        highest: The highest of them, which on a busy machine says little.
        floor_seconds: The median of the floor's own times, for orientation.
    """

    median: float
    lowest: float
    highest: float
    floor_seconds: float


@dataclass(frozen=True)
class Figure:
    """One figure of a table.

    Attributes:
        subject: Whose it is: the row.
        what: What was measured: the column.
        value: The figure.
        unit: What stands behind it.
        at_most: The limit that the project has set itself, or None.
        lowest: The lowest sample, where there are samples.
        highest: The highest sample, where there are samples.
    """

    subject: str
    what: str
    value: float
    unit: str = "x"
    at_most: float | None = None
    lowest: float | None = None
    highest: float | None = None

    @classmethod
    def of(cls, measurement: Measurement, subject: str, what: str, at_most: float | None) -> Figure:
        """Return the figure of a measurement."""
        return cls(subject, what, measurement.median, "x", at_most, measurement.lowest, measurement.highest)

    @classmethod
    def of_floor(cls, measurement: Measurement, what: str, unit: str, count: int = 1) -> Figure:
        """Return the time of the floor itself, in "us" or "ms", for one of this many repetitions."""
        seconds = measurement.floor_seconds / count
        return cls("the floor itself", what, seconds * _UNITS_PER_SECOND[unit], unit)

    @property
    def is_met(self) -> bool | None:
        """Whether the figure, as it is printed, keeps its limit; None where it has none."""
        return None if self.at_most is None else float(f"{self.value:.2f}") <= self.at_most


@dataclass(frozen=True)
class Table:
    """Figures that stand together.

    Attributes:
        title: What they are about.
        figures: In the order of their rows and columns.
        where: What they are about in a few words, for a list in which figures of several tables stand.
    """

    title: str
    figures: list[Figure]
    where: str = ""


class Work(NamedTuple):
    """What is timed, and what has to be done before each time and is not."""

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


def compare(
    floor: Work, subject: Work, *, samples: int, clock: Callable[[], float] = time.process_time
) -> Measurement:
    """Measure a subject against its floor, in turns.

    Args:
        floor: What the subject is compared with.
        subject: What is measured.
        samples: How often each of the two is timed, after one round that does not count.
        clock: CPU time of this process, unless another process does a part of the work.
    """

    def seconds(work: Work) -> float:
        work.prepare()
        start = clock()
        work.run()
        return clock() - start

    pairs = [(seconds(floor), seconds(subject)) for _ in range(samples + 1)][1:]
    ratios = [subject_seconds / floor_seconds for floor_seconds, subject_seconds in pairs]
    floor_median = statistics.median(floor_seconds for floor_seconds, _ in pairs)
    return Measurement(statistics.median(ratios), min(ratios), max(ratios), floor_median)
