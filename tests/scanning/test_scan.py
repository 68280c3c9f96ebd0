"""``find_plaintext_tokens()``: tables of every kind on every database, and what it must not do."""

from __future__ import annotations

import asyncio
import base64
import json
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.dialects.postgresql import ARRAY, DOMAIN, INET, JSONB, TSVECTOR

from jwt_column import (
    AuditError,
    ConfigurationError,
    EncryptedJWT,
    KeyRing,
    ScanReport,
    audit,
    encrypt_token,
    find_plaintext_tokens,
)
from jwt_column.database.key_order import key_type
from jwt_column.format.readable import MARKS
from jwt_column.scanning import FailedTable, FoundTokens, ScanProgress
from jwt_column.scanning import tables as scanned_tables
from jwt_column.scanning.marks import may_hold_token
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.support.databases import Database

TOKEN = signed_token(sub="alice")


def logs(*columns: Any, name: str = "logs", **options: Any) -> sa.Table:
    key = sa.Column("id", sa.Integer, primary_key=True, autoincrement=False)
    return sa.Table(name, sa.MetaData(), key, *columns, **options)


def fill(engine: sa.Engine, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    with engine.begin() as connection:
        table.create(connection)
        for number, row in enumerate(rows, start=1):
            # Each by itself: a driver may take all rows for what the first one holds.
            connection.execute(table.insert(), {"id": number, **row} if "id" in table.c else row)


def summary(report: ScanReport) -> list[tuple[str, str, int, Any]]:
    return [(found.table, found.column, found.rows, found.primary_key) for found in report]


def test_every_kind_of_column_is_looked_through(engine: sa.Engine) -> None:
    """With a column of each kind that cannot hold a token beside them."""
    table = logs(
        sa.Column("line", sa.Text),
        sa.Column("short", sa.String(1000)),
        sa.Column("document", sa.JSON),
        sa.Column("raw", sa.LargeBinary),
        sa.Column("sealed", EncryptedJWT(KeyRing.generate())),
        sa.Column("number", sa.Numeric(8, 2)),
        sa.Column("flag", sa.Boolean),
        sa.Column("moment", sa.DateTime),
        sa.Column("kind", sa.Enum("eyJ", "other", name="kind")),
        sa.Column("owner", sa.Uuid),
    )
    harmless = {
        "line": "They say eyJ and ewo",
        "document": {"eyJ": None},
        "raw": b"\x00eyJ",
        "kind": "eyJ",
        "flag": True,
    }
    fill(
        engine,
        table,
        [
            harmless,
            {"line": f"Authorization: Bearer {TOKEN}"},
            {"line": f"postgres://user:{TOKEN}@host/db", "short": TOKEN},
            {"document": {"a": [1, {"token": TOKEN}]}, "sealed": TOKEN},
            {"raw": b"\xff\x00" + TOKEN.encode() + b"\x00"},
            {"raw": TOKEN.encode(), "line": "x" * 60_000 + TOKEN},
        ],
    )  # fmt: skip
    for sample in (None, 10_000, 6):
        report = find_plaintext_tokens(engine, sample=sample)
        assert summary(report) == [
            ("logs", "document", 1, (4,)),
            ("logs", "line", 3, (2,)),
            # The last rows of a sample come from the end.
            ("logs", "raw", 2, (6,) if sample == 6 else (5,)),
            ("logs", "short", 1, (3,)),
        ]
        assert (report.tables, report.rows, report.failed, report.ok) == (1, 6, (), False)
        assert {found.examined for found in report} == {6}
        assert {found.complete for found in report} == {sample != 6}
        assert "eyJ" not in report.to_json()
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 6


@pytest.mark.each_server
def test_a_database_without_readable_tokens_is_ok(engine: sa.Engine) -> None:
    """The control of the test above: a column of envelopes, in both storage forms, and an empty table."""
    ring = KeyRing.generate()
    fill(
        engine,
        logs(sa.Column("binary", sa.LargeBinary), sa.Column("text", sa.Text)),
        [
            {
                "binary": encrypt_token(TOKEN, ring, context="c"),
                "text": encrypt_token(TOKEN, ring, context="c", storage="text"),
            }
        ]
        * 200,
    )
    fill(engine, logs(sa.Column("line", sa.Text), name="empty"), [])
    report = find_plaintext_tokens(engine)
    assert (report.ok, list(report), report.tables, report.rows) == (True, [], 2, 200)
    assert report.columns == (5 if engine.dialect.name == "sqlite" else 3)


def test_every_driver_reads_every_kind_of_column(driver_engine: sa.Engine) -> None:
    fill(
        driver_engine,
        logs(sa.Column("line", sa.Text), sa.Column("document", sa.JSON), sa.Column("raw", sa.LargeBinary)),
        [{"line": TOKEN, "document": {"a": TOKEN}, "raw": TOKEN.encode()}],
    )
    assert [found.column for found in find_plaintext_tokens(driver_engine)] == ["document", "line", "raw"]


def test_an_async_connection_runs_it(async_driver_engine: AsyncEngine) -> None:
    table = logs(sa.Column("line", sa.Text))

    async def run() -> ScanReport:
        async with async_driver_engine.begin() as connection:
            await connection.run_sync(table.create)
            await connection.execute(table.insert(), {"id": 1, "line": TOKEN})
        async with async_driver_engine.connect() as connection:
            return await connection.run_sync(find_plaintext_tokens, sample=None)

    assert summary(asyncio.run(run())) == [("logs", "line", 1, (1,))]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_autocommit_is_no_hindrance(postgresql_database: Database, driver: str) -> None:
    """PostgreSQL has no cursor without a transaction."""
    engine = sa.create_engine(postgresql_database.url(driver), isolation_level="AUTOCOMMIT")
    fill(engine, logs(sa.Column("line", sa.Text)), [{"line": TOKEN}] * 120)
    expected = [("logs", "line", 120, (1,))]
    assert summary(find_plaintext_tokens(engine)) == expected
    with engine.connect() as connection:
        assert summary(find_plaintext_tokens(connection)) == expected
        connection.execute(sa.select(1))
        assert summary(find_plaintext_tokens(connection)) == expected
        assert connection.get_execution_options() == {}
    engine.dispose()


# -- samples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "found", "examined"),
    [(1, [1], 1), (2, [1, 30], 2), (5, [1, 2, 3, 29, 30], 5), (29, None, 29), (30, None, 30), (31, None, 30)],
)
def test_a_sample_is_the_first_rows_and_the_last(
    engine: sa.Engine, sample: int, found: list[int] | None, examined: int
) -> None:
    table = logs(sa.Column("line", sa.Text))
    fill(engine, table, [{"line": TOKEN}] * 30)
    report = find_plaintext_tokens(engine, sample=sample)
    (one,) = report.found
    assert (one.rows, one.examined, one.complete) == (examined, examined, sample > 30)
    if found:
        for number in range(1, 31):
            with engine.begin() as connection:
                line = TOKEN if number in found else "nothing"
                connection.execute(table.update().where(table.c.id == number).values(line=line))
        assert find_plaintext_tokens(engine, sample=sample).found[0].rows == len(found)


