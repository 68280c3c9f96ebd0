"""A table in which each process reports the keys that it has loaded, so that a rotation need not guess.

>>> from sqlalchemy import MetaData, create_engine
>>> from jwt_column.fleet import Fleet, fleet_table
>>> engine = create_engine("sqlite:///:memory:")
>>> metadata = MetaData()
>>> table = fleet_table(metadata)  # or op.create_jwt_fleet_table() in a migration
>>> report_to = Fleet(engine)  # KeyRing.from_uri(uri, refresh="watch", report_to=Fleet(engine))

A process writes one row for each ring, under a random name, and overwrites it with each report. The row is
authenticated under a key that is derived from the ring's active key, together with the database's time of the report.
So a writer of the database who has no key of the ring can neither forge a row nor make an old one look fresh. A row can
be deleted, so the number of processes has to be known from elsewhere.
"""

from __future__ import annotations

import json
import random
import secrets
import threading
import time
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from sqlalchemy import BigInteger, Column, Engine, MetaData, String, Table, Text, inspect, select
from sqlalchemy.exc import DBAPIError

from .database.clock import database_time
from .database.driver_errors import is_retryable
from .errors import ConfigurationError
from .format.base64url import encode
from .keys.process import PerProcess
from .keys.ring import KeyRing
from .option_values import TEXT, instance

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Connection

    from .keys.data_key import DataKey
    from .keys.ring import RingReport

__all__ = ["FLEET_TABLE", "Fleet", "FleetProcess", "fleet_table"]

#: The name of the table.
FLEET_TABLE: Final = "jwt_column_fleet"

# Intervals and seconds for which a process counts after its last report: a load may hang, a database may be away.
_MISSED_REPORTS: Final = 3
_GRACE: Final = 30

# Tries of a report that a deadlock or a lock ended, and the most seconds between two.
_ATTEMPTS: Final = 4
_LONGEST_REST: Final = 0.2

# Rows of ended processes go when another process reports for the first time.
_FORGOTTEN_AFTER: Final = 24 * 3600

# The longest text of an error that a row holds.
_MAX_ERROR: Final = 500


def fleet_table(metadata: MetaData, *, name: str = FLEET_TABLE, schema: str | None = None) -> Table:
    """Return the table of a fleet as a member of a MetaData, for ``create_all()`` and autogenerate."""
    instance("a MetaData", MetaData).check(metadata=metadata)
    TEXT.check(name=name)
    TEXT.or_none.check(schema=schema)
    return Table(
        name,
        metadata,
        Column("process", String(32), primary_key=True),
        Column("reported_at", BigInteger, nullable=False),
        Column("report", Text, nullable=False),
        Column("mac", String(43), nullable=False),
        schema=schema,
    )


class FleetProcess(NamedTuple):
    """One process of a fleet, as it reported a ring.

    Attributes:
        host: Name of its host.
        pid: Its process id.
        revision: The revision of the key-ring file that it has loaded; 0 for a ring without revisions.
        key_ids: Every key id that it has, the active one first.
        encrypting: The key ids that it encrypts under.
        age: Seconds since it loaded the keys, at the time of the report.
        seen: Seconds since the report, by the database's clock.
        error: The reason why its last load failed, or None.
        is_live: False if its next report is long overdue: it has ended, or cannot report.
        is_authentic: False if the row was not written with the keys of this ring, or was changed.
    """

    host: str
    pid: int
    revision: int
    key_ids: tuple[str, ...]
    encrypting: tuple[str, ...]
    age: int
    seen: int
    error: str | None
    is_live: bool
    is_authentic: bool


