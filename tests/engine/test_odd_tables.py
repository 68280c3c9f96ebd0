"""Tables of PostgreSQL whose keys do not tell their rows apart: every token stays in its row, or the run is refused."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from jwt_column import ReencryptionError, decrypt_token
from migrations_helpers import reencrypt
from tests.support.tokens import signed_token
from tests.support.workload import CONTEXT, AnyEngine, Unprotected, after, column_type, run, seal

INHERITANCE = (
    "CREATE TABLE grants (id int PRIMARY KEY, who text, token bytea)",
    "CREATE TABLE archive (PRIMARY KEY (id)) INHERITS (grants)",
)
NO_KEY = "CREATE TABLE grants (id int NOT NULL, other int NOT NULL DEFAULT 0, who text, token bytea)"


def fill(engine: AnyEngine, *tables: str, rows: int = 5) -> None:
    """Insert the same keys into each table, every row with a token that names it."""

    def insert(connection: sa.Connection) -> None:
        for table in tables:
            for number in range(1, rows + 1):
                who = f"{table} {number}"
                connection.execute(
                    sa.text(f"INSERT INTO {table} (id, who, token) VALUES (:id, :who, :token)"),
                    {"id": number, "who": who, "token": seal(signed_token(sub=who))},
                )

    run(engine, insert)


def execute(engine: AnyEngine, *statements: str) -> None:
    run(engine, lambda c: [c.exec_driver_sql(statement) for statement in statements])


def misplaced(engine: AnyEngine) -> int:
    """Return how many rows hold another row's token."""
    rows = run(engine, lambda c: c.execute(sa.text("SELECT who, token FROM grants")).all())
    tokens = [(who, decrypt_token(bytes(stored), after(), context=CONTEXT)) for who, stored in rows]
    return sum(token.unverified_claims["sub"] != who for who, token in tokens)


def reencrypted(engine: AnyEngine, **options: Any) -> int:
    def work(connection: sa.Connection) -> int:
        report = reencrypt(connection, "grants", "token", type_=column_type(), **options)
        assert report.is_complete
        return report.reencrypted

    return run(engine, work, begin=False)


@pytest.mark.parametrize(
    "driver_engine", [("postgresql", driver) for driver in ("psycopg", "psycopg2")], indirect=True
)
@pytest.mark.parametrize("options", [{}, {"strategy": "cas"}, {"batch_size": 3}], ids=str)
def test_tables_that_share_keys_by_inheritance_keep_their_tokens(
    driver_engine: sa.Engine, options: dict[str, Any]
) -> None:
    execute(driver_engine, *INHERITANCE)
    fill(driver_engine, "grants", "archive")
    assert (reencrypted(driver_engine, **options), misplaced(driver_engine)) == (10, 0)


@pytest.mark.parametrize(
    "async_driver_engine",
    [("postgresql", driver) for driver in ("asyncpg", "psycopg")],
    indirect=True,
    ids="-".join,
)
def test_an_asynchronous_driver_too(async_driver_engine: Any) -> None:
    execute(async_driver_engine, *INHERITANCE)
    fill(async_driver_engine, "grants", "archive")
    assert (reencrypted(async_driver_engine), misplaced(async_driver_engine)) == (10, 0)


def test_writing_by_the_key_alone_misplaces_tokens(postgresql: sa.Engine) -> None:
    """The control, of the tests above."""
    execute(postgresql, *INHERITANCE)
    fill(postgresql, "grants", "archive")
    reencrypt(postgresql, "grants", "token", type_=column_type(), strategy=Unprotected())
    assert misplaced(postgresql) == 5


@pytest.mark.parametrize("kind", ["numeric", "double precision"])
@pytest.mark.parametrize("options", [{"strategy": "cas"}, {"verify": "tokens"}], ids=str)
def test_a_key_that_is_not_a_number_is_found_again(
    postgresql: sa.Engine, kind: str, options: dict[str, Any]
) -> None:
    execute(postgresql, f"CREATE TABLE grants (id {kind} PRIMARY KEY, who text, token bytea)")
    fill(postgresql, "grants")
    execute(postgresql, "UPDATE grants SET id = 'NaN' WHERE id = 3")
    report = reencrypt(postgresql, "grants", "token", type_=column_type(), max_passes=1, **options)
    assert (report.reencrypted, report.remaining, misplaced(postgresql)) == (5, 0, 0)
    if report.tokens is not None:
        assert (report.tokens.inserted, report.tokens.removed, report.tokens.unchanged) == (0, 0, 5)


