"""fastapi-users: access tokens in a table whose primary key is not the token."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

pytestmark = pytest.mark.frameworks
pytest.importorskip("fastapi_users", reason="needs the extra test-frameworks")

from fastapi_users import BaseUserManager, UUIDIDMixin, schemas  # noqa: E402
from fastapi_users.authentication.strategy.db import DatabaseStrategy  # noqa: E402
from fastapi_users.db import (  # noqa: E402
    SQLAlchemyBaseOAuthAccountTableUUID,
    SQLAlchemyBaseUserTableUUID,
    SQLAlchemyUserDatabase,
)
from fastapi_users_db_sqlalchemy.access_token import (  # noqa: E402
    SQLAlchemyAccessTokenDatabase,
    SQLAlchemyBaseAccessTokenTableUUID,
)
from sqlalchemy import Index  # noqa: E402
from sqlalchemy.exc import IntegrityError  # noqa: E402
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine  # noqa: E402
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, validates  # noqa: E402

from jwt_column import JWT, EncryptedJWT, FingerprintIndex, KeyRing, set_default_keyring  # noqa: E402
from jwt_column.frameworks.mixins import AccessTokenMixin  # noqa: E402
from jwt_column.testing import assert_encrypted  # noqa: E402


class Base(DeclarativeBase): ...


class OAuthAccount(SQLAlchemyBaseOAuthAccountTableUUID, Base):
    access_token: Mapped[JWT] = mapped_column(EncryptedJWT(allow_opaque=True))
    refresh_token: Mapped[JWT | None] = mapped_column(EncryptedJWT(allow_opaque=True))

    @validates("refresh_token")
    def without_empty_text(self, _name: str, token: str | None) -> str | None:
        return token or None


class User(SQLAlchemyBaseUserTableUUID, Base):
    oauth_accounts: Mapped[list[OAuthAccount]] = relationship(lazy="selectin")


class OAuthAccountRead(schemas.BaseOAuthAccount[uuid.UUID]):
    access_token: JWT
    refresh_token: JWT | None = None


class UserRead(schemas.BaseUser[uuid.UUID]):
    oauth_accounts: list[OAuthAccountRead] = []  # noqa: RUF012


class UserManager(UUIDIDMixin, BaseUserManager[User, uuid.UUID]): ...


class AccessToken(AccessTokenMixin, SQLAlchemyBaseAccessTokenTableUUID, Base): ...


def test_the_columns_of_the_mixin_replace_those_of_the_library() -> None:
    columns = AccessToken.__table__.c
    assert {column.name for column in columns} == {"id", "token", "user_id", "created_at"}
    assert [column.name for column in AccessToken.__table__.primary_key] == ["id"]
    assert [index.name for index in AccessToken.__table__.indexes if index.unique] == ["ux_accesstoken_token"]


@pytest.mark.parametrize(
    ("arguments", "indexes"),
    [
        ((Index("ix_user", "user_id"),), {"ix_user", "ux_access_token"}),
        ({"comment": "tokens"}, {"ux_access_token"}),
        ((FingerprintIndex("mine", "token", unique=True), {"comment": "tokens"}), {"mine"}),
    ],
)
def test_a_class_with_table_arguments_keeps_the_index(arguments: Any, indexes: set[str]) -> None:
    class Mine(DeclarativeBase): ...

    class Access(AccessTokenMixin, Mine):
        __tablename__ = "access"
        __table_args__ = arguments
        user_id: Mapped[int]

    class Child(Access): ...

    class Plain(AccessTokenMixin, Mine):
        __tablename__ = "plain"
        token: Mapped[str] = mapped_column()

    found = Access.__table__.indexes
    assert {index.name for index in found} == indexes
    assert [index.unique for index in found if index.name != "ix_user"] == [True]
    assert not Plain.__table__.indexes


def test_a_strategy_writes_finds_and_destroys_tokens() -> None:
    set_default_keyring(KeyRing.generate())
    asyncio.run(_program())


@pytest.mark.parametrize("refresh_token", ["", None, "1//r"])
def test_a_login_takes_the_refresh_token_that_the_provider_gave(refresh_token: str | None) -> None:
    async def program() -> None:
        engine = create_async_engine("sqlite+aiosqlite://")
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with async_sessionmaker(engine, expire_on_commit=False)() as session:
            manager = UserManager(SQLAlchemyUserDatabase(session, User, OAuthAccount))
            for _ in range(2):
                user = await manager.oauth_callback(
                    "p", "opaque", "account", "a@example.org", refresh_token=refresh_token
                )
                await session.refresh(user)
                [account] = user.oauth_accounts
                assert account.refresh_token == (refresh_token or None)
        await engine.dispose()

    set_default_keyring(KeyRing.generate())
    asyncio.run(program())


def test_a_users_schema_masks_the_tokens_of_the_accounts() -> None:
    account = OAuthAccount(
        id=uuid.uuid4(),
        oauth_name="p",
        access_token="opaque",
        refresh_token="1//r",
        account_id="a",
        account_email="b",
    )
    user = User(
        id=uuid.uuid4(), email="alice@example.org", is_active=True, is_superuser=False, is_verified=True,
        oauth_accounts=[account],
    )  # fmt: skip
    [sent] = UserRead.model_validate(user).model_dump(mode="json")["oauth_accounts"]
    assert (sent["access_token"], sent["refresh_token"]) == ("**********", "**********")

    class OfTheLibrary(schemas.BaseUser[uuid.UUID], schemas.BaseOAuthAccountMixin): ...

    assert "opaque" in OfTheLibrary.model_validate(user).model_dump_json(), "control"


async def _program() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with async_sessionmaker(engine, expire_on_commit=False)() as session:
        user = User(email="alice@example.org", hashed_password="x")
        session.add(user)
        await session.commit()
        database = SQLAlchemyAccessTokenDatabase(session, AccessToken)
        strategy = DatabaseStrategy(database, lifetime_seconds=60)
        token = str(await strategy.write_token(user))
        assert token not in repr(await database.get_by_token(token))
        found = await database.get_by_token(token)
        assert (found.token, found.user_id) == (token, user.id)
        await session.run_sync(assert_encrypted, AccessToken.token)
        assert await database.get_by_token("another") is None
        with pytest.raises(IntegrityError):
            await database.create({"token": token, "user_id": user.id})
        await session.rollback()
        await strategy.destroy_token(token, user)
        assert await database.get_by_token(token) is None
    await engine.dispose()
