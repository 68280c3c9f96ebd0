"""Run ``jwt-column``, ``alembic`` and ``python`` in processes that have imported the packages already.

A new interpreter spends a second on importing SQLAlchemy, Alembic and the command line, and the pages of the
documentation start more than a hundred. Here one server process imports everything and forks for each command. Programs
of the same names on ``PATH`` hand it their arguments, directory, environment and standard streams.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["running_commands"]

_IMPORTS: Final = ("jwt_column.cli.app", "migrations_helpers", "alembic.command", "alembic.autogenerate")
_MESSAGE_BYTES: Final = 1 << 20
_START_SECONDS: Final = 120

_CLIENT: Final = """\
#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({address!r})
    request = {{"arguments": [{name!r}, *sys.argv[1:]], "directory": os.getcwd(), "environment": dict(os.environ)}}
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
    sys.exit(int(server.recv(8) or b"70"))
"""


@contextlib.contextmanager
def running_commands() -> Iterator[Path]:
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
        importlib.import_module(name)
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
    request: dict[str, Any] = json.loads(message)
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
    sys.argv = request["arguments"]
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
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    connection.send(str(status).encode())
    os._exit(status)


if __name__ == "__main__":
    _serve(sys.argv[1])
