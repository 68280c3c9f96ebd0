"""``audit()`` by SQL alone: what it finds in rows, declarations and schemas, and that it needs no key for it."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from jwt_column import (
    JWT,
    AuditError,
    ConfigurationError,
    EncryptedJWT,
    ExpiryIndex,
    FingerprintIndex,
    KeyRingError,
    Severity,
    StaleIndex,
    audit,
)
from jwt_column.auditing import ExpiryCount, KeyCount
from jwt_column.auditing.kinds import KINDS
from jwt_column.auditing.run import Options, audit_at
from tests.support.audited import (
    AFTER,
    BEFORE,
    LOST,
    NEW,
    NOW,
    OLD,
    codes,
    envelope,
    expiring,
    found,
    put,
    token,
)
from tests.support.models import table_of
from tests.support.raw import raw_table

if TYPE_CHECKING:
    from jwt_column import AuditReport
    from jwt_column.format.envelope import Storage
    from tests.support.databases import Database

STORAGES: tuple[Storage, ...] = ("binary", "text")


def look(bind: sa.Engine | sa.Connection, target: Any, **options: Any) -> AuditReport:
    return audit_at(NOW, bind, target, Options(**options))


# -- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_rows_in_every_state_are_found(engine: sa.Engine, storage: Storage) -> None:
    type_ = EncryptedJWT(AFTER, storage=storage, context="c", expose_expiry=True, fingerprints=["jti"])
    other_layout = EncryptedJWT(AFTER, storage=storage, context="c")
    table = table_of(type_)
    column = table.c.token
    with engine.begin() as connection:
        table.create(connection)
        put(
            connection,
            column,
            [
                *[envelope(column, expiring(1))] * 3,  # 1 to 3
                *[envelope(column, expiring(2), BEFORE)] * 2,
                envelope(sa.Column(other_layout), expiring(2)),  # 6
                *[envelope(column, expiring(2), LOST)] * 4,
                *[expiring(1)] * 25,  # 11 to 35
                "nonsense",
                None,
            ],
        )
    report = look(engine, column)
    assert [
        (finding.code, finding.count, finding.primary_keys) for finding in report.findings if finding.count
    ] == [
        ("plaintext", 25, tuple((number,) for number in range(11, 31))),
        ("unknown-key", 4, ((7,), (8,), (9,), (10,))),
        ("unreadable", 1, ((36,),)),
        ("not-searchable", 1, ((6,),)),
        ("not-searchable", 1, ((6,),)),
        ("stale", 3, ((4,), (5,), (6,))),
    ]
    assert not report.ok
    (one,) = report.columns
    assert (one.column, one.context, one.rows, one.nulls, one.examined) == ("sessions.token", "c", 37, 1, 0)
    assert set(one.keys) == {
        KeyCount(NEW, "current", 3),
        KeyCount(NEW, "stale", 1),
        KeyCount(OLD, "stale", 2),
        KeyCount(LOST.active, "stale", 4),
        KeyCount(None, "plaintext", 25),
        KeyCount(None, "unreadable", 1),
    }
    assert report.active_key == one.active_key == NEW
    assert (report.deep, report.database.partition("@")[2].count(":")) == (False, report.database.count("@"))


@pytest.mark.parametrize("storage", STORAGES)
def test_a_column_whose_rows_are_all_current_is_ok(engine: sa.Engine, storage: Storage) -> None:
    """The control of the test above."""
    table = table_of(EncryptedJWT(AFTER, storage=storage, context="c"))
    with engine.begin() as connection:
        table.create(connection)
        put(connection, table.c.token, [envelope(table.c.token, token()), None])
    report = look(engine, table)
    assert (report.ok, report.findings) == (True, ())
    report.raise_for_findings()


@pytest.mark.parametrize("storage", STORAGES)
def test_expiries_are_counted_by_day(engine: sa.Engine, storage: Storage) -> None:
    type_ = EncryptedJWT(AFTER, storage=storage, context="c", expose_expiry=True)
    table = table_of(type_, ExpiryIndex("ix_expiry", "token"))
    midnight = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())
    times = [
        0,
        midnight - 1,
        midnight,
        midnight + 86_399,
        int(NOW.timestamp()),
        int(NOW.timestamp()) + 1,
        midnight + 86_400,
        2**48 - 2,
    ]
    with engine.begin() as connection:
        table.create(connection)
        values = [envelope(table.c.token, token(exp=time)) for time in times]
        put(connection, table.c.token, [*values, envelope(table.c.token, token(exp=None)), None, token()])
    report = look(engine, table)
    (one,) = report.columns
    assert one.expiry == (
        ExpiryCount(date(1970, 1, 1), 1),
        ExpiryCount(date(2026, 2, 28), 1),
        ExpiryCount(date(2026, 3, 1), 4),
        ExpiryCount(date(2026, 3, 2), 1),
        ExpiryCount(date(9999, 12, 31), 1),
    )
    assert one.expired == 4
    expired = found(report, "expired")
    assert (expired.severity, expired.count, expired.primary_keys) == (
        Severity.INFO,
        4,
        ((1,), (2,), (3,), (5,)),
    )


def test_a_column_that_does_not_expose_the_expiry_has_none(sqlite: sa.Engine) -> None:
    table = table_of(EncryptedJWT(AFTER))
    table.create(sqlite)
    (one,) = look(sqlite, table).columns
    assert (one.expired, one.expiry) == (None, ())


def test_findings_have_a_bounded_number_of_keys_of_every_kind(engine: sa.Engine) -> None:
    """A composite key, and one whose values are tokens, which are not shown."""
    metadata = sa.MetaData()
    composite = sa.Table(
        "composite",
        metadata,
        sa.Column("tenant", sa.String(10), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("token", EncryptedJWT(AFTER)),
    )
    revealing = sa.Table(
        "revealing",
        metadata,
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("token", EncryptedJWT(AFTER)),
    )
    keyless = sa.Table("keyless", metadata, sa.Column("token", EncryptedJWT(AFTER)))
    metadata.create_all(engine)
    plaintext = token().encode()
    with engine.begin() as connection:
        for number in range(30):
            connection.execute(
                raw_table(composite).insert().values(tenant=f"t{number % 2}", number=number, token=plaintext)
            )
        connection.execute(raw_table(revealing).insert().values(name=f"Bearer {token()}", token=plaintext))
        connection.execute(raw_table(revealing).insert().values(name="harmless", token=plaintext))
        connection.execute(raw_table(keyless).insert().values(token=plaintext))
    report = look(engine, metadata)
    by_column = {finding.column: finding for finding in report.findings if finding.code == "plaintext"}
    assert by_column["composite.token"].primary_keys[:2] == (("t0", 0), ("t0", 2))
    assert len(by_column["composite.token"].primary_keys) == 20
    assert (by_column["revealing.token"].count, by_column["revealing.token"].primary_keys) == (
        2,
        (("harmless",),),
    )
    assert (by_column["keyless.token"].count, by_column["keyless.token"].primary_keys) == (1, ())
    assert "eyJ" not in report.to_json()


# -- keys ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def rotating(sqlite: sa.Engine) -> sa.Table:
    """Three rows under the new key and two under the old one, in a column without a ring of its own."""
    table = table_of(EncryptedJWT(context="c"))
    with sqlite.begin() as connection:
        table.create(connection)
        column = table.c.token
        put(
            connection,
            column,
            [*[envelope(column, token())] * 3, *[envelope(column, token(), BEFORE)] * 2],
        )
    return table


def test_a_report_says_who_audited_which_database_with_what(
    sqlite: sa.Engine, rotating: sa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = audit(sqlite, rotating)
    assert report.operator == f"{getpass.getuser()}@{socket.gethostname()}"
    assert report.server["name"] == sqlite.url.database
    assert set(report.versions) == {"jwt-column", "SQLAlchemy", "Python"}
    assert report.versions["SQLAlchemy"] == sa.__version__
    assert audit(sqlite, rotating, operator="nightly").operator == "nightly"

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")  # as in a container without a name for its user

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert audit(sqlite, rotating).operator == f"{os.getuid()}@{socket.gethostname()}"


def test_a_host_without_keys_names_the_active_one(sqlite: sa.Engine, rotating: sa.Table) -> None:
    report = look(sqlite, rotating, active=NEW)
    assert [(finding.code, finding.count) for finding in report.findings] == [("stale", 2)]
    assert report.active_key == NEW
    assert report.columns[0].configuration["key ring"] == "the default ring (not loaded)"
    report = look(sqlite, rotating, active=[NEW, OLD])
    assert (report.findings, report.active_key) == ((), NEW)


def test_a_host_that_knows_no_key_says_so(sqlite: sa.Engine, rotating: sa.Table) -> None:
    """Not ok: a gate must not pass because it could not look."""
    report = look(sqlite, rotating)
    assert codes(report) == ["active-unknown"]
    assert "no key ring: call set_default_keyring()" in found(report, "active-unknown").message
    assert (report.ok, report.active_key) == (False, None)
    assert set(report.columns[0].keys) == {KeyCount(NEW, "unknown", 3), KeyCount(OLD, "unknown", 2)}


def test_a_ring_that_cannot_be_reached_is_like_none(
    sqlite: sa.Engine, rotating: sa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_COLUMN_KEYRING", "file:/there/is/none")
    assert codes(look(sqlite, rotating)) == ["active-unknown"]
    with pytest.raises(KeyRingError):
        look(sqlite, rotating, deep=True)


def test_a_retired_key_is_proved_unused(sqlite: sa.Engine, rotating: sa.Table) -> None:
    finding = found(look(sqlite, rotating, active=NEW, retired=[OLD]), "retired-key")
    assert (finding.severity, finding.count, finding.primary_keys) == (Severity.CRITICAL, 2, ((4,), (5,)))
    assert OLD in finding.message
    assert "retired-key" not in codes(look(sqlite, rotating, active=NEW, retired=[LOST.active]))
    with sqlite.begin() as connection:
        connection.execute(rotating.delete().where(rotating.c.id > 3))
    assert codes(look(sqlite, rotating, active=NEW, retired=[OLD])) == []


def test_columns_of_different_rings_have_no_one_active_key(sqlite: sa.Engine) -> None:
    metadata = sa.MetaData()
    table_of(EncryptedJWT(AFTER), metadata=metadata)
    table_of(EncryptedJWT(BEFORE), name="others", metadata=metadata)
    metadata.create_all(sqlite)
    report = look(sqlite, metadata)
    assert report.active_key is None
    assert [column.active_key for column in report.columns] == [OLD, NEW]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"active": "xyz"}, KeyRingError, "8 lower-case hex digits"),
        ({"active": []}, ConfigurationError, "not empty"),
        ({"retired": ["xyz"]}, KeyRingError, "8 lower-case hex digits"),
        ({"retired": OLD}, ConfigurationError, "retired is a list"),
        ({"deep": True, "allowed_algorithms": "RS256"}, ConfigurationError, "allowed_algorithms is a list"),
        ({"deep": True, "compromised_kids": "k"}, ConfigurationError, "compromised_kids is a list"),
        ({"deep": True, "max_lifetime": 3600}, ConfigurationError, "timedelta"),
        ({"deep": True, "sample": 0}, ConfigurationError, "at least 1"),
        ({"deep": True, "sample": True}, ConfigurationError, "at least 1"),
        ({"sample": 5}, ConfigurationError, "ask for a deep audit"),
        ({"max_lifetime": timedelta(1)}, ConfigurationError, "ask for a deep audit"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    sqlite: sa.Engine, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        audit(sqlite, table_of(EncryptedJWT(AFTER)), **options)


# -- targets -------------------------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10))
    token: Mapped[JWT | None] = mapped_column(EncryptedJWT(AFTER))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012


class Employee(Person):
    __tablename__ = "employees"
    id: Mapped[int] = mapped_column(sa.ForeignKey("people.id"), primary_key=True)
    badge: Mapped[JWT | None] = mapped_column("badge_token", EncryptedJWT(AFTER))
    name: Mapped[str | None]
    __mapper_args__ = {"polymorphic_identity": "employee"}  # noqa: RUF012


PEOPLE: Any = Person.__table__


@pytest.mark.parametrize(
    ("target", "columns"),
    [
        (Person.token, ["people.token"]),
        (Employee.badge, ["employees.badge_token"]),
        (aliased(Person).token, ["people.token"]),
        (PEOPLE.c.token, ["people.token"]),
        (PEOPLE, ["people.token"]),
        (Person, ["people.token"]),
        (Employee, ["employees.badge_token", "people.token"]),
        (Base.metadata, ["employees.badge_token", "people.token"]),
        ([Person.token, Employee], ["employees.badge_token", "people.token"]),
    ],
    ids=["attribute", "renamed", "alias", "column", "table", "class", "subclass", "metadata", "list"],
)
def test_every_kind_of_target_stands_for_its_columns(
    sqlite: sa.Engine, target: Any, columns: list[str]
) -> None:
    Base.metadata.create_all(sqlite)
    report = audit(sqlite, target)
    assert [column.column for column in report.columns] == columns
    assert report.ok


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Employee.name, "holds none"),
        (PEOPLE.c.kind, "the column people.kind is no column of type EncryptedJWT"),
        (sa.MetaData(), "this MetaData"),
        (sa.Table("empty", sa.MetaData()), "the table empty"),
        (sa.column("token", EncryptedJWT(AFTER, context="c")), "a value of type"),
        (int, "the class int"),
        ("people.token", "a value of type str"),
        ([], "the list is empty"),
        ([PEOPLE, "people"], "a value of type"),
    ],
)
def test_what_holds_no_encrypted_column_is_refused(sqlite: sa.Engine, target: Any, message: str) -> None:
    """An audit of nothing would always be ok."""
    with pytest.raises(ConfigurationError, match=message):
        audit(sqlite, target)


def test_a_table_in_a_schema_is_audited(postgresql: sa.Engine) -> None:
    metadata = sa.MetaData(schema="tenant")
    table = table_of(EncryptedJWT(AFTER), metadata=metadata)
    with postgresql.begin() as connection:
        connection.execute(sa.schema.CreateSchema("tenant"))
        table.create(connection)
        put(connection, table.c.token, [token()])
    report = look(postgresql, metadata)
    postgresql.dispose()
    assert (found(report, "plaintext").column, report.columns[0].rows) == ("tenant.sessions.token", 1)


# -- binds ---------------------------------------------------------------------------------------------------------


def test_a_connection_stays_as_it_was(engine: sa.Engine) -> None:
    """In the transaction that the caller has begun, or without one; what is not committed yet is seen."""
    table = table_of(EncryptedJWT(AFTER))
    table.create(engine)
    with engine.connect() as connection:
        assert audit(connection, table).ok
        assert not connection.in_transaction()
        with connection.begin():
            put(connection, table.c.token, [token()])
            assert "plaintext" in codes(audit(connection, table, deep=True))
            assert connection.in_transaction()
        autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
        assert "plaintext" in codes(audit(autocommit, table, deep=True))
        assert "plaintext" in codes(audit(autocommit, table, deep=True))
        autocommit.execute(sa.select(1))
        assert "plaintext" in codes(audit(autocommit, table))


def test_an_async_connection_runs_it(async_driver_engine: AsyncEngine) -> None:
    table = table_of(EncryptedJWT(AFTER))

    async def run() -> AuditReport:
        async with async_driver_engine.begin() as connection:
            await connection.run_sync(table.create)
            values = [token(), envelope(table.c.token, token())]
            await connection.run_sync(lambda sync: put(sync, table.c.token, values))
        async with async_driver_engine.connect() as connection:
            return await connection.run_sync(audit, table, deep=True)

    report = asyncio.run(run())
    assert codes(report, "lifetime") == ["plaintext", "duplicate-token"]


def test_an_async_engine_is_refused_with_what_to_do() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(ConfigurationError, match=r"await connection\.run_sync\(lambda connection: audit"):
        audit(engine, table_of(EncryptedJWT(AFTER)))  # type: ignore[arg-type]


# -- declarations and schemas --------------------------------------------------------------------------------------


def test_what_a_declaration_risks_is_said(sqlite: sa.Engine) -> None:
    metadata = sa.MetaData()
    reading = table_of(
        EncryptedJWT(
            AFTER,
            plaintext="read",
            allow_unsigned=True,
            allow_opaque=True,
            undecryptable="sealed",
            bound_to=["id"],
            context="c",
        ),
        metadata=metadata,
    )
    table_of(EncryptedJWT("file:/x", plaintext="write"), name="writing", metadata=metadata)
    metadata.create_all(sqlite)
    report = look(sqlite, metadata, active=NEW)
    assert [(finding.code, finding.column, finding.count) for finding in report.findings] == [
        ("plaintext-mode", "sessions.token", 0),
        ("plaintext-mode", "writing.token", 0),
        ("unsigned-allowed", "sessions.token", 0),
        ("context-default", "writing.token", 0),
    ]
    assert "written in the clear" in report.findings[1].message
    first, second = report.columns
    assert first.configuration == {
        "storage": "binary",
        "plaintext": "read",
        "key ring": "the default ring (not loaded)",
        "bound_to": "id",
        "allow_opaque": "yes",
        "allow_unsigned": "yes",
        "undecryptable": "sealed",
    }
    assert second.configuration["key ring"] == "file: (not loaded)"
    assert look(sqlite, reading).columns[0].configuration["key ring"] == "keys given by the program"


def test_a_ring_is_named_without_what_may_be_secret(
    sqlite: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEYS", "A" * 43)
    table = table_of(EncryptedJWT("env:MY_KEYS"))
    table.create(sqlite)
    assert look(sqlite, table).columns[0].configuration["key ring"] == "env:MY_KEYS"
    for uri, shown in (("secret", "not loaded"), ("vault:s3cr3t@host", "vault: (not loaded)")):
        other = table_of(EncryptedJWT(uri))
        assert look(sqlite, other, active=NEW).columns[0].configuration["key ring"] == shown


def test_columns_with_one_context_are_told_of_each_other(sqlite: sa.Engine) -> None:
    metadata = sa.MetaData()
    for name in ("a", "b"):
        table_of(EncryptedJWT(AFTER, context="shared"), name=name, metadata=metadata)
    table_of(EncryptedJWT(AFTER, context="own"), name="c", metadata=metadata)
    metadata.create_all(sqlite)
    shared = [finding for finding in look(sqlite, metadata).findings if finding.code == "context-shared"]
    assert [finding.column for finding in shared] == ["a.token", "b.token"]
    assert "also that of b.token" in shared[0].message


def test_a_missing_table_or_column_is_found_and_the_others_are_audited(engine: sa.Engine) -> None:
    metadata = sa.MetaData()
    there = table_of(EncryptedJWT(AFTER), metadata=metadata)
    there.create(engine)
    table_of(EncryptedJWT(AFTER), name="absent", metadata=metadata)
    sa.Table("partial", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True)).create(engine)
    table_of(EncryptedJWT(AFTER), name="partial", metadata=metadata)
    with engine.begin() as connection:
        put(connection, there.c.token, [token()])
    report = look(engine, metadata)
    missing = {
        finding.column: finding.message for finding in report.findings if finding.code == "column-missing"
    }
    assert missing == {
        "absent.token": "The table absent is not there.",
        "partial.token": "The table partial has no column token.",
    }
    assert found(report, "plaintext").column == "sessions.token"
    assert [(column.column, column.rows) for column in report.columns] == [
        ("absent.token", 0),
        ("partial.token", 0),
        ("sessions.token", 1),
    ]


@pytest.mark.each_server
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
@pytest.mark.parametrize(
    ("type_", "storage", "code"),
    [
        (sa.Text(), "binary", "column-type"),
        (sa.LargeBinary(), "text", "column-type"),
        (sa.JSON(), "text", "column-type"),
        (sa.Integer(), "binary", "column-type"),
        (sa.String(200), "text", "column-short"),
        (sa.String(16_000), "text", None),
        (sa.Text(), "text", None),
        (sa.LargeBinary(), "binary", None),
    ],
    ids=str,
)
def test_a_column_of_an_unfit_type_is_found(
    request: pytest.FixtureRequest, server: str, type_: Any, storage: Storage, code: str | None
) -> None:
    engine = sa.create_engine(request.getfixturevalue(f"{server}_database").url())
    table_of(type_).create(engine)
    report = look(engine, table_of(EncryptedJWT(AFTER, storage=storage, max_length=4096)))
    engine.dispose()
    # MariaDB's JSON is a text.
    expected = None if server == "mariadb" and isinstance(type_, sa.JSON) else code
    assert codes(report, "refused", "column-missing") == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("base", "storage", "code"),
    [
        ("bytea", "binary", None),
        ("text", "text", None),
        ("text", "binary", "column-type"),
        ("char(9000)", "text", "column-type"),
    ],
)
def test_a_domain_is_what_it_is_made_of(
    postgresql: sa.Engine, base: str, storage: Storage, code: str | None
) -> None:
    with postgresql.begin() as connection:
        connection.exec_driver_sql(f"CREATE DOMAIN inner_token AS {base}")
        connection.exec_driver_sql("CREATE DOMAIN sealed_token AS inner_token")
        connection.exec_driver_sql("CREATE TABLE sessions (id int PRIMARY KEY, token sealed_token)")
    report = look(postgresql, table_of(EncryptedJWT(AFTER, storage=storage, max_length=4096)))
    assert codes(report, "refused", "column-missing") == ([code] if code else [])


def test_the_length_that_a_column_needs_is_what_its_longest_token_takes(mariadb: sa.Engine) -> None:
    """With the type's own limit, a column of that length holds every token that the type takes."""
    type_ = EncryptedJWT(AFTER, storage="binary", max_length=400, fingerprints=["jti"], expose_expiry=True)
    longest = token(pad="x" * 190)
    longest += "x" * (400 - len(longest))
    sealed = envelope(sa.Column(type_.in_context("c")), longest)
    for length, expected in ((len(sealed) + 8, []), (len(sealed) - 1, ["column-short"])):
        table = table_of(sa.dialects.mysql.VARBINARY(length))
        table.create(mariadb)
        assert codes(look(mariadb, table_of(type_))) == expected
        table.drop(mariadb)


