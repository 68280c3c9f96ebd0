"""The shards of a run on a Dask cluster: two worker processes, of which one is killed in the middle."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
import threading
from concurrent.futures import Executor, Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

from jwt_column import EncryptedJWT, KeyRing
from jwt_column.errors import ConfigurationError, ReencryptionError
from migrations_helpers.engine import shards
from tests.engine.test_shards import assert_rotated, dying_engine, shows_key, write_keys
from tests.support.databases import drivers_required
from tests.support.workload import (
    CONTEXT,
    NEW,
    NEW_KEY,
    OLD,
    OLD_KEY,
    PATIENCE,
    after,
    application,
    create_sessions,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import sqlalchemy as sa


# In CI its absence is an error, because a skipped test looks like a passed one.
if not drivers_required(os.environ):
    pytest.importorskip("distributed", reason="No Dask for this test: pip install 'jwt-column[dask]'")

# Their functions are not typed.
dask: Any = importlib.import_module("dask")
distributed: Any = importlib.import_module("distributed")

pytestmark = pytest.mark.processes

ROWS: Final = 800
SHARDS: Final = 8


class Wire:
    """Stands between a client and its scheduler, and keeps every byte that the client sends."""

    def __init__(self, cluster: Any) -> None:
        self.sent = bytearray()
        host, _, port = cluster.scheduler.address.removeprefix("tcp://").rpartition(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def _start(self, action: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=action, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        # Until close() shuts the listener.
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                try:
                    server = socket.create_connection(self._upstream)
                except OSError:
                    # The scheduler is gone, and so is this connection to it.
                    client.close()
                    continue
                self._sockets.append(server)
                self._start(self._pass_on, client, server, True)
                self._start(self._pass_on, server, client, False)

    def _pass_on(self, source: socket.socket, target: socket.socket, keep: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if keep:
                    self.sent += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for one in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(PATIENCE)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two worker processes with a thread each, on the loopback interface; a killed one is replaced."""
    with (
        dask.config.set({"distributed.comm.compression": None, "temporary-directory": None}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            local_directory=str(tmp_path_factory.mktemp("dask")),
            silence_logs=logging.CRITICAL,
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    with distributed.Client(cluster) as client:
        # One that was killed by the test before is started again, which takes its time on a busy machine.
        client.wait_for_workers(2, timeout=4 * PATIENCE)
        yield client


@pytest.fixture
def ring_uri(tmp_path: Path) -> str:
    return write_keys(tmp_path / "jwt.keys", NEW_KEY, OLD_KEY)


def test_dask_s_executor_rotates_a_table(engine: sa.Engine, client: Any, ring_uri: str) -> None:
    sessions = create_sessions(engine, ROWS)
    ring = KeyRing.from_uri(ring_uri)
    with client.get_executor() as executor:
        assert isinstance(executor, Executor)
        report = sessions.reencrypt(engine, ring, shards=8, executor=executor)
        assert_rotated(engine, sessions, report)
        assert report.retries == 0
        # A second run is work of its own, and not the first one's result under the same name.
        back = sessions.reencrypt(engine, ring.with_active(OLD), shards=8, executor=executor)
        assert (back.reencrypted, back.by_key_id) == (ROWS, {NEW: ROWS})
        assert_rotated(engine, sessions, sessions.reencrypt(engine, ring, shards=8, executor=executor))


@pytest.mark.parametrize("allowed_failures", [3, 0], ids=["dask does it again", "we do it again"])
def test_nothing_is_lost_when_a_worker_is_killed(
    engine: sa.Engine,
    client: Any,
    cluster: Any,
    ring_uri: str,
    tmp_path: Path,
    allowed_failures: int,
) -> None:
    sessions = create_sessions(engine, ROWS)
    cluster.scheduler.allowed_failures = allowed_failures
    mark = tmp_path / "killed"
    pids = set(client.run(os.getpid).values())
    with client.get_executor() as executor:
        report = sessions.reencrypt(
            engine,
            KeyRing.from_uri(ring_uri),
            shards=SHARDS,
            executor=executor,
            make_engine=partial(dying_engine, engine.url, mark),
            batch_size=20,
            batch_seconds=1e-9,
            nice=0,
        )
    killed = int(mark.read_text())
    assert killed in pids
    assert killed not in client.run(os.getpid).values()
    assert sessions.tokens == sessions.decrypted(engine)
    assert sessions.census(engine) == {(NEW, "current"): ROWS}
    assert (report.total, report.remaining) == (ROWS, 0)
    # Three batches were committed by the killed worker, which reported nothing. With it went the result of each shard
    # that it had finished and that the client had not fetched: Dask does such a shard again too.
    assert report.reencrypted + report.superseded == ROWS
    assert report.superseded in {60 + finished * (ROWS // SHARDS) for finished in range(SHARDS)}
    assert (allowed_failures == 0) == (report.retries > 0)


def test_no_update_is_lost_while_dask_s_workers_work(
    postgresql: sa.Engine, client: Any, ring_uri: str
) -> None:
    """The control, shards that do lose updates, is in ``test_shards.py``: the same application finds it out."""
    sessions = create_sessions(postgresql, ROWS)
    ring = KeyRing.from_uri(ring_uri)
    with client.get_executor() as executor, application(postgresql, sessions) as running:
        before = running.commits
        for turn in range(400):
            if turn >= 3 and turn % 2 and running.commits - before >= 150:
                break
            target = ring.with_active(OLD if turn % 2 else NEW)
            sessions.reencrypt(
                postgresql,
                target,
                shards=4,
                executor=executor,
                batch_size=50,
                max_passes=10 if target is ring else 3,
            )
        written = running.stop()
    assert running.commits - before >= 150
    sessions.reencrypt(postgresql)
    assert sessions.tokens | written.tokens == sessions.decrypted(postgresql)


def test_no_key_reaches_the_scheduler(sqlite: sa.Engine, cluster: Any, client: Any, ring_uri: str) -> None:
    sessions = create_sessions(sqlite, 100)
    with contextlib.closing(Wire(cluster)) as wire, distributed.Client(wire.address) as watched:
        with watched.get_executor() as executor:
            report = sessions.reencrypt(sqlite, KeyRing.from_uri(ring_uri), shards=4, executor=executor)
        assert_rotated(sqlite, sessions, report)
        # The shards went this way, with the place where the keys are, and without the keys.
        assert ring_uri.encode() in wire.sent
        assert not shows_key(bytes(wire.sent))
        # The control: a key that does travel is seen.
        assert watched.submit(len, NEW_KEY, pure=False).result(timeout=PATIENCE) == 32
        assert shows_key(bytes(wire.sent))


def test_a_ring_that_cannot_travel_is_refused(engine: sa.Engine, client: Any) -> None:
    sessions = create_sessions(engine, 100)
    untouched = sessions.stored(engine)
    with client.get_executor() as executor, pytest.raises(ConfigurationError, match="does not travel"):
        sessions.reencrypt(engine, after(), shards=4, executor=executor)
    assert untouched == sessions.stored(engine)


def test_workers_with_another_key_are_refused(engine: sa.Engine, client: Any, tmp_path: Path) -> None:
    """Each worker looks its keys up where it runs; these have a file of the same name with other keys."""
    sessions = create_sessions(engine, 100)
    untouched = sessions.stored(engine)
    uri = write_keys(tmp_path / "jwt.keys", NEW_KEY, OLD_KEY)
    ring = KeyRing.from_uri(uri)
    write_keys(tmp_path / "jwt.keys", OLD_KEY)
    with (
        client.get_executor() as executor,
        pytest.raises(ReencryptionError, match=f"writes under {OLD}, the run under {NEW}"),
    ):
        sessions.reencrypt(engine, ring, shards=4, executor=executor)
    assert untouched == sessions.stored(engine)


class Ending(Executor):
    """Hands shards on, and ends the cluster when it has them all."""

    def __init__(self, executor: Executor, shards: int, end: Callable[[], object]) -> None:
        self._executor = executor
        self._left = shards
        self._end = end

    def submit(self, shard: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = self._executor.submit(shard)
        self._left -= 1
        if self._left == 0:
            self._end()
        return future


@pytest.mark.parametrize("end", ["closed", "cut off"])
def test_a_run_completes_although_the_cluster_is_gone(
    sqlite: sa.Engine, ring_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """A client that is cut off cancels its futures; one whose scheduler says good-bye leaves them pending for ever."""
    monkeypatch.setattr(shards, "_STALL", 1.0)
    sessions = create_sessions(sqlite, ROWS)
    with (
        # The client would look for its scheduler for longer than a test should take.
        dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
        distributed.LocalCluster(
            n_workers=1,
            processes=False,
            protocol="tcp://",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            local_directory=str(tmp_path),
            silence_logs=logging.CRITICAL,
        ) as cluster,
        contextlib.closing(Wire(cluster)) as wire,
        distributed.Client(wire.address) as client,
    ):
        executor = Ending(client.get_executor(), 4, cluster.close if end == "closed" else wire.close)
        report = sessions.reencrypt(
            sqlite, type_=EncryptedJWT(ring_uri, context=CONTEXT), shards=4, executor=executor
        )
    assert sessions.tokens == sessions.decrypted(sqlite)
    assert sessions.census(sqlite) == {(NEW, "current"): ROWS}
    assert report.remaining == 0
    assert report.retries > 0