@pytest.mark.each_server
def test_keys_of_every_kind_are_sampled_by(engine: sa.Engine) -> None:
    """Composite, text with a collation, an ENUM, and none at all."""
    metadata = sa.MetaData()
    collation = {"postgresql": "C", "mariadb": "utf8mb4_bin", "sqlite": "NOCASE"}[engine.dialect.name]
    keys: dict[str, list[Any]] = {
        "composite": [
            sa.Column("a", sa.String(9), primary_key=True),
            sa.Column("b", sa.Integer, primary_key=True, autoincrement=False),
        ],
        "collated": [sa.Column("a", sa.String(9, collation=collation), primary_key=True)],
        "enumerated": [sa.Column("a", sa.Enum(*(f"k{n}" for n in range(9, -1, -1)), name="ks"), primary_key=True)],
        "keyless": [sa.Column("a", sa.String(9))],
    }  # fmt: skip
    with engine.begin() as connection:
        for name, columns in keys.items():
            table = sa.Table(name, metadata, *columns, sa.Column("line", sa.Text))
            table.create(connection)
            for number in range(10):
                row = {"a": f"k{number}", "line": TOKEN} | ({"b": number} if name == "composite" else {})
                connection.execute(table.insert(), row)
    for sample in (4, None):
        report = find_plaintext_tokens(engine, sample=sample)
        assert {found.table: found.rows for found in report} == dict.fromkeys(keys, sample or 10)
        assert {found.table: found.primary_key is None for found in report}["keyless"]
        assert report.failed == ()