def test_a_column_that_fills_values_up_to_its_length_is_found(mariadb: sa.Engine) -> None:
    type_ = EncryptedJWT(AFTER, max_length=100)
    table_of(sa.BINARY(255)).create(mariadb)
    assert codes(look(mariadb, table_of(type_))) == ["column-type"]


def test_opaque_tokens_need_room_for_every_character(mariadb: sa.Engine) -> None:
    table_of(sa.dialects.mysql.TINYBLOB).create(mariadb)
    assert codes(look(mariadb, table_of(EncryptedJWT(AFTER, max_length=50, allow_opaque=True)))) == []
    assert codes(look(mariadb, table_of(EncryptedJWT(AFTER, max_length=60, allow_opaque=True)))) == [
        "column-short"
    ]


# -- indexes -------------------------------------------------------------------------------------------------------


def indexed(*indexes: Any, **options: Any) -> sa.Table:
    options = dict[str, Any](fingerprints=["token", "jti"], expose_expiry=True, context="c") | options
    return table_of(EncryptedJWT(AFTER, **options), *indexes)


def all_indexes() -> list[Any]:
    return [
        FingerprintIndex("ix_token", "token"),
        FingerprintIndex("ix_jti", "token", "jti", unique=True),
        ExpiryIndex("ix_expiry", "token"),
        StaleIndex("ix_stale", "token"),
    ]


