"""Many rows on PostgreSQL, beside a live service: time per row as the run goes, memory, bloat, and a purge.

``--rows 10000000`` takes about 20 GB of disk and an hour or two on two cores; every token is checked after each run.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jwt_column import EncryptedJWT, purge_expired
from migrations_helpers import reencrypt
from tests.benchmarks.measure import Figure, Table
from tests.benchmarks.reencryption.contents import (
    BACK_VARIABLES,
    CONTEXT,
    ENVELOPES,
    RING_VARIABLES,
    count_opened,
    ring,
)
from tests.benchmarks.reencryption.stores import TABLE, PostgreSQL
from tests.benchmarks.servers import add_server_options, servers
from tests.benchmarks.writer import percentile, writing
from tests.support.tokens import compact

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from migrations_helpers import ReencryptionReport
    from tests.benchmarks.writer import Writer

__all__ = ["HELP", "add_arguments", "measure"]

HELP: Final = "a run over many rows beside a live service, bloat, and a purge"

_PARTS: Final = 10
_MEBIBYTE: Final = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what this benchmark can be told."""
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the table (default: 10000000)")
    parser.add_argument(
        "--purge-rows", type=int, default=1_000_000, help="expired rows to purge (default: 1000000)"
    )
    parser.add_argument(
        "--bloat-rows", type=int, default=500_000, help="rows of the table that may grow (default: 500000)"
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="seconds of the service alone (default: 60)"
    )
    add_server_options(parser, "postgresql")


def measure(options: argparse.Namespace) -> Iterator[Table]:
    """Yield each table as soon as it is measured."""
    with servers(options, "postgresql") as found, _variables(RING_VARIABLES | BACK_VARIABLES):
        for server in found:
            store = PostgreSQL(server.url)
            if options.bloat_rows:
                yield _measure_bloat(store, options.bloat_rows)
            with store.template(ENVELOPES, options.rows) as template:
                url = server.url.set(database=template.database)
                yield from _measure_runs(store, url, options)
                if options.purge_rows:
                    yield _measure_purge(url, store.title, options.purge_rows)


@contextmanager
def _variables(added: dict[str, str]) -> Iterator[None]:
    """Set variables of the environment, in which shards find their keys."""
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# -- runs ----------------------------------------------------------------------------------------------------------


class _Course:
    """The course of a run, by tenths of its rows."""

    def __init__(self, size: Any) -> None:
        self._size = size
        self._began = time.perf_counter()
        #: Rows, seconds, resident megabytes and the table's bytes at the end of each part.
        self.parts: list[tuple[int, float, float, int]] = []

    def __call__(self, report: ReencryptionReport) -> None:
        """Note where the run is."""
        if report.total and report.reencrypted * _PARTS >= report.total * (len(self.parts) + 1):
            seconds = time.perf_counter() - self._began
            self.parts.append((report.reencrypted, seconds, _resident(), self._size()))


