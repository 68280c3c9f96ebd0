"""Databases with a table of any size, of which every measurement has a fresh copy of its own.

What is stored is sent once, some thousand values; the rows are made of them inside the database. A copy is made of a
finished table, so that no measurement starts with what the one before it has left: dead rows, a grown file, pages
still to be written. Whatever is made here is dropped at the end.
"""

from __future__ import annotations

import datetime as dt
import secrets
import shutil
import sqlite3
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from tests.benchmarks.reencryption.contents import DISTINCT
from tests.support.databases import CREATE_DATABASE, Unavailable, ensure_driver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from tests.benchmarks.reencryption.contents import Content

__all__ = ["SMALL", "TABLE", "MariaDB", "PostgreSQL", "SQLite", "Store", "open_engine"]

#: The table that is measured, and a small one like it, with which a process gets ready.
TABLE: Final = "sessions"
SMALL: Final = "small"
SMALL_ROWS: Final = 200

_SEED: Final = "seed"
_ROWS_COPIED_BY_FILE: Final = 10_000


class Store(Protocol):
    """A database to measure in.

    Attributes:
        name: ``"sqlite"``, ``"postgresql"`` or ``"mariadb"``.
        title: With the server's version.
        drivers: SQLAlchemy's names of the drivers that are installed; the first one is compared with everything.
    """

    name: str
    title: str
    drivers: tuple[str, ...]

    def template(self, content: Content, rows: int) -> AbstractContextManager[Any]:
        """Return a filled table that lasts as long as the block, to be copied by :meth:`copy`."""

    def copy(self, template: Any) -> AbstractContextManager[sa.URL]:
        """Return the URL of a copy that lasts as long as the block, with the first driver."""

    def size(self, url: sa.URL) -> int:
        """Return the bytes that the table has in its files, with its index."""


def open_engine(url: sa.URL, **options: Any) -> sa.Engine:
    """Return an engine as an application would configure it: WAL mode of SQLite goes with NORMAL."""
    engine = sa.create_engine(url, **options)
    if engine.dialect.name == "sqlite":
        sa.event.listen(
            engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = NORMAL")
        )
    return engine


def _table(name: str, metadata: sa.MetaData) -> sa.Table:
    return sa.Table(
        name,
        metadata,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("token", sa.LargeBinary, nullable=False),
        sa.Column("updated", sa.DateTime, nullable=False),
    )


def _fill(url: sa.URL, content: Content, rows: int) -> None:
    """Create and fill the tables: each statement copies the different values once more."""
    metadata = sa.MetaData()
    seed, *tables = (_table(name, metadata) for name in (_SEED, TABLE, SMALL))
    values = [
        {"id": number, "user_id": number, "token": value, "updated": dt.datetime(2026, 1, 1)}
        for number, value in enumerate(content.values(), 1)
    ]
    engine = open_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(seed.insert(), values)
        if content.in_database:
            connection.exec_driver_sql(f"UPDATE {_SEED} SET token = {content.in_database}")
        for table, wanted in zip(tables, (rows, SMALL_ROWS), strict=True):
            for base in range(0, wanted, DISTINCT):
                connection.exec_driver_sql(
                    f"INSERT INTO {table} SELECT id + {base}, user_id, token, updated FROM {_SEED} "
                    f"WHERE id + {base} <= {wanted} ORDER BY id"
                )
        connection.exec_driver_sql(f"DROP TABLE {_SEED}")


def _installed(server: str, *drivers: str) -> tuple[str, ...]:
    """Return those drivers that can be used, and print which cannot."""
    found = []
    for driver in drivers:
        try:
            ensure_driver(driver)
        except Unavailable as reason:
            print(f"\n{server}: {reason}")
        else:
            found.append(driver)
    return tuple(found)


def _unique_name() -> str:
    return f"jwt_column_benchmark_{secrets.token_hex(6)}"


class _Admin:
    """Sends statements that no transaction may hold to a server."""

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self._engine = sa.create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")

    def __call__(self, *statements: str) -> None:
        with self._engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def create_pgcrypto(self) -> None:
        """Create PostgreSQL's extension.

        Raises:
            Unavailable: It is not installed, or the account must not.
        """
        try:
            self("CREATE EXTENSION pgcrypto")
        except sa.exc.DBAPIError as error:
            raise Unavailable(
                f"the extension pgcrypto cannot be created ({type(error.orig).__name__})"
            ) from None

    def ask(self, question: str) -> Any:
        """Return the one value that a query has."""
        with self._engine.connect() as connection:
            return connection.exec_driver_sql(question).scalar_one()


