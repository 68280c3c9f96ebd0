"""Autogenerate renders plain column types, and notices rows that are behind when it is asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from alembic.autogenerate import compare_metadata, produce_migrations, render_op_text, render_python_code
from alembic.autogenerate.api import AutogenContext
from alembic.migration import MigrationContext
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    insert,
    update,
)

import migrations_helpers
from jwt_column import ConfigurationError, EncryptedJSON, EncryptedJWT, KeyRing, set_default_keyring
from migrations_helpers.operations.indexes import CreateIndexOp
from tests.support.raw import raw_table
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from alembic.operations.ops import MigrationScript

FIRST_KEY = bytes(range(32))
SECOND_KEY = bytes(range(1, 33))
OLD = KeyRing([FIRST_KEY])
NEW = OLD.with_key(SECOND_KEY).with_active(KeyRing([SECOND_KEY]).active)


@pytest.fixture(autouse=True)
def _default_ring() -> None:
    set_default_keyring(OLD)


def model(**text_options: Any) -> tuple[MetaData, Table]:
    metadata = MetaData()
    sessions = Table(
        "sessions",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("token", EncryptedJWT(), nullable=False),
        Column("refresh", EncryptedJWT(storage="text", **text_options)),
    )
    return metadata, sessions


def created(engine: Engine, *columns: Column[Any]) -> None:
    """Create the table as it was before the model, with these columns."""
    token = Column("token", LargeBinary, nullable=False)
    Table("sessions", MetaData(), Column("id", Integer, primary_key=True), token, *columns).create(engine)


def context_of(connection: Any, metadata: MetaData, **options: Any) -> MigrationContext:
    return MigrationContext.configure(connection, opts={"target_metadata": metadata, **options})


def migrations(engine: Engine, metadata: MetaData, **options: Any) -> MigrationScript:
    with engine.connect() as connection:
        return produce_migrations(context_of(connection, metadata, **options), metadata)


def upgrade_lines(engine: Engine, metadata: MetaData, **options: Any) -> list[str]:
    upgrade = migrations(engine, metadata, **options).upgrade_ops
    assert upgrade is not None
    return [
        line.strip() for line in render_python_code(upgrade).splitlines() if not line.strip().startswith("#")
    ]


def difference(engine: Engine, metadata: MetaData, **options: Any) -> list[Any]:
    with engine.connect() as connection:
        return list(compare_metadata(context_of(connection, metadata, **options), metadata))


def test_new_table_renders_plain_types(engine: Engine) -> None:
    metadata, sessions = model(fingerprints=["jti"])
    lines = upgrade_lines(engine, metadata)
    assert "sa.Column('token', sa.LargeBinary(), nullable=False)," in lines
    assert "sa.Column('refresh', sa.Text(), nullable=True)," in lines
    assert "EncryptedJWT" not in "".join(lines)
    assert isinstance(sessions.c.token.type, EncryptedJWT), "the model itself keeps its type"


def test_new_column_renders_a_plain_type(engine: Engine) -> None:
    created(engine)
    metadata, _ = model()
    assert upgrade_lines(engine, metadata) == [
        "op.add_column('sessions', sa.Column('refresh', sa.Text(), nullable=True))"
    ]


def test_changed_type_renders_plain_types(engine: Engine) -> None:
    created(engine, Column("refresh", Integer))
    metadata, _ = model()
    text = "".join(upgrade_lines(engine, metadata))
    assert "type_=sa.Text()" in text
    assert "EncryptedJWT" not in text


def test_table_as_it_should_be_shows_no_difference(engine: Engine) -> None:
    metadata, _ = model(fingerprints=["jti"], expose_expiry=True)
    metadata.create_all(engine)
    assert difference(engine, metadata) == []


def test_stale_rows_are_a_difference_only_when_asked_for(engine: Engine) -> None:
    metadata, sessions = model()
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(sessions), [{"token": signed_token(), "refresh": signed_token()}])
    asked = {"jwt_column": {"compare_rows": True}}
    assert difference(engine, metadata, **asked) == []
    set_default_keyring(NEW)
    assert difference(engine, metadata) == []
    assert difference(engine, metadata, **asked) == [
        ("reencrypt_jwt_column", None, "sessions", "token"),
        ("reencrypt_jwt_column", None, "sessions", "refresh"),
    ]


def test_plaintext_rows_ask_for_encryption(engine: Engine) -> None:
    metadata, sessions = model()
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(sessions), [{"token": signed_token(), "refresh": signed_token()}])
        connection.execute(update(raw_table(sessions)).values(refresh=signed_token()))
    assert difference(engine, metadata, jwt_column={"compare_rows": True}) == [
        ("encrypt_jwt_column", None, "sessions", "refresh")
    ]


def test_rendered_operation_brings_the_rows_up_to_date(engine: Engine) -> None:
    metadata, sessions = model(fingerprints=["jti"])
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(sessions), [{"token": signed_token(), "refresh": signed_token(jti="a")}])
    set_default_keyring(NEW)
    asked = {"jwt_column": {"compare_rows": True}}
    assert upgrade_lines(engine, metadata, **asked) == [
        "op.reencrypt_jwt_column('sessions', 'token', type_=EncryptedJWT())",
        "op.reencrypt_jwt_column('sessions', 'refresh', "
        "type_=EncryptedJWT(storage='text', fingerprints=['jti']))",
    ]
    script = migrations(engine, metadata, **asked)
    assert script.upgrade_ops is not None
    with engine.connect() as connection:
        rendering = AutogenContext(context_of(connection, metadata))
        for operation in script.upgrade_ops.ops:
            render_op_text(rendering, operation)
    assert rendering.imports == {"import migrations_helpers", "from jwt_column import EncryptedJWT"}
    type_ = EncryptedJWT(context="sessions.refresh", storage="text", fingerprints=["jti"])
    migrations_helpers.reencrypt(engine, "sessions", "token", nice=0)
    migrations_helpers.reencrypt(engine, "sessions", "refresh", type_=type_, nice=0)
    assert difference(engine, metadata, **asked) == []


def test_downgrade_is_the_operation_reversed(engine: Engine) -> None:
    metadata, sessions = model()
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(sessions), [{"token": signed_token()}])
        connection.execute(update(raw_table(sessions)).values(refresh=signed_token()))
    downgrade = migrations(engine, metadata, jwt_column={"compare_rows": True}).downgrade_ops
    assert downgrade is not None
    assert "op.decrypt_jwt_column('sessions', 'refresh'" in render_python_code(downgrade)


def test_empty_table_needs_no_key_ring(engine: Engine) -> None:
    metadata, _ = model()
    metadata.create_all(engine)
    set_default_keyring(None)
    assert difference(engine, metadata, jwt_column={"compare_rows": True}) == []


def test_table_that_is_not_there_yet_is_created_not_compared(engine: Engine) -> None:
    metadata, _ = model()
    Table("other", metadata, Column("name", String(5), primary_key=True))
    operations = [entry[0] for entry in difference(engine, metadata, jwt_column={"compare_rows": True})]
    assert operations == ["add_table", "add_table"]


@pytest.mark.parametrize("option", [True, "compare_rows", {"compare_row": True}])
def test_unknown_option_is_refused(engine: Engine, option: object) -> None:
    metadata, _ = model()
    with pytest.raises(ConfigurationError, match="compare_rows"):
        difference(engine, metadata, jwt_column=option)


def test_a_migration_imports_the_class_that_it_names() -> None:
    class Own(EncryptedJWT): ...

    for type_, line in (
        (EncryptedJSON(), "from jwt_column import EncryptedJSON"),
        (Own(), f"from {__name__} import Own"),
    ):
        with create_engine("sqlite://").connect() as connection:
            rendering = AutogenContext(context_of(connection, MetaData()))
            for operation in (
                migrations_helpers.ReencryptColumnOp("sessions", "token", type_=type_),
                CreateIndexOp("ix", "sessions", "token", kind="stale", type_=type_),
            ):
                assert f"type_={type(type_).__name__}(" in render_op_text(rendering, operation)
        assert rendering.imports == {"import migrations_helpers", line}


def test_schema_is_rendered() -> None:
    operation = migrations_helpers.ReencryptColumnOp("sessions", "token", schema="auth")
    with create_engine("sqlite://").connect() as connection:
        text = render_op_text(AutogenContext(context_of(connection, MetaData())), operation)
    assert text == "op.reencrypt_jwt_column('sessions', 'token', type_=EncryptedJWT(), schema='auth')"
