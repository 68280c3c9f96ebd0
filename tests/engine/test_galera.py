"""Re-encryption on a Galera cluster of three nodes, which certifies transactions only when they commit.

A write on one node conflicts with a batch on another without either of them waiting: whoever commits first wins, and
the other is told so by error 1213, at any statement. The application must be the one that wins.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from jwt_column import KeyRing
from jwt_column.database.driver_errors import mysql_code
from jwt_column.errors import ReencryptionError
from migrations_helpers import ReencryptionReport, reencrypt
from tests.support.databases import SYNC_DRIVERS, Database, Unavailable, drivers_required, ensure_driver
from tests.support.galera import NODES, Cluster, ClusterDatabase, start_cluster
from tests.support.workload import (
    NEW,
    NEW_KEY,
    OLD_KEY,
    PATIENCE,
    Interrupted,
    Sessions,
    Unprotected,
    after,
    create_sessions,
    in_thread,
    seal,
    token,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.support.workload import Key

ROWS: Final = 300
DEADLOCK: Final = 1213

every_driver = pytest.mark.parametrize("driver", SYNC_DRIVERS["mariadb"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    try:
        cluster = start_cluster()
    except Unavailable as reason:
        # As a driver that takes a compiler: required in CI only.
        if drivers_required(os.environ):
            pytest.fail(str(reason), pytrace=False)
        pytest.skip(str(reason))
    yield cluster
    cluster.close()


class Nodes:
    """Engines on the three nodes of an empty database."""

    def __init__(self, database: ClusterDatabase) -> None:
        self.database = database
        self.urls = [database.url(node) for node in range(NODES)]
        self.engines = [sa.create_engine(url) for url in self.urls]

    def reader(self, node: int) -> sa.Engine:
        """Return an engine that answers from all that was committed before, on whatever node."""
        waiting = {"init_command": "SET SESSION wsrep_sync_wait = 15"}
        return sa.create_engine(self.urls[node], connect_args=waiting, poolclass=NullPool)

    def kill(self, node: int) -> None:
        self.database.cluster.nodes[node].kill()

    def status(self, node: int, name: str) -> Any:
        return self.database.cluster.nodes[node].status(name)[name]

    def assert_all(self, sessions: Sessions, tokens: dict[Key, str]) -> None:
        """On every node that lives, every token is there and every row is current."""
        alive = [node.number for node in self.database.cluster.nodes if node.is_alive]
        assert len(alive) >= 2
        for number in alive:
            reader = self.reader(number)
            assert tokens == sessions.decrypted(reader)
            assert {(NEW, "current"): len(tokens)} == sessions.census(reader)


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[Nodes]:
    """Three nodes, all of them up, with an empty database."""
    cluster.heal()
    with cluster.fresh_database() as database:
        nodes = Nodes(database)
        yield nodes
        for engine in nodes.engines:
            engine.dispose()


def create(nodes: Nodes, rows: int = ROWS) -> Sessions:
    """Create a table of tokens, and return when every node has it."""
    sessions = create_sessions(nodes.engines[0], rows)
    for number in range(NODES):
        assert rows == len(sessions.stored(nodes.reader(number)))
    return sessions


# -- the application -----------------------------------------------------------------------------------------------


class Writer:
    """Writes on one node, in a thread, to rows that no other writer has; remembers what was committed."""

    def __init__(self, engine: sa.Engine, sessions: Sessions, number: int) -> None:
        self.tokens: dict[Key, str] = {}
        self.commits = 0
        self.conflicts = 0
        self.others: list[int | None] = []
        self._engine = engine
        self._table = sessions.table
        self._rows = [key[0] for key in sessions.tokens if key[0] % 2 == number % 2]
        self._number = number
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        chooser = random.Random(self._number)
        for count in itertools.count(1_000_000 * (self._number + 1)):
            if self._stop.is_set():
                return
            row, text = chooser.choice(self._rows), token(count)
            try:
                with self._engine.begin() as connection:
                    new = seal(text, after())
                    connection.execute(
                        sa.update(self._table).where(self._table.c.id == row).values(token=new)
                    )
            except DBAPIError as error:
                # Refused for certain: the transaction was rolled back.
                if mysql_code(error.orig) == DEADLOCK:
                    self.conflicts += 1
                else:
                    self.others.append(mysql_code(error.orig))
            else:
                self.tokens[row,] = text
                self.commits += 1

    def wait_for(self, commits: int) -> None:
        """Return when so many more transactions are committed."""
        wanted, deadline = self.commits + commits, time.monotonic() + PATIENCE
        while self.commits < wanted:
            assert time.monotonic() < deadline, f"the writer hangs: {self.others[-3:]}"
            time.sleep(0.001)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@contextmanager
def writers(nodes: Nodes, sessions: Sessions, *numbers: int) -> Iterator[list[Writer]]:
    """Return writers on these nodes, all of them at work."""
    running = [Writer(nodes.engines[number], sessions, position) for position, number in enumerate(numbers)]
    try:
        for writer in running:
            writer.wait_for(1)
        yield running
    finally:
        for writer in running:
            writer.stop()


def expected(sessions: Sessions, running: Sequence[Writer]) -> dict[Key, str]:
    """Return what every row must hold."""
    tokens = dict(sessions.tokens)
    for writer in running:
        # Nothing but a conflict, which leaves no doubt, was ever answered.
        assert writer.others == []
        tokens |= writer.tokens
    return tokens


# -- conflicts -----------------------------------------------------------------------------------------------------


def write_on(nodes: Nodes, sessions: Sessions, node: int) -> Callable[[], None]:
    """Return a function that changes row 7 on one node, and returns when that has ended a batch on node 2."""

    def write() -> None:
        before = int(nodes.status(2, "wsrep_local_bf_aborts"))
        sessions.put(nodes.engines[node], (7,), seal(token(7_000), after()))
        deadline = time.monotonic() + PATIENCE
        while int(nodes.status(2, "wsrep_local_bf_aborts")) == before:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    return write


@pytest.mark.galera
@every_driver
def test_a_conflict_at_a_statement_is_tried_again(nodes: Nodes, driver: str) -> None:
    ensure(driver)
    sessions = create(nodes)
    engine = sa.create_engine(nodes.database.url(2, driver))
    interrupted = Interrupted("auto", write_on(nodes, sessions, 0))
    report = sessions.reencrypt(engine, strategy=interrupted)
    assert interrupted.happened
    assert report.retries >= 1
    # The application's row is none of those that were rewritten.
    assert (report.reencrypted, report.superseded) == (ROWS - 1, 1)
    nodes.assert_all(sessions, sessions.tokens | {(7,): token(7_000)})
    engine.dispose()


@pytest.mark.galera
@pytest.mark.parametrize("strategy", ["auto", "cas"])
@every_driver
def test_a_conflict_at_the_commit_is_tried_again(nodes: Nodes, driver: str, strategy: str) -> None:
    ensure(driver)
    sessions = create(nodes)
    engine = sa.create_engine(nodes.database.url(2, driver))
    write = write_on(nodes, sessions, 1)
    happened: list[str] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def interrupt(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement == "COMMIT" and not happened:
            happened.append(statement)
            write()

    report = sessions.reencrypt(engine, strategy=strategy)
    assert happened == ["COMMIT"]
    assert report.retries >= 1
    assert (report.reencrypted, report.superseded) == (ROWS - 1, 1)
    nodes.assert_all(sessions, sessions.tokens | {(7,): token(7_000)})
    engine.dispose()


def ensure(driver: str) -> None:
    try:
        ensure_driver(driver)
    except Unavailable as reason:
        if drivers_required(os.environ):
            pytest.fail(str(reason), pytrace=False)
        pytest.skip(str(reason))


# -- an application on two nodes -----------------------------------------------------------------------------------


def rotate_to_and_fro(
    engine: sa.Engine, sessions: Sessions, running: Sequence[Writer], **options: Any
) -> int:
    """Rotate until every writer has committed enough meanwhile; return how often a batch was done again."""
    rings = [after(), KeyRing([OLD_KEY, NEW_KEY])]
    begun = [writer.commits for writer in running]
    retries, deadline = 0, time.monotonic() + PATIENCE
    for turn in itertools.count():
        if turn >= 2 and all(w.commits - count >= 100 for w, count in zip(running, begun, strict=True)):
            break
        assert time.monotonic() < deadline, f"a writer hangs: {[writer.others[-3:] for writer in running]}"
        # The way back does not come to an end: what the application writes is stale for it.
        report = sessions.reencrypt(
            engine, rings[turn % 2], batch_size=50, max_passes=2 if turn % 2 else 10, **options
        )
        retries += report.retries
    return retries


@pytest.mark.galera
@pytest.mark.parametrize("strategy", ["auto", "cas"])
def test_no_update_of_two_nodes_is_lost(nodes: Nodes, strategy: str) -> None:
    sessions = create(nodes)
    with writers(nodes, sessions, 0, 1) as running:
        rotate_to_and_fro(nodes.engines[2], sessions, running, strategy=strategy)
    sessions.reencrypt(nodes.engines[2])
    nodes.assert_all(sessions, expected(sessions, running))


@pytest.mark.galera
def test_without_protection_updates_of_two_nodes_are_lost(nodes: Nodes) -> None:
    """The control: a row that is read, and written without a look at what was written meanwhile."""
    sessions = create(nodes)
    with writers(nodes, sessions, 0, 1) as running:

        def write() -> None:
            for writer in running:
                writer.wait_for(20)
                # Else the cluster would see the conflict, and the batch would be done again.
                writer.stop()
            # By then node 2 has all of it.
            sessions.stored(nodes.reader(2))

        careless = Interrupted(Unprotected(), write)
        sessions.reencrypt(nodes.engines[2], strategy=careless, batch_size=ROWS)
    decrypted = sessions.decrypted(nodes.reader(0))
    lost = [key for key, text in expected(sessions, running).items() if decrypted[key] != text]
    assert len(lost) >= 20


@pytest.mark.galera
def test_shards_on_every_node_lose_nothing(nodes: Nodes) -> None:
    sessions = create(nodes)
    commits = [int(nodes.status(number, "wsrep_local_commits")) for number in range(NODES)]
    urls = itertools.cycle(nodes.urls)
    with ThreadPoolExecutor(3) as threads, writers(nodes, sessions, 0, 1) as running:
        rotate_to_and_fro(
            nodes.engines[2],
            sessions,
            running,
            shards=3,
            executor=threads,
            make_engine=lambda: sa.create_engine(next(urls)),
        )
    sessions.reencrypt(nodes.engines[2])
    nodes.assert_all(sessions, expected(sessions, running))
    # Also on the node that has neither a writer nor, but for the sweep, the run.
    assert all(
        int(nodes.status(number, "wsrep_local_commits")) > before for number, before in enumerate(commits)
    )


# -- what a cluster lacks ------------------------------------------------------------------------------------------


@pytest.mark.galera
def test_a_node_that_lags_is_waited_for(nodes: Nodes) -> None:
    """Otherwise a run could call a table done in which another node has just written a stale row."""
    sessions = create(nodes)
    sessions.reencrypt(nodes.engines[2])
    with nodes.engines[2].connect() as holder:
        # Node 2 applies nothing that other nodes write.
        holder.exec_driver_sql("FLUSH TABLES WITH READ LOCK")
        sessions.put(nodes.engines[0], (7,), seal(sessions.tokens[7,]))
        # The control: whoever just asks is told that everything is current.
        assert sessions.census(nodes.engines[2]) == {(NEW, "current"): ROWS}

        def release() -> None:
            time.sleep(0.5)
            holder.exec_driver_sql("UNLOCK TABLES")

        releasing = in_thread(release, 0)
        report = sessions.reencrypt(nodes.engines[2])
        releasing.join(PATIENCE)
        assert not releasing.is_alive()
    assert (report.total, report.reencrypted) == (1, 1)
    nodes.assert_all(sessions, sessions.tokens)


@pytest.mark.galera
def test_the_session_is_given_back_as_it_was(nodes: Nodes) -> None:
    sessions = create(nodes, 10)
    question = "SELECT @@wsrep_sync_wait, @@innodb_lock_wait_timeout, @@tx_isolation"
    with nodes.engines[0].connect() as connection:
        connection.exec_driver_sql("SET SESSION wsrep_sync_wait = 6")
        before = connection.exec_driver_sql(question).one()
        connection.commit()
        reencrypt(connection, "sessions", "token", type_=sessions.type_())
        assert before == connection.exec_driver_sql(question).one()


@pytest.mark.galera
def test_two_runs_on_one_node_are_kept_apart_and_on_two_nodes_lose_nothing(nodes: Nodes) -> None:
    """A named lock of MariaDB is its node's: that is a matter of speed, for a conflict is found anyway."""
    sessions = create(nodes)
    refused, reports = [], []

    def begin_others() -> None:
        with pytest.raises(ReencryptionError, match="another run is at work") as caught:
            sessions.reencrypt(nodes.engines[0])
        refused.append(caught.value)
        reports.append(sessions.reencrypt(nodes.engines[1]))

    report = sessions.reencrypt(nodes.engines[0], strategy=Interrupted("auto", begin_others))
    assert len(refused) == 1
    assert reports[0].reencrypted + report.reencrypted == ROWS
    nodes.assert_all(sessions, sessions.tokens)


