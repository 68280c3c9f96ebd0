"""The lag of replicas behind the database of a run, in seconds.

PostgreSQL's primary knows its replicas. ``replay_lag`` alone does not do: it stands still while a replica replays
nothing. So the positions of the log at which a run has looked are remembered, and the lag is the age of the oldest that
a replica has not replayed. MySQL and MariaDB know the lag on the replica only, which must be named.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from jwt_column.database.driver_errors import error_name
from jwt_column.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import URL, Connection, Executable, Row

    Read = Callable[[Executable], Sequence[Row[Any]]]
    Replica = str | URL | Engine


logger: logging.Logger = logging.getLogger("migrations_helpers")

# A base backup streams too, and replays nothing.
_PRIMARY: Final = text(
    "SELECT count(*), count(*) FILTER (WHERE state IS NULL), "
    "coalesce(max(extract(epoch FROM replay_lag)), 0)::float8, "
    "pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8, "
    "min(pg_wal_lsn_diff(replay_lsn, '0/0'))::float8 "
    "FROM pg_catalog.pg_stat_replication WHERE state IS DISTINCT FROM 'backup'"
)
_REPLICA: Final = text(
    "SELECT CASE WHEN NOT pg_is_in_recovery() THEN NULL "
    "WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0 "
    "ELSE coalesce(extract(epoch FROM now() - pg_last_xact_replay_timestamp()), 0) END::float8"
)
# Of MariaDB; of MySQL since 8.0.22; of older ones.
_STATUS: Final = ("SHOW ALL SLAVES STATUS", "SHOW REPLICA STATUS", "SHOW SLAVE STATUS")
_COLUMNS: Final = ("Seconds_Behind_Master", "Seconds_Behind_Source")


class ReplicaLag:
    """The largest lag of the replicas.

    Without replicas, by their URLs or engines, it asks PostgreSQL's primary, which is the database of the run.

    Raises:
        ConfigurationError: There is no replica, or its lag cannot be known.
    """

    def __init__(self, read: Read, dialect: str, replicas: Sequence[Replica]) -> None:
        self._read = read
        self._engines: dict[str, Engine] = {}
        self._own: list[Engine] = []
        # Positions in the log, and when they were current.
        self._positions: deque[tuple[float, float]] = deque()
        self._unreachable: set[str] = set()
        if not replicas and dialect != "postgresql":
            raise ConfigurationError(
                "max_replica_lag (--max-replica-lag) needs the replicas here, because only they know how far they are "
                "behind: give replicas=[...] (--replica) with their URLs"
            )
        try:
            for number, replica in enumerate(replicas, 1):
                self._engines[f"replica {number}"] = self._engine(replica)
            self._check()
        except BaseException:
            self.close()
            raise

    def _engine(self, replica: Replica) -> Engine:
        if isinstance(replica, Engine):
            return replica
        try:
            engine = create_engine(replica, pool_size=1, pool_pre_ping=True, hide_parameters=True)
        except (ArgumentError, ImportError, TypeError) as error:
            # Its text may hold a password.
            raise ConfigurationError(
                f"a URL of replicas (--replica) cannot be used ({type(error).__name__})"
            ) from None
        self._own.append(engine)
        return engine

    def close(self) -> None:
        """Close the connections to the replicas."""
        for engine in self._own:
            engine.dispose()

    def _check(self) -> None:
        """Refuse what tells no lag before a run begins."""
        for name, engine in self._engines.items():
            try:
                lag = _lag_of(engine)
            except DBAPIError as error:
                raise ConfigurationError(
                    f"{name} (--replica) cannot be asked for its lag ({error_name(error)}); nothing was done. It takes "
                    "a role that may see it: any on PostgreSQL, SLAVE MONITOR on MariaDB, REPLICATION CLIENT on MySQL"
                ) from None
            if lag is None:
                raise ConfigurationError(f"{name} (--replica) is no replica; nothing was done")
        if self._engines:
            return
        count, hidden, *_ = tuple(self._read(_PRIMARY)[0])
        if not count:
            raise ConfigurationError(
                "max_replica_lag (--max-replica-lag): no replica streams from this server; name replicas by "
                "replicas=[...] (--replica), or leave it out. Nothing was done"
            )
        if hidden:
            raise ConfigurationError(
                "max_replica_lag (--max-replica-lag): this role does not see the state of the replicas; grant it "
                "pg_monitor, or name them by replicas=[...] (--replica). Nothing was done"
            )

    def seconds(self) -> float:
        """Return the lag; infinity while a replica does not replicate.

        A replica that cannot be reached any more is passed over, with a warning: no waiting brings it back.
        """
        if not self._engines:
            return self._seconds_on_primary()
        lags = [0.0]
        for name, engine in self._engines.items():
            try:
                lag = _lag_of(engine)
            except SQLAlchemyError as error:
                if name not in self._unreachable:
                    logger.warning("%s cannot be asked for its lag any more (%s)", name, error_name(error))
                    self._unreachable.add(name)
                continue
            self._unreachable.discard(name)
            lags.append(lag or 0.0)
        return max(lags)

    def _seconds_on_primary(self) -> float:
        count, _, reported, current, replayed = tuple(self._read(_PRIMARY)[0])
        now = time.monotonic()
        if not count or replayed is None:
            if "primary" not in self._unreachable:
                logger.warning("no replica streams from this server any more")
                self._unreachable.add("primary")
            return 0.0
        self._unreachable.discard("primary")
        while self._positions and self._positions[0][1] <= replayed:
            self._positions.popleft()
        if current > replayed:
            self._positions.append((now, current))
        else:
            # Everything is replayed; what was reported last is past.
            self._positions.clear()
            return 0.0
        return max(now - self._positions[0][0], float(reported))


def _lag_of(engine: Engine) -> float | None:
    """Return the lag of one replica; None for a server that is none, infinity while it does not replicate."""
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            lag = connection.execute(_REPLICA).scalar()
            return None if lag is None else float(lag)
        rows = _replica_status(connection)
    if not rows:
        return None
    values = [next((row[name] for name in _COLUMNS if name in row), None) for row in rows]
    return max(math.inf if value is None else float(value) for value in values)


def _replica_status(connection: Connection) -> Sequence[Any]:
    """Return the state of each source that a replica of MySQL or MariaDB has."""
    for statement in _STATUS[:-1]:
        with suppress(DBAPIError):
            return connection.exec_driver_sql(statement).mappings().all()
    return connection.exec_driver_sql(_STATUS[-1]).mappings().all()
