"""The table as the database has it: its key, its names, its schema, and the columns that must not change."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from jwt_column import EncryptedJSON, EncryptedJWT, FingerprintIndex, KeyRing, decrypt_token
from jwt_column.errors import ConfigurationError, ReencryptionError
from migrations_helpers import reencrypt
from migrations_helpers.engine.conversions import Adoption
from migrations_helpers.engine.options import Options
from migrations_helpers.engine.reencryption import convert_column
from migrations_helpers.engine.reflection import Subject
from tests.support.databases import DRIVER_MODULES, SYNC_DRIVERS
from tests.support.workload import (
    CONTEXT,
    NEW,
    NEW_KEY,
    OLD,
    OLD_KEY,
    Sessions,
    after,
    before,
    column_type,
    create_sessions,
    engine_on,
    every_strategy,
    fill,
    record_updates,
    run,
    token,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from migrations_helpers import ReencryptionReport
    from tests.support.databases import Database, Server
    from tests.support.workload import AnyEngine


def execute(engine: sa.Engine, *statements: str) -> None:
    def execute_all(connection: sa.Connection) -> None:
        for statement in statements:
            connection.execute(sa.text(statement))

    run(engine, execute_all)


def made_by_hand(engine: sa.Engine, ddl: str, *key: str, rows: dict[Any, str] | None = None) -> Sessions:
    """Create a table as DDL says and fill it by its reflection: integer keys, unless rows are given."""
    execute(engine, ddl)
    table = sa.Table("sessions", sa.MetaData(), autoload_with=engine)
    rows = {(number,): token(number) for number in range(1, 31)} if rows is None else rows
    sessions = Sessions(table, key, rows)
    fill(engine, sessions, create=False)
    return sessions


def rotates(engine: sa.Engine, sessions: Sessions, **options: Any) -> ReencryptionReport:
    """Fail unless a run rewrites every row in several batches and keeps every token."""
    report = sessions.reencrypt(engine, batch_size=7, batch_seconds=1e-9, **options)
    assert report.reencrypted == len(sessions.tokens)
    assert sessions.tokens == sessions.decrypted(engine)
    return report


# -- keys ----------------------------------------------------------------------------------------------------------


REFUSED_KEYS = {
    "none": "CREATE TABLE sessions (id integer, token {binary})",
    "nullable-unique": "CREATE TABLE sessions (id integer UNIQUE, token {binary})",
    "half-nullable": "CREATE TABLE sessions (id integer NOT NULL, n integer, token {binary}, UNIQUE (id, n))",
    "not-unique": "CREATE TABLE sessions (id integer NOT NULL, token {binary})",
}


@pytest.mark.parametrize("ddl", REFUSED_KEYS.values(), ids=REFUSED_KEYS)
def test_a_table_without_a_usable_key_is_refused(engine: sa.Engine, ddl: str) -> None:
    sessions = made_by_hand(engine, ddl.format(binary=binary(engine)), "id")
    with pytest.raises(
        ReencryptionError, match="sessions has no primary key and no unique key without NULLs"
    ):
        sessions.reencrypt(engine)
    assert sessions.census(engine) == {(OLD, "stale"): 30}


def binary(engine: sa.Engine) -> str:
    return "bytea" if engine.dialect.name == "postgresql" else "blob"


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.parametrize("columns", ["(id) WHERE id < 10", "(lower(name))"])
@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_an_index_on_some_rows_or_on_an_expression_is_no_key(engine: sa.Engine, columns: str) -> None:
    ddl = f"CREATE TABLE sessions (id integer NOT NULL, name varchar(9), token {binary(engine)})"
    sessions = made_by_hand(engine, ddl, "id")
    execute(engine, "UPDATE sessions SET name = 'n' || id", f"CREATE UNIQUE INDEX one ON sessions {columns}")
    with pytest.raises(ReencryptionError, match="no unique key without NULLs"):
        sessions.reencrypt(engine)


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
def test_a_unique_index_on_a_token_and_a_column_is_no_key(engine: sa.Engine) -> None:
    """A row without the token has no place in it."""
    ddl = f"CREATE TABLE sessions (id integer NOT NULL, token {binary(engine)})"
    sessions = made_by_hand(engine, ddl, "id")
    declared = sa.Table(
        "sessions",
        sa.MetaData(),
        sa.Column("id", sa.Integer),
        sa.Column("token", column_type(fingerprints=["token"])),
    )
    FingerprintIndex("ux", declared.c.id, declared.c.token, unique=True).create(engine)
    with pytest.raises(ReencryptionError, match="no unique key without NULLs"):
        sessions.reencrypt(engine)


def test_a_unique_index_serves_where_there_is_no_primary_key(engine: sa.Engine) -> None:
    ddl = f"CREATE TABLE sessions (n integer NOT NULL, id integer NOT NULL, token {binary(engine)})"
    rows = {(number % 3, number): token(number) for number in range(30)}
    sessions = made_by_hand(engine, ddl, "n", "id", rows=rows)
    execute(engine, "CREATE UNIQUE INDEX one ON sessions (n, id)")
    rotates(engine, sessions)


def with_code(engine: sa.Engine) -> Sessions:
    """Return a table with a primary key, a unique column and one whose values come twice."""
    ddl = (
        f"CREATE TABLE sessions (id integer NOT NULL PRIMARY KEY, token {binary(engine)}, "
        "code integer UNIQUE NOT NULL, maybe integer UNIQUE, twice integer NOT NULL)"
    )
    execute(engine, ddl)
    sessions = Sessions(
        sa.Table("sessions", sa.MetaData(), autoload_with=engine),
        ("id",),
        {(n,): token(n) for n in range(1, 31)},
    )
    type_ = column_type(before())
    content = [
        {
            "id": n,
            "code": 1_000 - n,
            "maybe": n,
            "twice": n // 2,
            "token": type_.cipher().encrypt(text, type_.ring()),
        }
        for (n,), text in sessions.tokens.items()
    ]
    run(engine, lambda connection: connection.execute(sa.insert(sessions.table), content))
    return sessions


def test_a_key_that_is_named_is_used(engine: sa.Engine) -> None:
    sessions = with_code(engine)
    sessions.put(engine, (7,), b"foreign")
    with pytest.raises(ReencryptionError) as caught:
        sessions.reencrypt(engine, key_columns=["code"], batch_size=7)
    report: Any = caught.value.report
    assert (report.undecryptable, report.reencrypted) == ([993], 29)


def test_more_than_a_unique_key_is_one_too(engine: sa.Engine) -> None:
    rotates(engine, with_code(engine), key_columns=["twice", "code"])


@every_strategy
@pytest.mark.parametrize("columns", [["twice"], ["maybe"], ["twice", "maybe"]])
def test_columns_that_are_no_unique_key_are_refused(
    engine: sa.Engine, columns: list[str], strategy: str
) -> None:
    """Rows are written by their key: by one that comes twice, a row would get the token of another."""
    sessions = with_code(engine)
    with pytest.raises(
        ReencryptionError, match=f"{', '.join(columns)} is no unique key of sessions without NULLs"
    ):
        sessions.reencrypt(engine, key_columns=columns, strategy=strategy)
    assert sessions.census(engine) == {(OLD, "stale"): 30}
    assert sessions.tokens == sessions.decrypted(engine)


SQLITE_KEYS = {
    "integer": "id INTEGER PRIMARY KEY",
    "integer-descending": "id INTEGER PRIMARY KEY DESC",
    "text": "id TEXT PRIMARY KEY",
    "untyped": "id PRIMARY KEY",
    "numeric": "id NUMERIC PRIMARY KEY",
    "decimal": "id DECIMAL(10, 2) PRIMARY KEY",
    "float": "id FLOAT PRIMARY KEY",
    "datetime": "id DATETIME PRIMARY KEY",
    "boolean": "id BOOLEAN PRIMARY KEY",
    "unknown": "id NONSENSE PRIMARY KEY",
    "without-rowid": "id INTEGER, n INTEGER DEFAULT 1, PRIMARY KEY (n, id)",
}


@pytest.mark.filterwarnings("ignore:Did not recognize type")
@every_strategy
@pytest.mark.parametrize("key", SQLITE_KEYS.values(), ids=SQLITE_KEYS)
def test_every_declaration_of_a_key_in_sqlite_serves(sqlite: sa.Engine, key: str, strategy: str) -> None:
    """There a value has its own type, and NOT NULL has to be said."""
    columns = (
        key.replace(", PRIMARY", ", token BLOB, PRIMARY") if ", PRIMARY" in key else f"{key}, token BLOB"
    )
    execute(sqlite, f"CREATE TABLE sessions ({columns}){' WITHOUT ROWID' if 'n INTEGER' in key else ''}")
    table = sa.Table("sessions", sa.MetaData(), sa.Column("id"), sa.Column("token", sa.LargeBinary))
    number = 0.25 if "FLOAT" in key or "DECIMAL" in key or "NUMERIC" in key else 1
    as_key = {"TEXT": "text {}", "DATETIME": "2024-05-17T{}"}.get(key.split()[1])
    rows = {(as_key.format(n) if as_key else n * number,): token(n) for n in range(1, 31)}
    sessions = Sessions(table, ("id",), rows)
    fill(sqlite, sessions, create=False)
    rotates(sqlite, sessions, strategy=strategy)


@pytest.mark.parametrize("key", ["id TEXT, PRIMARY KEY (id)", "id INTEGER, n TEXT, PRIMARY KEY (id, n)"])
def test_a_primary_key_with_nulls_is_refused_as_long_as_there_are_any(sqlite: sa.Engine, key: str) -> None:
    execute(sqlite, f"CREATE TABLE sessions (token BLOB, {key})", "INSERT INTO sessions (id) VALUES (NULL)")
    with pytest.raises(ReencryptionError, match="no unique key without NULLs"):
        reencrypt(sqlite, "sessions", "token", type_=column_type())
    execute(sqlite, "DELETE FROM sessions")
    assert reencrypt(sqlite, "sessions", "token", type_=column_type()).total == 0


# A type, and the form of its values; where there are few, a number is part of the key too.
POSTGRESQL_KEYS: list[tuple[str, Any]] = [
    ("bigint", "{}"),
    ("varchar(20)", "v{}"),
    ("char(8)", "c{:07}"),
    ('text COLLATE "C"', "t{}"),
    ("text COLLATE any_case", "t{}"),
    ("name", "n{}"),
    ("mood", ["sad", "ok", "happy"]),
    ('"Other"."Mood"', ["sad", "ok", "happy"]),
    ("key_text", "d{}"),
    ("key_of_key", "d{}"),
    ("numeric(10, 2)", "{}.25"),
    ("double precision", "{}.1"),
    ("timestamptz", "2024-05-17 10:00:00.{:06}+02"),
    ("timestamp(3)", "2024-05-17 10:00:00.{:03}"),
    ("date", "2024-05-{:02}"),
    ("time", "10:00:{:02}"),
    ("interval", "{} hours"),
    ("inet", "10.0.0.{}"),
    ("macaddr", "08:00:2b:01:02:{:02}"),
    ("boolean", ["false", "true"]),
    ("bytea", "b{}"),
]


@pytest.mark.parametrize(
    ("driver", "strategy"),
    [
        ("psycopg", "auto"),
        ("psycopg2", "cas"),
        pytest.param("psycopg", "cas", marks=pytest.mark.exhaustive),
        pytest.param("psycopg2", "auto", marks=pytest.mark.exhaustive),
    ],
)
def test_every_type_of_key_of_postgresql_serves(
    postgresql_database: Database, driver: str, strategy: str
) -> None:
    with engine_on(postgresql_database.url(driver)) as engine:
        execute(
            engine,
            'CREATE SCHEMA "Other"',
            "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')",
            "CREATE TYPE \"Other\".\"Mood\" AS ENUM ('sad', 'ok', 'happy')",
            "CREATE DOMAIN key_text AS text CHECK (VALUE LIKE 'd%')",
            "CREATE DOMAIN key_of_key AS key_text",
            "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        )
        for number, (type_, form) in enumerate(POSTGRESQL_KEYS):
            name = f"sessions_{number}"
            key = "id, n" if isinstance(form, list) else "id"
            execute(engine, f"CREATE TABLE {name} (id {type_}, n integer, token bytea, PRIMARY KEY ({key}))")
            as_type = type_.partition(" COLLATE")[0]
            insert = sa.text(f"INSERT INTO {name} VALUES (CAST(:id AS {as_type}), :n, :token)")
            values = [form[n % len(form)] if isinstance(form, list) else form.format(n) for n in range(1, 31)]
            rotates(engine, with_keys(engine, name, insert, values), strategy=strategy)


def with_keys(engine: sa.Engine, name: str, insert: Any, values: list[Any]) -> Sessions:
    """Fill a table with rows of these keys; the test tells them apart by a number that is not the key."""
    type_ = column_type(before())
    rows = [
        {"n": n, "id": value, "token": type_.cipher().encrypt(token(n), type_.ring())}
        for n, value in enumerate(values, 1)
    ]
    run(engine, lambda connection: connection.execute(insert, rows))
    table = sa.Table(name, sa.MetaData(), sa.Column("n", sa.Integer), sa.Column("token", sa.LargeBinary))
    return Sessions(table, ("n",), {(row["n"],): token(row["n"]) for row in rows})


MARIADB_KEYS: list[tuple[str, Any]] = [
    ("varchar(20) COLLATE utf8mb4_bin", "t{}"),
    ("varchar(20) COLLATE utf8mb4_unicode_ci", "tü{}"),
    ("varchar(20) COLLATE utf8mb4_unicode_520_nopad_ci", "tü{} "),
    ("varchar(20) CHARACTER SET latin1", "tü{}"),
    ("varchar(20) CHARACTER SET ucs2", "tü{}"),
    ("varchar(20) CHARACTER SET ascii", "t{}"),
    ("char(20)", "t{}"),
    ("varbinary(20)", b"b\x80"),
    ("datetime(6)", "2024-05-17 10:00:00.{:06}"),
    ("timestamp(3)", "2024-05-17 10:00:00.{:03}"),
    ("date", "2024-05-{:02}"),
    ("decimal(10, 2)", "{}.25"),
    ("double", "{}.3333333333333333"),
    ("bigint unsigned", "1844674407370955{:04}"),
    ("inet6", "::{}"),
]


@pytest.mark.filterwarnings("ignore:Did not recognize type 'inet6'")
@every_strategy
@pytest.mark.parametrize("driver", SYNC_DRIVERS["mariadb"])
def test_every_type_of_key_of_mariadb_serves(mariadb_database: Database, driver: str, strategy: str) -> None:
    pytest.importorskip(DRIVER_MODULES[driver][0])
    with engine_on(mariadb_database.url(driver)) as engine:
        for number, (type_, form) in enumerate(MARIADB_KEYS):
            name = f"sessions_{number}"
            execute(engine, f"CREATE TABLE {name} (id {type_}, n integer, token blob, PRIMARY KEY (id))")
            is_binary = isinstance(form, bytes)
            insert = sa.text(f"INSERT INTO {name} VALUES (:id, :n, :token)").bindparams(
                sa.bindparam("id", type_=sa.LargeBinary if is_binary else sa.String),
                sa.bindparam("token", type_=sa.LargeBinary),
            )
            values = [form + bytes([n]) if is_binary else form.format(n) for n in range(1, 31)]
            rotates(engine, with_keys(engine, name, insert, values), strategy=strategy)


@pytest.mark.parametrize("key", ["mood, id", "mood"])
def test_a_key_of_mariadb_that_sorts_otherwise_than_it_compares_is_refused(
    mariadb: sa.Engine, key: str
) -> None:
    """An ENUM sorts by number and compares by text: going on after the last key would leave rows out."""
    execute(
        mariadb,
        f"CREATE TABLE sessions (mood enum('sad', 'ok', 'happy'), id integer, token blob, PRIMARY KEY ({key}))",
    )
    with pytest.raises(ReencryptionError, match=r"no unique key without NULLs \(and without ENUM or SET\)"):
        reencrypt(mariadb, "sessions", "token", type_=column_type())
    execute(mariadb, "ALTER TABLE sessions ADD UNIQUE (id), MODIFY id integer NOT NULL")
    assert reencrypt(mariadb, "sessions", "token", type_=column_type()).total == 0


SINGLE = {"postgresql": ("real", "float(10)", "single"), "mysql": ("float", "float(10)", "float(10, 3)")}


@pytest.mark.each_server
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_a_key_of_single_precision_is_refused(server: str, request: pytest.FixtureRequest) -> None:
    """What the driver reads is another number: the control finds no row by the key that it has just read."""
    engine: sa.Engine = request.getfixturevalue(server)
    if server == "postgresql":
        execute(engine, "CREATE DOMAIN single AS real")
    for number, type_ in enumerate(SINGLE[engine.dialect.name if server == "postgresql" else "mysql"]):
        name = f"sessions_{number}"
        execute(
            engine,
            f"CREATE TABLE {name} (id {type_} PRIMARY KEY, n integer, token blob)".replace(
                "blob", "bytea" if server == "postgresql" else "blob"
            ),
        )
        insert = sa.text(f"INSERT INTO {name} VALUES (:id, :n, :token)")
        sessions = with_keys(engine, name, insert, [n + 0.1 for n in range(1, 31)])
        with engine.connect() as connection:
            table = sa.table(name, sa.column("id", sa.Float))
            read = connection.scalars(sa.select(table.c.id)).all()
            assert connection.execute(sa.select(table).where(table.c.id.in_(read))).all() == []
        choices: list[dict[str, Any]] = [{}, {"key_columns": ["id"]}]
        for options in choices:
            with pytest.raises(
                ReencryptionError, match=rf"{name} cannot be paged by id, of type .*key_columns="
            ):
                sessions.reencrypt(engine, **options)
        assert sessions.census(engine) == {(OLD, "stale"): 30}
        not_null = "ALTER n SET NOT NULL" if server == "postgresql" else "MODIFY n integer NOT NULL"
        execute(engine, f"ALTER TABLE {name} ADD UNIQUE (n), {not_null}")
        rotates(engine, sessions)


# -- names ---------------------------------------------------------------------------------------------------------


# What SQL reads otherwise unless it is quoted, and what drivers read as a placeholder. Four make one table: its name,
# those of its key's columns, and that of the token's.
NAMES = [
    ("Upper", "select", "with space", "UPPER"),
    ("per%cent", "per%s", "per%%(x)s", "%"),
    ("a.b", "colon:x", ":name", "é"),
    ('qu"ote', '"', "new", 'q"'),
    ("d", "t", "new", "k0"),
]


@pytest.mark.each_server
@every_strategy
def test_names_of_every_kind_are_quoted(driver_engine: sa.Engine, strategy: str) -> None:
    # This driver does not find its placeholders behind a quotation mark.
    is_confused = driver_engine.dialect.driver == "mariadbconnector"
    for names in NAMES:
        if not (is_confused and '"' in names[0]):
            rotates_by_name(driver_engine, *names, strategy=strategy)


@every_strategy
def test_names_of_every_kind_are_quoted_by_asynchronous_drivers(
    async_driver_engine: AsyncEngine, strategy: str
) -> None:
    for names in NAMES:
        rotates_by_name(async_driver_engine, *names, strategy=strategy)


def rotates_by_name(
    engine: AnyEngine, name: str, first: str, second: str, column: str, *, strategy: str
) -> None:
    table = sa.Table(
        name,
        sa.MetaData(),
        sa.Column(first, sa.Integer, primary_key=True, autoincrement=False),
        sa.Column(second, sa.Integer, primary_key=True, autoincrement=False),
        sa.Column(column, sa.LargeBinary),
    )
    type_ = column_type(before())
    rows = [
        {first: n, second: n, column: type_.cipher().encrypt(token(n), type_.ring())} for n in range(1, 16)
    ]

    def create(connection: sa.Connection) -> None:
        table.create(connection)
        connection.execute(sa.insert(table), rows)

    def rotate(connection: sa.Connection) -> ReencryptionReport:
        return reencrypt(
            connection, name, column, type_=column_type(), batch_size=7, batch_seconds=1e-9, strategy=strategy
        )

    run(engine, create)
    assert run(engine, rotate, begin=False).reencrypted == 15
    query = sa.select(table.c[first], table.c[column])
    found = dict(run(engine, lambda connection: [tuple(row) for row in connection.execute(query)]))
    assert {n: token(n) for n in range(1, 16)} == {
        n: decrypt_token(stored, after(), context=CONTEXT) for n, stored in found.items()
    }


@pytest.mark.parametrize("driver", SYNC_DRIVERS["postgresql"])
def test_a_table_with_a_percent_sign_is_vacuumed(
    postgresql_database: Database, driver: str, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("migrations_helpers.engine.run._VACUUM_ROWS", 10)
    caplog.set_level("INFO", "migrations_helpers")
    with engine_on(postgresql_database.url(driver)) as engine:
        statements: list[str] = []
        sa.event.listen(engine, "after_cursor_execute", lambda *arguments: statements.append(arguments[2]))
        rotates(engine, create_sessions(engine, 60, name="per%cent"))
        assert len([statement for statement in statements if statement.startswith("VACUUM")]) == 4
    assert [message for message in caplog.messages if "vacuum" in message] == []


def test_a_table_that_may_not_be_vacuumed_is_rotated_all_the_same(
    postgresql: sa.Engine, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("migrations_helpers.engine.run._VACUUM_ROWS", 10)
    monkeypatch.setattr(
        "migrations_helpers.engine.connection.RunConnection.vacuum",
        lambda self, _table: self.sqlalchemy.exec_driver_sql("VACUUM nowhere"),
    )
    caplog.set_level("INFO", "migrations_helpers")
    rotates(postgresql, create_sessions(postgresql, 60))
    assert "sessions: not vacuumed (UndefinedTable 42P01)" in caplog.messages


def test_a_run_does_not_vacuum_where_it_is_told_not_to(postgresql: sa.Engine, monkeypatch: Any) -> None:
    monkeypatch.setattr("migrations_helpers.engine.run._VACUUM_ROWS", 10)
    statements: list[str] = []
    sa.event.listen(postgresql, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    rotates(postgresql, create_sessions(postgresql, 60), vacuum=False)
    assert [statement for statement in statements if "VACUUM" in statement] == []


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg"])
@every_strategy
def test_a_table_of_another_schema_is_found_and_the_one_of_the_default_left_alone(
    postgresql_database: Database, driver: str, strategy: str
) -> None:
    with engine_on(postgresql_database.url()) as engine:
        execute(engine, 'CREATE SCHEMA "Tenant %1"')
        theirs = create_sessions(engine, 30, schema="Tenant %1")
        ours = create_sessions(engine, 30)
        url = postgresql_database.url(driver)
        other = create_async_engine(url, poolclass=NullPool) if driver == "asyncpg" else sa.create_engine(url)
        report = theirs.reencrypt(other, strategy=strategy)
        if isinstance(other, sa.Engine):
            other.dispose()
        assert (report.table, report.reencrypted) == ("Tenant %1.sessions", 30)
        assert theirs.tokens == theirs.decrypted(engine)
        assert ours.census(engine) == {(OLD, "stale"): 30}


def test_a_table_of_another_database_of_mariadb_is_found(mariadb_server: Server) -> None:
    with (
        mariadb_server.fresh_database() as one,
        mariadb_server.fresh_database() as two,
        engine_on(one.url()) as engine,
        engine_on(two.url()) as other,
    ):
        sessions = create_sessions(other, 30)
        sessions.table.schema = None
        report = sessions.reencrypt(engine, schema=two.url().database)
        assert report.reencrypted == 30
        assert sessions.tokens == sessions.decrypted(other)


def test_a_table_is_looked_up_on_the_search_path(postgresql: sa.Engine) -> None:
    execute(postgresql, "CREATE SCHEMA tenant")
    theirs = create_sessions(postgresql, 30, schema="tenant")
    ours = create_sessions(postgresql, 30)
    with engine_on(postgresql.url) as engine, engine.connect() as connection:
        connection.exec_driver_sql("SET search_path TO tenant")
        connection.commit()
        report = reencrypt(connection, "sessions", "token", type_=column_type())
        assert report.reencrypted == 30
    assert theirs.tokens == theirs.decrypted(postgresql)
    assert theirs.census(postgresql) == {(NEW, "current"): 30}
    assert ours.census(postgresql) == {(OLD, "stale"): 30}


def test_runs_on_the_same_table_of_two_schemas_do_not_exclude_each_other(postgresql: sa.Engine) -> None:
    """Whether the schema is named or found on the search path, one table has one lock."""
    execute(postgresql, "CREATE SCHEMA tenant")
    theirs = create_sessions(postgresql, 30, schema="tenant")
    ours = create_sessions(postgresql, 30)
    outcomes: list[Any] = []

    def work_elsewhere(report: ReencryptionReport) -> None:
        if report.reencrypted == 10:
            outcomes.append(theirs.reencrypt(postgresql).reencrypted)
            with pytest.raises(ReencryptionError, match=r"another run is at work on sessions\.token"):
                ours.reencrypt(postgresql, schema="public")

    ours.reencrypt(postgresql, batch_size=10, batch_seconds=1e-9, progress=work_elsewhere)
    assert outcomes == [30]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("logins", "token"), "there is no table logins; nothing was done"),
        (("sessions", "jwt"), "there is no column sessions.jwt; nothing was done"),
        (("sessions", "id"), "sessions.id is part of the key to page by; nothing was done"),
    ],
)
def test_a_table_or_column_that_is_not_there_is_named(
    engine: sa.Engine, arguments: tuple[str, str], message: str
) -> None:
    create_sessions(engine, 3)
    with pytest.raises(ReencryptionError, match=message):
        reencrypt(engine, *arguments, type_=column_type())


@pytest.mark.parametrize("options", [{"key_columns": ["nr"]}, {"preserve": ["nr"]}])
def test_a_column_of_an_option_that_is_not_there_is_named(engine: sa.Engine, options: dict[str, Any]) -> None:
    sessions = create_sessions(engine, 3)
    with pytest.raises(ReencryptionError, match=r"there is no column sessions\.nr"):
        sessions.reencrypt(engine, **options)


def test_a_schema_that_is_not_there_is_named_with_its_table(postgresql: sa.Engine) -> None:
    create_sessions(postgresql, 3)
    with pytest.raises(ReencryptionError, match=r"there is no table tenant\.sessions"):
        reencrypt(postgresql, "sessions", "token", schema="tenant", type_=column_type())


def test_a_view_is_refused(engine: sa.Engine) -> None:
    create_sessions(engine, 3)
    execute(engine, "CREATE VIEW logins AS SELECT * FROM sessions")
    with pytest.raises(ReencryptionError, match="logins is a view; run on the table"):
        reencrypt(engine, "logins", "token", type_=column_type())


@pytest.mark.each_server
def test_a_column_of_json_is_refused_where_the_database_checks_its_values(engine: sa.Engine) -> None:
    """MariaDB's JSON is a LONGTEXT with a check, and refused every row; PostgreSQL had no ``octet_length(json)``."""
    kinds = ["JSON", "JSONB"] if engine.dialect.name == "postgresql" else ["JSON"]
    for number, kind in enumerate(kinds):
        execute(engine, f"CREATE TABLE t{number} (id INT PRIMARY KEY, token {kind}, other {kind})")
        execute(engine, f"""INSERT INTO t{number} VALUES (1, '{{"access_token": "a"}}', NULL)""")
        type_ = EncryptedJSON(KeyRing.generate(), storage="text").in_context("c")
        if engine.dialect.name == "sqlite":
            convert_column(engine, Subject("t0", "token", type_), Adoption, Options())
        else:
            with pytest.raises(ReencryptionError, match="is a column of JSON, which takes no envelope"):
                convert_column(engine, Subject(f"t{number}", "token", type_), Adoption, Options())


