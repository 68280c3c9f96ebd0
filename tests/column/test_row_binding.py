"""Row binding: an envelope opens beside the values of its own row, and nowhere else."""

from __future__ import annotations

import asyncio
import pickle
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    defer,
    joinedload,
    load_only,
    mapped_column,
    relationship,
    selectin_polymorphic,
    selectinload,
    undefer,
    with_polymorphic,
)
from sqlalchemy.orm.exc import ObjectDeletedError

from jwt_column import (
    JWT,
    AuthenticationError,
    ConfigurationError,
    DecryptionError,
    EncryptedJWT,
    KeyRing,
    MalformedEnvelopeError,
    PlaintextFoundError,
    SealedJWT,
    UnknownKeyError,
    generate_key,
    set_default_keyring,
)
from jwt_column.column.binding import BoundJWT, binding_of
from jwt_column.column.cipher import TokenCipher
from jwt_column.column.spec import ColumnSpec
from migrations_helpers import reencrypt
from tests.support.models import mapped, session_on
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOKEN = signed_token(sub="alice")
OTHER = signed_token(sub="bob")
ACCOUNT = uuid.UUID("11111111-2222-3333-4444-555555555555")

pytestmark = pytest.mark.usefixtures("ring")


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    grants: Mapped[list[Grant]] = relationship(back_populates="user", order_by="Grant.id")


class Grant(Base):
    __tablename__ = "grants"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(sa.ForeignKey(User.id))
    note: Mapped[str | None] = mapped_column(sa.String(20))
    token: Mapped[JWT | None] = mapped_column(EncryptedJWT(bound_to=["user_id"]))
    user: Mapped[User | None] = relationship(back_populates="grants")


class Everything(Base):
    """Bound to a value of each type, one under the name of its attribute and one in a column of another name."""

    __tablename__ = "everything"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(sa.String(20))
    account: Mapped[uuid.UUID] = mapped_column("account_column")
    digest: Mapped[bytes] = mapped_column(sa.LargeBinary)
    token: Mapped[Any] = mapped_column(
        "secret",
        EncryptedJWT(bound_to=["id", "name", "account", "digest"], undecryptable="sealed", storage="text"),
    )


