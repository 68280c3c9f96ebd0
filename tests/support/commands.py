"""Run ``jwt-column``, ``alembic`` and ``python`` in processes that have imported the packages already.

A new interpreter spends a second on importing SQLAlchemy, Alembic and the command line, and the pages of the
documentation start more than a hundred. Here one server process imports everything and forks for each command. Programs
of the same names on ``PATH`` hand it their arguments, directory, environment and standard streams, and so does
:func:`forked` without a program.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import marshal
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["forked", "programs"]

_IMPORTS: Final = (
    "alembic.autogenerate",
    "alembic.command",
    "alembic.config",
    "jwt_column.cli.app",
    "migrations_helpers",
    # What a command imports when it runs, or what it calls.
    "jwt_column.keys.providers.env",
    "jwt_column.keys.providers.file",
    "rich.live",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "typer._adapters",
)
_MESSAGE_BYTES: Final = 1 << 20
_START_SECONDS: Final = 120

# The modules "socket" and "json" would take longer to import than all the rest takes.
_CLIENT: Final = """\
#!{python} -IS
import _socket, marshal, os, sys
server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
server.connect({address!r})
request = {{"arguments": [{name!r}, *sys.argv[1:]], "directory": os.getcwd(), "environment": dict(os.environ)}}
descriptors = b"".join(number.to_bytes(4, sys.byteorder) for number in range(3))
server.sendmsg([marshal.dumps(request)], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptors)])
sys.exit(int(server.recv(8) or b"70"))
"""


@contextlib.contextmanager
def _running_commands() -> Iterator[Path]:
    """Start the server, and give the directory of the programs that reach it."""
    with tempfile.TemporaryDirectory(prefix="jwt-column-commands-") as name:
        directory = Path(name)
        address = directory / "socket"
        for command in _PROGRAMS:
            program = directory / command
            program.write_text(_CLIENT.format(python=sys.executable, address=str(address), name=command))
            program.chmod(0o700)
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(address)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield directory
        finally:
            # It ends with its standard input, also when the tests are killed.
            process.communicate(timeout=_START_SECONDS)


@functools.cache
def programs() -> Path:
    """Return the directory of the programs of this process, whose server ends with it."""
    running = contextlib.ExitStack()
    atexit.register(running.close)
    return running.enter_context(_running_commands())


def forked(
    name: str, *arguments: str, environment: Mapping[str, str], streams: Sequence[int]
) -> Callable[[], int]:
    """Start a command, in which every warning is an error, and return what waits for its exit status.

    Args:
        name: ``jwt-column``, ``alembic`` or ``python``.
        arguments: Its arguments.
        environment: Every variable that it sees.
        streams: Descriptors of its standard input, output and error.
    """
    request = {
        "arguments": [name, *arguments],
        "directory": str(Path.cwd()),
        "environment": dict(environment),
        "warnings": "error",
    }
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.settimeout(_START_SECONDS)
    server.connect(str(programs() / "socket"))
    socket.send_fds(server, [marshal.dumps(request)], streams)

    def wait() -> int:
        with server:
            return int(server.recv(8) or b"70")

    return wait


def _jwt_column() -> None:
    importlib.import_module("jwt_column.cli").main()


def _alembic() -> None:
    importlib.import_module("alembic.config").main(prog="alembic")


def _python() -> None:
    """Run ``-c CODE``, ``-m MODULE`` or a file, as the interpreter does."""
    option, *rest = sys.argv[1:]
    if option == "-c":
        sys.argv[:] = [option, *rest[1:]]
        sys.path.insert(0, "")
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif option == "-m":
        sys.argv[:] = rest
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = [option, *rest]
        sys.path.insert(0, str(Path(option).resolve().parent))
        # Absolute, as the interpreter has it: a process that is spawned looks there.
        runpy.run_path(str(Path(option).resolve()), run_name="__main__")


_PROGRAMS: Final = {"jwt-column": _jwt_column, "alembic": _alembic, "python": _python}


def _serve(address: str) -> None:
    # The current directory, which "-m" puts there; the commands have directories of their own.
    del sys.path[0]
    # A collection of garbage in a command would copy the pages that it shares with this process.
    gc.disable()
    for name in _IMPORTS:
        # Releases of Typer and Rich differ in their modules; what is not there, no command imports.
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    package = importlib.import_module("jwt_column.cli")
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(found.name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        if os.fork() == 0:
            sys.stdin.read()
            os.kill(os.getppid(), signal.SIGTERM)
            os._exit(0)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> NoReturn:
    """Run one command in this process, a fork of the server, and send its exit status."""
    message, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 3)
    request: dict[str, Any] = marshal.loads(message)
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for standard, descriptor in enumerate(descriptors):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - a descriptor
        for number, mode in enumerate("rww")
    )
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    # Behind what is there: the packages are imported already, and a test may bring a distribution.
    sys.path += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = request["arguments"]
    if "warnings" in request:
        warnings.simplefilter(request["warnings"])
    status = 0
    try:
        _PROGRAMS[sys.argv[0]]()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter ends
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    # The server's own objects too: modules that it has imported may have kept them, as alembic.config does.
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.flush()
    connection.send(str(status).encode())
    os._exit(status)


if __name__ == "__main__":
    _serve(sys.argv[1])
