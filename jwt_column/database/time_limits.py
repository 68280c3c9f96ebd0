"""The time-outs of a server that would end a long statement, lifted for the statements of this package.

To count the rows takes as long as the table is large, and a time-out that fits an application does not fit that.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Dialect

__all__ = ["SESSION_LIMITS", "lifted", "transaction_limits"]

# Milliseconds that a transaction may wait for this process, while a key server converts for example. One that hangs is
# cut off at last.
_LONGEST_PAUSE: Final = 600_000

#: Variables of MariaDB and of MySQL that end a statement; 0 for no limit.
SESSION_LIMITS: Final = ("max_statement_time", "max_execution_time")


def transaction_limits(dialect: Dialect) -> dict[str, int]:
    """Return the settings of PostgreSQL with which a transaction may take its time."""
    limits = {"statement_timeout": 0, "idle_in_transaction_session_timeout": _LONGEST_PAUSE}
    if (dialect.server_version_info or ()) >= (17,):
        limits["transaction_timeout"] = 0
    return limits


@contextmanager
def lifted(connection: Connection) -> Iterator[None]:
    """Lift the time-outs within the block; on PostgreSQL until the end of its transaction or savepoint."""
    if connection.dialect.name == "postgresql":
        settings = transaction_limits(connection.dialect).items()
        local = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings)
        connection.exec_driver_sql(f"SELECT {local}")
        yield
        return
    if connection.dialect.name not in ("mysql", "mariadb"):
        yield
        return
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
