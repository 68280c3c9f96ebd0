"""A run never drops a fingerprint or an expiry that rows have, on any path, unless it is told to."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from jwt_column import ConfigurationError, EncryptedJWT, ReencryptionError
from jwt_column.column.header_sql import HeaderSQL
from jwt_column.format import envelope
from migrations_helpers.engine.layouts import Allowed, holds_more
from tests.support.workload import Sessions, after, before, column_type, create_sessions, seal, token

RICH: dict[str, Any] = {"fingerprints": ["token", "jti"], "expose_expiry": True}
KEPT = r"type_=EncryptedJWT\(context='sessions\.token', fingerprints=\['token', 'jti'\], expose_expiry=True\)"


def layouts(sessions: Sessions, engine: sa.Engine) -> set[Any]:
    return {tuple(envelope.parse(stored).layout) for stored in sessions.stored(engine).values()}


@pytest.mark.parametrize("storage", ["binary", "text"])
@pytest.mark.parametrize(
    ("given", "lost"),
    [
        ({}, "the fingerprint 'token' and the fingerprint 'jti' and a readable expiry"),
        ({"fingerprints": ["jti"], "expose_expiry": True}, "the fingerprint 'token'"),
        ({"fingerprints": ["jti", "token"]}, "a readable expiry"),
        # As many as the rows have, so that the header does not tell.
        ({"fingerprints": ["jti", "sub"], "expose_expiry": True}, "the fingerprint 'token'"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_type_that_makes_less_than_rows_have_is_refused(
    given: dict[str, Any], lost: str, storage: str, dry_run: bool, memory: sa.Engine
) -> None:
    sessions = create_sessions(memory, 30, storage=storage, **RICH)
    before_run = sessions.stored(memory)
    type_ = column_type(storage=storage, **given)
    with pytest.raises(ConfigurationError, match=f"rows have {lost}, which type_ does not make") as refused:
        sessions.reencrypt(memory, type_=type_, dry_run=dry_run, nice=0)
    assert "Nothing was done" in str(refused.value)
    assert sessions.stored(memory) == before_run


def test_the_refusal_renders_the_type_that_keeps_them(memory: sa.Engine) -> None:
    sessions = create_sessions(memory, 3, **RICH)
    with pytest.raises(ConfigurationError, match=KEPT):
        sessions.reencrypt(memory, type_=column_type(), nice=0)


def test_fields_go_that_are_named(memory: sa.Engine) -> None:
    """The control: what the refusal is about is done when it is asked for, and only then."""
    sessions = create_sessions(memory, 30, **RICH)
    type_ = column_type(fingerprints=["jti"])
    with pytest.raises(ConfigurationError, match="a readable expiry"):
        sessions.reencrypt(memory, type_=type_, drop=["token"], nice=0)
    sessions.reencrypt(memory, type_=type_, drop=["token", "expiry"], nice=0)
    assert layouts(sessions, memory) == {(False, 1)}


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("token", r"drop is a list of names; write \['token'\]"),
        (["jti"], "drop names 'jti', and the column's type"),
        (["token", None], "drop are different names, each a fingerprint such as 'jti', or 'expiry'"),
        (5, "drop are different names"),
    ],
)
def test_drop_is_a_list_of_fields_that_go(drop: Any, message: str, memory: sa.Engine) -> None:
    sessions = create_sessions(memory, 1, **RICH)
    with pytest.raises(ConfigurationError, match=message):
        sessions.reencrypt(memory, type_=column_type(fingerprints=["jti"]), drop=drop, nice=0)


@pytest.mark.parametrize(("drop", "named"), [(["token", "expriy"], ["'expriy'"]), (["token"], [])])
def test_a_name_in_drop_that_no_row_has_is_warned_of(
    drop: list[str], named: list[str], memory: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = create_sessions(memory, 3, fingerprints=["token", "jti"])
    sessions.reencrypt(memory, type_=column_type(fingerprints=["jti"]), drop=drop, nice=0)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    expected = [
        f"sessions.token: drop names {one}, which none of the first rows has; is it misspelt?"
        for one in named
    ]
    assert warnings == expected
    # The control: the same again, as by a migration that was stopped, has nothing to drop and says nothing.
    caplog.clear()
    sessions.reencrypt(memory, type_=column_type(fingerprints=["jti"]), drop=drop, nice=0)
    assert caplog.records == []


@pytest.mark.parametrize("storage", ["binary", "text"])
def test_a_layout_is_protected_if_and_only_if_it_holds_more(storage: Any, memory: sa.Engine) -> None:
    column = sa.Column("value", EncryptedJWT(context="c", storage=storage).impl_instance)
    table = sa.Table("headers", sa.MetaData(), column)
    table.create(memory)
    # Reserved layouts, and values of another version, are no envelopes that anything could be lost of.
    headers = [bytes([version, 0, 0, 0, 0, byte]) for version in (1, 2) for byte in range(256)]
    with memory.begin() as connection:
        stored = [f"jc{header.hex()}." if storage == "text" else header for header in headers]
        connection.execute(table.insert(), [{"value": value} for value in stored])
        for count, expose_expiry in itertools.product(range(envelope.MAX_FINGERPRINTS + 1), (False, True)):
            names = [f"claim {number}" for number in range(count)]
            type_ = EncryptedJWT(
                context="c", storage=storage, fingerprints=names, expose_expiry=expose_expiry
            )
            more = {byte for byte in range(16) if byte >> 1 > count or (byte & 1 and not expose_expiry)}
            condition = holds_more(HeaderSQL(column, type_), Allowed(type_))
            if condition is None:
                assert (count, expose_expiry, more) == (envelope.MAX_FINGERPRINTS, True, set())
                continue
            found = connection.scalars(sa.select(column).where(condition)).all()
            assert set(found) == {stored[byte] for byte in more}


def test_a_type_that_makes_more_is_no_loss(memory: sa.Engine) -> None:
    sessions = create_sessions(memory, 30)
    assert sessions.reencrypt(memory, type_=column_type(**RICH), nice=0).reencrypted == 30
    assert layouts(sessions, memory) == {(True, 2)}


def test_rows_whose_key_is_lost_are_protected_without_a_name(memory: sa.Engine) -> None:
    sessions = create_sessions(memory, 3, **RICH)
    from jwt_column import KeyRing, generate_key

    lost = KeyRing([generate_key()])
    for number in (1, 2, 3):
        sessions.put(memory, (number,), seal(token(number), lost, **RICH))
    with pytest.raises(ConfigurationError, match="rows have 2 fingerprints and not 0 and a readable expiry"):
        sessions.reencrypt(memory, type_=column_type(), nice=0)


def test_rows_that_another_release_writes_meanwhile_keep_their_fields(memory: sa.Engine) -> None:
    """The run began with the old type; the application's next release writes under the new one."""
    sessions = create_sessions(memory, 300)
    written = False

    def write(report: Any) -> None:
        nonlocal written
        if report.reencrypted and not written:
            written = True
            sessions.put(memory, (300,), seal(token(300), after(), **RICH))

    with pytest.raises(
        ReencryptionError, match="1 row was written during the run with fingerprints"
    ) as failure:
        sessions.reencrypt(
            memory, type_=column_type(), progress=write, batch_size=50, batch_seconds=9, nice=0
        )
    report: Any = failure.value.report
    assert (report.reencrypted, report.remaining, report.passes) == (299, 1, 1)
    assert layouts(sessions, memory) == {(False, 0), (True, 2)}


