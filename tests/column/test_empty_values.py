"""An empty value in a column that was ``NOT NULL DEFAULT ''`` stands for no token, wherever it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.orm import Session

from jwt_column import DecryptionError, EncryptedJWT, KeyRing, audit, key_usage
from jwt_column.column.header_sql import HeaderSQL
from migrations_helpers import reencrypt
from tests.support.models import mapped, store, table_of
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from jwt_column.format.envelope import Storage

RING = KeyRing.generate()
STORAGES: tuple[Storage, ...] = ("binary", "text")


def model_of(storage: Storage, plaintext: Literal["refuse", "read", "write"] = "refuse") -> Any:
    return mapped(token=EncryptedJWT(RING, storage=storage, plaintext=plaintext, context="logins.token"))


def legacy_table(connection: sa.Connection, storage: Storage) -> None:
    """Make a table of a token in the clear, an empty value and, in the third row, NULL."""
    values: list[Any] = [signed_token(exp=4_000_000_000), "", None]
    if storage == "binary":
        values = [value if value is None else value.encode() for value in values]
    store(connection, table_of(sa.Text() if storage == "text" else sa.LargeBinary(), name="logins"), values)
    connection.commit()


@pytest.mark.parametrize("storage", STORAGES)
def test_an_empty_value_is_no_token_on_every_step(engine: sa.Engine, storage: Storage) -> None:
    """Loading, adoption, gate, rotation, census and audit agree; each once failed or passed over it."""
    with engine.connect() as connection:
        legacy_table(connection, storage)
    for plaintext in ("write", "read"):
        with Session(engine) as session:
            loaded = session.scalars(sa.select(model_of(storage, plaintext).token)).all()
        assert [value is None for value in loaded] == [False, True, True]
    type_ = EncryptedJWT(RING, storage=storage, context="logins.token")
    with engine.connect() as connection:
        op: Any = Operations(MigrationContext.configure(connection))
        report = op.encrypt_jwt_column("logins", "token", type_=type_)
        connection.commit()
        if report is not None:
            assert (report.reencrypted, report.undecryptable_count, report.already_current) == (1, 0, 0)
        op.ensure_jwt_column_current("logins", "token", type_=type_)
    login = model_of(storage)
    with Session(engine) as session:
        assert [one.token is None for one in session.scalars(sa.select(login).order_by(login.id))] == [
            False,
            True,
            True,
        ]
        assert [(row.state, row.rows) for row in session.execute(key_usage(login.token))] == [("current", 1)]
    assert reencrypt(engine, "logins", "token", type_=type_, verify="decrypt").already_current == 1
    for deep in (False, True):
        report = audit(engine, login.token, deep=deep)
        assert not [finding for finding in report.findings if finding.severity != "info"]
        assert (report.columns[0].rows, report.columns[0].nulls) == (3, 2)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_blank_is_a_value(engine: sa.Engine, storage: Storage) -> None:
    """Control: a space, which MariaDB compares equal to nothing, is an unreadable value and not "no token"."""
    with engine.connect() as connection:
        legacy_table(connection, storage)
        raw = sa.table(
            "logins", sa.column("id"), sa.column("token", sa.Text if storage == "text" else sa.LargeBinary)
        )
        connection.execute(raw.update().where(raw.c.id == 2).values(token=" " if storage == "text" else b" "))
        connection.commit()
        login = model_of(storage)
        with pytest.raises(DecryptionError):
            connection.execute(sa.select(login.token).where(login.id == 2)).all()
        states = {row.state: row.rows for row in connection.execute(key_usage(login.token))}
        assert states == {"plaintext": 1, "unreadable": 1}


def test_postgresql_knows_the_length_without_reading_the_value() -> None:
    """octet_length() does not fetch a long value from its TOAST table; length() of a text does."""
    column: Any = sa.column("token", sa.Text)
    condition = HeaderSQL(column, EncryptedJWT(RING, storage="text")).has_value()
    assert "octet_length(token) > 0" in str(condition)
