"""Fixtures that every test may use; ``databases.py`` holds what stands behind them.

A test that takes ``database`` runs on SQLite, PostgreSQL and MariaDB, each time in an empty database::

    def test_round_trip(database: Database) -> None:
        engine = sa.create_engine(database.url())

``engine`` is that engine, ready made. ``driver_engine`` goes through every synchronous driver of every
database, and ``async_driver_engine`` through every asynchronous one.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TypeVar

import hypothesis
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from jwt_column import KeyRing, set_default_keyring
from tests.support import standin as third_party
from tests.support.databases import (
    ASYNC_DRIVERS,
    SYNC_DRIVERS,
    Database,
    Resolver,
    Server,
    Unavailable,
    databases_required,
    drivers_required,
    ensure_driver,
    start_private_postgresql,
    truthy,
)
from tests.support.hsm import HSM, start_hsm
from tests.support.selection import is_left_out, mark_by_fixture, mark_repetitions
from tests.support.vault import OpenBao, PersistentOpenBao, start_openbao, start_persistent_openbao

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.standin import Standin

pytest_plugins = ["jwt_column.testing.plugin"]

Component = TypeVar("Component", bound="HSM | OpenBao")

# Thousands of tests and the modules under them are made now and stay: to look through them again and again for garbage
# was a quarter of the suite's time.
gc.disable()

# Images of containers set both. Without compiled modules, each worker writes the assertions of all test files anew, and
# each process that a test starts compiles our modules; and streams without a buffer hide that one is not flushed.
os.environ.pop("PYTHONUNBUFFERED", None)
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.dont_write_bytecode = False

# PyMySQL reads this file for each of the thousands of connections to servers without TLS (30 ms each), and so does
# every client of the servers on the loopback interface, which bring their own certificate.
os.environ["SSL_CERT_FILE"] = os.devnull

# A run must give the same verdict every time and on every machine: the examples are derived from the test
# itself, and neither a deadline nor the check for slow generation lets a busy machine fail a correct test.
# Few examples find what a change has broken; .ci/run takes --hypothesis-profile=many.
for profile, examples in {"few": 25, "many": 200}.items():
    hypothesis.settings.register_profile(
        profile,
        database=None,
        deadline=None,
        derandomize=True,
        max_examples=examples,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
hypothesis.settings.load_profile("few")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import a file of which the default run takes no test."""
    return True if is_left_out(collection_path, config) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what the default run leaves out, before ``-m`` selects by marker."""
    mark_by_fixture(items)
    mark_repetitions(items)


def pytest_collection_finish() -> None:
    """Leave what has been made so far out of all further collections of garbage."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def key_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the keys of whoever runs the tests; a test that wants some sets them with ``monkeypatch``."""
    monkeypatch.delenv("JWT_COLUMN_KEYRING", raising=False)
    monkeypatch.delenv("JWT_COLUMN_KEYS", raising=False)
    monkeypatch.delenv("JWT_COLUMN_KEKS", raising=False)