@every_driver
@pytest.mark.parametrize("code", [1235, 1105])
def test_a_cluster_without_named_locks_takes_a_run(
    mariadb_database: Database, driver: str, code: int
) -> None:
    """Some releases refuse GET_LOCK by a code that each driver gives in its own way."""
    ensure(driver)
    engine = sa.create_engine(mariadb_database.url(driver))
    sessions = create_sessions(engine, 10)
    refusals = []

    @sa.event.listens_for(engine, "before_cursor_execute", retval=True)
    def refuse(
        _connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any
    ) -> tuple[str, Any]:
        if "GET_LOCK" not in statement:
            return statement, parameters
        refusals.append(statement)
        # MariaDB answers this as it answers GET_LOCK elsewhere.
        return (
            "BEGIN NOT ATOMIC SIGNAL SQLSTATE '42000' "
            f"SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'GET_LOCK in cluster'; END",
            parameters,
        )

    report = sessions.reencrypt(engine)
    assert len(refusals) == 1
    assert (report.reencrypted, report.retries) == (10, 0)
    engine.dispose()


# -- nodes that die ------------------------------------------------------------------------------------------------


class Killing:
    """A function for ``progress`` that kills a node when the first rows are rewritten."""

    def __init__(self, nodes: Nodes, node: int) -> None:
        self._nodes = nodes
        self._node = node
        self.happened = False

    def __call__(self, report: ReencryptionReport) -> None:
        if report.reencrypted and not self.happened:
            self.happened = True
            self._nodes.kill(self._node)


