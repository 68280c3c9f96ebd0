"""A deep audit: which rows do not open and why, what the tokens say, and that one row never stops it."""

from __future__ import annotations

import tracemalloc
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import mapped_column

from jwt_column import JWT, ConfigurationError, EncryptedJWT, Severity, audit
from jwt_column.auditing import AuditProgress
from jwt_column.auditing import rows as audited_rows
from jwt_column.auditing.tokens import TokenChecks
from jwt_column.column.binding import binding_of
from jwt_column.format import envelope as envelopes
from jwt_column.format.token import unchecked_jwt
from tests.support.audited import (
    AFTER,
    BEFORE,
    LOST,
    NOW,
    codes,
    envelope,
    examine,
    expiring,
    found,
    put,
    token,
)
from tests.support.models import mapped, session_on, table_of
from tests.support.tokens import compact
from tests.support.workload import engine_on

if TYPE_CHECKING:
    from jwt_column.format.envelope import Storage

STORAGES: tuple[Storage, ...] = ("binary", "text")


@pytest.fixture
def sessions(sqlite: sa.Engine) -> sa.Table:
    table = table_of(EncryptedJWT(AFTER, context="c", allow_unsigned=True, allow_opaque=True))
    table.create(sqlite)
    return table


def fill(engine: sa.Engine, table: sa.Table, *texts: str) -> None:
    with engine.begin() as connection:
        put(connection, table.c.token, [envelope(table.c.token, text) for text in texts])


def flip(stored: bytes | str, place: int) -> bytes | str:
    """Return a stored value with one bit of one byte changed."""
    binary = envelopes.to_binary(stored) if isinstance(stored, str) else stored
    changed = bytearray(binary)
    changed[place] ^= 1
    return (
        envelopes.to_text(bytes(changed), envelopes.split(bytes(changed)))
        if isinstance(stored, str)
        else bytes(changed)
    )


# -- rows that do not open -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_every_row_that_does_not_open_has_its_reason(engine: sa.Engine, storage: Storage) -> None:
    metadata = sa.MetaData()
    sessions = table_of(EncryptedJWT(AFTER, storage=storage), metadata=metadata)
    others = table_of(EncryptedJWT(BEFORE, storage=storage), name="others", metadata=metadata)
    metadata.create_all(engine)
    column = sessions.c.token
    good = envelope(column, token(jti="1"))
    with engine.begin() as connection:
        put(
            connection,
            column,
            [
                good,
                envelope(column, token(jti="2"), BEFORE),
                flip(good, -1),  # 3: the tag
                flip(good, 20),  # the nonce
                envelope(column, token(), LOST),  # 5: counted by SQL
                envelope(others.c.token, token(jti="6"), BEFORE),  # 6: of another column
                good[:20],  # 7: truncated behind its stamp
                "nonsense",  # 8: counted by SQL
                token(jti="9"),  # in the clear
                None,
            ],
        )
        put(connection, others.c.token, [envelope(others.c.token, token(), BEFORE)])
    report = examine(engine, metadata)
    assert {
        (finding.code, finding.column, finding.count, finding.primary_keys)
        for finding in report.findings
        if finding.count
    } == {
        ("undecryptable", "sessions.token", 3, ((3,), (4,), (7,))),
        ("moved", "sessions.token", 1, ((6,),)),
        ("unknown-key", "sessions.token", 1, ((5,),)),
        ("unreadable", "sessions.token", 1, ((8,),)),
        ("plaintext", "sessions.token", 1, ((9,),)),
        ("stale", "sessions.token", 2, ((2,), (6,))),
        ("nonce-repeated", "sessions.token", 2, ((1,), (3,))),  # a changed copy looks like that
    }
    assert found(report, "moved").message == "1 row holds an envelope of another column: others.token."
    assert [column.examined for column in report.columns] == [1, 9]
    # The control: on its own, nothing says which column the envelope came from.
    assert found(examine(engine, sessions), "undecryptable").count == 4


