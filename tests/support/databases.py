"""Real databases for the tests, found in one place.

A test asks a fixture of ``conftest.py`` for a :class:`Database`; this module finds the server behind it.
For PostgreSQL and for MariaDB it takes the first of these ways that is open:

1. A given URL, ``JWT_COLUMN_TEST_POSTGRESQL_URL`` or ``JWT_COLUMN_TEST_MARIADB_URL``. A given URL that does
   not answer is an error and never a reason to look further: whoever set it wants that server.
2. A container, where a Docker engine answers and the image is there or can be pulled. The images are
   ``JWT_COLUMN_TEST_POSTGRESQL_IMAGE`` and ``JWT_COLUMN_TEST_MARIADB_IMAGE``, else :attr:`Kind.image`.
3. A private server, started from the binaries on this machine on a free port of the loopback interface.

When all are closed the test is skipped, and the skip says what was tried. With ``CI=true`` or
``JWT_COLUMN_REQUIRE_DATABASES=1`` it fails instead, because a skipped database looks like a tested one.

Every test works in an empty database with a unique name beside whatever the server holds. The tests of one
process share it, one after the other: emptying it takes a fraction of the time of creating one. The account of a
given URL therefore needs the right to create databases; its own tables are never touched.

A server that is started here hands each commit to the operating system, so that killing it loses none; it does not
wait for the disk, which only a power failure would notice.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import hashlib
import hmac
import importlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# The first driver of each list is the one that Database.url() names when it is not asked for another.
SYNC_DRIVERS: dict[str, list[str]] = {
    "sqlite": ["pysqlite"],
    "postgresql": ["psycopg", "psycopg2"],
    "mariadb": ["pymysql", "mysqldb", "mariadbconnector"],
}
# The psycopg of both lists is one driver; SQLAlchemy picks its asynchronous half by the engine it makes.
# No asynchronous driver of MariaDB is among the project's extras.
ASYNC_DRIVERS: dict[str, list[str]] = {
    "sqlite": ["aiosqlite"],
    "postgresql": ["asyncpg", "psycopg"],
    "mariadb": [],
}
# What SQLAlchemy calls a driver, the module it imports, and the package that brings the module.
DRIVER_MODULES: dict[str, tuple[str, str]] = {
    "aiosqlite": ("aiosqlite", "aiosqlite"),
    "asyncpg": ("asyncpg", "asyncpg"),
    "mariadbconnector": ("mariadb", "mariadb"),
    "mysqldb": ("MySQLdb", "mysqlclient"),
    "psycopg": ("psycopg", "psycopg[binary]"),
    "psycopg2": ("psycopg2", "psycopg2-binary"),
    "pymysql": ("pymysql", "PyMySQL"),
    "pysqlite": ("sqlite3", "Python itself"),
}

START_SECONDS = 60  # A first start on a loaded machine with a slow disk; here it takes less than one second.
STOP_SECONDS = 30
PING_SECONDS = 5
PULL_SECONDS = 300  # The whole pull of an image.
PULL_SILENCE_SECONDS = 20  # One step of it without a word, as with a registry that cannot be reached.


class Unavailable(Exception):  # noqa: N818 - it is an answer rather than an error, until CI makes it one.
    """This way to a server, or this driver, is not open here. The text is the reason that a skip shows."""


def truthy(value: str | None) -> bool:
    """Tell whether an environment variable is set to a yes; ``CI=false`` is a no."""
    return (value or "").strip().lower() in {"1", "true", "yes", "on"}


def databases_required(environ: Mapping[str, str]) -> bool:
    """Tell whether a missing database is a failure rather than a skip."""
    return truthy(environ.get("CI")) or truthy(environ.get("JWT_COLUMN_REQUIRE_DATABASES"))


def drivers_required(environ: Mapping[str, str]) -> bool:
    """Tell whether a missing driver is a failure rather than a skip.

    Only ``CI`` says so: two drivers of MariaDB need a compiler and therefore stand outside the ``test``
    extra, and a machine without them may still want to be sure that no database was left out.
    """
    return truthy(environ.get("CI"))


def ensure_driver(driver: str) -> None:
    """Raise :class:`Unavailable` where *driver* (SQLAlchemy's name for it) cannot be imported."""
    module, package = DRIVER_MODULES[driver]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"The driver {driver} is not installed ({package}): {error}") from None


