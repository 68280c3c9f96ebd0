"""Tests of ``databases.py``: which server a test gets, and what happens where there is none."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.support import databases
from tests.support.databases import KINDS, WAYS, Database, Resolver, Server, Unavailable
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.conftest import StatementLog
    from tests.support.databases import Kind, Way

NAMES = ["postgresql", "mariadb"]
ROOT = Path(__file__).parent.parent.parent


def closed(title: str) -> Way:
    def way(kind: Kind, environ: Mapping[str, str]) -> Server:
        raise Unavailable(f"the {title} is closed")

    return title, way


def open_way(title: str, opened: list[str]) -> Way:
    def way(kind: Kind, environ: Mapping[str, str]) -> Server:
        opened.append(title)
        return Server(
            kind.name,
            sa.make_url(f"{kind.drivername}://host/"),
            title,
            closers=[lambda: opened.remove(title)],
        )

    return title, way


def connect(url: sa.URL) -> sa.Connection:
    return sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT").connect()


def server_version(url: sa.URL) -> str:
    with connect(url) as connection:
        return str(connection.exec_driver_sql("SELECT version()").scalar_one())


# --- The order --------------------------------------------------------------------------------------------


def test_the_ways_stand_in_the_documented_order() -> None:
    """A given URL comes before a container, and a container before a private server."""
    expected = [databases.use_given_url, databases.start_container, databases.start_private]

    assert expected == [way for _, way in WAYS]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_open_way_is_taken_and_no_later_one_is_tried(name: str) -> None:
    """What stands behind an open way is not even started."""
    opened: list[str] = []
    resolver = Resolver({}, [closed("first"), open_way("second", opened), open_way("third", opened)])

    assert resolver.server(name).origin == "second"
    assert opened == ["second"]


def test_a_server_is_found_once_and_closed_with_the_resolver() -> None:
    """All tests of a run share one server of each kind."""
    opened: list[str] = []
    resolver = Resolver({}, [open_way("only", opened)])

    assert resolver.server("mariadb") is resolver.server("mariadb")
    assert opened == ["only"]
    resolver.close()
    assert opened == []


def test_every_server_is_closed_even_when_closing_one_fails() -> None:
    """An error while one server is stopped leaves no other one running."""
    closed_servers: list[str] = []

    def failing(kind: Kind, environ: Mapping[str, str]) -> Server:
        def close() -> None:
            closed_servers.append(kind.name)
            raise OSError(kind.name)

        return Server(kind.name, sa.make_url(f"{kind.drivername}://host/"), "failing", closers=[close])

    resolver = Resolver({}, [("failing", failing)])
    for name in NAMES:
        resolver.server(name)
    with pytest.raises(OSError, match="postgresql"):
        resolver.close()

    assert sorted(closed_servers) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_reason_says_all_that_was_tried_and_what_would_help(name: str) -> None:
    """Whoever reads a skip learns how to get rid of it."""
    kind = KINDS[name]
    resolver = Resolver({}, [WAYS[0], closed("container"), closed("private server")])

    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            resolver.server(name)
        assert str(caught.value) == (
            f"No {kind.title} for this test. Tried: given URL: {kind.url_variable} is not set; "
            "container: the container is closed; private server: the private server is closed. "
            f"Set {kind.url_variable}, start Docker, or install the server (Debian: {kind.hint})."
        )


# --- A given URL ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("postgresql", "postgresql://me@db/mine", "postgresql+psycopg://me@db/mine"),
        ("postgresql", "postgresql+asyncpg://me@db:6000", "postgresql+psycopg://me@db:6000/postgres"),
        ("mariadb", "mysql+mysqldb://me@db/mine", "mariadb+pymysql://me@db/mine"),
        ("mariadb", "mariadb://me@db", "mariadb+pymysql://me@db"),
    ],
)
def test_a_given_url_keeps_all_but_its_driver(name: str, given: str, expected: str) -> None:
    """The fixtures name the driver, so that an asynchronous one in the URL does no harm."""
    kind = KINDS[name]

    server = databases.use_given_url(kind, {kind.url_variable: given})

    assert expected == server.url.render_as_string(hide_password=False)


@pytest.mark.parametrize("given", ["sqlite:///mine.sqlite3", "mysql://me:s3cret@db", "me:s3cret@db"])
def test_a_url_of_something_else_is_refused_without_repeating_its_password(given: str) -> None:
    """A mistake in a URL is an error, and neither a skip nor a way for a password into a log."""
    with pytest.raises(ValueError, match="JWT_COLUMN_TEST_POSTGRESQL_URL") as caught:
        Resolver({"JWT_COLUMN_TEST_POSTGRESQL_URL": given}).server("postgresql")

    assert "s3cret" not in str(caught.value)


def test_a_given_url_that_does_not_answer_is_an_error() -> None:
    """Nothing takes the place of a server that somebody asked for by name."""
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    server = Resolver({"JWT_COLUMN_TEST_POSTGRESQL_URL": url}).server("postgresql")

    with pytest.raises(sa.exc.OperationalError), server.fresh_database():
        pass


@pytest.mark.each_server
@pytest.mark.parametrize("name", NAMES)
def test_the_tables_of_a_given_url_are_never_touched(name: str, request: pytest.FixtureRequest) -> None:
    """Tests work in a database beside the given one, and nothing of it is left afterwards."""
    given: Database = request.getfixturevalue(f"{name}_database")
    kind = KINDS[name]
    resolver = Resolver({kind.url_variable: given.url().render_as_string(hide_password=False)})
    catalogue = "SELECT datname FROM pg_database" if name == "postgresql" else "SHOW DATABASES"
    with connect(given.url()) as connection:
        connection.exec_driver_sql("CREATE TABLE precious (id INTEGER PRIMARY KEY)")
        connection.exec_driver_sql("INSERT INTO precious VALUES (42)")

        with resolver.server(name).fresh_database() as database:
            assert database.url().database != given.url().database
            with connect(database.url()) as inside:
                assert sa.inspect(inside).get_table_names() == []
                inside.exec_driver_sql("CREATE TABLE precious (id INTEGER PRIMARY KEY)")
        resolver.close()

        assert connection.exec_driver_sql("SELECT id FROM precious").scalars().all() == [42]
        assert database.url().database not in set(connection.exec_driver_sql(catalogue).scalars())


@pytest.mark.parametrize("name", NAMES)
def test_a_transaction_that_a_test_left_open_does_not_hold_up_the_end(
    name: str, database_servers: Resolver, request: pytest.FixtureRequest
) -> None:
    """A failed test must not make the run wait for its locks."""
    request.getfixturevalue(f"{name}_database")
    with database_servers.server(name).fresh_database() as database:
        engine = sa.create_engine(database.url())
        left_open = engine.connect()
        left_open.exec_driver_sql("CREATE TABLE locked (id INTEGER PRIMARY KEY)")
        left_open.commit()
        left_open.exec_driver_sql("INSERT INTO locked VALUES (1)")
        started = time.monotonic()

    assert time.monotonic() - started < 20
    left_open.invalidate()
    left_open.close()
    engine.dispose()


# --- Servers that are started -----------------------------------------------------------------------------


def private_server(name: str) -> Server:
    try:
        return KINDS[name].private()
    except Unavailable as reason:
        if databases.databases_required(os.environ):
            pytest.fail(str(reason), pytrace=False)
        pytest.skip(str(reason))


@pytest.mark.processes
@pytest.mark.parametrize("name", NAMES)
def test_a_private_server_serves_and_leaves_nothing_behind(name: str) -> None:
    """Process, port and directory are gone when it is closed."""
    server = private_server(name)
    try:
        assert server.log is not None
        assert server.url.host == "127.0.0.1"
        with server.fresh_database() as database, connect(database.url()) as connection:
            connection.exec_driver_sql("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    finally:
        server.close()

    assert not server.log.parent.exists()
    with pytest.raises(sa.exc.OperationalError):
        server_version(server.url)


@pytest.mark.processes
@pytest.mark.parametrize("name", NAMES)
def test_a_private_server_lets_nobody_in_without_its_password(name: str) -> None:
    """Other people of the machine reach the same loopback interface."""
    server = private_server(name)
    try:
        for user in (server.url.username, "root", "postgres"):
            with pytest.raises(sa.exc.OperationalError):
                server_version(server.url.set(username=user, password=""))
    finally:
        server.close()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "question", "expected"),
    [
        ("postgresql", "SHOW synchronous_commit", "on"),
        ("mariadb", "SELECT @@innodb_flush_log_at_trx_commit", "1"),
    ],
)
def test_killing_a_private_server_loses_no_commit(name: str, question: str, expected: str) -> None:
    """Each commit reaches the operating system, whatever becomes of the disk."""
    server = private_server(name)
    try:
        with connect(server.url) as connection:
            assert expected == str(connection.exec_driver_sql(question).scalar_one())
    finally:
        server.close()


@pytest.mark.processes
@pytest.mark.parametrize("name", NAMES)
def test_a_container_serves_where_a_docker_engine_answers(name: str) -> None:
    """The same database comes out of an image."""
    try:
        server = databases.start_container(KINDS[name], os.environ)
    except Unavailable as reason:
        # Not a failure in CI either: the private server stands in, and that one is required there.
        pytest.skip(f"container: {reason}")
    try:
        with server.fresh_database() as database:
            assert KINDS[name].title in server_version(database.url())
    finally:
        server.close()


def test_no_docker_engine_is_told_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without Docker loses no time on it."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody-listens")
    started = time.monotonic()

    with pytest.raises(Unavailable, match="no Docker engine answers"):
        databases.start_container(KINDS["postgresql"], {})

    assert time.monotonic() - started < 2 * databases.PING_SECONDS


@pytest.mark.parametrize("name", NAMES)
def test_no_binaries_are_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the server's programs the reason says where they were looked for."""
    monkeypatch.setattr(databases, "_which", lambda *names: None)
    monkeypatch.setattr(databases, "postgresql_binaries", lambda: None)

    with pytest.raises(Unavailable, match="PATH"):
        KINDS[name].private()


