"""The command line: what it prints and where, how it ends, and that nothing secret is in it."""

from __future__ import annotations

import re
import sqlite3
import stat
import subprocess
import sys
import zipfile
from contextlib import closing
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer

from jwt_column import (
    ConfigurationError,
    DecryptionError,
    JWTColumnError,
    KeyRing,
    KeyRingError,
    MissingExtraError,
    ReencryptionError,
    __version__,
    generate_key,
)
from jwt_column.cli import console as cli_console
from jwt_column.cli import main
from jwt_column.cli.app import app
from jwt_column.cli.console import ExitCode, is_utf8, make_console, mark, print_error
from jwt_column.keys.ring_file.plain import write_key_file
from tests.support.command_line import environment, keys, run, run_in_terminal

KEY = re.compile(r"[A-Za-z0-9_-]{43}")

# -- the whole command ---------------------------------------------------------------------------------------


def test_the_console_script_is_main() -> None:
    (script,) = entry_points(group="console_scripts", name="jwt-column")
    assert script.load() is main


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"jwt-column {__version__}\n", "")


@pytest.mark.parametrize("arguments", [(), ("keys",)])
def test_without_a_command_the_help_is_shown_and_nothing_is_done(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")
    assert "Usage: jwt-column" in done.stdout


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("demo", "--help"), ("keys", "generate", "-h")])
def test_help_is_plain_and_narrow_in_a_pipe(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: jwt-column" in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_help_loads_nothing_that_a_command_needs() -> None:
    """A user waits for it, and for each completion in a shell."""
    heavy = (
        "sqlalchemy",
        "alembic",
        "cryptography",
        "migrations_helpers",
        "jwt_column.errors",
        "jwt_column.column",
    )
    setup = "import atexit; atexit.register(lambda: print('LOADED', *sys.modules))"
    for arguments in (("--help",), ("--version",), ("keys", "--help")):
        loaded = run(*arguments, setup=setup, fresh=True).stdout.partition("LOADED ")[2].split()
        assert "jwt_column.cli.app" in loaded
        assert not [name for name in loaded if name.startswith(heavy)], arguments
    control = run("keys", "generate", setup=setup, fresh=True).stdout.partition("LOADED ")[2].split()
    assert "cryptography" in control
    assert "alembic" not in control


@pytest.mark.parametrize(
    "arguments", [("no-such-command",), ("demo", "--rows", "many"), ("demo", "--rows", "1")]
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == ExitCode.USAGE
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra_one_line_says_what_to_install(package: str) -> None:
    done = run("demo", setup=f"sys.modules['{package}'] = None", fresh=True)
    assert done.returncode == ExitCode.USAGE
    assert done.stdout == ""
    assert done.stderr == (
        'jwt-column: the jwt-column command needs Typer and Rich; run: pip install "jwt-column[cli]"\n'
    )


def test_main_ends_with_2_without_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "jwt_column.cli.app")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == ExitCode.USAGE
    assert 'pip install "jwt-column[cli]"' in capsys.readouterr().err


def test_main_runs_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["jwt-column", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == ExitCode.OK
    assert capsys.readouterr().out == f"jwt-column {__version__}\n"


def test_another_missing_module_is_not_blamed_on_the_extra() -> None:
    done = run("reencrypt", setup="sys.modules['alembic'] = None", fresh=True)
    assert done.returncode == ExitCode.FAILURE
    assert "alembic" in done.stderr
    assert "jwt-column[cli]" not in done.stderr


def test_a_crash_shows_no_local_variables() -> None:
    """Typer's own tracebacks would print them, tokens among them."""
    secret = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
    setup = """
import os
from jwt_column.cli.keys import making
def crash():
    token = os.environ["SECRET"]
    raise RuntimeError(len(token))
making.generate_key = crash
"""
    done = run("keys", "generate", setup=setup, SECRET=secret)
    assert done.returncode == ExitCode.FAILURE
    assert f"RuntimeError: {len(secret)}" in done.stderr
    assert secret not in done.stderr + done.stdout


# -- the project -------------------------------------------------------------------------------------------------

SETTINGS = """
[tool.jwt-column]
model = ["app:Base"]
database = "sqlite:///app.sqlite3"
ring = "file:jwt.keys"
"""
APPLICATION = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from jwt_column import JWT, EncryptedJWT
class Base(DeclarativeBase): ...
class Session(Base):
    __tablename__ = "sessions"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[JWT] = mapped_column(EncryptedJWT())
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with settings, a model, a key file and a database without a row."""
    for name in ("JWT_COLUMN_MODEL", "JWT_COLUMN_DATABASE_URL", "JWT_COLUMN_KEYRING", "JWT_COLUMN_KEYS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pyproject.toml").write_text(SETTINGS, encoding="utf-8")
    (tmp_path / "app.py").write_text(APPLICATION, encoding="utf-8")
    write_key_file(tmp_path / "jwt.keys", [generate_key()])
    with closing(sqlite3.connect(tmp_path / "app.sqlite3")) as connection:
        connection.execute("CREATE TABLE sessions (id INTEGER PRIMARY KEY, token BLOB NOT NULL)")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_settings_of_a_project_are_defaults(project: Path) -> None:
    done = run("audit")
    assert (done.returncode, "sessions.token" in done.stdout) == (ExitCode.OK, True), done.stderr
    # The environment goes before, and the command line before that.
    done = run("audit", JWT_COLUMN_MODEL="app:Session.nothing")
    assert (done.returncode, "has no Session.nothing" in done.stderr) == (ExitCode.USAGE, True)
    done = run("audit", "--table", "session", "--column", "token", JWT_COLUMN_MODEL="app:Session.nothing")
    assert (done.returncode, "did you mean 'sessions'?" in done.stderr) == (ExitCode.USAGE, True)
    done = run("reencrypt", JWT_COLUMN_MODEL="app:Session.token")
    assert (done.returncode, "sessions.token" in done.stdout) == (ExitCode.OK, True), done.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('databse = "x"', "no setting 'databse' (did you mean 'database'?)"),
        ("model = 1", "model is a text, or for model and database a list"),
        ('ring = ["env:A", "env:B"]', "ring is a text"),
        ('database = "postgresql://me:hidden@db/app', "pyproject.toml, line 2: this is not TOML"),
        ("model = hidden", "pyproject.toml, line 2: this is not TOML"),
        ('[tool.hidden]\na = 1\na = 2\n[tool."hidden', "pyproject.toml, line 4: this is not TOML"),
        ("model = [", "pyproject.toml, at its end: this is not TOML"),
        ('a = """\nhidden', "pyproject.toml, at its end: this is not TOML"),
    ],
)
def test_wrong_settings_are_named(project: Path, setting: str, message: str) -> None:
    (project / "pyproject.toml").write_text(f"[tool.jwt-column]\n{setting}\n", encoding="utf-8")
    done = run("audit")
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert message in done.stderr
    assert "hidden" not in done.stderr
    # Help and version do without them.
    assert run("--help").returncode == ExitCode.OK


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = 1\nb = 'hidden \xff'\n", "line 2: this is not UTF-8"),
        (b"tool = 'hidden'\n", "tool is a table, as in [tool.jwt-column]"),
        (b"[tool]\njwt-column = 'hidden'\n", "jwt-column is a table, as in [tool.jwt-column]"),
    ],
)
def test_a_file_of_settings_that_is_none_is_named(project: Path, content: bytes, message: str) -> None:
    (project / "pyproject.toml").write_bytes(content)
    done = run("audit")
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert (message in done.stderr, "hidden" in done.stderr) == (True, False)


