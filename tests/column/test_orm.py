"""Encrypted attributes of mapped classes: checked when assigned, encrypted when flushed, decrypted when loaded."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncSession
from sqlalchemy.ext.declarative import AbstractConcreteBase
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    aliased,
    column_property,
    composite,
    deferred,
    joinedload,
    mapped_column,
    registry,
    relationship,
    selectinload,
    subqueryload,
    synonym,
    undefer,
    validates,
)

from jwt_column import (
    JWT,
    AuthenticationError,
    EncryptedJWT,
    InvalidTokenError,
    JWTColumnError,
    KeyRing,
    SealedJWT,
    UnknownKeyError,
    generate_key,
    set_default_keyring,
)
from jwt_column.format import envelope
from tests.support.models import mapped, table_of
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

TOKEN = signed_token(sub="alice")
OTHER = signed_token(sub="bob")

pytestmark = pytest.mark.usefixtures("ring")


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    logins: Mapped[list[Login]] = relationship(back_populates="user", order_by="Login.id")


class Login(Base):
    __tablename__ = "logins"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(sa.ForeignKey(User.id))
    version: Mapped[int] = mapped_column()
    token: Mapped[JWT | None] = mapped_column(EncryptedJWT(fingerprints=["sub"]))
    as_text: Mapped[JWT | None] = mapped_column(EncryptedJWT(storage="text"))
    user: Mapped[User | None] = relationship(back_populates="logins")
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy reads it once


class Asynchronous(AsyncAttrs, DeclarativeBase):
    pass


class AsyncLogin(Asynchronous):
    __tablename__ = "async_logins"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[JWT | None] = mapped_column(EncryptedJWT())


def stored(session: Session, attribute: Any) -> list[Any]:
    """Return a column as the database has it."""
    return list(
        session.scalars(sa.select(sa.type_coerce(attribute, sa.LargeBinary)).where(attribute.is_not(None)))
    )


# -- round trips -----------------------------------------------------------------------------------------------


@pytest.mark.matrix
def test_every_driver_round_trips_mapped_objects(driver_engine: sa.Engine) -> None:
    Base.metadata.create_all(driver_engine)
    with Session(driver_engine) as session:
        session.add_all([Login(id=number, token=TOKEN, as_text=OTHER) for number in (1, 2, 3)])
        session.add(Login(id=4))
        session.commit()
        session.expunge_all()
        logins = session.scalars(sa.select(Login).order_by(Login.id)).all()
        assert [(login.token, login.as_text) for login in logins] == [(TOKEN, OTHER)] * 3 + [(None, None)]
        assert {JWT} == {type(login.token) for login in logins[:3]}

        logins[0].token = OTHER  # type: ignore[assignment]
        logins[1].token = None
        session.delete(logins[2])
        session.commit()
        assert session.scalars(sa.select(Login.token).order_by(Login.id)).all() == [OTHER, None, None]
        assert [envelope.looks_like_envelope(value) for value in stored(session, Login.token)] == [True]
        assert sorted(session.scalars(sa.select(Login.version))) == [1, 2, 2]


@pytest.mark.parametrize(
    ("type_", "before_the_flush"),
    [
        pytest.param(EncryptedJWT(), True, id="encrypted"),
        pytest.param(EncryptedJWT(storage="text", fingerprints=["token"]), True, id="encrypted as text"),
        # Here the token is not what is packed when it is bound, and would be held twice for good.
        pytest.param(EncryptedJWT(plaintext="write"), False, id="in the clear"),
        pytest.param(EncryptedJWT(bound_to=["id"]), False, id="bound to its row"),
    ],
)
def test_an_object_holds_its_token_once_when_it_was_flushed(
    memory: sa.Engine, type_: EncryptedJWT, before_the_flush: bool
) -> None:
    held_class = mapped("held", token=type_)
    held_class.metadata.create_all(memory)
    with Session(memory) as session:
        session.add_all([held_class(id=1, token=TOKEN), held := held_class(id=2, token=TOKEN)])
        assert (getattr(held.token, "_frame", None) is not None) is before_the_flush
        session.flush()
        assert getattr(held.token, "_frame", None) is None
        session.expire_all()
        assert held.token == TOKEN


def test_every_async_driver_round_trips_mapped_objects(async_driver_engine: AsyncEngine) -> None:
    async def scenario() -> None:
        async with async_driver_engine.begin() as connection:
            await connection.run_sync(Asynchronous.metadata.create_all)
        async with AsyncSession(async_driver_engine) as session:
            session.add_all([AsyncLogin(id=number, token=TOKEN) for number in range(3)])
            await session.commit()
            login = await session.get_one(AsyncLogin, 1)
            await session.refresh(login)
            assert login.token == TOKEN
            login.token = OTHER  # type: ignore[assignment]
            await session.commit()
            assert await login.awaitable_attrs.token == OTHER
            assert [
                row.token
                async for row in await session.stream_scalars(sa.select(AsyncLogin).order_by(AsyncLogin.id))
            ] == [TOKEN, OTHER, TOKEN]
            with pytest.raises(InvalidTokenError):
                login.token = "nonsense"  # type: ignore[assignment]

    asyncio.run(scenario())


def test_bulk_statements_of_the_orm_encrypt(engine: sa.Engine) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        returned = session.scalars(
            sa.insert(Login).returning(Login, sort_by_parameter_order=True),
            [{"id": number, "version": 1, "token": TOKEN} for number in (1, 2, 3)],
        ).all()
        assert [login.token for login in returned] == [TOKEN] * 3
        session.execute(sa.update(Login), [{"id": 1, "version": 1, "token": OTHER}])
        session.execute(sa.update(Login).where(Login.id == 2).values(token=OTHER))
        session.bulk_insert_mappings(Login, [{"id": 4, "version": 1, "token": TOKEN}])
        session.bulk_update_mappings(Login, [{"id": 4, "version": 1, "token": OTHER}])
        session.bulk_save_objects([Login(id=5, token=TOKEN)])
        session.commit()
        logins = session.scalars(sa.select(Login).order_by(Login.id)).all()
        assert [login.token for login in logins] == [OTHER, OTHER, TOKEN, OTHER, TOKEN]
        assert [envelope.looks_like_envelope(value) for value in stored(session, Login.token)] == [True] * 5


def test_a_flush_of_many_objects_is_one_statement_and_returns_nothing_twice(memory: sa.Engine) -> None:
    Base.metadata.create_all(memory)
    statements: list[str] = []
    sa.event.listen(memory, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    with Session(memory) as session:
        session.add_all([Login(id=number, token=signed_token(jti=number)) for number in range(50)])
        session.flush()
    assert len(statements) == 1


def test_a_token_assigned_again_writes_nothing(memory: sa.Engine) -> None:
    """Ciphertext differs each time, so only the plaintexts may be compared."""
    Base.metadata.create_all(memory)
    with Session(memory) as session:
        session.add(Login(id=1, token=TOKEN))
        session.commit()
        login = session.get_one(Login, 1)
        before = stored(session, Login.token)
        login.token = TOKEN  # type: ignore[assignment]
        session.commit()
        assert before == stored(session, Login.token)
        assert login.version == 1
        login.token = OTHER  # type: ignore[assignment]
        session.commit()
        assert (before != stored(session, Login.token), login.version) == (True, 2)


@pytest.mark.parametrize("loader", [joinedload, selectinload, subqueryload])
def test_eager_loading_decrypts(memory: sa.Engine, loader: Any) -> None:
    Base.metadata.create_all(memory)
    with Session(memory) as session:
        session.add(User(id=1, logins=[Login(id=1, token=TOKEN), Login(id=2, token=OTHER)]))
        session.commit()
        user = session.scalars(sa.select(User).options(loader(User.logins))).unique().one()
        assert [login.token for login in user.logins] == [TOKEN, OTHER]


def test_aliases_and_subqueries_of_entities_decrypt(memory: sa.Engine) -> None:
    Base.metadata.create_all(memory)
    alias = aliased(Login)
    in_subquery = aliased(Login, sa.select(Login).subquery())
    with Session(memory) as session:
        session.add(Login(id=1, token=TOKEN))
        session.flush()
        for entity in (alias, in_subquery):
            session.expunge_all()
            assert [login.token for login in session.scalars(sa.select(entity))] == [TOKEN]
            assert session.scalars(sa.select(entity.token)).all() == [TOKEN]
        union = sa.union_all(sa.select(Login), sa.select(Login))
        assert [login.token for login in session.scalars(sa.select(Login).from_statement(union))] == [
            TOKEN
        ] * 2


def test_expired_refreshed_and_merged_objects_keep_their_tokens(memory: sa.Engine) -> None:
    Base.metadata.create_all(memory)
    with Session(memory) as session:
        login = Login(id=1, token=TOKEN)
        session.add(login)
        session.commit()
        assert login.token == TOKEN
        session.expire(login, ["token"])
        assert login.token == TOKEN
        login.token = OTHER  # type: ignore[assignment]
        session.refresh(login)
        assert login.token == TOKEN
        session.rollback()
        detached = session.get_one(Login, 1)
        session.expunge(detached)

    detached.token = OTHER  # type: ignore[assignment]
    with Session(memory) as session:
        merged = session.merge(detached)
        session.commit()
        assert (merged.token, type(merged.token)) == (OTHER, JWT)
        assert session.merge(Login(id=1, version=2, token=OTHER), load=True).token == OTHER


def test_a_pickled_object_takes_its_token_along_and_not_its_keys(memory: sa.Engine, ring: KeyRing) -> None:
    Base.metadata.create_all(memory)
    with Session(memory) as session:
        session.add(Login(id=1, token=TOKEN))
        session.commit()
        login = session.get_one(Login, 1)
        assert login.token == TOKEN
        pickled = pickle.dumps(login)
    again = pickle.loads(pickled)
    assert (again.token, type(again.token)) == (TOKEN, JWT)
    assert ring.keys[0].secret_material() not in pickled
    with pytest.raises(InvalidTokenError):
        again.token = "nonsense"


# -- how classes are mapped ------------------------------------------------------------------------------------


def dataclass_mapped() -> Any:
    class DataclassBase(MappedAsDataclass, DeclarativeBase):
        pass

    class Thing(DataclassBase):
        __tablename__ = "t"
        id: Mapped[int] = mapped_column(primary_key=True)
        token: Mapped[JWT | None] = mapped_column(EncryptedJWT(), default=None)

    return Thing


def imperative() -> Any:
    class Thing:
        def __init__(self, id: int, token: str | None = None) -> None:  # noqa: A002
            self.id = id
            self.token = token

    mapper_registry = registry()
    table = sa.Table(
        "t",
        mapper_registry.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("secret", EncryptedJWT()),
    )
    mapper_registry.map_imperatively(Thing, table, properties={"token": table.c.secret})
    return Thing


def by_annotation() -> Any:
    class AnnotatedBase(DeclarativeBase):
        type_annotation_map = {JWT: EncryptedJWT()}  # noqa: RUF012

    class Thing(AnnotatedBase):
        __tablename__ = "t"
        id: Mapped[int] = mapped_column(primary_key=True)
        token: Mapped[JWT | None]

    return Thing


def by_annotated_column() -> Any:
    # At module level to SQLAlchemy, which evaluates annotations there.
    globals()["Secret"] = Annotated[JWT, mapped_column(EncryptedJWT())]

    class AnnotatedBase(DeclarativeBase):
        pass

    class Thing(AnnotatedBase):
        __tablename__ = "t"
        id: Mapped[int] = mapped_column(primary_key=True)
        token: Mapped[Secret | None]  # type: ignore[name-defined] # noqa: F821

    return Thing


def by_mixin() -> Any:
    class Mixin:
        token: Mapped[JWT | None] = mapped_column(EncryptedJWT())

    class MixinBase(DeclarativeBase):
        pass

    class Thing(Mixin, MixinBase):
        __tablename__ = "t"
        id: Mapped[int] = mapped_column(primary_key=True)

    return Thing


def deferred_attribute() -> Any:
    return mapped("t", token=deferred(mapped_column(EncryptedJWT())))


def as_column_property() -> Any:
    class PropertyBase(DeclarativeBase):
        pass

    class Thing(PropertyBase):
        __table__ = table_of(EncryptedJWT(), name="t", metadata=PropertyBase.metadata)
        token = column_property(__table__.c.token, active_history=True)

    return Thing


def single_table_inheritance() -> Any:
    class InheritanceBase(DeclarativeBase):
        pass

    class Parent(InheritanceBase):
        __tablename__ = "t"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        token: Mapped[JWT | None] = mapped_column(EncryptedJWT())
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "parent"}  # noqa: RUF012

    class Thing(Parent):
        __mapper_args__ = {"polymorphic_identity": "child"}  # noqa: RUF012

    return Thing


def joined_inheritance() -> Any:
    class InheritanceBase(DeclarativeBase):
        pass

    class Parent(InheritanceBase):
        __tablename__ = "p"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "parent"}  # noqa: RUF012

    class Thing(Parent):
        __tablename__ = "t"
        id: Mapped[int] = mapped_column(sa.ForeignKey("p.id"), primary_key=True)
        token: Mapped[JWT | None] = mapped_column(EncryptedJWT())
        __mapper_args__ = {"polymorphic_identity": "child"}  # noqa: RUF012

    return Thing


def concrete_inheritance() -> Any:
    class InheritanceBase(DeclarativeBase):
        pass

    class Parent(InheritanceBase):
        __tablename__ = "p"
        id: Mapped[int] = mapped_column(primary_key=True)
        token: Mapped[JWT | None] = mapped_column(EncryptedJWT())

    class Thing(Parent):
        __tablename__ = "t"
        id: Mapped[int] = mapped_column(primary_key=True)
        token: Mapped[JWT | None] = mapped_column(EncryptedJWT())
        __mapper_args__ = {"concrete": True}  # noqa: RUF012

    return Thing


MAPPINGS = [
    as_column_property,
    by_annotated_column,
    by_annotation,
    by_mixin,
    concrete_inheritance,
    dataclass_mapped,
    deferred_attribute,
    imperative,
    joined_inheritance,
    single_table_inheritance,
]


@pytest.mark.parametrize("mapping", MAPPINGS, ids=lambda mapping: mapping.__name__)
def test_however_a_class_is_mapped_its_tokens_are_checked_and_encrypted(
    memory: sa.Engine, mapping: Any
) -> None:
    class_ = mapping()
    sa.inspect(class_).local_table.metadata.create_all(memory)
    with pytest.raises(InvalidTokenError) as caught:
        class_(id=1, token="Bearer " + TOKEN)
    assert caught.value.reason == "bearer"
    assert {"t.token", "t.secret"} >= {caught.value.context}

    with Session(memory) as session:
        thing = class_(id=1, token=TOKEN)
        assert (type(thing.token), thing.token) == (JWT, TOKEN)
        assert "JWT(redacted, " in repr(thing.__dict__)
        session.add(thing)
        session.commit()
        assert thing.token == TOKEN
        with pytest.raises(InvalidTokenError):
            thing.token = "nonsense"
        assert thing.token == TOKEN
        thing.token = OTHER
        session.commit()
        session.expunge_all()
        assert [thing.token for thing in session.scalars(sa.select(class_))] == [OTHER]
        assert session.scalars(sa.select(class_.token)).all() == [OTHER]
        (value,) = stored(session, class_.token)
        assert envelope.looks_like_envelope(value)


def test_each_class_of_a_mixin_has_its_own_context(memory: sa.Engine) -> None:
    class MixinBase(DeclarativeBase):
        type_annotation_map = {JWT: EncryptedJWT()}  # noqa: RUF012

    class Mixin:
        token: Mapped[JWT | None] = mapped_column(EncryptedJWT())

    class Abstract(MixinBase):
        __abstract__ = True
        second: Mapped[JWT | None]

    class Access(Mixin, Abstract):
        __tablename__ = "access"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Refresh(Mixin, Abstract):
        __tablename__ = "refresh"
        id: Mapped[int] = mapped_column(primary_key=True)

    expected = ["access.token", "access.second", "refresh.token", "refresh.second"]
    attributes: list[Any] = [Access.token, Access.second, Refresh.token, Refresh.second]
    assert expected == [attribute.type.context for attribute in attributes]

    MixinBase.metadata.create_all(memory)
    with Session(memory) as session:
        session.add(Access(id=1, token=TOKEN, second=TOKEN))
        session.commit()
        session.execute(
            sa.text("INSERT INTO refresh (id, token, second) SELECT id, token, second FROM access")
        )
        session.execute(sa.text("UPDATE access SET second = token"))
        assert session.scalars(sa.select(Access.token)).all() == [TOKEN]
        for moved in (Access.second, Refresh.token, Refresh.second):
            with pytest.raises(AuthenticationError):
                session.scalars(sa.select(moved)).all()


def test_a_concrete_subclass_is_checked_by_its_own_column(memory: sa.Engine) -> None:
    """Its table is another one, and may take tokens that its parent's does not."""

    class InheritanceBase(DeclarativeBase):
        pass

    class Strict(InheritanceBase):
        __tablename__ = "strict"
        id: Mapped[int] = mapped_column(primary_key=True)
        token: Mapped[JWT | None] = mapped_column(EncryptedJWT())

    class Lenient(Strict):
        __tablename__ = "lenient"
        id: Mapped[int] = mapped_column(primary_key=True)
        token: Mapped[JWT | None] = mapped_column(EncryptedJWT(allow_opaque=True))
        __mapper_args__ = {"concrete": True}  # noqa: RUF012

    assert Lenient(token="opaque").token == "opaque"
    with pytest.raises(InvalidTokenError, match=r"^strict\.token "):
        Strict(token="opaque")


