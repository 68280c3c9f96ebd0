"""Looks at a database that leave nothing behind: short transactions, which are rolled back."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.exc import DBAPIError

__all__ = ["connected", "error_name", "look", "streamed"]


@contextmanager
def connected(bind: Engine | Connection, function: str) -> Iterator[Connection]:
    """Give a connection: the one given, or one of an engine.

    Raises:
        ConfigurationError: *bind* is something else.
    """
    if isinstance(bind, Connection):
        yield bind
    elif isinstance(bind, Engine):
        with bind.connect() as connection:
            if _is_autocommit(connection):
                # For this one connection, until it goes back: a cursor of PostgreSQL's needs a transaction.
                connection.execution_options(isolation_level="READ COMMITTED")
            yield connection
    else:
        raise ConfigurationError(
            f"bind is an Engine or a Connection, not {type(bind).__name__}; with an AsyncEngine use "
            f"await connection.run_sync(lambda connection: {function}(connection, ...))"
        )


@contextmanager
def look(connection: Connection) -> Iterator[None]:
    """Make a block a transaction of its own, or, in one that the caller has begun, a savepoint.

    PostgreSQL does nothing more in a transaction after a statement that failed.
    """
    if not connection.in_transaction():
        transaction: Any = connection.begin()
    elif connection.dialect.name == "postgresql" and not _is_autocommit(connection):
        transaction = connection.begin_nested()
    else:
        yield
        return
    try:
        yield
    finally:
        if not connection.invalidated:
            transaction.rollback()


def streamed(connection: Connection, rows: int) -> dict[str, Any]:
    """Return the execution options with which a result comes so many rows at a time.

    None on a connection of PostgreSQL that the caller keeps in autocommit mode: the result then comes whole.
    """
    return {} if _is_autocommit(connection) else {"stream_results": True, "yield_per": rows}


def _is_autocommit(connection: Connection) -> bool:
    """Say whether PostgreSQL has no transaction for what is sent; the other databases do not mind."""
    driver: Any = connection.connection.dbapi_connection
    return connection.dialect.name == "postgresql" and bool(getattr(driver, "autocommit", False))


def error_name(error: DBAPIError) -> str:
    """Return what an error of the database is called; its text may hold values of a row."""
    original = error.orig
    code = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    name = type(original or error).__name__
    return f"{name} {code}" if code else name
