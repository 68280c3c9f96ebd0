"""What saves time is alive, and what it skips is still refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect

from jwt_column import (
    AuthenticationError,
    DecryptionError,
    EncryptedJWT,
    KeyRing,
    SealedJWT,
    encrypt_token,
)
from jwt_column.column.binding import binding_of
from jwt_column.column.cipher import TokenCipher
from jwt_column.column.expiry import ExpiryTime
from jwt_column.format.shape import shape_of
from tests.support.models import mapped, session_on, table_of
from tests.support.raw import raw_table
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Callable

RING = KeyRing.generate()
TOKENS = [signed_token(sub="alice", jti=str(number)) for number in range(10)]
DIALECT = DefaultDialect()

LAYOUTS: list[dict[str, Any]] = [{}, {"storage": "text"}, {"fingerprints": ["jti"], "expose_expiry": True}]


Grant = mapped("grants", owner=sa.Integer, token=EncryptedJWT(RING, bound_to=["owner"]))


def processors(**options: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return the functions by which a column binds and loads a value."""
    type_ = EncryptedJWT(RING, context="t.token", **options)
    return type_.bind_processor(DIALECT), type_.result_processor(DIALECT, None)


@pytest.mark.parametrize("options", LAYOUTS, ids=["binary", "text", "fields"])
def test_rows_after_the_first_are_opened_by_what_it_left(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bind, load = processors(**options)
    stored = [bind(token) for token in TOKENS]
    first = TokenCipher._open_first
    calls = []

    def count(self: TokenCipher, *given: Any) -> Any:
        calls.append(given)
        return first(self, *given)

    monkeypatch.setattr(TokenCipher, "_open_first", count)
    assert [load(value) for value in stored] == TOKENS
    assert len(calls) == 1
    resealed = [
        TokenCipher(EncryptedJWT(context="t.token", **options).spec).resealer(RING)(value)
        for value in stored[:2]
    ]
    assert [load(value) for value in resealed] == TOKENS[:2]


def test_token_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One under a header that was not seen before goes through the whole check, and only that one."""
    calls = []

    def count(token: str) -> Any:
        calls.append(token)
        return shape_of(token)

    monkeypatch.setattr("jwt_column.column.cipher.shape_of", count)
    bind, _ = processors()
    for number in range(5):
        bind(signed_token(sub="bob", jti=f"unseen {number}"))
    assert len(calls) <= 1


def test_token_that_was_checked_at_its_assignment_is_not_packed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cipher = EncryptedJWT(RING, context="t.token").cipher()
    checked = [cipher.check(token, keep_frame=True) for token in TOKENS]
    calls = []
    monkeypatch.setattr("jwt_column.column.cipher.pack_signed", lambda *given: calls.append(given))
    stored = [cipher.encrypt(token, RING) for token in checked]
    assert not calls
    assert [cipher.load(value, RING) for value in stored] == TOKENS
    # The control: a frame is kept for one time.
    cipher.encrypt(checked[0], RING)
    assert len(calls) == 1


def test_statement_is_compiled_once_and_rings_do_not_share_it(memory: sa.Engine) -> None:
    others = [KeyRing.generate() for _ in range(2)]
    cache: dict[Any, Any] = {}
    with memory.connect().execution_options(compiled_cache=cache) as connection:
        tables = [table_of(EncryptedJWT(ring)) for ring in others]
        tables[0].create(connection)
        cache.clear()
        for first, table in ((0, tables[0]), (100, tables[1])):
            for number, token in enumerate(TOKENS, first):
                connection.execute(sa.insert(table).values(id=number, token=token))
        assert len(cache) == 2


def test_no_row_of_a_bound_column_takes_a_select_of_its_own(memory: sa.Engine) -> None:
    statements: list[str] = []
    rows = [Grant(id=number, owner=number, token=token) for number, token in enumerate(TOKENS)]
    with session_on(memory, *rows) as session:
        session.expunge_all()
        sa.event.listen(memory, "before_cursor_execute", lambda *given: statements.append(given[2]))
        assert [grant.token for grant in session.scalars(sa.select(Grant).order_by(Grant.id))] == TOKENS
    assert len(statements) == 1


def test_unbound_envelope_does_not_open_in_a_bound_row(memory: sa.Engine) -> None:
    """One of the same context, made without the values of any row, would open in every row."""
    with session_on(memory, Grant(id=1, owner=7, token=TOKENS[0])) as session:
        unbound = encrypt_token(TOKENS[1], RING, context="grants.token")
        session.execute(raw_table(Grant.__table__).insert().values(id=2, owner=8, token=unbound))
        session.commit()
        assert TOKENS[0] == session.get_one(Grant, 1).token
        with pytest.raises(AuthenticationError):
            session.get(Grant, 2)


@pytest.mark.parametrize("options", LAYOUTS, ids=["binary", "text", "fields"])
@pytest.mark.parametrize("length", [5, 6, 17, 18, 20, 29, 40, 60])
def test_row_that_was_cut_off_is_refused_after_rows_that_were_good(
    options: dict[str, Any], length: int
) -> None:
    bind, load = processors(**options)
    _, seal = processors(**options, undecryptable="sealed")
    stored = [bind(token) for token in TOKENS[:3]]
    for value in stored:
        assert load(value) == seal(value)
    with pytest.raises(DecryptionError):
        load(stored[0][:length])
    assert type(seal(stored[0][:length])) is SealedJWT


def context_of(column: Any) -> str | None:
    context: str | None = column.type.context
    return context


def test_pinned_context_stays_and_a_default_one_follows_the_column() -> None:
    pinned, default = EncryptedJWT(RING, context="old.name"), EncryptedJWT(RING)
    table = sa.Table(
        "t", sa.MetaData(), sa.Column("a", pinned), sa.Column("b", default), sa.Column("c", default)
    )
    assert [context_of(column) for column in table.c] == ["old.name", "t.b", "t.c"]
    copied = table.to_metadata(sa.MetaData(), name="u")
    assert [context_of(column) for column in copied.c] == ["old.name", "u.b", "u.c"]


def test_type_that_a_column_is_given_later_keeps_its_context() -> None:
    column: sa.Column[Any] = sa.Column("token", EncryptedJWT(RING))
    column.type = EncryptedJWT(RING, context="pinned")
    sa.Table("logins", sa.MetaData(), column)
    assert context_of(column) == "pinned"


def test_envelope_of_a_bound_row_outlives_the_buffer_of_its_driver() -> None:
    """It stays closed until its row is known, and psycopg2 and others give a view of memory of their own."""
    type_ = EncryptedJWT(RING, context="t.token", bound_to=["owner"])
    binding = binding_of([("owner", 1)])
    buffer = bytearray(type_.cipher().encrypt(TOKENS[0], RING, binding))  # type: ignore[arg-type]
    sealed = type_.result_processor(DIALECT, None)(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert sealed.reveal(owner=1) == TOKENS[0]


@pytest.mark.parametrize("stored", [b"\xff" * 6, b"\x01" * 5, b"\x01" * 7, b""])
def test_expiry_of_another_length_or_of_all_ones_is_none(stored: bytes) -> None:
    assert ExpiryTime("binary").process_result_value(stored, DIALECT) is None
    assert ExpiryTime("text").process_result_value(stored.hex(), DIALECT) is None
    # The control.
    assert ExpiryTime("binary").process_result_value(bytes(6), DIALECT) is not None