def test_a_polymorphic_union_of_concrete_tables_needs_one_pinned_context(memory: sa.Engine) -> None:
    class InheritanceBase(DeclarativeBase):
        pass

    class Credential(AbstractConcreteBase, InheritanceBase):
        strict_attrs = True
        id: Mapped[int] = mapped_column(primary_key=True)
        token: Mapped[JWT | None] = mapped_column(EncryptedJWT(context="credential"))

    class Access(Credential):
        __tablename__ = "access"
        __mapper_args__ = {"polymorphic_identity": "access", "concrete": True}  # noqa: RUF012

    class Refresh(Credential):
        __tablename__ = "refresh"
        __mapper_args__ = {"polymorphic_identity": "refresh", "concrete": True}  # noqa: RUF012

    InheritanceBase.registry.configure()
    InheritanceBase.metadata.create_all(memory)
    with Session(memory) as session:
        session.add_all([Access(id=1, token=TOKEN), Refresh(id=1, token=OTHER)])
        session.commit()
        session.expunge_all()
        assert {TOKEN, OTHER} == {credential.token for credential in session.scalars(sa.select(Credential))}


def test_sql_functions_over_a_polymorphic_base_can_be_built(memory: sa.Engine) -> None:
    """SQLAlchemy finds elements of its sets with ``==``, which the comparator must not refuse."""
    class_ = joined_inheritance()
    parent = class_.__mro__[1]
    class_.metadata.create_all(memory)
    everything = sa.orm.with_polymorphic(parent, [class_])
    with Session(memory) as session:
        session.add(class_(id=1, token=TOKEN))
        session.flush()
        for token in (class_.token, getattr(everything, class_.__name__).token):
            function = sa.func.coalesce(token, token)
            assert session.scalars(sa.select(function).order_by(class_.id)).all() == [TOKEN]