@pytest.mark.parametrize("storage", STORAGES)
def test_indexes_are_looked_for_in_the_database(engine: sa.Engine, storage: Storage) -> None:
    declared = indexed(*all_indexes(), storage=storage)
    indexed(storage=storage).create(engine)
    report = look(engine, declared)
    found_codes = [finding.code for finding in report.findings]
    assert sorted(found_codes) == [
        "expiry-unindexed", "fingerprint-unindexed", "fingerprint-unindexed", *["index-missing"] * 4,
    ]  # fmt: skip
    assert not report.ok
    for index in declared.indexes:
        index.create(engine)
    assert look(engine, declared).findings == ()


def test_rows_are_counted_although_an_index_is_missing(engine: sa.Engine) -> None:
    """On MariaDB, a declared index's generated column is not there either."""
    declared = indexed(*all_indexes())
    indexed().create(engine)
    with engine.begin() as connection:
        put(
            connection,
            declared.c.token,
            [envelope(declared.c.token, expiring(-1), BEFORE), expiring(1)],
        )
    report = look(engine, declared)
    assert {"stale", "plaintext", "expired", "index-missing"} <= set(codes(report))
    assert report.columns[0].expired == 1


@pytest.mark.parametrize("change", [{"fingerprints": ["sub", "token", "jti"]}, {"expose_expiry": False}])
def test_an_index_on_another_part_of_the_envelope_is_outdated(
    engine: sa.Engine, change: dict[str, Any]
) -> None:
    indexed(FingerprintIndex("ix_jti", "token", "jti")).create(engine)
    declared = indexed(FingerprintIndex("ix_jti", "token", "jti"), **change)
    assert found(look(engine, declared), "index-outdated").severity is Severity.WARNING


