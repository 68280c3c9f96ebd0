"""One run cut into key ranges, worked on at once by any :class:`concurrent.futures.Executor`.

A shard is a picklable task that can be repeated: it opens its own connection and loads its own key ring, so neither a
connection nor a key travels. The shard of a lost worker is given to another one, and at last to the sweep that follows.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import time
import uuid
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Engine, create_engine

from jwt_column.database.key_order import KeyRange
from jwt_column.errors import ConfigurationError, JWTColumnError, ReencryptionError
from jwt_column.keys.default import keyring_of_uri
from jwt_column.keys.ring import KeyRing

from .connection import RunConnection
from .reflection import find_table
from .report import ReencryptionReport
from .run import Run
from .schemas import assumed_role, table_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Executor

    from sqlalchemy import Connection

    from jwt_column.column.types import EncryptedJWT

    from .conversions import Conversion
    from .options import Options
    from .reflection import Subject
    from .table import RunTable


logger: logging.Logger = logging.getLogger("migrations_helpers")

# Times that a shard is given to a worker. One that kills every worker, by its memory say, is left to the sweep.
_ROUNDS: Final = 3
# Seconds between two looks at how far the shards are, and the share of the time that looking may take.
_LOOK_INTERVAL: Final = 1.0
_LOOK_SHARE: Final = 0.05
# Seconds in which not one row may be rewritten before the shards are taken to be lost: a scheduler of Dask that is
# closed leaves its clients waiting.
_STALL: Final = 600.0


@dataclass(frozen=True, slots=True, repr=False)
class Shard:
    """One key range of one column, and how to work on it.

    Attributes:
        make_engine: Makes the engine to connect with.
        subject: The column; its schema is the one that the run's connection found the table in.
        identity: See :func:`~migrations_helpers.engine.schemas.table_identity`.
        role: The role of PostgreSQL that the run has assumed, if any.
        rows: About how many rows of the range need work.
        keks: The KEKs that the run's ring may use; None for those of the worker's environment.
        task: Unlike any other shard's.
    """

    make_engine: Callable[[], Engine]
    subject: Subject
    identity: str | None
    role: str | None
    key_id: str | None
    make_conversion: Callable[..., Conversion]
    keys: KeyRange
    options: Options
    rows: int
    keks: Sequence[str] | None = None
    task: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __call__(self) -> ReencryptionReport:
        """Work on the range, with a connection and a key ring of this process's own."""
        type_, name = self._type_with_ring(), self.subject.name
        key_id = None if self.key_id is None else type_.ring().active
        if key_id != self.key_id:
            raise ReencryptionError(
                f"{name}: a shard's key ring writes under {key_id}, the run under "
                f"{self.key_id}; give every worker the same key ring",
                reason="ring",
                key_id=key_id,
            )
        with ExitStack() as stack:
            engine = self.make_engine()
            stack.callback(engine.dispose)
            connection = RunConnection(engine, self.subject, self.options, is_shard=True, role=self.role)
            stack.callback(connection.close)
            with connection.reading() as transaction:
                table = find_table(transaction, self.subject)
                identity = table_identity(transaction, table.clause)
            if identity != self.identity:
                raise ReencryptionError(
                    f"{name}: a shard's connection leads to another table of this name; give "
                    "make_engine, a function that connects to the database of the run",
                    reason="table",
                )
            conversion = self.make_conversion(type_, table.value)
            run = Run(connection, table, conversion, self.options)
            stack.callback(run.close)
            run.report.total = self.rows
            run.work(self.keys)
            return run.report

    def _type_with_ring(self) -> EncryptedJWT:
        """Return the column's type; its ring writes under the run's key where it has that key."""
        type_ = self.subject.type_
        if isinstance(type_.keyring, str):
            keyring_of_uri(type_.keyring, self.keks)
        ring = type_.ring()
        if self.key_id is None or ring.active == self.key_id:
            return type_
        if self.key_id not in ring.key_ids:
            # A worker that was here before the key was made has loaded its ring without it.
            ring.reload()
        if self.key_id not in ring.key_ids:
            return type_
        return _with_ring(type_, ring.with_active(self.key_id))

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker in this process needs no URI, so this is asked only where a shard travels.
        if isinstance(self.subject.type_.keyring, KeyRing):
            raise ConfigurationError(
                "a key ring that was given its keys does not travel to other processes: give the column's type the "
                "URI of a ring that every worker can load, as in EncryptedJWT('file:/etc/app/jwt.keys'), or work "
                "with executor=ThreadPoolExecutor()"
            )
        return Shard, tuple(getattr(self, one.name) for one in fields(self))

    def __repr__(self) -> str:
        # Dask shows it on its dashboard.
        return f"Shard({self.subject.table}.{self.subject.column})"

    def __dask_tokenize__(self) -> str:
        # To Dask two calls with equal content are one: a second run would be handed the report of the first.
        return self.task