# --- Skips and failures -----------------------------------------------------------------------------------

PROBE = """
    def test_postgresql(postgresql_database): ...
    def test_mariadb(mariadb_database): ...
    def test_statement_log(postgresql_statement_log): ...
    def test_sqlite(sqlite_database): ...
"""


@pytest.fixture
def run_probe(tmp_path: Path) -> Callable[..., str]:
    """Run pytest on a small test file with this project's fixtures, on a machine without any server."""

    def run(probe: str, **variables: str) -> str:
        (tmp_path / "test_probe.py").write_text(textwrap.dedent(probe))
        (tmp_path / "conftest.py").write_text(
            textwrap.dedent(
                """
                import importlib

                from tests.support import databases
                from tests.conftest import *

                def missing(module):
                    if module in {"asyncpg", "psycopg2"}:
                        raise ImportError(f"No module named {module!r}")
                    return imported(module)

                imported, importlib.import_module = importlib.import_module, missing
                databases._which = lambda *names: None
                databases.postgresql_binaries = lambda: None
                """
            )
        )
        outside = ("CI", "JWT_COLUMN_", "DOCKER_", "COV_", "COVERAGE_", "PYTEST_")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(outside)}
        result = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-ra",
                "-p",
                "no:cacheprovider",
                # As pyproject.toml does, which this root does not read: the conftest loads the plugin.
                "-p",
                "no:jwt_column",
                # Nor does it read the markers that the conftest sets.
                "-W",
                "ignore::pytest.PytestUnknownMarkWarning",
                "--rootdir",
                tmp_path,
                tmp_path,
            ],
            cwd=ROOT,
            env=environment
            | {"DOCKER_HOST": f"unix://{tmp_path}/nobody-listens", "COLUMNS": "1000", "PYTHONPATH": str(ROOT)}
            | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        return result.stdout + result.stderr

    return run


