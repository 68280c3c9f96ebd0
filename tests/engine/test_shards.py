"""A run in shards: cut evenly for any key, worked on by any executor, complete whatever becomes of a worker."""

from __future__ import annotations

import base64
import logging
import os
import pickle
import signal
import threading
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from jwt_column import EncryptedJWT, KeyRing, set_default_keyring
from jwt_column.database.key_order import KeyRange
from jwt_column.errors import ConfigurationError, KeyUnavailableError, ReencryptionError
from migrations_helpers import ReencryptionReport, reencrypt
from migrations_helpers.engine import shards
from migrations_helpers.engine.conversions import Reencryption
from migrations_helpers.engine.reflection import Subject, find_table
from migrations_helpers.engine.shards import Shard, cut
from tests.support.models import mapped, session_on
from tests.support.workload import (
    CONTEXT,
    KEY_KINDS,
    LOST_KEY,
    NEW,
    NEW_KEY,
    OLD,
    OLD_KEY,
    PATIENCE,
    KeyKind,
    Sessions,
    Unprotected,
    after,
    application,
    create_sessions,
    cut_off,
    every_server,
    processes,
    seal,
    token,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from migrations_helpers.engine.strategies import Strategy
    from migrations_helpers.engine.table import Key
    from tests.support.databases import Database

ROWS: Final = 330

every_kind = pytest.mark.parametrize("kind", KEY_KINDS, ids=lambda kind: kind.name)


def write_keys(path: Path, *keys: bytes) -> str:
    """Write a key file, the active key first, and return the URI of its ring."""
    path.touch(mode=0o600)
    path.write_text("".join(f"{base64.urlsafe_b64encode(key).decode().rstrip('=')}\n" for key in keys))
    return f"file:{path}"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A key file in which the new key is active."""
    path = tmp_path / "jwt.keys"
    write_keys(path, NEW_KEY, OLD_KEY)
    return path


@pytest.fixture
def ring_uri(key_file: Path) -> str:
    return f"file:{key_file}"


@pytest.fixture
def pool() -> Iterator[ProcessPoolExecutor]:
    """Two processes, which start at once where those of the default pool import everything first."""
    with ProcessPoolExecutor(2, mp_context=processes) as executor:
        yield executor


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


class Inline(Executor):
    """Works on each shard at once, in this very thread; keeps the shards, and says when one is about to begin."""

    def __init__(self, begin: Callable[[Shard], object] = lambda shard: None) -> None:
        self.shards: list[Shard] = []
        self._begin = begin

    def submit(self, shard: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.shards.append(shard)
        future: Future[Any] = Future()
        try:
            self._begin(shard)
            future.set_result(shard())
        except Exception as error:  # noqa: BLE001 - as executors do
            future.set_exception(error)
        return future


def assert_rotated(engine: sa.Engine, sessions: Sessions, report: ReencryptionReport) -> None:
    """Every token is there, every row current, and the report adds up."""
    rows = len(sessions.tokens)
    assert sessions.tokens == sessions.decrypted(engine)
    assert {(NEW, "current"): rows} == sessions.census(engine)
    assert (rows, rows, 0, 0) == (report.total, report.reencrypted, report.superseded, report.remaining)
    assert {OLD: rows} == report.by_key_id


def report_of(error: ReencryptionError) -> ReencryptionReport:
    assert isinstance(error.report, ReencryptionReport)
    return error.report


# -- cutting -------------------------------------------------------------------------------------------------------


def rows_of_ranges(engine: sa.Engine, sessions: Sessions, parts: int) -> list[int]:
    """Cut a table, and return how many rows of each range need work.

    The ranges follow each other without a gap, and hold together what the whole table holds.
    """
    type_ = sessions.type_()
    with engine.connect() as connection:
        table = find_table(connection, Subject(sessions.table.name, "token", type_, key_columns=sessions.key))
        pending = Reencryption(type_, table.value).rows.pending

        def keys_of(keys: KeyRange) -> list[Key]:
            rows = connection.execute(table.rows(pending, keys, 10_000)).all()
            return [table.key_of(row) for row in rows]

        rows = len(keys_of(KeyRange()))
        ranges = cut(connection.execute(table.boundaries(pending, rows, parts)))
        found = [keys_of(keys) for keys in ranges]
        assert keys_of(KeyRange()) == [key for keys in found for key in keys]
    assert (ranges[0].after, ranges[-1].up_to) == (None, None)
    assert [one.after for one in ranges[1:]] == [one.up_to for one in ranges[:-1]]
    return [len(keys) for keys in found]


@every_kind
def test_a_table_is_cut_evenly_whatever_its_key(engine: sa.Engine, kind: KeyKind) -> None:
    sessions = create_sessions(engine, ROWS, kind)
    counts = rows_of_ranges(engine, sessions, 4)
    assert ({82, 83}, ROWS) == (set(counts), sum(counts))


def test_ranges_are_even_in_the_rows_that_need_work(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 100)
    done = [key for key in sessions.tokens if key[0] <= 60 or key[0] % 2]
    for key in done:
        sessions.put(engine, key, seal(sessions.tokens[key], after()))
    assert rows_of_ranges(engine, sessions, 4) == [5, 5, 5, 5]


@pytest.mark.parametrize(("rows", "expected"), [(0, [0]), (1, [1]), (3, [1, 1, 1]), (4, [1, 1, 1, 1])])
def test_fewer_rows_than_parts_make_fewer_ranges(engine: sa.Engine, rows: int, expected: list[int]) -> None:
    sessions = create_sessions(engine, rows)
    assert expected == rows_of_ranges(engine, sessions, 4)


def test_one_part_is_the_whole_table(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 10)
    assert rows_of_ranges(engine, sessions, 1) == [10]


# -- executors -----------------------------------------------------------------------------------------------------


@every_kind
def test_threads_rotate_a_table_whatever_its_key(
    engine: sa.Engine, threads: ThreadPoolExecutor, kind: KeyKind
) -> None:
    sessions = create_sessions(engine, ROWS, kind)
    report = sessions.reencrypt(engine, shards=4, executor=threads)
    assert_rotated(engine, sessions, report)
    # It stays open: it is the caller's.
    assert threads.submit(len, "still").result() == 5


@every_server
def test_processes_of_our_own_rotate_a_table(engine: sa.Engine, ring_uri: str) -> None:
    sessions = create_sessions(engine, ROWS, storage="text")
    type_ = EncryptedJWT(ring_uri, context=CONTEXT, storage="text")
    report = sessions.reencrypt(engine, type_=type_, shards=2)
    assert_rotated(engine, sessions, report)
    assert report.retries == 0


def test_a_process_pool_of_the_caller_stays_open(
    engine: sa.Engine, pool: ProcessPoolExecutor, ring_uri: str
) -> None:
    sessions = create_sessions(engine, ROWS)
    report = sessions.reencrypt(engine, KeyRing.from_uri(ring_uri), shards=4, executor=pool)
    assert_rotated(engine, sessions, report)
    assert os.getpid() != pool.submit(os.getpid).result()


def test_shards_work_on_many_writers_of_one_sqlite_file(
    sqlite_database: Database, threads: ThreadPoolExecutor
) -> None:
    """SQLite has one writer: the others wait, or are told to try again, and no row is left behind."""
    # Without the time that the driver waits by itself, every collision is an error.
    engine = sa.create_engine(sqlite_database.url(), connect_args={"timeout": 0})
    sessions = create_sessions(engine, 600)
    make_engine = partial(sa.create_engine, sqlite_database.url(), connect_args={"timeout": 0})
    report = sessions.reencrypt(
        engine, shards=4, executor=threads, make_engine=make_engine, batch_size=10, nice=0, max_retries=1_000
    )
    assert_rotated(engine, sessions, report)
    engine.dispose()


def test_shards_find_a_table_in_its_schema(postgresql: sa.Engine, threads: ThreadPoolExecutor) -> None:
    with postgresql.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "tenant 1"')
    sessions = create_sessions(postgresql, ROWS, schema="tenant 1")
    # A table of the same name in the default schema is another one.
    other = create_sessions(postgresql, 10)
    report = sessions.reencrypt(postgresql, shards=4, executor=threads)
    assert_rotated(postgresql, sessions, report)
    assert other.census(postgresql) == {(OLD, "stale"): 10}


def test_a_run_on_a_connection_works_in_shards_too(engine: sa.Engine, threads: ThreadPoolExecutor) -> None:
    sessions = create_sessions(engine, ROWS)
    with engine.connect() as connection:
        report = reencrypt(
            connection, "sessions", "token", type_=sessions.type_(), shards=4, executor=threads
        )
    assert_rotated(engine, sessions, report)


def test_shards_keep_envelopes_bound_to_their_rows(engine: sa.Engine, ring_uri: str) -> None:
    login = mapped(user=sa.Integer, token=EncryptedJWT(bound_to=["user"]))
    ring = KeyRing.from_uri(ring_uri)
    tokens = {number: token(number) for number in range(1, 101)}
    set_default_keyring(ring.with_active(OLD))
    with session_on(engine, *(login(id=key, user=1_000 + key, token=text) for key, text in tokens.items())):
        set_default_keyring(ring)
    executor = Inline()
    type_ = EncryptedJWT(bound_to=["user"])
    report = reencrypt(engine, "logins", "token", type_=type_, shards=4, executor=executor, verify="decrypt")
    assert ([report.reencrypted, report.verified], len(executor.shards)) == ([100, 100], 4)
    with Session(engine) as session:
        assert tokens == {row.id: str(row.token) for row in session.scalars(sa.select(login))}


def test_an_empty_table_needs_no_executor(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 0)
    report = sessions.reencrypt(engine, shards=4, executor=Broken())
    assert (report.total, report.is_complete) == (0, True)


def test_a_dry_run_reads_everything_and_writes_nothing(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, ROWS)
    untouched = sessions.stored(engine)
    report = sessions.reencrypt(engine, shards=4, executor=Broken(), dry_run=True)
    assert (report.total, report.reencrypted, report.retries) == (ROWS, ROWS, 0)
    assert untouched == sessions.stored(engine)


# -- what travels --------------------------------------------------------------------------------------------------


def forms_of(key: bytes) -> set[bytes]:
    """Return how a key may look in a pickle: as it is, and in the usual encodings."""
    return {
        key,
        key.hex().encode(),
        base64.b64encode(key).rstrip(b"="),
        base64.urlsafe_b64encode(key).rstrip(b"="),
    }


def shows_key(data: bytes) -> bool:
    return any(form in data for key in (OLD_KEY, NEW_KEY) for form in forms_of(key))


@pytest.mark.parametrize("of", ["type", "ring", "default ring", "pinned ring"])
def test_no_key_is_in_a_shard_that_travels(sqlite: sa.Engine, key_file: Path, of: str) -> None:
    sessions = create_sessions(sqlite, 20)
    ring = KeyRing.from_uri(f"file:{key_file}")
    given: dict[str, str | KeyRing | None] = {
        "type": f"file:{key_file}",
        "ring": ring,
        "default ring": None,
        "pinned ring": ring.with_active(NEW),
    }
    if given[of] is None:
        set_default_keyring(ring)
    executor = Inline()
    report = sessions.reencrypt(
        sqlite, type_=EncryptedJWT(given[of], context=CONTEXT), shards=4, executor=executor
    )
    assert_rotated(sqlite, sessions, report)
    assert len(executor.shards) == 4
    for shard in executor.shards:
        travelling = pickle.dumps(shard)
        assert not shows_key(travelling)
        assert f"file:{key_file}".encode() in travelling
        # What a scheduler shows of a task is its name.
        assert "Shard(sessions.token)" == repr(shard) == repr(pickle.loads(travelling))


def test_a_key_in_a_pickle_would_be_found(key_file: Path) -> None:
    """The control: the same search finds the keys in what does hold them."""
    assert shows_key(key_file.read_bytes())
    assert shows_key(pickle.dumps({"key": OLD_KEY}))
    assert shows_key(pickle.dumps([NEW_KEY.hex()]))


def test_a_ring_without_a_uri_does_not_travel(engine: sa.Engine, pool: ProcessPoolExecutor) -> None:
    sessions = create_sessions(engine, ROWS)
    untouched = sessions.stored(engine)
    with pytest.raises(ConfigurationError, match=r"EncryptedJWT\('file:.*ThreadPoolExecutor\(\)") as caught:
        sessions.reencrypt(engine, after(), shards=4, executor=pool)
    assert not shows_key(pickle.dumps((str(caught.value), caught.value.args)))
    assert untouched == sessions.stored(engine)
    # The pool is none the worse, and threads, to which nothing travels, take the same ring.
    assert os.getpid() != pool.submit(os.getpid).result()
    with ThreadPoolExecutor(2) as threads:
        report = sessions.reencrypt(engine, after(), shards=4, executor=threads)
    assert_rotated(engine, sessions, report)


def test_the_password_does_not_travel_where_the_caller_says_how_to_connect(
    postgresql_database: Database, ring_uri: str
) -> None:
    url = postgresql_database.url()
    # A server that asks for none takes any.
    url = url.set(password=url.password or "a password that is not asked for")
    engine = sa.create_engine(url)
    sessions = create_sessions(engine, 20)
    found = []
    for make_engine in (None, engine_of_environment):
        executor = Inline()
        os.environ[URL_VARIABLE] = url.render_as_string(hide_password=False)
        try:
            sessions.reencrypt(
                engine, KeyRing.from_uri(ring_uri), shards=2, executor=executor, make_engine=make_engine
            )
        finally:
            del os.environ[URL_VARIABLE]
        found.append(any(str(url.password).encode() in pickle.dumps(shard) for shard in executor.shards))
    # The control is the first: the URL of the caller's engine travels with its password.
    assert found == [True, False]
    engine.dispose()


URL_VARIABLE: Final = "JWT_COLUMN_TEST_SHARDS_URL"


def engine_of_environment() -> sa.Engine:
    """Connect to the database of an environment variable, as a worker with credentials of its own does."""
    return sa.create_engine(os.environ[URL_VARIABLE])


def test_what_cannot_travel_is_named(
    engine: sa.Engine, ring_uri: str, pool: ProcessPoolExecutor, threads: ThreadPoolExecutor
) -> None:
    sessions = create_sessions(engine, ROWS)
    ring = KeyRing.from_uri(ring_uri)
    options = {"shards": 4, "make_engine": lambda: sa.create_engine(engine.url)}
    with pytest.raises(ConfigurationError, match="functions of a module that the worker can import"):
        sessions.reencrypt(engine, ring, executor=pool, **options)
    # In threads nothing has to travel.
    assert_rotated(engine, sessions, sessions.reencrypt(engine, ring, executor=threads, **options))


def test_two_shards_are_never_the_same_task(sqlite: sa.Engine) -> None:
    """Dask would give a second run the reports of the first, had they equal tasks."""
    tasks = []
    for name in ("first", "second"):
        executor = Inline()
        create_sessions(sqlite, 20, name=name).reencrypt(sqlite, shards=4, executor=executor)
        tasks += [shard.__dask_tokenize__() for shard in executor.shards]
    assert len(set(tasks)) == 8


# -- key rings of workers ------------------------------------------------------------------------------------------


def test_a_worker_with_another_key_is_refused(engine: sa.Engine, key_file: Path) -> None:
    sessions = create_sessions(engine, ROWS)
    untouched = sessions.stored(engine)

    def lose_new_key(shard: Shard) -> None:
        write_keys(key_file, OLD_KEY)
        # What this process has loaded is forgotten, as if the worker were another process.
        set_default_keyring(None)

    executor = Inline(lose_new_key)
    ring = KeyRing.from_uri(f"file:{key_file}")
    with pytest.raises(ReencryptionError, match=f"writes under {OLD}, the run under {NEW}") as caught:
        sessions.reencrypt(engine, ring, shards=4, executor=executor)
    report = report_of(caught.value)
    assert (report.total, report.reencrypted, report.remaining) == (ROWS, 0, ROWS)
    assert untouched == sessions.stored(engine)
    # The control: with the same key everywhere, the same run goes through.
    write_keys(key_file, NEW_KEY, OLD_KEY)
    set_default_keyring(None)
    assert_rotated(engine, sessions, sessions.reencrypt(engine, ring, shards=4, executor=Inline()))


def test_a_worker_that_cannot_load_its_ring_ends_the_run(engine: sa.Engine, key_file: Path) -> None:
    sessions = create_sessions(engine, ROWS)

    def lose_file(shard: Shard) -> None:
        key_file.unlink(missing_ok=True)
        set_default_keyring(None)

    with pytest.raises(KeyUnavailableError, match="cannot be read"):
        sessions.reencrypt(engine, KeyRing.from_uri(f"file:{key_file}"), shards=4, executor=Inline(lose_file))


def test_the_first_failure_calls_off_the_shards_that_wait(engine: sa.Engine, key_file: Path) -> None:
    sessions = create_sessions(engine, ROWS)
    ring = KeyRing.from_uri(f"file:{key_file}")
    write_keys(key_file, OLD_KEY)
    with ThreadPoolExecutor(1) as one_thread:
        gate = threading.Event()
        executor = Counting(one_thread, lambda count: hold(one_thread, gate, count))
        with pytest.raises(ReencryptionError, match="the same key ring") as caught:
            sessions.reencrypt(engine, ring, shards=4, executor=executor)
        gate.set()
    assert caught.value.reason == "ring"
    assert [future.cancelled() for future in executor.futures] == [False, True, True, True]


def hold(executor: Executor, gate: threading.Event, count: int) -> None:
    """Hold up a pool of one thread after its first task."""
    if count == 1:
        executor.submit(gate.wait, PATIENCE)


class Counting(Executor):
    """Hands shards on to another executor and keeps their futures."""

    def __init__(self, executor: Executor, after_submit: Callable[[int], object]) -> None:
        self.futures: list[Future[Any]] = []
        self._executor = executor
        self._after_submit = after_submit

    def submit(self, shard: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = self._executor.submit(shard)
        self.futures.append(future)
        self._after_submit(len(self.futures))
        return future


def key_ids(uri: str) -> tuple[str, ...]:
    """Return the keys that a process has under a URI."""
    return EncryptedJWT(uri).ring().key_ids


def test_a_worker_that_is_older_than_the_key_loads_its_ring_again(
    engine: sa.Engine, key_file: Path, pool: ProcessPoolExecutor
) -> None:
    sessions = create_sessions(engine, ROWS)
    write_keys(key_file, OLD_KEY)
    uri = f"file:{key_file}"
    assert {(OLD,)} == set(pool.map(key_ids, [uri] * 8))
    write_keys(key_file, NEW_KEY, OLD_KEY)
    report = sessions.reencrypt(engine, KeyRing.from_uri(uri), shards=4, executor=pool)
    assert_rotated(engine, sessions, report)
    assert report.retries == 0


def test_the_key_that_a_ring_was_told_to_write_under_travels_as_its_id(
    engine: sa.Engine, key_file: Path, pool: ProcessPoolExecutor
) -> None:
    sessions = create_sessions(engine, ROWS)
    uri = write_keys(key_file, OLD_KEY, NEW_KEY)
    # The control: by its file, the old key is active, and nothing is to be done.
    assert sessions.reencrypt(engine, KeyRing.from_uri(uri), shards=4, executor=pool).total == 0
    ring = KeyRing.from_uri(uri).with_active(NEW)
    assert_rotated(engine, sessions, sessions.reencrypt(engine, ring, shards=4, executor=pool))


# -- lost workers --------------------------------------------------------------------------------------------------


def dying_engine(url: sa.URL, mark: Path | None) -> sa.Engine:
    """Connect; the process that is the first to write three batches is killed before its fourth.

    Args:
        url: The database.
        mark: The file by which the first is known; None kills every process.
    """
    engine = sa.create_engine(url)
    # On SQLite the UPDATE is a transaction by itself.
    last_statement = "UPDATE " if engine.dialect.name == "sqlite" else "COMMIT"
    batches, has_written = 0, False

    @sa.event.listens_for(engine, "before_cursor_execute")
    def count(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        nonlocal batches, has_written
        has_written = has_written or "UPDATE" in statement
        if has_written and statement.startswith(last_statement):
            batches, has_written = batches + 1, False
        if batches == 4 and (mark is None or is_first(mark)):
            os.kill(os.getpid(), signal.SIGKILL)

    return engine


def is_first(mark: Path) -> bool:
    try:
        with mark.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return False
    return True


def run_with_a_killed_worker(
    engine: sa.Engine, sessions: Sessions, ring_uri: str, mark: Path | None, **options: Any
) -> ReencryptionReport:
    make_engine = partial(dying_engine, engine.url, mark)
    return sessions.reencrypt(
        engine,
        KeyRing.from_uri(ring_uri),
        make_engine=make_engine,
        batch_size=20,
        # Batches stay small, so that a shard commits often enough.
        batch_seconds=1e-9,
        nice=0,
        **options,
    )


def assert_complete_in_spite_of_a_lost_worker(
    engine: sa.Engine, sessions: Sessions, report: ReencryptionReport
) -> None:
    rows = len(sessions.tokens)
    assert sessions.tokens == sessions.decrypted(engine)
    assert {(NEW, "current"): rows} == sessions.census(engine)
    assert (rows, 0) == (report.total, report.remaining)
    # What the killed worker did before nobody reported; so much of it there must be that it was in the middle.
    assert rows == report.reencrypted + report.superseded
    assert 60 <= report.superseded < rows
    assert report.reencrypted == sum(report.by_key_id.values())


@pytest.mark.processes
def test_a_run_completes_although_a_worker_is_killed(
    postgresql: sa.Engine, ring_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = create_sessions(postgresql, 600)
    with caplog.at_level(logging.WARNING, "migrations_helpers"):
        report = run_with_a_killed_worker(postgresql, sessions, ring_uri, tmp_path / "killed", shards=2)
    assert (tmp_path / "killed").exists()
    assert_complete_in_spite_of_a_lost_worker(postgresql, sessions, report)
    assert report.retries >= 1
    assert "sessions.token: a shard was lost (BrokenProcessPool) and is done again" in caplog.messages


@pytest.mark.processes
def test_a_run_completes_although_the_caller_s_pool_breaks(
    engine: sa.Engine, ring_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A pool of which one process was killed takes no work any more, and is not ours to replace."""
    sessions = create_sessions(engine, 600)
    with ProcessPoolExecutor(2, mp_context=processes) as pool, caplog.at_level(logging.WARNING):
        report = run_with_a_killed_worker(engine, sessions, ring_uri, None, shards=2, executor=pool)
    assert_complete_in_spite_of_a_lost_worker(engine, sessions, report)
    assert report.retries >= 1


def test_no_worker_is_missed_where_none_is_killed(
    engine: sa.Engine, ring_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The control of the two tests above: nothing is done again, and nothing is said."""
    (tmp_path / "killed").touch()
    sessions = create_sessions(engine, 600)
    with ProcessPoolExecutor(2, mp_context=processes) as pool, caplog.at_level(logging.WARNING):
        report = run_with_a_killed_worker(
            engine, sessions, ring_uri, tmp_path / "killed", shards=2, executor=pool
        )
    assert_rotated(engine, sessions, report)
    assert (report.retries, caplog.messages) == (0, [])


class Broken(Executor):
    """Takes nothing."""

    def submit(self, shard: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        raise RuntimeError("cannot schedule new futures after shutdown")


class Cancelling(Executor):
    """Takes everything and does nothing, as a cluster does whose scheduler is gone."""

    def submit(self, shard: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.cancel()
        future.set_running_or_notify_cancel()
        with pytest.raises(CancelledError):
            future.result()
        return future


@pytest.mark.parametrize(
    ("executor", "error"),
    [
        pytest.param(Broken(), "RuntimeError", id="broken"),
        pytest.param(Cancelling(), "CancelledError", id="cancelling"),
    ],
)
def test_a_run_completes_without_its_executor(
    engine: sa.Engine, executor: Executor, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = create_sessions(engine, ROWS)
    with caplog.at_level(logging.WARNING, "migrations_helpers"):
        report = sessions.reencrypt(engine, shards=4, executor=executor)
    assert_rotated(engine, sessions, report)
    assert report.retries >= 4
    assert f"sessions.token: a shard was lost ({error}) and is done again" in caplog.messages


def test_a_shard_whose_connection_fails_is_done_again(engine: sa.Engine, threads: ThreadPoolExecutor) -> None:
    sessions = create_sessions(engine, ROWS)
    refused = iter([True, True])

    def make_engine() -> sa.Engine:
        if next(refused, False):
            raise sa.exc.OperationalError("connect", {}, Exception("too many connections"))
        return sa.create_engine(engine.url)

    report = sessions.reencrypt(engine, shards=4, executor=threads, make_engine=make_engine)
    assert_rotated(engine, sessions, report)
    assert report.retries == 2


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_a_connection_that_is_lost_while_the_table_is_cut_is_replaced(
    name: str, threads: ThreadPoolExecutor, request: pytest.FixtureRequest
) -> None:
    database: Database = request.getfixturevalue(f"{name}_database")
    engine = sa.create_engine(database.url())
    sessions = create_sessions(engine, ROWS)
    lost: list[str] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def lose(connection: sa.Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "jwt_column_row" in statement and not lost:
            lost.append(statement)
            cut_off(engine, connection)()

    report = sessions.reencrypt(engine, shards=2, executor=threads)
    assert_rotated(engine, sessions, report)
    assert (len(lost), report.retries) == (1, 1)
    engine.dispose()


def test_an_error_of_a_worker_is_not_taken_for_one_of_travelling(
    engine: sa.Engine, ring_uri: str, threads: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = create_sessions(engine, ROWS)
    with caplog.at_level(logging.WARNING, "migrations_helpers"):
        report = sessions.reencrypt(
            engine, KeyRing.from_uri(ring_uri), shards=2, executor=threads, make_engine=no_engine
        )
    assert_rotated(engine, sessions, report)
    assert "sessions.token: a shard was lost (TypeError) and is done again" in caplog.messages


def no_engine() -> sa.Engine:
    raise TypeError("not one that pickle raised")


# -- the report ----------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_read_are_listed_once(engine: sa.Engine, threads: ThreadPoolExecutor) -> None:
    sessions = create_sessions(engine, ROWS)
    lost = KeyRing([LOST_KEY])
    bad = [(5,), (100,), (101,), (329,)]
    for key in bad:
        sessions.put(engine, key, seal(sessions.tokens.pop(key), lost))
    sessions.put(engine, (200,), None)
    del sessions.tokens[200,]
    unreadable = {key: sessions.stored(engine)[key] for key in bad}
    with pytest.raises(ReencryptionError, match="4 rows cannot be read") as caught:
        sessions.reencrypt(engine, shards=4, executor=threads)
    report = report_of(caught.value)
    assert sorted(report.undecryptable) == [5, 100, 101, 329]
    rows = len(sessions.tokens)
    assert (4, 4, rows + 4, rows) == (
        report.undecryptable_count,
        report.remaining,
        report.total,
        report.reencrypted,
    )
    stored = sessions.stored(engine)
    assert unreadable == {key: stored[key] for key in bad}
    assert (rows, None) == (sessions.census(engine)[NEW, "current"], stored[200,])


def test_rows_that_the_application_mends_behind_a_shard_are_not_listed(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, ROWS)
    sessions.put(engine, (5,), seal(sessions.tokens[5,], KeyRing([LOST_KEY])))

    def mend(shard: Shard) -> None:
        if shard.keys.up_to is None:
            sessions.put(engine, (5,), seal(sessions.tokens[5,], after()))

    report = sessions.reencrypt(engine, shards=2, executor=Inline(mend))
    assert sessions.tokens == sessions.decrypted(engine)
    assert sessions.census(engine) == {(NEW, "current"): ROWS}
    assert (report.undecryptable, report.undecryptable_count, report.superseded) == ([], 0, 1)
    # The control: who looks before, finds it.
    sessions.put(engine, (5,), seal(sessions.tokens[5,], KeyRing([LOST_KEY])))
    with pytest.raises(ReencryptionError, match="1 row cannot be read"):
        sessions.reencrypt(engine, shards=2, executor=Inline())


def test_a_table_that_the_shards_have_finished_is_counted_and_not_gone_over_again(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, ROWS)
    report = sessions.reencrypt(engine, shards=2, executor=Inline())
    assert_rotated(engine, sessions, report)
    assert report.passes == 1

    def write_the_old_way(shard: Shard) -> None:
        if shard.keys.up_to is None:
            sessions.put(engine, (5,), seal(sessions.tokens[5,], KeyRing([OLD_KEY])))

    sessions.put(engine, (300,), seal(sessions.tokens[300,], KeyRing([OLD_KEY])))
    sessions.put(engine, (301,), seal(sessions.tokens[301,], KeyRing([OLD_KEY])))
    report = sessions.reencrypt(engine, shards=2, executor=Inline(write_the_old_way))
    assert sessions.census(engine) == {(NEW, "current"): ROWS}
    assert (report.passes, report.reencrypted, report.remaining) == (2, 3, 0)


def test_the_sums_are_those_of_a_run_in_one_piece(engine: sa.Engine, threads: ThreadPoolExecutor) -> None:
    reports = []
    pieces: dict[str, dict[str, Any]] = {"one": {}, "four": {"shards": 4, "executor": threads}}
    for name, options in pieces.items():
        sessions = create_sessions(engine, ROWS, name=name)
        for number in (1, 2, 300):
            sessions.put(engine, (number,), seal(sessions.tokens[number,], after()))
        sessions.put(engine, (7,), sessions.tokens[7,].encode())
        report = sessions.reencrypt(engine, **options)
        reports.append(
            (
                report.total,
                report.scanned,
                report.reencrypted,
                report.already_current,
                report.superseded,
                report.plaintext,
                report.remaining,
                report.undecryptable,
                report.by_key_id,
                report.key_id,
            )
        )
    assert reports[0] == reports[1]
    assert (reports[1][0], reports[1][2], reports[1][3]) == (326, 326, 3)


def test_every_row_is_opened_at_the_end(engine: sa.Engine, threads: ThreadPoolExecutor) -> None:
    sessions = create_sessions(engine, ROWS)
    report = sessions.reencrypt(engine, shards=4, executor=threads, verify="decrypt")
    assert_rotated(engine, sessions, report)
    assert report.verified == ROWS


def test_progress_is_told_after_each_shard(engine: sa.Engine, threads: ThreadPoolExecutor) -> None:
    sessions = create_sessions(engine, ROWS)
    told = []
    sessions.reencrypt(
        engine, shards=4, executor=threads, progress=lambda report: told.append(report.reencrypted)
    )
    assert told[0] == 0
    assert told[-1] == ROWS
    assert told == sorted(told)
    # Between the first and the last there were four shards of at least 82 rows.
    assert len(set(told)) >= 5


class Withholding(Executor):
    """Works on the shards, and keeps to itself that they are done."""

    def __init__(self) -> None:
        self.finished: list[tuple[Future[Any], Any]] = []

    def submit(self, shard: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.finished.append((future, shard()))
        return future

    def release(self) -> None:
        while self.finished:
            future, report = self.finished.pop()
            future.set_result(report)


def test_progress_is_seen_before_a_shard_ends(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """How far the shards are is counted in the database, and what is counted is not added twice."""
    monkeypatch.setattr(shards, "_LOOK_INTERVAL", 0.01)
    sessions = create_sessions(engine, ROWS)
    executor = Withholding()
    told = []

    def progress(report: ReencryptionReport) -> None:
        told.append((report.reencrypted, dict(report.by_key_id)))
        if report.reencrypted == ROWS:
            executor.release()

    report = sessions.reencrypt(engine, shards=4, executor=executor, progress=progress)
    assert (ROWS, {}) in told
    assert_rotated(engine, sessions, report)


class Silent(Executor):
    """Takes everything, and is never heard of again."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []

    def submit(self, shard: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.futures.append(Future())
        return self.futures[-1]


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_an_executor_that_falls_silent_is_given_up(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While rows are rewritten there is no hurry; ten minutes without one, and the run goes on without it."""
    sessions = create_sessions(engine, 10)
    current = {key: seal(text, after()) for key, text in sessions.tokens.items()}
    clock = Clock()
    monkeypatch.setattr(shards, "_LOOK_INTERVAL", 0.01)
    monkeypatch.setattr(shards, "time", clock)
    told = []

    def progress(report: ReencryptionReport) -> None:
        told.append(report.reencrypted)
        clock.now += 400
        # Somebody rewrites a row now and then, five in all.
        if 0 < len(told) <= 5:
            sessions.put(engine, (len(told),), current[len(told),])

    executor = Silent()
    with caplog.at_level(logging.WARNING, "migrations_helpers"):
        report = sessions.reencrypt(engine, shards=4, executor=executor, progress=progress)
    assert "sessions.token: in 600 s no row was rewritten, so 4 shards" in caplog.text
    assert (report.reencrypted, report.superseded, report.remaining, report.retries) == (5, 5, 0, 4)
    # It was seen that each of the five was rewritten, and then twice that none was.
    assert told[1:8] == [1, 2, 3, 4, 5, 5, 5]
    assert all(future.cancelled() for future in executor.futures)
    assert sessions.tokens == sessions.decrypted(engine)


def test_what_stops_the_caller_calls_off_the_shards(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, ROWS)

    def interrupt(report: ReencryptionReport) -> None:
        if report.reencrypted:
            raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as one_thread:
        gate = threading.Event()
        executor = Counting(one_thread, lambda count: hold(one_thread, gate, count))
        with pytest.raises(KeyboardInterrupt):
            sessions.reencrypt(engine, shards=4, executor=executor, progress=interrupt)
        gate.set()
    assert [future.cancelled() for future in executor.futures] == [False, True, True, True]


# -- refusals ------------------------------------------------------------------------------------------------------


def test_shards_cannot_share_a_database_in_memory() -> None:
    engine = sa.create_engine("sqlite://")
    sessions = create_sessions(engine, 10)
    with pytest.raises(ConfigurationError, match="SQLite database in memory"):
        sessions.reencrypt(engine, shards=2, executor=Broken())
    # In one piece it works.
    assert_rotated(engine, sessions, sessions.reencrypt(engine))
    engine.dispose()


def test_shards_of_an_asynchronous_engine_are_told_how_to_connect(
    async_driver_engine: AsyncEngine, threads: ThreadPoolExecutor
) -> None:
    sessions = create_sessions(async_driver_engine, ROWS)
    url = async_driver_engine.url
    drivers = {"postgresql": "postgresql+psycopg2", "sqlite": "sqlite+pysqlite"}
    other = url.set(drivername=drivers[url.get_backend_name()])
    with pytest.raises(ConfigurationError, match="give make_engine"):
        sessions.reencrypt(async_driver_engine, shards=2, executor=threads)
    report = sessions.reencrypt(
        async_driver_engine, shards=2, executor=threads, make_engine=partial(sa.create_engine, other)
    )
    engine = sa.create_engine(other)
    assert_rotated(engine, sessions, report)
    engine.dispose()


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_no_second_run_begins_while_the_shards_work(name: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(f"{name}_database")
    engine = sa.create_engine(database.url())
    sessions = create_sessions(engine, ROWS)
    refused = []

    def second(shard: Shard) -> None:
        with pytest.raises(ReencryptionError, match="another run is at work"):
            sessions.reencrypt(engine)
        refused.append(shard)

    report = sessions.reencrypt(engine, shards=4, executor=Inline(second))
    assert len(refused) == 4
    assert_rotated(engine, sessions, report)
    # The control: afterwards the lock is free.
    assert sessions.reencrypt(engine).total == 0
    engine.dispose()


# -- while the application writes ----------------------------------------------------------------------------------


def lost_updates(engine: sa.Engine, pool: Executor, key_file: Path, strategy: str | Strategy) -> int:
    """Rotate to and fro in shards while an application writes, and return how many of its updates were lost."""
    sessions = create_sessions(engine, 400)
    ring = KeyRing.from_uri(write_keys(key_file, NEW_KEY, OLD_KEY))
    options: dict[str, Any] = {"shards": 2, "executor": pool, "strategy": strategy, "batch_size": 50}
    with application(engine, sessions) as running:
        before = running.commits
        for turn in range(400):
            if turn >= 2 and running.commits - before >= 150:
                break
            # The way back does not come to an end: what the application writes is stale for it.
            target = ring.with_active(OLD if turn % 2 else NEW)
            sessions.reencrypt(engine, target, max_passes=3, **options)
        written = running.stop()
    assert running.commits - before >= 150
    sessions.reencrypt(engine)
    decrypted = sessions.decrypted(engine)
    expected = sessions.tokens | written.tokens
    assert set(expected) == set(decrypted)
    return sum(decrypted[key] != text for key, text in expected.items())


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_no_update_is_lost_while_shards_work_in_processes(
    name: str, request: pytest.FixtureRequest, key_file: Path, pool: ProcessPoolExecutor
) -> None:
    database: Database = request.getfixturevalue(f"{name}_database")
    engine = sa.create_engine(database.url())
    assert lost_updates(engine, pool, key_file, "auto") == 0
    engine.dispose()


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_shards_without_protection_lose_updates(
    name: str, request: pytest.FixtureRequest, key_file: Path, pool: ProcessPoolExecutor
) -> None:
    """The control."""
    database: Database = request.getfixturevalue(f"{name}_database")
    engine = sa.create_engine(database.url())
    assert lost_updates(engine, pool, key_file, Unprotected()) > 0
    engine.dispose()
