"""One measurement: a process of its own rewrites a fresh copy of a table once, and says what that took."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from tests.benchmarks.reencryption.contents import RING_VARIABLES, count_opened
from tests.benchmarks.reencryption.server_cpu import ServerClock
from tests.benchmarks.reencryption.stores import SMALL, SMALL_ROWS, TABLE, open_engine
from tests.benchmarks.reencryption.subjects import SUBJECTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.benchmarks.reencryption.entries import Entry
    from tests.benchmarks.reencryption.stores import Store

__all__ = ["Sample", "run_in_child", "take_sample"]

# A child of the fork server has what it needs imported, and of this process it has nothing: neither its memory nor its
# connections.
_PROCESSES: Final = multiprocessing.get_context("forkserver")

# Linux counts in units of 1024 bytes, macOS in bytes.
_MAXRSS_UNIT: Final = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Sample:
    """What a subject took for one table.

    Attributes:
        rows: Rows of the table.
        seconds: Wall-clock time.
        cpu_seconds: CPU time of the process itself.
        server_cpu_seconds: CPU time of the server's process or thread for its connection; None where that is unknown.
        peak_bytes: The most memory that the process ever had, the interpreter and what it imported with it.
        batches: Rows of each batch.
        growth: How many times as large as before the table was afterwards.
    """

    rows: int
    seconds: float
    cpu_seconds: float
    server_cpu_seconds: float | None
    peak_bytes: int
    batches: Sequence[int]
    growth: float = 1.0

    @property
    def row_seconds(self) -> float:
        """Wall-clock time for a row."""
        return self.seconds / self.rows

    @property
    def all_cpu_seconds(self) -> float:
        """CPU time of the process and, where it is known, of the server."""
        return self.cpu_seconds + (self.server_cpu_seconds or 0.0)


def _measure(
    subject: str, bind: sa.Engine | sa.Connection, server: ServerClock, rows: int, batches: Sequence[int]
) -> Sample:
    rewrite = SUBJECTS[subject]
    # The first use of everything is a matter of the program's start, not of the table.
    rewrite(bind, SMALL, [SMALL_ROWS])
    server_start = server.read()
    start, cpu_start = time.perf_counter(), time.process_time()
    made = rewrite(bind, TABLE, batches)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    server_end = server.read()
    server_seconds = None if server_start is None or server_end is None else server_end - server_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT
    return Sample(rows, seconds, cpu_seconds, server_seconds, peak, made)


async def _measure_async(subject: str, url: sa.URL, rows: int, batches: Sequence[int]) -> Sample:
    engine = create_async_engine(url)
    server = ServerClock(engine.sync_engine)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(lambda bind: _measure(subject, bind, server, rows, batches))
    finally:
        await engine.dispose()


def _in_child(subject: str, url: sa.URL, rows: int, batches: Sequence[int]) -> Sample:
    os.environ.update(RING_VARIABLES)
    if url.get_dialect().is_async:
        return asyncio.run(_measure_async(subject, url, rows, batches))
    engine = open_engine(url)
    try:
        return _measure(subject, engine, ServerClock(engine), rows, batches)
    finally:
        engine.dispose()


def run_in_child(subject: str, url: sa.URL, rows: int, batches: Sequence[int]) -> Sample:
    """Run a subject in a process of its own; how the table has grown is not known there."""
    _PROCESSES.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=_PROCESSES) as child:
        return child.submit(_in_child, subject, url, rows, batches).result()


def take_sample(store: Store, template: Any, rows: int, entry: Entry, batches: Sequence[int]) -> Sample:
    """Measure a subject once, in a process of its own, on a copy of its own.

    Args:
        store: The database.
        template: What to copy.
        rows: Its rows.
        entry: What to measure.
        batches: Rows of each batch, for subjects that do not choose them themselves.

    Raises:
        AssertionError: A re-encrypted row does not give its token back under the new key.
    """
    with store.copy(template) as url:
        before = store.size(url)
        own_url = url if entry.driver is None else url.set(drivername=f"{store.name}+{entry.driver}")
        sample = run_in_child(entry.subject, own_url, rows, batches)
        if entry.is_checked:
            _check(url, rows)
        return replace(sample, growth=store.size(url) / before)


def _check(url: sa.URL, rows: int) -> None:
    """Open every row."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect().execution_options(yield_per=1_000) as connection:
        found = connection.execute(sa.text(f"SELECT id, token FROM {TABLE} ORDER BY id"))
        assert (rows, 0) == count_opened(found)
