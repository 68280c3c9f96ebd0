"""Tables full of tokens, an application that writes while a run works, and what must hold afterwards.

The keys are fixed, because processes of their own need them too and a key ring cannot be pickled.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import multiprocessing
import random
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from jwt_column import EncryptedJWT, KeyRing, decrypt_token, key_usage
from migrations_helpers import reencrypt
from migrations_helpers.engine.connection import RunConnection
from migrations_helpers.engine.options import Options
from migrations_helpers.engine.reflection import Subject
from migrations_helpers.engine.strategies import choose_strategy
from tests.support.databases import SYNC_DRIVERS
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection as Pipe

    from migrations_helpers import ReencryptionReport
    from migrations_helpers.engine.conversions import Conversion
    from migrations_helpers.engine.strategies import Batch, Strategy, Task


AnyEngine = sa.Engine | AsyncEngine
Key = tuple[Any, ...]
Stored = bytes | str
_Result = TypeVar("_Result")

OLD_KEY: Final = hashlib.sha256(b"the old key of the tests").digest()
NEW_KEY: Final = hashlib.sha256(b"the new key of the tests").digest()
LOST_KEY: Final = hashlib.sha256(b"a key that no ring of the tests has").digest()
OLD: Final = KeyRing([OLD_KEY]).active
NEW: Final = KeyRing([NEW_KEY]).active

CONTEXT: Final = "sessions.token"

# A forkserver starts a process in milliseconds, and its children inherit nothing that pytest has open.
processes: Final = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.support.workload"])

_SERVERS: Final = ("postgresql", "mariadb")

#: For tests of what SQLite does not have: a connection that can be lost, rows that can be locked.
every_server = pytest.mark.parametrize("database", _SERVERS, indirect=True)
every_server_driver = pytest.mark.parametrize(
    "driver_engine",
    [
        pytest.param((name, driver), id=f"{name}-{driver}")
        for name in _SERVERS
        for driver in SYNC_DRIVERS[name]
    ],
    indirect=True,
)
every_strategy = pytest.mark.parametrize("strategy", ["auto", "cas"])
every_storage = pytest.mark.parametrize("storage", ["binary", "text"])

#: Seconds after which a process or a thread of a test is taken to hang; nothing is measured by it.
PATIENCE: Final = 60.0


def before() -> KeyRing:
    """Return the ring from before the rotation."""
    return KeyRing([OLD_KEY])


def after() -> KeyRing:
    """Return the ring in which the new key is active, and the old one still decrypts."""
    return KeyRing([NEW_KEY, OLD_KEY])


def column_type(ring: KeyRing | None = None, **options: Any) -> EncryptedJWT:
    """Return the column's type as it is after the rotation, or with another ring."""
    return EncryptedJWT(after() if ring is None else ring, **({"context": CONTEXT} | options))


def run_connection(bind: sa.Engine | sa.Connection, lock_timeout: float = 1) -> RunConnection:
    """Return the connection of a run over the sessions, which holds their lock."""
    return RunConnection(
        bind, Subject("sessions", "token", column_type()), Options(lock_timeout=lock_timeout)
    )