@pytest.mark.parametrize("sample", [0, -1, "all", True])
def test_a_sample_is_a_number_of_rows(sqlite: sa.Engine, sample: Any) -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        find_plaintext_tokens(sqlite, sample=sample)


# -- which tables --------------------------------------------------------------------------------------------------


@pytest.mark.each_server
def test_views_are_left_out(engine: sa.Engine) -> None:
    fill(engine, logs(sa.Column("line", sa.Text)), [{"line": TOKEN}])
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE VIEW a_view AS SELECT * FROM logs")
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("CREATE MATERIALIZED VIEW another AS SELECT * FROM logs")
    assert summary(find_plaintext_tokens(engine)) == [("logs", "line", 1, (1,))]


def test_names_of_every_kind_are_quoted(engine: sa.Engine) -> None:
    fill(engine, logs(sa.Column('a "b" %', sa.Text), name="Order; DROP `x` %(y)s"), [{'a "b" %': TOKEN}])
    assert summary(find_plaintext_tokens(engine)) == [("Order; DROP `x` %(y)s", 'a "b" %', 1, (1,))]


def test_every_schema_is_looked_through_unless_one_is_named(postgresql: sa.Engine) -> None:
    with postgresql.begin() as connection:
        connection.execute(sa.schema.CreateSchema("tenant"))
    fill(postgresql, logs(sa.Column("line", sa.Text)), [{"line": TOKEN}])
    fill(postgresql, logs(sa.Column("line", sa.Text), schema="tenant"), [{"line": TOKEN}] * 2)
    everything = find_plaintext_tokens(postgresql)
    assert summary(everything) == [("logs", "line", 1, (1,)), ("tenant.logs", "line", 2, (1,))]
    assert summary(find_plaintext_tokens(postgresql, schema="tenant")) == [("tenant.logs", "line", 2, (1,))]
    assert summary(find_plaintext_tokens(postgresql, schema="public")) == [("public.logs", "line", 1, (1,))]
    with pytest.raises(ConfigurationError, match="there is no schema nowhere"):
        find_plaintext_tokens(postgresql, schema="nowhere")


def test_a_partitioned_table_is_looked_through_once(postgresql: sa.Engine) -> None:
    with postgresql.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE parts (id int, line text, PRIMARY KEY (id)) PARTITION BY RANGE (id)"
        )
        connection.exec_driver_sql("CREATE TABLE part_1 PARTITION OF parts FOR VALUES FROM (0) TO (10)")
        connection.exec_driver_sql("CREATE TABLE part_2 PARTITION OF parts FOR VALUES FROM (10) TO (20)")
        connection.execute(sa.text("INSERT INTO parts VALUES (5, :line), (15, :line)"), {"line": TOKEN})
    assert summary(find_plaintext_tokens(postgresql)) == [("parts", "line", 2, (5,))]


