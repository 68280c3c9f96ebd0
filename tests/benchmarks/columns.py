"""What a value costs, and what many rows cost, in an encrypted column."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from tests.benchmarks.subjects import peer_types
from tests.benchmarks.tables import measure_postgresql, measure_sqlite
from tests.benchmarks.values import measure_values

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from tests.benchmarks.measure import Table

__all__ = ["HELP", "add_arguments", "measure"]

HELP: Final = "the column type against bare AES-256-GCM, and against a column of plain text"

_POSTGRESQL_VARIABLE: Final = "JWT_COLUMN_TEST_POSTGRESQL_URL"

# A sample of values takes a thousandth of the time that one of tables does, and a median likes many.
_VALUE_SAMPLES_PER_TABLE_SAMPLE: Final = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what this benchmark can be told."""
    parser.add_argument("--only", choices=("values", "tables"), help="measure one of the two parts")
    parser.add_argument("--rows", type=int, default=10_000, help="rows of a table (default: 10000)")
    parser.add_argument(
        "--samples",
        type=int,
        default=7,
        help=f"samples of a table; of values {_VALUE_SAMPLES_PER_TABLE_SAMPLE} times as many (default: 7)",
    )
    parser.add_argument(
        "--postgresql",
        metavar="URL",
        default=os.environ.get(_POSTGRESQL_VARIABLE),
        help=f"a server where a database may be created and dropped (default: {_POSTGRESQL_VARIABLE})",
    )


def measure(options: argparse.Namespace) -> Iterator[Table]:
    """Yield each table as soon as it is measured."""
    if not peer_types():
        print("sqlalchemy-utils was left out: the extra benchmark brings it.")
    if options.only != "tables":
        yield from measure_values(options.samples * _VALUE_SAMPLES_PER_TABLE_SAMPLE)
    if options.only != "values":
        yield measure_sqlite(options.rows, options.samples)
        if options.postgresql:
            yield measure_postgresql(options.postgresql, options.rows, options.samples)
        else:
            print(f"\nPostgreSQL was left out: no --postgresql, no {_POSTGRESQL_VARIABLE}.")
