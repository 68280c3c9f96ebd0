"""What an application's tests get, used as they would."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from jwt_column import (
    ConfigurationError,
    EncryptedJWT,
    KeyRing,
    KeyUnavailableError,
    generate_key,
    purge_expired,
    set_default_keyring,
)
from jwt_column.keys.default import explicit_default
from jwt_column.providers import open_wrapper
from jwt_column.testing import FakeKEK, assert_encrypted, fake_kek, throwaway_keyring
from tests.support.command_line import keys_output
from tests.support.models import mapped
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from pathlib import Path


Login = mapped("logins", token=EncryptedJWT(expose_expiry=True))


@pytest.fixture(autouse=True)
def tables(request: pytest.FixtureRequest) -> None:
    """The table, for the tests that take an engine."""
    if "engine" in request.fixturenames:
        Login.metadata.create_all(request.getfixturevalue("engine"))


def store_raw(engine: sa.Engine, value: bytes) -> None:
    raw = sa.Table("logins", sa.MetaData(), sa.Column("token", sa.LargeBinary))
    with engine.begin() as connection:
        connection.execute(raw.insert(), {"token": value})


def test_encrypted_rows_pass(engine: sa.Engine, jwt_column_keyring: KeyRing) -> None:
    with Session(engine) as session:
        session.add_all([Login(token=signed_token()), Login(token=None)])
        session.flush()
        assert_encrypted(session, Login.token)
        assert_encrypted(session.connection(), Login.__table__.c.token)
        session.commit()
    assert_encrypted(engine, Login.token)
    with pytest.raises(AssertionError, match="1 row is encrypted, and the test expects 2"):
        assert_encrypted(engine, Login.token, at_least=2)


def test_plaintext_fails_and_is_not_shown(engine: sa.Engine, jwt_column_keyring: KeyRing) -> None:
    token = signed_token()
    store_raw(engine, token.encode())
    with pytest.raises(
        AssertionError, match=r"Model\.token: 0 rows are encrypted; not so: 1 plaintext"
    ) as caught:
        assert_encrypted(engine, Login.token)
    assert token[:10] not in str(caught.value)


def test_other_bytes_fail(engine: sa.Engine, jwt_column_keyring: KeyRing) -> None:
    store_raw(engine, b"\x00anything")
    with pytest.raises(AssertionError, match="1 unreadable"):
        assert_encrypted(engine, Login.token)


def test_an_empty_table_proves_nothing(engine: sa.Engine, jwt_column_keyring: KeyRing) -> None:
    with pytest.raises(AssertionError, match="0 rows are encrypted, and the test expects 1"):
        assert_encrypted(engine, Login.token)
    assert_encrypted(engine, Login.token, at_least=0)


def test_a_key_that_the_ring_lacks_fails(engine: sa.Engine) -> None:
    with throwaway_keyring(), Session(engine) as session:
        session.add(Login(token=signed_token()))
        session.commit()
    with throwaway_keyring(), pytest.raises(AssertionError, match=r"1 under the unknown key [0-9a-f]{8}"):
        assert_encrypted(engine, Login.token)


def test_an_asynchronous_session_runs_it_and_nothing_asynchronous_is_taken(
    jwt_column_keyring: KeyRing,
) -> None:
    async def program() -> None:
        engine = create_async_engine("sqlite+aiosqlite://")
        async with engine.begin() as connection:
            await connection.run_sync(Login.metadata.create_all)
            with pytest.raises(ConfigurationError, match="takes no AsyncConnection"):
                assert_encrypted(connection, Login.token)  # type: ignore[arg-type]
        async with AsyncSession(engine) as session:
            session.add(Login(token=signed_token()))
            await session.flush()
            await session.run_sync(assert_encrypted, Login.token)
            for function in (assert_encrypted, purge_expired):
                for bind in (engine, session):
                    with pytest.raises(ConfigurationError, match=rf"run_sync\({function.__name__}, \.\.\.\)"):
                        function(bind, Login.token)  # type: ignore[arg-type]
        await engine.dispose()

    asyncio.run(program())


def test_the_former_default_comes_back() -> None:
    ring = KeyRing([generate_key()])
    set_default_keyring(ring)
    with throwaway_keyring(keys=2) as inner:
        assert explicit_default() is inner
        assert len(inner.key_ids) == 2
    assert explicit_default() is ring


def test_a_ring_is_wrapped_by_the_fake_kek(jwt_column_fake_kek: FakeKEK, tmp_path: Path) -> None:
    path = tmp_path / "ring.json"
    keys_output("init", "--file", str(path), "--wrapped-by", jwt_column_fake_kek.uri)
    jwt_column_fake_kek.unwrapped = 0
    ring = KeyRing.from_uri(f"file:{path}", keks=[jwt_column_fake_kek.uri])
    assert len(ring.key_ids) == jwt_column_fake_kek.wrapped == jwt_column_fake_kek.unwrapped == 1

    jwt_column_fake_kek.is_available = False
    with pytest.raises(KeyUnavailableError) as caught:
        KeyRing.from_uri(f"file:{path}", keks=[jwt_column_fake_kek.uri])
    assert caught.value.retryable


def test_the_scheme_is_gone_afterwards() -> None:
    """The control: outside a test no ring can name the fake KEK."""
    with fake_kek() as kek:
        uri = kek.uri
    with pytest.raises(ConfigurationError, match="no provider"):
        open_wrapper(uri)
