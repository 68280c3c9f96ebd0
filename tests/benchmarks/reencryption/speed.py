"""How fast tables of several sizes are re-encrypted, what memory that takes, and how large they are afterwards.

The subjects are measured in turns, in an order that changes with each round, and a ratio is one within a round: in the
next the machine may be slower. A figure is the median of the rounds.
"""

from __future__ import annotations

import contextlib
import random
import statistics
from typing import TYPE_CHECKING, Any, Final, Self

from tests.benchmarks.measure import Figure, Table
from tests.benchmarks.reencryption.entries import (
    FLOOR_ENTRY,
    main_entry,
    other_drivers,
    rivals,
    two_shards,
)
from tests.benchmarks.reencryption.samples import take_sample
from tests.support.databases import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.benchmarks.reencryption.contents import Content
    from tests.benchmarks.reencryption.entries import Entry
    from tests.benchmarks.reencryption.samples import Sample
    from tests.benchmarks.reencryption.stores import Store

    Round = dict[Entry, Sample]

__all__ = ["measure_speed"]

_FLOOR_LIMITS: Final = {"postgresql": 2.5, "mariadb": 4.5, "sqlite": 1.5}
_SHARDS_LIMIT: Final = 0.6
_SIZE_LIMIT: Final = 1.15
_MEMORY_LIMIT: Final = 20.0

# Rows of a batch, for whoever is measured before the first run of ours has shown which batches it makes.
_FIRST_BATCH: Final = 500
# A million rows are measured once, a hundred thousand three times: what takes long averages by itself.
_ROWS_OF_ALL_ROUNDS: Final = 300_000

_MEGABYTE: Final = 1_000_000
_MICROSECONDS: Final = 1_000_000


