"""A column whose layout changes: look-ups find the rows of every layout that its type names."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.orm import Session

from jwt_column import (
    ConfigurationError,
    EncryptedJSON,
    EncryptedJWT,
    ExpiryIndex,
    FingerprintIndex,
    KeyRing,
    UnsupportedComparisonError,
    audit,
    generate_key,
    purge_expired,
)
from jwt_column.column.spec import ColumnSpec
from tests.column.test_indexes import context_of, difference, plan, revision, run
from tests.support.models import mapped, table_of
from tests.support.tokens import compact, signed_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from jwt_column.format.envelope import Storage

OLD_KEY, NEW_KEY = generate_key(), generate_key()
OLD, BOTH = KeyRing([OLD_KEY]), KeyRing([NEW_KEY, OLD_KEY])
STORAGES: tuple[Storage, ...] = ("binary", "text")
WRONG: Any = 0
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)

#: Before, between and after: every one has the claim ``jti``, at another place.
BEFORE: dict[str, Any] = {"fingerprints": ["jti"]}
BETWEEN: dict[str, Any] = {"fingerprints": ["sub", "jti"]}
AFTER: dict[str, Any] = {"fingerprints": ["sub", "jti"], "expose_expiry": True}


def token(jti: str | None, sub: str = "alice", exp: int = int(NOW.timestamp())) -> str:
    claims: dict[str, Any] = {"jti": jti, "sub": sub, "exp": exp}
    return signed_token(**{name: value for name, value in claims.items() if value is not None})


def after(storage: Storage = "binary", **options: Any) -> EncryptedJWT:
    return EncryptedJWT(BOTH, storage=storage, **{**AFTER, "previous": [BEFORE, BETWEEN], **options})


def add(
    connection: sa.Connection, ring: KeyRing, layout: dict[str, Any], storage: Storage, **rows: Any
) -> None:
    table = table_of(EncryptedJWT(ring, storage=storage, **layout))
    connection.execute(table.insert(), [{"id": int(name[1:]), "token": row} for name, row in rows.items()])


def fill(connection: sa.Connection, storage: Storage) -> None:
    """Rows of each layout, with and without a jti, under two keys; row 9 without a token."""
    table_of(EncryptedJWT(BOTH, storage=storage)).create(connection)
    add(connection, OLD, BEFORE, storage, r1=token("a"), r2=token("b", "bob"), r3=token(None))
    add(connection, BOTH, BETWEEN, storage, r4=token("c"), r5=token(None))
    add(connection, BOTH, AFTER, storage, r6=token("d"), r7=token("e", "bob"), r8=token(None), r9=None)


# -- what the option takes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [BEFORE, EncryptedJWT(**BEFORE), EncryptedJSON(allow_opaque=True, **BEFORE), ColumnSpec(**BEFORE)],
)
def test_an_entry_is_a_type_or_its_options(entry: Any) -> None:
    type_ = EncryptedJWT(context="c", **AFTER, previous=[entry, entry, EncryptedJWT(**AFTER)])
    same = EncryptedJWT(context="c", **AFTER, previous=(BEFORE,))
    assert type_.previous == (ColumnSpec(**BEFORE),)
    assert type_.spec == same.spec
    assert repr(type_).endswith("expose_expiry=True, previous=[{'fingerprints': ['jti']}])")
    assert eval(repr(type_), {"EncryptedJWT": EncryptedJWT}).spec == type_.spec
    assert type_.in_context("d").previous == type_.previous
    assert EncryptedJWT(**AFTER).previous == ()


def test_an_entry_brings_those_of_its_own_along() -> None:
    first = EncryptedJWT(**BEFORE)
    second = EncryptedJWT(**BETWEEN, previous=[first])
    assert EncryptedJWT(**AFTER, previous=[second]).previous == (ColumnSpec(**BETWEEN), ColumnSpec(**BEFORE))


@pytest.mark.parametrize(
    ("previous", "match"),
    [
        ([BETWEEN, {"fingerprints": ["jti", "sub"]}], "cannot be told apart"),
        ([{"fingerprints": ["jti"], "expose_expiry": True}, {"fingerprints": ["sid"], "expose_expiry": True}],
         r"\['jti'\] and with \['sid'\]"),
        ([{"fingerprints": ["aud", "jti"], "expose_expiry": True}], "add the new fingerprint at the end"),
        ([{"fingerprints": ["jti"], "storage": "text"}], "leave storage out"),
        ([EncryptedJWT(fingerprints=["jti"], context="other")], "leave context out"),
        (BEFORE, "brackets"),
        (EncryptedJWT(**BEFORE), "brackets"),
        ("jti", "brackets"),
        (None, "brackets"),
        (["jti"], "lists layouts"),
        ([{"fingerprint": ["jti"]}], "lists layouts"),
        ([{"fingerprints": "jti"}], "list of names"),
    ],
)  # fmt: skip
def test_layouts_that_cannot_be_looked_for_are_refused(previous: Any, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        EncryptedJWT(**AFTER, previous=previous)


# -- look-ups --------------------------------------------------------------------------------------------------------

CONDITIONS: dict[str, tuple[Callable[[Any], Any], list[int], list[int]]] = {
    # name: the condition, the rows, and those that are left without previous=
    "eq before": (lambda one: one.claim("jti") == "a", [1], []),
    "eq between": (lambda one: one.claim("jti") == "c", [4], []),
    "eq after": (lambda one: one.claim("jti") == "d", [6], [6]),
    "in": (lambda one: one.claim("jti").in_(["a", "c", "e", None]), [1, 4, 7], [7]),
    "in nothing": (lambda one: one.claim("jti").in_([]), [], []),
    "ne": (lambda one: one.claim("jti") != "a", [2, 4, 6, 7], [6, 7]),
    "not in": (lambda one: ~one.claim("jti").in_(["a", "d"]), [2, 4, 7], [7]),
    "missing": (lambda one: one.claim("jti").is_(None), [3, 5, 8], [8]),
    "there": (lambda one: one.claim("jti").is_not(None), [1, 2, 4, 6, 7], [6, 7]),
    "a claim of two layouts": (lambda one: one.claim("sub") == "alice", [4, 5, 6, 8], [6, 8]),
    "its negation": (lambda one: one.claim("sub") != "alice", [7], [7]),
    "its absence": (lambda one: one.claim("sub").is_(None), [], []),
    "two claims": (lambda one: (one.claim("sub") == "alice") & (one.claim("jti") == "c"), [4], []),
    "expiry": (lambda one: one.expires_at <= NOW, [6, 7, 8], [6, 7, 8]),
}  # fmt: skip


@pytest.mark.parametrize("storage", STORAGES)
def test_rows_of_every_layout_are_found(engine: sa.Engine, storage: Storage) -> None:
    """The control is the same type without ``previous``, to which the older rows are strangers."""
    with engine.begin() as connection:
        fill(connection, storage)
        for type_, place in ((after(storage), 1), (after(storage, previous=()), 2)):
            table = table_of(type_)
            for source in (table, table.alias("other"), sa.select(table).subquery()):
                for name, condition in CONDITIONS.items():
                    found = sa.select(source.c.id).where(condition[0](source.c.token)).order_by(source.c.id)
                    assert connection.scalars(found).all() == condition[place], (name, place)


def test_old_processes_find_new_rows(engine: sa.Engine) -> None:
    """``previous`` names the layout to come, too: the release before the one that writes it."""
    with engine.begin() as connection:
        fill(connection, "binary")
        table = table_of(EncryptedJWT(BOTH, **BEFORE, previous=[AFTER]))
        found = sa.select(table.c.id).where(table.c.token.claim("jti").in_(["a", "d"]))
        assert sorted(connection.scalars(found)) == [1, 6]
        connection.execute(table.insert(), {"id": 10, "token": token("f")})
        stale = sa.select(table.c.id).where(table.c.token.is_stale).order_by(table.c.id)
        assert connection.scalars(stale).all() == [1, 2, 3, 4, 5, 6, 7, 8]
        # What the type itself does not store is not asked for: it would pass over today's rows.
        with pytest.raises(UnsupportedComparisonError, match="fingerprints="):
            table.c.token.claim("sub")
        with pytest.raises(UnsupportedComparisonError, match="expose_expiry"):
            table.c.token.expires_at  # noqa: B018


@pytest.mark.parametrize("storage", STORAGES)
def test_a_fingerprint_at_the_end_needs_no_previous(engine: sa.Engine, storage: Storage) -> None:
    """Rows are found by the other ones from either side; the control is one at the beginning, which moves them."""
    names_of = {"end": ["jti", "sub"], "beginning": ["sub", "jti"]}
    with engine.begin() as connection:
        table_of(EncryptedJWT(BOTH, storage=storage)).create(connection)
        add(connection, BOTH, BEFORE, storage, r1=token("a"))
        for place, from_before, from_after in (("end", [1, 2], [1, 2]), ("beginning", [1], [2])):
            new: dict[str, Any] = {"fingerprints": names_of[place]}
            add(connection, BOTH, new, storage, r2=token("a"))
            for layout, expected in ((BEFORE, from_before), (new, from_after)):
                table = table_of(EncryptedJWT(BOTH, storage=storage, **layout))
                rows = sa.select(table.c.id).where(table.c.token.claim("jti") == "a").order_by(table.c.id)
                assert connection.scalars(rows).all() == expected, place
            connection.execute(table.delete().where(table.c.id == 2))


def test_a_whole_token_and_a_document_are_found_in_older_layouts(memory: sa.Engine) -> None:
    for kind, value, other in (
        (EncryptedJWT, token("a"), token("b")),
        (EncryptedJSON, {"token": 1}, {"token": 2}),
    ):
        old: dict[str, Any] = {"fingerprints": ["token"]}
        table = table_of(kind(BOTH, fingerprints=["sub", "token"], previous=[old]))
        table.create(memory)
        with memory.begin() as connection:
            connection.execute(table_of(kind(OLD, **old)).insert(), {"id": 1, "token": value})
            connection.execute(table.insert(), {"id": 2, "token": other})
            for compared, is_equal in ((table.c.token == value, [1]), (table.c.token != value, [2])):
                assert connection.scalars(sa.select(table.c.id).where(compared)).all() == is_equal
        table.drop(memory)


def test_through_the_orm_and_one_statement_of_the_cache(engine: sa.Engine) -> None:
    previous: list[Any] = [EncryptedJWT(**BEFORE), EncryptedJWT(**BETWEEN)]
    login = mapped("sessions", token=EncryptedJWT(BOTH, **AFTER, previous=previous))
    with engine.begin() as connection:
        fill(connection, "binary")
    with Session(engine) as session:
        for jti, id_ in (("a", 1), ("c", 4), ("d", 6), ("a", 1)):
            found = session.scalars(sa.select(login).where(login.token.claim("jti") == jti)).one()
            assert (found.id, found.token) == (id_, token(jti))
        session.execute(sa.delete(login).where(login.token.claim("jti").in_(["a", "d"])))
        assert session.scalars(sa.select(login.id).order_by(login.id)).all() == [2, 3, 4, 5, 7, 8, 9]
    keys = set()
    every: tuple[list[Any], ...] = ([], [BEFORE], [BEFORE, BETWEEN])
    for older in every:
        column: Any = table_of(after(previous=older)).c.token
        key = sa.select(sa.literal(1)).where(column.claim("jti") == "a")._generate_cache_key()
        assert key is not None
        keys.add(key.key)
    assert len(keys) == 3


def test_purge_and_audit(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        fill(connection, "binary")
        codes = [
            [
                (one.code, one.count)
                for one in audit(connection, table_of(type_)).findings
                if "searchable" in one.code
            ]
            for type_ in (after(), after(previous=()))
        ]
        # Rows of the first layout have no `sub`, and those of the first two no expiry.
        assert sorted(codes[0]) == [("not-searchable", 3), ("not-searchable", 5)]
        assert sorted(codes[1]) == [("not-searchable", 5), ("not-searchable", 5)]
        newer = table_of(EncryptedJWT(BOTH, fingerprints=["sub"], expose_expiry=True, previous=[AFTER]))
        assert purge_expired(connection, newer.c.token, before=NOW + timedelta(hours=1)) == 3


# -- indexes ---------------------------------------------------------------------------------------------------------


def indexes(*, unique: bool) -> list[sa.Index]:
    return [
        FingerprintIndex("ix_after", "token", "jti", unique=unique),
        FingerprintIndex("ix_between", "token", "jti", unique=unique, layout=EncryptedJWT(**BETWEEN)),
        FingerprintIndex("ix_before", "token", "jti", unique=unique, layout=BEFORE),
        ExpiryIndex("ix_expiry", "token"),
    ]


@pytest.mark.each_server
@pytest.mark.parametrize("unique", [True, False])
@pytest.mark.parametrize("storage", STORAGES)
def test_each_layout_has_its_index(engine: sa.Engine, storage: Storage, unique: bool) -> None:
    table = table_of(after(storage), *indexes(unique=unique))
    with engine.begin() as connection:
        table.create(connection)
        for start, layout in ((0, BEFORE), (500, BETWEEN), (1000, AFTER)):
            rows = {
                f"r{n}": compact({"alg": "HS256"}, {"jti": f"{n}"}, b"s") for n in range(start, start + 500)
            }
            add(connection, BOTH, layout, storage, **rows)
        servers = connection.dialect.name in ("mysql", "mariadb")
        connection.exec_driver_sql("ANALYZE TABLE sessions" if servers else "ANALYZE").close()
        for source in (table, table.alias("other")):
            found = sa.select(source.c.id).where(source.c.token.claim("jti").in_(["3", "503", "1003"]))
            assert sorted(connection.scalars(found)) == [3, 503, 1003]
            shown = plan(connection, found)
            assert all(name in shown for name in ("ix_after", "ix_between", "ix_before")), shown
    assert difference(engine, table.metadata) == []


def test_a_unique_index_holds_one_layout(engine: sa.Engine) -> None:
    """The control: a unique index over every row takes expiry and half a fingerprint for the jti."""
    table = table_of(after(), *indexes(unique=True))
    table.create(engine)
    both_without = {"r1": token(None, "carol"), "r2": token(None, "carol")}
    with engine.begin() as connection:
        add(connection, BOTH, AFTER, "binary", **both_without)
        add(connection, BOTH, BEFORE, "binary", r3=token("a"), r4=token(None), r5=token(None))
        add(connection, BOTH, BETWEEN, "binary", r6=token("a"))
        add(connection, BOTH, AFTER, "binary", r7=token("a"))
    for layout in (BEFORE, BETWEEN, AFTER):
        with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
            add(connection, BOTH, layout, "binary", r8=token("a", "dave"))
    table.drop(engine)
    old = table_of(EncryptedJWT(BOTH, **BEFORE), FingerprintIndex("ix", "token", "jti", unique=True))
    old.create(engine)
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        add(connection, BOTH, AFTER, "binary", **both_without)


def test_autogenerate_writes_the_layout_and_notices_another_one(engine: sa.Engine) -> None:
    table = table_of(after(), *indexes(unique=True))
    table_of(after()).create(engine)
    upgrade, downgrade = revision(engine, table.metadata)
    assert (
        "'ix_before', 'sessions', 'token', fingerprint='jti', unique=True, layout={'fingerprints': ['jti']}"
        in upgrade
    )
    assert "'ix_after', 'sessions', 'token', fingerprint='jti', unique=True, type_=" in upgrade
    run(engine, upgrade)
    assert difference(engine, table.metadata) == []
    # Another layout with the same place: two older ones that begin with the jti.
    twins: dict[str, Any] = {"previous": [BEFORE, {"fingerprints": ["jti", "sub", "aud"]}]}
    first, second = (
        table_of(after(**twins), FingerprintIndex("ix_before", "token", "jti", unique=True, layout=layout))
        for layout in twins["previous"]
    )
    changed = [entry[::3] for entry in difference(engine, second.metadata) if entry[-1] == "ix_before"]
    assert changed == [("drop_jwt_index", "ix_before"), ("create_jwt_index", "ix_before")]
    assert not [entry for entry in difference(engine, first.metadata) if entry[-1] == "ix_before"]
    run(engine, downgrade)
    assert len(difference(engine, table.metadata)) == 4


def test_alembic_logs_nothing_where_nothing_changed(
    engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The control: a plain index that is missing is logged."""
    table = table_of(after(), *indexes(unique=True))
    table.create(engine)
    caplog.set_level(logging.INFO, "alembic")
    assert difference(engine, table.metadata) == []
    assert "Detected" not in caplog.text
    sa.Index("ix_id", table.c.id)
    assert [entry[0] for entry in difference(engine, table.metadata)] == ["add_index"]
    assert "Detected added index" in caplog.text
    assert "ix_id" in caplog.text


def test_the_filters_of_the_application_apply_to_our_indexes(engine: sa.Engine) -> None:
    table = table_of(after(), *indexes(unique=True))
    table_of(after()).create(engine)

    def filtered(item: Any, name: str | None, *_: Any) -> bool:
        return name != "ix_before"

    with engine.connect() as connection:
        options = {"target_metadata": table.metadata, "include_object": filtered}
        context = MigrationContext.configure(connection, opts=options)
        names = [entry[3] for entry in compare_metadata(context, table.metadata)]
        assert names == ["ix_after", "ix_between", "ix_expiry"]
        assert len(compare_metadata(context_of(connection, table.metadata), table.metadata)) == 4


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FingerprintIndex("ix", table_of(after()).c.token, "sub", layout=BEFORE), "no fingerprint 'sub'"),
        (lambda: FingerprintIndex("ix", table_of(after()).c.token, "jti", layout={}), "not among"),
        (lambda: FingerprintIndex("ix", table_of(after()).c.token, layout={"fingerprints": ["x"]}), "not among"),
        (lambda: FingerprintIndex("ix", table_of(after()).c.token, "jti", layout=WRONG), "lists layouts"),
    ],
)  # fmt: skip
def test_an_index_of_no_layout_is_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        make()
