"""What type checkers say about an application's programs: nothing about right ones, an error for each slip."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from jwt_column import JWT, EncryptedJWT, KeyRing, MappedToken, token_column
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).parent.parent.parent

RIGHT: Final = """\
from datetime import UTC, datetime
from typing import assert_type

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from jwt_column import JWT, EncryptedJSON, EncryptedJWT, MappedToken, token_column


class Base(DeclarativeBase): ...


class Login(Base):
    __tablename__ = "logins"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: MappedToken[JWT] = token_column(EncryptedJWT(fingerprints=["token", "jti"], expose_expiry=True))
    refresh: MappedToken[JWT | None] = token_column(EncryptedJWT(allow_opaque=True))
    response: MappedToken[dict[str, object]] = token_column(EncryptedJSON())


login = Login(token="eyJ", refresh="1//r")
login.token = "eyJ"
login.token = JWT("eyJ")
login.refresh = None
login.response = {"access_token": "eyJ"}
assert_type(login.token, JWT)
assert_type(Login().refresh, JWT | None)
assert_type(Login.token.key_id, ColumnElement[str | None])
assert_type(Login.token.is_stale, ColumnElement[bool])
assert_type(Login.token.expires_at, ColumnElement[datetime | None])


def find(session: Session) -> JWT | None:
    found = session.scalars(select(Login).where(Login.token == "eyJ", Login.refresh.is_(None))).one()
    assert_type(found.token, JWT)
    session.execute(select(Login.id).where(Login.token.claim("jti") == "x", Login.token.in_(["a"]))).all()
    session.scalars(select(Login.id).where(Login.token.expires_at < datetime.now(UTC)).order_by(Login.token.expires_at))
    return session.scalars(select(Login.token)).first()
"""

WRONG: Final = """\
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jwt_column import JWT, EncryptedJWT, MappedToken, token_column


class Base(DeclarativeBase): ...


class Login(Base):
    __tablename__ = "logins"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: MappedToken[JWT] = token_column(EncryptedJWT(fingerprints=["jti"]))


Login.token.expire_at  # error
Login.token.claims("jti")  # error
Login.token.claim(1)  # error
Login().token = 5  # error
Login().token = None  # error
EncryptedJWT(fingerprint=["jti"])  # error
"""

CHECKERS: Final = {
    "mypy": ("-m", "mypy", "--strict", "--no-incremental"),
    "pyright": ("-m", "pyright", "--pythonpath", sys.executable),
}


def lines_of_errors(command: Sequence[str], program: str, directory: Path) -> set[int]:
    path = directory / "program.py"
    path.write_text(program, encoding="utf-8")
    environment = {**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *command, path.name],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"program\.py:(\d+)(?::\d+)?(?: -|:) error", result.stdout)
    assert bool(found) == bool(result.returncode), result.stdout + result.stderr
    return set(map(int, found))


@pytest.mark.checkers
@pytest.mark.parametrize("checker", CHECKERS)
def test_right_programs_pass_and_each_slip_is_an_error(checker: str, tmp_path: Path) -> None:
    pytest.importorskip(checker, reason=f"needs {checker}")
    assert lines_of_errors(CHECKERS[checker], RIGHT, tmp_path) == set()
    slips = {number for number, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# error")}
    assert lines_of_errors(CHECKERS[checker], WRONG, tmp_path) == slips


@pytest.mark.checkers
@pytest.mark.parametrize("package", ["jwt_column", "migrations_helpers"])
def test_every_public_name_has_a_type(package: str) -> None:
    pytest.importorskip("pyright", reason="needs pyright")
    # pyright asks the first Python on the path where the other packages are.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    result = subprocess.run(
        [sys.executable, "-m", "pyright", "--verifytypes", package, "--ignoreexternal"],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Type completeness score: 100%" in result.stdout, result.stdout


def test_the_annotation_maps_as_mapped_does() -> None:
    class Base(DeclarativeBase): ...

    class Login(Base):
        __tablename__ = "logins"
        id: Mapped[int] = mapped_column(primary_key=True)
        token: MappedToken[JWT] = token_column(EncryptedJWT(KeyRing.generate(), fingerprints=["token"]))
        other: MappedToken[JWT | None] = token_column(EncryptedJWT(KeyRing.generate()))

    columns = Login.__table__.c
    assert (columns.token.nullable, columns.other.nullable) == (False, True)
    login = Login(token=signed_token())
    assert type(login.token) is JWT
    assert "IS NULL" in str(Login.other.is_(None))
    assert Session.object_session(login) is None