class _Measuring:
    """Measures on tables of one size, which last as long as the block."""

    def __init__(self, store: Store, rows: int, entries: Sequence[Entry]) -> None:
        self._store = store
        self._rows = rows
        self._main = main_entry(store)
        self._entries = list(entries)
        self._batches: Sequence[int] = [_FIRST_BATCH] * -(-rows // _FIRST_BATCH)
        self._order = random.Random(rows)
        self._templates: dict[Content, Any] = {}
        self._stack = contextlib.ExitStack()
        self.rounds: list[Round] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for content in dict.fromkeys(entry.content for entry in self._entries):
                try:
                    template = stack.enter_context(self._store.template(content, self._rows))
                except Unavailable as reason:
                    left_out = [entry for entry in self._entries if entry.content is content]
                    print(
                        f"\n{self._store.title}: no {', '.join(entry.name for entry in left_out)}: {reason}"
                    )
                    self._entries = [entry for entry in self._entries if entry not in left_out]
                else:
                    self._templates[content] = template
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> None:
        """Measure everything once more; ours first in the first round, because it shows which batches it makes."""
        entries = list(self._entries)
        if self.rounds:
            self._order.shuffle(entries)
        self.rounds.append({entry: self._sample(entry) for entry in entries})

    def _sample(self, entry: Entry) -> Sample:
        template = self._templates[entry.content]
        sample = take_sample(self._store, template, self._rows, entry, self._batches)
        if entry == self._main:
            self._batches = sample.batches
        return sample

    def samples(self, entry: Entry) -> list[Sample]:
        """Return what was measured of one subject, in the order of the rounds."""
        return [found[entry] for found in self.rounds]

    def table(self) -> Table:
        """Return the medians."""
        figures: list[Figure] = []
        for entry in self._entries:
            samples = self.samples(entry)
            row_seconds = statistics.median(sample.row_seconds for sample in samples)
            figures.append(Figure(entry.name, "time per row", _MICROSECONDS * row_seconds, "us"))
            if entry != FLOOR_ENTRY:
                limit = _FLOOR_LIMITS[self._store.name] if entry == self._main else None
                figures.append(_ratio(entry.name, "against floor", samples, self.samples(FLOOR_ENTRY), limit))
            if not entry.is_sharded:
                figures += self._of_one_process(entry, samples)
            growth = statistics.median(sample.growth for sample in samples)
            figures.append(Figure(entry.name, "table after", growth))
        title = f"{self._rows:,} rows on {self._store.title}, against a rewrite in the database"
        return Table(title, figures, f"{self._store.name}, {_short(self._rows)} rows")

    def _of_one_process(self, entry: Entry, samples: Sequence[Sample]) -> Iterator[Figure]:
        client = [sample.cpu_seconds for sample in samples]
        server = [sample.server_cpu_seconds for sample in samples if sample.server_cpu_seconds is not None]
        for name, seconds in (("client CPU", client), ("server CPU", server)):
            if seconds:
                yield Figure(entry.name, name, _MICROSECONDS * statistics.median(seconds) / self._rows, "us")
        if entry != FLOOR_ENTRY:
            floors = self.samples(FLOOR_ENTRY)
            ratios = [
                sample.all_cpu_seconds / floor.all_cpu_seconds
                for sample, floor in zip(samples, floors, strict=True)
            ]
            if len(server) == len(samples) or self._store.name == "sqlite":
                yield _of(entry.name, "CPU ratio", ratios, None)
        yield Figure(
            entry.name, "peak memory", max(sample.peak_bytes for sample in samples) / _MEGABYTE, "MB"
        )


def _of(subject: str, what: str, ratios: Sequence[float], at_most: float | None) -> Figure:
    return Figure(subject, what, statistics.median(ratios), "x", at_most, min(ratios), max(ratios))


def _ratio(
    subject: str, what: str, samples: Sequence[Sample], floors: Sequence[Sample], at_most: float | None
) -> Figure:
    """Return the median of the ratios within the rounds, by wall-clock time for a row."""
    ratios = [sample.row_seconds / floor.row_seconds for sample, floor in zip(samples, floors, strict=True)]
    return _of(subject, what, ratios, at_most)


def _short(rows: int) -> str:
    """Return 10k for 10,000, 1M for 1,000,000."""
    for unit, symbol in ((1_000_000, "M"), (1_000, "k")):
        if rows >= unit and rows % unit == 0:
            return f"{rows // unit}{symbol}"
    return str(rows)


def measure_speed(store: Store, sizes: Sequence[int], rounds: int) -> Iterator[Table]:
    """Measure tables of every size.

    Args:
        store: The database.
        sizes: Rows, in rising order. At the first everything is measured, at the last only ours and its floor, in
            turns with the size before.
        rounds: How often small tables are measured; large ones less often.
    """
    main = main_entry(store)
    shorter, largest = sizes[:-1] or sizes, sizes[-1]
    smallest_peak = 0
    for rows in shorter:
        entries = [main, FLOOR_ENTRY, *other_drivers(store)]
        if rows == sizes[0]:
            entries += rivals(store)
        with _Measuring(store, rows, entries) as measuring:
            for _ in range(_rounds(rounds, rows)):
                measuring.measure()
            yield measuring.table()
            if rows == sizes[0]:
                smallest_peak = max(sample.peak_bytes for sample in measuring.samples(main))
    if len(sizes) == 1:
        return
    with (
        _Measuring(store, shorter[-1], [main, FLOOR_ENTRY]) as small,
        _Measuring(store, largest, [main, FLOOR_ENTRY, *two_shards(store)]) as large,
    ):
        for _ in range(_rounds(rounds, largest)):
            small.measure()
            large.measure()
            small.measure()
        yield large.table()
        figures = [
            *_compare_sizes(store, small, large),
            _compare_memory(store, large, smallest_peak, sizes[0]),
            *_compare_shards(store, large),
        ]
    yield Table(f"{largest:,} rows on {store.title}", figures, f"{store.name}, {_short(largest)} rows")


def _rounds(rounds: int, rows: int) -> int:
    return max(1, min(rounds, _ROWS_OF_ALL_ROUNDS // rows))


def _compare_sizes(store: Store, small: _Measuring, large: _Measuring) -> Iterator[Figure]:
    """Yield how many times as long a row takes in the large table: as in the small one before it and after it."""
    main = main_entry(store)
    for entry, limit in ((main, _SIZE_LIMIT), (FLOOR_ENTRY, None)):
        smalls = small.samples(entry)
        # Twice each, so that it stands beside its two neighbours.
        larges = [sample for sample in large.samples(entry) for _ in range(2)]
        yield _ratio(entry.name, f"time against {_short(smalls[0].rows)} rows", larges, smalls, limit)


def _compare_memory(store: Store, large: _Measuring, smallest_peak: int, smallest: int) -> Figure:
    main = main_entry(store)
    more = max(sample.peak_bytes for sample in large.samples(main)) - smallest_peak
    return Figure(main.name, f"memory over {_short(smallest)} rows", more / _MEGABYTE, "MB", _MEMORY_LIMIT)


def _compare_shards(store: Store, large: _Measuring) -> Iterator[Figure]:
    """Yield the time of two shards, the start of their processes included, against one."""
    main = main_entry(store)
    for entry in two_shards(store):
        shards, whole = large.samples(entry), large.samples(main)
        yield _ratio(main.name, "shards 2 against 1", shards, whole, _SHARDS_LIMIT)