def test_after_many_rows_that_open_nowhere_only_known_origins_are_tried(
    sqlite: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each row of a renamed table would be tried in the context of every column of the database."""
    metadata = sa.MetaData()
    sessions, near, far = (
        table_of(EncryptedJWT(AFTER), name=name, metadata=metadata) for name in ("sessions", "near", "far")
    )
    metadata.create_all(sqlite)
    here, of_near, of_far = (envelope(one.c.token, token()) for one in (sessions, near, far))
    nowhere = [flip(envelope(sessions.c.token, token()), -1) for _ in range(3)]
    with sqlite.begin() as connection:
        put(connection, sessions.c.token, [here, of_near, *nowhere, of_near, of_far])

    def counts() -> dict[str, int]:
        findings = examine(sqlite, metadata).findings
        return {one.code: one.count for one in findings if one.code in ("moved", "undecryptable")}

    assert counts() == {"moved": 3, "undecryptable": 3}  # The control: three are not many.
    monkeypatch.setattr(audited_rows, "PATIENCE", 3)
    assert counts() == {"moved": 2, "undecryptable": 4}


def test_values_that_are_no_bytes_are_passed_over(sqlite: sa.Engine, sessions: sa.Table) -> None:
    """SQLite keeps whatever it is given, and a text in a column of bytes is a token all the same."""
    text = envelope(sa.Column(EncryptedJWT(AFTER, context="c", storage="text")), token(jti="a"))
    with sqlite.begin() as connection:
        values = [5, 1.5, text, token(jti="b", exp=None), b"\xff\xfe", b"\xc3"]
        for number, value in enumerate(values, start=1):
            connection.exec_driver_sql("INSERT INTO sessions VALUES (?, ?)", (number, value))
    report = examine(sqlite, sessions)
    assert found(report, "exp-missing").primary_keys == ((4,),)
    assert "undecryptable" not in codes(report)


def test_an_envelope_that_holds_no_token_of_ours_does_not_stop_the_audit(
    sqlite: sa.Engine, sessions: sa.Table
) -> None:
    """Nobody but a program with the key can make one."""
    key = AFTER.snapshot().active
    stamp = key.stamp_prefix + b"\x00"
    aad = stamp + b"\x00\x01c"
    deep = "e30." * 3 + "x"
    with sqlite.begin() as connection:
        put(
            connection,
            sessions.c.token,
            [
                key.aead.seal(b"\x07unknown frame", aad, stamp),
                key.aead.seal(b"\x00" + deep.encode(), aad, stamp),
                envelope(sessions.c.token, compact({"alg": "RS256"}, [1], b"s")),
                envelope(sessions.c.token, compact({"alg": "RS256"}, b"[" * 40_000, b"s")),
            ],
        )
    report = examine(sqlite, sessions)
    assert found(report, "undecryptable").primary_keys == ((1,),)
    assert found(report, "exp-missing").primary_keys == ((3,), (4,))


# -- rows that are bound -------------------------------------------------------------------------------------------


# The name of one attribute is not that of its column.
Login = mapped(owner=mapped_column("owner_id", sa.Uuid), token=EncryptedJWT(AFTER, bound_to=["owner", "id"]))
OWNERS = [uuid.UUID(int=number) for number in range(4)]


@pytest.fixture
def logins(engine: sa.Engine) -> sa.Engine:
    rows = [Login(id=n, owner=owner, token=token(jti=f"{n}")) for n, owner in enumerate(OWNERS, start=1)]
    with session_on(engine, *rows):
        return engine


def test_bound_rows_are_opened_with_the_values_of_their_rows(logins: sa.Engine) -> None:
    table: Any = Login.__table__
    assert codes(examine(logins, Login.token)) == []
    raw = sa.type_coerce(table.c.token, sa.LargeBinary)
    with logins.begin() as connection:
        first = connection.scalar(sa.select(raw).where(table.c.id == 1))
        unbound = envelope(table.c.token, token(jti="x"))
        for number, stored in ((2, first), (3, unbound)):
            value: Any = sa.literal(stored, sa.LargeBinary)
            connection.execute(table.update().values(token=value).where(table.c.id == number))
    report = examine(logins, Login)
    assert {(finding.code, finding.primary_keys) for finding in report.findings if finding.count} == {
        ("undecryptable", ((2,),)),
        ("unbound", ((3,),)),
    }
    assert found(report, "unbound").severity is Severity.WARNING


def test_an_attribute_that_a_table_does_not_know_is_asked_for(logins: sa.Engine) -> None:
    with pytest.raises(ConfigurationError, match="audit the mapped attribute or its class"):
        examine(logins, Login.metadata)
    # By SQL alone it is audited all the same.
    assert audit(logins, Login.metadata).columns[0].rows == 4


def test_a_uuid_that_comes_back_as_text_is_tried_as_one(sqlite: sa.Engine) -> None:
    """As where a table is named on a command line, and SQLite has CHAR(32)."""
    bound = table_of(EncryptedJWT(AFTER, context="c", bound_to=["owner"]), sa.Column("owner", sa.String(36)))
    bound.create(sqlite)

    def sealed(owner: uuid.UUID) -> bytes | str:
        return envelope(bound.c.token, token(jti=str(owner)), binding=binding_of([("owner", owner)]))

    with sqlite.begin() as connection:
        put(connection, bound.c.token, [sealed(OWNERS[1])], owner=str(OWNERS[1]))
        put(connection, bound.c.token, [sealed(OWNERS[2])], first=2, owner=OWNERS[2].hex)
        put(connection, bound.c.token, [sealed(OWNERS[2])], first=3, owner=OWNERS[3].hex)
        put(connection, bound.c.token, [sealed(OWNERS[2])], first=4, owner="no UUID")
        put(connection, bound.c.token, [sealed(OWNERS[2])], first=5, owner=None)
    report = examine(sqlite, bound)
    assert found(report, "undecryptable").primary_keys == ((3,), (4,), (5,))


# -- what tokens say -----------------------------------------------------------------------------------------------

UNSIGNED = token({"alg": "none"}, jti="u")


@pytest.mark.parametrize(
    ("text", "code", "options"),
    [
        (UNSIGNED, "alg-none", {}),
        (token({"alg": "NoNe"}), "alg-none", {}),
        (token({"alg": "none"}), "alg-none", {"allowed_algorithms": ["none", "RS256"]}),
        (token({"alg": "HS256"}), "alg-not-allowed", {"allowed_algorithms": ["RS256", "ES256"]}),
        (token({"alg": "rs256"}), "alg-not-allowed", {"allowed_algorithms": ["RS256"]}),
        (token(exp=None), "exp-missing", {}),
        (token(exp="tomorrow"), "exp-invalid", {}),
        (token(exp=-1), "exp-invalid", {}),
        (token(exp=True), "exp-invalid", {}),
        (expiring(2), "lifetime", {"max_lifetime": timedelta(days=1)}),
        (expiring(2, iat=None), "lifetime", {"max_lifetime": timedelta(days=1)}),
        (expiring(2, iat="then", nbf=int(NOW.timestamp())), "lifetime", {"max_lifetime": timedelta(days=1)}),
        (expiring(2, iat=0), "lifetime", {"max_lifetime": timedelta(days=30)}),
        (token({"jku": "https://evil.example/keys"}), "header-jku", {}),
        (token({"x5u": "https://evil.example/cert"}), "header-x5u", {}),
        (token({"jwk": {"kty": "oct"}}), "header-jwk", {}),
        (token({"x5c": ["MII"]}), "header-x5c", {}),
        (token({"crit": ["b64"]}), "header-crit", {}),
        (token({"kid": "../../dev/null"}), "header-kid", {}),
        (token({"kid": "x' UNION SELECT 'secret"}), "header-kid", {}),
        (token({"kid": "key|/usr/bin/id"}), "header-kid", {}),
        (token({"kid": 5}), "header-kid", {}),
        (token({"kid": "leaked"}), "compromised-kid", {"compromised_kids": ["leaked"]}),
    ],
)  # fmt: skip
def test_what_a_token_says_is_found(
    sqlite: sa.Engine, sessions: sa.Table, text: str, code: str, options: dict[str, Any]
) -> None:
    """Each beside a token that has nothing of it."""
    fill(sqlite, sessions, token(jti="fine"), text)
    report = examine(sqlite, sessions, **options)
    assert codes(report, "unsigned-allowed") == [code]
    assert found(report, code).primary_keys == ((2,),)
    assert found(report, code).count == 1


@pytest.mark.parametrize(
    "text",
    [
        token({"kid": "2b6e9f1c-55d0-4e6b-9a4e-1d1f0f9b0a77"}),
        token({"kid": "https://issuer.example/keys/1?v=2"}),
        token({"kid": "q8Zr+/Y0-_=="}),
        token({"alg": "ES256", "kid": "leaked2"}),
        token({"x5t#S256": "abc"}),
        expiring(1),
        expiring(2, iat=int(NOW.timestamp()) + 86_400),
        "an opaque refresh token",
    ],
)
def test_what_is_harmless_is_not_found(sqlite: sa.Engine, sessions: sa.Table, text: str) -> None:
    """The control of the test above."""
    fill(sqlite, sessions, text)
    report = examine(
        sqlite,
        sessions,
        allowed_algorithms=["RS256", "ES256"],
        max_lifetime=timedelta(days=1),
        compromised_kids=["leaked"],
    )
    assert codes(report, "unsigned-allowed") == []


def test_the_header_of_an_encrypted_token_is_looked_at(sqlite: sa.Engine, sessions: sa.Table) -> None:
    """Its claims cannot be, and so it lacks none."""
    plain = compact({"alg": "dir", "enc": "A256GCM"}, b"", b"iv", b"text", b"tag")
    hostile = compact({"alg": "ECDH-ES", "enc": "A256GCM", "jku": "x"}, b"", b"iv", b"text", b"tag")
    fill(sqlite, sessions, plain, hostile)
    report = examine(sqlite, sessions, allowed_algorithms=["dir"], max_lifetime=timedelta(days=1))
    assert codes(report, "unsigned-allowed") == ["alg-not-allowed", "header-jku"]


def test_headers_are_worked_out_once_and_the_cache_is_bounded() -> None:
    checks = TokenChecks(NOW)
    for number in range(1100):
        assert checks.check(JWT(token({"kid": f"{number}"}))) == ((), None)
    assert 0 < len(checks._headers) <= 1024
    known = dict(checks._headers)
    # As many dots as a header does not go with make it no token.
    assert checks.check(unchecked_jwt(token({"kid": "1099"}) + ".more")) == ((), None)
    long = token({"x5c": ["M" * 5000]})
    assert checks.check(JWT(long)) == (("header-x5c",), None)
    assert checks._headers == known


# -- repetition ----------------------------------------------------------------------------------------------------


def test_tokens_and_jti_that_are_there_twice_are_found(sqlite: sa.Engine, sessions: sa.Table) -> None:
    fill(
        sqlite,
        sessions,
        token(jti="a"),
        token(jti="a"),  # 2: the same token, so its jti says nothing more
        token(jti="a", sub="bob"),  # 3: another one
        token(jti="1"),
        token(jti=1),  # a number is not its digits
        token(jti=1, sub="bob"),  # 6
        token(jti=None),
        token(jti=["a"]),
        token(jti=True),
        "opaque",
        "opaque",  # 11
    )
    report = examine(sqlite, sessions)
    assert found(report, "duplicate-token").primary_keys == ((2,), (11,))
    assert found(report, "duplicate-jti").primary_keys == ((3,), (6,))
    assert "eyJ" not in report.to_json()


def test_columns_are_apart(sqlite: sa.Engine) -> None:
    """The same token in two columns, such as a table and its archive, is no repetition."""
    metadata = sa.MetaData()
    tables = [table_of(EncryptedJWT(AFTER), name=name, metadata=metadata) for name in ("a", "b")]
    metadata.create_all(sqlite)
    for table in tables:
        fill(sqlite, table, token(jti="1"))
    assert codes(examine(sqlite, metadata)) == []


# -- tables of every size and kind ---------------------------------------------------------------------------------


def test_every_row_of_a_composite_key_is_read_once(engine: sa.Engine) -> None:
    """More rows than a batch has; each row has a jti of its own, so a row that was read twice would be found."""
    table = sa.Table(
        "sessions",
        sa.MetaData(),
        sa.Column("tenant", sa.String(10), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("token", EncryptedJWT(AFTER)),
    )
    table.create(engine)
    rows = [
        {"tenant": f"t{number % 3}", "number": number, "token": token(jti=str(number))}
        for number in range(1203)
    ]
    with engine.begin() as connection:
        connection.execute(table.insert(), rows)
    steps: list[AuditProgress] = []
    report = examine(engine, table, progress=steps.append)
    assert (codes(report), report.columns[0].examined) == ([], 1203)
    assert [step.examined for step in steps] == [500, 1000, 1203]
    assert steps[0] == AuditProgress("sessions.token", 1, 1, 500, 1203)


def test_a_table_without_a_primary_key_is_read_in_one_go(engine: sa.Engine) -> None:
    table = sa.Table("sessions", sa.MetaData(), sa.Column("token", EncryptedJWT(AFTER)))
    table.create(engine)
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"token": token(jti=str(number))} for number in range(700)])
        connection.execute(table.insert(), {"token": token(exp=None)})
    report = examine(engine, table)
    assert report.columns[0].examined == 701
    finding = found(report, "exp-missing")
    assert (finding.count, finding.primary_keys) == (1, ())
    assert examine(engine, table, sample=30).columns[0].examined == 30


def test_every_driver_reads_batches_and_streams(driver_engine: sa.Engine) -> None:
    """Bytes come as bytes, memoryview or another buffer."""
    metadata = sa.MetaData()
    keyed = table_of(EncryptedJWT(AFTER), metadata=metadata)
    keyless = sa.Table("keyless", metadata, sa.Column("token", EncryptedJWT(AFTER)))
    metadata.create_all(driver_engine)
    with driver_engine.begin() as connection:
        good = envelope(keyed.c.token, token(exp=None))
        put(connection, keyed.c.token, [good, token(), good[:20]])
        connection.execute(keyless.insert(), {"token": token(exp=None)})
    report = examine(driver_engine, metadata)
    assert sorted((finding.code, finding.column) for finding in report.findings if finding.count) == [
        ("exp-missing", "keyless.token"),
        ("exp-missing", "sessions.token"),
        ("plaintext", "sessions.token"),
        ("undecryptable", "sessions.token"),
    ]


@pytest.mark.parametrize(
    ("sample", "examined"), [(1, 1), (7, 7), (40, 40), (99, 99), (100, 100), (1000, 100)]
)
def test_a_sample_is_spread_over_the_table(sqlite: sa.Engine, sample: int, examined: int) -> None:
    """With NULLs and gaps between the keys."""
    table = table_of(EncryptedJWT(AFTER))
    table.create(sqlite)
    with sqlite.begin() as connection:
        for number in range(100):
            put(
                connection,
                table.c.token,
                [envelope(table.c.token, token(exp=None, jti=str(number))), None],
                first=7 * number,
            )
    seen: list[int] = []
    report = examine(sqlite, table, sample=sample, progress=lambda step: seen.append(step.rows))
    assert report.columns[0].examined == examined
    assert set(seen) == {examined}
    keys = [key[0] for key in found(report, "exp-missing").primary_keys]
    assert codes(report) == ["exp-missing"]
    if sample == 40:
        assert keys[:8] == [0, 7, 14, 21, 70, 77, 84, 91]
    assert report.options.get("sample") == f"{sample:,} rows of each column"


def test_rows_that_go_while_a_sample_is_taken_do_no_harm(sqlite: sa.Engine) -> None:
    table = table_of(EncryptedJWT(AFTER))
    table.create(sqlite)
    fill(sqlite, table, *(token(jti=str(number)) for number in range(100)))

    def delete(_: AuditProgress) -> None:
        with sqlite.begin() as connection:
            connection.execute(table.delete().where(table.c.id > 20))

    report = examine(sqlite, table, sample=50, progress=delete)
    assert 5 < report.columns[0].examined < 50


def test_rows_that_come_meanwhile_do_not_exceed_the_total(sqlite: sa.Engine) -> None:
    table = table_of(EncryptedJWT(AFTER))
    table.create(sqlite)
    fill(sqlite, table, *(token(jti=str(number)) for number in range(500)))
    steps: list[AuditProgress] = []

    def insert(step: AuditProgress) -> None:
        if not steps:
            with sqlite.begin() as connection:
                put(connection, table.c.token, [envelope(table.c.token, token(jti="new"))], first=1000)
        steps.append(step)

    report = examine(sqlite, table, progress=insert)
    assert report.columns[0].examined == 501
    (finding,) = [one for one in report.findings if one.code == "changed-meanwhile"]
    assert "500 were counted and 501 opened" in finding.message
    assert [(step.examined, step.rows) for step in steps] == [(500, 500), (501, 501)]


def test_what_was_found_before_the_database_refused_is_kept(postgresql: sa.Engine) -> None:
    table = table_of(EncryptedJWT(AFTER))
    table.create(postgresql)
    with postgresql.begin() as connection:
        connection.execute(
            table.insert(),
            [{"id": number, "token": token(exp=None, jti=str(number))} for number in range(600)],
        )

    def drop(_: AuditProgress) -> None:
        with postgresql.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE sessions RENAME TO gone")

    report = examine(postgresql, table, progress=drop)
    postgresql.dispose()
    assert codes(report) == ["refused", "exp-missing"]
    assert found(report, "exp-missing").count == report.columns[0].examined == 500


def test_memory_does_not_grow_with_the_table(sqlite: sa.Engine) -> None:
    """Four times the rows take no more memory. What was seen lies in SQLite, which tracemalloc does not count; but
    its cache is bounded."""
    table = table_of(EncryptedJWT(AFTER))
    table.create(sqlite)
    peaks = []
    for rows in (2_000, 6_000):
        with sqlite.begin() as connection:
            connection.execute(
                table.insert(),
                [
                    {"id": rows + number, "token": token(jti=f"{rows}-{number}", pad="x" * 500)}
                    for number in range(rows)
                ],
            )
        examine(sqlite, table, sample=1)
        tracemalloc.start()
        report = examine(sqlite, table)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert report.columns[0].examined == 8_000
    assert peaks[1] < peaks[0] * 1.2


def test_all_options_are_in_the_report(sqlite: sa.Engine, sessions: sa.Table) -> None:
    report = examine(
        sqlite,
        sessions,
        active=AFTER.active,
        retired=["00000000"],
        allowed_algorithms=["RS256", "ES256"],
        max_lifetime=timedelta(days=1),
        compromised_kids=["k"],
        sample=5,
    )
    assert report.options == {
        "active": AFTER.active,
        "retired": "00000000",
        "allowed_algorithms": "ES256, RS256",
        "max_lifetime": "1 day, 0:00:00",
        "compromised_kids": "1 given",
        "sample": "5 rows of each column",
    }


@pytest.mark.each_server
def test_a_column_is_counted_at_one_moment(engine: sa.Engine) -> None:
    """A purge that is at work between two counts of a column: they agree all the same."""
    table = table_of(EncryptedJWT(AFTER, expose_expiry=True))
    table.create(engine)
    fill(engine, table, *(token(jti=str(number), exp=1_000_000_000) for number in range(40)))
    removed: list[int] = []

    def counts(engine_of_the_audit: sa.Engine) -> tuple[int, int | None, int]:
        report = audit(engine_of_the_audit, table)
        (column,) = report.columns
        return column.rows, column.expired, sum(day.rows for day in column.expiry)

    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            # Else who writes waits for who reads.
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    with engine_on(engine.url) as watched, engine_on(engine.url) as purging:

        @sa.event.listens_for(watched, "after_cursor_execute")
        def purge(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if "count(" in statement.lower():
                removed.append(1)
                with purging.begin() as connection:
                    first = connection.scalar(sa.select(sa.func.min(table.c.id)))
                    connection.execute(sa.delete(table).where(table.c.id == first))

        assert counts(watched) == (40, 40, 40)
    assert len(removed) > 2
    # The control: it is not that nothing was removed.
    assert counts(engine) == (40 - len(removed),) * 3


def test_ciphers_are_as_many_as_columns(sqlite: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str | None] = []
    original = EncryptedJWT.cipher

    def cipher(type_: EncryptedJWT) -> Any:
        made.append(type_.context)
        return original(type_)

    metadata = sa.MetaData()
    tables = [
        table_of(EncryptedJWT(AFTER), name=f"table_{number}", metadata=metadata) for number in range(40)
    ]
    metadata.create_all(sqlite)
    with sqlite.begin() as connection:
        # In each table a row of another one, whose origin is looked for in all.
        for table, origin in zip(tables, [*tables[1:], tables[0]], strict=True):
            put(connection, table.c.token, [envelope(origin.c.token, token())])
    monkeypatch.setattr(EncryptedJWT, "cipher", cipher)
    report = audit(sqlite, metadata, deep=True)
    assert sum(one.code == "moved" for one in report.findings) == 40
    assert len(made) <= 4 * len(tables)
