"""One database connection, with transactions that a run begins and ends itself.

The connection is in autocommit mode and ``BEGIN`` and ``COMMIT`` are sent as statements: so a run can use the very
connection that Alembic uses, with its search path and role, and decide itself where a transaction ends.

On PostgreSQL no state is left in the session, and all but VACUUM happens in a transaction: a pooler may do the next one
on another server, and the application's on this one. What a run needs is set within each transaction and ends with it.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from jwt_column.database.driver_errors import mysql_code
from jwt_column.database.drivers import (
    binary_results,
    close_for_good,
    open_connection,
    send_commands,
    without_chains,
    without_prepared_statements,
    wrapped_errors,
)
from jwt_column.database.time_limits import SESSION_LIMITS, lift_row_limit, transaction_limits
from jwt_column.errors import ConfigurationError, ReencryptionError

from .lease import Lease
from .schemas import family_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sqlalchemy import Executable, Row, TableClause

    from .options import Options
    from .reflection import Subject


# No named locks: some releases of MariaDB with Galera, and Percona XtraDB Cluster in its strict mode.
_NO_NAMED_LOCKS: Final = frozenset({1235, 1105})
# Limits of MySQL and MariaDB in seconds, of which 0 is none; and how long a transaction may wait for this process.
_MYSQL_LIMITS: Final = {
    "idle_transaction_timeout": "600",
    "idle_write_transaction_timeout": "600",
    **dict.fromkeys(SESSION_LIMITS, "0"),
}
_MYSQL_VARIABLES: Final = (
    *_MYSQL_LIMITS,
    "innodb_lock_wait_timeout",
    "max_allowed_packet",
    "sql_mode",
    "transaction_isolation",
    "tx_isolation",
    "wsrep_on",
    "wsrep_sync_wait",
)
# Statements grow no larger than this, a fourth of what MySQL's max_allowed_packet is unless set otherwise.
_STATEMENT_BYTES: Final = 4 * 1024 * 1024
# A restored table has no statistics until it is analyzed, and for want of them PostgreSQL sorts all rows that are left
# for each batch. Where no index has the order it sorts all the same, and would compile that plan for its made-up costs.
_ALONG_KEY: Final = {"enable_sort": "off", "jit": "off"}
# Seconds between two looks whether another run has ended.
_ASK_INTERVAL: Final = 0.25


class RunConnection:
    """The connection of one run, reopened when it is lost and the run has an engine to reopen it from.

    A run that writes takes an advisory lock on the column, *subject*. The connection of a shard takes none, because the
    run that cut the shards has it, and has looked up the schema; it takes a *role* of PostgreSQL in each transaction.

    Raises:
        ConfigurationError: The connection is in a transaction, or *bind* is something else.
        ReencryptionError: Another run has the lock.
    """

    def __init__(
        self,
        bind: Engine | Connection,
        subject: Subject,
        options: Options,
        *,
        is_shard: bool = False,
        role: str | None = None,
    ) -> None:
        if not isinstance(bind, Engine | Connection):
            raise ConfigurationError(
                f"bind is an Engine or a Connection, not {type(bind).__name__}; with an AsyncEngine use "
                "await connection.run_sync(lambda connection: reencrypt(connection, ...))"
            )
        self._engine = bind if isinstance(bind, Engine) else None
        self._given = bind if isinstance(bind, Connection) else None
        #: Whether a lost connection can be replaced.
        self.can_reopen: bool = self._engine is not None
        #: The column, with the schema that its table's name means for this connection.
        self.subject: Subject = subject
        self._is_located = is_shard
        self._takes_lock = not (is_shard or options.dry_run)
        self._translations: Any = None
        #: Whether the next rows are read from a key on. Those of a first batch may be few, and found faster by a sort.
        self.is_behind_key: bool = False
        #: Bytes of new values that one statement may carry.
        self.statement_bytes: int = _STATEMENT_BYTES
        self._options = options
        self._role = role
        self._lease: Lease | None = None
        self._driver_state = ExitStack()
        self._restore: list[str] = []
        self._is_autocommit = False
        # The level that SQLAlchemy was told, and else the one that the session of a given connection has.
        self._old_isolation: Any = None
        self._session_isolation: Any = None
        #: SQLAlchemy's connection; another one after :meth:`reopen`.
        self.sqlalchemy: Connection
        try:
            self._open()
        except BaseException:
            self._release_lease()
            raise

    @property
    def dialect(self) -> str:
        """``postgresql``, ``mysql`` (MariaDB too), ``sqlite`` or another name of SQLAlchemy's."""
        return family_of(self.sqlalchemy)

    @property
    def is_lost(self) -> bool:
        """Whether the connection is gone: also when the error that told it was not the first one."""
        return self.sqlalchemy.invalidated

    def _open(self) -> None:
        if self._engine is not None:
            self.sqlalchemy = open_connection(self._engine)
        else:
            assert self._given is not None  # noqa: S101 - one of the two is there
            self.sqlalchemy = self._given
            # As the connection or its engine was told. A database cannot be asked whether its driver commits by itself.
            own = self.sqlalchemy.get_execution_options().get("isolation_level")
            of_engine = getattr(self.sqlalchemy.dialect, "_on_connect_isolation_level", None)
            self._old_isolation = own or of_engine
            self._is_autocommit = self._old_isolation == "AUTOCOMMIT"
            if self.sqlalchemy.in_transaction() and not self._is_autocommit:
                raise ConfigurationError(
                    "the connection is in a transaction, which a re-encryption would commit with its first batch; "
                    "commit it first, or give an engine"
                )
        try:
            self._driver_state.enter_context(without_prepared_statements(self.sqlalchemy))
            self._refuse_ending(self._driver_state.enter_context(without_chains(self.sqlalchemy)))
            if not self._is_autocommit:
                with wrapped_errors(self.sqlalchemy):
                    if self._given is not None and self._old_isolation is None:
                        self._session_isolation = self.sqlalchemy.get_isolation_level()
                        self._set_isolation("AUTOCOMMIT")
                    else:
                        self.sqlalchemy = self.sqlalchemy.execution_options(isolation_level="AUTOCOMMIT")
            self._find_schema()
            self._configure()
            self._take_lock()
        except BaseException:
            self._release()
            raise

    def _set_isolation(self, level: Any) -> None:
        """Set a level that SQLAlchemy need not know of.

        When the connection goes back to its pool, SQLAlchemy would set a level that it knows of back to that of the
        engine, and not to the one that the application has set in a connect event.
        """
        driver: Any = self.sqlalchemy.connection.dbapi_connection
        self.sqlalchemy.dialect.set_isolation_level(driver, level)

    def _refuse_ending(self, completion_type: str) -> None:
        """Refuse a connection of the caller's that its server ends with a transaction."""
        if completion_type == "RELEASE" and self._given is not None:
            # SQLAlchemy closes a connection with a ROLLBACK, and sets its isolation level back after that.
            raise ConfigurationError(
                "the server ends this connection with each COMMIT and ROLLBACK, because completion_type is RELEASE "
                "(2): give an engine, or set completion_type to 0"
            )

    def _configure(self) -> None:
        """Set the session variables that a run needs, and note how to set them back if the connection lives on.

        None on PostgreSQL, where they are set in each transaction.
        """
        if self.dialect != "mysql":
            return
        # First of all: it cuts the list of variables too.
        row_limit = lift_row_limit(self.sqlalchemy)
        names = ", ".join(f"'{name}'" for name in _MYSQL_VARIABLES)
        found = self.sqlalchemy.exec_driver_sql(f"SHOW VARIABLES WHERE variable_name IN ({names})")
        old = {str(name).lower(): str(value) for name, value in found}
        # Escaping may double a value, and the statement has other parts.
        self.statement_bytes = min(self.statement_bytes, int(old["max_allowed_packet"]) // 2)
        # The name before MySQL 8 and MariaDB 11.1.
        level = "transaction_isolation" if "transaction_isolation" in old else "tx_isolation"
        new = {
            "innodb_lock_wait_timeout": str(max(1, round(self._options.lock_timeout))),
            # Under REPEATABLE READ a batch sees old rows, and MariaDB's snapshot isolation refuses its writes.
            level: "'READ-COMMITTED'",
            # Outside strict mode a value that is too long for its column is cut off, and only a warning says so.
            "sql_mode": "CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')",
            **_MYSQL_LIMITS,
        }
        if old.get("wsrep_on") == "ON":
            # A node of a Galera cluster answers from all that was committed before on any node. One that lags would
            # count no stale rows where another one has just written some.
            new["wsrep_sync_wait"] = str(int(old["wsrep_sync_wait"]) | 1)
        changed = [name for name in new if name in old and (name not in _MYSQL_LIMITS or float(old[name]))]
        self.sqlalchemy.exec_driver_sql(_setting({name: new[name] for name in changed}))
        if self._given is not None:
            self._restore += [] if row_limit is None else [row_limit]
            texts = (level, "sql_mode")
            before = {name: f"'{old[name]}'" if name in texts else old[name] for name in changed}
            self._restore.append(_setting(before))

    def _find_schema(self) -> None:
        """Work out the schema once, and translate no name from then on."""
        if not self._is_located:
            with self.reading() as transaction:
                self.subject = self.subject.found_by(transaction)
            self._is_located = True
        self._translations = self.sqlalchemy.get_execution_options().get("schema_translate_map")
        if self._translations:
            self.sqlalchemy = self.sqlalchemy.execution_options(schema_translate_map=None)

    def _take_lock(self) -> None:
        """Take the advisory lock, which frees itself when the connection goes; wait for it if that was asked."""
        if not self._takes_lock or self.dialect not in ("postgresql", "mysql"):
            return
        subject = self.subject
        digest = sha256(f"{subject.schema}.{subject.table}.{subject.column}".encode()).digest()
        if self.dialect == "postgresql":
            if self._lease is not None:
                # A lost connection of the run says nothing about that of the lease.
                return
            number = int.from_bytes(digest[:8], "big", signed=True)
            self._lease = Lease(self.sqlalchemy.engine, number)
            self._await(self._lease.take)
            return
        name = f"jwt-column-{digest[:16].hex()}"
        try:
            self._await(
                lambda: bool(self.sqlalchemy.exec_driver_sql(f"SELECT GET_LOCK('{name}', 0)").scalar())
            )
        except DBAPIError as error:
            # In a Galera cluster that has named locks, each node has its own. The run is safe without them: of two
            # runs at once each takes the rows that the other left, and both are slower.
            if mysql_code(error.orig) not in _NO_NAMED_LOCKS:
                raise
            return
        self._restore.append(f"SELECT RELEASE_LOCK('{name}')")

    def _await(self, take: Callable[[], bool]) -> None:
        """Take the lock as soon as it is free, asking again and again until the time is over."""
        wait = self._options.wait
        deadline = time.monotonic() + wait
        while not take():
            left = deadline - time.monotonic()
            if left <= 0:
                waited = f" after {wait:g} seconds" if wait else ""
                raise ReencryptionError(
                    f"another run is at work on {self.subject.table}.{self.subject.column}{waited}; nothing was done. "
                    "To wait for it, give wait= (--wait) in seconds"
                )
            time.sleep(min(left, _ASK_INTERVAL))

    def _begin(self) -> None:
        """Begin a transaction: READ COMMITTED, and on SQLite with the write lock from the start."""
        if self.dialect != "postgresql":
            beginnings = {"sqlite": "BEGIN IMMEDIATE", "mysql": "START TRANSACTION"}
            self.sqlalchemy.exec_driver_sql(beginnings.get(self.dialect, "BEGIN"))
            return
        if self._lease is not None:
            self._lease.keep()
        commands = ["BEGIN ISOLATION LEVEL READ COMMITTED"]
        if self._role is not None:
            quote = self.sqlalchemy.dialect.identifier_preparer.quote_identifier
            commands.append(f"SET LOCAL ROLE {quote(self._role)}")
        # Well under deadlock_timeout (1 s), so that the application is never the deadlock's victim.
        settings: dict[str, object] = {"lock_timeout": max(1, round(self._options.lock_timeout * 1000))}
        settings |= transaction_limits(self.sqlalchemy.dialect)
        settings |= _ALONG_KEY if self.is_behind_key else {}
        commands += [f"SET LOCAL {name} = {value}" for name, value in settings.items()]
        send_commands(self.sqlalchemy, "; ".join(commands))

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Return the connection for statements that read; on PostgreSQL they share a transaction."""
        if self.dialect != "postgresql":
            yield self.sqlalchemy
            return
        with self.transaction() as transaction:
            yield transaction

    def read(self, statement: Executable) -> Sequence[Row[Any]]:
        """Return the rows of a query, read without locks."""
        with self.reading() as transaction:
            return transaction.execute(statement).all()

    @contextmanager
    def transaction(self, *, binary: bool = False) -> Iterator[Connection]:
        """Return a transaction that ends with the block: kept, or undone when the block raises.

        Args:
            binary: Whether psycopg 3 may fetch in binary, because it knows that form of every column read.
        """
        try:
            self._begin()
            with binary_results(self.sqlalchemy) if binary else nullcontext():
                yield self.sqlalchemy
            # SQLite refuses a commit while others read, and leaves the transaction open.
            send_commands(self.sqlalchemy, "COMMIT")
        except BaseException:
            # If the connection is gone, so is the transaction.
            with suppress(SQLAlchemyError):
                if not self.sqlalchemy.invalidated:
                    send_commands(self.sqlalchemy, "ROLLBACK")
            raise

    def execute_pipelined(self, statement: str, parameters: Iterable[tuple[Any, ...]]) -> int:
        """Send a statement of psycopg 3's with one set of parameters after another, and return the rows written.

        The driver asks for the next set as soon as one is sent, so that the server works on that while this process
        makes the next, for which it must not need this connection. SQLAlchemy would have them all first, so the driver
        is asked directly.

        Raises:
            DBAPIError: The database refused one, and of the others takes none.
        """
        driver_connection: Any = self.sqlalchemy.connection
        cursor = driver_connection.cursor()
        try:
            with wrapped_errors(self.sqlalchemy):
                cursor.executemany(statement, parameters)
            return int(cursor.rowcount)
        finally:
            cursor.close()

    def vacuum(self, table: TableClause) -> None:
        """Let PostgreSQL reuse the space of a table's old rows, without waiting for locks."""
        name = self.sqlalchemy.dialect.identifier_preparer.format_table(table)
        send_commands(self.sqlalchemy, f"VACUUM (SKIP_LOCKED, TRUNCATE FALSE) {name}")

    def reopen(self) -> None:
        """Replace a lost connection."""
        self._restore.clear()
        self._driver_state.close()
        self.sqlalchemy.close()
        time.sleep(0.1)
        self._open()

    def close(self) -> None:
        """Restore the session variables, free the lock, and give the connection back."""
        self._release()
        self._release_lease()

    def _release_lease(self) -> None:
        if self._lease is not None:
            self._lease.release()

    def _release(self) -> None:
        while self._restore:
            statement = self._restore.pop()
            try:
                self.sqlalchemy.exec_driver_sql(statement)
            except SQLAlchemyError:
                # The connection is gone, and its settings and locks with it.
                self._restore.clear()
        if self._engine is not None:
            close_for_good(self.sqlalchemy)
        elif not self._is_autocommit and not self.sqlalchemy.invalidated:
            # Its owner meets the error of a connection that is lost.
            with suppress(SQLAlchemyError), wrapped_errors(self.sqlalchemy):
                self.sqlalchemy.commit()
                if self._session_isolation is not None:
                    self._set_isolation(self._session_isolation)
                elif self._old_isolation is not None:
                    self.sqlalchemy.execution_options(isolation_level=self._old_isolation)
        # After the commit.
        self._driver_state.close()
        if self._given is not None and self._translations:
            self.sqlalchemy.execution_options(schema_translate_map=self._translations)


def _setting(variables: dict[str, str]) -> str:
    """Return the statement of MySQL and MariaDB that sets variables of the session."""
    return f"SET SESSION {', '.join(f'{name} = {value}' for name, value in variables.items())}"
