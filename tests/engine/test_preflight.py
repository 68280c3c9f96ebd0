"""The preflight: each fact of a database that stops a run, falsifies it or makes it slow, by name and with its cure."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest
import sqlalchemy as sa

import jwt_column
from jwt_column import ConfigurationError, EncryptedJWT, Finding, ReencryptionError, Severity
from jwt_column.errors import DecryptionError, JWTColumnError
from migrations_helpers import preflight, reencrypt
from migrations_helpers.engine.preflight.kinds import KINDS
from tests.conftest import _give_up
from tests.engine.test_pooler import DRIVERS
from tests.engine.test_time_limits import limited
from tests.support.databases import (
    Unavailable,
    databases_required,
    postgresql_binaries,
    start_private_postgresql,
)
from tests.support.docs_examples import ROOT
from tests.support.models import table_of
from tests.support.pgbouncer import pooled
from tests.support.workload import (
    LOST_KEY,
    AnyEngine,
    Sessions,
    column_type,
    create_sessions,
    engine_on,
    every_server,
    run,
    seal,
    token,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.databases import Database

pytestmark = pytest.mark.each_server

ROLE: Final = "jwt_column_preflight"


def execute(engine: AnyEngine, *statements: str) -> None:
    run(engine, lambda c: [c.exec_driver_sql(statement) for statement in statements])


def model(sessions: Sessions, schema: str | None = None, **options: Any) -> sa.Column[Any]:
    """Return the column as an application declares it."""
    type_ = column_type(**(sessions.options | options))
    table = table_of(type_, name=sessions.table.name, schema=schema)
    return table.c.token


def found(bind: Any, sessions: Sessions, **options: Any) -> dict[str, Finding]:
    return {one.code: one for one in preflight(bind, model(sessions, **options))}


def refused(bind: Any, sessions: Sessions, match: str, **options: Any) -> None:
    """Check that a run is refused and has changed nothing."""
    before = sessions.stored(bind) if isinstance(bind, sa.Engine) else None
    with pytest.raises(ReencryptionError, match=match) as caught:
        sessions.reencrypt(bind, **options)
    assert caught.value.reason == "refused"
    assert str(caught.value).lower().endswith("nothing was done")
    if before is not None:
        assert sessions.stored(bind) == before


def test_a_table_of_the_tutorial_has_no_finding(driver_engine: sa.Engine) -> None:
    sessions = create_sessions(driver_engine, 3)
    column = model(sessions)
    assert preflight(driver_engine, column) == []
    assert preflight(driver_engine, column.table) == []
    assert preflight(driver_engine, column.table.metadata) == []
    assert jwt_column.preflight is preflight
    with driver_engine.connect() as connection:
        assert preflight(connection, column) == []
        assert not connection.in_transaction()
        with connection.begin():
            assert preflight(connection, column) == []
            assert connection.in_transaction()


def test_an_asynchronous_driver_will_do(async_driver_engine: Any) -> None:
    sessions = create_sessions(async_driver_engine, 3)
    assert run(async_driver_engine, lambda c: preflight(c, model(sessions)), begin=False) == []


def test_without_keys_all_but_the_length_is_looked_at(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JWT_COLUMN_KEYRING", raising=False)
    sessions = create_sessions(engine, 1)
    sa_table = table_of(EncryptedJWT("file:/nowhere/keys"))
    assert preflight(engine, sa_table) == []
    assert sessions.tokens


@pytest.mark.parametrize(
    "target", [sa.MetaData(), "sessions", sa.Table("plain", sa.MetaData(), sa.Column("id"))]
)
def test_a_target_without_encrypted_column_is_refused(target: Any) -> None:
    with pytest.raises(ConfigurationError):
        preflight(sa.create_engine("sqlite://"), target)


def test_what_is_not_there_is_a_finding(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 1)
    gone = table_of(column_type(), name="gone")
    (finding,) = preflight(engine, gone)
    assert (finding.code, finding.severity, finding.column) == ("table", Severity.CRITICAL, "gone.token")
    key = sa.Column("id", sa.Integer, primary_key=True)
    other = sa.Table("sessions", sa.MetaData(), key, sa.Column("jwt", column_type()))
    (finding,) = preflight(engine, other)
    assert "there is no column sessions.jwt" in finding.message
    execute(engine, "CREATE VIEW shown AS SELECT * FROM sessions")
    shown = table_of(column_type(), name="shown")
    (finding,) = preflight(engine, shown)
    assert finding.code == "relation"
    assert sessions.tokens


@pytest.mark.parametrize(
    ("columns", "message", "action"),
    [
        ("token BLOB NOT NULL PRIMARY KEY, id INTEGER", "is part of the key to page by", "Name a unique key"),
        ("token BLOB, id INTEGER", "has no primary key and no unique key", "Add one."),
    ],
)
def test_the_cure_of_a_key_is_about_the_key(
    memory: sa.Engine, columns: str, message: str, action: str
) -> None:
    execute(memory, f"CREATE TABLE odd ({columns})")
    (finding,) = preflight(memory, table_of(column_type(), name="odd"))
    assert finding.code == "key"
    assert message in finding.message
    assert finding.action.startswith(action)


def test_a_database_that_is_not_there_is_no_raw_error(database: Database, tmp_path: Path) -> None:
    url = database.url().set(database=str(tmp_path / "no" / "file") if database.name == "sqlite" else "gone")
    sessions = create_sessions(sa.create_engine("sqlite://"), 0)
    with engine_on(url) as engine, pytest.raises(ReencryptionError, match="cannot be reached"):
        preflight(engine, model(sessions))


# -- the server ----------------------------------------------------------------------------------------------------


def test_a_read_only_postgresql_is_named_before_anything_starts(postgresql: sa.Engine) -> None:
    sessions = create_sessions(postgresql, 3)
    name = postgresql.url.database
    execute(postgresql, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    postgresql.dispose()
    try:
        assert found(postgresql, sessions)["read-only"].severity is Severity.CRITICAL
        refused(
            postgresql, sessions, "cannot be written: transactions are read-only; set default_transaction"
        )
        # A reader is not stopped.
        assert sessions.reencrypt(postgresql, dry_run=True).reencrypted == 3
    finally:
        with postgresql.connect() as connection:
            connection.exec_driver_sql("SET default_transaction_read_only = off")
            connection.commit()
            connection.exec_driver_sql(f"ALTER DATABASE {name} RESET default_transaction_read_only")
            connection.commit()


@pytest.mark.processes
def test_a_replica_of_postgresql_is_named(tmp_path: Path) -> None:
    """A server in recovery takes connections, and no writes."""
    try:
        server = start_private_postgresql()
    except Unavailable as reason:
        _give_up(reason, required=databases_required(os.environ))
    assert server.log is not None
    try:
        with engine_on(server.url) as engine:
            sessions = create_sessions(engine, 3)
        private = server.log.parent
        with engine_on(server.url, isolation_level="AUTOCOMMIT") as engine:
            execute(engine, "CHECKPOINT")
        (private / "data" / "standby.signal").touch()
        _restart(private / "data")
        with engine_on(server.url) as engine:
            assert found(engine, sessions)["replica"].severity is Severity.CRITICAL
            with pytest.raises(ReencryptionError, match=r"the server is a replica.*connect to the primary"):
                sessions.reencrypt(engine)
            column = model(sessions, expose_expiry=True)
            for action in ("delete", "null"):
                with pytest.raises(JWTColumnError, match="replica"):
                    jwt_column.purge_expired(engine, column, action=action)
    finally:
        server.close()


def _restart(data: Path) -> None:
    binaries = postgresql_binaries()
    assert binaries is not None
    command = [
        str(binaries / "pg_ctl"),
        "-D",
        str(data),
        "-m",
        "fast",
        "-w",
        "restart",
        "-l",
        str(data.parent / "replica.log"),
    ]
    if os.geteuid() == 0:
        command = ["runuser", "-u", "postgres", "--", *command]
    subprocess.run(command, check=True, capture_output=True, timeout=60, cwd=data.parent)


def test_a_read_only_mariadb_is_named(mariadb: sa.Engine) -> None:
    sessions = create_sessions(mariadb, 3)
    with mariadb.connect() as connection:
        connection.exec_driver_sql("SET GLOBAL read_only = 1")
        try:
            assert found(mariadb, sessions)["replica"].severity is Severity.CRITICAL
            refused(mariadb, sessions, "read_only set, as a replica has; connect to the primary")
            with pytest.raises(ConfigurationError, match="replica"):
                jwt_column.purge_expired(mariadb, model(sessions, expose_expiry=True))
        finally:
            connection.exec_driver_sql("SET GLOBAL read_only = 0")


@pytest.mark.parametrize("how", ["mode", "pragma"])
def test_a_read_only_sqlite_is_named(tmp_path: Path, how: str) -> None:
    path = tmp_path / "read.sqlite3"
    with engine_on(sa.URL.create("sqlite", database=str(path))) as engine:
        sessions = create_sessions(engine, 3)
        before = sessions.stored(engine)
        if how == "pragma":
            sa.event.listen(engine, "connect", lambda c, _: c.execute("PRAGMA query_only = 1"))
            engine.dispose()
            assert found(engine, sessions)["read-only"].severity is Severity.CRITICAL
            refused(engine, sessions, "query_only")
    if how == "mode":
        with engine_on(sa.make_url(f"sqlite:///file:{path}?mode=ro&uri=true")) as engine:
            assert found(engine, sessions)["read-only"].severity is Severity.CRITICAL
            refused(engine, sessions, "read-only|mode=ro")
            assert sessions.stored(engine) == before


@pytest.mark.parametrize("driver", [one for one in DRIVERS if one != "asyncpg"])
def test_a_pooler_is_noticed(postgresql_database: Database, driver: str) -> None:
    try:
        with pooled(postgresql_database) as pool, engine_on(pool.url(driver)) as engine:
            sessions = create_sessions(engine, 3)
            assert found(engine, sessions)["pooler"].severity is Severity.INFO
            assert sessions.reencrypt(engine).reencrypted == 3
    except Unavailable as reason:
        _give_up(reason, required=databases_required(os.environ))


@every_server
def test_time_outs_are_noted_and_set_back(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 3)
    with limited(engine, 2.5) as short:
        message = found(short, sessions)["time-outs"].message
        assert (
            "statement_timeout = 2500 ms"
            if engine.dialect.name == "postgresql"
            else "max_statement_time = 2.5"
        ) in message
        assert found(short, sessions)["time-outs"].severity is Severity.INFO


def test_a_small_packet_is_noted(mariadb: sa.Engine) -> None:
    sessions = create_sessions(mariadb, 3)
    with mariadb.connect() as connection:
        old = connection.exec_driver_sql("SELECT @@global.max_allowed_packet").scalar()
        try:
            for packet, code in ((1_048_576, "packet"), (65_536, "packet-short")):
                connection.exec_driver_sql(f"SET GLOBAL max_allowed_packet = {packet}")
                mariadb.dispose()
                assert code in found(mariadb, sessions)
        finally:
            connection.exec_driver_sql(f"SET GLOBAL max_allowed_packet = {old}")


# -- the role ------------------------------------------------------------------------------------------------------


@contextmanager
def as_role(postgresql: sa.Engine, *grants: str) -> Iterator[sa.Connection]:
    with postgresql.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {ROLE}")
        for grant in grants:
            connection.exec_driver_sql(f"{grant} TO {ROLE}")
        connection.exec_driver_sql(f"SET ROLE {ROLE}")
        connection.commit()
        try:
            yield connection
        finally:
            connection.rollback()
            connection.exec_driver_sql("RESET ROLE")
            connection.exec_driver_sql(f"DROP OWNED BY {ROLE}")
            connection.exec_driver_sql(f"DROP ROLE {ROLE}")
            connection.commit()


@pytest.mark.parametrize(
    ("grants", "codes"),
    [
        ([], {"rights-read", "rights-write", "rights-vacuum"}),
        (["GRANT SELECT (id) ON sessions"], {"rights-read", "rights-write", "rights-vacuum"}),
        (["GRANT SELECT ON sessions"], {"rights-write", "rights-vacuum"}),
        (["GRANT SELECT ON sessions", "GRANT UPDATE (id) ON sessions"], {"rights-write", "rights-vacuum"}),
        (["GRANT SELECT (id, token), UPDATE (token) ON sessions"], {"rights-read", "rights-vacuum"}),
        (["GRANT SELECT ON sessions", "GRANT UPDATE (token) ON sessions"], {"rights-vacuum"}),
    ],
)
def test_rights_of_postgresql(postgresql: sa.Engine, grants: list[str], codes: set[str]) -> None:
    sessions = create_sessions(postgresql, 3)
    with as_role(postgresql, *grants) as connection:
        assert set(found(connection, sessions)) == codes
        connection.rollback()
        if codes != {"rights-vacuum"}:
            refused(connection, sessions, "GRANT (SELECT|UPDATE) on it")
        else:
            assert sessions.reencrypt(connection).reencrypted == 3


def test_rights_of_mariadb(mariadb: sa.Engine) -> None:
    sessions = create_sessions(mariadb, 3)
    database = mariadb.url.database
    execute(
        mariadb,
        f"CREATE OR REPLACE USER {ROLE}@'127.0.0.1' IDENTIFIED BY 'word'",
        f"GRANT SELECT ON {database}.* TO {ROLE}@'127.0.0.1'",
    )
    try:
        with engine_on(mariadb.url.set(username=ROLE, password="word")) as engine:
            assert set(found(engine, sessions)) == {"rights-write"}
            refused(engine, sessions, "this user may not write sessions; GRANT UPDATE on it")
            execute(mariadb, f"GRANT UPDATE (token) ON {database}.sessions TO {ROLE}@'127.0.0.1'")
            engine.dispose()
            assert found(engine, sessions) == {}
            assert sessions.reencrypt(engine).reencrypted == 3
    finally:
        execute(mariadb, f"DROP USER {ROLE}@'127.0.0.1'")


def test_row_level_security_stops_readers_too(postgresql: sa.Engine) -> None:
    sessions = create_sessions(postgresql, 3)
    execute(
        postgresql,
        "ALTER TABLE sessions ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY p ON sessions USING (id = 1)",
    )
    with as_role(postgresql, "GRANT ALL ON sessions") as connection:
        finding = found(connection, sessions)["rows-hidden"]
        assert finding.severity is Severity.CRITICAL
        assert "owner" in finding.action
        connection.rollback()
        refused(connection, sessions, "row-level security may hide rows of .*sessions")
        refused(connection, sessions, "row-level security may hide rows", dry_run=True)


# -- the table -----------------------------------------------------------------------------------------------------


TRIGGERS: Final = {
    "postgresql": (
        "CREATE FUNCTION passes() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TRIGGER watch BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION passes()",
        "CREATE TRIGGER other BEFORE DELETE ON sessions FOR EACH ROW EXECUTE FUNCTION passes()",
    ),
    "mariadb": (
        "CREATE TRIGGER watch BEFORE UPDATE ON sessions FOR EACH ROW SET @seen = 1",
        "CREATE TRIGGER other BEFORE DELETE ON sessions FOR EACH ROW SET @seen = 1",
    ),
    "sqlite": ("CREATE TRIGGER watch BEFORE UPDATE ON sessions BEGIN SELECT 1; END",),
}


def test_triggers_are_named_and_stop_nothing(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 3)
    execute(engine, *TRIGGERS[engine.dialect.name])
    (finding,) = found(engine, sessions).values()
    assert (finding.code, finding.severity) == ("triggers", Severity.WARNING)
    assert "(watch)" in finding.message
    assert sessions.reencrypt(engine).reencrypted == 3


def test_parts_of_a_table(postgresql: sa.Engine, tmp_path: Path) -> None:
    sessions = create_sessions(sa.create_engine("sqlite://"), 0)
    execute(
        postgresql,
        "CREATE TABLE sessions (id int PRIMARY KEY, token bytea) PARTITION BY RANGE (id)",
        "CREATE TABLE one PARTITION OF sessions FOR VALUES FROM (0) TO (10)",
    )
    assert {code: one.severity for code, one in found(postgresql, sessions).items()} == {
        "parts": Severity.INFO
    }
    with postgresql.connect() as connection:
        has_wrapper = connection.exec_driver_sql(
            "SELECT count(*) FROM pg_available_extensions WHERE name = 'postgres_fdw'"
        ).scalar()
    if not has_wrapper:
        pytest.skip("no foreign data wrapper is installed")
    execute(
        postgresql,
        "CREATE EXTENSION postgres_fdw",
        "CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw",
        "DROP TABLE sessions",
        "CREATE TABLE sessions (id int PRIMARY KEY, token bytea)",
        "CREATE FOREIGN TABLE far () INHERITS (sessions) SERVER elsewhere",
    )
    assert "(far)" in found(postgresql, sessions)["foreign-part"].message
    with pytest.raises(ReencryptionError, match="foreign tables"):
        reencrypt(postgresql, "sessions", "token", type_=column_type())


def test_a_rule_that_rewrites_updates_is_refused(postgresql: sa.Engine) -> None:
    sessions = create_sessions(postgresql, 3)
    execute(postgresql, "CREATE RULE kept AS ON UPDATE TO sessions DO INSTEAD NOTHING")
    assert found(postgresql, sessions)["rule"].severity is Severity.CRITICAL
    refused(postgresql, sessions, r"rules rewrite an UPDATE of sessions \(kept\)")


def test_an_invalid_index_is_named(postgresql: sa.Engine) -> None:
    sessions = create_sessions(postgresql, 3)
    execute(postgresql, "ALTER TABLE sessions ADD other int DEFAULT 1")
    autocommit = postgresql.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as connection, pytest.raises(sa.exc.IntegrityError):
        connection.exec_driver_sql("CREATE UNIQUE INDEX CONCURRENTLY broken ON sessions (other)")
    (finding,) = found(postgresql, sessions).values()
    assert (finding.code, finding.severity) == ("index-invalid", Severity.WARNING)
    assert "(broken)" in finding.message
    assert sessions.reencrypt(postgresql).reencrypted == 3


def test_a_published_table_needs_a_replica_identity(postgresql: sa.Engine) -> None:
    sessions = create_sessions(postgresql, 3)
    execute(postgresql, "CREATE PUBLICATION jwt_column_published FOR TABLE sessions")
    assert found(postgresql, sessions) == {}
    execute(postgresql, "ALTER TABLE sessions REPLICA IDENTITY FULL")
    assert found(postgresql, sessions)["replica-identity-full"].severity is Severity.WARNING
    execute(postgresql, "ALTER TABLE sessions REPLICA IDENTITY NOTHING")
    assert found(postgresql, sessions)["replica-identity"].severity is Severity.CRITICAL
    refused(postgresql, sessions, "no replica identity")
    execute(postgresql, "ALTER TABLE sessions REPLICA IDENTITY DEFAULT")
    assert sessions.reencrypt(postgresql).reencrypted == 3


def test_a_publication_that_takes_no_update_is_explained(postgresql: sa.Engine) -> None:
    sessions = create_sessions(postgresql, 3)
    if (postgresql.dialect.server_version_info or ()) < (15,):
        pytest.skip("PostgreSQL 15 has row filters")
    execute(
        postgresql,
        "ALTER TABLE sessions ADD COLUMN region text",
        "CREATE PUBLICATION jwt_column_published FOR TABLE sessions WHERE (region = 'eu')",
    )
    with pytest.raises(ReencryptionError, match=r"42P10: .*published with a row filter"):
        sessions.reencrypt(postgresql)


def test_versioning_and_engines_of_mariadb(mariadb: sa.Engine) -> None:
    sessions = create_sessions(mariadb, 3)
    execute(mariadb, "ALTER TABLE sessions ADD SYSTEM VERSIONING")
    assert found(mariadb, sessions)["history-kept"].severity is Severity.WARNING
    assert sessions.reencrypt(mariadb).keeps_history
    execute(mariadb, "ALTER TABLE sessions DROP SYSTEM VERSIONING", "ALTER TABLE sessions ENGINE = MyISAM")
    (finding,) = found(mariadb, sessions).values()
    assert (finding.code, finding.severity) == ("engine", Severity.WARNING)


# -- the column ----------------------------------------------------------------------------------------------------


GENERATED: Final = {
    "postgresql": "ALTER TABLE sessions ADD made bytea GENERATED ALWAYS AS (token) STORED",
    "mariadb": "ALTER TABLE sessions ADD made blob GENERATED ALWAYS AS (token) STORED",
    "sqlite": "ALTER TABLE sessions ADD made blob GENERATED ALWAYS AS (token) VIRTUAL",
}


def test_a_generated_column_is_refused(engine: sa.Engine) -> None:
    create_sessions(engine, 3)
    execute(engine, GENERATED[engine.dialect.name])
    table = sa.Table(
        "sessions",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("made", column_type()),
    )
    assert "column-generated" in {one.code for one in preflight(engine, table)}
    with pytest.raises(ReencryptionError, match=r"sessions\.made is generated by the database"):
        reencrypt(engine, "sessions", "made", type_=column_type())


@every_server
def test_a_column_that_is_too_short_is_refused(engine: sa.Engine) -> None:
    sessions = create_sessions(
        engine, 2, storage="text", token_type=sa.String(len(seal(token(2), storage="text")) + 1)
    )
    # Longer than before by its fingerprints.
    wider: dict[str, Any] = {"fingerprints": ["jti", "sub"]}
    assert found(engine, sessions) == {}
    assert found(engine, sessions, **wider)["column-short"].severity is Severity.CRITICAL
    refused(
        engine,
        sessions,
        "the longest new value needs .*change the column to TEXT first",
        type_=column_type(storage="text", **wider),
    )


def test_a_column_of_the_other_form_is_refused(postgresql: sa.Engine) -> None:
    sessions = create_sessions(postgresql, 2)
    assert found(postgresql, sessions, storage="text")["column-type"].severity is Severity.CRITICAL


@every_server
def test_a_column_that_fills_values_up_to_its_length_is_refused(engine: sa.Engine) -> None:
    """Where packed tokens are shorter than plain ones, they would fit, and none would open."""
    is_postgresql = engine.dialect.name == "postgresql"
    storage = "text" if is_postgresql else "binary"
    padded: Any = sa.CHAR(900) if is_postgresql else sa.BINARY(255)
    sessions = create_sessions(engine, 2, storage=storage, token_type=padded)
    assert found(engine, sessions)["column-type"].severity is Severity.CRITICAL
    refused(
        engine, sessions, f"fixed length.* change the column to {'TEXT' if is_postgresql else 'BLOB'} first"
    )
    # The control: what it says is so.
    assert {len(value) for value in sessions.stored(engine).values()} == {padded.length}
    with pytest.raises(DecryptionError):
        sessions.decrypted(engine)


def test_a_table_without_a_key_to_page_by(engine: sa.Engine) -> None:
    blob = "bytea" if engine.dialect.name == "postgresql" else "blob"
    execute(engine, f"CREATE TABLE sessions (id int, token {blob})")
    sessions = create_sessions(sa.create_engine("sqlite://"), 0)
    assert found(engine, sessions)["key"].severity is Severity.CRITICAL
    with pytest.raises(ReencryptionError, match="no primary key"):
        reencrypt(engine, "sessions", "token", type_=column_type())


@pytest.mark.parametrize("driver", ["psycopg", pytest.param("psycopg2", marks=pytest.mark.exhaustive)])
def test_keys_that_drivers_do_not_send_back_are_refused_by_name(
    postgresql_database: Database, driver: str
) -> None:
    """The control is a second key, by which the same rows are found."""
    sessions = create_sessions(sa.create_engine("sqlite://"), 0)
    kinds = {
        "interval": (["'1 year'", "'3 days'"], "24:00, months"),
        "inet": (["'192.0.2.0/24'", "'192.0.2.1'"], "netmask"),
        "numeric": (["'Infinity'", "1"], "infinity"),
        "int4range": (["'empty'", "'[1,5)'"], "of type INT4RANGE"),
        "int4multirange": (["'{[1,5)}'", "'{[2,3)}'"], "of type INT4MULTIRANGE"),
        "regclass": (["'pg_class'", "'pg_type'"], "of type REGCLASS"),
        "tsquery": (["'a'", "'b'"], "of type TSQUERY"),
        "int[]": (["'{1}'", "'{2}'"], "of type"),
        "jsonb": (["'1'", "'2'"], "of type JSONB"),
        "xid8": (["'1'", "'2'"], "of type xid8"),
        "pg_lsn": (["'0/1'", "'0/2'"], "of type pg_lsn"),
        "timestamptz": (["'infinity'", "'2020-01-01'"], "infinity, a year before 1"),
        "timestamp": (["'-infinity'", "'2020-01-01'"], "infinity, a year before 1"),
        "date": (["'0044-03-15 BC'", "'2020-01-01'"], "infinity, a year before 1"),
        "time": (["'24:00'", "'23:59'"], "24:00"),
        # One time in Python, and two keys.
        "timetz": (["'12:00+02'", "'10:00+00'"], "of type TIME WITH TIME ZONE"),
    }
    with engine_on(postgresql_database.url(driver)) as engine:
        for kind, (values, message) in kinds.items():
            execute(engine, "DROP TABLE IF EXISTS sessions")
            execute(engine, f"CREATE TABLE sessions (id {kind} PRIMARY KEY, nr serial UNIQUE, token bytea)")
            with engine.begin() as connection:
                for number, value in enumerate(values):
                    insert = f"INSERT INTO sessions (id, token) VALUES (CAST({value} AS {kind}), :token)"
                    connection.execute(sa.text(insert), {"token": seal(token(number))})
            options: dict[str, Any] = {"type_": column_type(), "key_columns": ["id"]}
            with pytest.raises(ReencryptionError, match=f"sessions cannot be paged by id.*{message}"):
                reencrypt(engine, "sessions", "token", **options)
            report = reencrypt(engine, "sessions", "token", **(options | {"key_columns": ["nr"]}))
            assert report.reencrypted == 2, kind
    assert sessions.key == ("id",)


def test_a_boolean_key_is_paged_by(postgresql: sa.Engine) -> None:
    execute(postgresql, "CREATE TABLE sessions (id boolean, n int, token bytea, PRIMARY KEY (id, n))")
    execute(postgresql, "CREATE TABLE two (id boolean PRIMARY KEY, token bytea)")
    insert = {"sessions": "VALUES (:id, :n, :token)", "two": "VALUES (:id, :token)"}
    with postgresql.begin() as connection:
        for number in range(10):
            row = {"id": bool(number % 2), "n": number, "token": seal(token(number))}
            connection.execute(sa.text(f"INSERT INTO sessions {insert['sessions']}"), row)
            if number < 2:
                connection.execute(sa.text(f"INSERT INTO two {insert['two']}"), row)
    for table, rows in (("sessions", 10), ("two", 2)):
        report = reencrypt(postgresql, table, "token", type_=column_type(), batch_size=1, batch_seconds=1e-9)
        assert (report.reencrypted, report.passes) == (rows, 1)


def test_times_of_mariadb_outside_of_a_day_are_refused(mariadb: sa.Engine) -> None:
    execute(mariadb, "CREATE TABLE sessions (id time PRIMARY KEY, token blob)")
    for value in ("'00:00:01'", "'800:00:00'"):
        with mariadb.begin() as connection:
            insert = f"INSERT INTO sessions VALUES ({value.replace(':', chr(92) + ':')}, :token)"
            connection.execute(sa.text(insert), {"token": seal(token(1))})
        if value == "'00:00:01'":
            assert reencrypt(mariadb, "sessions", "token", type_=column_type()).reencrypted == 1
    with pytest.raises(ReencryptionError, match=r"cannot be paged by id: .*24:00"):
        reencrypt(mariadb, "sessions", "token", type_=column_type())


# -- room ----------------------------------------------------------------------------------------------------------


def test_a_disk_that_would_fill_is_a_warning(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = create_sessions(engine, 200)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    finding = found(engine, sessions).get("disk-short")
    if finding is None:
        pytest.skip("the server does not say where its files are")
    assert finding.severity is Severity.WARNING
    assert sessions.reencrypt(engine).reencrypted == 200


# -- all of it -----------------------------------------------------------------------------------------------------


def test_every_finding_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "alembic.md").read_text(encoding="utf-8")
    for code, kind in KINDS.items():
        assert f"| `{code}` | {kind.severity} |" in page, code


def test_the_errors_of_a_preflight_show_no_value(postgresql: sa.Engine) -> None:
    sessions = create_sessions(postgresql, 3)
    sessions.put(postgresql, (1,), seal(token(1), jwt_column.KeyRing([LOST_KEY])))
    execute(postgresql, "CREATE RULE kept AS ON UPDATE TO sessions DO INSTEAD NOTHING")
    for finding in preflight(postgresql, model(sessions)):
        assert "eyJ" not in finding.message + finding.action
