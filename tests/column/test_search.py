"""Rows are found by the fingerprints of their tokens, under every key of the ring, and nothing shows the token."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, joinedload, mapped_column, relationship

from jwt_column import (
    JWT,
    EncryptedJWT,
    InvalidTokenError,
    KeyRing,
    UnsupportedComparisonError,
    encrypt_token,
    generate_key,
    set_default_keyring,
)
from jwt_column.format import envelope
from tests.support.models import table_of
from tests.support.raw import raw_table
from tests.support.tokens import locals_shown_by, revealed_by, signed_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jwt_column.format.envelope import Storage

pytestmark = pytest.mark.each_server

OLD_KEY, NEW_KEY = generate_key(), generate_key()
OLD = KeyRing([OLD_KEY])
BOTH = KeyRing([NEW_KEY, OLD_KEY])

ALICE = signed_token(sub="alice", jti="a", num=7)
BOB = signed_token(sub="bob", jti="b", num=8)
CAROL = signed_token(sub="carol")  # neither jti nor num
NOBODY = signed_token(sub="nobody", jti="n")


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(20))
    logins: Mapped[list[Login]] = relationship(back_populates="user")


class Login(Base):
    __tablename__ = "logins"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"))
    token: Mapped[JWT | None] = mapped_column(EncryptedJWT(fingerprints=["token", "jti", "num"]))
    second: Mapped[JWT | None] = mapped_column(
        EncryptedJWT(storage="text", expose_expiry=True, fingerprints=["num", "jti", "token"])
    )
    bare: Mapped[JWT | None] = mapped_column(EncryptedJWT())
    user: Mapped[User] = relationship(back_populates="logins")


LOGINS: Any = Login.__table__
TOKENS = {1: ALICE, 2: BOB, 3: CAROL, 4: None}


@pytest.fixture
def session(engine: sa.Engine) -> Iterator[Session]:
    """Rows 1 and 3 under the old key, row 2 under the new one, row 4 without tokens; both keys are in the ring."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([User(id=1, name="one"), User(id=2, name="two")])
        session.flush()
        for ring, ids in ((OLD, (1, 3)), (BOTH, (2, 4))):
            set_default_keyring(ring)
            for id_ in ids:
                session.add(Login(id=id_, user_id=1 + id_ % 2, token=TOKENS[id_], second=TOKENS[id_]))
            session.flush()
        session.commit()
        yield session


CONDITIONS: dict[str, tuple[Callable[[Any], Any], list[int]]] = {
    "eq under the old key": (lambda column: column == ALICE, [1]),
    "eq under the new key": (lambda column: column == BOB, [2]),
    "eq of a JWT": (lambda column: column == JWT(BOB), [2]),
    "eq of another token": (lambda column: column == NOBODY, []),
    "eq of what is no token": (lambda column: column == "x", []),
    "ne": (lambda column: column != ALICE, [2, 3]),
    "ne of another token": (lambda column: column != NOBODY, [1, 2, 3]),
    "not eq": (lambda column: ~(column == ALICE), [2, 3]),
    "not ne": (lambda column: sa.not_(column != ALICE), [1]),
    "in": (lambda column: column.in_([ALICE, BOB, NOBODY]), [1, 2]),
    "in a set": (lambda column: column.in_({ALICE, BOB}), [1, 2]),
    "in nothing": (lambda column: column.in_([]), []),
    "in with NULL": (lambda column: column.in_([ALICE, None]), [1]),
    "not in": (lambda column: column.not_in([ALICE, BOB]), [3]),
    "not in with NULL": (lambda column: column.not_in([ALICE, None]), []),
    "or": (lambda column: sa.or_(column == ALICE, column.is_(None)), [1, 4]),
    "claim eq": (lambda column: column.claim("jti") == "a", [1]),
    "claim eq of an integer": (lambda column: column.claim("num") == 8, [2]),
    "claim eq of its text": (lambda column: column.claim("num") == "8", []),
    "claim ne": (lambda column: column.claim("jti") != "a", [2]),
    "claim not eq": (lambda column: sa.not_(column.claim("jti") == "a"), [2]),
    "claim in": (lambda column: column.claim("jti").in_(["a", "b", "c"]), [1, 2]),
    "claim in with NULL": (lambda column: column.claim("jti").in_(["b", None]), [2]),
    "claim not in": (lambda column: column.claim("jti").not_in(["b"]), [1]),
    "claim is NULL": (lambda column: column.claim("jti").is_(None), [3]),
    "claim == None": (lambda column: column.claim("num") == None, [3]),  # noqa: E711
    "claim is not NULL": (lambda column: column.claim("jti").is_not(None), [1, 2]),
    "not claim is NULL": (lambda column: sa.not_(column.claim("jti").is_(None)), [1, 2]),
    "two claims": (lambda column: (column.claim("jti") == "a") & (column.claim("num") == 7), [1]),
    "two claims of two rows": (lambda column: (column.claim("jti") == "a") & (column.claim("num") == 8), []),
}


