"""A primary and a replica of it, started from the binaries on this machine: for runs that wait for replicas."""

from __future__ import annotations

import signal
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from tests.support.databases import (
    Unavailable,
    _Account,
    _PrivateServer,
    postgresql_binaries,
    start_private_mariadb,
    start_private_postgresql,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Replicated", "replicated"]


@dataclass(frozen=True)
class Replicated:
    """A primary with one replica.

    Attributes:
        url: The primary's.
        replica: The replica's.
        stop: The statement that keeps the replica from applying what it receives.
        go_on: The statement that lets it go on.
        close: Ends the replica.
    """

    url: sa.URL
    replica: sa.URL
    stop: str
    go_on: str
    close: Callable[[], object]

    def tell(self, statement: str) -> None:
        """Send a statement to the replica."""
        engine = sa.create_engine(self.replica, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)


@contextmanager
def replicated(name: str) -> Iterator[Replicated]:
    """Start a primary and a replica of ``"postgresql"`` or ``"mariadb"``."""
    with ExitStack() as stack:
        yield (_postgresql if name == "postgresql" else _mariadb)(stack)


def _postgresql(stack: ExitStack) -> Replicated:
    primary = start_private_postgresql()
    stack.callback(primary.close)
    binaries = postgresql_binaries()
    if binaries is None:
        raise Unavailable("no pg_basebackup")
    private = _PrivateServer("PostgreSQL", _Account.to_run_as("postgres", "nobody"), signal.SIGINT)
    stack.callback(private.close)
    url = primary.url.set(drivername="postgresql").render_as_string(hide_password=False)
    private.prepare(
        binaries / "pg_basebackup", f"--dbname={url}", f"--pgdata={private.data}", "--write-recovery-conf"
    )
    options = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "shared_buffers=64MB", "fsync=off")
    replica = private.start(
        lambda port: [
            *(binaries / "postgres", "-D", private.data, "-c", f"port={port}"),
            *(word for option in options for word in ("-c", option)),
        ],
        primary.url,
    )
    return Replicated(
        primary.url, replica, "SELECT pg_wal_replay_pause()", "SELECT pg_wal_replay_resume()", private.close
    )


def _mariadb(stack: ExitStack) -> Replicated:
    primary = start_private_mariadb("--log-bin=log", "--server-id=1")
    stack.callback(primary.close)
    replica = start_private_mariadb("--server-id=2", "--slave-net-timeout=5")
    stack.callback(replica.close)
    url = primary.url
    pair = Replicated(url, replica.url, "STOP SLAVE SQL_THREAD", "START SLAVE SQL_THREAD", replica.close)
    # The accounts are those that the replica has made itself.
    pair.tell("SET GLOBAL gtid_slave_pos = ''")
    engine = sa.create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        position = connection.exec_driver_sql("SELECT @@gtid_binlog_pos").scalar()
    pair.tell(f"SET GLOBAL gtid_slave_pos = '{position}'")
    pair.tell(
        f"CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {url.port}, MASTER_USER = '{url.username}', "
        f"MASTER_PASSWORD = '{url.password}', MASTER_USE_GTID = slave_pos"
    )
    pair.tell("START SLAVE")
    return pair
