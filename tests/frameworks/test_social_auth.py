"""python-social-auth: the tokens that its backends keep in ``extra_data``."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

pytestmark = pytest.mark.frameworks
pytest.importorskip("social_sqlalchemy.storage", reason="needs the extra test-frameworks")

import sqlalchemy as sa  # noqa: E402
from social_sqlalchemy.storage import SQLAlchemyUserMixin  # noqa: E402
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship  # noqa: E402

from jwt_column import KeyRing, set_default_keyring  # noqa: E402
from jwt_column.frameworks.mixins import SocialUserMixin  # noqa: E402
from jwt_column.testing import assert_encrypted  # noqa: E402
from tests.frameworks.tokens import OTHER, TOKEN, shows  # noqa: E402


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


def test_a_backend_stores_merges_and_reads_its_tokens() -> None:
    set_default_keyring(KeyRing.generate())
    engine = sa.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        UserSocialAuth.session = session
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