def where_each(session: Session, build: Callable[[Any], Any], expected: list[int]) -> None:
    """Try a condition on both storage forms, as ORM, alias, Core, Core alias and subquery."""
    alias, core = aliased(Login), LOGINS.alias("core")
    subquery = sa.select(Login).subquery()
    for name in ("token", "second"):
        for source, id_ in (
            (Login, Login.id),
            (alias, alias.id),
            (LOGINS.c, LOGINS.c.id),
            (core.c, core.c.id),
            (subquery.c, subquery.c.id),
        ):
            found = sa.select(id_).where(build(getattr(source, name))).order_by(id_)
            assert session.scalars(found).all() == expected, (name, source)


@pytest.mark.parametrize("name", CONDITIONS)
def test_rows_are_found_by_their_tokens(session: Session, name: str) -> None:
    build, expected = CONDITIONS[name]
    where_each(session, build, expected)


def test_the_same_conditions_hold_of_a_plain_column(session: Session) -> None:
    """The control: a plain text column gives the same rows for the same comparisons, NULLs among them."""
    plain = sa.Table("plain", sa.MetaData(), sa.Column("id", sa.Integer), sa.Column("token", sa.Text))
    plain.create(session.connection())
    session.execute(plain.insert(), [{"id": id_, "token": token} for id_, token in TOKENS.items()])
    for name, (build, expected) in CONDITIONS.items():
        if "claim" not in name:
            found = sa.select(plain.c.id).where(build(plain.c.token)).order_by(plain.c.id)
            assert session.scalars(found).all() == expected, name


def test_rows_under_a_key_that_left_the_ring_are_neither_equal_nor_different(session: Session) -> None:
    """Whether they are the token cannot be known, and "log out everywhere else" must not delete this session."""
    set_default_keyring(KeyRing([NEW_KEY]))
    where_each(session, lambda column: column == ALICE, [])
    where_each(session, lambda column: column != ALICE, [2])
    where_each(session, lambda column: column.claim("jti") != "x", [2])


@pytest.mark.parametrize("storage", ["binary", "text"])
def test_rows_of_another_layout_or_in_the_clear_are_neither_equal_nor_different(
    engine: sa.Engine, storage: Storage
) -> None:
    type_ = EncryptedJWT(BOTH, storage=storage, fingerprints=["token", "jti"], plaintext="read")
    metadata = sa.MetaData()
    table = sa.Table("t", metadata, sa.Column("id", sa.Integer), sa.Column("token", type_))
    metadata.create_all(engine)
    bare = encrypt_token(ALICE, BOTH, context="t.token", storage=storage)
    clear: Any = ALICE if storage == "text" else ALICE.encode()
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"id": 1, "token": ALICE}, {"id": 2, "token": CAROL}])
        for id_, value in ((3, bare), (4, clear)):
            connection.execute(raw_table(table).insert().values(id=id_, token=value))
        token = table.c.token
        for condition, expected in (
            (token == ALICE, [1]),
            (token != ALICE, [2]),
            (token.claim("jti") == "a", [1]),
            (token.claim("jti") != "b", [1]),
            (token.claim("jti").is_(None), [2]),
            (token.claim("jti").is_not(None), [1]),
            (token.is_plaintext, [4]),
            (token.is_stale, [3]),
        ):
            found = connection.scalars(sa.select(table.c.id).where(condition).order_by(table.c.id)).all()
            assert found == expected, condition