def test_an_index_that_ought_to_be_unique_is_outdated(engine: sa.Engine) -> None:
    indexed(FingerprintIndex("ix_jti", "token", "jti")).create(engine)
    declared = indexed(FingerprintIndex("ix_jti", "token", "jti", unique=True))
    assert "ix_jti" in found(look(engine, declared), "index-outdated").message


@pytest.mark.each_server
def test_an_index_on_several_parts_counts_for_each_of_its_fingerprints(engine: sa.Engine) -> None:
    """And is looked for like any other; without the column beside the token it is another index."""

    def table_with(*parts: Any) -> sa.Table:
        user = sa.Column("user_id", sa.Integer)
        return indexed(user, ExpiryIndex("ix_expiry", "token"), FingerprintIndex("ux", *parts))

    declared = table_with("user_id", "token", ("token", "jti"))
    declared.create(engine)
    assert look(engine, declared).findings == ()
    for other in (("token", ("token", "jti")), ("token", ("token", "jti"), "user_id")):
        assert "ux" in found(look(engine, table_with(*other)), "index-outdated").message
    (index,) = (one for one in declared.indexes if one.name == "ux")
    index.drop(engine)
    assert sorted(finding.code for finding in look(engine, declared).findings) == [
        "fingerprint-unindexed", "fingerprint-unindexed", "index-missing",
    ]  # fmt: skip
    scoped = table_with("user_id", "token", "jti")
    next(one for one in scoped.indexes if one.name == "ux").create(engine)
    (finding,) = look(engine, scoped).findings
    assert "the whole token" in finding.message


