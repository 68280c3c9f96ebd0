"""``EncryptedJWT`` as a Core column: what is stored, what comes back, and what is refused, on every database."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import threading
import warnings
from typing import TYPE_CHECKING, Any, Literal

import pytest
import sqlalchemy as sa

from jwt_column import (
    JWT,
    AuthenticationError,
    ConfigurationError,
    DecryptionError,
    EncryptedJWT,
    InvalidTokenError,
    JWTColumnError,
    KeyRing,
    KeyRingError,
    MalformedEnvelopeError,
    PlaintextFoundError,
    SealedJWT,
    UnknownKeyError,
    UnsupportedVersionError,
    decrypt_token,
    encrypt_token,
    generate_key,
    set_default_keyring,
)
from jwt_column.format import envelope
from tests.support.models import table_of
from tests.support.raw import raw_table
from tests.support.tokens import ALGORITHMS, compact, revealed_by, signed_token

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from jwt_column.format.envelope import Storage

STORAGES: tuple[Storage, ...] = ("binary", "text")


def sessions(type_: EncryptedJWT | None = None, *, name: str = "sessions") -> sa.Table:
    """Return a table of its own with a ``token`` of this type."""
    return table_of(EncryptedJWT() if type_ is None else type_, name=name)


def raw(table: sa.Table) -> sa.ColumnElement[Any]:
    """Return the token column as the database has it."""
    return sa.type_coerce(table.c.token, type_of(table.c.token).impl_instance)


def type_of(column: Any) -> EncryptedJWT:
    """Return a column's type as what it is."""
    assert isinstance(column.type, EncryptedJWT)
    return column.type


def token_of_length(length: int) -> str:
    """Return a token with exactly this many characters."""
    for signature in (bytes(32), bytes(33)):
        empty = len(compact({"alg": "HS256"}, b"", signature))
        token = compact({"alg": "HS256"}, bytes((length - empty) * 3 // 4), signature)
        if len(token) == length:
            return token
    raise AssertionError(length)


# -- what is stored and what comes back ------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_every_driver_stores_an_envelope_and_gives_the_token_back(
    driver_engine: sa.Engine, storage: Storage, ring: KeyRing
) -> None:
    type_ = EncryptedJWT(storage=storage, fingerprints=["token", "jti"], expose_expiry=True)
    table = sessions(type_)
    table.create(driver_engine)
    tokens: list[str | None] = [
        signed_token(algorithm, jti=f"session {number}", exp=4_102_444_800 + number)
        for number, algorithm in enumerate(ALGORITHMS)
    ]
    tokens += [signed_token(padding="x" * 20_000), None]

    with driver_engine.begin() as connection:
        # A statement for one row and one for many take different paths through SQLAlchemy and drivers.
        connection.execute(table.insert().values(id=0, token=tokens[0]))
        connection.execute(
            table.insert(), [{"id": number, "token": token} for number, token in enumerate(tokens) if number]
        )
        loaded = connection.scalars(sa.select(table.c.token).order_by(table.c.id)).all()
        stored = connection.scalars(sa.select(raw(table)).order_by(table.c.id)).all()

    assert tokens == loaded
    assert {JWT, type(None)} == {type(token) for token in loaded}
    assert stored[-1] is None
    assert {bytes if storage == "binary" else str} == {type(value) for value in stored[:-1]}
    for token, value in zip(tokens[:-1], stored[:-1], strict=True):
        assert envelope.looks_like_envelope(value)
        assert token == decrypt_token(value, ring, context="sessions.token")


@pytest.mark.parametrize("storage", STORAGES)
def test_every_async_driver_stores_an_envelope_and_gives_the_token_back(
    async_driver_engine: AsyncEngine, storage: Storage, ring: KeyRing
) -> None:
    table = sessions(EncryptedJWT(storage=storage))
    tokens = [signed_token(sub="alice"), signed_token("RS256", sub="bob"), None]

    async def scenario() -> tuple[list[Any], list[Any]]:
        async with async_driver_engine.begin() as connection:
            await connection.run_sync(table.create)
            await connection.execute(
                table.insert(), [{"id": number, "token": token} for number, token in enumerate(tokens)]
            )
            loaded = await connection.scalars(sa.select(table.c.token).order_by(table.c.id))
            stored = await connection.scalars(sa.select(raw(table)).order_by(table.c.id))
            return list(loaded), list(stored)

    loaded, stored = asyncio.run(scenario())

    assert tokens == loaded
    assert [envelope.looks_like_envelope(value) for value in stored[:2]] == [True, True]
    assert tokens[0] == decrypt_token(stored[0], ring, context="sessions.token")


def test_rows_inserted_in_one_statement_are_returned_decrypted(engine: sa.Engine, ring: KeyRing) -> None:
    """More rows than SQLAlchemy puts into one batch of insertmanyvalues."""
    table = sessions()
    table.create(engine)
    rows = [{"id": number, "token": signed_token(jti=number)} for number in range(1200)]

    with engine.begin() as connection:
        returned = connection.execute(
            table.insert().returning(table.c.id, table.c.token, sort_by_parameter_order=True), rows
        ).all()

    assert [(row["id"], row["token"]) for row in rows] == [tuple(row) for row in returned]


def test_updates_of_one_and_of_many_rows_encrypt(engine: sa.Engine, ring: KeyRing) -> None:
    table = sessions()
    table.create(engine)
    first, second, third = (signed_token(jti=number) for number in range(3))

    with engine.begin() as connection:
        connection.execute(table.insert(), [{"id": 1, "token": None}, {"id": 2, "token": first}])
        connection.execute(table.update().where(table.c.id == 1).values(token=second))
        connection.execute(
            table.update().where(table.c.id == sa.bindparam("row")).values(token=sa.bindparam("new")),
            [{"row": 2, "new": third}],
        )
        loaded = connection.scalars(sa.select(table.c.token).order_by(table.c.id)).all()
        stored = connection.scalars(sa.select(raw(table)).order_by(table.c.id)).all()

    assert [second, third] == loaded
    assert [envelope.looks_like_envelope(value) for value in stored] == [True, True]


@pytest.mark.each_server
@pytest.mark.parametrize("storage", STORAGES)
def test_the_longest_token_fits_or_is_refused_before_the_server_sees_it(
    engine: sa.Engine, storage: Storage, ring: KeyRing
) -> None:
    """A BLOB or TEXT of MySQL and MariaDB holds 65,535 bytes; outside strict mode they would cut off the rest."""
    table = sessions(EncryptedJWT(storage=storage))
    table.create(engine)
    token = token_of_length(65_536)
    fits = storage == "binary" or engine.dialect.name != "mariadb"
    seen: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *arguments: seen.append(arguments[2]))

    with engine.begin() as connection:
        if fits:
            connection.execute(table.insert().values(id=1, token=token))
            assert [token] == connection.scalars(sa.select(table.c.token)).all()
        else:
            with pytest.raises(InvalidTokenError, match="holds 65535") as caught:
                connection.execute(table.insert().values(id=1, token=token))
            assert caught.value.reason == "too long"
            assert seen == []