class SQLite:
    """Files in WAL mode, as servers use SQLite."""

    name = "sqlite"
    drivers: tuple[str, ...] = ("pysqlite",)

    def __init__(self) -> None:
        self.title = f"SQLite {sqlite3.sqlite_version}"

    @contextmanager
    def template(self, content: Content, rows: int) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="jwt-column-benchmark-") as directory:
            path = Path(directory) / "template.sqlite3"
            url = sa.URL.create("sqlite+pysqlite", database=str(path))
            _fill(url, content, rows)
            # Makes the file as small as it can be, and puts it into WAL mode for good.
            _Admin(url)("VACUUM", "PRAGMA journal_mode = WAL")
            yield path

    @contextmanager
    def copy(self, template: Path) -> Iterator[sa.URL]:
        copy = template.with_name("copy.sqlite3")
        try:
            shutil.copyfile(template, copy)
            yield sa.URL.create("sqlite+pysqlite", database=str(copy))
        finally:
            for path in template.parent.glob("copy.sqlite3*"):
                path.unlink()

    def size(self, url: sa.URL) -> int:
        """Return the file's length, into which the last connection that was closed has moved the log."""
        assert url.database is not None
        return Path(url.database).stat().st_size


class _Template(NamedTuple):
    """A database of PostgreSQL, and how to copy it."""

    database: str
    options: str


class PostgreSQL:
    """Databases on a server: PostgreSQL copies a whole one file by file."""

    name = "postgresql"

    def __init__(self, server: sa.URL) -> None:
        self._admin = _Admin(server)
        version = self._admin.ask("SHOW server_version").split()[0]
        self.title = f"PostgreSQL {version}"
        self._major_version = int(version.split(".")[0])
        self.drivers = _installed(self.title, "psycopg", "psycopg2", "asyncpg")

    @contextmanager
    def template(self, content: Content, rows: int) -> Iterator[_Template]:
        name = _unique_name()
        self._admin(CREATE_DATABASE["postgresql"].format(name))
        try:
            own = _Admin(self._admin.url.set(database=name))
            if content.in_database:
                own.create_pgcrypto()
            _fill(own.url, content, rows)
            own("VACUUM ANALYZE")
            # The other way, the default from version 15 on, writes every page to the log and leaves it to be written to
            # its file while we measure; of a small table that is soon done, and sooner than two checkpoints.
            is_copied_by_file = self._major_version >= 15 and rows >= _ROWS_COPIED_BY_FILE
            yield _Template(name, "STRATEGY FILE_COPY" if is_copied_by_file else "")
        finally:
            self._drop(name)

    @contextmanager
    def copy(self, template: _Template) -> Iterator[sa.URL]:
        name = _unique_name()
        try:
            self._admin(f"CREATE DATABASE {name} TEMPLATE {template.database} {template.options}")
            yield self._admin.url.set(database=name)
        finally:
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._admin(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def size(self, url: sa.URL) -> int:
        return int(_Admin(url).ask(f"SELECT pg_total_relation_size('{TABLE}')"))


class MariaDB:
    """Databases on a server, which copies a table row by row."""

    name = "mariadb"

    def __init__(self, server: sa.URL) -> None:
        self._admin = _Admin(server)
        self.title = "MariaDB " + self._admin.ask("SELECT version()").split("-")[0]
        self.drivers = _installed(self.title, "mariadbconnector", "pymysql", "mysqldb")

    @contextmanager
    def template(self, content: Content, rows: int) -> Iterator[str]:
        with self._database() as name:
            _fill(self._admin.url.set(database=name), content, rows)
            yield name

    @contextmanager
    def copy(self, template: str) -> Iterator[sa.URL]:
        with self._database() as name:
            own = _Admin(self._admin.url.set(database=name))
            for table in (TABLE, SMALL):
                own(f"CREATE TABLE {table} LIKE {template}.{table}")
                own(f"INSERT INTO {table} SELECT * FROM {template}.{table}")
            # Returns when every page is in the file: else the server would still write them while we measure.
            own(f"FLUSH TABLES {TABLE}, {SMALL} FOR EXPORT")
            yield own.url.set(drivername=f"mariadb+{self.drivers[0]}")

    @contextmanager
    def _database(self) -> Iterator[str]:
        name = _unique_name()
        self._admin(CREATE_DATABASE["mariadb"].format(name))
        try:
            yield name
        finally:
            self._admin(f"DROP DATABASE IF EXISTS {name}")

    def size(self, url: sa.URL) -> int:
        """Return the length of the table's file; the sizes in information_schema.tables are estimates."""
        return int(
            self._admin.ask(
                f"SELECT file_size FROM information_schema.innodb_sys_tablespaces "
                f"WHERE name = '{url.database}/{TABLE}'"
            )
        )
