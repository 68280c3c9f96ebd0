"""The census: rows per key id and state by SQL alone, on every database and in either storage form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import aliased

from jwt_column import (
    ConfigurationError,
    EncryptedJWT,
    KeyRing,
    KeyRingError,
    encrypt_token,
    generate_key,
    key_usage,
    set_default_keyring,
)
from jwt_column.census import current_stamps, encrypted_type
from jwt_column.column.header_sql import HeaderSQL
from jwt_column.format import envelope
from tests.support.models import mapped, table_of
from tests.support.raw import raw_table
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from jwt_column.format.envelope import Storage

STORAGES: tuple[Storage, ...] = ("binary", "text")


def fill(connection: sa.Connection, table: sa.Table, values: list[bytes | str | None]) -> None:
    """Write values past the type, as text where the column is text."""
    type_: Any = table.c.token.type
    table.create(connection)
    for number, value in enumerate(values):
        if isinstance(value, bytes) and type_.storage == "text":
            value = envelope.to_text(value, envelope.split(value))
        if isinstance(value, str) and type_.storage == "binary":
            value = value.encode()
        connection.execute(raw_table(table).insert().values(id=number, token=value))


def census(connection: sa.Connection, column: Any, **options: Any) -> set[tuple[Any, ...]]:
    rows = connection.execute(key_usage(column, **options)).all()
    assert {int} >= {type(row.rows) for row in rows}
    return {tuple(row) for row in rows}


@pytest.mark.parametrize("storage", STORAGES)
def test_the_census_counts_rows_by_key_and_state(engine: sa.Engine, storage: Storage) -> None:
    old, new = generate_key(), generate_key()
    before, ring = KeyRing([old]), KeyRing([new, old])
    type_ = EncryptedJWT(ring, storage=storage, fingerprints=["jti"])
    table = table_of(type_)
    token = signed_token(jti="1")

    def sealed(keys: KeyRing, **options: Any) -> bytes | str:
        return encrypt_token(token, keys, context="sessions.token", **options)

    with engine.begin() as connection:
        fill(
            connection,
            table,
            [
                *[sealed(ring, fingerprints=["jti"])] * 3,
                *[sealed(before, fingerprints=["jti"])] * 2,
                # The key is today's, the layout is not.
                sealed(ring),
                *[token] * 4,
                "nonsense",
                "",
                None,
                None,
            ],
        )
        expected = {
            (ring.active, "current", 3),
            (before.active, "stale", 2),
            (ring.active, "stale", 1),
            (None, "plaintext", 4),
            (None, "unreadable", 1),
        }
        assert expected == census(connection, table.c.token)
        assert expected == census(connection, table.c.token, active=ring.active)
        assert expected == census(connection, table.alias().c.token)

        rotated = table_of(EncryptedJWT(KeyRing([old, new]), storage=storage, fingerprints=["jti"]))
        assert (before.active, "current", 2) in census(connection, rotated.c.token)


@pytest.mark.parametrize("storage", STORAGES)
def test_an_empty_column_has_no_census(engine: sa.Engine, storage: Storage) -> None:
    table = table_of(EncryptedJWT(KeyRing.generate(), storage=storage))
    with engine.begin() as connection:
        fill(connection, table, [None])
        assert set() == census(connection, table.c.token)


def test_the_census_has_names_and_an_order(engine: sa.Engine) -> None:
    ring = KeyRing.generate()
    table = table_of(EncryptedJWT(ring))
    token = signed_token(sub="a")
    with engine.begin() as connection:
        sealed = [
            encrypt_token(token, keys, context="c") for keys in (KeyRing.generate(), ring, KeyRing.generate())
        ]
        fill(connection, table, [*sealed, token])
        rows = connection.execute(key_usage(table.c.token)).mappings().all()
    assert list(rows[0]) == ["key_id", "state", "rows"]
    assert sorted(rows, key=lambda row: (row["state"], row["key_id"] or "")) == rows


def test_a_host_without_keys_names_the_active_key(engine: sa.Engine) -> None:
    ring = KeyRing.generate()
    table = table_of(EncryptedJWT())
    with engine.begin() as connection:
        fill(connection, table, [encrypt_token(signed_token(sub="a"), ring, context="sessions.token")])
        with pytest.raises(ConfigurationError, match="no key ring"):
            key_usage(table.c.token)
        assert {(ring.active, "current", 1)} == census(connection, table.c.token, active=ring.active)
        assert {(ring.active, "stale", 1)} == census(connection, table.c.token, active="00000000")
    with pytest.raises(KeyRingError, match="8 lower-case hex digits"):
        key_usage(table.c.token, active="ABC")


def test_a_mapped_attribute_has_a_census(engine: sa.Engine) -> None:
    ring = KeyRing.generate()
    login = mapped("sessions", token=EncryptedJWT(ring))
    table: Any = login.__table__
    with engine.begin() as connection:
        fill(connection, table, [encrypt_token(signed_token(sub="a"), ring, context="sessions.token")])
        for attribute in (login.token, aliased(login).token):
            assert {(ring.active, "current", 1)} == census(connection, attribute)


@pytest.mark.parametrize("storage", STORAGES)
def test_any_text_can_be_plaintext_where_opaque_tokens_are_taken(engine: sa.Engine, storage: Storage) -> None:
    """Also text that begins with a character that no JWT begins with, and never an envelope."""
    old = KeyRing.generate()
    ring = KeyRing.generate()
    table = table_of(EncryptedJWT(ring, storage=storage, allow_opaque=True))
    with engine.begin() as connection:
        fill(
            connection,
            table,
            [
                "~tilde", "0123", "Opaque", "éclair", "jumble", signed_token(sub="a"),
                "",
                encrypt_token("opaque", old, context="sessions.token", allow_opaque=True),
                encrypt_token("opaque", ring, context="sessions.token", allow_opaque=True),
            ],
        )  # fmt: skip
        expected = {
            (None, "plaintext", 6),
            (old.active, "stale", 1),
            (ring.active, "current", 1),
        }
        assert expected == census(connection, table.c.token)
        header = HeaderSQL(table.c.token, encrypted_type(table.c.token))
        plaintext = sa.select(sa.func.count()).select_from(table).where(header.is_plaintext())
        assert connection.scalar(plaintext) == 6


@pytest.mark.parametrize("storage", STORAGES)
def test_values_of_another_storage_class_are_counted_on_sqlite(memory: sa.Engine, storage: Storage) -> None:
    """Where an application stored text and the model now says bytes, SQLite has text in the column still."""
    ring = KeyRing.generate()
    table = table_of(EncryptedJWT(ring, storage=storage))
    token = signed_token(sub="a")
    binary = encrypt_token(token, ring, context="sessions.token")
    text = encrypt_token(token, ring, context="sessions.token", storage="text")
    with memory.begin() as connection:
        table.create(connection)
        for number, value in enumerate([token, token.encode(), binary if storage == "binary" else text, 5]):
            connection.exec_driver_sql("INSERT INTO sessions VALUES (?, ?)", (number, value))
        expected = {(None, "plaintext", 2), (ring.active, "current", 1), (None, "unreadable", 1)}
        assert expected == census(connection, table.c.token)


def test_a_value_that_ends_within_its_stamp_is_unreadable(engine: sa.Engine) -> None:
    ring = KeyRing.generate()
    (stamp,) = current_stamps(EncryptedJWT(ring, context="c"))
    table = table_of(EncryptedJWT(ring))
    with engine.begin() as connection:
        fill(connection, table, [None])
        for number, value in enumerate([stamp[:5], stamp], start=1):
            connection.execute(raw_table(table).insert().values(id=number, token=value))
        assert {(None, "unreadable", 1), (ring.active, "current", 1)} == census(connection, table.c.token)


@pytest.mark.parametrize("column", [sa.column("x"), sa.column("x", sa.LargeBinary), "sessions.token", None])
def test_another_column_has_no_census(column: Any) -> None:
    with pytest.raises(ConfigurationError, match="is not a column of type EncryptedJWT"):
        key_usage(column)


def test_the_stamp_of_a_column_is_that_of_its_envelopes() -> None:
    ring = KeyRing.generate()
    type_ = EncryptedJWT(ring, context="c", expose_expiry=True, fingerprints=["token", "jti"])
    stored = type_.cipher().encrypt(signed_token(jti="1"), ring)
    assert [stored[:6]] == current_stamps(type_) == current_stamps(type_, ring.active)
    assert type_ is encrypted_type(sa.column("token", type_))


@pytest.mark.parametrize("storage", STORAGES)
def test_the_expressions_of_a_column_need_no_key(engine: sa.Engine, storage: Storage) -> None:
    """On a host without keys: only what the active key is has to be said."""
    old, ring = KeyRing.generate(), KeyRing.generate()
    table = table_of(EncryptedJWT(storage=storage))
    token: Any = table.c.token
    with engine.begin() as connection:
        fill(
            connection,
            table,
            [
                encrypt_token(signed_token(sub="a"), ring, context="sessions.token"),
                encrypt_token(signed_token(sub="b"), old, context="sessions.token"),
                encrypt_token(signed_token(jti="c"), ring, context="sessions.token", fingerprints=["jti"]),
                signed_token(sub="d"),
                "nonsense",
                None,
            ],
        )

        def ids(condition: Any) -> list[int]:
            return list(connection.scalars(sa.select(table.c.id).where(condition).order_by(table.c.id)))

        assert list(connection.scalars(sa.select(token.key_id).order_by(table.c.id))) == [
            ring.active, old.active, ring.active, None, None, None,
        ]  # fmt: skip
        assert ids(token.key_id == old.active) == [1]
        assert ids(token.is_plaintext) == [3]
        assert ids(token.stale_under(ring.active)) == [1, 2]
        assert ids(token.stale_under(old.active)) == [0, 2]
        assert ids(token.stale_under(ring.active, old.active)) == [2]
        with pytest.raises(ConfigurationError, match="no key ring"):
            _ = token.is_stale
        set_default_keyring(ring)
        assert ids(token.is_stale) == [1, 2]


def test_stale_under_takes_key_ids() -> None:
    token: Any = table_of(EncryptedJWT()).c.token
    with pytest.raises(ConfigurationError, match="takes the id of the active key"):
        token.stale_under()
    with pytest.raises(KeyRingError, match="8 lower-case hex digits"):
        token.stale_under("active")