def operate(engine: sa.Engine, name: str, **options: Any) -> Any:
    with engine.connect() as connection, Operations.context(MigrationContext.configure(connection)) as op:
        return getattr(op, name)("sessions", "token", **options)


def test_the_operation_and_the_gate_refuse_and_render_the_type(memory: sa.Engine) -> None:
    sessions = create_sessions(memory, 30, **RICH)
    with pytest.raises(ConfigurationError, match=KEPT):
        operate(memory, "reencrypt_jwt_column", type_=column_type())
    with pytest.raises(ReencryptionError, match=KEPT):
        operate(memory, "ensure_jwt_column_current", type_=column_type())
    assert layouts(sessions, memory) == {(True, 2)}
    operate(memory, "reencrypt_jwt_column", type_=column_type(), drop=["token", "jti", "expiry"])
    assert layouts(sessions, memory) == {(False, 0)}


def test_the_hint_of_the_gate_can_be_copied(memory: sa.Engine) -> None:
    sessions = create_sessions(memory, 3, **RICH)
    with pytest.raises(ReencryptionError, match=rf'op.reencrypt_jwt_column\("sessions", "token", {KEPT}\)'):
        operate(memory, "ensure_jwt_column_current", type_=column_type(**RICH))
    assert sessions.census(memory) == {(before().active, "stale"): 3}
