"""A Galera cluster of three MariaDB nodes on the loopback interface, started from the binaries on this machine.

Every node has a directory, a server and four ports of its own: for clients, for the group, and two on which it is
given the data of the others when it joins. A node that was killed joins again with :meth:`Cluster.heal`.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa

from tests.support.databases import (
    KINDS,
    START_SECONDS,
    SYNC_DRIVERS,
    Database,
    Server,
    Unavailable,
    _Account,
    _autocommit_connection,
    _PrivateServer,
    _wait_until_ready,
    _which,
    ensure_driver,
)
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NODES", "Cluster", "ClusterDatabase", "galera_library", "start_cluster"]

NODES: Final = 3

_LIBRARIES: Final = (
    "/usr/lib/galera/libgalera_smm.so",
    "/usr/lib/libgalera_smm.so",
    "/usr/lib64/galera-4/libgalera_smm.so",
)
_ACCOUNT: Final = "jwt_column"
_HOST: Final = "127.0.0.1"


def galera_library() -> Path | None:
    """Find the library that makes a cluster out of MariaDB's servers."""
    return next((path for path in map(Path, _LIBRARIES) if path.exists()), None)


class _Ports(NamedTuple):
    clients: int
    group: int
    incremental: int  # What a node missed is sent to it here ...
    snapshot: int  # ... and here the whole data directory, if that is too much.


class Node:
    """One server of a cluster."""

    def __init__(self, number: int, ports: _Ports, account: _Account | None, cluster: Cluster) -> None:
        self.number = number
        self.ports = ports
        self.url = sa.URL.create(
            KINDS["mariadb"].drivername, _ACCOUNT, cluster.password, host=_HOST, port=ports.clients
        )
        self.private = _PrivateServer(f"Galera-{number}", account, signal.SIGTERM)
        self._cluster = cluster

    @property
    def is_alive(self) -> bool:
        return self.private._is_alive()

    def launch(self, *options: str) -> None:
        """Start the server; it joins the cluster unless *options* say otherwise."""
        ports, private = self.ports, self.private
        provider = {
            "base_host": _HOST,
            "base_port": ports.group,
            "gmcast.listen_addr": f"tcp://{_HOST}:{ports.group}",
            "ist.recv_addr": f"{_HOST}:{ports.incremental}",
            "gcache.size": "16M",
        }
        members = ",".join(f"{_HOST}:{node.ports.group}" for node in self._cluster.nodes)
        private._launch(
            [
                self._cluster.mariadbd,
                "--no-defaults",  # It must be the first option, else it is not understood.
                f"--datadir={private.data}",
                f"--tmpdir={private.directory}",
                f"--socket={private.directory / 'socket'}",
                f"--pid-file={private.directory / 'pid'}",
                f"--port={ports.clients}",
                f"--bind-address={_HOST}",
                "--skip-name-resolve",
                "--character-set-server=utf8mb4",
                "--innodb-buffer-pool-size=64M",
                "--innodb-log-file-size=16M",
                # What Galera asks of its nodes.
                "--binlog-format=ROW",
                "--innodb-autoinc-lock-mode=2",
                "--wsrep-on=ON",
                f"--wsrep-provider={self._cluster.library}",
                f"--wsrep-provider-options={';'.join(f'{name}={value}' for name, value in provider.items())}",
                f"--wsrep-cluster-address=gcomm://{members}",
                f"--wsrep-cluster-name={self._cluster.name}",
                f"--wsrep-node-name=node-{self.number}",
                f"--wsrep-node-address={_HOST}:{ports.group}",
                "--wsrep-sst-method=rsync",
                f"--wsrep-sst-receive-address={_HOST}:{ports.snapshot}",
                "--wsrep-slave-threads=2",
                *options,
            ]
        )

    def wait_until_synced(self, size: int) -> None:
        """Return when the node takes statements and sees *size* nodes.

        Raises:
            Unavailable: The server ended, or that takes too long.
        """
        wanted = {"wsrep_ready": "ON", "wsrep_local_state_comment": "Synced", "wsrep_cluster_size": str(size)}
        deadline = time.monotonic() + START_SECONDS
        try:
            _wait_until_ready(self.url, lambda: self.is_alive)
            while (found := self.status(*wanted)) != wanted:
                if time.monotonic() > deadline:
                    raise self._failed(f"it is not in a cluster of {size} but {found}")
                time.sleep(0.05)
        except (Unavailable, sa.exc.DBAPIError) as reason:
            raise self._failed(str(reason)) from None

    def _failed(self, reason: str) -> Unavailable:
        last = self.private.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
        return Unavailable(f"node {self.number}: {reason}: {' / '.join(last)}")

    def status(self, *names: str) -> dict[str, Any]:
        """Return status variables of the server."""
        statement = sa.text("SHOW STATUS WHERE variable_name IN :names").bindparams(
            sa.bindparam("names", names, expanding=True)
        )
        with _autocommit_connection(self.url) as connection:
            return {row.Variable_name: row.Value for row in connection.execute(statement)}

    def kill(self) -> None:
        """End the server as a failing machine would: at once."""
        process = self.private.process
        assert process is not None
        process.kill()
        process.wait()