def test_a_missing_database_is_a_skip_that_says_what_was_tried(run_probe: Callable[..., str]) -> None:
    """On a developer's machine the rest of the suite still runs."""
    output = run_probe(PROBE)

    assert "1 passed, 3 skipped" in output
    for name in NAMES:
        assert (
            f"Tried: given URL: {KINDS[name].url_variable} is not set; container: no Docker engine" in output
        )
    assert "only a private server has one" in output


@pytest.mark.processes
@pytest.mark.parametrize("variable", [{"CI": "true"}, {"JWT_COLUMN_REQUIRE_DATABASES": "1"}])
def test_a_missing_database_is_a_failure_where_databases_are_required(
    variable: dict[str, str], run_probe: Callable[..., str]
) -> None:
    """CI never reports success about a database that it did not see."""
    output = run_probe(PROBE, **variable)

    assert "1 passed, 3 errors" in output
    assert "skipped" not in output
    assert "No MariaDB for this test. Tried: given URL" in output


@pytest.mark.processes
def test_ci_set_to_false_requires_nothing(run_probe: Callable[..., str]) -> None:
    """The variable is read as a word and not only as present."""
    assert "1 passed, 3 skipped" in run_probe(PROBE, CI="false", JWT_COLUMN_REQUIRE_DATABASES="0")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("variables", "outcome"),
    [({}, "skipped"), ({"JWT_COLUMN_REQUIRE_DATABASES": "1"}, "skipped"), ({"CI": "true"}, "error")],
)
def test_a_missing_driver_is_named(
    variables: dict[str, str], outcome: str, run_probe: Callable[..., str]
) -> None:
    """A driver that is not installed is a skip, and in CI a failure; requiring databases changes nothing."""
    probe = """
        import pytest
        @pytest.mark.parametrize("driver_engine", [("postgresql", "psycopg2")], indirect=True)
        def test_sync(driver_engine): ...
        @pytest.mark.parametrize("async_driver_engine", [("postgresql", "asyncpg")], indirect=True)
        def test_async(async_driver_engine): ...
    """

    output = run_probe(probe, **variables)

    assert f"2 {outcome}" in output
    assert "The driver psycopg2 is not installed (psycopg2-binary)" in output
    assert "The driver asyncpg is not installed (asyncpg)" in output


