"""Indexes on a token and more: within a user, or on two claims together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jwt_column import (
    JWT,
    ConfigurationError,
    EncryptedJWT,
    FingerprintIndex,
    KeyRing,
    check_declarations,
    set_default_keyring,
)
from jwt_column.database.indexes import existing_indexes
from tests.column.test_indexes import STORAGES, plan
from tests.support.tokens import compact

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jwt_column.format.envelope import Storage

FIRST = KeyRing.generate()
ROWS = 600
NAMES = ["token", "iss", "jti"]


@pytest.fixture(autouse=True)
def _default_ring() -> None:
    set_default_keyring(FIRST)


def token(jti: str | None, iss: str | None = "https://a") -> JWT:
    claims = {"iss": iss, "jti": jti}
    return JWT(
        compact(
            {"alg": "HS256"}, {name: one for name, one in claims.items() if one is not None}, b"signature"
        )
    )


def table_of(*indexes: Any, **options: Any) -> sa.Table:
    return sa.Table(
        "sessions",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Integer),
        sa.Column("token", EncryptedJWT(**{"fingerprints": NAMES, **options})),
        *indexes,
    )


ANY = token("any")
PER_USER = FingerprintIndex("ux", "user_id", "token", unique=True)
# The rows before and the row that comes: user and token each.
Rows = list[tuple[int | None, JWT | None]]
REFUSED: dict[str, tuple[Sequence[Any], Rows]] = {
    "one token per user": (["user_id", "token"], [(1, ANY), (1, ANY)]),
    "the user behind it": (["token", "token", "user_id"], [(1, ANY), (1, ANY)]),
    "a claim per user": (["user_id", "token", "jti"], [(1, token("a", "x")), (1, token("a", "y"))]),
    "two claims": (["token", ("iss", "jti")], [(1, token("a", "x")), (2, token("a", "x"))]),
    "all of it": (
        ["user_id", "token", ("iss", "jti"), "id2"],
        [(1, token("a", "x")), (1, token("a", "x"))],
    ),
}
LET_BE: dict[str, tuple[Sequence[Any], Rows]] = {
    "another user": (["user_id", "token"], [(1, ANY), (2, ANY)]),
    "another token": (["user_id", "token"], [(1, ANY), (1, token("other"))]),
    "no user": (["user_id", "token"], [(None, ANY), (None, ANY)]),
    "no token": (["user_id", "token"], [(1, None), (1, None)]),
    "another claim": (["token", ("iss", "jti")], [(1, token("a", "x")), (1, token("a", "y"))]),
    "no issuer": (["token", ("iss", "jti")], [(1, token("a", None)), (1, token("a", None))]),
    "no jti": (["token", ("iss", "jti")], [(1, token(None)), (1, token(None))]),
    "no jti of the user": (["user_id", "token", "jti"], [(1, token(None)), (1, token(None))]),
}


def insert(engine: sa.Engine, table: sa.Table, rows: Rows) -> None:
    table.create(engine)
    for user, value in rows:
        with engine.begin() as connection:
            connection.execute(table.insert(), {"user_id": user, "token": value})


def composite(parts: Sequence[Any], **options: Any) -> sa.Table:
    table = table_of(FingerprintIndex("ux", *[one for one in parts if one != "id2"], unique=True), **options)
    if "id2" in parts:
        table = table_of(sa.Column("id2", sa.Integer, server_default="5"), **options)
        FingerprintIndex("ux", *(table.c[parts[0]], table.c.token, *parts[2:]), unique=True)
    return table


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("case", REFUSED)
def test_the_same_in_all_parts_is_refused(engine: sa.Engine, case: str, storage: Storage) -> None:
    parts, rows = REFUSED[case]
    with pytest.raises(sa.exc.IntegrityError):
        insert(engine, composite(parts, storage=storage), rows)


@pytest.mark.parametrize("case", LET_BE)
def test_a_difference_and_a_null_in_one_part_are_let_be(engine: sa.Engine, case: str) -> None:
    parts, rows = LET_BE[case]
    table = composite(parts)
    insert(engine, table, rows)
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 2


def test_uniqueness_holds_within_a_key(engine: sa.Engine) -> None:
    """As of an index on one fingerprint: until the rows are re-encrypted, another key is another value."""
    table = table_of(FingerprintIndex("ux", "user_id", "token", "jti", unique=True))
    insert(engine, table, [(1, ANY)])
    set_default_keyring(KeyRing.generate())
    with engine.begin() as connection:
        connection.execute(table.insert(), {"user_id": 1, "token": ANY})
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        connection.execute(table.insert(), {"user_id": 1, "token": ANY})


@pytest.mark.parametrize("storage", STORAGES)
def test_a_unique_index_beside_previous_holds_the_rows_of_one_layout(
    engine: sa.Engine, storage: Storage
) -> None:
    old, new = {"fingerprints": ["iss", "jti"]}, {"fingerprints": ["iss", "jti"], "expose_expiry": True}
    both = table_of(storage=storage, **new, previous=[old])
    FingerprintIndex("ux_new", both.c.user_id, both.c.token, ("iss", "jti"), unique=True)
    FingerprintIndex("ux_old", both.c.user_id, both.c.token, ("iss", "jti"), unique=True, layout=old)
    before = table_of(storage=storage, **old)
    insert(engine, both, [(1, ANY)])
    with engine.begin() as connection:
        # The same in the other layout.
        connection.execute(before.insert(), {"user_id": 1, "token": ANY})
    for table in (both, before):
        with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
            connection.execute(table.insert(), {"user_id": 1, "token": ANY})
    with engine.connect() as connection:
        found = sa.select(both.c.id).where(both.c.user_id == 1, both.c.token.claim("jti") == "any")
        assert len(connection.scalars(found).all()) == 2


# -- plans -----------------------------------------------------------------------------------------------------------


def filled(connection: sa.Connection, table: sa.Table) -> None:
    """Rows of which no part alone selects few: a planner that can use all parts of an index does."""
    table.create(connection)
    rows = [
        {"user_id": n % 20, "token": token(f"j{n // 20 % 10}", f"https://{n // 200}")} for n in range(ROWS)
    ]
    connection.execute(table.insert(), rows)
    analyze(connection)


def analyze(connection: sa.Connection) -> None:
    commands = {"mysql": "ANALYZE TABLE sessions", "mariadb": "ANALYZE TABLE sessions"}
    connection.exec_driver_sql(commands.get(connection.dialect.name, "ANALYZE")).close()


def statements(table: Any) -> dict[str, Any]:
    column: Any = table.c.token
    jti, iss = column.claim("jti") == "j5", column.claim("iss") == "https://1"
    return {
        "ix_user_token": sa.select(table.c.id).where(
            table.c.user_id == 7, column == token("j5", "https://1")
        ),
        "ix_user_jti": sa.select(table.c.id).where(table.c.user_id == 7, jti),
        "ix_iss_jti": sa.select(table.c.id).where(iss, jti),
    }


def indexes() -> list[FingerprintIndex]:
    return [
        FingerprintIndex("ix_user_token", "user_id", "token"),
        FingerprintIndex("ix_user_jti", "user_id", "token", "jti"),
        FingerprintIndex("ix_iss_jti", "token", ("iss", "jti")),
    ]


FOUND = {"ix_user_token": 1, "ix_user_jti": 3, "ix_iss_jti": 20}


@pytest.mark.parametrize("storage", STORAGES)
def test_the_planner_uses_the_index_whose_parts_are_compared(engine: sa.Engine, storage: Storage) -> None:
    """Two indexes have the fingerprint of jti; on MariaDB each has a generated column of its own for it."""
    table = table_of(*indexes(), storage=storage)
    with engine.begin() as connection:
        filled(connection, table)
        for source in (table, table.alias("aliased")):
            for name, statement in statements(source).items():
                shown = plan(connection, statement)
                assert name in shown, shown
                assert len(connection.scalars(statement).all()) == FOUND[name]


@pytest.mark.parametrize("storage", STORAGES)
def test_the_indexes_of_both_layouts_are_used(engine: sa.Engine, storage: Storage) -> None:
    old, new = {"fingerprints": ["iss", "jti"]}, {"fingerprints": ["iss", "jti"], "expose_expiry": True}
    both = table_of(storage=storage, **new, previous=[old])
    FingerprintIndex("ux_new", both.c.user_id, both.c.token, ("jti", "iss"), unique=True)
    FingerprintIndex("ux_old", both.c.user_id, both.c.token, ("jti", "iss"), unique=True, layout=old)
    rows = [{"user_id": n % 20, "token": token(f"j{n // 20}")} for n in range(ROWS)]
    with engine.begin() as connection:
        both.create(connection)
        for table in (both, table_of(storage=storage, **old)):
            connection.execute(table.insert(), rows)
        analyze(connection)
        statement = sa.select(both.c.id).where(both.c.user_id == 7, both.c.token.claim("jti") == "j5")
        shown = plan(connection, statement)
        assert "ux_new" in shown, shown
        assert "ux_old" in shown, shown
        assert len(connection.scalars(statement).all()) == 2


def test_without_the_indexes_the_answers_are_the_same(engine: sa.Engine) -> None:
    """The control of the plans, and of answers that name several generated columns."""
    table = table_of()
    with engine.begin() as connection:
        filled(connection, table)
        for name, statement in statements(table).items():
            assert "ix_" not in plan(connection, statement)
            assert len(connection.scalars(statement).all()) == FOUND[name]


def test_every_comparison_is_answered_through_several_indexes(engine: sa.Engine) -> None:
    with_indexes, without = table_of(*indexes()), table_of()
    with engine.begin() as connection:
        filled(connection, with_indexes)

        def ids(make: Callable[[Any], Any]) -> list[list[int]]:
            return [
                sorted(connection.scalars(sa.select(one.c.id).where(make(one.c.token))))
                for one in (with_indexes, without)
            ]

        for make in (
            lambda column: column.claim("jti").in_(["j1", "j2"]),
            lambda column: column.claim("jti") != "j1",
            lambda column: sa.not_(column.claim("jti").in_(["j1", "j2"])),
            lambda column: column.claim("jti").in_([sa.bindparam("one", "j3"), "j2"]),
        ):
            through, plain = ids(make)
            assert through == plain
            assert 0 < len(plain) < ROWS
        through, plain = ids(lambda column: column.claim("jti").is_(None))
        assert through == plain == []


# -- declarations ----------------------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Login(Base):
    __tablename__ = "logins"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[JWT] = mapped_column(EncryptedJWT(fingerprints=NAMES))
    user_id: Mapped[int]
    tenant: Mapped[int] = mapped_column()
    __table_args__ = (
        FingerprintIndex("ux_names", "user_id", "token", unique=True),
        FingerprintIndex("ux_columns", tenant, token, ("iss", "jti"), unique=True),
        FingerprintIndex("ux_mixed", "user_id", token, "jti", tenant),
        FingerprintIndex("ux_late", token, "user_id", fingerprint="jti"),
    )


FingerprintIndex("ux_attributes", Login.user_id, Login.token, unique=True)
FingerprintIndex("ux_name_and_attribute", "user_id", Login.token, "iss")
FingerprintIndex("ux_list", Login.token, Login.tenant, fingerprint=["iss", "jti"])

EXPECTED: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "ux_names": (["user_id", "token"], ("token",)),
    "ux_columns": (["tenant", "token"], ("iss", "jti")),
    "ux_mixed": (["user_id", "token", "tenant"], ("jti",)),
    "ux_late": (["token", "user_id"], ("jti",)),
    "ux_attributes": (["user_id", "token"], ("token",)),
    "ux_name_and_attribute": (["user_id", "token"], ("iss",)),
    "ux_list": (["token", "tenant"], ("iss", "jti")),
}


def test_parts_are_names_columns_and_attributes(engine: sa.Engine) -> None:
    table: Any = Login.__table__
    declared = {index.name: index for index in table.indexes}
    assert {
        name: ([column.name for column in one.columns], one.fingerprints) for name, one in declared.items()
    } == EXPECTED
    assert check_declarations(Base.metadata) == []
    Base.metadata.create_all(engine)
    copied = table.to_metadata(sa.MetaData())
    assert {one.name: len(one.expressions) for one in copied.indexes} == {
        name: len(one.expressions) for name, one in declared.items()
    }
    with engine.begin() as connection:
        for index in copied.indexes:
            index.drop(connection)
        assert {one["name"] for one in sa.inspect(connection).get_columns("logins")} == set(table.c.keys())
        for index in copied.indexes:
            index.create(connection)


def test_up_to_0_2_the_arguments_had_places() -> None:
    old = {"fingerprints": ["jti"]}
    table = table_of(expose_expiry=True, previous=[old], fingerprints=["jti"])
    index = FingerprintIndex("ux", table.c.token, "jti", True, old)
    assert (index.unique, index.fingerprints) == (True, ("jti",))
    assert [part.layout for part in index.expressions] == ["02"]  # type: ignore[union-attr]
    by_name = FingerprintIndex("ix", column=table.c.token, fingerprint="jti")
    assert by_name.fingerprints == ("jti",)


def test_a_column_waits_for_its_table_with_its_index() -> None:
    columns = [sa.Column("id", sa.Integer), sa.Column("token", EncryptedJWT(fingerprints=NAMES))]
    FingerprintIndex("ix", columns[1], "jti")
    FingerprintIndex("ix_both", columns[1], columns[0])
    table = sa.Table("sessions", sa.MetaData(), *columns)
    assert {one.name for one in table.indexes} == {"ix", "ix_both"}


@pytest.mark.parametrize(
    ("parts", "options", "match"),
    [
        (
            ["token", ("iss", "sub")],
            {},
            r"no fingerprint 'sub'.*fingerprints=\['token', 'iss', 'jti', 'sub'\]",
        ),
        (["token", ("iss", "iss")], {}, "different names"),
        (["token", ()], {}, "different names"),
        (["token", ("iss", 5)], {}, "different names"),
        (["user_id", ("iss", "jti"), "token"], {}, "ux: several fingerprints stand behind"),
        (["token", ("iss", "jti")], {"fingerprint": "jti"}, "ux: several fingerprints stand behind"),
        (
            ["user_id", "id"],
            {},
            "one column of type EncryptedJWT, and 0 of sessions.user_id, sessions.id are",
        ),
        (["token", "other"], {"fingerprint": "jti"}, "and 2 of sessions.token, sessions.other are"),
        (["token", "jti", "token"], {}, "ux: a column stands in an index once"),
        (["user_id", 5], {}, "mapped attribute"),
    ],
)
def test_parts_that_cannot_be_are_refused(parts: list[Any], options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        table_of(sa.Column("other", EncryptedJWT()), FingerprintIndex("ux", *parts, **options))


def test_a_column_that_the_table_lacks_is_sqlalchemys_to_name() -> None:
    with pytest.raises(sa.exc.ConstraintColumnNotFoundError, match="'user'"):
        table_of(FingerprintIndex("ux", "user", "token"))


def test_a_constraint_that_cannot_hold_names_the_index_that_does() -> None:
    with pytest.raises(
        ConfigurationError, match=r"FingerprintIndex\(name, 'user_id', 'token', 'token', unique"
    ):
        table_of(sa.UniqueConstraint("user_id", "token"))
    # What it says is taken.
    assert table_of(FingerprintIndex("ux", "user_id", "token", "token", unique=True)).indexes


def test_mariadb_keeps_an_index_that_a_foreign_key_needs(mariadb_database: Any) -> None:
    """It begins with the key's column, so the server made none of its own; another one lets it go."""
    engine = sa.create_engine(mariadb_database.url())
    metadata = sa.MetaData()
    sa.Table("users", metadata, sa.Column("id", sa.Integer, primary_key=True))
    table = sa.Table(
        "sessions",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.ForeignKey("users.id")),
        sa.Column("token", EncryptedJWT(fingerprints=NAMES)),
    )
    index = FingerprintIndex("ux", table.c.user_id, table.c.token, unique=True)
    metadata.create_all(engine)
    with engine.begin() as connection:
        # That of the key goes where another serves.
        connection.exec_driver_sql("DROP INDEX IF EXISTS user_id ON sessions")
        with pytest.raises(sa.exc.OperationalError, match=r"1025.*Foreign key"):
            index.drop(connection)
        assert "ux" in existing_indexes(connection, table)
        sa.Index("ix_user", table.c.user_id).create(connection)
        index.drop(connection)
    engine.dispose()
