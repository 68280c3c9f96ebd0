"""Statements whose answer about ciphertext means nothing warn once, at the line that executes them."""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import func, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, aliased

from jwt_column import JWT, EncryptedJSON, EncryptedJWT, KeyRing, UnsupportedComparisonError
from jwt_column.errors import CiphertextWarning
from tests.support.models import mapped, session_on
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RING = KeyRing.generate()
TOKEN = signed_token(sub="alice")


Login = mapped(
    token=EncryptedJWT(RING, fingerprints=["token"]),
    second=EncryptedJWT(RING, storage="text"),
    response=EncryptedJSON(RING),
    old=EncryptedJWT(RING, storage="text", plaintext="write"),
)


@pytest.fixture
def session(memory: sa.Engine) -> Iterator[Session]:
    rows = [Login(id=1, token=TOKEN, second=TOKEN, old=TOKEN), Login(id=2, token=TOKEN)]
    with session_on(memory, *rows) as session:
        yield session


MISUSES: dict[str, Callable[[], Any]] = {
    "distinct": lambda: select(Login.token).distinct(),
    "distinct of an alias": lambda: select(aliased(Login).token).distinct(),
    "distinct of a subquery": lambda: select(select(Login.token).subquery().c.token).distinct(),
    "group by": lambda: select(func.count(Login.id)).group_by(Login.token),
    "group by its name": lambda: select(func.count(Login.id)).group_by("token"),
    "group by with another column": lambda: select(Login.second).group_by(Login.second, Login.old),
    "union": lambda: sa.union(select(Login.token), select(Login.token)),
    "except": lambda: sa.except_(select(Login.token), select(Login.token).where(Login.id == 1)),
    "partition by": lambda: select(func.row_number().over(partition_by=Login.token)),
    "max": lambda: select(func.max(Login.token)),
    "min of text": lambda: select(func.min(Login.second)),
    "a function": lambda: select(func.lower(Login.second)),
    "a function of several": lambda: select(func.printf(sa.literal_column("'%s'"), Login.second)),
}  # fmt: skip


@pytest.mark.parametrize("name", MISUSES)
def test_a_misuse_warns_once_and_names_the_column(session: Session, name: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            session.execute(MISUSES[name]()).all()
    (warning,) = caught
    assert warning.category is CiphertextWarning
    assert str(warning.message).startswith(("logins.token: ", "logins.second: "))
    assert warning.filename == __file__
    assert TOKEN[:20] not in str(warning.message)


GOOD: dict[str, Callable[[], Any]] = {
    "select": lambda: select(Login),
    "distinct entities": lambda: select(Login).distinct(),
    "distinct with the key": lambda: select(Login.id, Login.token).distinct(),
    "group by with the key": lambda: select(Login.token).group_by(Login.id, Login.token),
    "group by the names of both": lambda: select(func.count()).select_from(Login).group_by("id", "token"),
    "distinct key ids": lambda: select(Login.token.key_id).distinct(),
    "union all": lambda: sa.union_all(select(Login.token), select(Login.token)),
    "union with the key": lambda: sa.union(select(Login.id, Login.token), select(Login.id, Login.token)),
    "count": lambda: select(func.count(Login.token)),
    "coalesce": lambda: select(func.coalesce(Login.token, None)),
    "length": lambda: select(func.length(Login.token)),
    "last of a window": lambda: select(func.last_value(Login.token).over(order_by=Login.id)),
    "bytes": lambda: select(Login.id).where(sa.type_coerce(Login.token, sa.LargeBinary) != b""),
    "an envelope": lambda: select(Login.id).where(sa.type_coerce(Login.second, sa.Text) == "jc" + "01" * 60 + ".AAAA"),
    "prefix": lambda: select(Login.id).where(sa.type_coerce(Login.second, sa.Text).like("jc01%")),
    "plaintext that is still written": lambda: select(Login.id).where(sa.type_coerce(Login.old, sa.Text) == TOKEN),
    "look-up": lambda: select(Login.id).where(Login.token == TOKEN),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_sensible_use_does_not_warn(session: Session, name: str) -> None:
    session.execute(GOOD[name]()).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: select(sa.cast(Login.second, sa.Text).ilike("eyJ%")),
        lambda: select(Login.id).where(sa.cast(Login.second, sa.Text).ilike("eyJ%")),
        lambda: select(sa.cast(Login.token, sa.Text) == TOKEN),
        lambda: select(Login.id).where(sa.type_coerce(Login.second, sa.String) == TOKEN),
        lambda: select(Login.id).where(sa.type_coerce(Login.token, sa.Text) != TOKEN),
        lambda: select(Login.id).where(sa.type_coerce(Login.token, sa.LargeBinary) == TOKEN.encode()),
        lambda: select(Login.id).where(sa.type_coerce(Login.second, sa.Text).in_([TOKEN])),
        lambda: select(Login.id).where(sa.type_coerce(Login.second, sa.Text).is_distinct_from(TOKEN)),
        lambda: select(Login.id).where(sa.literal(TOKEN) == sa.type_coerce(Login.second, sa.Text)),
        lambda: select(sa.type_coerce(aliased(Login).second, sa.Text) == TOKEN),
        lambda: select(Login.id).where(sa.type_coerce(Login.response, sa.JSON)["a"].as_string() == TOKEN),
        lambda: select(Login.id).where(sa.type_coerce(Login.response, sa.JSON) == {"a": TOKEN}),
        lambda: select(sa.type_coerce(Login.response, postgresql.JSONB).contains({"a": TOKEN})),
        lambda: select(func.row_number().over(order_by=Login.token)),
        lambda: select(Login.id).order_by(Login.token),
    ],
)
def test_a_question_that_has_no_answer_is_refused(session: Session, make: Callable[[], Any]) -> None:
    with pytest.raises(UnsupportedComparisonError, match=r"^logins\.(token|second|response): "):
        session.execute(make())