def test_a_users_validator_runs_first_and_what_it_returns_is_checked() -> None:
    class ValidatedBase(DeclarativeBase):
        pass

    class Validated(ValidatedBase):
        __tablename__ = "validated"
        id: Mapped[int] = mapped_column(primary_key=True)
        token: Mapped[JWT | None] = mapped_column(EncryptedJWT())

        @validates("token")
        def strip(self, _key: str, value: str) -> str:
            return value.removeprefix("Bearer ")

    assert (Validated(token="Bearer " + TOKEN).token, type(Validated(token=TOKEN).token)) == (TOKEN, JWT)
    with pytest.raises(InvalidTokenError):
        Validated(token="Bearer nonsense")


@dataclass
class Pair:
    """A composite value."""

    token: str | None
    uses: int


def test_synonyms_and_composites_reach_the_check() -> None:
    parts = {"secret": synonym("token"), "pair": composite(Pair, "token", "uses")}
    composed = mapped("composed", token=EncryptedJWT(), uses=sa.Integer, **parts)
    assert JWT is type(composed(secret=TOKEN).token)
    assert JWT is type(composed(pair=Pair(TOKEN, 1)).token)
    bad: dict[str, Any]
    for bad in ({"secret": "nonsense"}, {"pair": Pair("nonsense", 1)}):
        with pytest.raises(InvalidTokenError):
            composed(**bad)