@dataclass(frozen=True)
class Database:
    """An empty database, which one test has for itself.

    Attributes:
        name: ``"sqlite"``, ``"postgresql"`` or ``"mariadb"``.
        default_url: The URL with the default driver; :meth:`url` is what tests call.
    """

    name: str
    default_url: sa.URL

    def url(self, driver: str | None = None) -> sa.URL:
        """Return the database's URL for *driver*.

        Args:
            driver: One of ``SYNC_DRIVERS[name]`` or ``ASYNC_DRIVERS[name]``; else the first of
                ``SYNC_DRIVERS[name]``. A dialect may stand before it (``"mysql+pymysql"``), because many
                applications reach MariaDB under that name.
        """
        if driver is None:
            return self.default_url
        return self.default_url.set(drivername=driver if "+" in driver else f"{self.name}+{driver}")


@dataclass(frozen=True)
class Kind:
    """What the resolver must know about one kind of server."""

    name: str
    title: str
    schemes: tuple[str, ...]
    image: str
    port: int
    container_environment: Callable[[str], dict[str, str]]
    container_account: str
    admin_database: str | None
    private: Callable[[], Server]
    hint: str

    @property
    def url_variable(self) -> str:
        return f"JWT_COLUMN_TEST_{self.name.upper()}_URL"

    @property
    def image_variable(self) -> str:
        return f"JWT_COLUMN_TEST_{self.name.upper()}_IMAGE"

    @property
    def drivername(self) -> str:
        return f"{self.name}+{SYNC_DRIVERS[self.name][0]}"


@dataclass
class Server:
    """A server that answers, and how to be rid of it.

    Attributes:
        name: ``"postgresql"`` or ``"mariadb"``.
        url: An account that may create databases, with the default driver.
        origin: Which of the ways led here, in words.
        log: The server's log, known only of a private server.
    """

    name: str
    url: sa.URL
    origin: str
    log: Path | None = None
    closers: list[Callable[[], None]] = field(default_factory=list)

    _lent: Database | None = field(default=None, init=False, repr=False)

    def close(self) -> None:
        """Stop and remove what was started for this server; of a given one, remove the databases of the tests."""
        if self._lent is not None:
            database, self._lent = self._lent, None
            # A server that is stopped next takes its databases along.
            if not self.closers:
                self.drop(database)
        while self.closers:
            self.closers.pop()()

    @contextlib.contextmanager
    def fresh_database(self) -> Iterator[Database]:
        """Create an empty database of a unique name, and drop it at the end whoever is still connected."""
        database = self.create_database()
        try:
            yield database
        finally:
            self.drop(database)

    @contextlib.contextmanager
    def lent_database(self) -> Iterator[Database]:
        """Lend an empty database, and empty it again at the end; one borrower at a time."""
        database, self._lent = self._lent or self.create_database(), None
        try:
            yield database
        finally:
            try:
                self._empty(database)
            except sa.exc.DBAPIError:
                # The server, the rights or the database are not as they were: the next test gets another one.
                self.drop(database)
            else:
                self._lent = database

    def create_database(self) -> Database:
        """Create an empty database of a unique name."""
        name = f"jwt_column_test_{secrets.token_hex(6)}"
        with _autocommit_connection(self.url) as connection:
            connection.exec_driver_sql(CREATE_DATABASE[self.name].format(name))
        return Database(self.name, self.url.set(database=name))

    def _empty(self, database: Database) -> None:
        if self.name == "postgresql":
            with _autocommit_connection(database.url()) as connection:
                connection.exec_driver_sql(END_OTHER_SESSIONS)
                is_unusual = connection.exec_driver_sql(RESIDUE).scalar_one()
                if not is_unusual:
                    connection.exec_driver_sql(EMPTY_PUBLIC)
        else:
            is_unusual = True
        if is_unusual:
            self.drop(database)
            with _autocommit_connection(self.url) as connection:
                connection.exec_driver_sql(CREATE_DATABASE[self.name].format(database.url().database))

    def drop(self, database: Database) -> None:
        """Drop *database*, whoever is still connected."""
        name = database.url().database
        with _autocommit_connection(self.url) as connection:
            # A test that failed may have left a transaction open. PostgreSQL ends such sessions itself;
            # MariaDB would wait a day for their locks, so they are killed by hand.
            if self.name == "postgresql":
                connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
                return
            connection.exec_driver_sql("SET SESSION lock_wait_timeout = 30")
            sessions = sa.text("SELECT id FROM information_schema.processlist WHERE db = :database")
            for session in connection.execute(sessions, {"database": name}).scalars().all():
                # A session that ended meanwhile is what was wanted.
                with contextlib.suppress(sa.exc.OperationalError):
                    connection.exec_driver_sql(f"KILL {int(session)}")
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name}")


