"""The database of a command: its URL, an engine for it, and the errors when it cannot be reached.

A URL may hold a password, and so may a driver's error. Neither is ever printed whole.
"""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, quote_plus

from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, ProgrammingError

from ..database.error_sentences import explained
from ..errors import AuditError, ConfigurationError, ReencryptionError
from .console import DatabaseError, did_you_mean
from .options import DATABASE_VARIABLE, given_databases
from .passwords import SECRET_MEMBER, without_passwords

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import URL, Connection, Engine

# The synchronous driver to name where an asynchronous one will not do.
_SYNC_DRIVERS: Final = {
    "mariadb": "mariadb+pymysql",
    "mysql": "mysql+pymysql",
    "postgresql": "postgresql+psycopg",
    "sqlite": "sqlite",
}

# Parameters that hold a password: password, sslpassword, passwd, pwd, and kin.
_SECRET_NAME: Final = re.compile(r"pass|pwd|secret|token", re.IGNORECASE)

_Result = TypeVar("_Result")


def read_urls(given: Sequence[str] | None) -> list[URL]:
    """Return the database URLs of a command line; without one, those of the variable; each as :func:`read_url`."""
    return [read_url(text) for text in given_databases(given) or [""]]


def read_url(text: str | None) -> URL:
    """Return a database URL as SQLAlchemy takes it."""
    if not text:
        raise ConfigurationError(
            f"no database: set {DATABASE_VARIABLE} to a URL such as postgresql+psycopg://user:password@host/database, "
            "or give --database"
        )
    if text == os.environ.get(DATABASE_VARIABLE) and len(given_databases(None)) > 1:
        raise ConfigurationError(
            f"which database? {DATABASE_VARIABLE} names several; give --database with one of them"
        )
    url = parse_url(text)
    try:
        dialect_class = url.get_dialect()
        dbapi = dialect_class.import_dbapi()
    except NoSuchModuleError:
        schemes = (*_SYNC_DRIVERS.values(), "postgresql+asyncpg", "mariadb+aiomysql", "sqlite+aiosqlite")
        raise ConfigurationError(
            f"SQLAlchemy knows no database {url.drivername!r}{did_you_mean(url.drivername, schemes)}; a URL begins "
            "with postgresql+psycopg://, mariadb+pymysql://, sqlite:/// or another of its dialects"
        ) from None
    except ImportError as error:
        raise ConfigurationError(
            f"the driver of {url.drivername}:// is not installed (there is no module {error.name}); install it, or "
            "name another one in the URL"
        ) from None
    try:
        # The driver's own reading of the URL; a host in an SQLite URL, a word where a number should be.
        dialect_class(dbapi=dbapi).create_connect_args(url)  # type: ignore[call-arg]
    except (ArgumentError, TypeError, ValueError):
        cure = "look at what stands behind its ? and at its port"
        if url.get_backend_name() == "sqlite":
            cure = "it has three slashes before a relative path and four before an absolute one, as in sqlite:///app.db"
        raise ConfigurationError(f"{_shown(url)}: the driver does not take this URL; {cure}") from None
    _refuse_missing_file(url)
    return url