def token(number: int, size: int = 300) -> str:
    """Return the token of this number: about *size* characters, but at least 170."""
    return signed_token(sub=f"user-{number}", jti=f"{number}", pad="x" * max(0, (size - 170) * 3 // 4))


def seal(text: str, ring: KeyRing | None = None, **options: Any) -> Stored:
    """Return the envelope of a token as a column's type stores it, under the old key unless another ring is given."""
    type_ = column_type(before() if ring is None else ring, **options)
    return type_.cipher().encrypt(text, type_.ring())


def run(engine: AnyEngine, action: Callable[[sa.Connection], _Result], *, begin: bool = True) -> _Result:
    """Do something with a connection of either kind of engine, in a transaction unless *begin* is false."""
    if isinstance(engine, sa.Engine):
        with engine.begin() if begin else engine.connect() as connection:
            return action(connection)

    async def run_async() -> _Result:
        async with engine.begin() if begin else engine.connect() as connection:
            return await connection.run_sync(action)

    return asyncio.run(run_async())


def sync_url(engine: AnyEngine) -> sa.URL:
    """Return the URL of an engine's database with a synchronous driver."""
    name = engine.dialect.name
    return engine.url.set(drivername=f"{name}+{SYNC_DRIVERS[name][0]}")


@contextmanager
def engine_on(url: sa.URL, **options: Any) -> Iterator[sa.Engine]:
    """Return another engine, which is disposed of with the block."""
    engine = sa.create_engine(url, **options)
    try:
        yield engine
    finally:
        engine.dispose()


def cut_off(engine: AnyEngine, connection: sa.Connection) -> Callable[[], None]:
    """Return what ends a connection from outside, as an administrator or a failing network does."""
    ask, end = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({})"),
        "mariadb": ("SELECT CONNECTION_ID()", "KILL {}"),
    }[engine.dialect.name]

    number = connection.exec_driver_sql(ask).scalar()

    def end_connection() -> None:
        with engine_on(sync_url(engine)) as administration, administration.connect() as other:
            other.exec_driver_sql(end.format(number))

    return end_connection


# -- tables --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyKind:
    """A kind of key that a table can have.

    Attributes:
        name: What it is called in the name of a test.
        columns: Makes the columns of the key.
        value: Makes the key of the row with this number.
    """

    name: str
    columns: Callable[[], list[sa.Column[Any]]]
    value: Callable[[int], Key]


def _uuid(number: int) -> uuid.UUID:
    return uuid.UUID(bytes=hashlib.sha256(b"%d" % number).digest()[:16], version=4)


def _moment(number: int) -> dt.datetime:
    return dt.datetime(2024, 2, 28, 23, 59, 59) + dt.timedelta(microseconds=700_001 * number)


_BYTES: Final = sa.LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")
_MOMENT: Final = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")

INTEGER: Final = KeyKind("integer", lambda: [sa.Column("id", sa.Integer, primary_key=True)], lambda n: (n,))
BYTES: Final = KeyKind(
    "bytes", lambda: [sa.Column("id", _BYTES, primary_key=True)], lambda n: (_uuid(n).bytes,)
)
COMPOSITE: Final = KeyKind(
    "composite",
    lambda: [
        sa.Column("tenant", sa.String(20), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    ],
    lambda n: (f"tenant {n % 5}", n),
)
KEY_KINDS: Final = (
    INTEGER,
    BYTES,
    COMPOSITE,
    KeyKind("uuid", lambda: [sa.Column("id", sa.Uuid, primary_key=True)], lambda n: (_uuid(n),)),
    KeyKind(
        "text",
        lambda: [sa.Column("id", sa.String(40), primary_key=True)],
        lambda n: (f"{_uuid(n).hex} ü%s'\\",),
    ),
    KeyKind(
        "three-columns",
        lambda: [
            sa.Column("region", sa.SmallInteger, primary_key=True, autoincrement=False),
            sa.Column("moment", _MOMENT, primary_key=True),
            sa.Column("id", sa.Uuid, primary_key=True),
        ],
        lambda n: (n % 3, _moment(n // 9), _uuid(n)),
    ),
    KeyKind(
        "substitute",
        lambda: [sa.Column("code", sa.String(40), nullable=False, unique=True)],
        lambda n: (f"code {n}",),
    ),
)


@dataclass
class Sessions:
    """A table of sealed tokens.

    Attributes:
        table: The table; its token column has the raw type.
        key: Names of the key's columns.
        tokens: What each row holds, by its key.
        options: Parameters of the column's type beside its ring.
    """

    table: sa.Table
    key: tuple[str, ...]
    tokens: dict[Key, str]
    options: dict[str, Any] = field(default_factory=dict)

    def type_(self, ring: KeyRing | None = None) -> EncryptedJWT:
        """Return the column's type."""
        return column_type(ring, **self.options)

    def reencrypt(
        self, engine: AnyEngine | sa.Connection, ring: KeyRing | None = None, **options: Any
    ) -> ReencryptionReport:
        """Re-encrypt the table: through an engine or a connection, or as an asynchronous program does it."""
        arguments: dict[str, Any] = {
            "type_": self.type_(ring),
            "schema": self.table.schema,
            "batch_size": 100,
        }
        arguments |= options
        if isinstance(engine, sa.Engine | sa.Connection):
            return reencrypt(engine, self.table.name, "token", **arguments)
        return run(engine, lambda c: reencrypt(c, self.table.name, "token", **arguments), begin=False)

    def stored(self, engine: AnyEngine) -> dict[Key, Any]:
        """Return what the database has, by key."""
        columns = [*(self.table.c[name] for name in self.key), self.table.c.token]
        rows = run(engine, lambda connection: connection.execute(sa.select(*columns)).all())
        return {tuple(row[:-1]): row[-1] for row in rows}

    def decrypted(self, engine: AnyEngine, ring: KeyRing | None = None) -> dict[Key, str]:
        """Return every token, by key."""
        ring = after() if ring is None else ring
        return {
            key: str(decrypt_token(stored, ring, context=CONTEXT))
            for key, stored in self.stored(engine).items()
        }

    def census(self, engine: AnyEngine) -> dict[tuple[str | None, str], int]:
        """Return the number of rows by key id and state, by SQL alone."""
        typed = sa.Table(
            self.table.name, sa.MetaData(), sa.Column("token", self.type_()), schema=self.table.schema
        )
        rows = run(engine, lambda connection: connection.execute(key_usage(typed.c.token)).all())
        return {(row.key_id, row.state): row.rows for row in rows}

    def at(self, key: Key) -> list[sa.ColumnElement[bool]]:
        """Return the conditions of one row."""
        return [self.table.c[name] == value for name, value in zip(self.key, key, strict=True)]

    def put(self, engine: AnyEngine, key: Key, stored: Stored | None) -> None:
        """Write the raw value of one row."""
        run(engine, lambda c: c.execute(sa.update(self.table).where(*self.at(key)).values(token=stored)))


def create_sessions(
    engine: AnyEngine,
    rows: int,
    kind: KeyKind = INTEGER,
    *,
    name: str = "sessions",
    schema: str | None = None,
    size: int = 300,
    columns: tuple[sa.Column[Any], ...] = (),
    token_type: Any = None,
    **options: Any,
) -> Sessions:
    """Create a table and fill it with tokens under the old key; the rows go in shuffled."""
    is_text = options.get("storage") == "text"
    key_columns = kind.columns()
    raw_type = token_type or (sa.Text() if is_text else sa.LargeBinary())
    table = sa.Table(name, sa.MetaData(), *key_columns, sa.Column("token", raw_type), *columns, schema=schema)
    key = tuple(column.name for column in key_columns)
    sessions = Sessions(table, key, {kind.value(n): token(n, size) for n in range(1, rows + 1)}, options)
    fill(engine, sessions)
    return sessions


def fill(engine: AnyEngine, sessions: Sessions, *, create: bool = True) -> None:
    """Create the table, unless it is there, and insert the rows."""
    type_ = sessions.type_(before())
    cipher, ring = type_.cipher(), type_.ring()
    content = [
        dict(zip(sessions.key, key, strict=True)) | {"token": cipher.encrypt(text, ring)}
        for key, text in sessions.tokens.items()
    ]
    random.Random(1).shuffle(content)

    def create_and_insert(connection: sa.Connection) -> None:
        if create:
            sessions.table.create(connection)
        if content:
            connection.execute(sa.insert(sessions.table), content)

    run(engine, create_and_insert)


# -- the application -----------------------------------------------------------------------------------------------


@dataclass
class Written:
    """What an application did: the token that it last committed to each row."""

    tokens: dict[Key, str] = field(default_factory=dict)
    refused: int = 0


def _write(url: sa.URL, table: str, rows: int, storage: str, pipe: Pipe, commits: Any, seed: int) -> None:
    """Change random rows, several in a transaction, until told to stop; remember what was committed."""
    chooser = random.Random(seed)
    engine = sa.create_engine(url)
    type_ = column_type(storage=storage)
    cipher, ring = type_.cipher(), type_.ring()
    raw = sa.table(
        table,
        sa.column("id", sa.Integer),
        sa.column("token", sa.Text if storage == "text" else sa.LargeBinary),
    )
    statement = sa.update(raw).where(raw.c.id == sa.bindparam("row")).values(token=sa.bindparam("new"))
    written = Written()
    number = 1_000_000 * seed
    with engine.connect() as connection:
        while not pipe.poll():
            changes = {}
            for row in chooser.sample(range(1, rows + 1), 3):
                number += 1
                changes[row] = token(number)
            try:
                for row, text in changes.items():
                    connection.execute(statement, {"row": row, "new": cipher.encrypt(text, ring)})
                connection.commit()
            except DBAPIError:
                # A deadlock or a busy database: an application tries again, or tells its user.
                connection.rollback()
                written.refused += 1
            else:
                written.tokens |= {(row,): text for row, text in changes.items()}
                commits.value += 1
                if commits.value == 1:
                    pipe.send("writing")
            # Who waits for SQLite's only write lock looks for it now and then, and must find it free.
            time.sleep(0.002)
    engine.dispose()
    pipe.send(written)


class Application:
    """A process that writes to a table with integer keys."""

    def __init__(self, engine: sa.Engine, sessions: Sessions, seed: int) -> None:
        self._pipe, other = processes.Pipe()
        self._commits: Any = processes.Value("q", 0, lock=False)
        arguments = (
            engine.url,
            sessions.table.name,
            len(sessions.tokens),
            sessions.options.get("storage", "binary"),
            other,
            self._commits,
            seed,
        )
        self.process = processes.Process(target=_write, args=arguments, daemon=True)
        self.process.start()
        other.close()
        assert self._receive() == "writing"

    @property
    def commits(self) -> int:
        """Transactions that it has committed so far."""
        return int(self._commits.value)

    def _receive(self) -> Any:
        assert self._pipe.poll(PATIENCE), "the application hangs"
        return self._pipe.recv()

    def stop(self) -> Written:
        """End the application and return what it did."""
        self._pipe.send("stop")
        written = self._receive()
        self.process.join(PATIENCE)
        assert isinstance(written, Written)
        return written

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self._pipe.close()


@contextmanager
def application(engine: sa.Engine, sessions: Sessions, seed: int = 1) -> Iterator[Application]:
    """Return an application that is at work; it is ended with the block at the latest."""
    running = Application(engine, sessions, seed)
    try:
        yield running
    finally:
        running.close()


# -- strategies for tests ------------------------------------------------------------------------------------------


class Unprotected:
    """The control: reads, then writes by primary key, as most programs do. It must lose updates."""

    def run_batch(self, task: Task) -> Batch:
        connection, table, conversion = task.connection, task.table, task.conversion
        rows = connection.sqlalchemy.execute(task.rows).all()
        batch = task.batch_of(rows)
        batch.written = len(rows)
        names = [f"key_{i}" for i in range(len(table.keys))]
        conditions = [
            key == sa.bindparam(name, type_=key.type) for key, name in zip(table.keys, names, strict=True)
        ]
        new = sa.bindparam("new_value", type_=table.value.type)
        parameters = [
            dict(zip(names, table.key_of(row), strict=True)) | {"new_value": conversion.convert(row[-1])}
            for row in rows
        ]
        if parameters:
            with connection.transaction() as transaction:
                transaction.execute(
                    sa.update(table.clause).where(*conditions).values({table.value: new}), parameters
                )
        return batch


def record_updates(engine: sa.Engine) -> list[str]:
    """Return a list that gets every UPDATE from now on; those that are pipelined go around SQLAlchemy's events."""
    updates: list[str] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def record(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("UPDATE"):
            updates.append(statement)

    if engine.dialect.driver == "psycopg":
        import psycopg

        # The run knows a driver's ordinary cursor by its name.
        class Cursor(psycopg.Cursor[Any]):
            def executemany(self, query: Any, params_seq: Any, *, returning: bool = False) -> None:
                def record_each() -> Iterator[Any]:
                    for parameters in params_seq:
                        updates.append(query)
                        yield parameters

                super().executemany(query, record_each(), returning=returning)

        @sa.event.listens_for(engine, "checkout")
        def use_recording_cursor(connection: Any, *_: object) -> None:
            connection.cursor_factory = Cursor

    return updates


class Interrupted:
    """A strategy in whose first batch something happens after a row was read and before it is written."""

    #: Whether what happens needs the connection of the run.
    calls_out = False

    def __init__(self, strategy: str | Strategy, happen: Callable[[], object]) -> None:
        self._strategy = strategy
        self._happen = happen
        self.happened = False

    def run_batch(self, task: Task) -> Batch:
        strategy = self._strategy
        if isinstance(strategy, str):
            strategy = choose_strategy(task.connection.sqlalchemy, task.table, strategy)
        conversion: Any = _Interrupting(task.conversion, self)
        return strategy.run_batch(task._replace(conversion=conversion))

    def happen(self) -> None:
        if not self.happened:
            self.happened = True
            self._happen()


class _Interrupting:
    """A conversion that lets something happen while it converts."""

    def __init__(self, conversion: Conversion, interrupted: Interrupted) -> None:
        self.key_id = conversion.key_id
        self.calls_out = interrupted.calls_out
        self.rows = conversion.rows
        self.leaves_plaintext = conversion.leaves_plaintext
        self.origins = conversion.origins
        self.token = conversion.token
        self._convert = conversion.convert
        self._interrupted = interrupted

    def convert(self, stored: Stored) -> Stored:
        self._interrupted.happen()
        return self._convert(stored)


def in_thread(action: Callable[[], object], seconds: float) -> threading.Thread:
    """Start something in a thread and give it a time: it may wait for a lock that its caller has."""
    thread = threading.Thread(target=action)
    thread.start()
    thread.join(seconds)
    return thread
