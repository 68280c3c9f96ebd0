"""Make the pictures of README: a terminal as SVG, and the report as PNG. Run it after a change of either.

    python docs/_images/make.py

It needs the extra ``cli``, and Chromium for the report. It works in a temporary directory.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

HERE: Final = Path(__file__).parent
WIDTH: Final = 80
APP: Final = """\
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jwt_column import JWT, EncryptedJWT


class Base(DeclarativeBase): ...


class Session(Base):
    __tablename__ = "sessions"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[JWT] = mapped_column(EncryptedJWT(context="sessions.token"))


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    refresh_token: Mapped[JWT] = mapped_column(EncryptedJWT(context="accounts.refresh_token"))
"""
FILL: Final = """\
import sys
from uuid import uuid4

import jwt
from sqlalchemy import create_engine, insert
from app import Account, Base, Session

engine = create_engine("sqlite:///app.db")
Base.metadata.create_all(engine)
secret = "a secret of thirty-two characters"
with engine.begin() as connection:
    for table, column in ((Session, "token"), (Account, "refresh_token")):
        claims = ({"jti": uuid4().hex, "exp": 4000000000} for _ in range(int(sys.argv[1])))
        rows = [{column: jwt.encode(each, secret)} for each in claims]
        connection.execute(insert(table), rows)
"""
COMMANDS: Final = (
    "jwt-column audit --model app:Base",
    "jwt-column reencrypt --model app:Session.token",
)


def run(command: str, environment: dict[str, str]) -> None:
    """Run a command of the preparation."""
    subprocess.run(["/bin/bash", "-ec", command], env=environment, check=True, stdout=subprocess.DEVNULL)


def on_a_terminal(command: str, environment: dict[str, str]) -> str:
    """Return the output of a command on a terminal, with its colours."""
    master, slave = pty.openpty()
    process = subprocess.Popen(["/bin/bash", "-c", command], env=environment, stdout=slave, stderr=slave)
    os.close(slave)
    output = b""
    while True:
        try:
            part = os.read(master, 65_536)
        except OSError:  # Linux: the last writer has closed the terminal
            break
        if not part:
            break
        output += part
    os.close(master)
    process.wait()
    return _last_state(output.decode())


def _last_state(output: str) -> str:
    """Drop a progress bar, which a terminal overwrites: lines that were erased or returned over."""
    lines = [line.rpartition("\r")[2] for line in output.replace("\r\n", "\n").split("\n")]
    kept: list[str] = []
    for line in lines:
        for _ in range(line.count("\x1b[1A")):
            if kept:
                kept.pop()
        kept.append(re.sub(r"\x1b\[(\d*[A-HJKST]|\?\d+[hl])", "", line))
    return "\n".join(kept)


def terminal_picture(environment: dict[str, str]) -> None:
    """Export the commands and their output as SVG, without the font that Rich would load from another host."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(
            record=True, width=WIDTH, file=nowhere, force_terminal=True, color_system="truecolor"
        )
        for command in COMMANDS:
            console.print(Text("$ ", style="dim") + Text(command, style="bold"))
            console.print(Text.from_ansi(on_a_terminal(command, environment).rstrip("\n")))
            console.print()
    svg = console.export_svg(title="jwt-column", theme=MONOKAI)
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code,", "")
    (HERE / "terminal.svg").write_text(svg, encoding="utf-8")


def report_picture(environment: dict[str, str]) -> None:
    """Take a picture of the top of the report."""
    run(
        "jwt-column audit --model app:Base --deep --operator 'Ada Example, security' --html report.html || true",
        environment,
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options += ["--user-data-dir=profile", "--window-size=1000,800"]
    picture = f"--screenshot={HERE / 'report.png'}"
    subprocess.run(["chromium", *options, picture, "report.html"], check=True, stderr=subprocess.DEVNULL)


def main() -> None:
    """Prepare an application in the middle of a rotation, and take both pictures."""
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        Path("app.py").write_text(APP, encoding="utf-8")
        Path("fill.py").write_text(FILL, encoding="utf-8")
        environment.update(
            PATH=os.pathsep.join((str(Path(sys.executable).parent), environment["PATH"])),
            JWT_COLUMN_KEYRING="file:jwt.keys",
            JWT_COLUMN_DATABASE_URL="sqlite:///app.db",
            COLUMNS=str(WIDTH),
            TERM="xterm-256color",
        )
        run("jwt-column keys generate --file jwt.keys; python fill.py 8000", environment)
        run("(umask 077; { jwt-column keys generate; cat jwt.keys; } > new) && mv new jwt.keys", environment)
        run("python fill.py 2000", environment)
        terminal_picture(environment)
        report_picture(environment)
        os.chdir(HERE)


if __name__ == "__main__":
    main()
