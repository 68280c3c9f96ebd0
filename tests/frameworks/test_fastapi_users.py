"""fastapi-users: access tokens in a table whose primary key is not the token."""

from __future__ import annotations

import asyncio

import pytest

pytestmark = pytest.mark.frameworks
pytest.importorskip("fastapi_users", reason="needs the extra test-frameworks")

from fastapi_users.authentication.strategy.db import DatabaseStrategy  # noqa: E402
from fastapi_users.db import SQLAlchemyBaseUserTableUUID  # noqa: E402
from fastapi_users_db_sqlalchemy.access_token import (  # noqa: E402
    SQLAlchemyAccessTokenDatabase,
    SQLAlchemyBaseAccessTokenTableUUID,
)
from sqlalchemy.exc import IntegrityError  # noqa: E402
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine  # noqa: E402
from sqlalchemy.orm import DeclarativeBase  # noqa: E402

from jwt_column import KeyRing, set_default_keyring  # noqa: E402
from jwt_column.frameworks.mixins import AccessTokenMixin  # noqa: E402
from jwt_column.testing import assert_encrypted  # noqa: E402


class Base(DeclarativeBase): ...


class User(SQLAlchemyBaseUserTableUUID, Base): ...


class AccessToken(AccessTokenMixin, SQLAlchemyBaseAccessTokenTableUUID, Base): ...


def test_the_columns_of_the_mixin_replace_those_of_the_library() -> None:
    columns = AccessToken.__table__.c
    assert {column.name for column in columns} == {"id", "token", "user_id", "created_at"}
    assert [column.name for column in AccessToken.__table__.primary_key] == ["id"]
    assert [index.name for index in AccessToken.__table__.indexes if index.unique] == ["ux_accesstoken_token"]


def test_a_strategy_writes_finds_and_destroys_tokens() -> None:
    set_default_keyring(KeyRing.generate())
    asyncio.run(_program())


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
