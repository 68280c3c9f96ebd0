"""The cost of a run to a live service on PostgreSQL, with ``nice`` and with a limit of latency.

A process reads a session and writes its token 150 times a second. In turns nothing else happens, or a run works beside
it: with ``nice=0``, with ``nice=1``, and with ``throttle`` and ``max_latency`` at 1.25 times the service's own 90th
percentile. Latencies are compared within a round.
"""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from migrations_helpers import reencrypt
from tests.benchmarks.measure import Figure, Table
from tests.benchmarks.reencryption.contents import ENVELOPES, back_ring, column_type, ring
from tests.benchmarks.reencryption.stores import TABLE, PostgreSQL
from tests.benchmarks.servers import add_server_options, servers
from tests.benchmarks.writer import percentile, writing

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from tests.benchmarks.writer import Writer

__all__ = ["HELP", "add_arguments", "measure"]

HELP: Final = "a live service beside a run, with and without a throttle"

_ALONE: Final = "no run"
_SHORT: Final = "max_latency, short batches"
_SUBJECTS: Final = (_ALONE, "nice=0", "nice=1", "max_latency", _SHORT)
_LIMIT: Final = 1.25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what this benchmark can be told."""
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the table (default: 200000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--seconds", type=float, default=30.0, help="seconds of each part (default: 30)")
    add_server_options(parser, "postgresql")


def measure(options: argparse.Namespace) -> Iterator[Table]:
    """Yield the table."""
    with servers(options, "postgresql") as found:
        for server in found:
            store = PostgreSQL(server.url)
            with store.template(ENVELOPES, options.rows) as template:
                url = server.url.set(database=template.database)
                with writing(url, options.rows) as writer, closing(_Runs(url)) as runs:
                    yield _measure(runs, writer, store.title, options)


class _Runs:
    """Runs to and fro, so that there is always something to do."""

    def __init__(self, url: sa.URL) -> None:
        self._engine = sa.create_engine(url)
        self._rings = [ring(), back_ring()]

    def close(self) -> None:
        """Close the connections of the runs."""
        self._engine.dispose()

    def work(self, seconds: float, **options: Any) -> int:
        """Re-encrypt for so long, and return how many rows were rewritten."""
        until = datetime.now(UTC) + timedelta(seconds=seconds)
        rewritten = 0
        while datetime.now(UTC) < until:
            type_ = column_type(self._rings[0])
            report = reencrypt(
                self._engine, TABLE, "token", type_=type_, until=until, max_passes=1, **options
            )
            rewritten += report.reencrypted
            if report.reason != "until":
                self._rings.reverse()
        return rewritten


def _measure(runs: _Runs, writer: Writer, title: str, options: argparse.Namespace) -> Table:
    p50: dict[str, list[float]] = {subject: [] for subject in _SUBJECTS}
    p99: dict[str, list[float]] = {subject: [] for subject in _SUBJECTS}
    rate: dict[str, list[float]] = {subject: [] for subject in _SUBJECTS}
    time.sleep(min(options.seconds, 2.0))
    for _ in range(options.rounds):
        limit = 0.0
        for subject in _SUBJECTS:
            writer.latencies()
            rewritten = 0
            if subject == _ALONE:
                time.sleep(options.seconds)
            elif subject.startswith("max_latency"):
                rewritten = runs.work(
                    options.seconds,
                    nice=0,
                    throttle=writer.recent_latency,
                    max_latency=limit,
                    batch_seconds=0.01 if subject == _SHORT else 0.1,
                )
            else:
                rewritten = runs.work(options.seconds, nice=float(subject[-1]))
            seconds = writer.latencies()
            if subject == _ALONE:
                limit = _LIMIT * percentile(seconds, 90) / 1_000
            p50[subject].append(percentile(seconds, 50))
            p99[subject].append(percentile(seconds, 99))
            rate[subject].append(rewritten / options.seconds)
    figures = []
    for subject in _SUBJECTS:
        figures += [
            Figure(subject, "p50", statistics.median(p50[subject]), "ms"),
            Figure(subject, "p99", statistics.median(p99[subject]), "ms"),
        ]
        if subject == _ALONE:
            continue
        at_most = 1.25 if subject.startswith("max_latency") else None
        for what, samples in (("p50 against none", p50), ("p99 against none", p99)):
            ratios = [
                with_it / alone for with_it, alone in zip(samples[subject], samples[_ALONE], strict=True)
            ]
            limit_of_it = at_most if "p99" in what else None
            figures.append(
                Figure(subject, what, statistics.median(ratios), "x", limit_of_it, min(ratios), max(ratios))
            )
        figures.append(Figure(subject, "rows/s", statistics.median(rate[subject]), ""))
    return Table(f"A service beside a run over {options.rows:,} rows, {title}", figures, "service")
