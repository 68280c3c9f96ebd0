"""How many updates of an application are lost while a run works: with our strategy, and in a control without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from jwt_column import KeyRing
from tests.benchmarks.measure import Figure, Table
from tests.benchmarks.reencryption.subjects import OURS
from tests.support.workload import NEW_KEY, OLD_KEY, Unprotected, after, application, create_sessions

if TYPE_CHECKING:
    from migrations_helpers.engine.strategies import Strategy
    from tests.support.databases import Database

__all__ = ["measure_safety"]

_CONTROL = "control: no protection"
_BATCH = 500
# Runs to and fro, after which an application that does not get to write is a fault.
_MOST_RUNS = 400


def measure_safety(database: Database, title: str, rows: int, transactions: int) -> Table:
    """Re-encrypt a table over and over while a process writes to it, and look at every token afterwards.

    Args:
        database: An empty one.
        title: What it is called.
        rows: Rows of the table.
        transactions: How many the application commits, of three random rows each, before it is stopped.
    """
    figures: list[Figure] = []
    # The control is last.
    strategies: dict[str, str | Strategy] = {OURS: "auto", _CONTROL: Unprotected()}
    lost = 0
    engine = sa.create_engine(database.url())
    if database.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    for number, (subject, strategy) in enumerate(strategies.items()):
        written, lost = _lost_updates(engine, f"sessions_{number}", strategy, rows, transactions)
        figures.append(Figure(subject, "rows written", written, "rows"))
        figures.append(Figure(subject, "rows lost", lost, "rows", at_most=0 if subject == OURS else None))
    engine.dispose()
    if not lost:
        print(f"\n{title}: the control has lost nothing either, so that this run proves nothing.")
    return Table(f"{title}: an application writes meanwhile", figures, database.name)


def _lost_updates(
    engine: sa.Engine, name: str, strategy: str | Strategy, rows: int, transactions: int
) -> tuple[int, int]:
    """Return how many rows the application has written, and how many rows do not hold what they should."""
    to_and_fro = [after(), KeyRing([OLD_KEY, NEW_KEY])]
    sessions = create_sessions(engine, rows, name=name)
    with application(engine, sessions) as running:
        for turn in range(_MOST_RUNS):
            # The way back does not come to an end: what the application writes meanwhile is stale for it.
            sessions.reencrypt(
                engine, to_and_fro[turn % 2], strategy=strategy, batch_size=_BATCH, max_passes=2
            )
            if turn and running.commits >= transactions:
                break
        written = running.stop()
    assert running.commits >= transactions
    sessions.reencrypt(engine)
    held = sessions.decrypted(engine)
    expected = sessions.tokens | written.tokens
    assert set(expected) == set(held)
    return len(written.tokens), sum(held[key] != token for key, token in expected.items())