def test_an_index_of_another_column_does_not_count(engine: sa.Engine) -> None:
    other: sa.Column[Any] = sa.Column("other_token", EncryptedJWT(AFTER, fingerprints=["token"]))
    table = table_of(
        EncryptedJWT(AFTER, fingerprints=["token"]), other, FingerprintIndex("ix_other", "other_token")
    )
    table.create(engine)
    unindexed = [
        finding.column for finding in look(engine, table).findings if finding.code == "fingerprint-unindexed"
    ]
    assert unindexed == ["sessions.token"]


# -- refusals ------------------------------------------------------------------------------------------------------


def test_a_table_that_may_not_be_read_is_a_finding(postgresql_database: Database) -> None:
    engine = sa.create_engine(postgresql_database.url())
    metadata = sa.MetaData()
    allowed = table_of(EncryptedJWT(AFTER), name="allowed", metadata=metadata)
    table_of(EncryptedJWT(AFTER), name="denied", metadata=metadata)
    role = f"auditor_{postgresql_database.url().database}"
    with engine.begin() as connection:
        metadata.create_all(connection)
        put(connection, allowed.c.token, [token()])
        connection.exec_driver_sql(f'CREATE ROLE "{role}"')
        connection.exec_driver_sql(f'GRANT SELECT ON allowed TO "{role}"')
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(f'SET ROLE "{role}"')
            report = look(connection, metadata)
            # The transaction that SET ROLE has begun goes on.
            assert connection.scalar(sa.text("SELECT current_user")) == role
            assert codes(report) == codes(look(connection, metadata, deep=True), "lifetime")
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f'DROP OWNED BY "{role}"')
            connection.exec_driver_sql(f'DROP ROLE "{role}"')
        engine.dispose()
    assert codes(report) == ["plaintext", "refused"]
    assert found(report, "refused").column == "denied.token"
    assert found(report, "refused").message.startswith(
        "The database refused (InsufficientPrivilege 42501: the role lacks a right on the table: GRANT it SELECT"
    )


def test_a_lost_connection_ends_the_audit(postgresql: sa.Engine) -> None:
    table = table_of(EncryptedJWT(AFTER))
    table.create(postgresql)
    with postgresql.connect() as connection:
        process = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        connection.commit()
        with postgresql.begin() as other:
            other.execute(sa.text("SELECT pg_terminate_backend(:process)"), {"process": process})
        with pytest.raises(AuditError, match="57P01: the connection was lost") as caught:
            look(connection, table)
    assert caught.value.report is None


# -- the list of kinds ---------------------------------------------------------------------------------------------


def test_every_kind_says_what_to_do_in_one_sentence() -> None:
    for code, kind in KINDS.items():
        assert code == kind.code
        assert kind.action.endswith(".")
        assert ". " not in kind.action