@pytest.mark.galera
def test_a_run_goes_on_when_another_node_dies(nodes: Nodes) -> None:
    sessions = create(nodes)
    killing = Killing(nodes, 2)
    with writers(nodes, sessions, 0, 1) as running:
        report = sessions.reencrypt(nodes.engines[0], batch_size=20, progress=killing)
        for writer in running:
            writer.wait_for(10)
    assert killing.happened
    assert report.remaining == 0
    tokens = expected(sessions, running)
    nodes.assert_all(sessions, tokens)
    nodes.database.cluster.heal()
    nodes.assert_all(sessions, tokens)


def any_node(urls: Sequence[sa.URL]) -> sa.Engine:
    """Return an engine that connects to the first of several nodes that answers."""
    engine = sa.create_engine(urls[0])

    @sa.event.listens_for(engine, "do_connect")
    def connect(dialect: Any, _record: Any, arguments: Any, options: dict[str, Any]) -> Any:
        for url in urls:
            with suppress(dialect.dbapi.OperationalError):
                return dialect.connect(*arguments, **options | {"host": url.host, "port": url.port})
        return None  # SQLAlchemy connects to the first, and says what is wrong with it.

    return engine


@pytest.mark.galera
def test_a_run_goes_on_at_another_node_when_its_own_dies(nodes: Nodes) -> None:
    sessions = create(nodes)
    killing = Killing(nodes, 2)
    engine = any_node(nodes.urls[::-1])
    with writers(nodes, sessions, 0, 1) as running:
        report = sessions.reencrypt(engine, batch_size=20, progress=killing)
    assert killing.happened
    assert (report.remaining, report.retries >= 1) == (0, True)
    nodes.assert_all(sessions, expected(sessions, running))
    engine.dispose()


