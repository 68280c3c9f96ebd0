"""python-social-auth: the tokens that its backends keep in ``extra_data``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

pytestmark = pytest.mark.frameworks
pytest.importorskip("social_sqlalchemy.storage", reason="needs the extra test-frameworks")

import sqlalchemy as sa  # noqa: E402
from social_sqlalchemy.storage import SQLAlchemyPartialMixin, SQLAlchemyUserMixin  # noqa: E402
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship  # noqa: E402

from jwt_column import EncryptedJSON, KeyRing, set_default_keyring  # noqa: E402
from jwt_column.frameworks.mixins import SocialUserMixin  # noqa: E402
from jwt_column.testing import assert_encrypted  # noqa: E402
from tests.frameworks.tokens import OTHER, TOKEN, shows  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator


class Base(DeclarativeBase): ...


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class UserSocialAuth(SocialUserMixin, SQLAlchemyUserMixin, Base):
    uid: Mapped[str]
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"))
    user: Mapped[User] = relationship()
    session: ClassVar[Any] = None

    @classmethod
    def _session(cls) -> Any:
        return cls.session

    @classmethod
    def user_model(cls) -> type[User]:
        return User


class Partial(SQLAlchemyPartialMixin, Base):
    data: Mapped[dict[str, Any] | None] = mapped_column(EncryptedJSON())
    session: ClassVar[Any] = None

    @classmethod
    def _session(cls) -> Any:
        return cls.session


@pytest.fixture
def session() -> Iterator[Session]:
    """A session that the classes use too."""
    set_default_keyring(KeyRing.generate())
    engine = sa.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        Partial.session = UserSocialAuth.session = session
        yield session


def test_a_partial_pipeline_is_encrypted(session: Session) -> None:
    partial = Partial.prepare("provider", 1, {"args": [1], "kwargs": {"response": {"access_token": TOKEN}}})
    token = Partial.store(partial).token
    Partial.load(token).extend_kwargs({"user": "alice"})
    session.commit()
    session.expire_all()
    found = Partial.load(token)
    assert (found.args, found.kwargs) == ([1], {"response": {"access_token": TOKEN}, "user": "alice"})
    assert_encrypted(session, Partial.data)
    assert not shows(repr(vars(found)))


def test_a_backend_stores_merges_and_reads_its_tokens(session: Session) -> None:
    user = User()
    session.add(user)
    session.commit()
    social = UserSocialAuth.create_social_auth(user, "alice", "provider")
    social.set_extra_data({"access_token": TOKEN, "id": "alice"})
    social.set_extra_data({"access_token": OTHER, "refresh_token": "1//r"})
    session.expire_all()
    found = UserSocialAuth.get_social_auth("provider", "alice")
    assert found.extra_data == {"access_token": OTHER, "id": "alice", "refresh_token": "1//r"}
    assert found.access_token == OTHER
    assert not shows(repr(vars(found)))
    assert_encrypted(session, UserSocialAuth.extra_data)