def cut(boundaries: Iterable[Sequence[Any]]) -> list[KeyRange]:
    """Return the key ranges between these keys, and those before the first one and behind the last one."""
    bounds = [tuple(key) for key in boundaries]
    return [KeyRange(after, up_to) for after, up_to in zip([None, *bounds], [*bounds, None], strict=True)]


def work_in_shards(
    connection: RunConnection, table: RunTable, run: Run, make_conversion: Callable[..., Conversion]
) -> None:
    """Cut a run into shards, have them worked on, and add their reports to the run's.

    Shards that are lost with their workers are given out again. The rest is left to the sweep.

    Raises:
        ConfigurationError: A shard cannot travel to a worker, or cannot connect from there.
        JWTColumnError: A shard failed in a way that others would too; the shards under way are finished first.
    """
    options, subject = run.options, connection.subject
    ring = subject.type_.ring()
    # Its URI travels in place of the ring, where it has one.
    type_ = _with_ring(subject.type_, ring.uri or subject.type_.keyring)
    with connection.reading() as transaction:
        identity, role = table_identity(transaction, table.clause), assumed_role(transaction)
    make_shard = partial(
        Shard,
        make_engine=options.make_engine or _engine_maker(connection.sqlalchemy, identity),
        subject=replace(subject, type_=type_),
        identity=identity,
        role=role,
        keks=ring.keks,
        key_id=run.conversion.key_id,
        make_conversion=make_conversion,
        options=replace(
            options,
            shards=1,
            executor=None,
            make_engine=None,
            progress=None,
            replicas=[one.url if isinstance(one, Engine) else one for one in options.replicas],
        ),
    )
    rows = run.left_in(run.begin)
    shards: list[Shard] | None = None
    for _ in range(_ROUNDS):
        with _pool(options.executor, max(1, min(options.shards, rows))) as executor:
            if shards is None:
                # While the processes of the pool start.
                ranges = cut(run.read(table.boundaries(run.conversion.rows.work, rows, options.shards)))
                shards = [make_shard(keys=keys, rows=rows // len(ranges)) for keys in ranges]
            given_out = _Round(shards, executor, run)
            given_out.finish()
        shards = given_out.lost
        run.report.retries += len(shards)
        if not shards or given_out.is_stalled:
            return


class _Round:
    """Shards that are given out to an executor, once.

    They report no earlier than they end, so SQL tells how far they are. That also keeps the connection in use that
    holds the advisory lock: idle ones are closed by many a proxy.

    Attributes:
        lost: The shards that must be done again.
        is_stalled: Whether the executor was given up, because nothing moved any more.
    """

    def __init__(self, shards: Iterable[Shard], executor: Executor, run: Run) -> None:
        self._run = run
        self._shards = {_submit(executor, shard): shard for shard in shards}
        self._failure: JWTColumnError | None = None
        self._left = run.report.total
        self._moved = time.monotonic()
        self.lost: list[Shard] = []
        self.is_stalled = False

    def finish(self) -> None:
        """Wait for the shards and add their reports to the run's."""
        waiting = set(self._shards)
        try:
            while waiting and not self.is_stalled:
                interval = max(_LOOK_INTERVAL, self._run.look_seconds / _LOOK_SHARE)
                done, waiting = wait(waiting, interval, FIRST_COMPLETED)
                for future in done:
                    self._settle(future)
                if self._failure is not None:
                    waiting = {future for future in waiting if not future.cancel()}
                elif not done:
                    self._look()
        finally:
            for future in waiting:
                future.cancel()
        report = self._run.report
        if self._failure is not None:
            report.assume_remaining()
            if isinstance(self._failure, ReencryptionError):
                self._failure.report = report
            raise self._failure
        if self.is_stalled:
            logger.warning(
                "%s.%s: in %d s no row was rewritten, so %d shards are given up and done in this process",
                report.table,
                report.column,
                _STALL,
                len(waiting),
            )
            self.lost += [self._shards[future] for future in waiting]

    def _settle(self, future: Future[ReencryptionReport]) -> None:
        """Add the outcome of one shard to the run's report."""
        report = self._run.report
        error = _error_of(future)
        if error is None:
            report.absorb(future.result())
            self._run.tell()
            return
        if isinstance(error, ReencryptionError) and isinstance(error.report, ReencryptionReport):
            # Its database refused to go on; another worker may have a better connection.
            report.absorb(error.report)
        else:
            self._failure = self._failure or _failure(error, self._shards[future])
        if self._failure is None:
            name = type(error).__name__
            logger.warning(
                "%s.%s: a shard was lost (%s) and is done again", report.table, report.column, name
            )
            self.lost.append(self._shards[future])

    def _look(self) -> None:
        """Count the rows that are left, and show the number."""
        found = self._run.look(KeyRange())
        left = self._run.left_in(found)
        # Shards that are paused, or wait for their window, are not lost.
        if left < self._left or self._run.pace.is_closed:
            self._left, self._moved = left, time.monotonic()
        self.is_stalled = time.monotonic() - self._moved > _STALL
        report = self._run.report
        reported = report.reencrypted, report.expired
        try:
            report.reencrypted = max(reported[0], self._run.begin.pending - found.pending)
            report.expired = max(reported[1], self._run.begin.expired - found.expired)
            self._run.tell()
        finally:
            # The rows of a shard are added when it ends.
            report.reencrypted, report.expired = reported


def _submit(executor: Executor, shard: Shard) -> Future[ReencryptionReport]:
    """Hand a shard to an executor. One that takes none, because it broke, is as good as one that lost it."""
    try:
        return executor.submit(shard)
    except Exception as error:  # noqa: BLE001 - sorted out with those of the workers
        refused: Future[ReencryptionReport] = Future()
        refused.set_exception(error)
        return refused


def _error_of(future: Future[ReencryptionReport]) -> BaseException | None:
    try:
        return future.exception()
    except CancelledError as error:
        # Dask cancels a task that it cannot do, because its scheduler is gone for example.
        return error


def _failure(error: BaseException, shard: Shard) -> JWTColumnError | None:
    """Return the error that ends the run; None if a worker or its connection was lost."""
    if isinstance(error, JWTColumnError):
        return error
    if isinstance(error, pickle.PicklingError | TypeError | AttributeError):
        try:
            pickle.dumps(shard)
        except JWTColumnError as failure:
            return failure
        except Exception:  # noqa: BLE001 - pickle raises any exception
            return ConfigurationError(
                f"a shard cannot travel to its worker ({type(error).__name__}); options such as decrypt_with and "
                "make_engine are functions of a module that the worker can import"
            )
    return None


@contextmanager
def _pool(given: Executor | None, processes: int) -> Iterator[Executor]:
    """Return the caller's executor, which stays open, or a pool of processes that is closed afterwards."""
    if given is not None:
        yield given
        return
    # Not fork: a child would share sockets with its parent, and locks with threads that it does not have.
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        # A process starts when it is first needed, and then imports everything for most of a second.
        for _ in range(processes):
            pool.submit(_get_ready)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _get_ready() -> None:
    """Warm up a worker: unpickling this function imports the module."""


def _engine_maker(connection: Connection, identity: str | None) -> Callable[[], Engine]:
    """Return a function that makes an engine to the same database, with SQLAlchemy's defaults.

    Raises:
        ConfigurationError: No other process can connect to this database, or not with this driver.
    """
    if connection.dialect.is_async:
        raise ConfigurationError(
            f"shards open connections of their own, and the driver {connection.dialect.driver} is an asynchronous "
            "one: give make_engine, a function that returns an engine with a synchronous driver"
        )
    if connection.dialect.name == "sqlite" and not identity:
        raise ConfigurationError(
            "shards open connections of their own, and no other process can open an SQLite database in memory: leave "
            "shards at 1"
        )
    return partial(create_engine, connection.engine.url)


def _with_ring(type_: EncryptedJWT, ring: KeyRing | str | None) -> EncryptedJWT:
    copied = type_.copy()
    copied.keyring = ring
    return copied