# template0 is as PostgreSQL made it; template1 may hold what the site has put there.
CREATE_DATABASE = {
    "postgresql": "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'",
    "mariadb": "CREATE DATABASE {} CHARACTER SET utf8mb4",
}
END_OTHER_SESSIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
# Whether a test has left anything outside the schema "public". Such a database is created anew.
RESIDUE = """
SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname NOT IN ('public', 'information_schema') AND nspname !~ '^pg_')
    OR EXISTS (SELECT 1 FROM pg_extension WHERE extname <> 'plpgsql')
    OR EXISTS (SELECT 1 FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase
               WHERE datname = current_database())
    OR EXISTS (SELECT 1 FROM pg_event_trigger)
    OR EXISTS (SELECT 1 FROM pg_publication)
    OR EXISTS (SELECT 1 FROM pg_default_acl)
    OR EXISTS (SELECT 1 FROM pg_largeobject_metadata)
    OR NOT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = 'public')
"""
# As it is in template0. "pg_database_owner" came with PostgreSQL 15, which took the right to create from PUBLIC.
EMPTY_PUBLIC = """
DROP SCHEMA public CASCADE;
CREATE SCHEMA public;
DO $$ BEGIN
  IF current_setting('server_version_num')::int >= 150000 THEN
    ALTER SCHEMA public OWNER TO pg_database_owner;
    GRANT USAGE ON SCHEMA public TO PUBLIC;
  ELSE
    GRANT ALL ON SCHEMA public TO PUBLIC;
  END IF;
END $$
"""


