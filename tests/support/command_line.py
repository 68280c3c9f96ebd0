"""Run ``jwt-column``: in this process, in an interpreter of its own, or on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa
from typer.testing import CliRunner

from jwt_column.cli.app import app
from jwt_column.cli.options import DATABASE_VARIABLE
from tests.support.commands import forked, programs
from tests.support.databases import truthy
from tests.support.workload import NEW_KEY, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pytest
    from typer.testing import Result

__all__ = [
    "ESCAPE",
    "PASSWORD",
    "TerminalRun",
    "command",
    "environment",
    "invoke",
    "invoke_on",
    "keys",
    "keys_output",
    "keys_report",
    "program_path",
    "run",
    "run_in_terminal",
    "start",
    "stop_when",
    "stopped_here",
    "take_display_away",
    "text_of",
    "type_in_terminal",
]

ESCAPE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[78])")
#: The password of the URLs here.
PASSWORD: Final = "s3cr3t"
#: Seconds after which a command is taken to hang.
_PATIENCE: Final = 300

# What decides about colour and width on the machine of whoever runs the tests.
_DISPLAY_VARIABLES: Final = (
    "CLICOLOR",
    "CLICOLOR_FORCE",
    "COLUMNS",
    "FORCE_COLOR",
    "GITHUB_ACTIONS",
    "LINES",
    "NO_COLOR",
    "PY_COLORS",
    "PYTHONIOENCODING",
    "PYTHONUTF8",
    "TERM",
    "TERMINAL_WIDTH",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
    "_TYPER_FORCE_DISABLE_TERMINAL",
)


def take_display_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the machine's wishes about colour and width away; a test sets those that it is about."""
    for name in _DISPLAY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


# -- in this process -----------------------------------------------------------------------------------------------


def invoke(*arguments: str, **variables: str | None) -> Result:
    """Run a command with these environment variables; what it does not handle is raised."""
    result = CliRunner().invoke(app, arguments, env=variables)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def invoke_on(url: sa.URL | str | None, *arguments: str, name: str) -> Result:
    """Run the command *name* with the database's URL in the environment, and look for secrets in its output."""
    text = text_of(url) if isinstance(url, sa.URL) else url
    result = invoke(name, *arguments, **{DATABASE_VARIABLE: text})
    # Nothing that is shown anywhere may hold a key, a token or a password.
    for secret in (NEW_KEY.hex(), "eyJ", PASSWORD):
        assert secret not in result.output
    return result


def keys(*arguments: str) -> Result:
    """Run a command of ``jwt-column keys``."""
    return invoke("keys", *arguments)


def keys_output(*arguments: str) -> str:
    """Run a command of ``jwt-column keys`` that works, and return what it printed."""
    result = keys(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def keys_report(*arguments: str) -> Any:
    """Run a command of ``jwt-column keys`` that works with ``--json``, and return what it printed."""
    return json.loads(keys_output(*arguments, "--json"))


def text_of(url: sa.URL) -> str:
    """Return a URL with its password."""
    return url.render_as_string(hide_password=False)


# -- in a process of its own ---------------------------------------------------------------------------------------


def command(*arguments: str, setup: str = "") -> list[str]:
    """Return the command line that runs ours in its own interpreter, where every warning is an error."""
    code = f"import sys; sys.argv[0] = 'jwt-column'\n{setup}\nfrom jwt_column.cli import main; main()"
    return [sys.executable, "-W", "error", "-c", code, *arguments]


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command, with these variables."""
    return {**os.environ, "LC_ALL": "C.UTF-8", **extra}


def program_path() -> str:
    """Return the search path by which a shell finds ``jwt-column``, ``alembic`` and ``python``; forks, but in CI."""
    directories = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if not truthy(os.environ.get("CI")):
        directories.insert(0, str(programs()))
    return os.pathsep.join(directories)


def start(
    *arguments: str,
    setup: str = "",
    stdout: int | IO[Any] = subprocess.PIPE,
    group: bool = False,
    **variables: str,
) -> subprocess.Popen[str]:
    """Start the command in its own interpreter, which signals reach, and with *group* in a process group of its own."""
    return subprocess.Popen(
        command(*arguments, setup=setup),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(variables),
        start_new_session=group,
    )


def stop_when(process: subprocess.Popen[str], condition: Callable[[], bool], number: int) -> tuple[str, str]:
    """Send a signal as soon as something holds, and return what the process has written."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    return process.communicate(timeout=PATIENCE)


def stopped_here(number: int) -> str:
    """Return an expression that sends the process which evaluates it a signal, and waits for what comes of it."""
    return f"(__import__('os').kill(__import__('os').getpid(), {int(number)}), __import__('time').sleep({PATIENCE}))"


def _started(
    arguments: Sequence[str],
    streams: Sequence[int],
    setup: str,
    variables: Mapping[str, str],
    *,
    fresh: bool = False,
) -> Callable[[], int]:
    """Start the command with these standard streams, and return what waits for its exit status.

    It is a fork, which begins without imports; in CI, and where it is to be *fresh*, a new interpreter.
    """
    line = command(*arguments, setup=setup)
    if not fresh and not truthy(os.environ.get("CI")):
        return forked(
            "python", *line[line.index("-c") :], environment=environment(variables), streams=streams
        )
    stdin, stdout, stderr = streams
    process = subprocess.Popen(line, stdin=stdin, stdout=stdout, stderr=stderr, env=environment(variables))
    return lambda: process.wait(timeout=_PATIENCE)


def run(
    *arguments: str, setup: str = "", fresh: bool = False, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command with files for its output; *fresh* where it matters what its interpreter has imported or read."""
    with (
        Path(os.devnull).open() as nothing,
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8") as err,
    ):
        streams = [nothing.fileno(), out.fileno(), err.fileno()]
        code = _started(arguments, streams, setup, variables, fresh=fresh)()
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(arguments, code, out.read(), err.read())


class TerminalRun(NamedTuple):
    """What a command wrote on a terminal, and how it ended."""

    output: str
    returncode: int

    @property
    def lines(self) -> list[str]:
        """The lines as they stood there, one after another where one was overwritten."""
        return re.split(r"[\r\n]+", ESCAPE.sub("", self.output))


def run_in_terminal(*arguments: str, columns: int = 80, setup: str = "", **variables: str) -> TerminalRun:
    """Run the command on a real terminal of this width: standard input, output and error."""
    return _in_terminal(arguments, columns, setup, {"TERM": "xterm-256color"} | variables)


def type_in_terminal(*arguments: str, prompt: str, typed: str, **variables: str) -> tuple[str, int]:
    """Run the command on a terminal, type a line at each prompt, and return the output and the exit status."""
    return _in_terminal(arguments, 200, "", {"TERM": "dumb", "COLUMNS": "200"} | variables, prompt, typed)


def _in_terminal(
    arguments: Sequence[str],
    columns: int,
    setup: str,
    variables: Mapping[str, str],
    prompt: str | None = None,
    typed: str = "",
) -> TerminalRun:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    wait = _started(arguments, [theirs] * 3, setup, variables)
    os.close(theirs)
    output = b""
    while True:
        try:
            chunk = os.read(ours, 65_536)
        except OSError:
            # Linux says EIO when the last writer has gone.
            break
        if not chunk:
            break
        output += chunk
        if prompt is not None and output.rstrip().endswith(prompt.encode()):
            os.write(ours, f"{typed}\n".encode())
    os.close(ours)
    return TerminalRun(output.decode(), wait())
