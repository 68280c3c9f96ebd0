"""A column whose type in the database does not hold its envelopes is named before one is written."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from jwt_column import ConfigurationError, EncryptedJWT, KeyRing
from jwt_column.column import statements
from tests.support.models import mapped
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

RING = KeyRing.generate()
TOKEN = signed_token(sub="alice")

MISFITS: list[tuple[Any, Any]] = [
    ("binary", sa.Text()),
    ("binary", sa.String(4000)),
    ("text", sa.LargeBinary()),
    ("binary", sa.JSON()),
    ("text", sa.JSON()),
]
FITS: list[tuple[Any, Any]] = [("binary", sa.LargeBinary()), ("text", sa.Text()), ("text", sa.String(4000))]


def tables(storage: Any, type_: Any, name: str = "t", schema: str | None = None) -> list[Any]:
    """Return a table as the database has it, and as the application declares it."""
    types = (type_, EncryptedJWT(RING, storage=storage))
    return [
        sa.Table(
            name,
            sa.MetaData(),
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("The token", one, key="token"),
            schema=schema,
        )
        for one in types
    ]


@pytest.mark.each_server
def test_a_column_of_another_type_is_named_before_the_first_write(driver_engine: sa.Engine) -> None:
    for storage, type_ in MISFITS:
        stored, declared = tables(storage, type_)
        with driver_engine.connect() as connection:
            stored.drop(connection, checkfirst=True)
            stored.create(connection)
            if driver_engine.dialect.name == "sqlite":
                # The control: SQLite stores either form as it is, and loads it.
                connection.execute(declared.insert(), {"id": 1, "token": TOKEN})
                assert connection.scalar(sa.select(declared.c.token)) == TOKEN
            elif driver_engine.dialect.name == "postgresql":
                for write in (
                    declared.insert().values(id=1, token=TOKEN),
                    declared.insert(),
                    declared.update().values(token=TOKEN),
                ):
                    for _ in range(2):
                        with pytest.raises(
                            ConfigurationError, match=r"^t\.The token is declared with storage="
                        ):
                            connection.execute(write, {"id": 2})
            stored.drop(connection)


@pytest.mark.each_server
def test_a_column_that_fits_is_looked_at_once(driver_engine: sa.Engine) -> None:
    sent: list[str] = []
    sa.event.listen(driver_engine, "before_cursor_execute", lambda *given: sent.append(given[2]))
    for storage, type_ in FITS:
        stored, declared = tables(storage, type_, f"Odd {storage} {type(type_).__name__}")
        with driver_engine.connect() as connection:
            stored.create(connection)
            sent.clear()
            for id_ in (1, 2, 3):
                connection.execute(declared.insert().values(id=id_, token=TOKEN))
                connection.execute(declared.insert().values([{"id": id_ + 10, "token": TOKEN}]))
            looks = [one for one in sent if "pg_attribute" in one]
            assert len(looks) == (driver_engine.dialect.name == "postgresql")
            assert connection.scalars(sa.select(declared.c.token)).all() == [TOKEN] * 6
            stored.drop(connection)


def test_a_table_that_the_engine_created_is_not_looked_at(postgresql: sa.Engine) -> None:
    sent: list[str] = []
    sa.event.listen(postgresql, "before_cursor_execute", lambda *given: sent.append(given[2]))
    with postgresql.begin() as connection:
        connection.execute(sa.schema.CreateSchema("elsewhere"))
    translations: list[dict[Any, str]] = [{}, {None: "elsewhere"}]
    for translated in translations:
        stored, declared = tables("binary", sa.Text())
        with postgresql.connect().execution_options(schema_translate_map=translated) as connection:
            declared.metadata.create_all(connection)
            connection.execute(declared.insert(), {"id": 1, "token": TOKEN})
            connection.execute(declared.update().values(token=TOKEN))
            assert not [one for one in sent if "pg_attribute" in one]
            # The next table of the name is another.
            declared.metadata.drop_all(connection)
            stored.create(connection)
            with pytest.raises(ConfigurationError, match=r"a column of type text"):
                connection.execute(declared.insert().values(id=1, token=TOKEN))
            assert [one for one in sent if "pg_attribute" in one]
            sent.clear()


def test_statements_without_a_connection_are_not_noted() -> None:
    sent: list[Any] = []
    engine = sa.create_mock_engine(
        "postgresql+psycopg://", lambda statement, *_, **__: sent.append(statement)
    )
    _, declared = tables("binary", sa.Text())
    declared.metadata.create_all(engine, checkfirst=False)
    declared.metadata.drop_all(engine, checkfirst=False)
    assert len(sent) == 2


def test_the_schema_of_the_statement_is_looked_at(postgresql: sa.Engine) -> None:
    right, declared = tables("text", sa.Text(), schema="Right")
    wrong, _ = tables("text", sa.LargeBinary(), schema="wrong")
    with postgresql.connect() as connection:
        for table in (right, wrong):
            connection.execute(sa.schema.CreateSchema(table.schema))
            table.create(connection)
        connection.execute(declared.insert(), {"id": 1, "token": TOKEN})
        translated = connection.execution_options(schema_translate_map={"Right": "wrong"})
        with pytest.raises(ConfigurationError, match="bytea"):
            translated.execute(declared.insert(), {"id": 1, "token": TOKEN})


def test_asynchronous_drivers_look_too(async_driver_engine: AsyncEngine) -> None:
    stored, declared = tables("binary", sa.Text())

    async def scenario() -> None:
        async with async_driver_engine.connect() as connection:
            await connection.run_sync(stored.create)
            if async_driver_engine.dialect.name == "sqlite":
                await connection.execute(declared.insert(), {"id": 1, "token": TOKEN})
            else:
                with pytest.raises(ConfigurationError, match="storage='binary'"):
                    await connection.execute(declared.insert(), [{"id": 1, "token": TOKEN}] * 2)

    asyncio.run(scenario())


def test_the_unit_of_work_is_stopped(postgresql: sa.Engine) -> None:
    with Session(postgresql) as session:
        session.execute(sa.text("CREATE TABLE logins (id integer PRIMARY KEY, token text)"))
        session.add(mapped(token=EncryptedJWT(RING))(id=1, token=TOKEN))
        with pytest.raises(ConfigurationError, match=r"logins\.token"):
            session.flush()


def test_without_the_look_postgresql_stores_what_nothing_opens(
    postgresql: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    monkeypatch.setattr(statements, "storage_refusal", lambda *_: None)
    stored, declared = tables("binary", sa.Text())
    with postgresql.connect() as connection:
        stored.create(connection)
        connection.execute(declared.insert(), {"id": 1, "token": TOKEN})
        assert str(connection.scalar(sa.select(stored.c.token))).startswith("\\x01")