def test_an_envelope_of_65535_bytes_fits_into_mysql_and_one_more_does_not(
    mariadb: sa.Engine, ring: KeyRing
) -> None:
    table = sessions(EncryptedJWT(max_length=100_000, allow_opaque=True))
    table.create(mariadb)
    longest = 65_535 - len(encrypt_token("x", ring, context="sessions.token", allow_opaque=True)) + 1
    with mariadb.begin() as connection:
        # A dot makes it verbatim, one byte for each character.
        connection.execute(table.insert().values(id=1, token="ä" + "." * (longest - 2)))
        assert connection.scalars(sa.select(sa.func.length(table.c.token))).all() == [65_535]
        with pytest.raises(InvalidTokenError, match="65536 bytes"):
            connection.execute(table.insert().values(id=2, token="ä" + "." * (longest - 1)))


def test_plaintext_too_long_for_mysql_is_refused_like_an_envelope(mariadb: sa.Engine, ring: KeyRing) -> None:
    table = sessions(EncryptedJWT(plaintext="write", storage="text", max_length=100_000))
    table.create(mariadb)
    with mariadb.begin() as connection:
        with pytest.raises(InvalidTokenError, match="65536 bytes"):
            connection.execute(table.insert().values(id=1, token=token_of_length(65_536)))
        connection.execute(table.insert().values(id=1, token=token_of_length(65_532)))


@pytest.mark.parametrize("url", ["mysql+pymysql://", "mariadb+pymysql://"])
def test_the_limit_of_mysql_holds_under_both_names_of_its_dialect(ring: KeyRing, url: str) -> None:
    process = EncryptedJWT(context="c", storage="text").bind_processor(sa.create_engine(url).dialect)
    with pytest.raises(InvalidTokenError, match="a BLOB or TEXT column of m"):
        process(token_of_length(65_536))
    unlimited = EncryptedJWT(context="c", storage="text").bind_processor(
        sa.create_engine("sqlite://").dialect
    )
    assert len(unlimited(token_of_length(65_536))) > 65_535


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("Bearer " + signed_token(sub="a"), "bearer"),
        ("opaque", "segments"),
        ("", "empty"),
        (signed_token(sub="a").encode(), "not a str"),
        (12345, "not a str"),
        ({"token": signed_token(sub="a")}, "not a str"),
        (compact({"alg": "none"}, {"sub": "a"}, b""), "unsigned"),
        (signed_token(padding="x" * 60_000), "too long"),
    ],
)
def test_what_is_no_token_is_refused_and_nothing_is_stored(
    memory: sa.Engine, ring: KeyRing, value: object, reason: str
) -> None:
    table = sessions()
    with memory.begin() as connection:
        table.create(connection)
        with pytest.raises(InvalidTokenError) as caught:
            connection.execute(table.insert().values(id=1, token=value))
        assert (reason, "sessions.token") == (caught.value.reason, caught.value.context)
        assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 0


def test_opaque_and_unsigned_tokens_are_taken_where_the_column_says_so(
    memory: sa.Engine, ring: KeyRing
) -> None:
    table = sessions(EncryptedJWT(allow_opaque=True, allow_unsigned=True))
    unsigned = compact({"alg": "none"}, {"sub": "a"}, b"")
    with memory.begin() as connection:
        table.create(connection)
        connection.execute(table.insert(), [{"id": 1, "token": "opaque"}, {"id": 2, "token": unsigned}])
        assert ["opaque", unsigned] == connection.scalars(sa.select(table.c.token)).all()


def test_single_values_go_through_the_same_processors(ring: KeyRing) -> None:
    """Some libraries call these two directly."""
    type_ = EncryptedJWT(context="sessions.token")
    dialect = sa.create_engine("sqlite://").dialect
    token = signed_token(sub="alice")
    stored = type_.process_bind_param(token, dialect)
    assert (token, None) == (
        type_.process_result_value(bytes(stored), dialect),
        type_.process_bind_param(None, dialect),
    )
    with pytest.raises(InvalidTokenError):
        type_.process_bind_param("opaque", dialect)


