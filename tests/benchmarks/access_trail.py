"""What the access trail costs: the same SELECT with a sink and without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from jwt_column import EncryptedJWT, KeyRing
from jwt_column.access_trail import Access, set_access_sink
from tests.benchmarks.measure import Figure, Table, Work, compare
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

__all__ = ["HELP", "add_arguments", "measure"]

HELP: Final = "a SELECT that says which tokens it has decrypted, against one that does not"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what this benchmark can be told."""
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the table (default: 10000)")
    parser.add_argument("--samples", type=int, default=15, help="samples (default: 15)")


def measure(options: argparse.Namespace) -> Iterator[Table]:
    """Yield the one table, by CPU time."""
    engine = sa.create_engine("sqlite://")
    table = sa.Table(
        "logins",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("token", EncryptedJWT(KeyRing.generate())),
    )
    table.create(engine)
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"token": signed_token("RS256")}] * options.rows)
    noted: list[Access] = []

    def select() -> None:
        # The sink is told when the connection goes back to the pool.
        with engine.connect() as connection:
            connection.execute(sa.select(table.c.token)).all()

    measured = compare(
        Work(select, lambda: set_access_sink(None)),
        Work(select, lambda: set_access_sink(noted.append)),
        samples=options.samples,
    )
    set_access_sink(None)
    # Once for each sample and for the round that does not count.
    assert [access.count for access in noted] == [options.rows] * (options.samples + 1)
    engine.dispose()
    yield Table(
        f"SELECT of {options.rows:,} tokens on SQLite, against the same without a sink (CPU time)",
        [
            Figure.of_floor(measured, "Core select", "ms"),
            Figure.of(measured, "with a sink", "Core select", None),
        ],
    )