def test_a_key_file_that_others_can_read_is_an_error_of_an_audit(project: Path) -> None:
    assert run("audit").returncode == ExitCode.OK  # The control.
    (project / "jwt.keys").chmod(0o644)
    done = run("audit")
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert "chmod" in done.stderr


def test_quiet_has_no_hints_and_verbose_has_a_log(project: Path) -> None:
    key_file = ("--file", str(project / "jwt.keys"))
    assert "Bring the file to every host" in run("keys", "add", *key_file).stdout
    done = run("--quiet", "keys", "add", *key_file)
    assert done.returncode == ExitCode.OK
    assert "Added key" in done.stdout
    assert "Bring the file" not in done.stdout


def test_python_runs_the_package_and_finds_its_version_in_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "packages.zip"
    root = Path(__file__).parents[2]
    with zipfile.ZipFile(path, "w") as archive:
        for file in (root / "jwt_column").rglob("*.py"):
            archive.write(file, file.relative_to(root))
    done = subprocess.run(
        [sys.executable, "-m", "jwt_column", "--version"],
        capture_output=True,
        text=True,
        env=environment({"PYTHONPATH": str(path)}),
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"jwt-column {__version__}\n", "")


def test_the_html_report_finds_its_templates_in_a_zip(tmp_path: Path) -> None:
    """By a path with dots in it too, where Jinja2's own loader finds none."""
    path = tmp_path / "real" / "packages.zip"
    path.parent.mkdir()
    root = Path(__file__).parents[2]
    with zipfile.ZipFile(path, "w") as archive:
        for file in (
            one for one in (root / "jwt_column").rglob("*") if one.suffix in (".py", ".html", ".css")
        ):
            archive.write(file, file.relative_to(root))
    program = (
        "from datetime import UTC, datetime\n"
        "from jwt_column.auditing import AuditReport\n"
        "from jwt_column.auditing.html import render_html\n"
        "print(render_html(AuditReport(datetime.now(UTC), 'sqlite://', False, None, 0.0, (), ()))[:15])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment({"PYTHONPATH": str(tmp_path / "real" / ".." / "real" / "packages.zip")}),
        check=False,
    )
    assert (done.stdout, done.stderr) == ("<!doctype html>\n", "")


