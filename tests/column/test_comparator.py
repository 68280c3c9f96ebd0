"""What an encrypted column can say in SQL: whether it is NULL. All else is refused rather than answered wrongly."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from jwt_column import (
    EncryptedJWT,
    JWTColumnError,
    KeyRing,
    UnsupportedComparisonError,
)
from tests.support.models import mapped, session_on
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOKEN = signed_token(sub="alice")

pytestmark = pytest.mark.usefixtures("ring")


Login = mapped(name=sa.String(10), token=EncryptedJWT(), second=EncryptedJWT(storage="text"))


@pytest.fixture
def session(engine: sa.Engine) -> Iterator[Session]:
    """Rows 1 with both tokens and 2 with none."""
    with session_on(
        engine, Login(id=1, name="a", token=TOKEN, second=TOKEN), Login(id=2, name="b")
    ) as session:
        yield session


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda column: column.is_(None), [2]),
        (lambda column: column == None, [2]),  # noqa: E711
        (lambda column: column == sa.null(), [2]),
        (lambda column: column.is_(sa.null()), [2]),
        (lambda column: column.is_not(None), [1]),
        (lambda column: column != None, [1]),  # noqa: E711
        (lambda column: sa.not_(column.is_(None)), [1]),
    ],
)
def test_null_is_answered_on_every_database(
    session: Session, build: Callable[[Any], sa.ColumnElement[bool]], expected: list[int]
) -> None:
    alias = aliased(Login)
    table: Any = Login.__table__
    for column, row in ((Login.token, Login.id), (Login.second, Login.id), (alias.token, alias.id)):
        assert expected == session.scalars(sa.select(row).where(build(column))).all()
    assert expected == session.scalars(sa.select(table.c.id).where(build(table.c.token))).all()


def test_filter_by_none_is_answered_and_by_a_token_refused(session: Session) -> None:
    assert [login.id for login in session.query(Login).filter_by(token=None)] == [2]
    with pytest.raises(UnsupportedComparisonError):
        session.query(Login).filter_by(token=TOKEN)


UNANSWERABLE: dict[str, Callable[[Any], Any]] = {
    "eq": lambda column: column == TOKEN,
    "eq with a parameter's text": lambda column: column == TOKEN,
    "ne": lambda column: column != TOKEN,
    "is": lambda column: column.is_(TOKEN),
    "is_not": lambda column: column.is_not(sa.true()),
    "in": lambda column: column.in_([TOKEN]),
    "in nothing": lambda column: column.in_([]),
    "in a subquery": lambda column: column.in_(sa.select(Login.name)),
    "not_in": lambda column: column.not_in([TOKEN]),
    "is_distinct_from": lambda column: column.is_distinct_from(TOKEN),
    "lt": lambda column: column < TOKEN,
    "le": lambda column: column <= TOKEN,
    "gt": lambda column: column > TOKEN,
    "ge": lambda column: column >= TOKEN,
    "between": lambda column: column.between("a", "b"),
    "like": lambda column: column.like("eyJ%"),
    "ilike": lambda column: column.ilike("eyJ%"),
    "not_like": lambda column: column.not_like("eyJ%"),
    "startswith": lambda column: column.startswith("eyJ"),
    "endswith": lambda column: column.endswith("x"),
    "contains": lambda column: column.contains("x"),
    "icontains": lambda column: column.icontains("x"),
    "match": lambda column: column.match("x"),
    "regexp_match": lambda column: column.regexp_match("x"),
    "regexp_replace": lambda column: column.regexp_replace("x", "y"),
    "concat": lambda column: column.concat("x"),
    "add": lambda column: column + "x",
    "radd": lambda column: "x" + column,
    "neg": lambda column: -column,
    "invert": lambda column: ~column,
    "getitem": lambda column: column["sub"],
    "custom": lambda column: column.op("->>")("sub"),
    "collate": lambda column: column.collate("C"),
    "asc": lambda column: column.asc(),
    "desc": lambda column: column.desc(),
    "nulls_first": lambda column: column.nulls_first(),
    "distinct": lambda column: column.distinct(),
    "any": lambda column: column.any_(),
}


@pytest.mark.parametrize("name", UNANSWERABLE)
def test_what_ciphertext_cannot_answer_is_refused_when_built(name: str) -> None:
    build = UNANSWERABLE[name]
    table: Any = Login.__table__
    for column in (Login.token, table.c.token, table.alias().c.token, sa.select(Login).subquery().c.token):
        with pytest.raises(UnsupportedComparisonError, match=r"^logins\.token: .*ciphertext") as caught:
            build(column)
        assert caught.value.context == "logins.token"
        assert isinstance(caught.value, JWTColumnError)
        assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("name", ["any", "custom", "getitem"])
def test_the_refused_operators_are_those_of_an_ordinary_column(name: str) -> None:
    """The control for the rarer names above: without the type they do not raise our error."""
    plain = sa.column("plain", sa.JSON if name == "getitem" else sa.ARRAY(sa.Text))
    UNANSWERABLE[name](plain)


@pytest.mark.parametrize("compare", [operator.eq, operator.ne])
@pytest.mark.parametrize(
    "other",
    [
        Login.__table__.c.name,
        Login.__table__.c.second,
        sa.func.lower(sa.literal(TOKEN)),
        sa.select(Login.token).scalar_subquery(),
    ],
    ids=["column", "encrypted column", "function", "subquery"],
)
def test_a_comparison_with_another_expression_is_refused_before_it_reaches_a_database(
    session: Session, compare: Any, other: Any
) -> None:
    """SQLAlchemy compares columns itself when it looks for one in a list, so building it cannot raise."""
    condition = compare(Login.token, other)
    with pytest.raises(UnsupportedComparisonError, match=r"^logins\.token: (eq|ne) cannot"):
        session.execute(sa.select(Login).where(condition))
    with pytest.raises(UnsupportedComparisonError):
        str(sa.select(Login).where(sa.or_(condition, Login.id == 1)))


def test_columns_are_found_in_lists_and_sets() -> None:
    token, name = Login.__table__.c.token, Login.__table__.c.name
    assert token in [name, token]
    assert token not in [name, name]
    assert [name, token].index(token) == 1
    assert bool(token == token)
    assert not bool(token != token)


def test_an_annotated_column_equals_its_original() -> None:
    """The ORM puts annotated copies of columns, with the same hash, into its sets."""
    table: Any = Login.__table__
    token = table.c.token
    annotated = token._annotate({"for": "a test"})
    assert (True, hash(token)) == (annotated in {token, table.c.name}, hash(annotated))


def test_a_function_says_what_it_can_of_the_ciphertext(session: Session) -> None:
    lengths = session.scalars(sa.select(sa.func.length(Login.token)).order_by(Login.id)).all()
    assert [lengths[0] > 50, lengths[1] is None] == [True, True]
    assert session.scalar(sa.select(sa.func.count(Login.token))) == 1


def test_a_column_without_a_context_is_called_by_its_name() -> None:
    column = sa.table("t", sa.column("token", EncryptedJWT())).c.token
    for refused in (
        lambda: column == TOKEN,
        lambda: column < TOKEN,
        lambda: column.claim("jti"),
        lambda: column.expires_at,
    ):
        with pytest.raises(UnsupportedComparisonError, match=r"^t\.token: "):
            refused()


def test_in_takes_any_iterable_of_values() -> None:
    token = signed_token()
    table = sa.Table(
        "s", sa.MetaData(), sa.Column("token", EncryptedJWT(KeyRing.generate(), fingerprints=["token"]))
    )
    column = table.c.token
    expected = str(column.in_([token]).compile())
    for values in ((token,), {token}, {token: 1}.keys(), iter([token]), (one for one in [token])):
        assert str(column.in_(values).compile()) == expected
    for value in (token, token.encode(), {token: 1}):
        with pytest.raises(
            UnsupportedComparisonError, match=f"takes a list of values, not one {type(value).__name__}"
        ):
            column.in_(value)


CLAIM_USES: dict[str, Callable[[Any], Any]] = {
    "result": lambda claim: sa.select(claim),
    "order": lambda claim: sa.select(Login.id).order_by(claim),
    "group": lambda claim: sa.select(Login.id).group_by(claim),
    "right side": lambda claim: Login.name == claim,
    "member of a list": lambda claim: Login.name.in_([claim]),
    "argument": lambda claim: sa.func.lower(claim),
}


@pytest.mark.parametrize("name", CLAIM_USES)
def test_a_claim_has_no_value_in_sql(name: str) -> None:
    """Without the refusal, a driver would be given the object as a parameter."""
    column = sa.column("token", EncryptedJWT(KeyRing.generate(), context="t.token", fingerprints=["jti"]))
    with pytest.raises(UnsupportedComparisonError, match=r"^t\.token: a claim has no value in SQL"):
        CLAIM_USES[name](column.claim("jti"))
    CLAIM_USES[name](Login.name)  # the control