def parse_url(text: str) -> URL:
    """Return a URL as SQLAlchemy reads it, if no part of the password can be in another part of it."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # The error's text may hold a part of the password, which looks like a port where there is no @.
        url = None
    # SQLAlchemy ends the password at its first @, and takes the rest of it for host, database or query.
    rest = (
        []
        if url is None or url.get_backend_name() == "sqlite"
        else [url.host, url.database, text.partition("?")[2]]
    )
    if url is None or any("@" in (part or "") for part in rest):
        raise ConfigurationError(
            "the database URL cannot be read; it has the form dialect+driver://user:password@host:port/database, with "
            "special characters of the password percent-encoded"
        )
    return url


def _refuse_missing_file(url: URL) -> None:
    name = url.database
    if url.get_backend_name() != "sqlite" or not name or name == ":memory:" or name.startswith("file:"):
        return
    if not Path(name).exists():
        raise DatabaseError(f"there is no database file {name}; nothing was done")


def is_async(url: URL) -> bool:
    """Return True if a URL names an asynchronous driver."""
    return url.get_dialect().is_async


def sync_drivername(url: URL) -> str:
    """Return the beginning of a URL for the same database with a synchronous driver."""
    backend = url.get_backend_name()
    return _SYNC_DRIVERS.get(backend, backend)


def with_engine(url: URL, work: Callable[[Engine], _Result]) -> _Result:
    """Do something with an engine, which is closed afterwards; with an asynchronous driver too."""
    if not is_async(url):
        # A statement's parameters are rows; no error shows them.
        engine = create_engine(url, hide_parameters=True, connect_args=connect_arguments(url))
        try:
            return work(engine)
        finally:
            engine.dispose()
    return asyncio.run(_with_async_engine(url, work))


def connect_arguments(url: URL) -> dict[str, Any]:
    """Return what keeps a driver from preparing statements, which a pooler in transaction mode would lose."""
    if url.get_backend_name() != "postgresql":
        return {}
    by_driver: dict[str, dict[str, Any]] = {
        "psycopg": {"prepare_threshold": None},
        "asyncpg": {"statement_cache_size": 0, "prepared_statement_cache_size": 0},
    }
    return by_driver.get(url.get_driver_name(), {})


async def _with_async_engine(url: URL, work: Callable[[Engine], _Result]) -> _Result:
    # Here, because it takes greenlet, which comes with asynchronous drivers' installations and not with ours.
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url, hide_parameters=True, connect_args=connect_arguments(url))
    try:
        with _explained(url):
            connection = await engine.connect()
        try:
            # The connection only lends the place where an asynchronous driver can be waited for. The work gets the
            # engine, so that it can replace a connection that is lost.
            return await connection.run_sync(lambda sync_connection: work(sync_connection.engine))
        finally:
            await connection.close()
    finally:
        await engine.dispose()


@contextmanager
def connect(engine: Engine) -> Iterator[Connection]:
    """Give a connection for reading, and explain why it cannot be made or used."""
    with _explained(engine.url):
        connection = engine.connect()
    with connection:
        try:
            yield connection
        except DBAPIError as error:
            reason = _redacted(str(error.orig), engine.url)
        except AuditError as error:
            reason = str(error)
        else:
            return
    raise DatabaseError(f"{_shown(engine.url)} refused: {reason}")


@contextmanager
def refusals(column: str) -> Iterator[None]:
    """Explain why the database refused something in the middle of a run over a column.

    Raises:
        DatabaseError: It did. A driver's text may hold values of a row, and is not shown.
    """
    try:
        yield
    except ReencryptionError as error:
        if error.reason != "database":
            raise
        reason = str(error)
    except DBAPIError as error:
        # While it was connecting, or between two batches.
        reason = f"{column}: the database refused ({explained(error)})"
    else:
        return
    raise DatabaseError(reason)


@contextmanager
def _explained(url: URL) -> Iterator[None]:
    """Turn the many ways in which a connection fails into two."""
    try:
        yield
    except ProgrammingError as error:
        raise ConfigurationError(
            f"{_shown(url)}: the driver does not take this URL: {_redacted(str(error.orig), url)}"
        ) from None
    except (DBAPIError, OSError) as error:
        # An asynchronous driver's OSError comes as it is.
        reason = _redacted(str(error.orig if isinstance(error, DBAPIError) else error), url)
    except (ArgumentError, OverflowError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{_shown(url)}: the driver does not take this URL ({type(error).__name__}); look at what stands behind "
            "its ? and at its port"
        ) from None
    else:
        return
    raise DatabaseError(f"{_shown(url)} cannot be reached: {reason}")


def _shown(url: URL) -> str:
    """Return a URL without its password and without its query, which may hold one."""
    return url.set(query={}).render_as_string()


def _redacted(text: str, url: URL) -> str:
    """Return a driver's text without a password of the URL that it may repeat."""
    secrets = [str(url.password)] if url.password else []
    for name, values in url.normalized_query.items():
        if _SECRET_NAME.search(name):
            secrets += values
        for value in values:
            secrets += [found[1].strip("{}'\"") for found in SECRET_MEMBER.finditer(value)]
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        for spelling in (
            secret,
            quote(secret, safe=""),
            quote(secret),
            quote_plus(secret),
            repr(secret)[1:-1],
        ):
            text = text.replace(spelling, "***")
    return without_passwords(text)
