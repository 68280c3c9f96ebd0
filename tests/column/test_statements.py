"""No statement stores a token in the clear, or compares one with ciphertext: it binds the token, or it is refused."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import bindparam, case, func, literal, select, text, tuple_
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column

from jwt_column import (
    JWT,
    EncryptedJWT,
    InvalidTokenError,
    KeyRing,
    UnsupportedComparisonError,
    encrypt_token,
)
from jwt_column.column import statements
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RING = KeyRing.generate()
TOKEN = signed_token("HS256", sub="alice")
OTHER = signed_token("HS256", sub="bob")


class Base(DeclarativeBase):
    """The models of these tests."""


class Login(Base):
    """A table with an attribute that has another name than its column."""

    __tablename__ = "logins"
    id: Mapped[int] = mapped_column(primary_key=True)
    secret: Mapped[JWT | None] = mapped_column("token", EncryptedJWT(RING, fingerprints=["token"]))
    note: Mapped[str | None]


class Archive(Base):
    """A table whose envelopes open in the first one's column, and a column whose envelopes do not."""

    __tablename__ = "archive"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[JWT | None] = mapped_column(EncryptedJWT(RING, context="logins.token"))
    other: Mapped[JWT | None] = mapped_column(EncryptedJWT(RING))
    plain: Mapped[str | None]


class Written(Base):
    """A column that still writes tokens in the clear: their shape is checked when they are bound."""

    __tablename__ = "written"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[JWT | None] = mapped_column(EncryptedJWT(RING, plaintext="write", storage="text"))


class Wrapper(sa.TypeDecorator[Any]):
    """A type around an encrypted one."""

    impl = EncryptedJWT(RING, context="wrapped.token", fingerprints=["token"])
    cache_ok = True


class Wrapped(Base):
    """A column of such a type."""

    __tablename__ = "wrapped"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[Any] = mapped_column(Wrapper())


TABLE: Any = Login.__table__
COLUMN = TABLE.c.token
# For expressions that type checkers refuse.
SECRET: Any = Login.secret
ARCHIVE: Any = Archive.__table__


@pytest.fixture
def engine() -> Iterator[sa.Engine]:
    """An empty database with one login and one row of the archive."""
    engine = sa.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(
            [Login(id=1, secret=TOKEN, note="n"), Archive(id=1, token=OTHER, other=OTHER, plain=TOKEN)]
        )
        session.commit()
    yield engine
    engine.dispose()


def in_the_clear(engine: sa.Engine) -> bool:
    """Return True if the token, or a part of it, lies in the table of logins."""
    with engine.connect() as connection:
        stored = connection.execute(text("SELECT token FROM logins")).scalars()
        return any(
            TOKEN[:20] in str(value) or TOKEN[:20].encode() in bytes(str(value), "utf-8") for value in stored
        )


def upsert(dialect: Any, value: Any) -> Any:
    """Return an INSERT that updates the row which is there."""
    insert = dialect.insert(TABLE).values(id=1, token=OTHER)
    return insert.on_conflict_do_update(index_elements=["id"], set_={"token": value})


def upsert_note(dialect: Any, note: Any, **options: Any) -> Any:
    """Return an INSERT that updates another column of the row which is there."""
    insert = dialect.insert(TABLE).values(id=1, token=OTHER)
    if dialect is mysql:
        return insert.on_duplicate_key_update(note=note)
    return insert.on_conflict_do_update(index_elements=["id"], set_={"note": note}, **options)


