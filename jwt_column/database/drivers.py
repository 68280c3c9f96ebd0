"""Drivers, beyond what SQLAlchemy shows: connecting, prepared statements, plain commands, binary results."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine


@contextmanager
def without_prepared_statements(connection: Connection) -> Iterator[None]:
    """Keep the driver from preparing statements under a name within the block.

    Behind a pooler in transaction mode the next transaction has another server, which knows no such name or has another
    statement under it. Whether there is a pooler cannot be known, and a batch gains nothing from prepared statements.
    """
    changed: list[tuple[Any, str, Any]] = []
    if connection.dialect.driver in ("psycopg", "psycopg_async"):
        changed = [(connection.connection.driver_connection, "prepare_threshold", None)]
    elif connection.dialect.driver == "asyncpg":
        # SQLAlchemy's own layer prepares every statement. Without a name, it lasts until the next one.
        layer = connection.connection.dbapi_connection
        changed = [(layer, "_prepared_statement_cache", None), (layer, "_prepared_statement_name_func", str)]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changed]
    for owner, name, value in changed:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


@contextmanager
def without_chains(connection: Connection) -> Iterator[str]:
    """Let COMMIT and ROLLBACK of MariaDB and MySQL end the transaction, and no more, within the block.

    ``completion_type`` may have them begin the next transaction, in which no isolation level can be set, or end the
    connection. The block is given its value: ``NO_CHAIN``, ``CHAIN`` or ``RELEASE``.
    """
    before = "NO_CHAIN"
    if connection.dialect.name in ("mysql", "mariadb"):
        with wrapped_errors(connection):
            before = str(_sent(connection, "SELECT @@completion_type"))
            if before != "NO_CHAIN":
                _sent(connection, "SET SESSION completion_type = 'NO_CHAIN'")
                if not connection.in_transaction():
                    connection.connection.rollback()  # of the one that was chained
    try:
        yield before
    finally:
        if before != "NO_CHAIN" and not (connection.closed or connection.invalidated):
            # A connection that is lost takes its settings along.
            with suppress(DBAPIError), wrapped_errors(connection):
                _sent(connection, f"SET SESSION completion_type = '{before}'")


def _sent(connection: Connection, statement: str) -> Any:
    """Send a statement past SQLAlchemy, which would begin a transaction for it, and return its one value, if any."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(statement)
        found = cursor.fetchone() if cursor.description else None
        return found and found[0]
    finally:
        cursor.close()


def open_connection(engine: Engine) -> Connection:
    """Return a connection of an engine.

    Raises:
        DBAPIError: There is none: also where an asynchronous driver, or the pool, has errors of its own.
    """
    try:
        return engine.connect()
    except (OSError, PoolTimeoutError) as error:
        raise OperationalError("", None, error, hide_parameters=True) from None


@contextmanager
def own_connection(engine: Engine) -> Iterator[Connection]:
    """Return a connection of an engine for the block, in which a COMMIT is that of :func:`without_chains`.

    Raises:
        DBAPIError: There is none.
    """
    connection, completion_type = open_connection(engine), ""
    try:
        with without_chains(connection) as completion_type:
            yield connection
    finally:
        if completion_type == "RELEASE":
            # The pool sends a ROLLBACK, and would keep a connection that the server has ended.
            close_for_good(connection)
        elif not connection.closed:
            connection.close()


def close_for_good(connection: Connection) -> None:
    """Close a connection of an engine whose isolation level was changed, instead of handing it back to the pool.

    SQLAlchemy would set the level back to that of the engine, and not to one that the application has set itself in a
    connect event: its transactions would be isolated less, in silence. A database of SQLite may be in memory, and gone
    with the connection; there SQLAlchemy's way is right.
    """
    if connection.dialect.name != "sqlite" and not connection.closed:
        connection.invalidate()
    connection.close()


@contextmanager
def wrapped_errors(connection: Connection) -> Iterator[None]:
    """Make a DBAPIError of an error that the driver raises within the block, past SQLAlchemy.

    Raises:
        DBAPIError: The driver raised one.
    """
    dialect: Any = connection.dialect
    driver_connection: Any = connection.connection
    try:
        yield
    except dialect.dbapi.Error as error:
        raise DBAPIError.instance(
            None,
            None,
            error,
            dialect.dbapi.Error,
            hide_parameters=True,
            connection_invalidated=_invalidate_if_lost(connection, error, driver_connection),
            dialect=dialect,
        ) from error


def _invalidate_if_lost(connection: Connection, error: Exception, driver_connection: Any) -> bool:
    is_lost = connection.dialect.is_disconnect(error, driver_connection, None)  # type: ignore[arg-type]
    if is_lost:
        connection.invalidate(error)
    return is_lost


def send_commands(connection: Connection, commands: str) -> None:
    """Send commands without parameters and results, several with semicolons between them.

    asyncpg would prepare them first, which it can do with one alone, and which takes a transaction of its own.

    Raises:
        DBAPIError: The database refused.
    """
    if connection.dialect.driver != "asyncpg":
        connection.exec_driver_sql(commands)
        return
    layer: Any = connection.connection.dbapi_connection
    try:
        layer.run_async(lambda driver: driver.execute(commands))
    except Exception as error:
        # asyncpg's errors have no class in common, and none of them is SQLAlchemy's.
        is_lost = _invalidate_if_lost(connection, error, layer)
        raise DBAPIError(
            commands, None, error, hide_parameters=True, connection_invalidated=is_lost
        ) from error


@contextmanager
def binary_results(connection: Connection) -> Iterator[None]:
    """Let psycopg 3 fetch bytes as bytes within the block: as text, hex, they cost more than half of a batch.

    Within the block only: SQLAlchemy's own look-ups in the catalogue read types that psycopg knows as text alone.
    """
    driver: Any = connection.connection.driver_connection if connection.dialect.driver == "psycopg" else None
    factory = getattr(driver, "cursor_factory", None)
    # A cursor of another kind, such as the one that binds in the client, may know text alone.
    if factory is None or factory.__name__ not in ("Cursor", "AsyncCursor"):
        yield
        return
    driver.cursor_factory = _binary_cursor(factory)
    try:
        yield
    finally:
        driver.cursor_factory = factory


@cache
def _binary_cursor(factory: Any) -> Any:
    from psycopg.types.string import TextBinaryLoader  # a driver that not everybody has

    class BinaryCursor(factory):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.format = 1
            # Keys of types that psycopg does not know, enumerations and citext among them, are text in either form.
            self.adapters.register_loader(0, TextBinaryLoader)

    return BinaryCursor
