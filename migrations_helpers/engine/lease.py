"""The lease on PostgreSQL that keeps a second run away from a column: it lasts as long as the run.

An advisory lock of the session would stay behind a pooler, in a session that goes on to serve the application. A lease
is an advisory lock of a transaction, which a connection of its own holds open for the whole run. Against a row with an
expiry: it needs no table and no right to make one, no clocks that agree, and it ends with the process, at once. It
costs one connection, behind a pooler one server of its pool. It keeps no old rows alive: its transaction has no
snapshot.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from jwt_column.database.drivers import open_connection, without_prepared_statements
from jwt_column.database.time_limits import transaction_limits

if TYPE_CHECKING:
    from sqlalchemy import Connection


# Connections that send nothing are closed by many a proxy and firewall, the quickest after a minute.
_KEEP_INTERVAL: Final = 20.0


class Lease:
    """An advisory lock, held by a transaction of its own."""

    def __init__(self, engine: Engine, number: int) -> None:
        # A pool of its own, with the same way of connecting: the engine's may have one connection only.
        self._engine = Engine(engine.pool.recreate(), engine.dialect, engine.url, hide_parameters=True)
        self._number = number
        self._connection: Connection | None = None
        self._used = 0.0

    def take(self) -> bool:
        """Take the lock, and return whether it was free."""
        self._let_go()
        # Whatever the engine says: without a transaction the lock would be gone at once.
        connection = open_connection(self._engine).execution_options(isolation_level="READ COMMITTED")
        self._connection = connection
        with without_prepared_statements(connection):
            unlimited = ", ".join(
                f"set_config('{name}', '0', true)" for name in transaction_limits(connection.dialect)
            )
            lock = f"SELECT pg_try_advisory_xact_lock({self._number}), {unlimited}"
            taken = bool(connection.exec_driver_sql(lock).scalar())
        self._used = time.perf_counter()
        if not taken:
            # Behind a pooler, a transaction that waits would keep a server from the application.
            self._let_go()
        return taken

    def keep(self) -> None:
        """Use the connection now and then, and take the lock again if it was lost.

        A run whose lease is lost for good goes on. Two runs over one column waste work and do no harm.
        """
        if time.perf_counter() - self._used < _KEEP_INTERVAL:
            return
        self._used = time.perf_counter()
        if self._connection is not None:
            try:
                with without_prepared_statements(self._connection):
                    self._connection.exec_driver_sql("SELECT 1")
            except DBAPIError:
                pass
            else:
                return
        with suppress(SQLAlchemyError, OSError):
            self.take()

    def release(self) -> None:
        """Free the lock and close the connection."""
        self._let_go()
        self._engine.dispose()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # It may be gone, and the lock with it.
            with suppress(SQLAlchemyError, OSError):
                connection.close()
