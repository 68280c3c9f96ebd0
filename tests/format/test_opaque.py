"""``JWT.opaque``: a token that need not be a JWT, with the expiry that came with it."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from jwt_column import JWT, EncryptedJWT, InvalidTokenError, KeyRing, encrypt_token, generate_key
from tests.support.models import mapped, session_on, store, table_of
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


def test_a_token_that_has_an_expiry_keeps_it() -> None:
    token = JWT.opaque("1//refresh-token", expires_at=EXPIRY)
    assert JWT.opaque(token).expires_at == EXPIRY
    assert JWT.opaque(token, expires_at=1_000_000_000).expires_at == datetime(
        2001, 9, 9, 1, 46, 40, tzinfo=UTC
    )
    assert JWT.opaque(str(token)).expires_at is None  # the control


@pytest.mark.parametrize("bound_to", [(), ("id",)], ids=["free", "bound"])
def test_the_same_token_with_a_later_expiry_is_stored(memory: sa.Engine, bound_to: tuple[str, ...]) -> None:
    """A session that slides: the ORM leaves out a value that equals the loaded one."""
    type_ = EncryptedJWT(KeyRing.generate(), allow_opaque=True, expose_expiry=True, bound_to=bound_to)
    model = mapped(token=type_)
    row = model(id=1, token=JWT.opaque("session-1", expires_at=EXPIRY))
    with session_on(memory, row, expire_on_commit=False) as session:
        session.refresh(row)
        assert (row.token.expires_at, session.scalar(sa.select(model.token.expires_at))) == (EXPIRY, EXPIRY)
        for unchanged in ("session-1", JWT.opaque("session-1"), JWT.opaque("session-1", expires_at=EXPIRY)):
            row.token = unchanged
            assert not session.is_modified(row)  # the control
        later = EXPIRY + timedelta(days=1)
        row.token = JWT.opaque("session-1", expires_at=later)
        session.commit()
        assert session.scalar(sa.select(model.token.expires_at)) == later


@pytest.mark.parametrize("text", ["", " x", "x\n", "Bearer x", "Token\tx", "\u200bx", None, b"x", 1])
def test_what_is_no_token_is_refused(text: Any) -> None:
    with pytest.raises(InvalidTokenError):
        JWT.opaque(text)


@pytest.mark.parametrize(
    "time",
    [datetime(2033, 5, 18), -1, 2_000_000_000_000, 2**48, float("nan"), float("inf"), True, "2000000000"],
)
def test_a_time_that_no_envelope_holds_is_refused(time: Any) -> None:
    with pytest.raises(InvalidTokenError) as caught:
        JWT.opaque("1//refresh-token", expires_at=time)
    assert caught.value.reason == "exp"


@pytest.mark.parametrize("storage", ["binary", "text"])
@pytest.mark.parametrize(
    "text", ["1//refresh-token", "abc.def.ghi", "abc.deg.hik", rfc_token("A.1 encrypted JWT")]
)
def test_the_expiry_is_stored_found_by_sql_loaded_and_carried_over(
    memory: sa.Engine, text: str, storage: Any
) -> None:
    newest = generate_key()
    old = KeyRing([generate_key()])
    new = old.with_key(newest).with_active(KeyRing([newest]).active)
    type_ = EncryptedJWT(old, allow_opaque=True, expose_expiry=True, storage=storage)
    table = table_of(type_, name="logins")
    with memory.begin() as connection:
        store(connection, table, [JWT.opaque(text, expires_at=EXPIRY), text])
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
        # Another token behind one that is not whole, such as the key binding of an SD-JWT.
        f"{header}.{payload} {inner}",
        f"{header}.{payload[:9]}+{payload[9:]}.{signature}~{signed_token(nonce='kb')}",
        None,
        5,
    ):
        assert JWT.inner(nothing) is None  # type: ignore[arg-type]


SIGNED = signed_token(sub="alice", exp=1_900_000_000)


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize(
    "foreign",
    [
        "+",
        "/",
        "%2B",
        "%2f",
        "%252B",
        "\\/",
        "\\u002b",
        "&#43;",
        "&plus;",
        "&#x2F;",
        "=",
        "\u00e9",
        "\u200b",
        "\0",
        "\x7f",
    ],
)
def test_a_token_that_is_not_base64url_is_never_cut(part: int, foreign: str) -> None:
    segments = SIGNED.split(".")
    segments[part] = segments[part][:8] + foreign + segments[part][8:]
    assert JWT.inner(".".join(segments)) is None
    # With a header of its own; without one it is any text.
    expected = None if part else SIGNED
    assert JWT.inner(f"ghs_1_{'.'.join(segments)} and {SIGNED}") == expected


@pytest.mark.parametrize("wrap", ["\n", "\r\n", "\n    ", "\\n"])
def test_a_token_over_two_lines_is_never_cut(wrap: str) -> None:
    for place in (20, len(SIGNED) - 30, len(SIGNED) - 3):
        wrapped = SIGNED[:place] + wrap + SIGNED[place:]
        assert JWT.inner(wrapped) is None
        assert JWT.inner(f'{{"token": "{wrapped}"}}') is None


@pytest.mark.parametrize(
    "after",
    [
        " ",
        "\n",
        "\r\nHost: x",
        "\nthe next line",
        f"\n{signed_token(sub='bob')}",
        "~",
        ".",
        ", and",
        '"',
        "\u201d",
        ")",
        "&b=c",
        ".x",
    ],
)
def test_what_follows_a_whole_token_is_left_out(after: str) -> None:
    assert JWT.inner(SIGNED + after) == SIGNED


# -- characters that nobody sees ---------------------------------------------------------------------------------------

UNSEEN = [
    "\t",
    "\n",
    "\r\n",
    "\0",
    "\x1b",
    "\x7f",
    "\x85",
    "\u200b",
    "\u2060",
    "\ufeff",
    "\u2028",
    "\u00ad",
    "\u202e",
    "\u00a0",
]


@pytest.mark.parametrize("unseen", UNSEEN)
def test_an_opaque_token_holds_no_character_that_nobody_sees(memory: sa.Engine, unseen: str) -> None:
    text = f"1//refresh{unseen}token"
    type_ = EncryptedJWT(KeyRing.generate(), allow_opaque=True)
    model = mapped(token=type_)
    with memory.begin() as connection:
        model.metadata.create_all(connection)
        for store_it in (
            lambda: JWT.opaque(text),
            lambda: model(token=text),
            lambda: connection.execute(sa.insert(model).values(id=1, token=text)),
            lambda: encrypt_token(text, KeyRing.generate(), context="c", allow_opaque=True),
        ):
            with pytest.raises(InvalidTokenError, match="a line break, a tab, another control") as caught:
                store_it()
            assert caught.value.reason == "control character"
            assert "refresh" not in str(caught.value)


@pytest.mark.parametrize("text", ["a b", "\u00fcber", "\u30c8\u30fc\u30af\u30f3", "x" * 5, "a+/=~._-"])
def test_every_other_opaque_token_is_taken(text: str) -> None:
    assert JWT.opaque(text) == text


@pytest.mark.parametrize("storage", ["binary", "text"])
def test_a_stored_token_with_such_a_character_is_loaded_and_reencrypted(
    memory: sa.Engine, storage: Any
) -> None:
    """An earlier release took it. In the clear it is read, too, but not adopted."""
    newest = generate_key()
    old = KeyRing([generate_key()])
    new = old.with_key(newest).with_active(KeyRing([newest]).active)
    type_ = EncryptedJWT(old, allow_opaque=True, storage=storage, plaintext="read")
    table = table_of(type_, name="logins")
    text = "one\ttwo\u200b\nthree"
    cipher = table.c.token.type.cipher()  # type: ignore[attr-defined]
    stored = cipher.seal(b"\x00" + text.encode(), None, None, None, old.encrypting_key(), b"")
    raw = table_of(type_.impl, name="logins")
    with memory.begin() as connection:
        raw.create(connection)
        plain = text if storage == "text" else text.encode()
        connection.execute(raw.insert(), [{"id": 1, "token": stored}, {"id": 2, "token": plain}])
        loaded = connection.scalars(sa.select(table.c.token).order_by(table.c.id)).all()
        assert loaded == [text, text]
        # A loaded token may be written back.
        connection.execute(table.update().filter_by(id=1).values(token=loaded[0]))
    assert cipher.decrypt(cipher.resealer(new)(stored), new) == text
    with pytest.raises(InvalidTokenError):
        cipher.check(text)