def test_types_of_postgresql_are_read_as_text(postgresql: sa.Engine) -> None:
    with postgresql.begin() as connection:
        connection.exec_driver_sql("CREATE DOMAIN credential AS text")
        connection.exec_driver_sql("CREATE DOMAIN number AS int")
        connection.exec_driver_sql(
            "CREATE COLLATION odd (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
        )
    collated = sa.Text(collation="odd")
    table = logs(
        sa.Column("list", ARRAY(sa.Text)),
        sa.Column("tree", JSONB),
        sa.Column("domain", DOMAIN("credential", sa.Text(), create_type=False)),
        sa.Column("count", DOMAIN("number", sa.Integer(), create_type=False)),
        sa.Column("odd", collated),
        sa.Column("search", TSVECTOR),
        sa.Column("address", INET),
    )
    fill(
        postgresql,
        table,
        [
            {"list": ["a", TOKEN], "tree": {"b": TOKEN}, "domain": TOKEN, "odd": TOKEN},
            {"address": "127.0.0.1", "search": "eyJ", "count": 5},
        ],
    )
    with postgresql.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE shapes (a point, b xid8, c xml)")
        connection.execute(
            sa.text("INSERT INTO shapes VALUES (NULL, NULL, :line)"), {"line": f"<a>{TOKEN}</a>"}
        )
        connection.exec_driver_sql("CREATE TABLE coded (code credential PRIMARY KEY, line text)")
        connection.execute(sa.text("INSERT INTO coded VALUES ('a', :line), ('b', :line)"), {"line": TOKEN})
    assert find_plaintext_tokens(postgresql, sample=1).failed == ()
    report = find_plaintext_tokens(postgresql)
    assert report.failed == ()
    assert [(found.table, found.column) for found in report] == [
        ("coded", "line"), ("logs", "domain"), ("logs", "list"), ("logs", "odd"), ("logs", "tree"), ("shapes", "c"),
    ]  # fmt: skip


def test_types_of_mariadb_are_read_as_they_are(mariadb: sa.Engine) -> None:
    fill(
        mariadb,
        logs(
            sa.Column("wide", mysql.LONGTEXT(charset="utf8mb4")),
            sa.Column("western", mysql.TEXT(charset="latin1")),
            sa.Column("fixed", mysql.VARBINARY(1000)),
            sa.Column("flags", mysql.SET("eyJ", "x")),
            sa.Column("bits", mysql.BIT(8)),
            sa.Column("year", mysql.YEAR),
        ),
        [
            {
                "wide": TOKEN,
                "western": TOKEN,
                "fixed": TOKEN.encode(),
                "flags": {"eyJ"},
                "bits": b"\x01",
                "year": 2026,
            }
        ],
    )
    with mariadb.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE shapes (a point, b inet6)")
        connection.exec_driver_sql("INSERT INTO shapes VALUES (POINT(1, 2), '::1')")
    report = find_plaintext_tokens(mariadb)
    mariadb.dispose()
    assert report.failed == ()
    assert [found.column for found in report] == ["fixed", "western", "wide"]


def test_sqlite_keeps_text_in_columns_of_any_type(sqlite: sa.Engine) -> None:
    with sqlite.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE odd (id INTEGER PRIMARY KEY, number INTEGER, plain, d DATE, g DONT)"
        )
        connection.exec_driver_sql("INSERT INTO odd VALUES (1, ?, ?, ?, ?)", (TOKEN,) * 4)
        connection.exec_driver_sql("INSERT INTO odd VALUES (2, 5, CAST(X'ff' AS TEXT), 2.5, NULL)")
        connection.exec_driver_sql("CREATE TABLE no_rowid (k TEXT PRIMARY KEY, v) WITHOUT ROWID")
        connection.exec_driver_sql("INSERT INTO no_rowid VALUES ('k', ?)", (TOKEN.encode(),))
    assert summary(find_plaintext_tokens(sqlite)) == [
        ("no_rowid", "v", 1, ("k",)),
        ("odd", "d", 1, (1,)),
        ("odd", "g", 1, (1,)),
        ("odd", "number", 1, (1,)),
        ("odd", "plain", 1, (1,)),
    ]


@pytest.mark.each_server
@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_a_table_without_such_columns_counts_as_looked_through(engine: sa.Engine) -> None:
    """Any column of SQLite can hold text."""
    fill(engine, logs(sa.Column("number", sa.Integer)), [{"number": 1}])
    report = find_plaintext_tokens(engine)
    assert (report.ok, report.tables, report.columns, report.rows) == (True, 1, 0, 0)


# -- what it does not show -----------------------------------------------------------------------------------------