@pytest.mark.each_server
@every_strategy
def test_columns_that_the_database_fills_do_not_disturb(engine: sa.Engine, strategy: str) -> None:
    """Generated ones, defaults, and a CHECK on the length of the token."""
    concat = "concat('n', id)" if engine.dialect.name == "mariadb" else "CAST(id AS varchar(9))"
    if engine.dialect.name == "postgresql":
        concat = "(id * 2)::text"
    ddl = (
        f"CREATE TABLE sessions (id integer NOT NULL PRIMARY KEY, token {binary(engine)} CHECK (length(token) > 9), "
        f"made varchar(20) GENERATED ALWAYS AS ({concat}) STORED, filled integer DEFAULT 7)"
    )
    execute(engine, ddl)
    table = sa.Table(
        "sessions", sa.MetaData(), sa.Column("id", sa.Integer), sa.Column("token", sa.LargeBinary)
    )
    sessions = Sessions(table, ("id",), {(n,): token(n) for n in range(1, 31)})
    fill(engine, sessions, create=False)
    rotates(engine, sessions, strategy=strategy)


# -- columns that must not change ----------------------------------------------------------------------------------


TOUCHED = (
    "CREATE TABLE sessions (id integer PRIMARY KEY, token blob, "
    "touched timestamp(3) NOT NULL DEFAULT '2001-02-03 04:05:06' ON UPDATE CURRENT_TIMESTAMP(3), "
    "`also %` datetime NULL DEFAULT '2001-02-03' ON UPDATE CURRENT_TIMESTAMP)"
)


