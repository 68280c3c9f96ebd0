"""Findings about claims and expiries that an envelope cannot index, or indexes otherwise than the token says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from jwt_column import EncryptedJSON, EncryptedJWT
from tests.support.audited import AFTER, BEFORE, NOW, codes, envelope, examine, found, put, token
from tests.support.models import table_of
from tests.support.tokens import compact

if TYPE_CHECKING:
    from jwt_column.format.envelope import Storage

STORAGES: tuple[Storage, ...] = ("binary", "text")
EXP = int(NOW.timestamp()) + 3_600


@pytest.fixture
def engine() -> sa.Engine:
    return sa.create_engine("sqlite://", poolclass=sa.StaticPool)


def filled(engine: sa.Engine, type_: EncryptedJWT, *stored: bytes | str) -> sa.Table:
    table = table_of(type_)
    table.create(engine)
    with engine.begin() as connection:
        put(connection, table.c.token, list(stored))
    return table


@pytest.mark.parametrize(
    "exp",
    [
        "1900000000",  # PyJWT takes int(exp), so the token expires there and in no search
        None,
        EXP * 1_000,
        9_223_372_036_854_775,
        1e30,
        float("nan"),
        -1,
        [1],
    ],
)
def test_an_expiry_that_no_search_finds_is_named(engine: sa.Engine, exp: Any) -> None:
    """The token is stored all the same, beside one whose exp is right and at the end of the year 9999."""
    type_ = EncryptedJWT(AFTER, context="c", expose_expiry=True)
    column: Any = sa.Column(type_)
    wrong = compact({"alg": "RS256"}, {"iat": EXP, "exp": exp}, b"s")
    texts = [token(exp=EXP), token(exp=EXP + 0.5), token(exp=253_402_300_799), wrong]
    table = filled(engine, type_, *(envelope(column, text) for text in texts))
    finding = found(examine(engine, table), "exp-invalid")
    assert (finding.count, finding.primary_keys) == (1, ((4,),))


@pytest.mark.parametrize("value", [None, ["a", "b"], {"a": 1}, 1.5, True, "\ud800"])
def test_a_claim_that_cannot_be_fingerprinted_is_named(engine: sa.Engine, value: Any) -> None:
    """Not where the column does not index it, and not where the token lacks it."""
    wrong = compact({"alg": "RS256"}, {"exp": EXP, "sid": value}, b"s")
    for fingerprints, expected in ((["sid"], ["claim-not-indexed"]), (["token", "jti"], [])):
        type_ = EncryptedJWT(AFTER, context="c", fingerprints=fingerprints)
        column: Any = sa.Column(type_)
        own = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
        texts = [token(sid="text"), token(sid=5), token(), wrong]
        table = filled(own, type_, *(envelope(column, text) for text in texts))
        report = examine(own, table)
        assert codes(report, "fingerprint-unindexed") == expected
        if expected:
            assert found(report, "claim-not-indexed").primary_keys == ((4,),)


@pytest.mark.parametrize("storage", STORAGES)
def test_fields_that_another_release_worked_out_are_named(engine: sa.Engine, storage: Storage) -> None:
    """Another order of the fingerprints has the same layout, so that no row is stale."""
    now = EncryptedJWT(AFTER, context="c", storage=storage, fingerprints=["jti", "sub"], expose_expiry=True)
    then = EncryptedJWT(AFTER, context="c", storage=storage, fingerprints=["sub", "jti"], expose_expiry=True)
    fewer = EncryptedJWT(AFTER, context="c", storage=storage, fingerprints=["sub"])
    text = token(jti="1")
    opaque = compact({"alg": "dir", "enc": "A256GCM"}, b"", b"iv", b"text", b"tag")
    made: list[tuple[EncryptedJWT, str, Any]] = [
        (now, text, AFTER),
        (then, token(jti="2"), AFTER),
        (now, token(jti="3"), BEFORE),  # under an older key
        (fewer, token(jti="4"), AFTER),  # of another layout: stale, and not compared
        (now, opaque, AFTER),  # a JWE has no claims to compare with
    ]
    table = filled(engine, now, *(envelope(sa.Column(type_), made_of, ring) for type_, made_of, ring in made))
    finding = found(examine(engine, table), "index-differs")
    assert finding.primary_keys == ((2,),)
    # The remedy: under another key, the row is stale, and its new fields are those of the token.
    stored = envelope(sa.Column(then), token(jti="2"), BEFORE)
    fresh = now.cipher().resealer(AFTER)(stored)
    own = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    assert "index-differs" not in codes(examine(own, filled(own, now, fresh)))


@pytest.mark.parametrize("storage", STORAGES)
def test_rows_that_a_search_passes_over_are_named(engine: sa.Engine, storage: Storage) -> None:
    """Not only as stale: every session that is looked up by its token answers 401."""
    declared: dict[str, Any] = {"context": "c", "storage": storage}
    now = EncryptedJWT(AFTER, **declared, fingerprints=["token", "jti"], expose_expiry=True)
    bare = EncryptedJWT(AFTER, **declared)
    expiry = EncryptedJWT(AFTER, **declared, expose_expiry=True)
    types = [now, bare, expiry, now]
    rings = [AFTER, AFTER, AFTER, BEFORE]
    stored = (
        envelope(sa.Column(one), token(jti=f"{number}"), ring)
        for number, (one, ring) in enumerate(zip(types, rings, strict=True))
    )
    report = examine(engine, filled(engine, now, *stored))
    messages = {one.message: one.primary_keys for one in report.findings if one.code == "not-searchable"}
    assert messages == {
        "2 rows cannot be found by `token`, `jti`: re-encrypt them.": ((2,), (3,)),
        "1 row cannot be found by expiry: re-encrypt it.": ((2,),),
    }
    # Control: under another key alone, a row is stale and found.
    assert found(report, "stale").primary_keys == ((2,), (3,), (4,))


def test_the_members_of_a_json_object_are_examined_as_claims(engine: sa.Engine) -> None:
    """Its index fields are those of the whole object, and no finding without a fault."""
    declared = EncryptedJSON(AFTER, context="c", fingerprints=["access_token"], expose_expiry=True)
    table = table_of(declared)
    table.create(engine)
    good = {"access_token": "opaque", "expires_at": EXP + 0.5}
    wrong = {"access_token": ["opaque"], "expires_at": EXP * 1_000}
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"id": 1, "token": good}, {"id": 2, "token": {"x": 1}}])
        assert [code for code in codes(examine(engine, table)) if not code.endswith("unindexed")] == []
        connection.execute(table.insert(), [{"id": 3, "token": wrong}])
    report = examine(engine, table)
    for code in ("claim-not-indexed", "exp-invalid"):
        assert found(report, code).primary_keys == ((3,),)
    assert "index-differs" not in codes(report)


def test_values_of_the_other_type_are_named(engine: sa.Engine) -> None:
    """The advice of ``index-differs`` would take their fingerprints away."""
    options: dict[str, Any] = {"context": "c", "fingerprints": ["jti"]}
    documents, tokens = EncryptedJSON(AFTER, **options), EncryptedJWT(AFTER, **options)
    table = table_of(tokens)
    table.create(engine)
    with engine.begin() as connection:
        connection.execute(table.insert(), {"id": 1, "token": token(jti="a")})
        stored = documents.cipher().encrypt({"jti": "b", "id_token": token()}, AFTER)
        connection.execute(
            sa.text("INSERT INTO sessions (id, token) VALUES (2, :stored)"), {"stored": stored}
        )
    for type_, key in ((tokens, (2,)), (documents, (1,))):
        report = examine(engine, table_of(type_))
        assert found(report, "other-type").primary_keys == (key,)
        assert "index-differs" not in codes(report)