def test_a_deferred_token_is_loaded_when_asked_for(memory: sa.Engine) -> None:
    class_ = deferred_attribute()
    class_.metadata.create_all(memory)
    with Session(memory) as session:
        session.add(class_(id=1, token=TOKEN))
        session.commit()
        session.expunge_all()
        thing = session.scalars(sa.select(class_)).one()
        assert "token" not in thing.__dict__
        assert thing.token == TOKEN
        session.expunge_all()
        assert (
            session.scalars(sa.select(class_).options(undefer(class_.token))).one().__dict__["token"] == TOKEN
        )


# -- what may be assigned --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        sa.func.lower("x"),
        sa.literal(TOKEN),
        sa.text("'x'"),
        sa.select(Login.token).scalar_subquery(),
        Login.__table__.c.token,
    ],
    ids=["function", "literal", "text", "subquery", "column"],
)
def test_a_sql_expression_is_refused_when_assigned(expression: Any) -> None:
    with pytest.raises(InvalidTokenError, match="the database cannot encrypt") as caught:
        Login(token=expression)
    assert (caught.value.reason, caught.value.context) == ("SQL expression", "logins.token")


@pytest.mark.parametrize("value", [TOKEN.encode(), 7, {"sub": "alice"}, ["x"], object(), True, Login.token])
def test_what_is_no_text_is_refused_when_assigned(value: Any) -> None:
    with pytest.raises(InvalidTokenError, match=f"expected str, got {type(value).__name__}"):
        Login(token=value)


