"""A declaration that cannot work is refused when its table is made, and the message says what to write."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry
from sqlalchemy.types import TypeDecorator

from jwt_column import (
    JWT,
    ConfigurationError,
    EncryptedJSON,
    EncryptedJWT,
    ExpiryIndex,
    FingerprintIndex,
    KeyRing,
    StaleIndex,
    check_declarations,
)
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Callable

RING = KeyRing.generate()


class Upper(EncryptedJWT):
    """A subclass with a processor that nothing calls."""

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        """Change a value."""
        return value


class Renamed(EncryptedJWT):
    """A subclass that changes nothing."""


class Wrapper(TypeDecorator[JWT]):
    """A type around the type, which no column gives a context."""

    impl = EncryptedJWT
    cache_ok = True


class WrapperInContext(TypeDecorator[JWT]):
    """The same with a context."""

    impl = EncryptedJWT(RING, context="t.token")
    cache_ok = True


def column(type_: Any = None, **options: Any) -> sa.Column[Any]:
    return sa.Column("token", type_ or EncryptedJWT(RING), **options)


BAD: dict[str, tuple[Callable[[], tuple[Any, ...]], str]] = {
    "unique": (lambda: (column(unique=True),), "FingerprintIndex(name, 'token', 'token', unique=True)"),
    "index": (lambda: (column(index=True),), "FingerprintIndex(name, 'token', 'token')"),
    "UniqueConstraint": (lambda: (column(), sa.UniqueConstraint("token")), "unique=True"),
    "UniqueConstraint of two": (lambda: (column(), sa.UniqueConstraint("n", "token")), "unique=True"),
    "Index": (lambda: (column(), sa.Index("ix", "token")), "FingerprintIndex"),
    "unique Index": (lambda: (column(), sa.Index("ix", "token", unique=True)), "unique=True"),
    "primary key": (lambda: (column(primary_key=True),), "surrogate key"),
    "server_default": (lambda: (column(server_default="eyJ"),), "default="),
    "Computed": (
        lambda: (column(None, *()), sa.Column("x", EncryptedJWT(RING), sa.Computed("n"))),
        "in the application",
    ),
    "default": (lambda: (column(default=sa.func.lower("x")),), "Python value"),
    "onupdate": (lambda: (column(onupdate=sa.text("'x'")),), "Python value"),
    "subclass": (lambda: (column(Upper(RING)),), "overrides process_bind_param()"),
    "ARRAY": (lambda: (column(sa.ARRAY(EncryptedJWT(RING))),), "one token in a row"),
    "ARRAY in a context": (
        lambda: (column(sa.ARRAY(EncryptedJWT(RING, context="t.token"))),),
        "one token in a row",
    ),
    "variant with it": (
        lambda: (column(sa.Text().with_variant(EncryptedJWT(RING), "mysql")),),
        "on all databases",
    ),
    "variant with it in a context": (
        lambda: (column(sa.Text().with_variant(EncryptedJWT(RING, context="t.token"), "mysql")),),
        "on all databases",
    ),
    "variant of JSON": (
        lambda: (column(sa.JSON().with_variant(EncryptedJSON(RING, context="t.token"), "sqlite")),),
        "on all databases",
    ),
    "variant of it": (
        lambda: (column(EncryptedJWT(RING).with_variant(sa.Text(), "sqlite")),),
        "in a migration",
    ),
    "variant of it, encrypted too": (
        lambda: (column(EncryptedJWT(RING).with_variant(EncryptedJWT(RING, storage="text"), "mysql")),),
        "in a migration",
    ),
    "PrimaryKeyConstraint": (lambda: (column(), sa.PrimaryKeyConstraint("token")), "surrogate key"),
    "PrimaryKeyConstraint of two": (
        lambda: (column(), sa.PrimaryKeyConstraint("n", "token")),
        "surrogate key",
    ),
    "ForeignKey": (
        lambda: (sa.Column("token", EncryptedJWT(RING), sa.ForeignKey("other.token")),),
        "surrogate key",
    ),
    "ForeignKeyConstraint": (
        lambda: (column(), sa.ForeignKeyConstraint(["n", "token"], ["other.n", "other.token"])),
        "a foreign key of ciphertext matches nothing",
    ),
    "ExcludeConstraint": (
        lambda: (column(), postgresql.ExcludeConstraint(("token", "="))),
        "an exclusion constraint over ciphertext refuses nothing",
    ),
    "wrapper": (lambda: (column(Wrapper()),), "context="),
}


@pytest.mark.parametrize(("parts", "recipe"), BAD.values(), ids=BAD.keys())
def test_declaration_that_cannot_work_is_refused_with_its_recipe(
    parts: Callable[[], tuple[Any, ...]], recipe: str
) -> None:
    metadata = sa.MetaData()
    with pytest.raises(ConfigurationError) as caught:
        sa.Table("t", metadata, sa.Column("n", sa.Text), *parts())
    assert recipe in str(caught.value)
    assert str(caught.value).startswith("t.")
    (finding,) = check_declarations(metadata)
    assert ("declaration", str(caught.value) + ".") == (finding.code, f"{finding.column}: {finding.message}")


def test_mapped_class_is_refused_too() -> None:
    class Base(DeclarativeBase):
        pass

    with pytest.raises(ConfigurationError, match="FingerprintIndex"):

        class Login(Base):
            __tablename__ = "logins"
            id: Mapped[int] = mapped_column(primary_key=True)
            token: Mapped[JWT] = mapped_column(EncryptedJWT(RING), unique=True)

    with suppress(ConfigurationError):
        sa.Index("ix_later", sa.Table("other", Base.metadata, column()).c.token)
    assert {"logins.token", "other.token"} == {
        finding.column for finding in check_declarations(Base.metadata)
    }


@pytest.mark.parametrize("names", [["token"], ["n", "token"]])
def test_primary_key_of_a_mapper_is_refused(names: list[str]) -> None:
    """The table shows none of it, and the ORM would look for rows by the token."""
    for type_ in (EncryptedJWT(RING), EncryptedJSON(RING)):
        table = sa.Table("t", sa.MetaData(), sa.Column("n", sa.Text), column(type_))
        key = [table.c[name] for name in names]
        with pytest.raises(
            ConfigurationError, match=r"^t\.token: .* cannot be the primary key, .* surrogate key"
        ):
            registry().map_imperatively(type("Login", (), {}), table, primary_key=key)
        registry().map_imperatively(type("Login", (), {}), table, primary_key=[table.c.n])  # the control


def test_unique_column_would_take_one_token_twice(memory: sa.Engine) -> None:
    """The control: the constraint as the database sees it, over the raw column."""
    good = sa.Table("t", sa.MetaData(), column())
    with memory.begin() as connection:
        connection.execute(sa.text("CREATE TABLE t (token BLOB UNIQUE)"))
        connection.execute(good.insert(), [{"token": signed_token(jti="1")}] * 2)
        assert connection.scalar(sa.select(sa.func.count()).select_from(good)) == 2


def test_variant_would_store_tokens_in_the_clear(memory: sa.Engine) -> None:
    """The control: SQLAlchemy binds through the variant, and not through the type that stands in the declaration."""
    type_ = EncryptedJWT(RING, context="t.token").with_variant(sa.Text(), "sqlite")
    token = signed_token(jti="1")
    with memory.connect() as connection:
        sent = connection.execute(sa.select(sa.bindparam("x", token, type_=type_))).context
        assert sent.compiled_parameters[0]["x"] == token
        bound = sent.dialect.type_compiler_instance.process(type_)
        assert bound == "TEXT"


def test_a_text_with_an_encrypted_variant_would_compare_and_store_as_a_text(memory: sa.Engine) -> None:
    """The control: SQLAlchemy takes the operators of the type that stands in the declaration."""
    type_ = sa.Text().with_variant(EncryptedJWT(RING, context="t.token"), "sqlite")
    table = sa.table("t", sa.column("token", type_))
    token = signed_token(jti="1")
    with memory.begin() as connection:
        connection.execute(sa.text("CREATE TABLE t (token BLOB)"))
        connection.execute(table.insert(), {"token": token})
        assert connection.scalars(sa.select(table.c.token).where(table.c.token == token)).all() == []
        connection.execute(table.update().values(token=sa.func.trim(token)))
        assert connection.scalar(sa.text("SELECT token FROM t")) == token


def test_declarations_that_work_are_taken() -> None:
    metadata = sa.MetaData()
    type_ = EncryptedJWT(RING, fingerprints=["token"], expose_expiry=True)
    sa.Table(
        "t",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        column(type_, server_default=sa.text("NULL"), default=lambda: signed_token(jti="1"), nullable=False),
        sa.Column("n", sa.Text, unique=True, index=True, server_default="x"),
        sa.Column("other", Renamed(RING), server_onupdate=sa.FetchedValue()),
        sa.Column("wrapped", WrapperInContext()),
        sa.UniqueConstraint("n", "id"),
        FingerprintIndex("ix_token", "token", unique=True),
        ExpiryIndex("ix_expiry", "token"),
        StaleIndex("ix_stale", "token"),
    )
    assert check_declarations(metadata) == []
    with pytest.raises(ConfigurationError, match="not Engine"):
        check_declarations(sa.create_engine("sqlite://"))
    assert check_declarations(metadata.tables["t"].to_metadata(sa.MetaData()).metadata) == []