@contextlib.contextmanager
def _autocommit_connection(url: sa.URL) -> Iterator[sa.Connection]:
    # CREATE DATABASE and DROP DATABASE refuse to run in a transaction.
    engine = sa.create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _wait_until_ready(url: sa.URL, is_alive: Callable[[], bool]) -> None:
    """Return as soon as *url* lets us in; raise :class:`Unavailable` when the server ends or stays silent."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with _autocommit_connection(url) as connection:
                connection.exec_driver_sql("SELECT 1")
        except sa.exc.DBAPIError as error:
            if not is_alive():
                raise Unavailable("it ended while it was starting") from None
            if time.monotonic() > deadline:
                raise Unavailable(f"it did not answer within {START_SECONDS} s ({error.orig})") from None
            time.sleep(0.05)
        else:
            return


# --- The first way: a given URL ---------------------------------------------------------------------------


def use_given_url(kind: Kind, environ: Mapping[str, str]) -> Server:
    """Use the server of ``JWT_COLUMN_TEST_..._URL``."""
    text = environ.get(kind.url_variable, "").strip()
    if not text:
        raise Unavailable(f"{kind.url_variable} is not set")
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError:
        # SQLAlchemy's own message repeats the text, and a password may stand in it.
        raise ValueError(f"{kind.url_variable} is not a URL that SQLAlchemy can read.") from None
    if url.get_backend_name() not in kind.schemes:
        wanted = " or ".join(f"{scheme}://" for scheme in kind.schemes)
        raise ValueError(f"{kind.url_variable} must begin with {wanted}, not {url.drivername}://.")
    # The driver of the given URL is not kept: each test names its own, and the fixtures go through all.
    url = url.set(drivername=kind.drivername)
    if url.database is None and kind.admin_database is not None:
        url = url.set(database=kind.admin_database)
    return Server(kind.name, url, f"the URL in {kind.url_variable}")


# --- The second way: a container --------------------------------------------------------------------------


def start_container(kind: Kind, environ: Mapping[str, str]) -> Server:
    """Start *kind*'s image through testcontainers, where a Docker engine answers."""
    if importlib.util.find_spec("testcontainers") is None:
        raise Unavailable("testcontainers is not installed")
    with warnings.catch_warnings():
        # Importing the package must not depend on which of its parts its authors deprecate next. For the same
        # reason only the generic container is used: the modules for PostgreSQL and MySQL have moved already,
        # and the latter waits for words in the log that not every image prints.
        warnings.simplefilter("ignore")
        errors: Any = importlib.import_module("docker.errors")
        from testcontainers.core.config import ConnectionMode, testcontainers_config
        from testcontainers.core.container import DockerContainer
        from testcontainers.core.docker_client import DockerClient

    # A file /.dockerenv makes testcontainers believe that it runs beside the containers that it starts, which
    # is wrong wherever the engine runs on this very machine. Whoever really is in that place sets
    # TESTCONTAINERS_CONNECTION_MODE.
    if testcontainers_config.connection_mode_override is None:
        testcontainers_config.connection_mode_override = ConnectionMode.docker_host
    # The reaper needs an image of its own, from a registry that may be out of reach. The fixtures remove
    # their containers themselves; only a run that is killed leaves one behind.
    if "TESTCONTAINERS_RYUK_DISABLED" not in os.environ:
        testcontainers_config.ryuk_disabled = True

    if not _engine_answers(lambda: DockerClient(timeout=PING_SECONDS).client, errors):
        raise Unavailable("no Docker engine answers")

    image = environ.get(kind.image_variable) or kind.image
    password = secrets.token_hex(16)
    container = DockerContainer(image, docker_client_kw={"timeout": PULL_SILENCE_SECONDS})
    container.with_envs(**kind.container_environment(password)).with_exposed_ports(kind.port)
    try:
        _ensure_image(container.get_docker_client().client, container.image, errors)
        container.start()
        host = container.get_container_host_ip()
        url = sa.URL.create(
            kind.drivername,
            username=kind.container_account,
            password=password,
            # Clients of MariaDB take "localhost" for the socket file, which is inside the container.
            host="127.0.0.1" if host == "localhost" else host,
            port=container.get_exposed_port(kind.port),
            database=kind.admin_database,
        )

        def is_running() -> bool:
            container.reload()
            return container.status == "running"

        _wait_until_ready(url, is_running)
    except Unavailable as reason:
        container.stop()
        raise Unavailable(f"the image {image}: {reason}") from None
    except (errors.DockerException, OSError) as error:
        container.stop()
        raise Unavailable(f"the image {image} did not start ({type(error).__name__})") from None
    except BaseException:
        container.stop()
        raise
    return Server(kind.name, url, f"a container of {image}", closers=[container.stop])


def _engine_answers(connect: Callable[[], Any], errors: Any) -> bool:
    with warnings.catch_warnings():
        # The client does not close the socket on which nobody answered. The collector closes it here, where
        # the warning about it is expected, rather than in the middle of some test.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            with contextlib.closing(connect()) as client:
                client.ping()
        except (errors.DockerException, OSError):
            answers = False
        else:
            answers = True
        gc.collect()
    return answers


def _ensure_image(client: Any, image: str, errors: Any) -> None:
    """Pull *image* if the engine lacks it, within a bounded time."""
    try:
        client.images.get(image)
    except errors.ImageNotFound:
        pass
    else:
        return
    deadline = time.monotonic() + PULL_SECONDS
    try:
        for step in client.api.pull(image, stream=True, decode=True):
            if "error" in step:
                break
            if time.monotonic() > deadline:
                raise Unavailable(f"it was not pulled within {PULL_SECONDS} s")
        else:
            return
    except (errors.DockerException, OSError):
        pass
    # What the engine answered is left out: it names hosts that the reader never asked for.
    raise Unavailable("the engine neither has it nor can pull it")


# --- The third way: a private server ----------------------------------------------------------------------


def start_private(kind: Kind, environ: Mapping[str, str]) -> Server:
    """Start *kind*'s own binaries; how is *kind*'s affair."""
    del environ
    return kind.private()


