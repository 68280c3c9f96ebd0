"""The limits of a session that would end a long statement or cut its result, lifted for the statements of this package.

To count the rows takes as long as the table is large, and a time-out that fits an application does not fit that.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Dialect

# Milliseconds that a transaction may wait for this process, while a key server converts for example. One that hangs is
# cut off at last.
_LONGEST_PAUSE: Final = 600_000

#: Variables of MariaDB and of MySQL that end a statement; 0 for no limit.
SESSION_LIMITS: Final = ("max_statement_time", "max_execution_time")
# The greatest sql_select_limit of MariaDB and MySQL, which is none.
_ALL_ROWS: Final = 2**64 - 1


def transaction_limits(dialect: Dialect) -> dict[str, int]:
    """Return the settings of PostgreSQL with which a transaction may take its time."""
    limits = {"statement_timeout": 0, "idle_in_transaction_session_timeout": _LONGEST_PAUSE}
    if (dialect.server_version_info or ()) >= (17,):
        limits["transaction_timeout"] = 0
    return limits


def lift_row_limit(connection: Connection) -> str | None:
    """Lift ``sql_select_limit``, which cuts results in silence, and return what sets it back, or None."""
    if connection.dialect.name not in ("mysql", "mariadb"):
        return None
    limit = int(connection.exec_driver_sql("SELECT @@sql_select_limit").scalar_one())
    if limit >= _ALL_ROWS:
        return None
    connection.exec_driver_sql(f"SET SESSION sql_select_limit = {_ALL_ROWS}")
    return f"SET SESSION sql_select_limit = {limit}"


@contextmanager
def all_rows(connection: Connection) -> Iterator[None]:
    """Lift ``sql_select_limit`` within the block."""
    restore = lift_row_limit(connection)
    try:
        yield
    finally:
        if restore is not None and not connection.invalidated:
            connection.exec_driver_sql(restore)


@contextmanager
def lifted(connection: Connection) -> Iterator[None]:
    """Lift the limits within the block; on PostgreSQL until the end of its transaction or savepoint."""
    if connection.dialect.name == "postgresql":
        settings = transaction_limits(connection.dialect).items()
        local = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings)
        connection.exec_driver_sql(f"SELECT {local}")
        yield
        return
    if connection.dialect.name not in ("mysql", "mariadb"):
        yield
        return
    with all_rows(connection), _without_time_outs(connection):
        yield


@contextmanager
def _without_time_outs(connection: Connection) -> Iterator[None]:
    """Lift the time-outs of MariaDB or MySQL within the block."""
    names = ", ".join(f"'{name}'" for name in SESSION_LIMITS)
    found = connection.exec_driver_sql(f"SHOW VARIABLES WHERE variable_name IN ({names})").all()
    before = [(name, value) for name, value in found if float(value)]
    for name, _ in before:
        connection.exec_driver_sql(f"SET SESSION {name} = 0")
    try:
        yield
    finally:
        if not connection.invalidated:
            for name, value in before:
                connection.exec_driver_sql(f"SET SESSION {name} = {value}")


@contextmanager
def lifted_and_restored(connection: Connection) -> Iterator[None]:
    """Lift the time-outs of statements within the block, and set them back: the transaction may be the caller's.

    On PostgreSQL in autocommit mode they stay.
    """
    if connection.dialect.name != "postgresql":
        with lifted(connection):
            yield
        return
    names = ("statement_timeout", "transaction_timeout")
    shown = ", ".join(f"current_setting('{name}', true)" for name in names)
    found = zip(names, connection.exec_driver_sql(f"SELECT {shown}").one(), strict=True)
    before = [(name, value) for name, value in found if value not in (None, "0")]
    for name, _ in before:
        connection.exec_driver_sql(f"SELECT set_config('{name}', '0', true)")
    yield
    # After a statement that failed, the end of the transaction does it.
    for name, value in before:
        connection.exec_driver_sql(f"SELECT set_config('{name}', '{value}', true)")
