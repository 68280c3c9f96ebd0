"""A small live service beside a run: it reads a session and writes its token, and knows how long each took."""

from __future__ import annotations

import multiprocessing
import random
import statistics
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from jwt_column import encrypt_token
from tests.benchmarks.reencryption.contents import CONTEXT, DISTINCT, distinct_tokens, ring

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection as Pipe

__all__ = ["Writer", "percentile", "writing"]

_PROCESSES: Final = multiprocessing.get_context("spawn")
#: Transactions in a second: a service that is busy, and not at its limit.
_RATE: Final = 150
# The last transactions, of which a throttle gets to know the 90th percentile.
_RECENT: Final = 40


def percentile(seconds: list[float], share: int) -> float:
    """Return a percentile in milliseconds."""
    return 1_000 * statistics.quantiles(seconds, n=100)[share - 1]


def _serve(url: sa.URL, rows: int, tokens: list[str], pipe: Pipe, recent: Any) -> None:
    """Work until told to stop; a message asks for the latencies since the one before."""
    chooser = random.Random(1)
    keys = ring()
    engine = sa.create_engine(url)
    driver = engine.raw_connection()
    cursor = driver.cursor()
    seconds: list[float] = []
    pipe.send("ready")
    due = time.perf_counter()
    while True:
        if pipe.poll():
            if pipe.recv() == "stop":
                break
            pipe.send(seconds)
            seconds = []
        due = max(due + 1 / _RATE, time.perf_counter() - 1)
        time.sleep(max(0.0, due - time.perf_counter()))
        row = chooser.randint(1, rows)
        stored = encrypt_token(tokens[(row - 1) % DISTINCT], keys, context=CONTEXT)
        began = time.perf_counter()
        cursor.execute("SELECT token FROM sessions WHERE id = %s", (row,))
        cursor.fetchone()
        cursor.execute("UPDATE sessions SET token = %s WHERE id = %s", (stored, row))
        driver.commit()
        seconds.append(time.perf_counter() - began)
        if len(seconds) % 10 == 0 and len(seconds) >= _RECENT:
            recent.value = percentile(seconds[-_RECENT:], 90) / 1_000
    driver.close()
    engine.dispose()


class Writer:
    """A process that serves."""

    def __init__(self, url: sa.URL, rows: int) -> None:
        self._pipe, other = _PROCESSES.Pipe()
        self._recent: Any = _PROCESSES.Value("d", 0.0)
        # The tokens of another process would be others: their signing key is random.
        arguments = (url, rows, distinct_tokens(), other, self._recent)
        self.process = _PROCESSES.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        self._pipe.recv()

    def latencies(self) -> list[float]:
        """Return the seconds of each transaction since the last call."""
        self._pipe.send("latencies")
        seconds: list[float] = self._pipe.recv()
        return seconds

    def recent_latency(self) -> float:
        """Return the 90th percentile of the last transactions, in seconds."""
        return float(self._recent.value)

    def stop(self) -> None:
        """End the process."""
        self._pipe.send("stop")
        self.process.join()


@contextmanager
def writing(url: sa.URL, rows: int) -> Iterator[Writer]:
    """Return a service that works on a table as long as the block lasts."""
    writer = Writer(url, rows)
    try:
        yield writer
    finally:
        writer.stop()