class _Account(NamedTuple):
    """The operating system's account that a private server runs under; nobody's but root's to choose."""

    name: str
    uid: int
    gid: int

    @classmethod
    def to_run_as(cls, *names: str) -> _Account | None:
        """Return the first account of *names* that exists, or nothing when we are not root.

        Both servers refuse to run as root.
        """
        if os.geteuid() != 0:
            return None
        for name in names:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)
        raise Unavailable(f"root may not run it, and no account {' or '.join(names)} exists")


class _PrivateServer:
    """One directory with everything of a private server, and the process that works in it."""

    def __init__(self, title: str, account: _Account | None, stop_signal: signal.Signals) -> None:
        self.title = title
        self.account = account
        self.stop_signal = stop_signal
        self.directory = self._make_directory()
        self.data = self.directory / "data"
        self.log = self.directory / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def _make_directory(self) -> Path:
        for parent in dict.fromkeys([tempfile.gettempdir(), "/var/tmp", "/tmp"]):
            path = Path(parent).resolve()
            # A temporary directory inside root's home is out of reach for the account.
            reachable = all(step.stat().st_mode & 0o001 for step in [path, *path.parents])
            if self.account is None or reachable:
                directory = Path(tempfile.mkdtemp(prefix=f"jwt-column-{self.title.lower()}-", dir=path))
                self._hand_over(directory)
                return directory
        raise Unavailable(f"no temporary directory can be reached by the account {self.account}")

    def _hand_over(self, path: Path) -> None:
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)

    def write(self, name: str, text: str) -> Path:
        """Write a file that only the server's account can read."""
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
        self._hand_over(path)
        return path

    def _popen_options(self) -> dict[str, Any]:
        # Variables such as PGPORT or PGOPTIONS are meant for the machine's own server.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "MYSQL"))}
        options: dict[str, Any] = {
            "cwd": self.directory,
            "env": environment | {"LC_ALL": "C", "HOME": str(self.directory)},
            "stdin": subprocess.DEVNULL,
        }
        if self.account is not None:
            options |= {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}
        return options

    def prepare(self, *command: str | Path) -> None:
        """Run *command* to its end under the server's account."""
        # A machine that starts several servers at once may refuse the first try.
        for _ in range(3):
            result = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=START_SECONDS,
                check=False,
                **self._popen_options(),
            )
            if result.returncode == 0:
                return
            shutil.rmtree(self.data, ignore_errors=True)
        last = result.stdout.decode(errors="replace").strip().splitlines()[-5:]
        raise Unavailable(f"{Path(command[0]).name} failed: {' / '.join(last)}")

    def start(self, command: Callable[[int], Sequence[str | Path]], url: sa.URL) -> sa.URL:
        """Start *command* of a free port and wait until *url* at that port lets us in.

        Between finding a free port and binding it somebody else may take it, hence three attempts.
        """
        failure = Unavailable()
        for _ in range(3):
            port = free_port()
            self._launch(command(port))
            try:
                _wait_until_ready(url.set(port=port), self._is_alive)
            except Unavailable as reason:
                self.stop()
                failure = reason
            else:
                return url.set(port=port)
        last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
        raise Unavailable(f"{failure}: {' / '.join(last)}")

    def _launch(self, command: Sequence[str | Path]) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*_with_parent_death_signal(self.stop_signal), *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                # An interrupt at the keyboard is for pytest; the server must outlive it until it is stopped.
                start_new_session=True,
                **self._popen_options(),
            )

    def _is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """Stop the process, by force if it does not listen."""
        process, self.process = self.process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(self.stop_signal)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Stop the process and remove the directory."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