def test_count_of_distinct_is_refused_or_warns(session: Session) -> None:
    """SQLAlchemy 2.1 builds it by the column's operator, and 2.0 does not."""
    with pytest.raises((UnsupportedComparisonError, CiphertextWarning), match=r"^logins\.token: "):
        session.execute(select(func.count(sa.distinct(Login.token))))


def test_a_warning_that_is_an_error_stops_the_statement(session: Session) -> None:
    for _ in range(2):
        with pytest.raises(CiphertextWarning):
            session.execute(MISUSES["max"]())


def test_a_token_in_plain_sql_warns(session: Session) -> None:
    connection = session.connection()
    token = JWT(TOKEN)
    runs: list[Callable[[], Any]] = [
        lambda: connection.execute(text("UPDATE logins SET old = :t"), {"t": token}),
        lambda: connection.execute(text("UPDATE logins SET old = :t"), [{"t": TOKEN}, {"t": token}]),
        lambda: connection.exec_driver_sql("UPDATE logins SET old = ?", (token,)),
        lambda: connection.exec_driver_sql(
            "UPDATE logins SET old = ? WHERE id = ?", [(token, 1), (TOKEN, 2)]
        ),
        lambda: session.execute(text("SELECT :t"), {"t": token}),
    ]
    for run in runs:
        with pytest.warns(CiphertextWarning, match="in the clear") as caught:
            run()
        assert TOKEN[:20] not in str(caught[0].message)
    typed = text("UPDATE logins SET token = :t").bindparams(sa.bindparam("t", type_=Login.token.type))
    connection.execute(typed, {"t": token})
    connection.execute(text("UPDATE logins SET token = NULL WHERE id = :i"), {"i": 1})
    assert session.scalar(select(Login.token).where(Login.id == 2)) == TOKEN


def test_an_asynchronous_session_warns_too() -> None:
    async def scenario() -> None:
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=sa.StaticPool)
        try:
            async with engine.begin() as connection:
                await connection.run_sync(Login.metadata.create_all)
            async with AsyncSession(engine) as session:
                with pytest.warns(CiphertextWarning, match="GROUP BY"):
                    await session.execute(select(func.count(Login.id)).group_by(Login.token))
        finally:
            await engine.dispose()

    asyncio.run(scenario())