@pytest.fixture
def session(engine: sa.Engine) -> Iterator[Session]:
    """Two grants of users 7 and 8, nothing loaded."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([User(id=7), User(id=8), User(id=9)])
        session.flush()
        session.add_all([Grant(id=1, user_id=7, token=TOKEN), Grant(id=2, user_id=8, token=OTHER)])
        session.commit()
        session.expunge_all()
        yield session


def stored(session: Session, row: int = 1) -> Any:
    """Return the token of a grant as the database has it."""
    column = sa.type_coerce(Grant.token, sa.LargeBinary)
    return session.scalars(sa.select(column).where(Grant.id == row)).one()


def opened(session: Session, row: int = 1, **bound: Any) -> str:
    """Open what is stored with these values, without the ORM."""
    binding = binding_of(bound.items())
    ring = EncryptedJWT().ring()
    return TokenCipher(ColumnSpec(context="grants.token")).decrypt(stored(session, row), ring, binding)


# -- writing ---------------------------------------------------------------------------------------------------


def test_a_token_is_bound_to_the_values_of_its_row(session: Session) -> None:
    grants = session.scalars(sa.select(Grant).order_by(Grant.id)).all()
    assert [(grant.token, type(grant.token)) for grant in grants] == [(TOKEN, JWT), (OTHER, JWT)]
    assert opened(session, user_id=7) == TOKEN
    for wrong in ({}, {"user_id": 8}, {"user_id": "7"}, {"id": 7}):
        with pytest.raises(AuthenticationError):
            opened(session, **wrong)


def test_every_type_is_bound_in_the_order_declared(engine: sa.Engine, ring: KeyRing) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Everything(id=1, name="ä", account=ACCOUNT, digest=b"\x00\xff", token=TOKEN))
        session.commit()
        assert session.get_one(Everything, 1).token == TOKEN
        value = session.scalars(sa.select(sa.type_coerce(Everything.token, sa.Text))).one()
    binding = binding_of([("id", 1), ("name", "ä"), ("account", ACCOUNT), ("digest", b"\x00\xff")])
    assert TokenCipher(ColumnSpec(context="everything.secret")).decrypt(value, ring, binding) == TOKEN
    swapped = binding_of([("name", "ä"), ("id", 1), ("account", ACCOUNT), ("digest", b"\x00\xff")])
    with pytest.raises(AuthenticationError):
        TokenCipher(ColumnSpec(context="everything.secret")).decrypt(value, ring, swapped)


def test_one_token_is_bound_to_two_rows(session: Session) -> None:
    """The same JWT object: what it is bound to must not stick to it."""
    token = JWT(TOKEN)
    first, second = Grant(id=3, user_id=7, token=token), Grant(id=4, user_id=8, token=token)
    session.add_all([first, second])
    session.flush()
    assert (opened(session, 3, user_id=7), opened(session, 4, user_id=8)) == (TOKEN, TOKEN)
    third = Grant(id=5, user_id=9, token=first.token)
    session.add(third)
    session.commit()
    assert (opened(session, 5, user_id=9), third.token) == (TOKEN, TOKEN)


def test_the_value_of_a_relationship_is_known_in_time(session: Session) -> None:
    session.add(User(id=10, grants=[Grant(id=3, token=TOKEN)]))
    session.add(Grant(id=4, user=session.get_one(User, 9), token=OTHER))
    session.commit()
    assert (opened(session, 3, user_id=10), opened(session, 4, user_id=9)) == (TOKEN, OTHER)


@pytest.mark.parametrize("loaded", ["loaded", "expired", "token expired", "value expired"])
def test_a_changed_value_takes_the_token_along(session: Session, loaded: str) -> None:
    grant = session.get_one(Grant, 1)
    before = stored(session)
    match loaded:
        case "expired":
            session.expire(grant)
        case "token expired":
            session.expire(grant, ["token"])
        case "value expired":
            session.expire(grant, ["user_id"])
    grant.user_id = 9
    session.commit()
    assert before != stored(session)
    assert opened(session, user_id=9) == TOKEN
    assert (grant.token, type(grant.token)) == (TOKEN, JWT)


def test_a_changed_relationship_takes_the_token_along(session: Session) -> None:
    session.get_one(Grant, 1).user = session.get_one(User, 9)
    session.commit()
    assert opened(session, user_id=9) == TOKEN


@pytest.mark.parametrize("expire", [True, False])
def test_a_new_token_is_bound_to_the_values_that_stay(session: Session, *, expire: bool) -> None:
    grant = session.get_one(Grant, 1)
    if expire:
        session.expire(grant)
    grant.token = OTHER  # type: ignore[assignment]
    session.commit()
    assert (opened(session, user_id=7), grant.token) == (OTHER, OTHER)


def test_value_and_token_change_together(session: Session) -> None:
    grant = session.get_one(Grant, 1)
    session.expire(grant)
    grant.user_id, grant.token = 9, OTHER  # type: ignore[assignment]
    session.commit()
    assert opened(session, user_id=9) == OTHER


def test_a_change_beside_the_token_leaves_the_envelope_alone(session: Session) -> None:
    before = stored(session)
    grant = session.get_one(Grant, 1)
    grant.note = "changed"
    grant.user_id = 7
    grant.token = TOKEN  # type: ignore[assignment]
    session.commit()
    assert (before, "changed") == (stored(session), grant.note)


def test_a_row_without_token_needs_no_values(session: Session) -> None:
    grant = Grant(id=3)
    session.add(grant)
    session.commit()
    grant.user_id = 7
    session.commit()
    session.expire(grant)
    grant.user_id = 8
    session.commit()
    assert grant.token is None
    grant.token = TOKEN  # type: ignore[assignment]
    session.commit()
    assert opened(session, 3, user_id=8) == TOKEN
    grant.token = None
    session.commit()
    assert grant.token is None


def test_a_failed_flush_leaves_a_token_that_can_be_flushed_again(session: Session) -> None:
    session.add(Grant(id=1, user_id=9, token=TOKEN))
    with pytest.raises(sa.exc.IntegrityError):
        session.flush()
    session.rollback()
    grant = Grant(id=3, user_id=9, token=TOKEN)
    session.add(grant)
    session.flush()
    session.rollback()
    grant.user_id = 8
    session.add(grant)
    session.commit()
    assert opened(session, 3, user_id=8) == TOKEN


@pytest.mark.parametrize("change", ["insert", "update", "delete attribute"])
def test_a_value_that_is_not_known_refuses_the_flush_and_nothing_is_written(
    session: Session, change: str
) -> None:
    if change == "insert":
        session.add(Grant(id=3, token=TOKEN))
    elif change == "update":
        session.get_one(Grant, 1).user_id = None
    else:
        del session.get_one(Grant, 1).user_id
    with pytest.raises(
        ConfigurationError, match=r"^grants\.token is bound to user_id, which has no value yet"
    ) as caught:
        session.commit()
    assert caught.value.context == "grants.token"
    session.rollback()
    assert session.scalar(sa.select(sa.func.count()).select_from(Grant)) == 2
    assert opened(session, user_id=7) == TOKEN


@pytest.mark.parametrize(
    "column",
    [
        pytest.param(lambda: mapped_column(sa.Integer, primary_key=True), id="autoincrement"),
        pytest.param(lambda: mapped_column(sa.Integer, primary_key=True, default=lambda: 5), id="default"),
        pytest.param(
            lambda: mapped_column(sa.Integer, primary_key=True, server_default="5"), id="server default"
        ),
    ],
)
def test_a_value_that_comes_with_the_insert_is_too_late(memory: sa.Engine, column: Callable[[], Any]) -> None:
    numbered = mapped("numbered", id=column(), token=EncryptedJWT(bound_to=["id"]))
    numbered.metadata.create_all(memory)
    with Session(memory) as session:
        session.add(numbered(token=TOKEN))
        with pytest.raises(ConfigurationError, match="bound to id, which has no value yet"):
            session.flush()
        session.rollback()
        # The control: given, the same column serves.
        session.add(numbered(id=5, token=TOKEN))
        session.commit()
        assert session.get_one(numbered, 5).token == TOKEN


@pytest.mark.parametrize("value", ["7", True, 7.0, b"7", uuid.UUID(int=7)])
def test_a_value_of_another_type_is_refused(memory: sa.Engine, value: Any) -> None:
    """SQLite stores "7" as a number in this column; the row would come back with another value than was bound."""
    Base.metadata.create_all(memory)
    with Session(memory) as session:
        session.add(Grant(id=1, user_id=value, token=TOKEN))
        with pytest.raises(
            ConfigurationError, match=f"bound to user_id, which holds {type(value).__name__}, "
        ):
            session.flush()


def test_a_changed_primary_key_takes_the_token_along(engine: sa.Engine) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Everything(id=1, name="a", account=ACCOUNT, digest=b"d", token=TOKEN))
        session.commit()
        thing = session.get_one(Everything, 1)
        thing.id = 2
        session.commit()
        assert thing.token == TOKEN
        session.expire(thing)
        thing.id = 3
        session.commit()
        assert thing.token == TOKEN


def test_a_row_that_is_gone_is_reported_as_the_orm_does(session: Session) -> None:
    grant = session.get_one(Grant, 1)
    session.expire(grant, ["user_id"])
    session.execute(sa.delete(Grant).where(Grant.id == 1).execution_options(synchronize_session=False))
    grant.token = OTHER  # type: ignore[assignment]
    with pytest.raises(ObjectDeletedError):
        session.flush()


# -- around the unit of work -----------------------------------------------------------------------------------

BULK: dict[str, Callable[[Session], object]] = {
    "core insert": lambda session: session.execute(
        sa.insert(Grant.__table__).values(id=3, user_id=7, token=TOKEN)  # type: ignore[arg-type]
    ),
    "bulk insert": lambda session: session.execute(
        sa.insert(Grant), [{"id": 3, "user_id": 7, "token": TOKEN}]
    ),
    "bulk update": lambda session: session.execute(sa.update(Grant), [{"id": 1, "token": TOKEN}]),
    "update": lambda session: session.execute(sa.update(Grant).where(Grant.id == 1).values(token=JWT(TOKEN))),
    "legacy mappings": lambda session: session.bulk_insert_mappings(
        Grant,
        [{"id": 3, "user_id": 7, "token": TOKEN}],
    ),
    "legacy objects": lambda session: session.bulk_save_objects([Grant(id=3, user_id=7, token=TOKEN)]),
}


@pytest.mark.parametrize("name", BULK)
def test_a_statement_that_names_no_row_is_refused_and_says_what_to_do(session: Session, name: str) -> None:
    before = stored(session)
    with pytest.raises(
        ConfigurationError, match=r"^grants\.token is bound to user_id .*session\.add\(\)"
    ) as caught:
        BULK[name](session)
    assert TOKEN not in str(caught.value)
    session.rollback()
    assert (before, 2) == (stored(session), session.scalar(sa.select(sa.func.count()).select_from(Grant)))


def test_the_token_of_a_flushed_object_does_not_bind_a_second_row(session: Session) -> None:
    """Else a Core statement would seal it for the row that it came from, and nobody would notice before the load."""
    grant = Grant(id=3, user_id=7, token=TOKEN)
    session.add(grant)
    session.flush()
    with pytest.raises(ConfigurationError, match="bound to user_id"):
        session.execute(sa.insert(Grant.__table__).values(id=4, user_id=8, token=grant.token))  # type: ignore[arg-type]


def test_null_and_deletes_need_no_row(session: Session) -> None:
    session.execute(sa.update(Grant).where(Grant.id == 1).values(token=None))
    session.execute(sa.insert(Grant), [{"id": 3, "user_id": 7, "token": None}])
    session.execute(sa.delete(Grant).where(Grant.id == 2))
    assert session.scalars(sa.select(Grant.token)).all() == [None, None]


def test_a_bulk_update_of_a_bound_column_leaves_a_token_that_does_not_open(session: Session) -> None:
    """The module says so: nothing is shown of such a statement to the type."""
    session.execute(sa.update(Grant).where(Grant.id == 1).values(user_id=9))
    with pytest.raises(AuthenticationError):
        session.get_one(Grant, 1)


def test_a_bound_token_pickles_as_an_ordinary_one() -> None:
    bound = BoundJWT.of(JWT(TOKEN), b"binding")
    assert (pickle.loads(pickle.dumps(bound)), type(pickle.loads(pickle.dumps(bound)))) == (TOKEN, JWT)
    assert "JWT(redacted, " in repr(bound)
    assert [bound.take_binding(), bound.take_binding()] == [b"binding", None]


# -- loading ---------------------------------------------------------------------------------------------------


def test_an_envelope_copied_from_another_row_does_not_open(session: Session) -> None:
    token = sa.type_coerce(Grant.token, sa.LargeBinary)
    copied = sa.select(token).where(Grant.id == 2).scalar_subquery()
    session.execute(sa.text("UPDATE grants SET note = 'control' WHERE id = 1"))
    assert session.get_one(Grant, 1).token == TOKEN  # The control: any other change lets it open.
    session.expunge_all()

    value = session.scalar(sa.select(copied))
    raw: Any = sa.table("grants", sa.column("id"), sa.column("token", sa.LargeBinary))
    session.execute(raw.update().where(raw.c.id == 1).values(token=value))
    for _ in range(2):
        with pytest.raises(AuthenticationError, match=r"^grants\.token: .*another column or row"):
            session.get_one(Grant, 1).token  # noqa: B018
    with pytest.raises(AuthenticationError):
        session.scalars(sa.select(Grant).order_by(Grant.id)).all()
    assert session.get_one(Grant, 2).token == OTHER


def test_the_swapped_tokens_of_a_lenient_column_are_sealed(engine: sa.Engine) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        common = {"name": "a", "account": ACCOUNT, "digest": b"d"}
        session.add_all([Everything(id=1, token=TOKEN, **common), Everything(id=2, token=OTHER, **common)])
        session.commit()
        raw: Any = sa.table("everything", sa.column("id"), sa.column("secret", sa.Text))
        value = session.scalar(sa.select(raw.c.secret).where(raw.c.id == 2))
        session.execute(raw.update().where(raw.c.id == 1).values(secret=value))
        session.commit()
        session.expunge_all()

        first, second = session.scalars(sa.select(Everything).order_by(Everything.id)).all()
        assert (SealedJWT, OTHER) == (type(first.token), second.token)
        assert isinstance(first.token.reason, AuthenticationError)
        with pytest.raises(AuthenticationError):
            first.token.reveal()
        assert first.token.reveal(id=2, **common) == OTHER

        # It is listed, deleted and overwritten, and moves to no other row.
        second.token = first.token
        with pytest.raises(DecryptionError, match="a sealed value cannot be written into a bound column"):
            session.flush()
        session.rollback()
        first, second = session.scalars(sa.select(Everything).order_by(Everything.id)).all()
        first.name = "changed"
        with pytest.raises(AuthenticationError):
            session.flush()
        session.rollback()
        first.token = TOKEN
        session.delete(second)
        session.commit()
        assert first.token == TOKEN


def test_a_sealed_row_opens_when_its_key_is_back(memory: sa.Engine) -> None:
    Base.metadata.create_all(memory)
    lost = generate_key()
    set_default_keyring(KeyRing([lost]))
    with Session(memory) as session:
        session.add(Everything(id=1, name="a", account=ACCOUNT, digest=b"d", token=TOKEN))
        session.commit()
        set_default_keyring(KeyRing.generate())
        thing = session.get_one(Everything, 1)
        assert isinstance(thing.token.reason, UnknownKeyError)
        set_default_keyring(KeyRing([lost]))
        assert thing.token.reveal() == TOKEN


def test_a_strict_row_opens_when_its_key_is_back(session: Session, ring: KeyRing) -> None:
    set_default_keyring(KeyRing.generate())
    for _ in range(2):
        with pytest.raises(UnknownKeyError, match=r"^grants\.token: "):
            session.get_one(Grant, 1).token  # noqa: B018
    set_default_keyring(ring)
    assert session.get_one(Grant, 1).token == TOKEN


def test_a_value_that_is_null_in_the_database_opens_nothing(session: Session) -> None:
    session.execute(sa.text("UPDATE grants SET user_id = NULL WHERE id = 1"))
    with pytest.raises(ConfigurationError, match="user_id"):
        session.get_one(Grant, 1)


def test_the_bare_column_gives_a_sealed_value_that_opens_with_the_values(session: Session) -> None:
    query = sa.select(Grant.token, Grant.user_id).order_by(Grant.id)
    first, second = session.execute(query).all()
    assert (SealedJWT, SealedJWT) == (type(first.token), type(second.token))
    assert (first.token.reveal(user_id=7), second.token.reveal(user_id=second.user_id)) == (TOKEN, OTHER)
    assert isinstance(first.token.reason, ConfigurationError)
    with pytest.raises(AuthenticationError):
        first.token.reveal(user_id=8)
    for wrong in ({}, {"id": 7}, {"user_id": 7, "id": 1}):
        with pytest.raises(ConfigurationError, match=r"reveal\(user_id=\.\.\.\)"):
            first.token.reveal(**wrong)
    with pytest.raises(ConfigurationError, match="float"):
        first.token.reveal(user_id=7.0)
    assert session.scalars(sa.select(sa.null())).all() == [None]


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param(lambda: sa.select(Grant), id="entity"),
        pytest.param(lambda: sa.select(aliased(Grant)), id="alias"),
        pytest.param(lambda: sa.select(aliased(Grant, sa.select(Grant).subquery())), id="subquery"),
        pytest.param(lambda: sa.select(Grant).options(defer(Grant.token)), id="deferred token"),
        pytest.param(lambda: sa.select(Grant).options(defer(Grant.user_id)), id="deferred value"),
        pytest.param(lambda: sa.select(Grant).options(load_only(Grant.token)), id="token only"),
        pytest.param(lambda: sa.select(Grant).options(load_only(Grant.id)), id="neither"),
        pytest.param(lambda: sa.select(Grant).from_statement(sa.text("SELECT * FROM grants")), id="text"),
        pytest.param(
            lambda: sa.select(Grant).from_statement(sa.text("SELECT id, token FROM grants")), id="text 2"
        ),
        pytest.param(lambda: sa.select(Grant).execution_options(yield_per=1), id="streamed"),
    ],
)
def test_however_an_object_is_loaded_it_shows_tokens(session: Session, statement: Callable[[], Any]) -> None:
    grants = list(session.scalars(statement()))
    assert {(1, TOKEN, JWT), (2, OTHER, JWT)} == {
        (grant.id, grant.token, type(grant.token)) for grant in grants
    }


@pytest.mark.parametrize("loader", [joinedload, selectinload])
def test_eager_loading_opens(session: Session, loader: Any) -> None:
    user = session.scalars(sa.select(User).where(User.id == 7).options(loader(User.grants))).unique().one()
    assert [grant.token for grant in user.grants] == [TOKEN]


def test_a_deferred_attribute_opens_when_it_is_loaded(memory: sa.Engine) -> None:
    lazy_class = mapped(
        "lazy",
        user_id=mapped_column(sa.Integer, deferred=True),
        token=mapped_column(EncryptedJWT(bound_to=["user_id"]), deferred=True),
    )
    with session_on(memory, lazy_class(id=1, user_id=7, token=TOKEN)) as session:
        session.expunge_all()
        lazy = session.get_one(lazy_class, 1)
        assert {"user_id", "token"}.isdisjoint(lazy.__dict__)
        assert (lazy.token, type(lazy.token)) == (TOKEN, JWT)
        session.expunge_all()
        undeferred = sa.select(lazy_class).options(undefer(lazy_class.token))
        assert session.scalars(undeferred).one().token == TOKEN
        session.expunge_all()
        lazy = session.get_one(lazy_class, 1)
        lazy.user_id = 8
        session.commit()
        assert lazy.token == TOKEN


def test_an_unloaded_token_opens_beside_the_value_of_the_database(session: Session) -> None:
    """Not beside the one that was assigned and is not flushed yet."""
    for forget in (["token"], ["token", "user_id"]):
        grant = session.get_one(Grant, 1)
        session.expire(grant, forget)
        grant.user_id = 9
        assert grant.token == TOKEN
        session.rollback()


def test_a_refreshed_token_opens_beside_the_value_of_the_database(session: Session) -> None:
    """Every bound attribute was assigned and is not flushed; only the token is loaded anew."""
    grant = session.get_one(Grant, 1)
    with session.no_autoflush:
        grant.user_id = 9
        session.refresh(grant, ["token"])
    assert grant.token == TOKEN


def test_bound_values_are_read_from_the_database_of_their_mapper(engine: sa.Engine, session: Session) -> None:
    """In a session that chooses its database by the mapper, as one with a replica for reading does."""

    class Routing(Session):
        def get_bind(self, mapper: Any = None, **_: Any) -> sa.Engine:
            assert mapper is not None, "a statement without mapper goes to another database"
            return engine

    session.close()
    with Routing() as routing:
        statement = sa.select(Grant).options(load_only(Grant.token)).where(Grant.id == 1)
        assert routing.scalars(statement).one().token == TOKEN


def test_rows_of_which_the_bound_values_are_known_need_no_further_statement(
    engine: sa.Engine, session: Session
) -> None:
    session.close()
    statements: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    with Session(engine) as fresh:
        grants = fresh.scalars(sa.select(Grant).order_by(Grant.id)).all()
        assert [grant.token for grant in grants] == [TOKEN, OTHER]
        assert len(statements) == 1
        fresh.refresh(grants[0], ["token"])
        assert grants[0].token == TOKEN
    assert len(statements) == 2


def test_a_name_means_the_column_before_the_attribute(memory: sa.Engine) -> None:
    """Re-encryption knows columns only: with crossed names, ORM and run must mean the same one."""

    class Crossed(DeclarativeBase):
        pass

    class Login(Crossed):
        __tablename__ = "logins"
        id: Mapped[int] = mapped_column(primary_key=True)
        one: Mapped[str] = mapped_column("two", sa.String(20))
        two: Mapped[str] = mapped_column("one", sa.String(20))
        token: Mapped[JWT] = mapped_column(EncryptedJWT(bound_to=["one"]))

    Crossed.metadata.create_all(memory)
    with Session(memory) as session:
        session.add(Login(id=1, one="attribute one", two="attribute two", token=TOKEN))
        session.commit()
    ring = EncryptedJWT().ring().with_key(generate_key())
    set_default_keyring(ring.with_active(ring.key_ids[-1]))
    assert reencrypt(memory, "logins", "token", type_=EncryptedJWT(bound_to=["one"]), nice=0).reencrypted == 1
    with Session(memory) as session:
        assert session.get_one(Login, 1).token == TOKEN


def test_populate_existing_reads_the_whole_row_again(session: Session) -> None:
    grant = session.get_one(Grant, 1)
    grant.user_id = 9
    session.flush()
    session.execute(sa.text("SELECT 1"))
    grant.user_id = 8
    again = session.scalars(
        sa.select(Grant).where(Grant.id == 1).execution_options(populate_existing=True, autoflush=False)
    ).one()
    assert (grant, 9, TOKEN) == (again, again.user_id, again.token)


def test_expired_refreshed_merged_and_pickled_objects_keep_their_tokens(session: Session) -> None:
    grant = session.get_one(Grant, 1)
    session.refresh(grant)
    assert grant.token == TOKEN
    session.refresh(grant, ["token"])
    assert grant.token == TOKEN
    session.expire(grant)
    assert grant.token == TOKEN
    again = pickle.loads(pickle.dumps(grant))
    session.expunge_all()
    again.user_id = 9
    merged = session.merge(again)
    session.commit()
    assert (merged.token, opened(session, user_id=9)) == (TOKEN, TOKEN)


def test_a_read_only_session_writes_nothing(session: Session) -> None:
    """Opening must not look like a change."""
    session.scalars(sa.select(Grant)).all()
    session.refresh(session.get_one(Grant, 1), ["token"])
    assert (bool(session.dirty), [grant for grant in session if session.is_modified(grant)]) == (False, [])


def test_plaintext_is_read_and_written_where_the_column_says_so(memory: sa.Engine) -> None:
    def grant(mode: Any) -> Any:
        return mapped("adopted", user_id=sa.Integer, token=EncryptedJWT(bound_to=["user_id"], plaintext=mode))

    write, read, refuse = grant("write"), grant("read"), grant("refuse")
    write.metadata.create_all(memory)
    with Session(memory) as session:
        session.add(write(id=1, user_id=7, token=TOKEN))
        session.commit()
        assert [TOKEN.encode()] == session.scalars(sa.text("SELECT token FROM adopted")).all()
        assert session.get_one(write, 1).token == TOKEN
        assert session.scalars(sa.select(read.token)).all() == [TOKEN]
        with pytest.raises(PlaintextFoundError):
            session.get_one(refuse, 1)
        row = session.get_one(read, 1)
        row.user_id = 8
        session.commit()
        assert session.get_one(refuse, 1).token == TOKEN
        session.execute(sa.text("UPDATE adopted SET token = x'6e6f6e73656e7365'"))
        session.expunge_all()
        with pytest.raises(MalformedEnvelopeError):
            session.get_one(read, 1)
        # A bad row can be given a new token all the same.
        session.expunge_all()
        row = session.scalars(sa.select(read).options(load_only(read.id))).one()
        row.token = OTHER
        session.commit()
        assert row.token == OTHER


def test_async_sessions_bind_and_open(tmp_path: Any) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/async.sqlite3")

    async def scenario() -> None:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(engine) as session:
            session.add_all([User(id=7), User(id=8), Grant(id=1, user_id=7, token=TOKEN)])
            await session.commit()
            session.expunge_all()
            (grant,) = await session.scalars(sa.select(Grant).options(load_only(Grant.token)))
            assert grant.token == TOKEN
            await session.refresh(grant)
            await session.commit()
            grant.user_id = 8
            await session.commit()
            session.expunge_all()
            streamed = [row.token async for row in await session.stream_scalars(sa.select(Grant))]
            assert streamed == [TOKEN]
        await engine.dispose()

    asyncio.run(scenario())


# -- inheritance -----------------------------------------------------------------------------------------------


class Credential(Base):
    __tablename__ = "credentials"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(sa.String(10))
    token: Mapped[JWT | None] = mapped_column(EncryptedJWT(bound_to=["id", "kind"]))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "base"}  # noqa: RUF012


class Single(Credential):
    __mapper_args__ = {"polymorphic_identity": "single"}  # noqa: RUF012


class Joined(Credential):
    __tablename__ = "joined"
    key: Mapped[int] = mapped_column(sa.ForeignKey(Credential.id), primary_key=True)
    owner: Mapped[str] = mapped_column(sa.String(10))
    second: Mapped[JWT | None] = mapped_column(EncryptedJWT(bound_to=["key", "owner"]))
    __mapper_args__ = {"polymorphic_identity": "joined"}  # noqa: RUF012


@pytest.mark.parametrize(
    "entity",
    [
        pytest.param(lambda: sa.select(Credential), id="base"),
        pytest.param(lambda: sa.select(with_polymorphic(Credential, "*")), id="with_polymorphic"),
        pytest.param(
            lambda: sa.select(Credential).options(selectin_polymorphic(Credential, [Single, Joined])),
            id="selectin",
        ),
    ],
)
def test_inherited_columns_are_bound_in_their_own_table(engine: sa.Engine, entity: Callable[[], Any]) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(
            [
                Credential(id=1, kind="base", token=TOKEN),
                Single(id=2, kind="single", token=TOKEN),
                Joined(id=3, key=3, kind="joined", owner="a", token=TOKEN, second=OTHER),
            ]
        )
        session.commit()
        session.expunge_all()
        base, single, joined = session.scalars(entity().order_by(sa.text("1"))).all()
        assert [base.token, single.token, joined.token] == [TOKEN] * 3
        assert (joined.second, type(joined.second)) == (OTHER, JWT)
        session.expire_all()
        joined.owner = "b"
        session.commit()
        assert (joined.token, joined.second) == (TOKEN, OTHER)


def test_a_column_is_meant_by_its_name_or_its_key_in_the_table(memory: sa.Engine) -> None:
    for name in ("in_database", "in_table"):

        class LocalBase(DeclarativeBase):
            pass

        class Keyed(LocalBase):
            __table__ = sa.Table(
                "keyed",
                LocalBase.metadata,
                sa.Column("id", sa.Integer, primary_key=True),
                sa.Column("in_database", sa.Integer, key="in_table"),
                sa.Column("token", EncryptedJWT(bound_to=[name])),
            )

        LocalBase.metadata.drop_all(memory)
        LocalBase.metadata.create_all(memory)
        with Session(memory) as session:
            class_: Any = Keyed
            session.add(class_(id=1, in_table=7, token=TOKEN))
            session.commit()
            assert session.get_one(class_, 1).token == TOKEN
            assert session.scalars(sa.select(class_.token)).one().reveal(**{name: 7}) == TOKEN


def test_a_discriminator_that_the_orm_fills_in_is_known_in_time(memory: sa.Engine) -> None:
    Base.metadata.create_all(memory)
    with Session(memory) as session:
        session.add(Single(id=2, token=TOKEN))
        session.commit()
        assert session.get_one(Single, 2).token == TOKEN


class Untold(sa.types.TypeDecorator[str]):
    """A type that does not say what its values are in Python, as SQLAlchemy 2.0 has them by default."""

    impl = sa.Text
    cache_ok = True

    @property
    def python_type(self) -> type[str]:
        raise NotImplementedError


class ShortText(sa.types.TypeDecorator[str]):
    """A type that chooses another type and leaves values as they are, such as SQLModel's AutoString."""

    impl = sa.String
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        return dialect.type_descriptor(sa.String(20))