@pytest.mark.parametrize("storage", ["text", "binary"])
def test_any_printable_text_but_an_envelope_can_be_an_opaque_token_in_the_clear(
    engine: sa.Engine, storage: Storage
) -> None:
    """One that begins with a space too, which is the first printable character and pads texts of MariaDB."""
    type_ = EncryptedJWT(BOTH, storage=storage, allow_opaque=True, plaintext="read")
    table = table_of(type_)
    clear = [" a space", " ", "~", "opaque", ALICE, "é"]
    envelopes = [encrypt_token(ALICE, BOTH, context="sessions.token", storage=storage), ""]
    values: list[Any] = [*clear, *envelopes]
    raw = [value.encode() if storage == "binary" and isinstance(value, str) else value for value in values]
    with engine.begin() as connection:
        table.create(connection)
        rows = [{"id": number, "token": value} for number, value in enumerate(raw)]
        connection.execute(raw_table(table).insert(), rows)
        found = sa.select(table.c.id).where(table.c.token.is_plaintext).order_by(table.c.id)
        assert connection.scalars(found).all() == list(range(len(clear)))


def test_joins_subqueries_and_exists(session: Session) -> None:
    is_alice = Login.token == ALICE
    assert session.scalars(sa.select(User.name).join(Login).where(is_alice)).all() == ["two"]
    assert session.scalars(sa.select(User.name).where(User.logins.any(is_alice))).all() == ["two"]
    assert session.scalars(sa.select(User.name).where(~User.logins.any(is_alice))).all() == ["one"]
    by_subquery = sa.select(User.name).where(User.id.in_(sa.select(Login.user_id).where(is_alice)))
    assert session.scalars(by_subquery).all() == ["two"]
    by_exists = sa.select(User.name).where(sa.exists().where(Login.user_id == User.id, is_alice))
    assert session.scalars(by_exists).all() == ["two"]
    other = aliased(Login)
    pairs = sa.select(Login.id, other.id).join(other, sa.and_(is_alice, other.second == BOB))
    assert session.execute(pairs).all() == [(1, 2)]
    assert session.query(Login).filter_by(token=BOB).one().id == 2
    eager = sa.select(User).options(joinedload(User.logins.and_(is_alice))).order_by(User.id)
    assert [len(user.logins) for user in session.scalars(eager).unique()] == [0, 1]


@pytest.mark.parametrize("synchronize", ["auto", "fetch", False])
def test_update_and_delete(session: Session, synchronize: Any) -> None:
    options = {"synchronize_session": synchronize}
    found = session.get_one(Login, 2)
    change = sa.update(Login).where(Login.token == BOB).values(user_id=2)
    session.execute(change.execution_options(**options))
    if synchronize:
        assert found.user_id == 2
    session.execute(sa.delete(Login).where(Login.second != BOB).execution_options(**options))
    assert session.scalars(sa.select(Login.id).order_by(Login.id)).all() == [2, 4]
    session.execute(LOGINS.delete().where(LOGINS.c.token.claim("jti") == "b"))
    assert session.scalars(sa.select(Login.id)).all() == [4]


def test_in_select_and_order_by(session: Session) -> None:
    rows = session.execute(
        sa.select(Login.token == ALICE, Login.id).order_by(Login.token == ALICE, Login.id)
    ).all()
    assert sorted((id_, None if answer is None else bool(answer)) for answer, id_ in rows) == [
        (1, True), (2, False), (3, False), (4, None),
    ]  # fmt: skip