RAW: dict[str, Callable[[], Any]] = {
    "coalesce": lambda: sa.update(TABLE).values(token=func.coalesce(None, TOKEN)),
    "coalesce with the column": lambda: sa.update(TABLE).values(token=func.coalesce(COLUMN, TOKEN)),
    "any function": lambda: sa.update(TABLE).values(token=func.trim(TOKEN)),
    "case": lambda: sa.update(TABLE).values(token=case((TABLE.c.id == 1, TOKEN), else_=COLUMN)),
    "else of a case": lambda: sa.update(TABLE).values(token=case((TABLE.c.id == 9, COLUMN), else_=TOKEN)),
    "literal": lambda: sa.update(TABLE).values(token=literal(TOKEN)),
    "label": lambda: sa.update(TABLE).values(token=literal(TOKEN).label("x")),
    "cast": lambda: sa.update(TABLE).values(token=sa.cast(TOKEN, sa.Text)),
    "type_coerce of a column": lambda: sa.update(TABLE).values(
        token=sa.type_coerce(TABLE.c.note, COLUMN.type)
    ),
    "concatenation": lambda: sa.update(TABLE).values(token=literal(TOKEN) + ""),
    "bindparam": lambda: sa.update(TABLE).values(token=bindparam("x", TOKEN)),
    "bindparam in a coalesce": lambda: sa.update(TABLE).values(
        token=func.coalesce(bindparam("x", None), TOKEN)
    ),
    "text": lambda: sa.update(TABLE).values(token=text(f"'{TOKEN}'")),
    "literal_column": lambda: sa.update(TABLE).values(token=sa.literal_column(f"'{TOKEN}'", COLUMN.type)),
    "by column": lambda: sa.update(TABLE).values({COLUMN: literal(TOKEN)}),
    "by attribute": lambda: sa.update(Login).values({Login.secret: literal(TOKEN)}),
    "by the attribute's name": lambda: sa.update(Login).values(secret=literal(TOKEN)),
    "ordered": lambda: sa.update(TABLE).ordered_values((COLUMN, literal(TOKEN)), (TABLE.c.note, "x")),
    "another column": lambda: sa.update(TABLE).values(token=TABLE.c.note),
    "another context": lambda: sa.update(TABLE).values(token=select(ARCHIVE.c.other).scalar_subquery()),
    "subquery of text": lambda: sa.update(TABLE).values(token=select(ARCHIVE.c.plain).scalar_subquery()),
    "subquery": lambda: sa.update(TABLE).values(token=select(literal(TOKEN)).scalar_subquery()),
    "column of a subquery": lambda: sa.update(TABLE).values(
        token=select(
            select(func.coalesce(ARCHIVE.c.token, TOKEN).label("t")).subquery().c.t
        ).scalar_subquery()
    ),
    "insert": lambda: sa.insert(TABLE).values(id=2, token=literal(TOKEN)),
    "insert of many": lambda: sa.insert(TABLE).values(
        [{"id": 2, "token": OTHER}, {"id": 3, "token": literal(TOKEN)}]
    ),
    "insert of many tuples": lambda: sa.insert(TABLE).values([(2, OTHER, "n"), (3, func.trim(TOKEN), "n")]),
    "insert of an entity": lambda: sa.insert(Login).values(id=2, secret=func.trim(TOKEN)),
    "from_select": lambda: sa.insert(TABLE).from_select(["id", "token"], select(literal(2), literal(TOKEN))),
    "from_select of a column": lambda: sa.insert(TABLE).from_select(
        ["id", "token"], select(ARCHIVE.c.id + 1, ARCHIVE.c.plain)
    ),
    "from_select of a union": lambda: sa.insert(TABLE).from_select(
        ["id", "token"],
        sa.union_all(select(ARCHIVE.c.id + 1, ARCHIVE.c.token), select(literal(3), literal(TOKEN))),
    ),
    "from_select of text": lambda: sa.insert(TABLE).from_select(
        ["id", "token"], text(f"SELECT 2 AS id, '{TOKEN}' AS token").columns(TABLE.c.id, COLUMN)
    ),
    "upsert": lambda: upsert(sqlite, literal(TOKEN)),
    "upsert of a function": lambda: upsert(sqlite, func.coalesce(COLUMN, TOKEN)),
    "cte": lambda: select(sa.update(TABLE).values(token=literal(TOKEN)).returning(TABLE.c.id).cte("c").c.id),
}