def test_null_is_assigned_as_none_or_as_sql_null(memory: sa.Engine) -> None:
    Base.metadata.create_all(memory)
    with Session(memory) as session:
        session.add_all([Login(id=1, token=TOKEN), Login(id=2, token=TOKEN), Login(id=3, token=sa.null())])
        session.commit()
        session.get_one(Login, 1).token = None
        session.get_one(Login, 2).token = sa.null()
        session.commit()
        assert session.scalars(sa.select(Login.token)).all() == [None] * 3


def test_an_error_at_assignment_has_no_frame_of_ours_that_holds_the_value() -> None:
    with pytest.raises(InvalidTokenError) as caught:
        Login(token="Bearer " + TOKEN)
    ours = [frame.frame.f_locals for frame in caught.traceback if "jwt_column" in str(frame.path)]
    assert ours
    assert [frame for frame in ours if TOKEN in repr(frame)] == []
    assert caught.value.__context__ is None


def test_a_jwt_of_a_looser_column_is_checked_again() -> None:
    opaque = mapped("loose", token=EncryptedJWT(allow_opaque=True))(token="opaque").token
    assert JWT is type(opaque)
    with pytest.raises(InvalidTokenError):
        Login(token=opaque)


# -- rows that do not open -------------------------------------------------------------------------------------