def test_a_key_that_is_a_token_is_not_shown(engine: sa.Engine) -> None:
    table = sa.Table(
        "revoked",
        sa.MetaData(),
        sa.Column("token", sa.String(300), primary_key=True),
        sa.Column("line", sa.Text),
    )
    fill(engine, table, [{"token": TOKEN, "line": TOKEN}, {"token": "z", "line": TOKEN}])
    report = find_plaintext_tokens(engine)
    assert summary(report) == [("revoked", "line", 2, ("z",)), ("revoked", "token", 1, None)]
    assert TOKEN[:10] not in report.to_json() + repr(report)


def test_the_json_form_is_stable(sqlite: sa.Engine) -> None:
    fill(sqlite, logs(sa.Column("line", sa.Text)), [{"line": TOKEN}])
    content = json.loads(find_plaintext_tokens(sqlite).to_json())
    assert content.pop("seconds") >= 0
    assert content.pop("created").endswith("+00:00")
    assert content.pop("database") == str(sqlite.url)
    assert content == {
        "format": 1,
        "ok": False,
        "sample": 10_000,
        "tables": 1,
        "columns": 2,
        "rows": 1,
        "found": [
            {
                "table": "logs",
                "column": "line",
                "rows": 1,
                "examined": 1,
                "complete": True,
                "primary_key": [1],
            }
        ],
        "failed": [],
    }


# -- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_table_that_may_not_be_read_is_reported_and_the_scan_goes_on(
    postgresql_database: Database, postgresql: sa.Engine
) -> None:
    role = f"scanner_{postgresql_database.url().database}"
    for name in ("a_denied", "b_allowed"):
        fill(postgresql, logs(sa.Column("line", sa.Text), name=name), [{"line": TOKEN}])
    with postgresql.begin() as connection:
        connection.exec_driver_sql(f'CREATE ROLE "{role}"')
        connection.exec_driver_sql(f'GRANT SELECT ON b_allowed TO "{role}"')
    try:
        with postgresql.connect() as connection:
            connection.exec_driver_sql(f'SET ROLE "{role}"')
            report = find_plaintext_tokens(connection)
    finally:
        with postgresql.begin() as connection:
            connection.exec_driver_sql(f'DROP OWNED BY "{role}"')
            connection.exec_driver_sql(f'DROP ROLE "{role}"')
    assert report.failed == (FailedTable("a_denied", "InsufficientPrivilege 42501"),)
    assert summary(report) == [("b_allowed", "line", 1, (1,))]
    assert (report.tables, report.ok) == (1, False)


def test_a_value_that_the_driver_cannot_read_is_reported(sqlite: sa.Engine) -> None:
    """What is no time in a key whose type says that it is one."""
    fill(sqlite, logs(sa.Column("line", sa.Text)), [{"line": TOKEN}])
    with sqlite.begin() as connection:
        connection.exec_driver_sql("CREATE VIRTUAL TABLE broken USING fts5(line)")
        connection.exec_driver_sql("DROP TABLE broken_content")
    report = find_plaintext_tokens(sqlite)
    assert ("logs", "line", 1, (1,)) in summary(report)
    assert {failed.table for failed in report.failed} == {"broken"}