def test_a_statement_is_cached_whatever_is_looked_for(session: Session) -> None:
    """And another ring, or another fingerprint, never gets the values of the first."""
    first = sa.select(Login.id).where(Login.token == ALICE)
    second = sa.select(Login.id).where(Login.token == BOB)
    others = [
        Login.token != ALICE,
        Login.token.claim("jti") == "a",
        Login.second == ALICE,
        ~(Login.token.claim("jti").is_(None)),
        Login.token.claim("jti").is_(None),
    ]
    statements = [first, second, *(sa.select(Login.id).where(other) for other in others)]
    keys = [key.key for one in statements if (key := one._generate_cache_key()) is not None]
    assert len(keys) == len(statements)
    assert len(set(keys)) == len(statements) - 1
    assert [session.scalar(statement) for statement in (first, second, first)] == [1, 2, 1]


def test_census_words_in_sql(session: Session) -> None:
    for column in (Login.token, Login.second):
        key_ids = session.execute(sa.select(Login.id, column.key_id).order_by(Login.id)).all()
        assert key_ids == [(1, OLD.active), (2, BOTH.active), (3, OLD.active), (4, None)]
        stale = session.scalars(sa.select(Login.id).where(column.is_stale).order_by(Login.id)).all()
        assert stale == [1, 3]
        assert session.scalars(sa.select(Login.id).where(sa.not_(column.is_stale))).all() == [2]
        assert session.scalars(sa.select(Login.id).where(column.is_plaintext)).all() == []
    set_default_keyring(OLD)
    assert session.scalars(sa.select(Login.id).where(Login.token.is_stale)).all() == [2]
    by_key = sa.select(Login.token.key_id, sa.func.count()).group_by(Login.token.key_id)
    assert {tuple(row) for row in session.execute(by_key)} == {(OLD.active, 2), (BOTH.active, 1), (None, 1)}


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda column: column == ALICE,
        lambda column: column != ALICE,
        lambda column: column.in_([ALICE]),
        lambda column: column.not_in([]),
    ],
)
def test_equality_without_its_fingerprint_says_what_to_declare(build: Callable[[Any], Any]) -> None:
    with pytest.raises(UnsupportedComparisonError, match=r"fingerprints=\['token'\]") as caught:
        build(Login.bare)
    assert caught.value.context == "logins.bare"
    assert not revealed_by(caught.value, ALICE)


def test_a_claim_without_its_fingerprint_says_what_to_declare() -> None:
    with pytest.raises(UnsupportedComparisonError, match=r"fingerprints=\['token', 'jti', 'num', 'sub'\]"):
        Login.token.claim("sub")
    with pytest.raises(UnsupportedComparisonError, match="the column itself"):
        Login.token.claim("token")


@pytest.mark.parametrize("value", [5, b"eyJ", 1.5, True, ["x"], object(), "\ud800" + ALICE])
def test_another_value_is_refused_and_not_shown(value: Any) -> None:
    for build in (lambda: Login.token == value, lambda: Login.token.in_([ALICE, value])):
        with pytest.raises(UnsupportedComparisonError, match=r"^logins\.token: ") as caught:
            build()
        assert not revealed_by(caught.value, ALICE)


@pytest.mark.parametrize("value", [b"a", 1.5, True, ["x"], "\ud800"])
def test_another_value_of_a_claim_is_refused(value: Any) -> None:
    with pytest.raises(UnsupportedComparisonError, match="a str or an int") as caught:
        Login.token.claim("jti") == value  # noqa: B015
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "build",
    [
        lambda one: one < "a",
        lambda one: one.like("a%"),
        lambda one: one.startswith("a"),
        lambda one: one.is_("a"),
        lambda one: one.is_distinct_from("a"),
        lambda one: one.between("a", "b"),
        lambda one: one + "a",
        lambda one: "a" + one,
        lambda one: one.desc(),
        lambda one: one == Login.token,
        lambda one: one == Login.second.claim("jti"),
        lambda one: one.in_(sa.select(User.name)),
        lambda one: one.in_([User.name]),
    ],
)
def test_a_claim_answers_nothing_else(build: Callable[[Any], Any]) -> None:
    with pytest.raises(UnsupportedComparisonError, match=r"^logins\.token: .*ciphertext"):
        build(Login.token.claim("jti"))


