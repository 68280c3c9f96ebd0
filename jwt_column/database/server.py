"""The server behind a connection, by the names that it gives itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError

from .reading import rolled_back

if TYPE_CHECKING:
    from sqlalchemy import Connection

# One row each: host, port, database, version. PostgreSQL has no address for a connection over a local socket.
_MYSQL: Final = "SELECT @@hostname, @@port, DATABASE(), VERSION()"
_STATEMENTS: Final = {
    "postgresql": "SELECT coalesce(host(inet_server_addr()), 'local socket'), inet_server_port(), "
    "current_database(), current_setting('server_version')",
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "sqlite": "SELECT NULL, NULL, file, sqlite_version() FROM pragma_database_list WHERE name = 'main'",
}
_PRODUCTS: Final = {"postgresql": "PostgreSQL", "sqlite": "SQLite", "mysql": "MySQL", "mariadb": "MariaDB"}


def public_url(url: URL) -> str:
    """Return a URL without user, password and query, which may hold a secret too."""
    # URL.set() takes None for "as it is".
    return URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()


def server_of(connection: Connection) -> dict[str, str]:
    """Return ``host``, ``name`` and ``version`` of a database as its server gives them.

    A URL may name a proxy, an alias or a service instead. What the server does not tell is left out.
    """
    dialect = connection.dialect
    statement = _STATEMENTS.get(dialect.name)
    if statement is None:
        return {}
    try:
        with rolled_back(connection):
            host, port, name, version = connection.execute(text(statement)).one()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return {}
    product = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
    found = {
        "host": f"{host}:{port}" if host and port else host,
        "name": name or ("in memory" if dialect.name == "sqlite" else None),
        # Behind the number stands the distribution: "15.3 (Debian ...)", "10.11.6-MariaDB-...".
        "version": f"{_PRODUCTS[product]} {re.split('[- ]', str(version))[0]}",
    }
    return {key: str(value) for key, value in found.items() if value}
