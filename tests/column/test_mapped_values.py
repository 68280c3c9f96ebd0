"""A mapped value is a JWT, and its repr is redacted, however it came to the object."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from jwt_column import JWT, EncryptedJWT, KeyRing
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Iterator

RING = KeyRing.generate()
TOKEN, OTHER = signed_token(sub="alice"), signed_token(sub="bob")


class Base(DeclarativeBase):
    """The models of these tests."""


class Login(Base):
    """A row with a token that is assigned, and two that the column makes."""

    __tablename__ = "logins"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str | None]
    token: Mapped[JWT | None] = mapped_column("secret", EncryptedJWT(RING))
    made: Mapped[JWT] = mapped_column(EncryptedJWT(RING), default=lambda: str(TOKEN))
    renewed: Mapped[JWT | None] = mapped_column(EncryptedJWT(RING), onupdate=lambda: str(OTHER))


class Special(Login):
    """A subclass in the same table."""


@pytest.fixture
def session() -> Iterator[Session]:
    """A session with one login, and its object."""
    engine = sa.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine, expire_on_commit=False) as session:
        session.add_all([Login(id=1, token=TOKEN), Special(id=2, token=TOKEN)])
        session.flush()
        yield session
    engine.dispose()


def assert_jwt(value: Any, expected: str) -> None:
    """Refuse a plain text, whose repr would show the token."""
    assert (JWT, expected) == (type(value), value)
    assert expected not in repr(value)


@pytest.mark.parametrize("number", [1, 2])
class TestValues:
    """Ways by which SQLAlchemy fills an attribute without an assignment."""

    def test_default_of_the_column(self, session: Session, number: int) -> None:
        assert_jwt(session.get_one(Login, number).made, TOKEN)

    def test_onupdate_of_the_column(self, session: Session, number: int) -> None:
        login = session.get_one(Login, number)
        login.note = "changed"
        session.flush()
        assert_jwt(login.renewed, OTHER)

    @pytest.mark.parametrize("how", ["evaluate", "fetch", "auto"])
    def test_bulk_update(self, session: Session, how: str, number: int) -> None:
        login = session.get_one(Login, number)
        update = sa.update(Login).where(Login.id == number).values(token=str(OTHER))
        session.execute(update.execution_options(synchronize_session=how))
        assert_jwt(login.token, OTHER)

    def test_query_update(self, session: Session, number: int) -> None:
        login = session.get_one(Login, number)
        session.query(Login).filter_by(id=number).update(
            {"token": str(OTHER)}, synchronize_session="evaluate"
        )
        assert_jwt(login.token, OTHER)

    def test_bulk_update_by_primary_key(self, session: Session, number: int) -> None:
        login = session.get_one(Login, number)
        session.execute(sa.update(Login), [{"id": number, "token": str(OTHER)}])
        assert_jwt(login.token, OTHER)

    def test_refresh_merge_and_pickle(self, session: Session, number: int) -> None:
        login = session.get_one(Login, number)
        session.refresh(login)
        assert_jwt(login.token, TOKEN)
        merged = session.merge(type(login)(id=number, token=OTHER))
        assert_jwt(merged.token, OTHER)
        session.flush()
        assert_jwt(pickle.loads(pickle.dumps(merged)).token, OTHER)

    def test_insert_that_returns_the_object(self, session: Session, number: int) -> None:
        statement = sa.insert(Login).returning(Login)
        (login,) = session.scalars(statement, [{"id": 10 * number, "token": str(OTHER)}]).all()
        assert_jwt(login.token, OTHER)
        assert_jwt(login.made, TOKEN)


def test_without_the_listener_a_plain_text_stays(session: Session) -> None:
    """The control: an attribute of plain text, synchronized the same way."""
    login = session.get_one(Login, 1)
    session.execute(sa.update(Login).where(Login.id == 1).values(note=str(OTHER)))
    assert type(login.note) is str