def test_an_error_from_below_keeps_the_token_out_of_the_message(
    memory: sa.Engine, ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy turns foreign exceptions into one that prints the row's parameters; a bug must not become a leak."""
    table = sessions()
    token = signed_token(sub="alice")

    def broken(*arguments: object, **named: object) -> None:
        raise RuntimeError(token)

    with memory.begin() as connection:
        table.create(connection)
        monkeypatch.setattr("jwt_column.format.aead.XAES256GCM.seal", broken)
        with pytest.raises(JWTColumnError, match="could not be encrypted") as caught:
            connection.execute(table.insert().values(id=1, token=token))
    assert str(caught.value) == "sessions.token: the token could not be encrypted (RuntimeError)"


# -- one context for each column -------------------------------------------------------------------------------


def contexts(metadata: sa.MetaData) -> list[str | None]:
    return [
        column.type.context
        for table in metadata.sorted_tables
        for column in table.columns
        if isinstance(column.type, EncryptedJWT)
    ]


def test_one_type_instance_in_two_columns_has_two_contexts(memory: sa.Engine, ring: KeyRing) -> None:
    type_ = EncryptedJWT()
    metadata = sa.MetaData()
    table = sa.Table(
        "logins",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("access", type_),
        sa.Column("refresh", type_),
    )
    other = sa.Table("grants", metadata, sa.Column("access", type_))
    assert [type_of(table.c.access).context, type_of(table.c.refresh).context] == [
        "logins.access",
        "logins.refresh",
    ]
    assert type_of(other.c.access).context == "grants.access"
    assert type_.context is None

    with memory.begin() as connection:
        metadata.create_all(connection)
        connection.execute(table.insert().values(id=1, access=signed_token(sub="alice")))
        # The control: in its own column the ciphertext opens.
        assert [signed_token(sub="alice")] == connection.scalars(sa.select(table.c.access)).all()
        connection.exec_driver_sql("UPDATE logins SET refresh = access")
        with pytest.raises(AuthenticationError, match=r"^logins\.refresh: "):
            connection.scalars(sa.select(table.c.refresh)).all()


@pytest.mark.parametrize("context", ["a\0b", "\0", "a\0"])
def test_a_context_with_nul_is_refused(ring: KeyRing, context: str) -> None:
    with pytest.raises(ConfigurationError, match="NUL"):
        EncryptedJWT(ring, context=context)
    with pytest.raises(ConfigurationError, match="NUL"):
        encrypt_token(signed_token(), ring, context=context)
    # The control: with it, two contexts share a fingerprint key.
    (key,) = ring.keys
    assert key.fingerprint_key("a\0b", "c") == key.fingerprint_key("a", "b\0c")


def test_a_pinned_context_is_kept_in_every_column(ring: KeyRing) -> None:
    type_ = EncryptedJWT(context="pinned")
    first, second = sessions(type_), sessions(type_, name="archive")
    copied = first.to_metadata(sa.MetaData(), name="renamed")
    assert [type_of(table.c.token).context for table in (first, second, copied)] == ["pinned"] * 3


def test_a_renamed_table_opens_its_rows_with_the_old_context_pinned(memory: sa.Engine, ring: KeyRing) -> None:
    old = sessions()
    token = signed_token(sub="alice")
    with memory.begin() as connection:
        old.create(connection)
        connection.execute(old.insert().values(id=1, token=token))
        connection.exec_driver_sql("ALTER TABLE sessions RENAME TO logins")

        pinned = sessions(EncryptedJWT(context="sessions.token"), name="logins")
        assert [token] == connection.scalars(sa.select(pinned.c.token)).all()
        with pytest.raises(AuthenticationError):
            connection.scalars(sa.select(sessions(name="logins").c.token)).all()


def test_a_copied_table_keeps_its_context_and_a_renamed_copy_gets_its_own(ring: KeyRing) -> None:
    table = sessions()
    copied = table.to_metadata(sa.MetaData())
    moved = table.to_metadata(sa.MetaData(schema="other"), schema="other")
    renamed = table.to_metadata(sa.MetaData(), name="archive")
    assert [type_of(copy.c.token).context for copy in (copied, moved, renamed)] == [
        "sessions.token",
        "sessions.token",
        "archive.token",
    ]
    assert type_of(table.c.token).context == "sessions.token"


def test_metadata_and_types_survive_a_pickle_with_their_contexts(memory: sa.Engine, ring: KeyRing) -> None:
    table = sessions(EncryptedJWT(fingerprints=["jti"], storage="text"))
    metadata = pickle.loads(pickle.dumps(table.metadata))
    assert contexts(metadata) == ["sessions.token"]
    token = signed_token(jti="1")
    with memory.begin() as connection:
        metadata.create_all(connection)
        connection.execute(metadata.tables["sessions"].insert().values(id=1, token=token))
        assert [token] == connection.scalars(sa.select(table.c.token)).all()


def test_a_reflected_table_takes_the_type_for_one_column(memory: sa.Engine, ring: KeyRing) -> None:
    token = signed_token(sub="alice")
    with memory.begin() as connection:
        sessions().create(connection)
        table = sa.Table(
            "sessions", sa.MetaData(), sa.Column("token", EncryptedJWT()), autoload_with=connection
        )
        assert type_of(table.c.token).context == "sessions.token"
        connection.execute(table.insert().values(id=1, token=token))
        assert [token] == connection.scalars(sa.select(table.c.token)).all()


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param(
            lambda: sa.insert(sa.table("sessions", sa.column("token", EncryptedJWT()))).values(token="x"),
            id="lightweight table",
        ),
        pytest.param(lambda: sa.select(sa.bindparam("t", "x", type_=EncryptedJWT())), id="bindparam"),
        pytest.param(lambda: sa.select(sa.cast("x", EncryptedJWT())), id="cast"),
        pytest.param(lambda: sa.select(sa.literal_column("'x'", EncryptedJWT())), id="result"),
    ],
)
def test_a_type_that_belongs_to_no_table_asks_for_a_context(
    memory: sa.Engine, ring: KeyRing, statement: Any
) -> None:
    with memory.begin() as connection:
        sessions().create(connection)
        with pytest.raises(ConfigurationError, match=r"give it context='table\.column'"):
            connection.execute(statement()).all()


def test_a_lightweight_table_works_with_a_context(memory: sa.Engine, ring: KeyRing) -> None:
    """As a data migration names it."""
    type_ = EncryptedJWT(context="sessions.token")
    lightweight = sa.table("sessions", sa.column("id", sa.Integer), sa.column("token", type_))
    token = signed_token(sub="alice")
    with memory.begin() as connection:
        sessions().create(connection)
        connection.execute(lightweight.insert().values(id=1, token=token))
        assert [token] == connection.scalars(sa.select(sessions().c.token)).all()
        assert [token] == connection.scalars(sa.select(lightweight.c.token)).all()


# -- statements ------------------------------------------------------------------------------------------------


@pytest.fixture
def two_tables(memory: sa.Engine, ring: KeyRing) -> tuple[sa.Connection, sa.Table, sa.Table, str]:
    first, second = sessions(), sessions(name="archive")
    token = signed_token(sub="alice")
    connection = memory.connect()
    first.create(connection)
    second.create(connection)
    connection.execute(first.insert().values(id=1, token=token))
    connection.execute(second.insert().values(id=1, token=token))
    return connection, first, second, token


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda table: sa.select(table.alias("a").c.token), id="alias"),
        pytest.param(lambda table: sa.select(sa.select(table).cte("c").c.token), id="cte"),
        pytest.param(lambda table: sa.select(sa.select(table).subquery("s").c.token), id="subquery"),
        pytest.param(
            lambda table: sa.select(sa.select(table.c.token).limit(1).scalar_subquery()), id="scalar subquery"
        ),
        pytest.param(lambda table: sa.select(table.c.token.label("t")), id="label"),
        pytest.param(
            lambda table: sa.union_all(
                sa.select(table.c.token).where(table.c.id == 1),
                sa.select(table.c.token).where(table.c.id == 2),
            ),
            id="union of one table",
        ),
        pytest.param(lambda table: sa.select(sa.func.coalesce(table.c.token, table.c.token)), id="coalesce"),
        pytest.param(lambda table: sa.select(sa.case((table.c.id == 1, table.c.token))), id="case"),
        pytest.param(
            lambda table: sa.select(sa.type_coerce(table.c.token, table.c.token.type)), id="coerced"
        ),
    ],
)
def test_a_token_is_decrypted_however_it_is_selected(
    two_tables: tuple[sa.Connection, sa.Table, sa.Table, str], build: Any
) -> None:
    connection, table, _, token = two_tables
    assert [token] == connection.scalars(build(table)).all()