def test_partitions_are_one_table(postgresql: sa.Engine) -> None:
    execute(
        postgresql,
        "CREATE TABLE grants (id int PRIMARY KEY, who text, token bytea) PARTITION BY HASH (id)",
        "CREATE TABLE one PARTITION OF grants FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "CREATE TABLE two PARTITION OF grants FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    )
    fill(postgresql, "grants", rows=20)
    assert (reencrypted(postgresql), misplaced(postgresql)) == (20, 0)


@pytest.mark.parametrize(
    "index",
    [
        "CREATE UNIQUE INDEX ix ON grants (id) WHERE who <> 'archive 1'",
        "CREATE UNIQUE INDEX ix ON grants ((id + other))",
        "ALTER TABLE grants ADD UNIQUE (id) DEFERRABLE INITIALLY DEFERRED",
        "CREATE INDEX ix ON grants (id)",
    ],
)
def test_an_index_that_does_not_tell_rows_apart_is_no_key(index: str, postgresql: sa.Engine) -> None:
    execute(postgresql, NO_KEY, index)
    fill(postgresql, "grants")
    with pytest.raises(ReencryptionError, match="no unique key without NULLs"):
        reencrypted(postgresql)
    execute(postgresql, "CREATE UNIQUE INDEX right_one ON grants (id)")
    assert (reencrypted(postgresql), misplaced(postgresql)) == (5, 0)


def test_the_index_of_a_failed_build_is_no_key(postgresql: sa.Engine) -> None:
    """``CREATE UNIQUE INDEX CONCURRENTLY`` leaves it behind when it finds a key twice."""
    execute(postgresql, NO_KEY)
    fill(postgresql, "grants")
    fill(postgresql, "grants")
    with (
        postgresql.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        pytest.raises(DBAPIError),
    ):
        connection.exec_driver_sql("CREATE UNIQUE INDEX CONCURRENTLY ix ON grants (id)")
    assert [found["name"] for found in sa.inspect(postgresql).get_indexes("grants")] == ["ix"]
    with pytest.raises(ReencryptionError, match="no unique key without NULLs"):
        reencrypted(postgresql)


@pytest.mark.parametrize(
    ("kind", "words"), [("VIEW", "a view"), ("MATERIALIZED VIEW", "a materialized view")]
)
def test_a_view_is_refused_by_its_name(kind: str, words: str, postgresql: sa.Engine) -> None:
    execute(postgresql, NO_KEY, f"CREATE {kind} shown AS SELECT * FROM grants")
    with pytest.raises(ReencryptionError, match=f"shown is {words}; run on the table that holds the rows"):
        reencrypt(postgresql, "shown", "token", type_=column_type())


@pytest.mark.parametrize(
    ("wrapper", "options"),
    [
        ("postgres_fdw", "schema_name 'public', table_name 'grants'"),
        ("file_fdw", "filename '/dev/null', format 'csv'"),
    ],
)
def test_a_foreign_table_is_refused_by_its_name(wrapper: str, options: str, postgresql: sa.Engine) -> None:
    """Rows of another server, or of a file, cannot be locked; a partition of them neither."""
    try:
        execute(postgresql, f"CREATE EXTENSION {wrapper}")
    except DBAPIError:
        pytest.skip(f"this server of PostgreSQL has no {wrapper}, or its role may not create it")
    execute(
        postgresql,
        NO_KEY,
        f"CREATE SERVER elsewhere FOREIGN DATA WRAPPER {wrapper}",
        f"CREATE FOREIGN TABLE shown (id int, token bytea) SERVER elsewhere OPTIONS ({options})",
        "CREATE TABLE parts (id int NOT NULL, token bytea) PARTITION BY LIST (id)",
        "CREATE FOREIGN TABLE part PARTITION OF parts FOR VALUES IN (1) "
        f"SERVER elsewhere OPTIONS ({options})",
    )
    with pytest.raises(
        ReencryptionError, match="shown is a foreign table; run on the table that holds the rows"
    ):
        reencrypt(postgresql, "shown", "token", type_=column_type())
    with pytest.raises(ReencryptionError, match="parts is a table with parts that are foreign tables"):
        reencrypt(postgresql, "parts", "token", type_=column_type(), key_columns=["id"])


@pytest.mark.each_server
def test_a_view_of_another_database_is_refused_too(engine: sa.Engine) -> None:
    blob = {"postgresql": "bytea", "sqlite": "blob"}.get(engine.dialect.name, "blob")
    execute(
        engine,
        f"CREATE TABLE grants (id int PRIMARY KEY, token {blob})",
        "CREATE VIEW shown AS SELECT * FROM grants",
    )
    with pytest.raises(ReencryptionError, match="shown is a view"):
        reencrypt(engine, "shown", "token", type_=column_type())
