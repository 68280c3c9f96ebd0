"""PgBouncer in front of a PostgreSQL of the tests, started from the program on this machine."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tests.support.databases import Unavailable, _Account, _PrivateServer, _which

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa

    from tests.support.databases import Database

_CONFIGURATION = """
[databases]
app = host={host} port={port} dbname={database} user={user} {password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
auth_type = any
admin_users = jwt_column
pool_mode = {mode}
default_pool_size = {servers}
max_client_conn = 100
unix_socket_dir =
"""


@dataclass(frozen=True)
class Pool:
    """A database behind PgBouncer.

    Attributes:
        pooled: Leads through the pool.
        direct: Leads around it, to look at the servers from outside.
    """

    pooled: sa.URL
    direct: sa.URL

    def url(self, driver: str) -> sa.URL:
        """Return the URL through the pool for a driver."""
        return self.pooled.set(drivername=f"postgresql+{driver}")


@contextlib.contextmanager
def pooled(
    database: Database, mode: Literal["transaction", "session"] = "transaction", servers: int = 3
) -> Iterator[Pool]:
    """Start a PgBouncer in front of a database.

    Raises:
        Unavailable: It is not installed.
    """
    program = _which("pgbouncer")
    if program is None:
        raise Unavailable("PgBouncer is not installed (Debian: pgbouncer)")
    direct = database.url()
    private = _PrivateServer("PgBouncer", _Account.to_run_as("postgres", "nobody"), signal.SIGTERM)

    def command(port: int) -> list[str]:
        text = _CONFIGURATION.format(
            host=direct.host,
            port=direct.port or 5432,
            database=direct.database,
            user=direct.username,
            password=f"password={direct.password}" if direct.password else "",
            listen_port=port,
            mode=mode,
            servers=servers,
        )
        return [str(program), "-q", str(private.write("pgbouncer.ini", text))]

    try:
        url = private.start(command, direct.set(host="127.0.0.1", database="app", password=None))
        yield Pool(url, direct)
    finally:
        private.close()
