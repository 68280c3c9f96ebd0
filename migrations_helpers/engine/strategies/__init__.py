"""Reading, converting and writing one batch, so that no write of the application is ever lost.

There are two safe ways. A *locking* strategy reads a batch with ``FOR UPDATE SKIP LOCKED``: rows that the
application is changing are left to the next pass, and neither side waits. *Compare-and-swap* reads without locks and
writes a row only if it still holds the value that was read. SQLite has one writer, so there one statement that calls a
Python function does both under the write lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import AlteredError, Batch, Strategy, Task, read_batch
from .compare_and_swap import CompareAndSwap
from .mysql import MySQLExpiredRemoval, MySQLSkipLocked
from .postgresql import PostgreSQLSkipLocked
from .removal import ExpiredRemoval
from .sqlite import SQLiteFunction

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from ..expired import Expired
    from ..table import RunTable

__all__ = [
    "AlteredError",
    "Batch",
    "CompareAndSwap",
    "Strategy",
    "Task",
    "choose_removal",
    "choose_strategy",
    "read_batch",
]


def choose_strategy(connection: Connection, table: RunTable, name: str) -> Strategy:
    """Return the fastest safe strategy of a table, or with ``"cas"`` compare-and-swap, which every database has."""
    dialect = connection.dialect
    if name == "auto":
        if dialect.name == "postgresql":
            return PostgreSQLSkipLocked(dialect)
        if table.dialect == "mysql" and MySQLSkipLocked.is_supported(dialect, table):
            return MySQLSkipLocked(dialect)
        if dialect.name == "sqlite":
            return SQLiteFunction()
    # A transaction of SQLite's that writes keeps all others from writing.
    return CompareAndSwap(can_lock=table.dialect in ("postgresql", "sqlite") or table.engine == "InnoDB")


def choose_removal(connection: Connection, strategy: Strategy, expired: Expired) -> Strategy:
    """Return the removal strategy; it locks rows if the main strategy does."""
    if isinstance(strategy, MySQLSkipLocked):
        return MySQLExpiredRemoval(expired, connection.dialect)
    return ExpiredRemoval(expired, skips_locked=isinstance(strategy, PostgreSQLSkipLocked))