@every_strategy
@pytest.mark.parametrize("driver", SYNC_DRIVERS["mariadb"])
def test_timestamps_that_mariadb_updates_by_itself_stay_as_they_are(
    mariadb_database: Database, driver: str, strategy: str
) -> None:
    pytest.importorskip(DRIVER_MODULES[driver][0])
    with engine_on(mariadb_database.url(driver)) as engine:
        sessions = made_by_hand(engine, TOUCHED, "id")
        moments = (
            sa.select(sa.func.count()).select_from(sessions.table).where(sa.text("year(touched) = 2001"))
        )
        also = moments.where(sa.text("year(`also %`) = 2001"))
        rotates(engine, sessions, strategy=strategy)
        assert run(engine, lambda connection: connection.execute(also).scalar()) == 30
        # The control: an update that does not keep them moves them.
        sessions.put(engine, (1,), b"other")
        assert run(engine, lambda connection: connection.execute(moments).scalar()) == 29


@pytest.mark.matrix
@every_strategy
def test_columns_that_a_trigger_fills_can_be_kept(engine: sa.Engine, strategy: str) -> None:
    """The rewrite sets them to themselves, which a trigger may look for; all else goes its way."""
    sessions = create_sessions(engine, 30, columns=(sa.Column("touched", sa.Integer, server_default="0"),))
    updates = record_updates(engine)
    rotates(engine, sessions, strategy=strategy, preserve=["touched"])
    assert updates
    assert all("touched" in statement for statement in updates)


