"""A look-up by fingerprint proves nothing until the token is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from jwt_column import AuthenticationError, EncryptedJWT, KeyRing
from jwt_column.format.envelope import split
from tests.support.models import mapped, session_on
from tests.support.tokens import signed_token

RING = KeyRing.generate()


Login = mapped(token=EncryptedJWT(RING, fingerprints=["token"]))


def test_a_header_in_front_of_another_envelope_answers_a_comparison_and_does_not_load(
    memory: sa.Engine,
) -> None:
    """The comparison alone is the control: it answers with the user whose row was changed."""
    presented = signed_token(sub="mallory")
    rows = [Login(id=1, token=signed_token(sub="alice")), Login(id=2, token=presented)]
    with session_on(memory, *rows) as session:
        stored: Any = sa.type_coerce(Login.token, sa.LargeBinary)
        victim, attacker = session.scalars(sa.select(stored).order_by(Login.id)).all()
        end = split(attacker)
        forged = sa.literal(attacker[:end] + victim[end:], sa.LargeBinary)
        session.connection().exec_driver_sql("DELETE FROM logins WHERE id = 2")
        session.execute(sa.text("UPDATE logins SET token = :forged").bindparams(forged=forged.value))
        session.commit()
        assert session.scalars(sa.select(Login.id).where(Login.token == presented)).all() == [1]
        with pytest.raises(AuthenticationError):
            session.scalars(sa.select(Login).where(Login.token == presented)).all()
