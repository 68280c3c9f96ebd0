"""A run over a column that is bound to values of its row keeps every envelope bound to its own row."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy import Engine, Integer, LargeBinary, String, Uuid, column, select, text
from sqlalchemy.orm import Session

from jwt_column import (
    ConfigurationError,
    EncryptedJWT,
    KeyRing,
    ReencryptionError,
    set_default_keyring,
)
from migrations_helpers import reencrypt
from migrations_helpers.engine.conversions import Adoption, Decryption
from migrations_helpers.engine.options import Options
from migrations_helpers.engine.reencryption import convert_column
from migrations_helpers.engine.reflection import Subject
from tests.support.models import mapped, session_on, table_of
from tests.support.tokens import signed_token

FIRST_KEY = bytes(range(32))
SECOND_KEY = bytes(range(1, 33))
OLD = KeyRing([FIRST_KEY])
NEW = OLD.with_key(SECOND_KEY).with_active(KeyRing([SECOND_KEY]).active)
BOUND_TO = ("user_id", "number", "realm")


Login = mapped(user_id=Uuid, number=Integer, realm=String(20), token=EncryptedJWT(bound_to=BOUND_TO))


def bound_type() -> EncryptedJWT:
    return EncryptedJWT(bound_to=BOUND_TO)


@pytest.fixture
def tokens(engine: Engine) -> dict[int, str]:
    """Five rows under the old key, and the new key active."""
    set_default_keyring(OLD)
    made = {number: signed_token(jti=str(number)) for number in range(1, 6)}
    rows = [
        Login(id=number, user_id=uuid.UUID(int=number), number=number, realm="web", token=token)
        for number, token in made.items()
    ]
    with session_on(engine, *rows):
        set_default_keyring(NEW)
    return made


def stored_tokens(engine: Engine) -> dict[int, str]:
    with Session(engine) as session:
        return {row.id: str(row.token) for row in session.scalars(select(Login))}


@pytest.mark.parametrize("strategy", ["auto", "cas"])
def test_every_row_opens_beside_its_own_values(engine: Engine, tokens: dict[int, str], strategy: str) -> None:
    report = reencrypt(
        engine, "logins", "token", type_=bound_type(), nice=0, strategy=strategy, verify="decrypt"
    )
    assert (report.reencrypted, report.verified) == (5, 5)
    set_default_keyring(NEW)
    assert stored_tokens(engine) == tokens


@pytest.mark.parametrize("strategy", ["auto", "cas"])
def test_row_whose_bound_value_changed_is_listed_and_left(
    engine: Engine, tokens: dict[int, str], strategy: str
) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE logins SET number = 77 WHERE id = 3"))
    with pytest.raises(ReencryptionError) as caught:
        reencrypt(engine, "logins", "token", type_=bound_type(), nice=0, strategy=strategy)
    report = caught.value.report
    assert report is not None
    assert (report.reencrypted, report.undecryptable) == (4, [3])  # type: ignore[attr-defined]
    with engine.begin() as connection:
        connection.execute(text("UPDATE logins SET number = 3 WHERE id = 3"))
    assert (
        reencrypt(engine, "logins", "token", type_=bound_type(), nice=0, strategy=strategy).reencrypted == 1
    )
    assert stored_tokens(engine) == tokens


def test_type_without_the_binding_reads_no_row(engine: Engine, tokens: dict[int, str]) -> None:
    """The control: the rows are really bound, so a run that does not know it can open none."""
    with pytest.raises(ReencryptionError) as caught:
        reencrypt(engine, "logins", "token", type_=EncryptedJWT(), nice=0)
    assert caught.value.report.undecryptable_count == len(tokens)  # type: ignore[attr-defined]


def test_dry_run_opens_bound_rows(engine: Engine, tokens: dict[int, str]) -> None:
    report = reencrypt(engine, "logins", "token", type_=bound_type(), dry_run=True)
    assert (report.reencrypted, report.undecryptable_count, report.remaining) == (5, 0, 5)


def test_bound_rows_become_plaintext_again(engine: Engine, tokens: dict[int, str]) -> None:
    type_ = bound_type().in_context("logins.token")
    report = convert_column(
        engine, Subject("logins", "token", type_), Decryption, Options(nice=0, verify="decrypt")
    )
    assert report.reencrypted == len(tokens)
    with engine.connect() as connection:
        found = connection.execute(text("SELECT id, token FROM logins")).all()
    assert {row.id: bytes(row.token).decode() for row in found} == tokens


def test_adoption_of_a_bound_column_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="bound to user_id"):
        Adoption(bound_type().in_context("logins.token"), column("token"))


def test_unknown_bound_column_is_named(memory: Engine) -> None:
    table_of(LargeBinary, name="logins").create(memory)
    with pytest.raises(ReencryptionError, match=r"logins\.user_id"):
        reencrypt(memory, "logins", "token", type_=bound_type())