@pytest.mark.processes
def test_a_private_server_ends_with_a_run_that_was_killed(tmp_path: Path) -> None:
    """Where the kernel can tell a process of its parent's death, not even SIGKILL leaves a server running."""
    if not databases._with_parent_death_signal(signal.SIGINT):
        pytest.skip("setpriv (util-linux) with --pdeathsig is not here")
    private_server("postgresql").close()  # It skips or fails in the usual way where there are no binaries.
    script = """
        import signal, time
        from tests.support.databases import KINDS
        server = KINDS["postgresql"].private()
        print(server.url.render_as_string(hide_password=False), flush=True)
        print(server.log.parent, flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    ) as run:
        assert run.stdout is not None
        url, directory = sa.make_url(run.stdout.readline().strip()), Path(run.stdout.readline().strip())
        server_version(url)
        run.kill()
    deadline = time.monotonic() + databases.STOP_SECONDS
    while (directory / "data" / "postmaster.pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)

    with pytest.raises(sa.exc.OperationalError):
        server_version(url)
    shutil.rmtree(directory)


# --- The fixtures -----------------------------------------------------------------------------------------


@pytest.mark.each_server
def test_database_is_empty_and_speaks_its_dialect(database: Database, engine: sa.Engine) -> None:
    """The fixture goes through all three, and the engine is of the same database."""
    expected = database.name

    assert expected == engine.dialect.name
    assert engine.url == database.url()
    assert sa.inspect(engine).get_table_names() == []


def test_driver_engine_reaches_its_database(driver_engine: sa.Engine) -> None:
    """Every synchronous driver writes and reads."""
    with driver_engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (id INTEGER PRIMARY KEY)")
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
    with driver_engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT id FROM t").scalars().all() == [1]


def test_async_driver_engine_reaches_its_database(async_driver_engine: AsyncEngine) -> None:
    """Every asynchronous driver writes and reads, in one event loop after another."""

    async def write() -> None:
        async with async_driver_engine.begin() as connection:
            await connection.exec_driver_sql("CREATE TABLE t (id INTEGER PRIMARY KEY)")
            await connection.exec_driver_sql("INSERT INTO t VALUES (1)")

    async def read() -> list[int]:
        async with async_driver_engine.connect() as connection:
            return list((await connection.exec_driver_sql("SELECT id FROM t")).scalars())

    asyncio.run(write())
    assert asyncio.run(read()) == [1]


def test_url_takes_a_driver_or_a_dialect_with_one(sqlite_database: Database) -> None:
    """Applications reach MariaDB under the name of MySQL too."""
    mariadb = Database("mariadb", sa.make_url("mariadb+pymysql://me@db/mine"))

    assert mariadb.url() == mariadb.url("pymysql")
    assert mariadb.url("mysqldb").drivername == "mariadb+mysqldb"
    assert mariadb.url("mysql+pymysql").drivername == "mysql+pymysql"
    assert sqlite_database.url("aiosqlite").drivername == "sqlite+aiosqlite"


@pytest.mark.processes
def test_statement_log_holds_statements_and_parameters(postgresql_statement_log: StatementLog) -> None:
    """What a test looks for would be in the log if it had been sent, even in a statement that failed."""
    url, path = postgresql_statement_log
    with connect(url) as connection:
        connection.execute(sa.text("SELECT CAST(:value AS TEXT)"), {"value": "needle-in-a-parameter"})
        connection.exec_driver_sql("SELECT 'needle-in-a-statement'")
        with pytest.raises(sa.exc.DBAPIError):
            connection.execute(sa.text("SELECT 1 / length(CAST(:value AS TEXT))"), {"value": ""})
        with pytest.raises(sa.exc.DBAPIError):
            connection.execute(
                sa.text("SELECT 1 / (length(CAST(:value AS TEXT)) - 17)"), {"value": "needle-in-failure"}
            )
    log = path.read_text(encoding="utf-8")

    assert "needle-in-a-parameter" in log
    assert "needle-in-a-statement" in log
    assert "needle-in-failure" in log


def test_keys_of_the_developer_are_hidden() -> None:
    """A ring in the environment of whoever runs the tests never changes a verdict."""
    assert "JWT_COLUMN_KEYRING" not in os.environ
    assert "JWT_COLUMN_KEYS" not in os.environ