def test_a_single_value_is_no_list_of_claims() -> None:
    with pytest.raises(
        UnsupportedComparisonError, match=r"^logins\.token: in_\(\) takes a list of values, not one str"
    ):
        Login.token.claim("jti").in_("ab")


@pytest.mark.parametrize("other", [User.name, Login.second, sa.select(Login.token).scalar_subquery()])
def test_expressions_are_refused_with_a_fingerprint_too(session: Session, other: Any) -> None:
    with pytest.raises(UnsupportedComparisonError):
        session.execute(sa.select(Login.id).where(Login.token == other))
    with pytest.raises(UnsupportedComparisonError):
        Login.token.in_([ALICE, other])


@pytest.mark.parametrize(
    "build", [lambda one: one.contains("a"), lambda one: ~one.contains("a"), lambda one: one.any_()]
)
def test_a_member_of_a_list_is_not_looked_for_in_vain(build: Callable[[Any], Any]) -> None:
    """A list has no fingerprint (envelope-v1), so a look-up by a member would find nothing."""
    with pytest.raises(
        UnsupportedComparisonError, match=r"^logins\.token: .*'jti'.*a table or column of your own"
    ):
        build(Login.token.claim("jti"))


def test_a_column_that_writes_plaintext_refuses_to_look_for_fingerprints() -> None:
    column: Any = sa.column("token", EncryptedJWT(context="c", fingerprints=["token"], plaintext="write"))
    with pytest.raises(UnsupportedComparisonError, match="plaintext='write'"):
        column == ALICE  # noqa: B015


# -- nothing shows the token -----------------------------------------------------------------------------------------


def test_neither_parameters_nor_statements_hold_the_token(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    statement = sa.select(Login.id).where(
        sa.or_(Login.token == ALICE, Login.second.in_([ALICE]), Login.token.claim("jti") == "a secret id")
    )
    dialect = session.get_bind().dialect
    compiled = statement.compile(dialect=dialect)
    shown = str(compiled) + repr(compiled.params) + repr(statement._generate_cache_key())
    caplog.set_level(logging.DEBUG, "sqlalchemy.engine")
    with Session(sa.create_engine(session.get_bind().engine.url, echo="debug")) as echoing:
        assert echoing.scalar(statement) == 1
        with pytest.raises(sa.exc.DBAPIError) as caught:
            echoing.execute(sa.select(sa.column("nowhere")).where(Login.token == ALICE))
        bind = echoing.get_bind()
    assert isinstance(bind, sa.Engine)
    bind.dispose()
    for text in (
        shown,
        caplog.text,
        str(caught.value),
        repr(caught.value.params),
        locals_shown_by(caught.value),
    ):
        assert ALICE[-20:] not in text
        assert "a secret id" not in text


def test_the_same_doors_show_a_plain_column(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    """The control: compiled parameters, log and error show what a plain column is compared with."""
    statement = sa.select(Login.id).where(User.name == "a secret id")
    assert "a secret id" in repr(statement.compile().params)
    engine = sa.create_engine(session.get_bind().engine.url, echo="debug")
    caplog.set_level(logging.DEBUG, "sqlalchemy.engine")
    with engine.connect() as connection:
        with pytest.raises(sa.exc.DBAPIError) as caught:
            connection.execute(sa.select(sa.column("nowhere")).where(User.name == "a secret id"))
        assert "a secret id" in str(caught.value)
    engine.dispose()
    assert "a secret id" in caplog.text


def test_positions_are_part_of_the_statement_and_fingerprints_are_not() -> None:
    """Else no index on the expression would be used; and no statement text holds what identifies a token."""
    set_default_keyring(BOTH)
    sql = str(sa.select(Login.id).where(Login.token == ALICE))
    assert "substr(logins.token, 7, 16) IN" in sql
    stored = encrypt_token(ALICE, BOTH, context="logins.token", fingerprints=["token", "jti", "num"])
    assert isinstance(stored, bytes)
    assert envelope.parse(stored).fingerprints[0].hex() not in sql


def test_assignment_is_what_it_was() -> None:
    with pytest.raises(InvalidTokenError):
        Login(token="x")
