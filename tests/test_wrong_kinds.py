"""Every option of every public function, given values of a wrong kind: the answer names the option.

A call with right values stands first as the control. Each wrong value takes the place of one of them.
"""

from __future__ import annotations

import math
import re
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import migrations_helpers
from jwt_column import (
    JWT,
    AuditReport,
    ConfigurationError,
    EncryptedJSON,
    EncryptedJWT,
    ExpiryIndex,
    FingerprintIndex,
    JWTColumnError,
    KeyRing,
    Severity,
    StaleIndex,
    audit,
    check_declarations,
    check_ready,
    decrypt_token,
    encrypt_token,
    find_plaintext_tokens,
    generate_key,
    key_usage,
    preflight,
    purge_expired,
    redact_errors,
    set_default_keyring,
)
from jwt_column.access_trail import logging_sink, opentelemetry_sink, set_access_sink
from jwt_column.auditing.html import render_html
from jwt_column.auditing.prometheus import to_prometheus
from jwt_column.auditing.sarif import to_sarif
from jwt_column.fleet import Fleet, fleet_table
from jwt_column.metrics import observe_keyring
from jwt_column.testing import assert_encrypted, throwaway_keyring
from migrations_helpers import FernetReader, JWEReader, SQLAlchemyUtilsReader
from tests.support.tokens import signed_token, verification_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

RING: Final = KeyRing([bytes(range(32))])
TYPE: Final = EncryptedJWT(RING, fingerprints=["jti"], expose_expiry=True, context="sessions.token")
TOKEN: Final = signed_token(sub="me", jti="1")
STORED: Final = encrypt_token(TOKEN, RING, context="sessions.token")
ENV: Final = "env:A_KEY_OF_THIS_TEST"


class Base(DeclarativeBase):
    """The application's models."""


class Login(Base):
    """A row with a token."""

    __tablename__ = "sessions"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[str | None] = mapped_column(TYPE)


class _Unlike:
    """A value of no kind that an option takes."""


# Wrong values by the kind of the option. A text among them is not to be shown: it may be a secret in a wrong place.
SECRET: Final = "eyJsecret"
# The words of a message about a target without an encrypted column.
TARGET: Final = "no column of type EncryptedJWT|the list is empty"
ANY: Final[tuple[Any, ...]] = (_Unlike(), sa.text(SECRET), sa.column(SECRET))
TEXT: Final[tuple[Any, ...]] = (5, 1.5, b"eyJsecret", [SECRET], "", *ANY)
NAMES: Final[tuple[Any, ...]] = (SECRET, 5, [5], [""], [SECRET, SECRET], *ANY)
KEYS: Final[tuple[Any, ...]] = (SECRET, b"eyJsecret", 5, [5], *ANY)
NUMBER: Final[tuple[Any, ...]] = (SECRET, True, [5], math.nan, -1, 1j, *ANY)
FLAG: Final[tuple[Any, ...]] = ("no", "", 5, [], *ANY)
CHOICE: Final[tuple[Any, ...]] = (SECRET, 5, [SECRET], {}, *ANY)
FUNCTION: Final[tuple[Any, ...]] = (SECRET, 5, [], *ANY)
BIND: Final[tuple[Any, ...]] = ("sqlite://", 5, None, [], *ANY)
COLUMN: Final[tuple[Any, ...]] = ("sessions.token", 5, None, [], sa.Column("token", sa.Text), *ANY)
MODEL_TYPE: Final[tuple[Any, ...]] = ("jwt", 5, EncryptedJWT, sa.Text(), *ANY)
RINGS: Final[tuple[Any, ...]] = (5, [SECRET], b"eyJsecret", *ANY)
TIME: Final[tuple[Any, ...]] = (SECRET, 5, [], datetime(2026, 1, 1), timedelta(1), *ANY)
SPAN: Final[tuple[Any, ...]] = (SECRET, 5, -timedelta(1), datetime.now(UTC), *ANY)


# Options of names, which a message may repeat.
NAMED: Final = ("column", "drop", "key_columns", "preserve", "fingerprints", "bound_to", "schemas")


class Call(NamedTuple):
    """A function, arguments that it takes, and wrong ones by option; a message may name an option in other words."""

    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    wrong: Mapping[str, Sequence[Any]]
    words: Mapping[str, str] = {}


