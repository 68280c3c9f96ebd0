"""No frame of this package holds a token or a key when an error leaves it: reporters show local variables."""

from __future__ import annotations

import base64
import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

import jwt_column
from jwt_column import (
    JWT,
    EncryptedJSON,
    EncryptedJWT,
    KeyRing,
    decrypt_token,
    encrypt_token,
    generate_key,
    set_default_keyring,
)
from tests.support.models import mapped, table_of
from tests.support.raw import raw_table
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).name
KEY = generate_key()
RING = KeyRing([KEY])
TOKEN = signed_token(jti=os.urandom(16).hex())
STORED: Any = encrypt_token(TOKEN, RING, context="t.token")
TABLE = table_of(EncryptedJWT(RING, fingerprints=["jti"]), name="t")
COLUMN: Any = TABLE.c.token
JSON = EncryptedJSON(RING, context="t.json")
DIALECT = sa.create_engine("sqlite://").dialect
Document = mapped("documents", json=EncryptedJSON(RING), kind=sa.String)

#: A class that inherits the column.
Letter: Any = type("Letter", (Document,), {"__tablename__": None})


def execute(statement: Any, *parameters: Any, stored: Any = None) -> Callable[[], object]:
    """Return the execution of a statement on a table whose one row holds a stored value."""

    def run() -> object:
        engine = sa.create_engine("sqlite://")
        with engine.begin() as connection:
            TABLE.create(connection)
            connection.execute(raw_table(TABLE).insert().values(id=1, token=stored))
            return connection.execute(statement, *parameters).all()

    return run


# What fails in each public name, with a token or a key in its hands. None: an error, or nothing secret is given to it.
FAILURES: dict[str, list[Callable[[], object]] | None] = {
    "JWT": [
        lambda: JWT(f"Bearer {TOKEN}"),
        lambda: JWT(f"{TOKEN}!"),
        lambda: JWT(TOKEN.encode()),  # type: ignore[arg-type]
        lambda: JWT(TOKEN).verify("another key" * 4, ["HS256"]),
    ],
    "encrypt_token": [
        lambda: encrypt_token(f"Bearer {TOKEN}", RING, context="t.token"),
        lambda: encrypt_token(f"{TOKEN}.x", RING, context="t.token"),
        lambda: encrypt_token(TOKEN.encode(), RING, context="t.token"),  # type: ignore[arg-type]
        lambda: encrypt_token(TOKEN, RING, context=""),
        lambda: encrypt_token(TOKEN, None, context="t.token"),  # type: ignore[arg-type]
        lambda: encrypt_token("\ud800" + TOKEN, RING, context="t.token", allow_opaque=True),
    ],
    "decrypt_token": [
        lambda: decrypt_token(TOKEN, RING, context="t.token"),
        lambda: decrypt_token(TOKEN.encode(), RING, context="t.token"),
        lambda: decrypt_token(STORED, RING, context="another.token"),
        lambda: decrypt_token(STORED, KeyRing.generate(), context="t.token"),
        lambda: decrypt_token(STORED[:-1], RING, context="t.token"),
    ],
    "KeyRing": [
        lambda: KeyRing([KEY + "x"]),
        lambda: KeyRing([KEY, KEY]),
        lambda: KeyRing([KEY], active="nothing"),
        lambda: KeyRing(KEY),
        lambda: KeyRing([base64.urlsafe_b64decode(KEY + "=")[:-1]]),
        lambda: RING.with_key(KEY),
        lambda: RING.with_active("nothing"),
    ],
    "EncryptedJWT": [
        execute(TABLE.insert(), {"id": 2, "token": f"Bearer {TOKEN}"}),
        execute(TABLE.insert(), {"id": 2, "token": TOKEN.encode()}),
        execute(TABLE.update().values(token=sa.literal(TOKEN))),
        execute(sa.select(COLUMN), stored=TOKEN.encode()),
        execute(sa.select(COLUMN), stored=STORED[:-1]),
        lambda: COLUMN == TOKEN,
        lambda: COLUMN.in_([TOKEN]),
        lambda: COLUMN.like(TOKEN),
        lambda: COLUMN.claim("jti") == TOKEN.encode(),
        lambda: EncryptedJWT(KEY.encode()),  # type: ignore[arg-type]
    ],
    "EncryptedJSON": [
        lambda: JSON.process_bind_param({"access_token": TOKEN, "scope": {"a"}}, DIALECT),
        lambda: JSON.process_bind_param([TOKEN], DIALECT),
        lambda: JSON.process_bind_param({"access_token": TOKEN, "n": float("nan")}, DIALECT),
        lambda: JSON.process_result_value(TOKEN.encode(), DIALECT),
        lambda: JSON.process_result_value(encrypt_token(TOKEN, RING, context="t.json"), DIALECT),
        lambda: Document(json={"access_token": TOKEN, "n": float("nan")}),
        lambda: Letter(json={"access_token": TOKEN, "n": float("nan")}),
    ],
    "set_default_keyring": [lambda: set_default_keyring(KEY)],  # type: ignore[arg-type]
    "SealedJWT": [
        lambda: (
            EncryptedJWT(KeyRing.generate(), context="t.token", undecryptable="sealed")
            .process_result_value(STORED, sa.create_engine("sqlite://").dialect)
            .reveal()
        ),
    ],
    "token_column": None,
    "MappedToken": None,
    "check_ready": None,
    "FingerprintIndex": None,
    "ExpiryIndex": None,
    "StaleIndex": None,
    "audit": None,
    "check_declarations": None,
    "find_plaintext_tokens": None,
    "generate_key": None,
    "key_usage": None,
    "preflight": None,
    "purge_expired": None,
    "redact_errors": None,
}
NO_ENTRY = {"AuditReport", "Finding", "ScanReport", "Severity"}


def test_every_public_name_is_tried() -> None:
    errors = {name for name in jwt_column.__all__ if name.endswith("Error")}
    assert set(jwt_column.__all__) - errors - NO_ENTRY == set(FAILURES)


def shown(error: BaseException) -> str:
    """Return a report with the local variables of every frame but those of this file, and of every cause."""
    report = ""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        for frame in traceback.TracebackException.from_exception(error, capture_locals=True).stack:
            if Path(frame.filename).name != HERE:
                report += f"{frame.filename} {frame.name} {frame.locals}\n"
        report += str(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return report


def ours(report: str) -> Iterator[str]:
    """Yield the lines of a report that are about frames of this package."""
    yield from (line for line in report.splitlines() if "/jwt_column/" in line.split(" ")[0])


CASES = [(name, number) for name, calls in FAILURES.items() for number in range(len(calls or ()))]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_no_frame_of_ours_holds_a_token_or_a_key(name: str, number: int) -> None:
    with pytest.raises(Exception) as caught:
        (FAILURES[name] or [])[number]()
    report = "\n".join(ours(shown(caught.value)))
    secret = [TOKEN[:60], TOKEN[-20:], KEY[:20], repr(STORED[-16:])[2:-1]]
    assert [one for one in secret if one in report] == [], report


def test_a_frame_that_holds_a_token_is_found() -> None:
    """The control."""

    def fails(token: str) -> None:
        raise ValueError("x")

    with pytest.raises(ValueError, match="x") as caught:
        fails(TOKEN)
    captured = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert any(TOKEN in str(frame.locals) for frame in captured.stack)
