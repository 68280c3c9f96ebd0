"""Reading a database without leaving anything behind: short transactions, which are rolled back."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from ..errors import AuditError, ConfigurationError
from .drivers import close_for_good, own_connection, without_chains, without_prepared_statements
from .error_sentences import explained
from .reflectable import reflectable
from .row_security import raise_for_hidden_rows
from .time_limits import lifted

if TYPE_CHECKING:
    from collections.abc import Iterator

# An asynchronous engine, connection or session has its synchronous one under one of these names.
_SYNCHRONOUS: Final = ("sync_engine", "sync_session")


def refuse_asynchronous(bind: object, function: str) -> None:
    """Raise a ConfigurationError with the call to write instead for an asynchronous engine, connection or session."""
    if any(hasattr(bind, name) for name in _SYNCHRONOUS):
        raise ConfigurationError(
            f"{function}() takes no {type(bind).__name__}; write await session.run_sync({function}, ...), with a "
            "session or a connection"
        )


@contextmanager
def connected(bind: Engine | Connection, function: str) -> Iterator[Connection]:
    """Return the connection that was given, or one of an engine."""
    if isinstance(bind, Connection):
        with without_prepared_statements(bind), without_chains(bind):
            yield bind
    elif isinstance(bind, Engine):
        with own_connection(bind) as connection:
            was_autocommit = is_autocommit(connection)
            try:
                if was_autocommit:
                    # A cursor of PostgreSQL needs a transaction.
                    connection.execution_options(isolation_level="READ COMMITTED")
                with without_prepared_statements(connection):
                    yield connection
            finally:
                if was_autocommit:
                    close_for_good(connection)
    else:
        raise ConfigurationError(
            f"bind is an Engine or a Connection, not {type(bind).__name__}; with an AsyncEngine use "
            f"await connection.run_sync(lambda connection: {function}(connection, ...))"
        )


@contextmanager
def audited(bind: Engine | Connection, function: str) -> Iterator[Connection]:
    """Return the connection as :func:`connected` does, for a function that reports what it reads.

    Raises:
        AuditError: The database cannot be reached, or the connection was lost; there is no report.
    """
    try:
        with connected(bind, function) as connection:
            yield connection
    except SQLAlchemyError as error:
        raise AuditError(
            f"{function}() was not finished, and there is no report ({explained(error)})"
        ) from None


@contextmanager
def rolled_back(connection: Connection, *, at_one_moment: bool = False) -> Iterator[None]:
    """Run a block in a transaction that is rolled back; in one that the caller has begun, in a savepoint.

    After a statement that failed, PostgreSQL refuses every other one in its transaction. Where row-level security would
    hide rows from the block, its statements fail. No time-out of the server ends them, and tables can be reflected.
    With *at_one_moment*, all statements of the block see the rows of one moment; in a transaction that the caller has
    begun, its isolation level decides.
    """
    if not connection.in_transaction():
        transaction: Any = connection.begin()
        if at_one_moment:
            _take_snapshot(connection)
    elif connection.dialect.name == "postgresql" and not is_autocommit(connection):
        transaction = connection.begin_nested()
    elif connection.dialect.name == "postgresql":
        # Without a transaction, settings would stay.
        yield
        return
    else:
        with reflectable(connection), lifted(connection):
            yield
        return
    try:
        raise_for_hidden_rows(connection)
        with reflectable(connection), lifted(connection):
            yield
    finally:
        if not connection.invalidated:
            transaction.rollback()


def _take_snapshot(connection: Connection) -> None:
    """Let the transaction that has just begun see the rows of one moment."""
    name = connection.dialect.name
    if name == "postgresql" and not is_autocommit(connection):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    elif name in ("mysql", "mariadb"):
        # Also where the server's default, or the engine's level, is another.
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
    elif name == "sqlite":
        driver: Any = connection.connection.dbapi_connection
        if not getattr(driver, "in_transaction", True):
            # Python's driver begins no transaction for a SELECT.
            connection.exec_driver_sql("BEGIN")


def streamed(connection: Connection, rows: int) -> dict[str, Any]:
    """Return the execution options that fetch a result *rows* rows at a time.

    On a PostgreSQL connection in autocommit mode these are none: without a transaction a result comes whole.
    """
    return {} if is_autocommit(connection) else {"stream_results": True, "yield_per": rows}


def is_autocommit(connection: Connection) -> bool:
    """Return True for a PostgreSQL connection in autocommit mode."""
    driver: Any = connection.connection.dbapi_connection
    return connection.dialect.name == "postgresql" and bool(getattr(driver, "autocommit", False))