def _with_parent_death_signal(stop_signal: signal.Signals) -> list[str]:
    """Return the words before a command that let it end with us, where the machine has such a thing.

    Fixtures stop their servers, but not when pytest itself is killed.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return []
    usage = subprocess.run([setpriv, "--help"], capture_output=True, text=True, check=False).stdout
    return [setpriv, "--pdeathsig", stop_signal.name.removeprefix("SIG")] if "--pdeathsig" in usage else []


def _which(*names: str) -> Path | None:
    """Find the first program of *names* in ``PATH`` or where servers are kept out of an ordinary ``PATH``."""
    path = os.pathsep.join(
        [os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/usr/local/bin"]
    )
    for name in names:
        found = shutil.which(name, path=path)
        if found is not None:
            return Path(found)
    return None


def postgresql_binaries() -> Path | None:
    """Find the directory that holds both ``initdb`` and ``postgres``, the newest version first."""
    candidates: list[Path] = []
    pg_config = _which("pg_config")
    if pg_config is not None:
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        candidates.append(Path(answer.stdout.strip()))
    versions = [
        (path, re.match(r"\d+", path.parent.name)) for path in Path("/usr/lib/postgresql").glob("*/bin")
    ]
    newest_first = sorted(((int(match[0]), path) for path, match in versions if match), reverse=True)
    candidates.extend(path for _, path in newest_first)
    initdb = _which("initdb")
    if initdb is not None:
        candidates += [initdb.parent, initdb.resolve().parent]
    for directory in candidates:
        if all(os.access(directory / program, os.X_OK) for program in ("initdb", "postgres")):
            return directory
    return None


def _scram_verifier(password: str) -> str:
    """Return what PostgreSQL stores of a password, after one round of hashing.

    The 4,096 rounds that it would take itself protect a password that can be guessed, and cost each of thousands of
    connections some milliseconds.
    """
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 1)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return "SCRAM-SHA-256$1:{}${}:{}".format(*encoded)


def start_private_postgresql(settings: Mapping[str, str] | None = None) -> Server:
    """Start a PostgreSQL of our own with *settings* beside the defaults; the log holds all that it prints."""
    binaries = postgresql_binaries()
    if binaries is None:
        raise Unavailable("no initdb and postgres in pg_config --bindir, /usr/lib/postgresql/*/bin or PATH")
    ensure_driver(SYNC_DRIVERS["postgresql"][0])
    # With a password even on loopback: a superuser of PostgreSQL can run programs under the account of the
    # server, and other people may have an account on this machine.
    password = secrets.token_hex(16)
    all_settings = {
        "listen_addresses": "127.0.0.1",
        # The path of a socket file may be at most 107 bytes long, and nothing here needs one.
        "unix_socket_directories": "",
        "shared_buffers": "64MB",
        "logging_collector": "off",
        "fsync": "off",
        **(settings or {}),
    }
    options = [word for name, value in all_settings.items() for word in ("-c", f"{name}={value}")]
    url = sa.URL.create(
        KINDS["postgresql"].drivername, "jwt_column", password, host="127.0.0.1", database="postgres"
    )
    with contextlib.ExitStack() as stack:
        private = _PrivateServer("PostgreSQL", _Account.to_run_as("postgres", "nobody"), signal.SIGINT)
        stack.callback(private.close)
        private.prepare(
            binaries / "initdb",
            f"--pgdata={private.data}",
            "--username=jwt_column",
            f"--pwfile={private.write('password', _scram_verifier(password))}",
            "--auth=scram-sha-256",
            # Any other default depends on the machine, and SQL_ASCII makes drivers return bytes.
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        )
        url = private.start(
            lambda port: [binaries / "postgres", "-D", private.data, "-c", f"port={port}", *options], url
        )
        return Server(
            "postgresql", url, f"a private server of {binaries}", private.log, [stack.pop_all().close]
        )


def start_private_mariadb(*options: str) -> Server:
    """Start a MariaDB of our own with *options* beside the defaults."""
    install, mariadbd = _which("mariadb-install-db", "mysql_install_db"), _which("mariadbd", "mysqld")
    if install is None or mariadbd is None:
        raise Unavailable(
            "no mariadb-install-db and mariadbd in PATH, /usr/sbin, /usr/local/sbin or /usr/local/bin"
        )
    ensure_driver(SYNC_DRIVERS["mariadb"][0])
    account = _Account.to_run_as("mysql", "nobody")
    password = secrets.token_hex(16)
    user = "jwt_column@'127.0.0.1'"
    url = sa.URL.create(KINDS["mariadb"].drivername, "jwt_column", password, host="127.0.0.1")
    with contextlib.ExitStack() as stack:
        private = _PrivateServer("MariaDB", account, signal.SIGTERM)
        stack.callback(private.close)
        init_file = private.write(
            "init.sql",
            f"CREATE OR REPLACE USER {user} IDENTIFIED BY '{password}';\n"
            f"GRANT ALL ON *.* TO {user} WITH GRANT OPTION;\n",
        )
        private.prepare(
            install,
            "--no-defaults",  # It must be the first option, else it is not understood.
            f"--datadir={private.data}",
            "--skip-test-db",
            # The kernel has few asynchronous requests for many servers.
            "--innodb-use-native-aio=0",
            # The server's own root can come in by the socket only, and only from the server's account; with
            # the method "normal" it could come in from anywhere on the machine without a password.
            "--auth-root-authentication-method=socket",
            f"--auth-root-socket-user={account.name if account else pwd.getpwuid(os.geteuid()).pw_name}",
        )
        url = private.start(
            lambda port: [
                mariadbd,
                "--no-defaults",
                f"--datadir={private.data}",
                f"--tmpdir={private.directory}",
                f"--socket={private.directory / 'socket'}",
                f"--pid-file={private.directory / 'pid'}",
                f"--init-file={init_file}",
                f"--port={port}",
                "--bind-address=127.0.0.1",
                "--skip-name-resolve",
                "--debug-no-sync",
                "--innodb-use-native-aio=0",
                "--character-set-server=utf8mb4",
                *options,
            ],
            url,
        )
        return Server("mariadb", url, f"a private server of {mariadbd}", private.log, [stack.pop_all().close])


KINDS: dict[str, Kind] = {
    "postgresql": Kind(
        name="postgresql",
        title="PostgreSQL",
        schemes=("postgresql",),
        image="postgres:17",
        port=5432,
        container_environment=lambda password: {"POSTGRES_PASSWORD": password},
        container_account="postgres",
        admin_database="postgres",
        private=start_private_postgresql,
        hint="apt-get install postgresql",
    ),
    "mariadb": Kind(
        name="mariadb",
        title="MariaDB",
        schemes=("mariadb", "mysql"),
        image="mariadb:11.4",
        port=3306,
        container_environment=lambda password: {"MARIADB_ROOT_PASSWORD": password},
        container_account="root",
        admin_database=None,
        private=start_private_mariadb,
        hint="apt-get install mariadb-server",
    ),
}

# The ways in their order, under the words that a skip uses for them.
Way = tuple[str, "Callable[[Kind, Mapping[str, str]], Server]"]
WAYS: tuple[Way, ...] = (
    ("given URL", use_given_url),
    ("container", start_container),
    ("private server", start_private),
)


class Resolver:
    """Finds each server once and remembers it, or why there is none, until it is closed.

    Args:
        environ: Where the variables are looked up, normally ``os.environ``.
        ways: The ways to try, in order.
    """

    def __init__(self, environ: Mapping[str, str], ways: Sequence[Way] = WAYS) -> None:
        self._environ = environ
        self._ways = ways
        self._found: dict[str, Server | Unavailable] = {}

    def server(self, name: str) -> Server:
        """Return the server of *name*, ``"postgresql"`` or ``"mariadb"``.

        Raises:
            Unavailable: No way was open; the text says what was tried and what would help.
        """
        if name not in self._found:
            try:
                self._found[name] = self._resolve(KINDS[name])
            except Unavailable as reason:
                self._found[name] = reason
        found = self._found[name]
        if isinstance(found, Unavailable):
            # A new one each time, because a raised exception collects the frames that it passes through.
            raise Unavailable(*found.args)
        return found

    def _resolve(self, kind: Kind) -> Server:
        reasons: list[str] = []
        try:
            ensure_driver(SYNC_DRIVERS[kind.name][0])
        except Unavailable as reason:
            raise Unavailable(f"No {kind.title} for this test. {reason}") from None
        for title, way in self._ways:
            try:
                return way(kind, self._environ)
            except Unavailable as reason:
                reasons.append(f"{title}: {reason}")
        raise Unavailable(
            f"No {kind.title} for this test. Tried: {'; '.join(reasons)}. "
            f"Set {kind.url_variable}, start Docker, or install the server (Debian: {kind.hint})."
        )

    def close(self) -> None:
        """Stop every server that was started, also when stopping one of them fails."""
        with contextlib.ExitStack() as stack:
            for found in self._found.values():
                if isinstance(found, Server):
                    stack.callback(found.close)
            self._found.clear()
