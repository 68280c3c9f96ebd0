"""The access trail: every decryption is told of once, to whom it belongs, and nothing of a value with it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from jwt_column import (
    ConfigurationError,
    DecryptionError,
    EncryptedJWT,
    KeyRing,
    MissingExtraError,
    SealedJWT,
    decrypt_token,
    encrypt_token,
    generate_key,
    set_default_keyring,
)
from jwt_column.access_trail import Access, logging_sink, opentelemetry_sink, set_access_sink
from tests.support.models import mapped
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Iterator

OLD, NEW = generate_key(), generate_key()
ring_of_old = KeyRing([OLD])
RING = KeyRing([NEW, OLD])
OLD_ID, NEW_ID = ring_of_old.active, RING.active


Login = mapped(
    token=EncryptedJWT(),
    text=EncryptedJWT(storage="text", fingerprints=["jti"]),
    bound=EncryptedJWT(bound_to=["id"]),
    sealed=EncryptedJWT(undecryptable="sealed"),
)
LOGINS: Any = Login.__table__
TOKEN, TEXT = sa.select(LOGINS.c.id, LOGINS.c.token), sa.select(LOGINS.c.id, LOGINS.c.text)


@pytest.fixture
def told() -> Iterator[list[Access]]:
    """What the sink is told; the default ring is set."""
    accesses: list[Access] = []
    set_default_keyring(RING)
    set_access_sink(accesses.append)
    yield accesses
    set_access_sink(None)


@pytest.fixture
def filled(engine: sa.Engine, told: list[Access]) -> sa.Engine:
    """Two rows under the old key and three under the new one."""
    Login.metadata.create_all(engine)
    for ring, ids in ((ring_of_old, (1, 2)), (RING, (3, 4, 5))):
        set_default_keyring(ring)
        with Session(engine) as session:
            for id_ in ids:
                token = signed_token(jti=str(id_))
                session.add(Login(id=id_, token=token, text=token, bound=token, sealed=token))
            session.commit()
    assert told == []
    return engine


def by_key(column: str, tag: str | None) -> Counter[Access]:
    return Counter([Access(column, OLD_ID, 2, tag), Access(column, NEW_ID, 3, tag)])


@pytest.mark.parametrize("column", ["token", "text", "sealed", "bound"])
def test_orm_statement_is_told_of_by_column_and_key(
    filled: sa.Engine, told: list[Access], column: str
) -> None:
    statement = sa.select(Login).options(sa.orm.load_only(getattr(Login, column)))
    with Session(filled) as session:
        session.scalars(statement, execution_options={"jwt_column_tag": "login page"}).all()
    assert Counter(told) == by_key(f"logins.{column}", "login page")


def test_many_rows_in_one_statement_are_counted_each(filled: sa.Engine, told: list[Access]) -> None:
    # The short cut for rows that begin alike begins with the second row of a key.
    with filled.connect() as connection:
        for _ in range(3):
            connection.execute(TOKEN).all()
    assert sum(access.count for access in told) == 15


def test_statement_that_returns_no_encrypted_column_is_no_news(filled: sa.Engine, told: list[Access]) -> None:
    with filled.connect() as connection:
        connection.execute(sa.select(LOGINS.c.id)).all()
        connection.execute(sa.text("SELECT token FROM logins")).all()
    assert told == []


def test_tag_of_the_connection_and_the_engine(filled: sa.Engine, told: list[Access]) -> None:
    tagged = filled.execution_options(jwt_column_tag="worker")
    with tagged.connect() as connection:
        connection.execute(TOKEN).all()
        connection.execute(TOKEN, execution_options={"jwt_column_tag": "own"}).all()
    assert by_key("logins.token", "worker") + by_key("logins.token", "own") == Counter(told)


def test_nothing_is_told_before_the_statement_is_over(filled: sa.Engine, told: list[Access]) -> None:
    with filled.connect() as connection:
        connection.execute(TOKEN).all()
        assert told == []
        connection.commit()
        assert Counter(told) == by_key("logins.token", None)
        connection.execute(TEXT).all()
        connection.rollback()
        assert Counter(told) == by_key("logins.token", None) + by_key("logins.text", None)
    assert len(told) == 4


def test_statements_in_between_take_nothing_from_a_result(filled: sa.Engine, told: list[Access]) -> None:
    with filled.connect() as reading, filled.connect() as other:
        result = reading.execute(TOKEN.execution_options(jwt_column_tag="export"))
        for row in result:
            other.execute(sa.select(sa.func.count()).where(LOGINS.c.id == row.id)).scalar_one()
    assert Counter(told) == by_key("logins.token", "export")


def test_result_still_fetched_is_told_in_parts(filled: sa.Engine, told: list[Access]) -> None:
    with filled.connect() as connection:
        result = connection.execute(TOKEN.order_by(LOGINS.c.id), execution_options={"jwt_column_tag": "slow"})
        assert len(result.fetchmany(2)) == 2
        assert told == []
        connection.execute(sa.select(sa.literal(1))).scalar_one()
        assert told == [Access("logins.token", OLD_ID, 2, "slow")]
        result.all()
    assert told[1:] == [Access("logins.token", NEW_ID, 3, "slow")]


def test_threads_do_not_mix(filled: sa.Engine, told: list[Access]) -> None:
    both = threading.Barrier(2)

    def read(statement: sa.Select[Any], tag: str) -> None:
        with filled.connect() as connection:
            result = connection.execute(statement, execution_options={"jwt_column_tag": tag})
            both.wait()
            result.all()

    threads = [threading.Thread(target=read, args=pair) for pair in ((TOKEN, "one"), (TEXT, "two"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(told) == by_key("logins.token", "one") + by_key("logins.text", "two")


def test_asyncio_tasks_do_not_mix(async_driver_engine: AsyncEngine, told: list[Access]) -> None:
    async def read(column: str) -> None:
        attribute = getattr(Login, column)
        async with AsyncSession(async_driver_engine) as session:
            statement = sa.select(attribute).execution_options(jwt_column_tag=column)
            streamed = await session.stream(statement)
            async for _ in streamed:
                await asyncio.sleep(0)

    async def run() -> None:
        async with async_driver_engine.begin() as connection:
            await connection.run_sync(Login.metadata.create_all)
        async with AsyncSession(async_driver_engine) as session:
            session.add_all([Login(token=signed_token(), text=signed_token()) for _ in range(20)])
            await session.commit()
        await asyncio.gather(read("token"), read("text"))
        await async_driver_engine.dispose()

    asyncio.run(run())
    totals: Counter[tuple[str, str | None]] = Counter()
    for access in told:
        totals[access.column, access.tag] += access.count
    assert totals == {("logins.token", "token"): 20, ("logins.text", "text"): 20}


def test_without_a_statement_each_token_is_told_of_at_once(told: list[Access]) -> None:
    stored = encrypt_token(signed_token(), RING, context="cache")
    decrypt_token(stored, RING, context="cache")
    assert told == [Access("cache", NEW_ID, 1, None)]


def test_value_that_is_revealed_later_belongs_to_no_statement(filled: sa.Engine, told: list[Access]) -> None:
    set_default_keyring(KeyRing([OLD]))
    with Session(filled) as session:
        values = session.scalars(sa.select(Login.sealed).where(Login.id >= 2).order_by(Login.id)).all()
    assert told == [Access("logins.sealed", OLD_ID, 1, None)]
    set_default_keyring(RING)
    sealed = values[1]
    assert isinstance(sealed, SealedJWT)
    sealed.reveal()
    assert told[1:] == [Access("logins.sealed", NEW_ID, 1, None)]


def test_what_does_not_open_is_not_told_of(told: list[Access]) -> None:
    stored = encrypt_token(signed_token(), RING, context="cache")
    with pytest.raises(DecryptionError):
        decrypt_token(stored, RING, context="another")
    assert told == []


def test_without_a_sink_nothing_listens(filled: sa.Engine, told: list[Access]) -> None:
    set_access_sink(None)
    set_access_sink(None)
    with filled.connect() as connection:
        connection.execute(TOKEN).all()
        assert "jwt_column.access_trail" not in connection.info
    assert told == []


def test_sink_set_twice_is_told_once(filled: sa.Engine, told: list[Access]) -> None:
    set_access_sink(told.append)
    with filled.connect() as connection:
        connection.execute(TOKEN).all()
    assert Counter(told) == by_key("logins.token", None)


def test_sink_taken_away_during_a_statement(filled: sa.Engine, told: list[Access]) -> None:
    with filled.connect() as connection:
        result = connection.execute(TOKEN)
        result.fetchone()
        set_access_sink(None)
        result.all()
    assert told == []


def test_sink_is_a_function() -> None:
    with pytest.raises(ConfigurationError, match="sink is a function, not list"):
        set_access_sink([])  # type: ignore[arg-type]


def test_sink_that_fails_loses_no_row(
    filled: sa.Engine, told: list[Access], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(accessed: Access) -> None:
        raise OSError("the network, and what it said: " + "secret")

    set_access_sink(fail)
    with filled.connect() as connection:
        assert len(connection.execute(TOKEN).all()) == 5
    assert f"the access sink failed (OSError); lost: 2 of logins.token under key {OLD_ID}" in caplog.messages
    assert "secret" not in caplog.text


def test_logging_sink(filled: sa.Engine, caplog: pytest.LogCaptureFixture, told: list[Access]) -> None:
    set_access_sink(logging_sink())
    with caplog.at_level(logging.INFO, logger="jwt_column.access"), filled.connect() as connection:
        connection.execute(TOKEN.where(LOGINS.c.id == 1).execution_options(jwt_column_tag="page")).all()
    (record,) = caplog.records
    assert record.getMessage() == f"1 of logins.token decrypted under key {OLD_ID}, tag page"
    attributes = {"jwt_column": "logins.token", "jwt_key_id": OLD_ID, "jwt_count": 1, "jwt_tag": "page"}
    assert attributes.items() <= record.__dict__.items()


def test_logging_sink_of_another_logger_and_level(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="audit"):
        logging_sink(logging.getLogger("audit"), logging.WARNING)(Access("a.b", "00000000", 1, None))
    assert caplog.record_tuples == [
        ("audit", logging.WARNING, "1 of a.b decrypted under key 00000000, tag None")
    ]


def test_opentelemetry_sink(filled: sa.Engine, told: list[Access]) -> None:
    reader = InMemoryMetricReader()
    set_access_sink(opentelemetry_sink(MeterProvider(metric_readers=[reader])))
    with filled.connect() as connection:
        connection.execute(TOKEN.execution_options(jwt_column_tag="page")).all()
        connection.execute(TEXT.where(LOGINS.c.id == 5)).all()
        connection.execute(TEXT.where(LOGINS.c.id == 5)).all()
    data: Any = reader.get_metrics_data()
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    assert (metric.name, metric.unit) == ("jwt_column.decryptions", "{token}")
    counted = {tuple(sorted(point.attributes.items())): point.value for point in metric.data.data_points}
    column, key_id, tag = "jwt_column.column", "jwt_column.key_id", ("jwt_column.tag", "page")
    assert counted == {
        ((column, "logins.token"), (key_id, OLD_ID), tag): 2,
        ((column, "logins.token"), (key_id, NEW_ID), tag): 3,
        ((column, "logins.text"), (key_id, NEW_ID)): 2,
    }


def test_opentelemetry_sink_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.metrics", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'jwt-column\[opentelemetry\]'"):
        opentelemetry_sink()


def test_sink_may_take_itself_away(filled: sa.Engine, told: list[Access]) -> None:
    def tell_once(accessed: Access) -> None:
        set_access_sink(None)
        told.append(accessed)

    set_access_sink(tell_once)
    with filled.connect() as connection:
        connection.execute(TOKEN).all()
    assert len(told) == 1


def test_connection_that_is_lost_takes_nothing_along(filled: sa.Engine, told: list[Access]) -> None:
    with filled.connect() as connection:
        connection.execute(TOKEN).all()
        connection.invalidate()
        assert Counter(told) == by_key("logins.token", None)
        connection.rollback()
        connection.execute(TEXT).all()
    assert Counter(told) == by_key("logins.token", None) + by_key("logins.text", None)


def test_closing_a_lost_connection_is_not_hindered(filled: sa.Engine, told: list[Access]) -> None:
    with filled.connect() as connection, connection.begin() as transaction:
        connection.execute(TOKEN).all()
        connection.invalidate()
        with pytest.raises(sa.exc.PendingRollbackError):
            connection.execute(TOKEN)
        transaction.rollback()
    assert Counter(told) == by_key("logins.token", None)
