"""``JWT.opaque``: a token that need not be a JWT, with the expiry that came with it."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from jwt_column import JWT, EncryptedJWT, InvalidTokenError, KeyRing, generate_key
from tests.support.tokens import compact, rfc_token, signed_token

EXPIRY = datetime(2033, 5, 18, 3, 33, 20, tzinfo=UTC)  # 2,000,000,000 seconds


@pytest.mark.parametrize("given", [EXPIRY, 2_000_000_000, 2_000_000_000.9, EXPIRY.astimezone()])
def test_the_expiry_is_that_of_the_token(given: Any) -> None:
    token = JWT.opaque("1//refresh-token", expires_at=given)
    assert (token, token.expires_at, repr(token)) == (
        "1//refresh-token",
        EXPIRY,
        "JWT(redacted, 16 characters)",
    )
    assert token.is_expired(at=EXPIRY)
    assert not token.is_expired(at=EXPIRY - timedelta(seconds=1))
    for copied in (copy.copy(token), copy.deepcopy(token), pickle.loads(pickle.dumps(token))):
        assert (copied, copied.expires_at) == (token, EXPIRY)


def test_a_token_without_expiry_never_expires() -> None:
    token = JWT.opaque("1//refresh-token")
    assert (token.expires_at, token.is_expired()) == (None, False)


def test_a_jwt_keeps_its_own_exp() -> None:
    token = JWT.opaque(signed_token(exp=1_000_000_000), expires_at=EXPIRY)
    assert token.expires_at == datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", " x", "x\n", "Bearer x", None, b"x", 1])
def test_what_is_no_token_is_refused(text: Any) -> None:
    with pytest.raises(InvalidTokenError):
        JWT.opaque(text)


@pytest.mark.parametrize(
    "time", [datetime(2033, 5, 18), -1, 2**48, float("nan"), float("inf"), True, "2000000000"]
)
def test_a_time_that_no_envelope_holds_is_refused(time: Any) -> None:
    with pytest.raises(InvalidTokenError) as caught:
        JWT.opaque("1//refresh-token", expires_at=time)
    assert caught.value.reason == "exp"


@pytest.mark.parametrize("storage", ["binary", "text"])
@pytest.mark.parametrize("text", ["1//refresh-token", "abc.def.ghi", rfc_token("A.1 encrypted JWT")])
def test_the_expiry_is_stored_found_by_sql_loaded_and_carried_over(text: str, storage: Any) -> None:
    newest = generate_key()
    old = KeyRing([generate_key()])
    new = old.with_key(newest).with_active(KeyRing([newest]).active)
    type_ = EncryptedJWT(old, allow_opaque=True, expose_expiry=True, storage=storage)
    metadata = sa.MetaData()
    table = sa.Table(
        "logins", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("token", type_)
    )
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(table.insert(), [{"token": JWT.opaque(text, expires_at=EXPIRY)}, {"token": text}])
        loaded = connection.scalars(sa.select(table.c.token).order_by(table.c.id)).all()
        assert [(token, token.expires_at) for token in loaded] == [(text, EXPIRY), (text, None)]
        found = sa.select(table.c.id).where(table.c.token.expires_at == EXPIRY)
        assert connection.scalars(found).all() == [1]
        cipher = table.c.token.type.cipher()  # type: ignore[attr-defined]
        stored = connection.scalars(sa.select(sa.type_coerce(table.c.token, type_.impl))).first()
        assert cipher.decrypt(cipher.resealer(new)(stored), new).expires_at == EXPIRY


def test_the_token_within_a_text_is_found() -> None:
    """What wraps a JWT is opaque to a column; its claims and its expiry are those of the token inside."""
    inner = signed_token(sub="alice", exp=1_900_000_000)
    header, payload, signature = inner.split(".")
    padded = ".".join(one + "=" * (-len(one) % 4) for one in (header, payload, signature))
    jwe = rfc_token("A.1 encrypted JWT")
    for text, expected in (
        (inner, inner),
        (f"{inner}~WyJzYWx0IiwibmFtZSIsInZhbHVlIl0~", inner),
        (f"{inner}~WyJzYWx0IiwibmFtZSIsInZhbHVlIl0~{signed_token(nonce='kb')}", inner),
        (f"ghs_12345_{inner}", inner),
        (f"Bearer {inner}", inner),
        (padded, inner),
        (f"x_{jwe}", jwe),
        (f"not.a.token {inner}", inner),
    ):
        found = JWT.inner(text)
        assert (type(found), found) == (JWT, expected)
    found = JWT.inner(f"ghs_12345_{inner}")
    assert found is not None
    assert found.expires_at == datetime(2030, 3, 17, 17, 46, 40, tzinfo=UTC)
    for nothing in (
        "",
        "opaque",
        "a.b.c",
        f"{header}.{payload}",
        compact({"alg": "none"}, {}) + ".",
        None,
        5,
    ):
        assert JWT.inner(nothing) is None  # type: ignore[arg-type]