@pytest.mark.galera
def test_a_run_that_has_no_other_node_says_so_and_the_next_one_completes(nodes: Nodes) -> None:
    sessions = create(nodes)
    killing = Killing(nodes, 2)
    with writers(nodes, sessions, 0, 1) as running:
        with pytest.raises(ReencryptionError, match="a new run goes on from there") as caught:
            sessions.reencrypt(nodes.engines[2], batch_size=20, progress=killing, max_retries=3)
        first = caught.value.report
        assert isinstance(first, ReencryptionReport)
        assert 0 < first.reencrypted < ROWS
        second = sessions.reencrypt(nodes.engines[0])
    # It began where the other had stopped.
    assert second.total < ROWS
    assert second.remaining == 0
    nodes.assert_all(sessions, expected(sessions, running))


@pytest.mark.galera
def test_shards_whose_node_dies_are_done_on_another(nodes: Nodes) -> None:
    """Each shard has a node of its own; what the dead one leaves is given out again."""
    sessions = create(nodes, 600)
    urls = iter([nodes.urls[0], nodes.urls[1], nodes.urls[2], *[nodes.urls[0]] * 6])
    lock = threading.Lock()
    killed = []

    def make_engine() -> sa.Engine:
        with lock:
            url = next(urls)
        engine = sa.create_engine(url)
        if url == nodes.urls[2]:
            sa.event.listen(engine, "before_cursor_execute", kill_at_third_commit)
        return engine

    def kill_at_third_commit(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement == "COMMIT":
            killed.append(statement)
            if len(killed) == 3:
                nodes.kill(2)

    with ThreadPoolExecutor(3) as threads, writers(nodes, sessions, 0, 1) as running:
        report = sessions.reencrypt(
            nodes.engines[0],
            shards=3,
            executor=threads,
            make_engine=make_engine,
            batch_size=20,
            batch_seconds=1e-9,
            max_retries=3,
        )
    assert len(killed) == 3
    assert report.remaining == 0
    assert report.retries >= 1
    nodes.assert_all(sessions, expected(sessions, running))