def _resident() -> float:
    """Return the megabytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MEBIBYTE


def _measure_runs(store: PostgreSQL, url: sa.URL, options: argparse.Namespace) -> Iterator[Table]:
    where = f"{options.rows:,} rows on {store.title}"
    latencies: dict[str, list[float]] = {}
    with writing(url, options.rows) as writer:
        time.sleep(min(2.0, options.seconds))
        writer.latencies()
        time.sleep(options.seconds)
        latencies["no run"] = writer.latencies()
        course, figures = _run(store, url, writer, latencies, "one process", "JWT_COLUMN_KEYS")
        yield Table(f"{where}: the course of one process", list(_course_figures(course, store.size(url))))
        _, more = _run(store, url, writer, latencies, "two shards", *BACK_VARIABLES, shards=2, max_passes=2)
    alone = latencies["no run"]
    for name, seconds in latencies.items():
        for share in (50, 99):
            figures.append(Figure(name, f"p{share} of the service", percentile(seconds, share), "ms"))
            if name != "no run":
                ratio = percentile(seconds, share) / percentile(alone, share)
                figures.append(Figure(name, f"p{share} against none", ratio))
    yield Table(f"{where}: runs", figures + more)


def _run(
    store: PostgreSQL,
    url: sa.URL,
    writer: Writer,
    latencies: dict[str, list[float]],
    name: str,
    variable: str,
    **options: Any,
) -> tuple[_Course, list[Figure]]:
    """Do one run, and check every token."""
    engine = sa.create_engine(url)
    size = store.size(url)
    course = _Course(lambda: store.size(url))
    writer.latencies()
    report = reencrypt(
        engine,
        TABLE,
        "token",
        type_=EncryptedJWT(f"env:{variable}", context=CONTEXT),
        progress=course,
        **options,
    )
    latencies[name] = writer.latencies()
    with engine.connect().execution_options(stream_results=True, yield_per=2_000) as connection:
        rows = connection.exec_driver_sql(f"SELECT id, token FROM {TABLE} ORDER BY id")
        found, wrong = count_opened(((row.id, bytes(row.token)) for row in rows), is_back="shards" in options)
    engine.dispose()
    return course, [
        Figure(name, "us a row", report.seconds / max(1, report.reencrypted) * 1e6, "us"),
        Figure(name, "seconds", report.seconds, "s"),
        Figure(name, "table after against before", store.size(url) / size),
        Figure(name, "rows checked", found, ""),
        Figure(name, "wrong tokens", wrong, "", at_most=0),
        Figure(name, "rows left", report.remaining, ""),
    ]


def _course_figures(course: _Course, size_at_end: int) -> Iterator[Figure]:
    rows_before, seconds_before = 0, 0.0
    first = course.parts[0][3] if course.parts else size_at_end
    for number, (rows, seconds, resident, size) in enumerate(course.parts, 1):
        name = f"{number * 100 // _PARTS} %"
        per_row = (seconds - seconds_before) / max(1, rows - rows_before) * 1e6
        yield Figure(name, "us a row", per_row, "us")
        yield Figure(name, "memory", resident, "MB")
        yield Figure(name, "table against the first tenth", size / first)
        rows_before, seconds_before = rows, seconds


# -- bloat ---------------------------------------------------------------------------------------------------------


def _measure_bloat(store: PostgreSQL, rows: int) -> Table:
    """Compare the size of a table after a run that vacuums with one that leaves it to autovacuum, or to nobody."""
    figures = []
    with store.template(ENVELOPES, rows) as template:
        for name, vacuum, autovacuum in (
            ("vacuum=True", True, "true"),
            ("vacuum=False, autovacuum", False, "true"),
            ("vacuum=False, no autovacuum", False, "false"),
        ):
            with store.copy(template) as url:
                engine = sa.create_engine(url)
                with engine.begin() as connection:
                    connection.exec_driver_sql(f"ALTER TABLE {TABLE} SET (autovacuum_enabled = {autovacuum})")
                before = store.size(url)
                report = reencrypt(
                    engine,
                    TABLE,
                    "token",
                    type_=EncryptedJWT(ring(), context=CONTEXT),
                    vacuum=vacuum,
                )
                engine.dispose()
                figures += [
                    Figure(name, "table after against before", store.size(url) / before),
                    Figure(name, "us a row", report.seconds / max(1, report.reencrypted) * 1e6, "us"),
                ]
    return Table(f"Size of a table of {rows:,} rows on {store.title}", figures)


# -- purge ---------------------------------------------------------------------------------------------------------


def _measure_purge(url: sa.URL, title: str, rows: int) -> Table:
    """Purge a table with a composite key of which every second row has expired."""
    type_ = EncryptedJWT(ring(), context="expiring.token", expose_expiry=True)
    metadata = sa.MetaData()
    table = sa.Table(
        "expiring",
        metadata,
        sa.Column("tenant", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("token", type_),
    )
    seed = table.to_metadata(metadata, name="expiring_seed")
    distinct, now = 64, datetime.now(UTC)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        metadata.create_all(connection)
        for number in range(distinct):
            expired = now + timedelta(days=-1 if number % 2 else 1)
            connection.execute(
                seed.insert(), {"tenant": 0, "number": number, "token": _token(number, expired)}
            )
        connection.exec_driver_sql(
            "INSERT INTO expiring SELECT n %% 100, n, token FROM expiring_seed, "
            f"generate_series(0, {2 * rows - 1}) n WHERE number = n %% {distinct}"
        )
    with Session(engine) as session:
        began = time.perf_counter()
        removed = purge_expired(session, table.c.token)
        session.commit()
        seconds = time.perf_counter() - began
    with engine.connect() as connection:
        left = connection.scalar(sa.select(sa.func.count()).select_from(table))
    engine.dispose()
    return Table(
        f"A purge of {rows:,} expired rows of {2 * rows:,} with a composite key on {title}",
        [
            Figure("purge_expired", "us a row", seconds / max(1, removed) * 1e6, "us"),
            Figure("purge_expired", "seconds", seconds, "s"),
            Figure("purge_expired", "removed", removed, ""),
            Figure("purge_expired", "left", left or 0, ""),
        ],
    )


def _token(number: int, moment: datetime) -> str:
    """Return a token that expires then; its signature is random."""
    payload = {"sub": f"user-{number}", "exp": int(moment.timestamp()), "pad": "x" * 400}
    return compact({"alg": "RS256"}, payload, os.urandom(256))
