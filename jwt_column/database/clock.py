"""The clock of a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Connection

_MYSQL: Final = "SELECT unix_timestamp(now(6))"

#: The statement that returns the time in seconds since 1970, by dialect.
CLOCKS: Final = {
    "mariadb": _MYSQL,
    "mysql": _MYSQL,
    "postgresql": "SELECT extract(epoch FROM clock_timestamp())",
    "sqlite": "SELECT (julianday('now') - 2440587.5) * 86400",
}


def database_time(connection: Connection) -> float:
    """Return the database's time in seconds since 1970."""
    statement = CLOCKS.get(connection.dialect.name)
    if statement is None:
        raise ConfigurationError(
            f"the clock of {connection.dialect.name} is not known; use SQLite, PostgreSQL, MariaDB or MySQL"
        )
    return float(connection.execute(text(statement)).scalar_one())