@dataclass(frozen=True)
class ClusterDatabase:
    """An empty database of one test, on every node."""

    cluster: Cluster
    name: str

    def url(self, node: int, driver: str | None = None) -> sa.URL:
        """Return the URL by which a node (0, 1 or 2) has it."""
        return Database("mariadb", self.cluster.nodes[node].url.set(database=self.name)).url(driver)


class Cluster:
    """Three nodes.

    Args:
        library: Galera's library.
        mariadbd: MariaDB's server.
        install: What makes a first data directory.
        account: The account that the servers run under.
    """

    def __init__(self, library: Path, mariadbd: Path, install: Path, account: _Account | None) -> None:
        self.library = library
        self.mariadbd = mariadbd
        self.name = f"jwt-column-{secrets.token_hex(4)}"
        self.password = secrets.token_hex(16)
        self.nodes: list[Node] = []
        ports = free_ports(NODES * len(_Ports._fields))
        width = len(_Ports._fields)
        try:
            for number in range(NODES):
                own = _Ports(*ports[number * width : (number + 1) * width])
                self.nodes.append(Node(number, own, account, self))
            self._bootstrap(install)
        except BaseException:
            self.close()
            raise

    def _bootstrap(self, install: Path) -> None:
        """Make the data directory of the first node, and let the others join it one by one."""
        first = self.nodes[0].private
        init_file = first.write(
            "init.sql",
            f"CREATE OR REPLACE USER {_ACCOUNT}@'{_HOST}' IDENTIFIED BY '{self.password}';\n"
            f"GRANT ALL ON *.* TO {_ACCOUNT}@'{_HOST}' WITH GRANT OPTION;\n",
        )
        first.prepare(install, "--no-defaults", f"--datadir={first.data}", "--skip-test-db")
        self.nodes[0].launch("--wsrep-new-cluster", f"--init-file={init_file}")
        self.nodes[0].wait_until_synced(1)
        self.heal()

    def heal(self) -> None:
        """Start every node that is not running, and wait until the cluster has all three."""
        for node in self.nodes:
            if not node.is_alive:
                node.private.data.mkdir(exist_ok=True)
                node.private._hand_over(node.private.data)
                node.launch()
                alive = sum(other.is_alive for other in self.nodes)
                node.wait_until_synced(alive)
        for node in self.nodes:
            node.wait_until_synced(NODES)

    @contextlib.contextmanager
    def fresh_database(self) -> Iterator[ClusterDatabase]:
        """Create an empty database on all nodes, and drop it at the end."""
        database = Server("mariadb", self.nodes[0].url, "a Galera cluster").create_database()
        name = database.url().database
        assert name is not None
        try:
            yield ClusterDatabase(self, name)
        finally:
            for node in self.nodes:
                # A node that was killed drops it when it joins again.
                with contextlib.suppress(sa.exc.DBAPIError):
                    Server("mariadb", node.url, "a Galera node").drop(database)

    def close(self) -> None:
        """Stop the nodes and remove their directories."""
        for node in reversed(self.nodes):
            node.private.close()


def start_cluster() -> Cluster:
    """Start a cluster.

    Raises:
        Unavailable: A program or a driver that it takes is not on this machine, or it did not start.
    """
    library, mariadbd = galera_library(), _which("mariadbd", "mysqld")
    install = _which("mariadb-install-db", "mysql_install_db")
    found = {
        "libgalera_smm.so": library,
        "mariadbd": mariadbd,
        "mariadb-install-db": install,
        "wsrep_sst_rsync": _which("wsrep_sst_rsync"),
        "rsync": _which("rsync"),
    }
    missing = [name for name, path in found.items() if path is None]
    if library is None or mariadbd is None or install is None or missing:
        raise Unavailable(
            f"No Galera cluster for this test: {', '.join(missing)} not found. "
            "Install one (Debian: apt-get install galera-4 rsync mariadb-server)."
        )
    ensure_driver(SYNC_DRIVERS["mariadb"][0])
    return Cluster(library, mariadbd, install, _Account.to_run_as("mysql", "nobody"))