def test_a_column_that_is_too_short_is_refused_where_the_server_would_cut_off(mariadb: sa.Engine) -> None:
    """Outside strict mode MySQL and MariaDB store the first bytes of a longer value, and warn."""
    sessions = create_sessions(mariadb, 10)
    longest = run(mariadb, lambda c: c.execute(sa.text("SELECT max(length(token)) FROM sessions")).scalar())
    execute(mariadb, f"ALTER TABLE sessions MODIFY token varbinary({longest})")
    sessions.options = {"fingerprints": ["token"]}
    with engine_on(mariadb.url, connect_args={"init_command": "SET sql_mode = ''"}) as engine:
        for strategy in ("auto", "cas"):
            with pytest.raises(ReencryptionError, match=f"holds {longest} bytes"):
                sessions.reencrypt(engine, strategy=strategy)
            assert sessions.tokens == sessions.decrypted(mariadb)
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT @@sql_mode").scalar() == ""


# -- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is at least 1 row"),
        ({"batch_size": 500.0}, "batch_size is at least 1 row, as a whole number, not 500.0"),
        ({"batch_seconds": 0}, "batch_seconds is a number of seconds, more than 0, not 0"),
        ({"batch_seconds": None}, "batch_seconds is a number of seconds, more than 0, not NoneType"),
        ({"lock_timeout": float("inf")}, "lock_timeout is a number of seconds, more than 0, not inf"),
        ({"nice": -1}, "nice is a number, at least 0, not -1"),
        ({"nice": "a"}, "nice is a number, at least 0, not str"),
        ({"shards": "2"}, "shards is a whole number, at least 1, not str"),
        ({"vacuum": "no"}, "vacuum is True or False, not str"),
        ({"dry_run": "no"}, "dry_run is True or False, not str"),
        ({"recompute": 1}, "recompute is True or False, not 1"),
        ({"strategy": None}, "strategy is 'auto' or 'cas', not NoneType"),
        ({"shards": True}, "shards is a whole number, at least 1"),
        ({"wait": "5"}, "wait is a number of seconds, at least 0, not str"),
        ({"wait": timedelta(seconds=5)}, "wait is a number of seconds, at least 0, not timedelta"),
        ({"max_latency": "1", "throttle": lambda: 0}, "max_latency is a number of seconds"),
        ({"max_replica_lag": float("nan")}, "max_replica_lag is a number of seconds, more than 0, not nan"),
        ({"verify": "none"}, "verify is 'stamp', 'decrypt' or 'tokens'"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_retries": 0.5}, "max_retries is a whole number"),
        ({"max_passes": 0}, "max_passes"),
        ({"colour": "blue"}, "there is no option colour; there are batch_seconds, batch_size"),
        ({"key_columns": "id"}, r"key_columns is a list of names; write \['id'\]"),
        ({"key_columns": 1}, "key_columns are different names, each a column"),
        ({"preserve": "id"}, r"preserve is a list of names; write \['id'\]"),
        ({"progress": "bar"}, "progress is a function, not str"),
        ({"make_engine": "sqlite://"}, "make_engine is a function, not str"),
        ({"type_": sa.Text()}, "type_ is an EncryptedJWT, not Text"),
        ({"type_": EncryptedJWT}, "type_ is an EncryptedJWT, not"),
    ],
)
def test_an_option_with_a_value_that_it_cannot_have_is_refused(
    sqlite: sa.Engine, options: dict[str, Any], message: str
) -> None:
    sessions = create_sessions(sqlite, 3)
    with pytest.raises(ConfigurationError, match=message):
        sessions.reencrypt(sqlite, **options)
    assert sessions.census(sqlite) == {(OLD, "stale"): 3}


def test_the_context_is_the_columns_name_unless_the_type_has_another(sqlite: sa.Engine) -> None:
    sessions = create_sessions(sqlite, 3)
    report = reencrypt(sqlite, "sessions", "token", type_=EncryptedJWT(after()))
    assert report.reencrypted == 3
    assert sessions.tokens == sessions.decrypted(sqlite)
    with pytest.raises(ReencryptionError, match="3 rows cannot be read"):
        reencrypt(
            sqlite, "sessions", "token", type_=EncryptedJWT(KeyRing([OLD_KEY, NEW_KEY]), context="other")
        )


def test_an_empty_table_needs_no_key_ring(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 0)
    report = reencrypt(engine, "sessions", "token")
    assert (report.total, report.scanned, report.key_id) == (0, 0, None)
    run(engine, lambda connection: connection.execute(sa.insert(sessions.table), {"id": 1, "token": b"x"}))
    with pytest.raises(ConfigurationError, match="no key ring"):
        reencrypt(engine, "sessions", "token")