def run_options(extra: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Return the options of a run."""
    numbers = (
        "batch_size batch_seconds nice shards lock_timeout wait max_retries max_passes max_latency "
        "max_replica_lag"
    )
    return {
        **dict.fromkeys(numbers.split(), NUMBER),
        **dict.fromkeys(("dry_run", "vacuum", "recompute"), FLAG),
        **dict.fromkeys(("verify", "on_row_error", "strategy"), CHOICE),
        **dict.fromkeys(("is_paused", "progress", "make_engine"), FUNCTION),
        "throttle": (SECRET, 5, [], _Unlike(), sa.column(SECRET)),
        **dict.fromkeys(("key_columns", "preserve", "drop", "replicas"), NAMES),
        "executor": (SECRET, 5, [], ThreadPoolExecutor, *ANY),
        "expired": CHOICE,
        "schemas": (SECRET, 5, [5], [""], _Unlike(), sa.column(SECRET)),
        "until": (SECRET, 5, [], timedelta(1), *ANY),
        "window": (SECRET, 5, [], ["22:00"], *ANY),
        "type_": MODEL_TYPE,
        "schema": TEXT,
        "table": TEXT,
        "column": TEXT,
        **extra,
    }


def calls(engine: sa.Engine, operations: Operations) -> Iterator[Call]:
    named = {"table": "sessions", "column": "token", "type_": TYPE}
    of_run = run_options({})
    yield Call(migrations_helpers.reencrypt, {"bind": engine, **named}, of_run | {"bind": BIND})
    of_operation = run_options({})
    of_other = {
        name: wrong for name, wrong in of_operation.items() if name not in ("expired", "drop", "recompute")
    }
    yield Call(operations.reencrypt_jwt_column, named, of_operation)  # type: ignore[attr-defined]
    yield Call(operations.encrypt_jwt_column, named, of_other | {"decrypt_with": FUNCTION})  # type: ignore[attr-defined]
    yield Call(
        operations.ensure_jwt_column_current,  # type: ignore[attr-defined]
        named,
        {"table": TEXT, "column": TEXT, "type_": MODEL_TYPE, "schema": TEXT, "schemas": of_run["schemas"]},
    )
    yield Call(
        operations.create_jwt_index,  # type: ignore[attr-defined]
        {"index": "one", **named, "fingerprint": "jti"},
        {
            **dict.fromkeys(("index", "table", "column", "schema"), TEXT),
            "kind": CHOICE,
            "type_": MODEL_TYPE,
            **dict.fromkeys(("unique", "postgresql_concurrently"), FLAG),
            "fingerprint": (5, [5], [], "", *ANY),
            "columns": (SECRET, 5, [5], [], *ANY),
            "layout": (SECRET, 5, [], *ANY),
        },
    )
    yield Call(
        operations.drop_jwt_index,  # type: ignore[attr-defined]
        {"index": "one", **named, "fingerprint": "jti"},
        {"index": TEXT, "table": TEXT, "column": TEXT, "type_": MODEL_TYPE},
    )
    yield Call(operations.create_jwt_fleet_table, {}, {"table": TEXT, "schema": TEXT})  # type: ignore[attr-defined]
    yield Call(operations.drop_jwt_fleet_table, {}, {"table": TEXT, "schema": TEXT})  # type: ignore[attr-defined]
    of_type = {
        "keyring": RINGS,
        "context": TEXT,
        **dict.fromkeys(("storage", "plaintext", "undecryptable"), CHOICE),
        **dict.fromkeys(("fingerprints", "bound_to"), NAMES),
        **dict.fromkeys(("expose_expiry", "allow_opaque", "allow_unsigned"), FLAG),
        "max_length": NUMBER,
        "previous": (SECRET, 5, [5], {}, [{"nothing": 1}], *ANY),
    }
    yield Call(EncryptedJWT, {}, of_type, {"keyring": "key ?ring"})
    yield Call(EncryptedJSON, {}, of_type, {"keyring": "key ?ring"})
    yield Call(
        KeyRing,
        {"keys": [generate_key()]},
        {"keys": (*KEYS, [SECRET], []), "active": TEXT},
        {"keys": "key", "active": "key id|active"},
    )
    yield Call(
        KeyRing.from_uri,
        {"uri": ENV},
        {"uri": TEXT, "refresh": (*NUMBER, 0), "keks": KEYS, "wait": NUMBER, "report_to": FUNCTION},
        {"uri": "URI", "keks": "KEK"},
    )
    yield Call(RING.with_active, {"key_id": RING.active}, {"key_id": TEXT}, {"key_id": "key id"})
    yield Call(RING.with_key, {"key": generate_key()}, {"key": (5, SECRET, None, [], *ANY)})
    yield Call(set_default_keyring, {"ring": None}, {"ring": (*RINGS, SECRET)})
    yield Call(
        encrypt_token,
        {"token": TOKEN, "ring": RING, "context": "a.b"},
        {
            "token": (5, b"eyJsecret", None, [SECRET], *ANY),
            "ring": (SECRET, None, *RINGS),
            "context": TEXT,
            "fingerprints": NAMES,
            "storage": CHOICE,
            **dict.fromkeys(("expose_expiry", "allow_opaque", "allow_unsigned"), FLAG),
        },
        {"token": "this value"},
    )
    yield Call(
        decrypt_token,
        {"stored": STORED, "ring": RING, "context": "sessions.token"},
        {"stored": (5, None, [SECRET], *ANY), "ring": (SECRET, None, *RINGS), "context": TEXT},
        {"stored": "envelope"},
    )
    yield Call(
        audit,
        {"bind": engine, "target": Login.token, "deep": True},
        {
            "bind": BIND,
            "target": COLUMN,
            "deep": FLAG,
            "active": (5, "", [5], b"eyJsecret", SECRET, [SECRET], *ANY),
            "retired": (5, [5], SECRET, [SECRET], *ANY),
            **dict.fromkeys(
                ("allowed_algorithms", "compromised_kids", "try_contexts"), (SECRET, 5, [5], *ANY)
            ),
            "max_lifetime": SPAN,
            "sample": NUMBER,
            "operator": TEXT,
            "progress": FUNCTION,
        },
        {"target": TARGET, "try_contexts": "context", "active": "active|key id", "retired": "retired|key id"},
    )
    yield Call(
        find_plaintext_tokens,
        {"bind": engine},
        {"bind": BIND, "schema": TEXT, "sample": NUMBER, "progress": FUNCTION},
    )
    yield Call(
        purge_expired,
        {"session": engine, "column": Login.token},
        {
            "session": BIND,
            "column": COLUMN,
            "before": [one for one in TIME if not isinstance(one, datetime)],
            "where": (SECRET, 5, [], _Unlike()),
            "action": CHOICE,
            "progress": FUNCTION,
        },
        {"session": "Session"},
    )
    yield Call(
        key_usage,
        {"column": Login.token},
        {"column": COLUMN, "active": (5, [5], "", [], SECRET, *ANY)},
        {"active": "active|key id"},
    )
    for check, bind, target in ((preflight, "bind", "target"), (check_ready, "engine", "metadata")):
        given = {bind: engine, target: Login.token}
        yield Call(check, given, {bind: BIND, target: COLUMN}, {target: TARGET})
    yield Call(
        check_declarations,
        {"metadata": Base.metadata},
        {"metadata": (SECRET, 5, None, [], *ANY)},
        {"metadata": "MetaData"},
    )
    yield Call(
        RING.is_ready,
        {"engine": engine, "columns": [Login.token]},
        {"engine": BIND, "columns": (*(one for one in COLUMN if one != []), ["sessions"])},
        {"columns": "column"},
    )
    yield Call(redact_errors, {"engine": engine}, {"engine": BIND})
    yield Call(
        JWT.opaque,
        {"text": "opaque"},
        {
            "text": (5, b"eyJsecret", None, [], *ANY),
            "expires_at": (SECRET, [], datetime(2026, 1, 1), math.nan, True, *ANY),
        },
        {"text": "token", "expires_at": "expires_at|expiry"},
    )
    yield Call(
        JWT(TOKEN).verify,
        {"key": verification_key("HS256"), "algorithms": ["HS256"]},
        {"algorithms": ("HS256", 5, None, [], {}, [5], [None], ["none"], ["HS256", "None"], b"HS256", *ANY)},
    )
    yield Call(JWT(TOKEN).is_expired, {}, {"at": TIME, "leeway": (SECRET, True, [], math.nan, *ANY)})
    for kind in (FingerprintIndex, ExpiryIndex, StaleIndex):
        of_index = {"fingerprint": (5, [5], [], "", *ANY), "unique": FLAG, "layout": (SECRET, 5, [], *ANY)}
        yield Call(
            kind,
            {"name": "one", "column": column_of_a_table()}
            | ({"fingerprint": "jti"} if kind is FingerprintIndex else {}),
            {"column": (5, None, [], _Unlike(), sa.text(SECRET))}
            | (of_index if kind is FingerprintIndex else {}),
            {"layout": "layout|previous"},
        )
    yield Call(
        Fleet, {"engine": engine}, {"engine": BIND, "table": TEXT, "schema": TEXT}, {"engine": "Engine"}
    )
    yield Call(
        fleet_table,
        {"metadata": sa.MetaData()},
        {"metadata": (SECRET, 5, None, *ANY), "name": TEXT, "schema": TEXT},
    )
    yield Call(
        assert_encrypted,
        {"bind": engine, "column": Login.token, "at_least": 0},
        {"bind": BIND, "column": COLUMN, "at_least": NUMBER},
    )
    yield Call(Login.token.claim, {"name": "jti"}, {"name": TEXT})
    yield Call(Fleet(engine, table="processes").processes, {"ring": RING}, {"ring": (SECRET, None, *RINGS)})
    yield Call(set_access_sink, {"sink": None}, {"sink": FUNCTION})
    yield Call(logging_sink, {}, {"logger": (SECRET, 5, *ANY), "level": (SECRET, [], *ANY)})
    yield Call(
        observe_keyring, {"ring": RING}, {"ring": (SECRET, None, *RINGS), "name": TEXT}, {"ring": "KeyRing"}
    )
    yield Call(lambda keys: throwaway_keyring(keys).__enter__(), {"keys": 1}, {"keys": (*NUMBER, 0)})
    yield Call(opentelemetry_sink, {}, {"meter_provider": (SECRET, 5, *ANY)})
    for reader, more in (
        (FernetReader, {}),
        (JWEReader, {"other_jwe": CHOICE}),
        (SQLAlchemyUtilsReader, {"engine": CHOICE, "padding": CHOICE}),
    ):
        yield Call(reader, {"key_from": ENV}, {"key_from": TEXT, "plaintext": CHOICE, **more})
    report = audit(engine, Login.token, deep=True)
    yield Call(report.findings_from, {"severity": "info"}, {"severity": CHOICE})
    yield Call(report.raise_for_findings, {"severity": Severity.CRITICAL}, {"severity": CHOICE})
    no_reports = (SECRET, 5, b"eyJsecret", {}, [], [5], *ANY)
    yield Call(render_html, {"report": report}, {"report": no_reports, "baseline": no_reports})
    for function in (to_sarif, to_prometheus):
        yield Call(function, {"reports": [report]}, {"reports": (None, *no_reports)})
    yield Call(
        AuditReport.from_dict,
        {"content": report.to_dict()},
        {"content": (None, SECRET, 5, b"eyJsecret", [], {}, [5], math.nan, {"format": 1}, *ANY)},
        {"content": "this is no report of an audit"},
    )
    # Last, because the rows are in the clear afterwards.
    yield Call(operations.decrypt_jwt_column, named, of_other)  # type: ignore[attr-defined]


def column_of_a_table() -> sa.Column[Any]:
    column: sa.Column[Any] = sa.Column("token", TYPE)
    sa.Table("sessions", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), column)
    return column


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    monkeypatch.setenv("A_KEY_OF_THIS_TEST", generate_key())
    made = sa.create_engine(f"sqlite:///{tmp_path / 'one.sqlite3'}")
    Base.metadata.create_all(made)
    fleet_table(sa.MetaData(), name="processes").create(made)
    with made.begin() as connection:
        connection.execute(sa.insert(Login), [{"token": signed_token(sub=str(row))} for row in range(3)])
    yield made
    made.dispose()


def complaint(call: Call, name: str, value: Any) -> str | None:
    """Return what is wrong with the answer to a value; None if nothing is."""
    try:
        call.function(**{**call.arguments, name: value})
    except JWTColumnError as error:
        said = str(error)
        if not re.search(call.words.get(name, name), said):
            return f"not named: {said}"
        return f"shown: {said}" if SECRET in said and name not in NAMED else None
    except Exception as error:  # noqa: BLE001 - whatever comes
        return f"{type(error).__name__}: {error}"
    return "taken"


def test_a_value_of_a_wrong_kind_names_its_option(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        operations = Operations(
            MigrationContext.configure(connection, opts={"transaction_per_migration": True})
        )
        connection.rollback()
        complaints = []
        for call in calls(engine, operations):
            try:
                call.function(**call.arguments)  # The control.
            except Exception as error:  # noqa: BLE001
                complaints.append(f"CONTROL {call.function} {error!r}")
                continue
            for name, wrong in call.wrong.items():
                for value in wrong:
                    said = complaint(call, name, value)
                    if said is not None:
                        complaints.append(f"{call.function.__qualname__}({name}={value!r}): {said[:200]}")
                    connection.rollback()
    assert not complaints, "\n".join(complaints)


def paths_in(content: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value of a JSON document but itself."""
    for place, value in (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    ):
        yield (*path, place)
        yield from paths_in(value, *path, place)


def test_a_report_with_a_value_of_a_wrong_kind_is_read_by_none(engine: sa.Engine) -> None:
    """Or it is a value that the report may have; then everything that renders a report takes it."""
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO sessions VALUES (9, 'plain')")
    report = audit(engine, Login.token, deep=True)
    content = report.to_dict()
    assert len(content["findings"]) > 0
    assert AuditReport.from_dict(content) == report
    refused = 0
    for *way, last in paths_in(content):
        for value in (5, 0.5, None, SECRET, [5], {}, {"a": 5}, object(), sa.column(SECRET), _Unlike()):
            changed = deepcopy(content)
            owner: Any = changed
            for place in way:
                owner = owner[place]
            owner[last] = value
            try:
                taken = AuditReport.from_dict(changed)
            except ConfigurationError as error:
                refused += SECRET not in str(error)
            else:
                render_html(taken)
                render_html(report, baseline=taken)
                to_sarif([taken])
                to_prometheus([taken])
    assert refused > 100
