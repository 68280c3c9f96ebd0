"""A look-up by fingerprint proves nothing until the token is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from jwt_column import JWT, AuthenticationError, EncryptedJWT, KeyRing
from jwt_column.format.envelope import split
from tests.support.tokens import signed_token

RING = KeyRing.generate()


class Base(DeclarativeBase):
    pass


class Login(Base):
    __tablename__ = "logins"
    user: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[JWT] = mapped_column(EncryptedJWT(RING, fingerprints=["token"]))


def test_a_header_in_front_of_another_envelope_answers_a_comparison_and_does_not_load() -> None:
    """The comparison alone is the control: it answers with the user whose row was changed."""
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    Base.metadata.create_all(engine)
    presented = signed_token(sub="mallory")
    with Session(engine) as session:
        session.add_all([Login(user=1, token=signed_token(sub="alice")), Login(user=2, token=presented)])
        session.commit()
        table: Any = Login.__table__
        stored: Any = sa.type_coerce(table.c.token, sa.LargeBinary)
        victim, attacker = session.scalars(sa.select(stored).order_by(table.c.user)).all()
        end = split(attacker)
        forged = sa.literal(attacker[:end] + victim[end:], sa.LargeBinary)
        session.connection().exec_driver_sql("DELETE FROM logins WHERE user = 2")
        session.execute(sa.text("UPDATE logins SET token = :forged").bindparams(forged=forged.value))
        session.commit()
        assert session.scalars(sa.select(Login.user).where(Login.token == presented)).all() == [1]
        with pytest.raises(AuthenticationError):
            session.scalars(sa.select(Login).where(Login.token == presented)).all()