def test_help_survives_the_removal_of_docstrings() -> None:
    done = run("keys", "check", "--help", fresh=True, PYTHONOPTIMIZE="2")
    assert "Check that a ring loads" in done.stdout
    assert "every key unwraps" in run("keys", "--help", fresh=True, PYTHONOPTIMIZE="2").stdout


def test_a_shell_completes_commands_and_options() -> None:
    """As Bash calls it."""
    cases = {
        "jwt-column reen": "reencrypt",
        "jwt-column keys re": "rewrap",
        "jwt-column audit --ret": "--retired",
    }
    for words, expected in cases.items():
        number = str(len(words.split()) - 1)
        done = run(_JWT_COLUMN_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=number)
        assert expected in done.stdout


# -- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), ExitCode.USAGE),
        (MissingExtraError("x"), ExitCode.USAGE),
        (KeyRingError("x"), ExitCode.USAGE),
        (DecryptionError("x"), ExitCode.FAILURE),
        (ReencryptionError("x"), ExitCode.FAILURE),
        (JWTColumnError("x"), ExitCode.FAILURE),
    ],
)
def test_exit_codes(error: JWTColumnError, code: ExitCode, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_error(error) is code
    assert capsys.readouterr() == ("", "jwt-column: x\n")


def test_an_error_is_one_line_whatever_its_length_and_marks(capsys: pytest.CaptureFixture[str]) -> None:
    text = "sessions.token: [bold]no markup[/bold] :smile: " + "a long explanation " * 20
    print_error(JWTColumnError(f"{text}\n and a second line"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"jwt-column: {text.strip()} and a second line\n"


def test_our_errors_end_a_command_with_their_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise DecryptionError("sessions.token: it does not open")

    monkeypatch.setattr("jwt_column.cli.keys.making.generate_key", refuse)
    result = keys("generate")
    assert (result.exit_code, result.stdout) == (ExitCode.FAILURE, "")
    assert result.stderr == "jwt-column: sessions.token: it does not open\n"


# -- the console ---------------------------------------------------------------------------------------------


def test_a_pipe_is_80_columns_wide_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_console().width == 80
    monkeypatch.setenv("COLUMNS", "60")
    assert make_console().width == 60


def test_marks_are_words_where_the_encoding_has_no_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    console = make_console()
    monkeypatch.setattr(cli_console, "is_utf8", lambda _: False)
    assert [mark(console, ok=ok).plain for ok in (True, False)] == ["ok", "FAILED"]
    monkeypatch.setattr(cli_console, "is_utf8", lambda _: True)
    assert [mark(console, ok=ok).plain for ok in (True, False)] == ["✓", "✗"]


def test_the_encoding_is_that_of_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, expected in (("utf-8", True), ("ascii", False)):
        with (tmp_path / "out").open("w", encoding=encoding) as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            assert is_utf8(make_console()) is expected


# -- keys generate -------------------------------------------------------------------------------------------


def test_generate_prints_one_key_and_nothing_else() -> None:
    done = run("keys", "generate")
    assert (done.returncode, done.stderr) == (0, "")
    assert KEY.fullmatch(done.stdout.removesuffix("\n"))
    assert len(KeyRing([done.stdout.strip()]).key_ids) == 1
    assert run("keys", "generate").stdout != done.stdout


@pytest.mark.parametrize("count", [1, 3])
def test_generated_keys_are_what_the_environment_variable_takes(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = keys("generate", "--count", str(count))
    assert (result.exit_code, result.stderr) == (0, "")
    monkeypatch.setenv("JWT_COLUMN_KEYS", result.stdout.strip())
    ring = KeyRing.from_uri("env:JWT_COLUMN_KEYS")
    assert len(ring.key_ids) == count
    assert ring.active == KeyRing([result.stdout.split(",")[0].strip()]).active


def test_a_hint_is_for_terminals() -> None:
    done = run_in_terminal("keys", "generate")
    key, *hint = [line for line in done.lines if line]
    assert done.returncode == 0
    assert KEY.fullmatch(key)
    assert "export JWT_COLUMN_KEYS=$(jwt-column keys generate)" in "\n".join(hint)
    assert max(map(len, hint)) <= 80


def test_generate_writes_a_key_file(tmp_path: Path) -> None:
    path = tmp_path / "my keys.txt"
    done = keys("generate", "--file", str(path), "--count", "2")
    assert (done.exit_code, done.stderr) == (0, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    ring = KeyRing(written)
    assert len(written) == 2
    assert not any(key in done.stdout for key in written)
    assert f"{ring.active}  active\n" in done.stdout
    assert f"{ring.key_ids[1]}  decrypts only\n" in done.stdout
    (uri,) = re.findall(r"export JWT_COLUMN_KEYRING=(\S+)", done.stdout)
    assert KeyRing.from_uri(uri).key_ids == ring.key_ids


def test_generate_replaces_no_file(tmp_path: Path) -> None:
    path = tmp_path / "jwt.keys"
    first = keys("generate", "--file", str(path))
    before = path.read_text()
    second = keys("generate", "--file", str(path))
    assert (first.exit_code, second.exit_code) == (0, ExitCode.USAGE)
    assert second.stdout == ""
    assert second.stderr == f"jwt-column: {path} exists; its keys would be lost, so it is not replaced\n"
    assert path.read_text() == before


def test_generate_says_why_a_file_cannot_be_written(tmp_path: Path) -> None:
    done = keys("generate", "--file", str(tmp_path / "missing" / "jwt.keys"))
    assert done.exit_code == ExitCode.USAGE
    assert done.stdout == ""
    assert re.fullmatch(r"jwt-column: .*cannot be written.*\n", done.stderr)


def test_generate_looks_at_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_another_key(path: Path, keys: list[str]) -> None:
        path.touch(mode=0o600)
        path.write_text(f"{'A' * 43}\n")

    monkeypatch.setattr("jwt_column.cli.keys.making.write_key_file", write_another_key)
    result = keys("generate", "--file", str(tmp_path / "jwt.keys"))
    assert result.exit_code == ExitCode.USAGE
    assert "does not hold the keys that were written" in result.stderr


@pytest.mark.parametrize("count", ["0", "101"])
def test_the_number_of_keys_has_limits(count: str) -> None:
    assert keys("generate", "--count", count).exit_code == ExitCode.USAGE


def test_typer_shows_no_locals_itself() -> None:
    assert isinstance(app, typer.Typer)
    assert not app.pretty_exceptions_enable
    assert not app.pretty_exceptions_show_locals