class Fleet:
    """The processes that use a ring, by their reports in a table of the application's database.

    Give it to ``KeyRing.from_uri(..., refresh="watch", report_to=Fleet(engine))``. It reports on connections of its
    own, never on one of the application's pool.

    Args:
        engine: A synchronous engine of the application's database.
        table: The table's name.
        schema: The table's schema.

    Raises:
        ConfigurationError: The engine is asynchronous, or none.
    """

    def __init__(self, engine: Engine, *, table: str = FLEET_TABLE, schema: str | None = None) -> None:
        if not isinstance(engine, Engine):
            raise ConfigurationError(
                f"a fleet reports on a synchronous Engine, not on {type(engine).__name__}, because the refresh thread "
                "has no event loop; make one with create_engine()"
            )
        TEXT.check(table=table)
        self._engine = engine
        self.table: Table = fleet_table(MetaData(), name=table, schema=schema)
        # A child of a fork, and each ring, has a row of its own.
        self._lock = PerProcess(threading.Lock)
        self._names: PerProcess[WeakKeyDictionary[KeyRing, str]] = PerProcess(WeakKeyDictionary)

    def __call__(self, ring: KeyRing) -> None:
        """Report the state of a ring in this process.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: The database cannot be reached, or has no such table.
        """
        keys = ring.snapshot()
        report = _to_json(ring.report(keys))
        names = self._names.get()
        name = names.setdefault(ring, secrets.token_hex(16))
        # A connection of the pool may belong to the process that this one was forked from.
        engine = Engine(
            self._engine.pool.recreate(), self._engine.dialect, self._engine.url, hide_parameters=True
        )
        own = engine.execution_options(**self._engine.get_execution_options())
        try:
            for left in reversed(range(_ATTEMPTS)):
                try:
                    with self._lock.get(), own.begin() as connection:
                        return self._write(connection, name, report, keys.active)
                except DBAPIError as error:
                    # Processes that start together want the same gap of InnoDB's index, which ends in a deadlock.
                    if not left or not is_retryable(error):
                        raise
                    time.sleep(random.uniform(0.0, _LONGEST_REST))  # noqa: S311 - jitter, no secret
        finally:
            engine.dispose()

    def _write(self, connection: Connection, name: str, report: str, key: DataKey) -> None:
        table = self.table
        now = int(database_time(connection))
        values = {"reported_at": now, "report": report, "mac": _mac(key, name, now, report)}
        changed = connection.execute(table.update().where(table.c.process == name).values(values))
        if changed.rowcount == 0:
            connection.execute(table.insert().values(process=name, **values))
            connection.execute(table.delete().where(table.c.reported_at < now - _FORGOTTEN_AFTER))

    def processes(self, ring: KeyRing) -> list[FleetProcess]:
        """Return the processes that have reported keys of this ring, those that report no more too.

        Args:
            ring: A ring with the active keys of these processes.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: The database cannot be reached, or has no such table.
        """
        instance("a KeyRing", KeyRing).check(ring=ring)
        with self._engine.connect() as connection:
            return list(read_processes(connection, self.table, ring.keys))


def has_table(connection: Connection, table: Table) -> bool:
    """Return True if the database has the table of a fleet."""
    return inspect(connection).has_table(table.name, schema=table.schema)


def read_processes(connection: Connection, table: Table, keys: Iterable[DataKey]) -> Iterator[FleetProcess]:
    """Yield the processes that report one of these keys. Rows of other rings, and rows without keys, are left out."""
    by_id = {key.id: key for key in keys}
    now = int(database_time(connection))
    rows = select(table.c.process, table.c.reported_at, table.c.report, table.c.mac)
    for name, reported_at, report, mac in connection.execute(rows.order_by(table.c.process)).all():
        members = _from_json(report)
        if members is None or by_id.keys().isdisjoint((*members["key_ids"], *members["encrypting"])):
            continue
        key = by_id.get(members["encrypting"][0]) if members["encrypting"] else None
        is_authentic = key is not None and compare_digest(_mac(key, name, reported_at, report), mac)
        seen = now - reported_at
        yield FleetProcess(
            **{field: members[field] for field in _FIELDS},
            seen=seen,
            # The interval of a row that anyone may have written is not obeyed.
            is_live=seen <= _MISSED_REPORTS * (members["interval"] if is_authentic else 60) + _GRACE,
            is_authentic=is_authentic,
        )


def without_key(processes: Iterable[FleetProcess], key_id: str) -> list[FleetProcess]:
    """Return the live processes that may not have a key, so that they could not read rows under it."""
    return [one for one in processes if one.is_live and not (one.is_authentic and key_id in one.key_ids)]


def encrypting_under(processes: Iterable[FleetProcess], key_ids: Sequence[str]) -> list[FleetProcess]:
    """Return the live processes that may still write rows under one of these keys."""
    return [
        one
        for one in processes
        if one.is_live and not (one.is_authentic and set(one.encrypting).isdisjoint(key_ids))
    ]


_FIELDS: Final = {
    "host": str,
    "pid": int,
    "revision": int,
    "key_ids": list,
    "encrypting": list,
    "age": int,
    "error": (str, type(None)),
}


def _to_json(report: RingReport) -> str:
    """Return the text of a report, in ASCII, which every database gives back as it was."""
    members = {
        **{name: getattr(report, name) for name in _FIELDS},
        "age": int(report.age),
        "error": None if report.error is None else report.error[:_MAX_ERROR],
        "interval": int(report.interval) + 1,
    }
    return json.dumps(members, sort_keys=True)


def _from_json(text: Any) -> dict[str, Any] | None:
    """Return the members of a report; None if the text is none. It need not be authentic."""
    try:
        members = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    kinds: dict[str, Any] = {**_FIELDS, "interval": int}
    if not isinstance(members, dict) or members.keys() != kinds.keys():
        return None
    if not all(isinstance(members[name], kind) for name, kind in kinds.items()):
        return None
    for name in ("key_ids", "encrypting"):
        if not all(isinstance(key_id, str) for key_id in members[name]):
            return None
        members[name] = tuple(members[name])
    return members


def _mac(key: DataKey, name: str, reported_at: int, report: str) -> str:
    """Return the code of a row."""
    mac = HMAC(key.fleet_key(), SHA256())
    mac.update(f"{name}\n{reported_at}\n{report}".encode())
    return encode(mac.finalize())