def test_an_error_of_ours_or_a_driver_does_not_stop_it(
    sqlite: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        fill(sqlite, logs(sa.Column("line", sa.Text), name=name), [{"line": TOKEN}])

    class Unreadable(sa.types.TypeDecorator[Any]):
        impl = sa.Integer
        cache_ok = True

        def process_result_value(self, value: Any, dialect: Any) -> Any:
            raise ValueError(f"cannot make anything of {value}")

    real = key_type
    # Of the columns of a first key, then all others as they are.
    types: list[Any] = [Unreadable()]
    monkeypatch.setattr(
        scanned_tables, "key_type", lambda type_, dialect: types.pop() if types else real(type_, dialect)
    )
    report = find_plaintext_tokens(sqlite)
    assert report.failed == (FailedTable("a", "ValueError"),)
    assert summary(report) == [("b", "line", 1, (1,))]


def test_a_lost_connection_ends_it(postgresql: sa.Engine) -> None:
    fill(postgresql, logs(sa.Column("line", sa.Text)), [{"line": TOKEN}])
    with postgresql.connect() as connection:
        process = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        connection.commit()

        def end(_: ScanProgress) -> None:
            with postgresql.begin() as other:
                other.execute(sa.text("SELECT pg_terminate_backend(:process)"), {"process": process})

        with pytest.raises(AuditError, match=r"no report .*the connection was lost"):
            find_plaintext_tokens(connection, progress=end)


def test_progress_names_each_table(sqlite: sa.Engine) -> None:
    for name in ("a", "b"):
        fill(sqlite, logs(sa.Column("line", sa.Text), name=name), [{"line": TOKEN}])
    steps: list[ScanProgress] = []
    report = find_plaintext_tokens(sqlite, progress=steps.append)
    assert steps == [ScanProgress("a", 0, 2, 0), ScanProgress("b", 1, 2, 1), ScanProgress("", 2, 2, 2)]
    assert list(report) == [
        FoundTokens(name, "line", 1, examined=1, complete=True, primary_key=(1,)) for name in ("a", "b")
    ]


def test_a_database_that_is_not_known_is_read_with_standard_words(sqlite: sa.Engine) -> None:
    """What is asked of others is LIKE for text, and every value of bytes."""
    line, raw = sa.column("line", sa.Text()), sa.column("raw", sa.LargeBinary())
    values = [scanned_tables._value(line, "text", "oracle"), scanned_tables._value(raw, "bytes", "oracle")]
    text = str(may_hold_token(values[0], "text", "oracle"))
    assert "(CAST(line AS TEXT) LIKE '%1//%')" in text
    assert all(f"'%{mark}%'" in text for mark in MARKS)
    assert str(may_hold_token(values[1], "bytes", "oracle")) == "true"


def test_every_form_of_a_token_is_found_in_every_kind_of_column(engine: sa.Engine) -> None:
    """The condition in SQL lets through what the search in Python finds, and no other row."""
    forms = [
        base64.b64encode(f"Bearer {TOKEN}".encode()).decode(),
        base64.b64encode(TOKEN.encode()).decode(),
        TOKEN.replace(".", "%2E"),
        "\n".join(textwrap.wrap(TOKEN, 40)),
        ".".join(segment + "=" for segment in TOKEN.split(".")),
        f"ghs_{'a1B2' * 9}",
        f"ya29.{'a1B2' * 9}",
        f"xoxb-{'a1B2' * 9}",
        f"1//0{'a1B2' * 9}",
    ]
    columns = [sa.Column("line", sa.Text), sa.Column("raw", sa.LargeBinary)]
    rows = [{"line": form, "raw": form.encode()} for form in [*forms, "nothing"]]
    fill(engine, logs(*columns), rows)
    found = {(one.column, one.rows) for one in find_plaintext_tokens(engine)}
    assert found == {("line", len(forms)), ("raw", len(forms))}


def test_a_table_of_many_columns_is_within_the_limits_of_sqlite(sqlite: sa.Engine) -> None:
    """SQLite takes expressions of a depth of 1,000, and before 3.32 statements of 999 parameters."""
    names = [f"c{number}" for number in range(1_100)]
    fill(sqlite, logs(*(sa.Column(name, sa.Text) for name in names)), [{"c1099": TOKEN}])
    report = find_plaintext_tokens(sqlite)
    assert (report.failed, [one.column for one in report]) == ((), ["c1099"])


def test_backslashes_that_postgresql_takes_for_escapes_hide_nothing(postgresql_database: Database) -> None:
    """With standard_conforming_strings off, a constant of several bytes was another one, and no token had it."""
    table = logs(sa.Column("body", sa.LargeBinary), sa.Column("token", EncryptedJWT(KeyRing.generate())))
    url = postgresql_database.url("psycopg")
    engine = sa.create_engine(url, connect_args={"options": "-c standard_conforming_strings=off"})
    fill(engine, table, [{"id": 1, "body": b"log " + TOKEN.encode(), "token": TOKEN}])
    found = summary(find_plaintext_tokens(engine))
    audited = audit(engine, table, deep=True).findings
    engine.dispose()
    assert [(name, rows) for _, name, rows, _ in found] == [("body", 1)]
    assert "refused" not in [finding.code for finding in audited]