@pytest.fixture(autouse=True)
def any_kek(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow every KEK in this process: the addresses of the tests' KEKs differ from test to test.

    Tests about the list of allowed KEKs take ``listed_keks``.
    """
    if "listed_keks" not in request.fixturenames:
        monkeypatch.setattr("jwt_column.keys.ring_file.unwrapping.check_allowed", lambda *_: None)


@pytest.fixture
def listed_keks() -> None:
    """Allow the KEKs of the configuration only, as an application does."""


@pytest.fixture(autouse=True)
def forgotten_ring() -> Iterator[None]:
    """Forget the default ring of each test behind it."""
    yield
    set_default_keyring(None)


@pytest.fixture
def ring() -> KeyRing:
    """The default ring of one test, with one key."""
    ring = KeyRing.generate()
    set_default_keyring(ring)
    return ring


@pytest.fixture
def standin(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    """The key provider of somebody else, installed, under the scheme ``standin:``."""
    monkeypatch.syspath_prepend(third_party.install(tmp_path_factory.mktemp("site")))
    third_party.provider.reset()
    yield third_party.provider
    third_party.provider.reset()


def _give_up(reason: Unavailable, *, required: bool) -> NoReturn:
    if required:
        pytest.fail(str(reason), pytrace=False)
    pytest.skip(str(reason))


@pytest.fixture(scope="session")
def database_servers() -> Iterator[Resolver]:
    """The servers of this run, each started when the first test asks for it."""
    resolver = Resolver(os.environ)
    try:
        yield resolver
    finally:
        resolver.close()


def _server(resolver: Resolver, name: str) -> Server:
    try:
        return resolver.server(name)
    except Unavailable as reason:
        _give_up(reason, required=databases_required(os.environ))


@pytest.fixture
def mariadb_server(database_servers: Resolver) -> Server:
    """A real MariaDB, for a test that takes several databases on it."""
    return _server(database_servers, "mariadb")


@pytest.fixture
def sqlite_database(tmp_path: Path) -> Database:
    """An SQLite database in a file, which several connections can share."""
    return Database("sqlite", sa.URL.create("sqlite+pysqlite", database=str(tmp_path / "test.sqlite3")))


@pytest.fixture
def postgresql_database(database_servers: Resolver) -> Iterator[Database]:
    """An empty database on a real PostgreSQL."""
    with _server(database_servers, "postgresql").lent_database() as database:
        yield database


@pytest.fixture
def mariadb_database(mariadb_server: Server) -> Iterator[Database]:
    """An empty database on a real MariaDB."""
    with mariadb_server.lent_database() as database:
        yield database


def _database_of(request: pytest.FixtureRequest, name: str) -> Database:
    # The fixture is asked for by name, so that a test for SQLite alone starts no server.
    database = request.getfixturevalue(f"{name}_database")
    assert isinstance(database, Database)
    return database


def _engine(url: sa.URL) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def memory() -> Iterator[sa.Engine]:
    """An engine on an SQLite database in memory."""
    yield from _engine(sa.make_url("sqlite://"))


@pytest.fixture
def sqlite(sqlite_database: Database) -> Iterator[sa.Engine]:
    """An engine on ``sqlite_database``."""
    yield from _engine(sqlite_database.url())


@pytest.fixture
def postgresql(postgresql_database: Database) -> Iterator[sa.Engine]:
    """An engine on ``postgresql_database``."""
    yield from _engine(postgresql_database.url())


@pytest.fixture
def mariadb(mariadb_database: Database) -> Iterator[sa.Engine]:
    """An engine on ``mariadb_database``."""
    yield from _engine(mariadb_database.url())


@pytest.fixture(params=list(SYNC_DRIVERS))
def database(request: pytest.FixtureRequest) -> Database:
    """Each of the databases in turn."""
    return _database_of(request, request.param)


@pytest.fixture
def engine(database: Database) -> Iterator[sa.Engine]:
    """An engine on ``database`` with its default driver."""
    yield from _engine(database.url())


def _pairs(drivers: dict[str, list[str]]) -> list[object]:
    return [
        pytest.param((name, driver), id=f"{name}-{driver}") for name in drivers for driver in drivers[name]
    ]


def _driver_url(request: pytest.FixtureRequest) -> sa.URL:
    name, driver = request.param
    try:
        ensure_driver(driver)
    except Unavailable as reason:
        _give_up(reason, required=drivers_required(os.environ))
    return _database_of(request, name).url(driver)


@pytest.fixture(params=_pairs(SYNC_DRIVERS))
def driver_engine(request: pytest.FixtureRequest) -> Iterator[sa.Engine]:
    """An engine for every synchronous driver of every database in turn."""
    yield from _engine(_driver_url(request))


@pytest.fixture(params=_pairs(ASYNC_DRIVERS))
def async_driver_engine(request: pytest.FixtureRequest) -> Iterator[AsyncEngine]:
    """An engine for every asynchronous driver in turn; the test runs its coroutine with ``asyncio.run``.

    It keeps no connections, because a pooled one would belong to an event loop that has ended.
    """
    engine = create_async_engine(_driver_url(request), poolclass=NullPool)
    yield engine
    asyncio.run(engine.dispose())


@pytest.fixture(scope="session")
def hsm() -> Iterator[HSM]:
    """SoftHSM2 with tokens of our own; each test makes itself a token."""
    yield from _component(start_hsm)


@pytest.fixture(scope="session")
def openbao() -> Iterator[OpenBao]:
    """An OpenBao that nobody stops; each test makes itself a key."""
    yield from _component(start_openbao)


@pytest.fixture(scope="session")
def persistent_openbao() -> Iterator[PersistentOpenBao]:
    """An OpenBao to be stopped, sealed and started again; each test leaves it unsealed."""
    yield from _component(start_persistent_openbao)


def _component(start: Callable[[], Component]) -> Iterator[Component]:
    try:
        component = start()
    except Unavailable as reason:
        _give_up(reason, required=truthy(os.environ.get("CI")))
    try:
        yield component
    finally:
        component.close()


class StatementLog(NamedTuple):
    """A database whose server writes every statement and every parameter into a file."""

    url: sa.URL
    path: Path


@pytest.fixture(scope="session")
def postgresql_statement_log_server() -> Iterator[Server]:
    """A PostgreSQL of our own that logs all it is told, for tests that look for leaks."""
    try:
        server = start_private_postgresql(
            {
                "log_statement": "all",
                # Without these two, PostgreSQL leaves out the parameters of a statement that failed.
                "log_parameter_max_length": "-1",
                "log_parameter_max_length_on_error": "-1",
            }
        )
    except Unavailable as reason:
        text = f"No PostgreSQL whose log can be read for this test; only a private server has one: {reason}."
        _give_up(Unavailable(text), required=databases_required(os.environ))
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def postgresql_statement_log(postgresql_statement_log_server: Server) -> Iterator[StatementLog]:
    """An empty database on that server, and the path of its log, which all tests of the run share."""
    assert postgresql_statement_log_server.log is not None
    with postgresql_statement_log_server.fresh_database() as database:
        yield StatementLog(database.url(), postgresql_statement_log_server.log)