def test_a_parameter_in_a_select_is_encrypted_in_the_context_of_its_type(
    two_tables: tuple[sa.Connection, sa.Table, sa.Table, str],
) -> None:
    connection, table, other, token = two_tables
    parameter = sa.select(sa.bindparam("t", type_=table.c.token.type))
    assert [token] == connection.scalars(parameter, {"t": token}).all()
    mixed = sa.select(sa.cast(sa.bindparam("t", type_=table.c.token.type), other.c.token.type))
    with pytest.raises(AuthenticationError, match=r"^archive\.token: "):
        connection.scalars(mixed, {"t": token}).all()


def test_rows_of_another_column_do_not_open_in_a_union(
    two_tables: tuple[sa.Connection, sa.Table, sa.Table, str],
) -> None:
    """The rows of a UNION have the type of its first column, and an envelope does not say which column it is of."""
    connection, table, other, _ = two_tables
    with pytest.raises(AuthenticationError, match=r"^sessions\.token: "):
        connection.scalars(sa.union_all(sa.select(table.c.token), sa.select(other.c.token))).all()


def test_columns_with_one_pinned_context_make_a_union_and_copy_rows(memory: sa.Engine, ring: KeyRing) -> None:
    first, second = (sessions(EncryptedJWT(context="token"), name=name) for name in ("sessions", "archive"))
    token = signed_token(sub="alice")
    with memory.begin() as connection:
        first.create(connection)
        second.create(connection)
        connection.execute(first.insert().values(id=1, token=token))
        connection.execute(second.insert().from_select(["id", "token"], sa.select(first)))
        union = sa.union_all(sa.select(first.c.token), sa.select(second.c.token))
        assert [token, token] == connection.scalars(union).all()


@pytest.mark.parametrize(
    "copy",
    [
        pytest.param(
            lambda table, other: other.insert().from_select(
                ["id", "token"], sa.select(table.c.id + 1, table.c.token)
            ),
            id="insert from select",
        ),
        pytest.param(
            lambda table, other: other.update().values(
                token=sa.select(table.c.token).limit(1).scalar_subquery()
            ),
            id="update from another column",
        ),
    ],
)
def test_envelopes_are_not_copied_into_another_context(
    two_tables: tuple[sa.Connection, sa.Table, sa.Table, str], copy: Any
) -> None:
    """They would not open there. The control: the same statement on the raw column, and the row is lost."""
    connection, table, other, token = two_tables
    with pytest.raises(InvalidTokenError, match=r"^archive\.token "):
        connection.execute(copy(table, other))
    assert [token] == connection.scalars(sa.select(other.c.token)).all()
    connection.execute(copy(table, raw_table(other)))
    with pytest.raises(AuthenticationError, match=r"^archive\.token: "):
        connection.scalars(sa.select(other.c.token).order_by(other.c.id.desc())).all()


def test_two_types_with_different_rings_do_not_share_a_compiled_statement(memory: sa.Engine) -> None:
    """With the ring under a private name the second value would be encrypted under the first ring."""
    rings = [KeyRing.generate(), KeyRing.generate()]
    with memory.connect() as connection:
        for ring in rings:
            parameter = sa.bindparam("t", type_=EncryptedJWT(ring, context="c"))
            statement = sa.select(sa.cast(parameter, sa.LargeBinary))
            stored = connection.scalars(statement, {"t": signed_token(sub="alice")}).one()
            assert ring.active == envelope.parse(stored).key_id


