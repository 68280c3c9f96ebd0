"""Spellings of writes and comparisons across SQLAlchemy: each is right or refused, and none stores or sends a token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import func, insert, literal, select, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    mapped_column,
    relationship,
    synonym,
    with_polymorphic,
)

from jwt_column import JWT, EncryptedJWT, InvalidTokenError, KeyRing, UnsupportedComparisonError
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RING = KeyRing.generate()
TOKEN, OTHER = signed_token(sub="alice", jti="a"), signed_token(sub="bob", jti="b")


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    logins: Mapped[list[Login]] = relationship(back_populates="user")
    tokens: AssociationProxy[Any] = association_proxy(
        "logins", "token", creator=lambda token: Login(id=90, token=token)
    )


class Login(Base):
    __tablename__ = "logins"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(sa.ForeignKey("users.id"))
    kind: Mapped[str] = mapped_column(sa.String(20), default="login")
    note: Mapped[str | None] = mapped_column(sa.String(900))
    token: Mapped[JWT | None] = mapped_column(EncryptedJWT(RING, fingerprints=["token", "jti"]))
    text: Mapped[JWT | None] = mapped_column(EncryptedJWT(RING, fingerprints=["token"], storage="text"))
    user: Mapped[User | None] = relationship(back_populates="logins")
    alias = synonym("token")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "login"}  # noqa: RUF012

    @hybrid_property
    def secret(self) -> Any:
        return self.token

    @secret.inplace.setter
    def _set_secret(self, value: Any) -> None:
        self.token = value

    @secret.inplace.update_expression
    @classmethod
    def _update_secret(cls, value: Any) -> Any:
        return [(cls.token, value)]


class Special(Login):
    __tablename__ = "special"
    id: Mapped[int] = mapped_column(sa.ForeignKey("logins.id"), primary_key=True)
    extra: Mapped[JWT | None] = mapped_column(EncryptedJWT(RING, fingerprints=["token"]))
    __mapper_args__ = {"polymorphic_identity": "special"}  # noqa: RUF012


class Archive(Base):
    __tablename__ = "archive"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[JWT | None] = mapped_column(EncryptedJWT(RING, context="logins.token"))


TABLE: Any = Login.__table__
ROW: dict[str, Any] = {"id": 50, "kind": "login"}


def upsert(session: Session, value: Callable[[Any], Any]) -> None:
    name = session.get_bind().dialect.name
    row = {**ROW, "id": 1, "token": OTHER}
    if name in ("mysql", "mariadb"):
        into = mysql.insert(Login).values(row)
        session.execute(into.on_duplicate_key_update(token=value(into.inserted)))
    else:
        module: Any = {"sqlite": sqlite, "postgresql": postgresql}[name]
        into = module.insert(Login).values(row)
        set_ = {Login.token: value(into.excluded)}
        session.execute(into.on_conflict_do_update(index_elements=["id"], set_=set_))


GOOD: dict[str, Callable[[Session], Any]] = {
    "insertmanyvalues": lambda s: s.scalars(
        insert(Login).returning(Login), [{"id": n, "token": TOKEN, "kind": "login"} for n in range(10, 15)]
    ).all(),
    "bulk_save_objects": lambda s: s.bulk_save_objects([Login(id=30, token=TOKEN), Login(id=31, token=OTHER)]),
    "bulk_insert_mappings": lambda s: s.bulk_insert_mappings(Login, [{**ROW, "token": TOKEN}], render_nulls=True),
    "bulk_update_mappings": lambda s: s.bulk_update_mappings(Login, [{"id": 1, "token": OTHER}]),
    "bulk update": lambda s: s.execute(update(Login), [{"id": 1, "token": OTHER}, {"id": 2, "token": TOKEN}]),
    "upsert of excluded": lambda s: upsert(s, lambda new: new.token),
    "upsert of a value": lambda s: upsert(s, lambda _: TOKEN),
    "from_select of the same context": lambda s: s.execute(
        insert(Login).from_select(["id", "token", "kind"], select(Archive.id + 60, Archive.token, literal("login")))
    ),
    "hybrid": lambda s: setattr(s.get(Login, 1), "secret", OTHER),
    "hybrid in an UPDATE": lambda s: s.execute(update(Login).values({Login.secret: TOKEN})),
    "synonym": lambda s: setattr(s.get(Login, 1), "alias", OTHER),
    "synonym in an UPDATE": lambda s: s.execute(update(Login).values({Login.alias: TOKEN})),
    "association proxy": lambda s: s.get_one(User, 1).tokens.append(TOKEN),
    "joined inheritance": lambda s: s.add(Special(id=61, token=TOKEN, extra=TOKEN, text=TOKEN)),
    "merge": lambda s: s.merge(Login(id=1, token=OTHER)),
    "literal_execute": lambda s: s.execute(
        insert(TABLE).values(ROW | {"token": literal(TOKEN, TABLE.c.token.type, literal_execute=True)})
    ),
    "DELETE RETURNING": lambda s: s.execute(
        sa.delete(Login).where(Login.token == OTHER, Login.kind == "x").returning(Login.token)
    ).all(),
}  # fmt: skip

REFUSED: dict[str, Callable[[Session], Any]] = {
    "bulk insert": lambda s: s.execute(insert(Login).values(token=func.trim(TOKEN)), [ROW, {**ROW, "id": 51}]),
    "bulk insert of a mapping": lambda s: s.execute(insert(Login), [{**ROW, "token": func.trim(TOKEN)}]),
    "insertmanyvalues": lambda s: s.execute(insert(TABLE), [{**ROW, "token": literal(TOKEN)}]),
    "bulk_update_mappings": lambda s: s.bulk_update_mappings(Login, [{"id": 1, "token": literal(TOKEN)}]),
    "upsert": lambda s: upsert(s, lambda _: literal(TOKEN)),
    "upsert of a function": lambda s: upsert(s, lambda new: func.coalesce(new.token, TOKEN)),
    "another storage form": lambda s: s.execute(update(Login).values(text=Login.token)),
    "hybrid": lambda s: s.execute(update(Login).values({Login.secret: func.trim(TOKEN)})),
    "synonym": lambda s: s.execute(update(Login).values(alias=literal(TOKEN))),
    "association proxy": lambda s: s.get_one(User, 1).tokens.append(func.trim(TOKEN)),
    "assignment": lambda s: setattr(s.get(Login, 1), "token", sa.bindparam("x", TOKEN)),
    "joined inheritance": lambda s: s.execute(update(Special).values(extra=func.trim(TOKEN))),
    "Query.update": lambda s: s.query(Login).update({Login.token: func.trim(TOKEN)}),
    "operator": lambda s: s.execute(update(Login).values(token=literal(TOKEN).op("||")(""))),
    "a callable": lambda s: s.execute(insert(Login).values({**ROW, "token": lambda: TOKEN})),
    "tuple of values": lambda s: s.execute(insert(TABLE).values((70, None, "login", "n", func.trim(TOKEN), None))),
    "type_coerce": lambda s: s.execute(update(Login).values(token=sa.type_coerce(TOKEN, sa.String))),
    "literal_execute": lambda s: s.execute(update(Login).values(token=sa.bindparam("q", TOKEN, literal_execute=True))),
}  # fmt: skip


def subquery(make: Callable[[Any], Any], selected: Any) -> Any:
    found = selected.subquery()
    return select(found.c.id).where(make(found.c))


ANSWERED: dict[str, tuple[Callable[[], Any], list[Any]]] = {
    "hybrid": (lambda: select(Login.id).where(Login.secret == TOKEN), [1]),
    "claim of a hybrid": (lambda: select(Login.id).where(Login.secret.claim("jti") == "a"), [1]),
    "synonym": (lambda: select(Login.id).where(Login.alias == TOKEN), [1]),
    "association proxy": (lambda: select(User.id).where(User.tokens == TOKEN), [1]),
    "any": (lambda: select(User.id).where(User.logins.any(token=TOKEN)), [1]),
    "joined inheritance": (lambda: select(Special.id).where(Special.token == OTHER, Special.extra == OTHER), [2]),
    "with_polymorphic": (
        lambda: (lambda one: select(one.id).where(one.Special.extra == OTHER))(with_polymorphic(Login, [Special])),
        [2],
    ),
    "alias of a subquery": (
        lambda: (lambda one: select(one.id).where(one.token == TOKEN))(aliased(Login, select(Login).subquery())),
        [1],
    ),
    "union": (
        lambda: subquery(
            lambda c: c.token == TOKEN,
            sa.union_all(select(Login.id, Login.token), select(Archive.id + 0, Archive.token)),
        ),
        [1],
    ),
    "recursive": (
        lambda: (lambda one: select(one.c.id).where(one.c.token == TOKEN))(
            select(Login.id, Login.token).where(Login.token == TOKEN).cte("found", recursive=True)
        ),
        [1],
    ),
    "conditions that are compared": (
        lambda: select(Login.id).where((Login.token == TOKEN) == (Login.text == TOKEN)).order_by(Login.id), [1, 2],
    ),
    "HAVING": (
        lambda: select(Login.user_id)
        .group_by(Login.user_id)
        .having(func.count(sa.case((Login.token == TOKEN, 1))) > 0),
        [1],
    ),
    "ORDER BY": (lambda: select(Login.id).order_by(sa.case((Login.token == TOKEN, 1), else_=0), Login.id), [2, 1]),
}  # fmt: skip

UNANSWERED: dict[str, Callable[[], Any]] = {
    "between": lambda: select(Login.id).where(literal(TOKEN).between(Login.token, Login.token)),
    "in a list": lambda: select(Login.id).where(literal(TOKEN).in_([Login.token])),
    "association proxy": lambda: select(User.id).where(User.tokens.contains(TOKEN)),
    "join": lambda: select(Login.id).join(Archive, Archive.token == Login.token),
    "plain column": lambda: select(Login.id).where(Login.note == Login.token),
    "coalesce": lambda: select(Login.id).where(func.coalesce(Login.token, Login.token) == TOKEN),
    "text": lambda: select(Login.id).where(Login.token == sa.text("'x'")),
    "literal_column": lambda: select(Login.id).where(Login.token == sa.literal_column("'x'")),
    "greatest": lambda: select(func.greatest(Login.text, TOKEN)),
}


@pytest.fixture
def sent() -> list[str]:
    return []


@pytest.fixture
def session(engine: sa.Engine, sent: list[str]) -> Iterator[Session]:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(User(id=1))
        session.flush()
        session.add_all(
            [
                Login(id=1, token=TOKEN, text=TOKEN, user_id=1),
                Special(id=2, token=OTHER, text=OTHER, extra=OTHER, user_id=1),
                Archive(id=1, token=OTHER),
            ]
        )
        session.commit()
        sa.event.listen(engine, "before_cursor_execute", lambda *given: sent.append(f"{given[2]} {given[3]}"))
        yield session


def flushed(session: Session, write: Callable[[Session], Any]) -> None:
    write(session)
    session.flush()


def assert_hidden(session: Session, sent: list[str], name: str) -> None:
    """Fail if a token was sent, or is in one of the tables."""
    connection = session.connection()
    stored = [
        str(bytes(value) if isinstance(value, bytes | memoryview) else value)
        for table in Base.metadata.tables
        for row in connection.exec_driver_sql(f"SELECT * FROM {table}")
        for value in row
    ]
    for token in (TOKEN, OTHER):
        assert not [text for text in (*sent, *stored) if token[:30] in text or token[-20:] in text], name


def test_writes_store_envelopes(session: Session, sent: list[str]) -> None:
    for name, write in GOOD.items():
        flushed(session, write)
        assert_hidden(session, sent, name)
        session.rollback()


def test_writes_of_expressions_are_refused(session: Session, sent: list[str]) -> None:
    for name, write in REFUSED.items():
        with pytest.raises(InvalidTokenError, match=r"(logins\.(token|text)|special\.extra) does not take"):
            flushed(session, write)
        session.rollback()
        assert_hidden(session, sent, name)


def test_comparisons_find_rows(session: Session, sent: list[str]) -> None:
    for name, (build, expected) in ANSWERED.items():
        assert session.scalars(build()).all() == expected, name
    assert_hidden(session, sent, "comparisons")


def test_comparisons_without_an_answer_are_refused(session: Session, sent: list[str]) -> None:
    for build in UNANSWERED.values():
        with pytest.raises(UnsupportedComparisonError, match=r"^logins\.(token|text): "):
            session.execute(build())
    assert_hidden(session, sent, "comparisons")