def test_sealed_rows_are_listed_overwritten_deleted_and_opened_later(memory: sa.Engine) -> None:
    sealed_class = mapped("sealed", note=sa.String, token=EncryptedJWT(undecryptable="sealed"))
    sealed_class.metadata.create_all(memory)
    lost = generate_key()
    set_default_keyring(KeyRing([lost]))
    with Session(memory) as session:
        session.add_all([sealed_class(id=number, token=TOKEN) for number in range(4)])
        session.commit()
        set_default_keyring(KeyRing.generate())
        session.add(sealed_class(id=4, token=OTHER))
        session.commit()

        rows = session.scalars(sa.select(sealed_class).order_by(sealed_class.id)).all()
        assert [SealedJWT] * 4 + [JWT] == [type(row.token) for row in rows]
        assert {UnknownKeyError} == {type(row.token.reason) for row in rows[:4]}
        before = stored(session, sealed_class.token)

        rows[0].note = "changed beside it"
        rows[1].token = OTHER
        session.delete(rows[2])
        rows[4].token = rows[3].token
        session.commit()
        after = stored(session, sealed_class.token)
        assert [before[0], before[3], before[3]] == [after[0], after[2], after[3]]

        with pytest.raises(UnknownKeyError):
            rows[0].token.reveal()
        with pytest.raises(JWTColumnError, match="cannot be pickled"):
            pickle.dumps(rows[0].token)
        set_default_keyring(KeyRing([lost]))
        assert rows[0].token.reveal() == TOKEN
        session.expire_all()
        assert rows[0].token == TOKEN


def test_one_row_that_does_not_open_says_which_column_it_is(memory: sa.Engine, ring: KeyRing) -> None:
    Base.metadata.create_all(memory)
    with Session(memory) as session:
        session.add(Login(id=1, token=TOKEN))
        session.commit()
        set_default_keyring(KeyRing.generate())
        with pytest.raises(UnknownKeyError, match=r"^logins\.token: ") as caught:
            session.get_one(Login, 1)
        assert ring.active == caught.value.key_id
        set_default_keyring(ring)
        assert session.get_one(Login, 1).token == TOKEN
