"""The expiry in SQL: compared and sorted as stored, on every database; and purges that delete by it."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, aliased

from jwt_column import (
    JWT,
    ConfigurationError,
    EncryptedJWT,
    KeyRing,
    UnsupportedComparisonError,
    encrypt_token,
    purge_expired,
    set_default_keyring,
)
from tests.support.models import mapped, session_on
from tests.support.raw import raw_table
from tests.support.tokens import compact, signed_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.each_server

RING = KeyRing.generate()
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
EXPIRIES: dict[int, datetime | None] = {1: NOW - HOUR, 2: NOW, 3: NOW + HOUR, 4: None, 5: None}


def token_until(moment: datetime | None, **claims: Any) -> str:
    return signed_token(**claims) if moment is None else signed_token(exp=int(moment.timestamp()), **claims)


Login = mapped(
    token=EncryptedJWT(expose_expiry=True, fingerprints=["jti"]),
    text=EncryptedJWT(expose_expiry=True, storage="text"),
    bare=EncryptedJWT(),
)
LOGINS: Any = Login.__table__


@pytest.fixture(autouse=True)
def _default_ring() -> None:
    set_default_keyring(RING)


def rows() -> list[Any]:
    """Rows that have expired, expire now, expire later, never expire (4), and hold no token (5)."""
    made = [Login(id=id_, token=(one := token_until(EXPIRIES[id_])), text=one) for id_ in (1, 2, 3, 4)]
    return [*made, Login(id=5)]


@pytest.fixture
def session(engine: sa.Engine) -> Iterator[Session]:
    with session_on(engine, *rows()) as session:
        yield session


def columns() -> Iterator[tuple[Any, Any]]:
    alias, subquery = aliased(Login), sa.select(Login).subquery()
    for source in (Login, alias, LOGINS.c, LOGINS.alias().c, subquery.c):
        for name in ("token", "text"):
            yield getattr(source, name), source.id


CONDITIONS: list[tuple[Callable[[Any], Any], list[int]]] = [
    (lambda when: when < NOW, [1]),
    (lambda when: when <= NOW, [1, 2]),
    (lambda when: when == NOW, [2]),
    (lambda when: when != NOW, [1, 3]),
    (lambda when: when >= NOW, [2, 3]),
    (lambda when: when > NOW, [3]),
    (lambda when: NOW > when, [1]),  # noqa: SIM300
    (lambda when: when.between(NOW, NOW + HOUR), [2, 3]),
    (lambda when: when.in_([NOW, NOW + HOUR]), [2, 3]),
    (lambda when: when.not_in([NOW]), [1, 3]),
    (lambda when: when.is_(None), [4, 5]),
    (lambda when: when == None, [4, 5]),  # noqa: E711
    (lambda when: when.is_not(None), [1, 2, 3]),
    (lambda when: sa.not_(when <= NOW), [3]),
    # Fractions of a second, other time zones and the ends of time.
    (lambda when: when < NOW + timedelta(microseconds=1), [1, 2]),
    (lambda when: when >= NOW + timedelta(microseconds=1), [3]),
    (lambda when: when <= NOW + timedelta(microseconds=1), [1, 2]),
    (lambda when: when > NOW - timedelta(microseconds=1), [2, 3]),
    (lambda when: when == NOW.astimezone(timezone(timedelta(hours=9))), [2]),
    (lambda when: when < datetime.max.replace(tzinfo=UTC), [1, 2, 3]),
    (lambda when: when > datetime(1960, 1, 1, tzinfo=UTC), [1, 2, 3]),
]


@pytest.mark.parametrize(("build", "expected"), CONDITIONS)
def test_expiry_is_compared_like_a_time(
    session: Session, build: Callable[[Any], Any], expected: list[int]
) -> None:
    for column, id_ in columns():
        found = sa.select(id_).where(build(column.expires_at)).order_by(id_)
        assert session.scalars(found).all() == expected, column


def test_expiry_is_selected_and_sorted(session: Session) -> None:
    for column, id_ in columns():
        selected = session.execute(sa.select(id_, column.expires_at).order_by(id_)).all()
        assert {row[0]: row[1] for row in selected} == EXPIRIES
        with_expiry = sa.select(id_).where(column.expires_at.is_not(None))
        assert session.scalars(with_expiry.order_by(column.expires_at)).all() == [1, 2, 3]
        assert session.scalars(with_expiry.order_by(column.expires_at.desc())).all() == [3, 2, 1]


def test_expiry_takes_a_parameter_and_meets_another_expiry(session: Session) -> None:
    late = sa.select(Login.id).where(Login.token.expires_at > sa.bindparam("now"))
    assert session.scalars(late, {"now": NOW}).all() == [3]
    with pytest.raises(UnsupportedComparisonError, match="time zone"):
        session.scalars(late, {"now": NOW.replace(tzinfo=None)})
    other = aliased(Login)
    pairs = sa.select(Login.id, other.id).join(other, Login.token.expires_at < other.token.expires_at)
    assert sorted(map(tuple, session.execute(pairs))) == [(1, 2), (1, 3), (2, 3)]


def test_only_rows_with_an_expiry_have_one(engine: sa.Engine) -> None:
    """Where the six bytes would be, another layout and plaintext have bytes that look like a time."""
    LOGINS.create(engine)
    long_past = signed_token(jti="a", exp=5)
    with engine.begin() as connection:
        for id_, token in enumerate(
            [
                encrypt_token(long_past, RING, context="logins.token"),
                encrypt_token(long_past, RING, context="logins.token", fingerprints=["jti"]),
                # Its fingerprint of sixteen zero bytes would be the beginning of 1970.
                encrypt_token(signed_token(exp=5), RING, context="logins.token", fingerprints=["jti"]),
                long_past.encode(),
                b"e" * 6 + bytes(40),
                b"\x01",
                b"",
            ],
            start=1,
        ):
            assert isinstance(token, bytes)
            connection.execute(raw_table(LOGINS).insert().values(id=id_, token=token))
        expires_at = LOGINS.c.token.expires_at
        assert set(connection.scalars(sa.select(expires_at))) == {None}
        assert purge_expired(connection, LOGINS.c.token, before=NOW) == 0
        # The control: an older layout that does have an expiry is read, whatever else it has.
        for id_, names in ((10, ()), (11, ("jti", "sub"))):
            old: Any = encrypt_token(
                long_past, RING, context="logins.token", expose_expiry=True, fingerprints=names
            )
            connection.execute(LOGINS.insert().values(id=id_, token=sa.literal(old, sa.LargeBinary)))
        assert len(connection.scalars(sa.select(LOGINS.c.id).where(expires_at <= NOW)).all()) == 2


@pytest.mark.parametrize("seconds", [0, 253_402_300_799, 253_402_300_800, 2**48 - 2])
def test_expiry_is_that_of_the_token_to_the_ends_of_time(engine: sa.Engine, seconds: int) -> None:
    LOGINS.create(engine)
    token = JWT(compact({"alg": "HS256"}, {"exp": seconds}, b"x"))
    with engine.begin() as connection:
        connection.execute(LOGINS.insert(), {"id": 1, "token": token, "text": token})
        for column in (LOGINS.c.token, LOGINS.c.text):
            assert connection.scalar(sa.select(column.expires_at)) == token.expires_at


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda when: when < NOW.replace(tzinfo=None), "time zone"),
        (lambda when: when.in_([NOW, NOW.replace(tzinfo=None)]), "time zone"),
        (lambda when: when.between(NOW, NOW.replace(tzinfo=None)), "time zone"),
        (lambda when: when < date(2026, 3, 1), "not with date"),
        (lambda when: when == 5, "not with int"),
        (lambda when: when < sa.func.now(), "TIMESTAMP|DATETIME"),
        (lambda when: when < Login.id, "another column"),
        (lambda when: when == Login.token, "another column"),
        (lambda when: when == LOGINS.c.token, "not with an expression"),
        (lambda when: when + HOUR, "add"),
        (lambda when: NOW - when, "sub"),
        (lambda when: when.like("x"), "like"),
        (lambda when: when.in_(sa.select(Login.id)), "in"),
    ],
)
def test_what_makes_no_sense_between_times_is_refused_when_built(
    build: Callable[[Any], Any], match: str
) -> None:
    with pytest.raises(UnsupportedComparisonError, match=match):
        build(Login.token.expires_at)


def test_a_function_that_would_take_the_stored_bytes_for_a_time_is_refused(session: Session) -> None:
    """SQLite answered None for every row, and MariaDB too."""
    for name in ("token", "text"):
        when = getattr(Login, name).expires_at
        for expression in (
            sa.extract("year", when),
            sa.cast(when, sa.DateTime),
            sa.cast(when, sa.Date) == date(2026, 3, 1),
            sa.func.date(when),
            sa.func.sum(when),
            sa.func.max(sa.func.length(when)),
        ):
            with pytest.raises(UnsupportedComparisonError, match="calculate in Python"):
                session.execute(sa.select(Login.id, expression))
            with pytest.raises(UnsupportedComparisonError, match="calculate in Python"):
                session.execute(sa.select(Login.id).where(expression.is_not(None)))
        assert session.scalar(sa.select(sa.func.count(when))) == 3
        if session.get_bind().dialect.name != "postgresql":  # It has no max() of bytes.
            assert session.scalar(sa.select(sa.func.max(when))) == EXPIRIES[3]


def test_a_column_without_the_expiry_says_what_to_declare() -> None:
    with pytest.raises(UnsupportedComparisonError, match="expose_expiry=True") as caught:
        _ = Login.bare.expires_at
    assert caught.value.context == "logins.bare"


# -- purge -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["token", "text"])
def test_purge_deletes_what_has_expired_and_nothing_else(session: Session, name: str) -> None:
    assert purge_expired(session, getattr(Login, name), before=NOW) == 2
    assert session.scalars(sa.select(Login.id).order_by(Login.id)).all() == [3, 4, 5]
    assert purge_expired(session, getattr(Login, name), before=NOW) == 0
    session.rollback()
    assert session.scalar(sa.select(sa.func.count()).select_from(Login)) == 5


def test_purge_before_now_is_the_default(session: Session) -> None:
    """All three times are in the past of whoever runs this, but for a clock that is years behind."""
    session.execute(sa.update(Login).where(Login.id == 3).values(token=token_until(datetime.now(UTC) + HOUR)))
    assert purge_expired(session, Login.token) == 2
    assert session.scalars(sa.select(Login.id).order_by(Login.id)).all() == [3, 4, 5]


def test_purge_makes_the_session_forget(session: Session) -> None:
    kept, gone = session.get_one(Login, 3), session.get_one(Login, 1)
    purge_expired(session, Login.token, before=NOW)
    assert kept in session
    assert gone not in session
    assert session.get(Login, 1) is None


def test_purge_takes_a_core_column_a_connection_and_an_engine(engine: sa.Engine) -> None:
    with session_on(engine, *rows()) as session:
        assert purge_expired(session, LOGINS.c.token, before=NOW - HOUR) == 1
        session.rollback()
    with engine.connect() as connection:
        assert purge_expired(connection, Login.token, before=NOW - HOUR) == 1
        assert purge_expired(connection, LOGINS.c.token, before=NOW - HOUR) == 0
        connection.rollback()
    assert purge_expired(engine, Login.token, before=NOW - HOUR) == 1
    with engine.connect() as connection:
        assert connection.scalars(sa.select(LOGINS.c.id).order_by(LOGINS.c.id)).all() == [2, 3, 4, 5]


@pytest.mark.parametrize("composite", [False, True])
def test_purge_works_in_bounded_batches(engine: sa.Engine, composite: bool) -> None:
    table = sa.Table(
        "many",
        sa.MetaData(),
        sa.Column("a", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("b", sa.String(5), primary_key=composite, nullable=False),
        sa.Column("token", EncryptedJWT(expose_expiry=True)),
    )
    table.create(engine)
    old, new = JWT(token_until(NOW)), JWT(token_until(NOW + HOUR))
    made = [{"a": n // 3 if composite else n, "b": str(n % 3), "token": new if n % 10 == 0 else old}
            for n in range(1200)]  # fmt: skip
    seen: list[int] = []

    def note(*args: Any) -> None:
        if " many" in args[2]:
            seen.append(len(args[3]))

    with engine.begin() as connection:
        connection.execute(table.insert(), made)
        sa.event.listen(connection, "after_cursor_execute", note)
        assert purge_expired(connection, table.c.token, before=NOW) == 1080
        assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 120
    # Three batches, each a SELECT and a DELETE, and the count; none has a parameter for every row of the table. With a
    # composite key a DELETE takes at most 50 values of "a", and a batch of 500 rows, three to a value, has 167.
    assert len(seen) == (13 if composite else 7)
    assert max(seen) <= 999


def test_a_row_that_is_renewed_meanwhile_stays(engine: sa.Engine) -> None:
    with session_on(engine, *rows()) as session:

        def renew(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith("SELECT logins.id"):
                session.connection().execute(
                    LOGINS.update().where(LOGINS.c.id == 1).values(token=token_until(NOW + HOUR))
                )

        connection = session.connection()
        sa.event.listen(connection, "after_cursor_execute", renew)
        assert purge_expired(session, Login.token, before=NOW) == 1
        sa.event.remove(connection, "after_cursor_execute", renew)
        assert session.scalars(sa.select(Login.id).order_by(Login.id)).all() == [1, 3, 4, 5]


def test_purge_runs_in_an_async_session(async_driver_engine: AsyncEngine) -> None:
    async def main() -> None:
        async with async_driver_engine.begin() as connection:
            await connection.run_sync(Login.metadata.create_all)
        async with AsyncSession(async_driver_engine) as session:
            session.add_all(rows())
            await session.commit()
            assert await session.run_sync(purge_expired, Login.token, before=NOW) == 2
            await session.commit()
            assert (await session.scalars(sa.select(Login.id).order_by(Login.id))).all() == [3, 4, 5]
            times = await session.scalars(sa.select(Login.text.expires_at).order_by(Login.id))
            assert times.all() == [NOW + HOUR, None, None]

    asyncio.run(main())


def test_every_driver_reads_and_compares_the_expiry(driver_engine: sa.Engine) -> None:
    Login.metadata.create_all(driver_engine)
    with Session(driver_engine) as session:
        session.add_all(rows())
        session.flush()
        for column in (Login.token, Login.text):
            found = sa.select(column.expires_at).where(column.expires_at <= NOW).order_by(column.expires_at)
            assert session.scalars(found).all() == [NOW - HOUR, NOW]
            wanted = token_until(None, jti="x")
            assert session.scalars(sa.select(Login.id).where(Login.token.claim("jti") == wanted)).all() == []


@pytest.mark.parametrize(
    "column", [None, "logins.token", sa.column("x"), Login.id, sa.func.length(Login.token)]
)
def test_purge_refuses_what_is_no_encrypted_column(column: Any) -> None:
    with sa.create_engine("sqlite://").connect() as connection, pytest.raises(ConfigurationError):
        purge_expired(connection, column)


def test_purge_refuses_what_it_cannot_do() -> None:
    keyless = sa.Table("keyless", sa.MetaData(), sa.Column("token", EncryptedJWT(expose_expiry=True)))
    with sa.create_engine("sqlite://").connect() as connection:
        with pytest.raises(ConfigurationError, match="no primary key"):
            purge_expired(connection, keyless.c.token)
        with pytest.raises(UnsupportedComparisonError, match="expose_expiry=True"):
            purge_expired(connection, Login.bare)
        with pytest.raises(UnsupportedComparisonError, match="time zone"):
            purge_expired(connection, Login.token, before=NOW.replace(tzinfo=None))


def test_a_header_that_somebody_changed_has_no_expiry() -> None:
    """The text form with letters where digits should be; the envelope itself would not open."""
    with sa.create_engine("sqlite://").begin() as connection:
        LOGINS.create(connection)
        stored = encrypt_token(
            signed_token(exp=5), RING, context="logins.text", expose_expiry=True, storage="text"
        )
        assert isinstance(stored, str)
        changed = stored[:14] + "x" * 12 + stored[26:]
        connection.execute(raw_table(LOGINS).insert().values(id=1, text=changed))
        assert connection.scalars(sa.select(LOGINS.c.text.expires_at)).all() == [None]