@pytest.mark.parametrize(
    "other",
    [
        {"context": "d"},
        {"storage": "text"},
        {"fingerprints": ["jti"]},
        {"expose_expiry": True},
        {"plaintext": "read"},
        {"undecryptable": "sealed"},
        {"allow_opaque": True},
        {"allow_unsigned": True},
        {"max_length": 5},
        {"bound_to": ["user_id"]},
        {"keyring": "env:OTHER"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_every_parameter_is_part_of_the_cache_key(other: dict[str, Any]) -> None:
    def key(**parameters: Any) -> Any:
        return sa.select(
            sa.bindparam("t", type_=EncryptedJWT(**{"context": "c"} | parameters))
        )._generate_cache_key()

    assert key() == key()
    assert key() != key(**other)


def test_statements_with_the_type_are_cached(memory: sa.Engine, ring: KeyRing) -> None:
    table = sessions()
    with memory.connect() as connection:
        table.create(connection)
        hits = []
        for number in range(2):
            result = connection.execute(table.insert().values(id=number, token=signed_token(jti=number)))
            hits.append(result.context.cache_hit.name)
    assert hits == ["CACHE_MISS", "CACHE_HIT"]


# -- rings -----------------------------------------------------------------------------------------------------


def test_the_default_ring_is_looked_up_at_first_use(memory: sa.Engine) -> None:
    table = sessions()
    token = signed_token(sub="alice")
    with memory.begin() as connection:
        table.create(connection)
        with pytest.raises(ConfigurationError, match="no key ring"):
            connection.execute(table.insert().values(id=1, token=token))
        ring = KeyRing.generate()
        set_default_keyring(ring)
        connection.execute(table.insert().values(id=1, token=token))
        assert [token] == connection.scalars(sa.select(table.c.token)).all()

        other = KeyRing.generate()
        set_default_keyring(other)
        connection.execute(table.insert().values(id=2, token=token))
        stored = connection.scalars(sa.select(raw(table)).order_by(table.c.id)).all()
        assert [ring.active, other.active] == [envelope.parse(value).key_id for value in stored]
        with pytest.raises(UnknownKeyError, match=ring.active):
            connection.scalars(sa.select(table.c.token)).all()


def test_rows_under_every_key_of_the_ring_open_and_new_ones_are_under_the_active_one(
    memory: sa.Engine,
) -> None:
    old, new = generate_key(), generate_key()
    tokens = [signed_token(jti=number) for number in range(2)]
    before, after = sessions(EncryptedJWT(KeyRing([old]))), sessions(EncryptedJWT(KeyRing([new, old])))
    with memory.begin() as connection:
        before.create(connection)
        connection.execute(before.insert().values(id=1, token=tokens[0]))
        connection.execute(after.insert().values(id=2, token=tokens[1]))
        assert tokens == connection.scalars(sa.select(after.c.token).order_by(after.c.id)).all()
        # The control: the ring without the new key reads the old row only.
        with pytest.raises(UnknownKeyError):
            connection.scalars(sa.select(before.c.token).order_by(before.c.id)).all()


def test_a_ring_is_named_by_its_uri(memory: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    key = generate_key()
    monkeypatch.setenv("KEYS_OF_THIS_COLUMN", key)
    table = sessions(EncryptedJWT("env:KEYS_OF_THIS_COLUMN"))
    token = signed_token(sub="alice")
    with memory.begin() as connection:
        table.create(connection)
        connection.execute(table.insert().values(id=1, token=token))
        assert [token] == connection.scalars(sa.select(table.c.token)).all()
        stored = connection.scalars(sa.select(raw(table))).one()
    assert token == decrypt_token(stored, KeyRing([key]), context="sessions.token")


def test_a_ring_that_cannot_be_loaded_raises_while_binding(
    memory: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAD_KEYS", "too short")
    table = sessions(EncryptedJWT("env:BAD_KEYS"))
    with memory.begin() as connection:
        table.create(connection)
        with pytest.raises(KeyRingError):
            connection.execute(table.insert().values(id=1, token=signed_token(sub="alice")))


# -- plaintext -------------------------------------------------------------------------------------------------

Mode = Literal["refuse", "read", "write"]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("mode", ["refuse", "read", "write"])
def test_plaintext_modes_on_every_database(
    engine: sa.Engine, ring: KeyRing, mode: Mode, storage: Storage
) -> None:
    strict = sessions(EncryptedJWT(storage=storage))
    table = sessions(EncryptedJWT(storage=storage, plaintext=mode))
    in_clear, encrypted, written = (signed_token(jti=number) for number in range(3))
    with engine.begin() as connection:
        table.create(connection)
        value = in_clear if storage == "text" else in_clear.encode()
        connection.execute(raw_table(table).insert().values(id=1, token=value))
        connection.execute(strict.insert().values(id=2, token=encrypted))
        connection.execute(table.insert().values(id=3, token=written))

        stored = connection.scalars(sa.select(raw(table)).where(table.c.id == 3)).one()
        assert (mode != "write") == envelope.looks_like_envelope(stored)
        if mode == "write":
            assert (written if storage == "text" else written.encode()) == stored

        everything = sa.select(table.c.token).order_by(table.c.id)
        if mode == "refuse":
            with pytest.raises(
                PlaintextFoundError, match=r"^sessions\.token: .*op\.encrypt_jwt_column"
            ) as caught:
                connection.scalars(everything).all()
            assert caught.value.context == "sessions.token"
        else:
            loaded = connection.scalars(everything).all()
            assert [in_clear, encrypted, written] == loaded
            assert {JWT} == {type(token) for token in loaded}


def test_what_is_neither_envelope_nor_token_is_an_error_in_every_mode(
    memory: sa.Engine, ring: KeyRing
) -> None:
    modes: tuple[Mode, ...] = ("refuse", "read", "write")
    for number, value in enumerate([b" ", b"nonsense", b"\xff\xfe", b"\x01short", b"e" * 100]):
        for mode in modes:
            table = sessions(EncryptedJWT(plaintext=mode), name=f"sessions_{number}_{mode}")
            with memory.begin() as connection:
                table.create(connection)
                connection.execute(raw_table(table).insert().values(id=1, token=value))
                with pytest.raises(DecryptionError):
                    connection.scalars(sa.select(table.c.token)).all()


def test_opaque_plaintext_is_read_where_the_column_takes_opaque_tokens(
    memory: sa.Engine, ring: KeyRing
) -> None:
    table = sessions(EncryptedJWT(plaintext="read", allow_opaque=True))
    strict = sessions(EncryptedJWT(plaintext="read"))
    with memory.begin() as connection:
        table.create(connection)
        connection.execute(raw_table(table).insert().values(id=1, token=b"opaque"))
        assert connection.scalars(sa.select(table.c.token)).all() == ["opaque"]
        with pytest.raises(MalformedEnvelopeError):
            connection.scalars(sa.select(strict.c.token)).all()


def test_a_damaged_envelope_is_never_taken_for_plaintext(memory: sa.Engine, ring: KeyRing) -> None:
    table = sessions(EncryptedJWT(plaintext="read", allow_opaque=True, storage="text"))
    stored = encrypt_token(signed_token(sub="a"), ring, context="sessions.token", storage="text")
    assert isinstance(stored, str)
    with memory.begin() as connection:
        table.create(connection)
        connection.execute(raw_table(table).insert().values(id=1, token=stored[:-4]))
        with pytest.raises(DecryptionError):
            connection.scalars(sa.select(table.c.token)).all()


def test_bytes_that_a_text_column_holds_as_text_are_never_taken_for_an_opaque_token(
    memory: sa.Engine, ring: KeyRing
) -> None:
    """PostgreSQL stores bytes in a VARCHAR column as their hex digits, without an error."""
    stored = encrypt_token(signed_token(sub="a"), ring, context="sessions.token")
    assert isinstance(stored, bytes)
    for mode in ("refuse", "read", "write"):
        table = sessions(EncryptedJWT(plaintext=mode, allow_opaque=True), name=f"sessions_{mode}")
        with memory.begin() as connection:
            table.create(connection)
            connection.exec_driver_sql(f"INSERT INTO sessions_{mode} VALUES (1, '\\x{stored.hex()}')")
            with pytest.raises(DecryptionError, match="declare storage='text'"):
                connection.scalars(sa.select(table.c.token)).all()


# -- what lies in a column otherwise ---------------------------------------------------------------------------


def test_sqlite_rows_of_another_storage_class_are_read_or_refused(memory: sa.Engine, ring: KeyRing) -> None:
    """SQLite keeps the type of the value, not of the column."""
    token = signed_token(sub="alice")
    text = encrypt_token(token, ring, context="sessions.token", storage="text")
    binary = encrypt_token(token, ring, context="sessions.token")
    assert isinstance(text, str)
    for storage in STORAGES:
        table = sessions(EncryptedJWT(storage=storage, plaintext="read"))
        with memory.connect() as connection:
            table.drop(connection, checkfirst=True)
            table.create(connection)
            for number, value in enumerate([text, binary, token, token.encode()]):
                connection.exec_driver_sql("INSERT INTO sessions VALUES (?, ?)", (number, value))
            assert [token] * 4 == connection.scalars(sa.select(table.c.token)).all()


@pytest.mark.parametrize("value", [5, 10**12, 1.5, -1])
def test_numbers_in_an_sqlite_column_are_refused_and_not_taken_for_sizes(
    memory: sa.Engine, ring: KeyRing, value: float
) -> None:
    """``bytes(5)`` is five zero bytes, and ``bytes(10**12)`` takes all memory."""
    for undecryptable in ("raise", "sealed"):
        table = sessions(EncryptedJWT(undecryptable=undecryptable))
        with memory.connect() as connection:
            table.drop(connection, checkfirst=True)
            table.create(connection)
            connection.exec_driver_sql("INSERT INTO sessions VALUES (1, ?)", (value,))
            if undecryptable == "raise":
                with pytest.raises(MalformedEnvelopeError, match=r"^sessions\.token: "):
                    connection.scalars(sa.select(table.c.token)).all()
            else:
                (sealed,) = connection.scalars(sa.select(table.c.token)).all()
                assert (isinstance(sealed, SealedJWT), sealed.key_id) == (True, None)


@pytest.mark.parametrize("buffer", [bytearray, memoryview, type("Bytes", (bytes,), {})])
def test_any_buffer_of_a_driver_is_read(ring: KeyRing, buffer: Any) -> None:
    token = signed_token(sub="alice")
    stored = encrypt_token(token, ring, context="sessions.token")
    for bound_to in ((), ("user_id",)):
        type_ = EncryptedJWT(context="sessions.token", bound_to=bound_to, undecryptable="sealed")
        process = type_.result_processor(sa.create_engine("sqlite://").dialect, None)
        loaded = process(buffer(stored))
        assert loaded == token if not bound_to else isinstance(loaded, SealedJWT)
        assert process(None) is None


def test_text_of_a_subclass_is_read(ring: KeyRing) -> None:
    token = signed_token(sub="alice")
    stored = encrypt_token(token, ring, context="c", storage="text")
    process = EncryptedJWT(context="c").result_processor(sa.create_engine("sqlite://").dialect, None)
    assert token == process(type("Text", (str,), {})(stored))


# -- rows that do not open -------------------------------------------------------------------------------------


@pytest.fixture
def damaged(memory: sa.Engine) -> tuple[sa.Connection, list[str], KeyRing]:
    """Three rows: a good one, one under a lost key, one with a changed byte."""
    kept, lost = KeyRing.generate(), KeyRing.generate()
    tokens = [signed_token(jti=number) for number in range(3)]
    connection = memory.connect()
    table = sessions(EncryptedJWT(kept))
    table.create(connection)
    connection.execute(table.insert(), [{"id": number, "token": tokens[number]} for number in (0, 2)])
    connection.execute(sessions(EncryptedJWT(lost)).insert().values(id=1, token=tokens[1]))
    stored = connection.scalars(sa.select(raw(table)).where(table.c.id == 2)).one()
    changed = stored[:-1] + bytes([stored[-1] ^ 1])
    connection.execute(
        table.update().where(table.c.id == 2).values(token=sa.literal(changed, sa.LargeBinary))
    )
    return connection, tokens, kept


def test_one_bad_row_names_itself_and_takes_the_result_with_it_unless_sealed(
    damaged: tuple[sa.Connection, list[str], KeyRing],
) -> None:
    connection, tokens, ring = damaged
    strict = sessions(EncryptedJWT(ring))
    with pytest.raises(UnknownKeyError, match=r"^sessions\.token: ") as unknown:
        connection.scalars(sa.select(strict.c.token).where(strict.c.id == 1)).all()
    with pytest.raises(AuthenticationError, match=r"^sessions\.token: .*bytes") as changed:
        connection.scalars(sa.select(strict.c.token).where(strict.c.id == 2)).all()

    table = sessions(EncryptedJWT(ring, undecryptable="sealed"))
    good, lost, broken = connection.scalars(sa.select(table.c.token).order_by(table.c.id)).all()
    assert good == tokens[0]
    assert [UnknownKeyError, AuthenticationError] == [type(lost.reason), type(broken.reason)]
    assert [unknown.value.key_id, changed.value.key_id] == [lost.key_id, broken.key_id]
    assert f"SealedJWT(key_id={lost.key_id!r}, UnknownKeyError)" == repr(lost)


def test_a_sealed_row_can_be_deleted_overwritten_and_written_back(
    damaged: tuple[sa.Connection, list[str], KeyRing],
) -> None:
    connection, tokens, ring = damaged
    table = sessions(EncryptedJWT(ring, undecryptable="sealed"))
    row = table.c.id == 1
    before = connection.scalars(sa.select(raw(table)).where(row)).one()
    sealed = connection.scalars(sa.select(table.c.token).where(row)).one()

    connection.execute(table.update().where(row).values(token=None))
    connection.execute(table.update().where(row).values(token=sealed))
    assert before == connection.scalars(sa.select(raw(table)).where(row)).one()
    connection.execute(table.update().where(row).values(token=tokens[1]))
    assert tokens[1] == connection.scalars(sa.select(table.c.token).where(row)).one()
    connection.execute(table.delete().where(table.c.id == 2))
    assert [tokens[0], tokens[1]] == connection.scalars(sa.select(table.c.token).order_by(table.c.id)).all()


def test_a_sealed_row_is_written_back_unchanged_also_in_plaintext_mode(
    damaged: tuple[sa.Connection, list[str], KeyRing],
) -> None:
    connection, _, ring = damaged
    table = sessions(EncryptedJWT(ring, undecryptable="sealed", plaintext="write"))
    row = table.c.id == 1
    before = connection.scalars(sa.select(raw(table)).where(row)).one()
    sealed = connection.scalars(sa.select(table.c.token).where(row)).one()
    connection.execute(table.update().where(row).values(token=sealed))
    assert before == connection.scalars(sa.select(raw(table)).where(row)).one()


def test_a_sealed_row_opens_when_its_key_is_back(memory: sa.Engine) -> None:
    key = generate_key()
    token = signed_token(sub="alice")
    table = sessions(EncryptedJWT(undecryptable="sealed"))
    with memory.begin() as connection:
        set_default_keyring(KeyRing([key]))
        table.create(connection)
        connection.execute(table.insert().values(id=1, token=token))
        set_default_keyring(KeyRing.generate())
        (sealed,) = connection.scalars(sa.select(table.c.token)).all()
        with pytest.raises(UnknownKeyError):
            sealed.reveal()
        set_default_keyring(KeyRing([generate_key(), key]))
        assert token == sealed.reveal()
        with pytest.raises(ConfigurationError, match=r"reveal\(\)"):
            sealed.reveal(user_id=7)


def test_plaintext_and_rows_of_a_newer_release_are_sealed_too(memory: sa.Engine, ring: KeyRing) -> None:
    table = sessions(EncryptedJWT(undecryptable="sealed"))
    token = signed_token(sub="alice")
    with memory.begin() as connection:
        table.create(connection)
        for number, value in enumerate([token.encode(), b"\x02" + bytes(80)]):
            connection.execute(raw_table(table).insert().values(id=number, token=value))
        plaintext, newer = connection.scalars(sa.select(table.c.token).order_by(table.c.id)).all()
    assert [PlaintextFoundError, UnsupportedVersionError] == [type(plaintext.reason), type(newer.reason)]
    assert [plaintext.key_id, newer.key_id] == [None, None]
    with pytest.raises(MalformedEnvelopeError):
        plaintext.reveal()


def test_a_sealed_value_is_not_moved_into_another_context(
    damaged: tuple[sa.Connection, list[str], KeyRing],
) -> None:
    connection, _, ring = damaged
    table = sessions(EncryptedJWT(ring, undecryptable="sealed"))
    sealed = connection.scalars(sa.select(table.c.token).where(table.c.id == 1)).one()
    archive = sessions(EncryptedJWT(ring), name="archive")
    archive.create(connection)
    with pytest.raises(
        DecryptionError, match=r"^archive\.token: a sealed value of sessions\.token"
    ) as caught:
        connection.execute(archive.insert().values(id=1, token=sealed))
    assert sealed.key_id == caught.value.key_id


@pytest.mark.parametrize(("source", "target"), [("binary", "text"), ("text", "binary")])
def test_a_sealed_value_takes_the_storage_form_of_the_column(
    memory: sa.Engine, source: Storage, target: Storage
) -> None:
    lost, ring = KeyRing.generate(), KeyRing.generate()
    token = signed_token(sub="alice")
    first, second = (
        sessions(EncryptedJWT(keys, storage=storage, context="c", undecryptable="sealed"), name=storage)
        for keys, storage in ((lost, source), (ring, target))
    )
    reading = sessions(EncryptedJWT(ring, storage=source, context="c", undecryptable="sealed"), name=source)
    with memory.begin() as connection:
        first.create(connection)
        second.create(connection)
        connection.execute(first.insert().values(id=1, token=token))
        sealed = connection.scalars(sa.select(reading.c.token)).one()
        connection.execute(second.insert().values(id=1, token=sealed))
        stored = connection.scalars(sa.select(raw(second))).one()
    assert (target == "text") == isinstance(stored, str)
    assert token == decrypt_token(stored, lost, context="c")


def test_a_sealed_value_that_is_no_envelope_does_not_change_its_form(
    memory: sa.Engine, ring: KeyRing
) -> None:
    """Only SQLite has text in a BLOB column; it can be deleted and overwritten."""
    table = sessions(EncryptedJWT(undecryptable="sealed"))
    with memory.begin() as connection:
        table.create(connection)
        connection.exec_driver_sql("INSERT INTO sessions VALUES (1, 'nonsense')")
        (sealed,) = connection.scalars(sa.select(table.c.token)).all()
        with pytest.raises(DecryptionError):
            connection.execute(table.update().values(token=sealed))
        connection.execute(table.update().values(token=signed_token(sub="alice")))


def test_sealed_values_are_equal_by_what_is_stored_and_are_not_pickled(
    damaged: tuple[sa.Connection, list[str], KeyRing],
) -> None:
    connection, _, ring = damaged
    table = sessions(EncryptedJWT(ring, undecryptable="sealed"))
    first = connection.scalars(sa.select(table.c.token).where(table.c.id > 0).order_by(table.c.id)).all()
    again = connection.scalars(sa.select(table.c.token).where(table.c.id > 0).order_by(table.c.id)).all()
    assert first == again
    assert first[0] != first[1]
    assert first[0] != "a token"
    assert len({*first, *again}) == 2
    with pytest.raises(JWTColumnError, match="cannot be pickled"):
        pickle.dumps(first[0])


# -- SQL text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_literals_of_the_sql_text_are_ciphertext_that_every_database_reads(
    engine: sa.Engine, ring: KeyRing, storage: Storage
) -> None:
    table = sessions(EncryptedJWT(storage=storage))
    token = signed_token(sub="alice")
    with engine.begin() as connection:
        table.create(connection)
        for number, value in enumerate([token, None]):
            statement = table.insert().values(id=number, token=value)
            text = str(statement.compile(engine, compile_kwargs={"literal_binds": True}))
            connection.exec_driver_sql(text)
        assert [token, None] == connection.scalars(sa.select(table.c.token).order_by(table.c.id)).all()


def test_a_literal_that_is_refused_makes_sql_that_no_database_runs(engine: sa.Engine, ring: KeyRing) -> None:
    refused: list[tuple[EncryptedJWT, object, str]] = [
        (EncryptedJWT(), "'; DROP TABLE sessions; --", "quotes"),
        (EncryptedJWT(), 7, "not a str"),
        (EncryptedJWT(bound_to=["id"]), signed_token(sub="alice"), "ConfigurationError"),
        (EncryptedJWT("env:NOWHERE"), signed_token(sub="alice"), "KeyUnavailableError"),
        (EncryptedJWT(plaintext="write", allow_opaque=True), "it's", "plaintext"),
        (EncryptedJWT(plaintext="write"), signed_token(sub="alice"), "plaintext"),
    ]
    for number, (type_, value, reason) in enumerate(refused):
        table = sessions(type_, name=f"sessions_{number}")
        statement = table.insert().values(id=1, token=value)
        text = str(statement.compile(engine, compile_kwargs={"literal_binds": True}))
        comment = f"/* jwt-column: the value for sessions_{number}.token was refused ({reason}) */"
        assert comment in text
        assert "DROP" not in text
        table.create(engine)
        with engine.connect() as connection, pytest.raises(sa.exc.DatabaseError):
            connection.exec_driver_sql(text)
        with engine.begin() as connection:
            assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 0


@pytest.mark.parametrize(
    ("dialect", "binary", "text"),
    [("sqlite", "BLOB", "TEXT"), ("postgresql", "BYTEA", "TEXT"), ("mysql", "BLOB", "TEXT")],
)
def test_the_database_has_a_plain_column(dialect: str, binary: str, text: str) -> None:
    url = {"sqlite": "sqlite://", "postgresql": "postgresql+psycopg://", "mysql": "mysql+pymysql://"}[dialect]
    for storage, expected in zip(STORAGES, (binary, text), strict=True):
        ddl = str(
            sa.schema.CreateTable(sessions(EncryptedJWT(storage=storage))).compile(sa.create_engine(url))
        )
        assert f"token {expected}" in ddl


# -- the type itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"keyring": generate_key().encode()}, "keyring is a KeyRing, a URI or None, not bytes"),
        ({"plaintext": "maybe"}, "plaintext is 'refuse', 'read' or 'write'"),
        ({"undecryptable": "skip"}, "undecryptable is 'raise' or 'sealed'"),
        ({"storage": "json"}, "storage is 'binary' or 'text'"),
        ({"max_length": 0}, "max_length is a number"),
        ({"max_length": "5"}, "max_length is a number"),
        ({"fingerprints": "jti"}, "fingerprints is a list"),
        ({"bound_to": "user_id"}, "bound_to is a list of names; write ['user_id']"),
        ({"bound_to": ["user_id", "user_id"]}, "bound_to are different names"),
        ({"bound_to": [""]}, "bound_to are different names"),
        ({"bound_to": [7]}, "bound_to are different names"),
        ({"bound_to": 7}, "bound_to are different names"),
        ({"context": ""}, "a context is a text that is not empty"),
        ({"context": "x" * 65_536}, "65536 bytes"),
    ],
)
def test_a_parameter_that_means_nothing_is_refused_at_once(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        EncryptedJWT(**parameters)
    assert message in str(caught.value)


def test_repr_shows_what_is_set_and_never_the_ring() -> None:
    assert repr(EncryptedJWT()) == "EncryptedJWT()"
    type_ = EncryptedJWT(
        "vault://user:password@host/key",
        context="c",
        storage="text",
        fingerprints=["jti"],
        expose_expiry=True,
        undecryptable="sealed",
        bound_to=["user_id"],
    )
    expected = (
        "EncryptedJWT(context='c', storage='text', fingerprints=['jti'], expose_expiry=True, "
        "undecryptable='sealed', bound_to=['user_id'])"
    )
    assert expected == repr(type_)
    assert repr(type_) == repr(eval(repr(type_)))  # Alembic writes a repr into a migration.


def test_the_type_says_that_it_gives_tokens() -> None:
    assert JWT is EncryptedJWT().python_type
    assert EncryptedJWT(context="c").cache_ok is True


# -- processes and threads -------------------------------------------------------------------------------------


def test_threads_share_the_type_and_each_row_has_its_own_nonce(engine: sa.Engine, ring: KeyRing) -> None:
    table = sessions()
    table.create(engine)
    together = threading.Barrier(4)
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            together.wait()
            for number in range(25):
                with engine.begin() as connection:
                    token = signed_token(jti=f"{thread}/{number}")
                    connection.execute(table.insert().values(id=100 * thread + number, token=token))
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with engine.connect() as connection:
        loaded = connection.scalars(sa.select(table.c.token)).all()
        stored = connection.scalars(sa.select(raw(table))).all()
    assert {f"{thread}/{number}" for thread in range(4) for number in range(25)} == {
        token.unverified_claims["jti"] for token in loaded
    }
    assert len({value[6:30] for value in stored}) == 100


def insert_five(engine: sa.Engine, table: sa.Table, first: int) -> None:
    with engine.begin() as connection:
        for number in range(first, first + 5):
            connection.execute(table.insert().values(id=number, token=signed_token(jti=number)))


def insert_five_in_a_child(engine: sa.Engine, table: sa.Table, first: int) -> int:
    """Fork a child that inserts rows, and return its process id."""
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside threads, which drivers have.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            engine.dispose(close=False)  # The connections belong to the parent.
            insert_five(engine, table, first)
            status = 0
        finally:
            os._exit(status)
    return child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_processes_go_on_with_their_own_nonces(engine: sa.Engine, ring: KeyRing) -> None:
    """A forked child has its parent's ring and its first nonce half, and must not repeat its nonces."""
    table = sessions()
    table.create(engine)
    insert_five(engine, table, 0)
    children = [insert_five_in_a_child(engine, table, first) for first in (100, 200)]
    insert_five(engine, table, 10)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    with engine.connect() as connection:
        loaded = connection.execute(sa.select(table.c.id, table.c.token)).all()
        stored = connection.scalars(sa.select(raw(table))).all()
    assert {row.id for row in loaded} == {row.token.unverified_claims["jti"] for row in loaded}
    assert len({value[6:30] for value in stored}) == len(stored) == 20


def test_a_sealed_value_is_never_sent_as_a_text_and_copies_as_itself(memory: sa.Engine) -> None:
    lost, ring = KeyRing.generate(), KeyRing.generate()
    stored = EncryptedJWT(lost, context="sessions.token").process_bind_param(signed_token(), memory.dialect)
    type_ = EncryptedJWT(ring, context="sessions.token", undecryptable="sealed")
    sealed = type_.process_result_value(stored, memory.dialect)
    for render in (
        str,
        "{}".format,
        lambda value: f"Bearer {value}",
        lambda value: f"{value:>40}",
        "%s".__mod__,
    ):
        with pytest.raises(JWTColumnError, match=r"sessions\.token: a sealed value is no token"):
            render(sealed)
    assert f"{sealed!r}" == repr(sealed)
    assert copy.deepcopy({"token": sealed})["token"] is copy.copy(sealed) is sealed


def test_an_option_that_does_not_exist_is_named_with_the_one_that_was_meant() -> None:
    options: dict[str, Any] = {"fingerprint": ["jti"]}
    with pytest.raises(
        TypeError, match=r"^EncryptedJWT has no option fingerprint; did you mean fingerprints\?$"
    ):
        EncryptedJWT(**options)


def test_a_key_in_the_place_of_a_ring_is_refused_and_not_shown(memory: sa.Engine) -> None:
    key = generate_key()
    table = sessions(EncryptedJWT(key))
    with memory.begin() as connection:
        table.create(connection)
        with pytest.raises(ConfigurationError, match=r"a key itself goes into KeyRing\(\[key\]\)") as caught:
            connection.execute(table.insert(), {"id": 1, "token": signed_token()})
        assert not revealed_by(caught.value, key)
    ring: Any = key
    with pytest.raises(ConfigurationError, match=r"ring is a KeyRing, not str: KeyRing\(\[key\]\)") as caught:
        encrypt_token(signed_token(), ring, context="c")
    assert not revealed_by(caught.value, key)
    with pytest.raises(ConfigurationError, match="ring is a KeyRing, not str"):
        decrypt_token(b"", ring, context="c")
