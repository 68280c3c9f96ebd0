"""Reading, converting and writing one batch, so that no write of the application is ever lost.

There are two safe ways. A *locking* strategy reads a batch with ``FOR UPDATE SKIP LOCKED``: rows that the
application is changing are left to the next pass, and neither side waits. *Compare-and-swap* reads without locks and
writes a row only if it still holds the value that was read. SQLite has one writer, so there one statement that calls a
Python function does both under the write lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jwt_column.errors import ConfigurationError

from .base import AlteredError, Batch, Strategy, read_batch
from .compare_and_swap import CompareAndSwap
from .mysql import MySQLExpiredRemoval, MySQLSkipLocked, locks_rows
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
    "choose_removal",
    "choose_strategy",
    "read_batch",
]

_AUTO: Final = "auto"
_CAS: Final = "cas"


def choose_strategy(connection: Connection, table: RunTable, name: str) -> Strategy:
    """Return the fastest safe strategy of a table, or the one asked for.

    Args:
        connection: To the database.
        table: The table.
        name: ``"auto"``; ``"cas"`` for compare-and-swap, which every database has.

    Raises:
        ConfigurationError: Another name.
    """
    if name == _CAS:
        return _compare_and_swap(connection, table)
    if name != _AUTO:
        raise ConfigurationError(f"strategy is {_AUTO!r} or {_CAS!r}")
    dialect = connection.dialect
    if dialect.name == "postgresql":
        return PostgreSQLSkipLocked(dialect)
    if dialect.name in ("mysql", "mariadb") and MySQLSkipLocked.is_supported(connection, table):
        return MySQLSkipLocked(dialect)
    if dialect.name == "sqlite":
        return SQLiteFunction()
    return _compare_and_swap(connection, table)


def _compare_and_swap(connection: Connection, table: RunTable) -> CompareAndSwap:
    # A transaction of SQLite's that writes keeps all others from writing.
    can_lock = table.dialect in ("postgresql", "sqlite")
    if table.dialect == "mysql":
        can_lock = locks_rows(connection, table)
    return CompareAndSwap(can_lock=can_lock)


def choose_removal(connection: Connection, strategy: Strategy, expired: Expired) -> Strategy:
    """Return the removal strategy; it locks rows if the main strategy does."""
    if isinstance(strategy, MySQLSkipLocked):
        return MySQLExpiredRemoval(expired, connection.dialect)
    return ExpiredRemoval(expired, skips_locked=isinstance(strategy, PostgreSQLSkipLocked))
