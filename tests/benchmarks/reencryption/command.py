"""The benchmark of re-encryption: speed, memory, size, and updates that must not be lost."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from tests.benchmarks.reencryption.conversion import measure_conversion
from tests.benchmarks.reencryption.safety import measure_safety
from tests.benchmarks.reencryption.speed import measure_speed
from tests.benchmarks.reencryption.stores import MariaDB, PostgreSQL, SQLite
from tests.benchmarks.servers import add_server_options, servers
from tests.support.databases import Database

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from tests.benchmarks.measure import Table
    from tests.benchmarks.reencryption.stores import Store

__all__ = ["HELP", "add_arguments", "measure"]

HELP: Final = "re-encryption against a rewrite inside the database, and against what people do instead"


def _sizes(text: str) -> list[int]:
    return sorted({int(rows) for rows in text.split(",")})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what this benchmark can be told."""
    parser.add_argument(
        "--rows",
        type=_sizes,
        default=[10_000, 100_000, 1_000_000],
        metavar="ROWS,...",
        help="sizes of the table; the largest is compared with the others (default: 10000,100000,1000000)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds over a small table (default: 5)")
    parser.add_argument(
        "--transactions",
        type=int,
        default=300,
        help="what the application commits while nothing may be lost (default: 300)",
    )
    parser.add_argument("--only", choices=("sqlite", "postgresql", "mariadb"), help="measure one database")
    add_server_options(parser, "postgresql", "mariadb")


def measure(options: argparse.Namespace) -> Iterator[Table]:
    """Yield each table as soon as it is measured."""
    yield measure_conversion()
    if options.only in (None, "sqlite"):
        with tempfile.TemporaryDirectory() as directory:
            url = sa.URL.create("sqlite+pysqlite", database=str(Path(directory) / "safety.sqlite3"))
            yield from _measure(SQLite(), Database("sqlite", url), options)
    for store in (PostgreSQL, MariaDB):
        if options.only in (None, store.name):
            with servers(options, store.name) as found:
                for server in found:
                    with server.fresh_database() as database:
                        yield from _measure(store(server.url), database, options)


def _measure(store: Store, database: Database, options: argparse.Namespace) -> Iterator[Table]:
    yield from measure_speed(store, options.rows, options.rounds)
    rows = min(options.rows[0], 2_000)
    yield measure_safety(database, store.title, rows, options.transactions)