@pytest.mark.parametrize("make", RAW.values(), ids=RAW.keys())
def test_statement_that_would_store_a_token_in_the_clear_is_refused(
    engine: sa.Engine, make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sqlalchemy.engine")
    with Session(engine) as session, pytest.raises(InvalidTokenError) as caught:
        session.execute(make())
    assert (caught.value.reason, caught.value.context) == ("SQL expression", "logins.token")
    assert TOKEN[:20] not in str(caught.value)
    assert not in_the_clear(engine)


@pytest.mark.parametrize(
    "make", [make for name, make in RAW.items() if name in ("coalesce", "literal", "from_select")]
)
def test_without_the_last_look_the_token_is_stored_in_the_clear(
    engine: sa.Engine, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    monkeypatch.setattr(statements, "examine", lambda compiled: ((), None, []))
    with engine.begin() as connection:
        connection.execute(make())
    assert in_the_clear(engine)


GOOD: dict[str, tuple[Callable[[], Any], str | None]] = {
    "value": (lambda: sa.update(TABLE).values(token=OTHER), OTHER),
    "null": (lambda: sa.update(TABLE).values(token=None), None),
    "null()": (lambda: sa.update(TABLE).values(token=sa.null()), None),
    "text of NULL": (lambda: sa.update(TABLE).values(token=text("NULL")), None),
    "itself": (lambda: sa.update(TABLE).values(token=COLUMN), TOKEN),
    "attribute": (lambda: sa.update(Login).values(secret=Login.secret), TOKEN),
    "typed literal": (lambda: sa.update(TABLE).values(token=literal(OTHER, COLUMN.type)), OTHER),
    "typed bindparam": (
        lambda: sa.update(TABLE).values(token=bindparam("x", OTHER, type_=COLUMN.type)),
        OTHER,
    ),
    "type_coerce": (lambda: sa.update(TABLE).values(token=sa.type_coerce(OTHER, COLUMN.type)), OTHER),
    "case": (
        lambda: sa.update(TABLE).values(
            token=case((TABLE.c.id == 1, literal(OTHER, COLUMN.type)), else_=COLUMN)
        ),
        OTHER,
    ),
    "coalesce": (lambda: sa.update(TABLE).values(token=func.coalesce(None, COLUMN)), TOKEN),
    "same context": (
        lambda: sa.update(TABLE).values(token=select(ARCHIVE.c.token).scalar_subquery()),
        OTHER,
    ),
    "by attribute": (lambda: sa.update(Login).values({Login.secret: OTHER}), OTHER),
    "ordered": (lambda: sa.update(TABLE).ordered_values((TABLE.c.note, "x"), (COLUMN, OTHER)), OTHER),
    "upsert": (lambda: upsert(sqlite, OTHER), OTHER),
    "excluded": (
        lambda: (insert := sqlite.insert(TABLE).values(id=1, token=OTHER)).on_conflict_do_update(
            index_elements=["id"], set_={"token": insert.excluded.token}
        ),
        OTHER,
    ),
    "alias": (
        lambda: sa.update(TABLE).values(token=select(ARCHIVE.alias().c.token).scalar_subquery()),
        OTHER,
    ),
}


@pytest.mark.parametrize(("make", "expected"), GOOD.values(), ids=GOOD.keys())
def test_statement_that_stores_an_envelope_or_null_goes_on_working(
    engine: sa.Engine, make: Callable[[], Any], expected: str | None
) -> None:
    with engine.begin() as connection:
        connection.execute(make())
        assert expected == connection.scalar(select(COLUMN).where(TABLE.c.id == 1))
    assert not in_the_clear(engine) or expected is None


def test_insert_from_select_copies_envelopes_of_one_context(engine: sa.Engine) -> None:
    rows = select((ARCHIVE.c.id + 1).label("id"), ARCHIVE.c.token)
    with engine.begin() as connection:
        connection.execute(sa.insert(TABLE).from_select(["id", "token"], rows))
        connection.execute(sa.insert(TABLE).from_select(["id", "token"], select(literal(3), sa.null())))
        assert connection.scalar(select(COLUMN).where(TABLE.c.id == 2)) == OTHER


def test_stored_envelope_can_be_put_back_and_nothing_else(engine: sa.Engine) -> None:
    """The statement is compiled once; the values are looked at each time."""
    put_back = sa.update(TABLE).values(token=bindparam("x", type_=sa.LargeBinary))
    stored = encrypt_token(OTHER, RING, context="logins.token")
    with engine.begin() as connection:
        connection.execute(put_back, {"x": stored})
        assert connection.scalar(select(COLUMN)) == OTHER
        connection.execute(sa.update(TABLE).values(token=literal(stored, sa.LargeBinary)))
        for value in (TOKEN.encode(), b"opaque"):
            with pytest.raises(InvalidTokenError):
                connection.execute(put_back, {"x": value})
        with pytest.raises(InvalidTokenError):
            connection.execute(put_back, [{"x": stored}, {"x": TOKEN.encode()}])
        connection.execute(put_back, {"x": None})
        assert connection.scalar(select(COLUMN)) is None


def test_a_column_of_a_type_around_an_encrypted_one_is_looked_at_too(engine: sa.Engine) -> None:
    with Session(engine) as session:
        session.add(Wrapped(id=1, token=TOKEN))
        session.commit()
        assert session.scalars(select(Wrapped.id).where(Wrapped.token == TOKEN)).all() == [1]
        session.execute(sa.update(Wrapped).values(token=Wrapped.token))
        with pytest.raises(InvalidTokenError, match=r"^wrapped\.token does not take a SQL expression"):
            session.execute(sa.update(Wrapped).values(token=func.trim(OTHER)))
        for refused in (
            select(Wrapped.id).where(literal(TOKEN) == Wrapped.token),
            select(Wrapped.id).order_by(Wrapped.token),
            select(sa.cast(Wrapped.token, sa.Text)),
        ):
            with pytest.raises(UnsupportedComparisonError, match=r"^wrapped\.token: "):
                session.execute(refused)
        assert session.scalars(select(Wrapped.token)).all() == [TOKEN]


def test_many_rows_at_once_are_encrypted(engine: sa.Engine) -> None:
    rows = [{"id": number, "token": OTHER} for number in range(2, 20)]
    with engine.begin() as connection:
        connection.execute(sa.insert(TABLE), rows)
        connection.execute(
            sa.update(TABLE).where(TABLE.c.id == bindparam("row")).values(token=bindparam("value")),
            [{"row": 2, "value": TOKEN}, {"row": 3, "value": None}],
        )
        found = connection.execute(sa.insert(TABLE).returning(COLUMN), [{"id": 30, "token": TOKEN}]).scalar()
    with Session(engine) as session:
        session.execute(sa.insert(Login), [{"id": 40, "secret": OTHER}, {"id": 41, "secret": None}])
        session.execute(sa.update(Login), [{"id": 40, "secret": TOKEN}])
        session.commit()
        assert [found, *(session.get_one(Login, number).secret for number in (2, 3, 40))] == [
            TOKEN,
            TOKEN,
            None,
            TOKEN,
        ]


def test_query_update_of_an_expression_is_refused(engine: sa.Engine) -> None:
    with Session(engine) as session, pytest.raises(InvalidTokenError):
        session.query(Login).update({"secret": func.trim(TOKEN)}, synchronize_session=False)


def test_expression_is_refused_for_a_column_that_writes_plaintext(engine: sa.Engine) -> None:
    """Its shape check would be skipped."""
    with engine.begin() as connection, pytest.raises(InvalidTokenError):
        connection.execute(sa.insert(Written).values(id=1, token=func.trim(" no token ")))


@pytest.mark.parametrize("dialect", [sqlite, postgresql, mysql], ids=["sqlite", "postgresql", "mysql"])
def test_expressions_of_an_upsert_are_looked_at(dialect: Any) -> None:
    """SQLAlchemy 2.0 does not visit them with the rest of the statement."""

    def refusal(note: Any, **options: Any) -> Any:
        statement = upsert_note(dialect, note, **options)
        return statements.examine(statement.compile(dialect=dialect.dialect()))[1]

    asked = case((literal(TOKEN) == COLUMN, "x"), else_="y")
    assert isinstance(refusal(asked), UnsupportedComparisonError)
    assert refusal(case((COLUMN == TOKEN, "x"), else_="y")) is None
    if dialect is not mysql:
        assert isinstance(refusal("x", where=literal(TOKEN) == COLUMN), UnsupportedComparisonError)
        assert refusal("x", where=COLUMN == TOKEN) is None


def test_order_of_an_aggregate_of_postgresql_is_refused() -> None:
    module: Any = postgresql
    ordered = select(func.array_agg(module.aggregate_order_by(TABLE.c.id, COLUMN)))
    refusal = statements.examine(ordered.compile(dialect=module.dialect()))[1]
    assert isinstance(refusal, UnsupportedComparisonError)


@pytest.mark.parametrize("dialect", [postgresql, mysql], ids=["postgresql", "mysql"])
def test_upserts_of_other_databases_are_looked_at(dialect: Any) -> None:
    def statement(value: Any) -> Any:
        insert = dialect.insert(TABLE).values(id=1, token=OTHER)
        if dialect is mysql:
            return insert.on_duplicate_key_update(token=value(insert.inserted))
        return insert.on_conflict_do_update(index_elements=["id"], set_={"token": value(insert.excluded)})

    def refusal(value: Any) -> Any:
        return statements.examine(statement(value).compile(dialect=dialect.dialect()))[1]

    assert isinstance(refusal(lambda new: literal(TOKEN)), InvalidTokenError)
    assert isinstance(refusal(lambda new: func.coalesce(new.token, TOKEN)), InvalidTokenError)
    for good in (lambda new: new.token, lambda new: OTHER, lambda new: None, lambda new: COLUMN):
        assert refusal(good) is None


def test_compiled_statement_is_looked_at_once(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def count(compiled: Any) -> Any:
        nonlocal looks
        looks += 1
        return (), None, []

    monkeypatch.setattr(statements, "examine", count)
    with engine.begin() as connection:
        for number in range(2, 12):
            connection.execute(sa.insert(TABLE).values(id=number, token=OTHER))
    assert looks == 1


NOTES: Any = sa.table("notes", sa.column("id", sa.Integer), sa.column("note", sa.String))


@pytest.mark.parametrize(
    "values",
    [{COLUMN: literal(TOKEN)}, {NOTES.c.note: "x", COLUMN: func.trim(TOKEN)}],
    ids=["parameter", "function"],
)
@pytest.mark.parametrize("is_ordered", [False, True], ids=["values", "ordered values"])
def test_columns_of_a_second_table_are_looked_at(values: Any, is_ordered: bool) -> None:
    """MariaDB and MySQL update several tables in one statement, of which it names one first."""
    update = sa.update(NOTES).where(TABLE.c.id == NOTES.c.id)
    update = update.ordered_values(*values.items()) if is_ordered else update.values(values)
    refusal = statements.examine(update.compile(dialect=mysql.dialect()))[1]
    assert isinstance(refusal, InvalidTokenError)


def test_order_by_the_name_of_a_column_that_is_not_selected_is_refused() -> None:
    ordered = select(TABLE.c.id).where(TABLE.c.note == "x").order_by("token")
    refusal = statements.examine(ordered.compile(dialect=sqlite.dialect()))[1]
    assert isinstance(refusal, UnsupportedComparisonError)


def test_statement_without_tokens_is_not_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    examined: list[Any] = []
    monkeypatch.setattr(statements, "comparison_refusal", examined.append)

    def examine(statement: Any) -> int:
        examined.clear()
        statements.examine(statement.compile(dialect=sqlite.dialect()))
        return len(examined)

    assert examine(select(NOTES.c.id).where(NOTES.c.note == "x").order_by("note")) == 0
    assert examine(sa.update(NOTES).values(note="x").where(NOTES.c.id == 1)) == 0
    # The controls.
    assert examine(select(NOTES.c.id).where(NOTES.c.id == TABLE.c.id)) > 0
    assert examine(sa.delete(NOTES).where(NOTES.c.id.in_(select(TABLE.c.id)))) > 0


COMPARED: dict[str, Callable[[], Any]] = {
    "tuple in": lambda: select(Login.id).where(tuple_(Login.id, Login.secret).in_([(1, TOKEN)])),
    "tuple not in": lambda: select(Login.id).where(tuple_(Login.id, Login.secret).not_in([(1, TOKEN)])),
    "tuple equals": lambda: select(Login.id).where(tuple_(Login.id, Login.secret) == tuple_(1, TOKEN)),
    "case": lambda: select(case({TOKEN: 1}, value=Login.secret, else_=0)),
    "nullif": lambda: select(func.nullif(Login.secret, TOKEN)),
    "nullif in a condition": lambda: select(Login.id).where(func.nullif(Login.secret, TOKEN).is_(None)),
    "literal equals": lambda: select(Login.id).where(literal(TOKEN) == Login.secret),
    "literal differs": lambda: select(Login.id).where(literal(TOKEN) != Login.secret),
    "literal in subquery": lambda: select(Login.id).where(literal(TOKEN).in_(select(Login.secret))),
    "any": lambda: select(Login.id).where(literal(TOKEN) == sa.any_(select(Login.secret).scalar_subquery())),
    "all": lambda: select(Login.id).where(literal(TOKEN) != sa.all_(select(Login.secret).scalar_subquery())),
    "scalar subquery": lambda: select(Login.id).where(
        literal(TOKEN) == select(aliased(Login).secret).scalar_subquery()
    ),
    "function in a condition": lambda: select(Login.id).where(func.instr(Login.secret, TOKEN) > 0),
    "coalesce in a condition": lambda: select(Login.id).where(func.coalesce(Login.secret, "") == TOKEN),
    "cast": lambda: select(Login.id).where(sa.cast(Login.secret, sa.Text) == TOKEN),
    "having": lambda: select(Login.id).group_by(Login.id).having(func.max(Login.secret) == TOKEN),
    "join": lambda: select(Login.id).join(Archive, Archive.plain == func.lower(Login.secret)),
    "delete": lambda: sa.delete(Login).where(literal(TOKEN) == Login.secret),
    "update": lambda: sa.update(Login).where(literal(TOKEN) == Login.secret).values(note="x"),
    "order": lambda: select(Login.id).order_by(sa.desc(Login.secret)),
    "order by its name": lambda: select(Login.secret).order_by("token"),
    "order by the name of another column of the table": lambda: select(Login.id).order_by(sa.desc("token")),
    "order by a label": lambda: select(Login.secret.label("x")).order_by("x"),
    "order of a union": lambda: sa.union_all(select(COLUMN), select(COLUMN)).order_by("token"),
    "the column as a condition": lambda: select(Login.id).where(SECRET),
    "the column in AND": lambda: select(Login.id).where(sa.and_(SECRET, Login.id == 1)),
    "the column in OR within AND": lambda: select(Login.id).where(
        Login.id == 1, sa.or_(SECRET, Login.id == 2)
    ),
    "the column in HAVING": lambda: select(Login.id).group_by(Login.id).having(SECRET),
    "the column in CASE": lambda: select(case((SECRET, 1), else_=0)),
    "the column in AND in CASE": lambda: select(case((sa.and_(SECRET, Login.id == 1), 1), else_=0)),
    "the column in FILTER": lambda: select(func.count().filter(SECRET)),
    "the column in ON": lambda: select(TABLE.c.id).join(ARCHIVE, COLUMN),
    "the column of a subquery": lambda: select(Login.id).where(select(SECRET).scalar_subquery()),
    "the column in a DELETE": lambda: sa.delete(Login).where(SECRET),
    "nullif of a typed literal": lambda: select(func.nullif(Login.secret, literal(TOKEN, COLUMN.type))),
    "cast to a text": lambda: select(sa.cast(Login.secret, sa.Text)),
    "cast to a text of an alias": lambda: select(sa.cast(aliased(Login).secret, sa.String(20)).label("x")),
    "cast to a number": lambda: select(sa.cast(Login.secret, sa.Integer)),
    "cast to JSON": lambda: select(sa.cast(Login.secret, sa.JSON)),
    "type_coerce to JSON": lambda: select(sa.type_coerce(Login.secret, sa.JSON)),
    "type_coerce to a flag": lambda: select(sa.type_coerce(Login.secret, sa.Boolean)),
    "a function in ON": lambda: select(TABLE.c.id).join(ARCHIVE, func.lower(COLUMN) == "x"),
    "extract": lambda: select(sa.extract("year", Login.secret)),
    "order within a group": lambda: select(func.string_agg(Login.note, "").within_group(Login.secret)),
    "condition of an upsert": lambda: upsert_note(sqlite, "x", where=literal(TOKEN) == Login.secret),
    "the column as the condition of an upsert": lambda: upsert_note(sqlite, "x", where=COLUMN),
    "type_coerce in an upsert": lambda: upsert_note(
        sqlite, "x", where=sa.type_coerce(COLUMN, sa.LargeBinary) == TOKEN.encode()
    ),
    "condition of the index of an upsert": lambda: upsert_note(
        sqlite, "x", index_where=literal(TOKEN) == Login.secret
    ),
    "value of an upsert": lambda: upsert_note(sqlite, func.nullif(Login.secret, TOKEN)),
    "upsert in a CTE": lambda: select(
        upsert_note(sqlite, func.nullif(COLUMN, TOKEN)).returning(TABLE.c.id).cte("c").c.id
    ),
    "case with another result": lambda: select(case((Login.id == 1, Login.secret), else_=TOKEN)),
}


@pytest.mark.parametrize("make", COMPARED.values(), ids=COMPARED.keys())
def test_comparison_that_ciphertext_cannot_answer_is_refused(
    engine: sa.Engine, make: Callable[[], Any]
) -> None:
    with Session(engine) as session, pytest.raises(UnsupportedComparisonError) as caught:
        session.execute(make())
    assert TOKEN[:20] not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        COMPARED[name]
        for name in ("tuple in", "literal equals", "case", "the column in AND", "the column in ON")
    ],
)
def test_without_the_last_look_it_finds_nothing(
    engine: sa.Engine, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    monkeypatch.setattr(statements, "examine", lambda compiled: ((), None, []))
    with Session(engine) as session:
        assert session.scalar(make()) in (None, 0)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: select(Login.id).where(Login.secret == TOKEN), 1),
        (lambda: select(Login.id).where(Login.secret.in_([TOKEN])), 1),
        (lambda: select(Login.id).where(Login.secret.is_not(None)), 1),
        (lambda: select(Login.id).where(~Login.secret.is_(None)), 1),
        (lambda: select(func.count(Login.secret)), 1),
        (lambda: select(Login.id).group_by(Login.id).having(func.count(Login.secret) == 1), 1),
        (lambda: select(case((Login.secret == TOKEN, 1), else_=0)), 1),
        (lambda: select(case((Login.note == "n", Login.secret), else_=None)), TOKEN),
        (lambda: select(Login.id.label("token")).order_by("token"), 1),
        (lambda: select(Login.id).where(Login.secret.key_id == RING.active), 1),
        (lambda: select(Login.id).where(Login.secret.is_stale), None),
        (lambda: select(Login.id).where(sa.type_coerce(Login.secret, sa.LargeBinary) != b""), 1),
        (lambda: select(func.length(Login.secret) > 0), 1),
        (lambda: select(func.coalesce(Login.secret, None)), TOKEN),
        (lambda: select(sa.cast(Login.secret, COLUMN.type)), TOKEN),
        (lambda: select(sa.type_coerce(sa.cast(Login.secret, sa.LargeBinary), COLUMN.type)), TOKEN),
        (lambda: select(Login.id).where(sa.and_(Login.secret.is_not(None), sa.true())), 1),
        (lambda: select(Login.id).where(sa.exists(select(Archive.token))), 1),
    ],
)
def test_question_that_can_be_answered_is(engine: sa.Engine, make: Callable[[], Any], expected: Any) -> None:
    with Session(engine) as session:
        assert expected == session.scalar(make())