class UuidText(sa.types.TypeDecorator[str]):
    impl = sa.Uuid(as_uuid=False)
    cache_ok = True


def test_a_token_is_bound_to_a_type_that_only_chooses_another_one(memory: sa.Engine) -> None:
    chosen = mapped("chosen", name=ShortText(), token=EncryptedJWT(bound_to=["name"]))
    with session_on(memory, chosen(id=1, name="a", token=TOKEN)) as session:
        assert session.get_one(chosen, 1).token == TOKEN


# -- what a token cannot be bound to ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("missing", None, "cannot be bound to missing: refused has no such column"),
        ("token", None, "cannot be bound to itself"),
        ("other", sa.DateTime(), "cannot be bound to other, whose type is DateTime()"),
        ("other", sa.Boolean(), "cannot be bound to other, whose type is Boolean()"),
        ("other", sa.Numeric(), "cannot be bound to other, whose type is Numeric()"),
        ("other", sa.Float(), "cannot be bound to other, whose type is Float()"),
        ("other", sa.JSON(), "cannot be bound to other, whose type is JSON()"),
        ("other", sa.Uuid(as_uuid=False), "cannot be bound to other, whose type is Uuid("),
        ("other", UuidText(), "cannot be bound to other, whose type is UuidText("),
        ("other", Untold(), "cannot be bound to other, whose type is Untold()"),
        ("other", sa.types.NullType(), "cannot be bound to other, whose type is NullType()"),
        ("other", EncryptedJWT(), "cannot be bound to other, whose type is EncryptedJWT("),
        ("unmapped", sa.Integer(), "cannot be bound to unmapped: no attribute is mapped to it"),
        ("elsewhere", None, "cannot be bound to elsewhere: refused has no such column"),
    ],
)
def test_what_a_token_cannot_be_bound_to_is_refused_when_the_class_is_mapped(
    name: str, column: Any, message: str
) -> None:
    class LocalBase(DeclarativeBase):
        pass

    columns = [
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("token", EncryptedJWT(bound_to=[name])),
    ]
    if column is not None:
        columns.append(sa.Column(name, column))

    class Refused(LocalBase):
        __table__ = sa.Table("refused", LocalBase.metadata, *columns)
        __mapper_args__ = {"exclude_properties": ["unmapped"]}  # noqa: RUF012
        elsewhere = sa.orm.column_property(sa.select(User.id).limit(1).scalar_subquery())

    with pytest.raises(ConfigurationError) as caught:
        Refused()
    assert f"refused.token {message}" in str(caught.value)
    LocalBase.registry.dispose()


def test_a_token_without_a_table_of_its_own_has_no_row(memory: sa.Engine) -> None:
    class LocalBase(DeclarativeBase):
        pass

    class Selected(LocalBase):
        __table__ = sa.select(Grant.__table__).subquery()
        __mapper_args__ = {"primary_key": [__table__.c.id]}  # noqa: RUF012

    with pytest.raises(ConfigurationError, match="no column of a table, so it has no row"):
        Selected()
    LocalBase.registry.dispose()
