"""The report of an audit as data: JSON and back, what is ok, and the error of a gate."""

from __future__ import annotations

import dataclasses
import json
import pickle
import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from jwt_column import AuditError, AuditReport, ConfigurationError, Finding, ScanReport, Severity
from jwt_column.auditing import ColumnAudit, ExpiryCount, KeyCount
from jwt_column.auditing.kinds import KINDS
from jwt_column.scanning import FailedTable, FoundTokens
from tests.docs.test_docs import names_in, section_of, table_of
from tests.support.docs_examples import ROOT

CREATED = datetime(2026, 3, 1, 12, tzinfo=UTC)


def finding(code: str, *, count: int = 0, keys: tuple[tuple[Any, ...], ...] = ()) -> Finding:
    return KINDS[code].found("sessions.token", "Something was found.", count, keys)


def report(*findings: Finding) -> AuditReport:
    column = ColumnAudit(
        column="sessions.token",
        context="c",
        configuration={"storage": "binary"},
        rows=5,
        nulls=1,
        keys=(KeyCount("5f0c7a91", "current", 3), KeyCount(None, "plaintext", 1)),
        expired=1,
        expiry=(ExpiryCount(date(2026, 3, 1), 4),),
        examined=4,
        active_key="5f0c7a91",
    )
    return AuditReport(
        created=CREATED,
        database="sqlite:///app.sqlite3",
        deep=True,
        active_key="5f0c7a91",
        seconds=0.5,
        columns=(column,),
        findings=findings,
        options={"sample": "5 rows of each column"},
        server={"host": "10.0.0.7:5432", "name": "app", "version": "PostgreSQL 15.3"},
        operator="nightly",
        versions={"jwt-column": "0.2.0"},
    )


FULL = report(finding("plaintext", count=1, keys=((1, "a"),)), finding("stale", count=2), finding("expired"))


def test_a_report_is_ok_without_warnings() -> None:
    assert report().ok
    assert report(finding("expired", count=5), finding("context-default")).ok
    assert not report(finding("expired"), finding("stale")).ok
    assert not report(finding("plaintext")).ok


def test_severities_have_an_order() -> None:
    assert [severity.rank for severity in (Severity.INFO, Severity.WARNING, Severity.CRITICAL)] == [0, 1, 2]
    assert [one.code for one in FULL.findings_from(Severity.INFO)] == ["plaintext", "stale", "expired"]
    assert [one.code for one in FULL.findings_from(Severity.WARNING)] == ["plaintext", "stale"]
    assert [one.code for one in FULL.findings_from(Severity.CRITICAL)] == ["plaintext"]


def test_a_gate_raises_with_the_report() -> None:
    with pytest.raises(AuditError) as caught:
        FULL.raise_for_findings()
    assert caught.value.report is FULL
    assert str(caught.value) == (
        "the audit of sqlite:///app.sqlite3 is not ok: sessions.token: plaintext (1 row); "
        "sessions.token: stale (2 rows)"
    )
    report(finding("expired")).raise_for_findings()
    with pytest.raises(AuditError, match="expired"):
        report(finding("expired")).raise_for_findings(Severity.INFO)
    report(finding("stale")).raise_for_findings(Severity.CRITICAL)
    report(finding("stale")).raise_for_findings("critical")  # type: ignore[arg-type]


def test_the_json_form_is_stable() -> None:
    """A known answer: programs read this."""
    assert FULL.to_dict() == {
        "format": 1,
        "ok": False,
        "created": "2026-03-01T12:00:00+00:00",
        "database": "sqlite:///app.sqlite3",
        "deep": True,
        "active_key": "5f0c7a91",
        "seconds": 0.5,
        "columns": [
            {
                "column": "sessions.token",
                "context": "c",
                "configuration": {"storage": "binary"},
                "rows": 5,
                "nulls": 1,
                "keys": [
                    {"key_id": "5f0c7a91", "state": "current", "rows": 3},
                    {"key_id": None, "state": "plaintext", "rows": 1},
                ],
                "expired": 1,
                "expiry": [{"day": "2026-03-01", "rows": 4}],
                "examined": 4,
                "active_key": "5f0c7a91",
            }
        ],
        "findings": [
            {
                "code": "plaintext",
                "severity": "critical",
                "column": "sessions.token",
                "message": "Something was found.",
                "count": 1,
                "primary_keys": [[1, "a"]],
                "action": "Encrypt them: jwt-column encrypt, or op.encrypt_jwt_column().",
            },
            *FULL.to_dict()["findings"][1:],
        ],
        "options": {"sample": "5 rows of each column"},
        "server": {"host": "10.0.0.7:5432", "name": "app", "version": "PostgreSQL 15.3"},
        "operator": "nightly",
        "versions": {"jwt-column": "0.2.0"},
    }


def test_a_report_comes_back_from_json() -> None:
    assert AuditReport.from_dict(json.loads(FULL.to_json())) == FULL
    assert pickle.loads(pickle.dumps(FULL)) == FULL


def test_values_of_primary_keys_become_json() -> None:
    values = (
        1,
        "a",
        None,
        b"\x01\xff",
        uuid.UUID(int=1),
        Decimal("1.50"),
        date(2026, 1, 2),
        datetime(2026, 1, 2, 3),
        datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=2))),
    )
    found = report(finding("stale", keys=(values,))).to_dict()["findings"][0]["primary_keys"]
    assert found == [
        [
            1,
            "a",
            None,
            "01ff",
            "00000000-0000-0000-0000-000000000001",
            "1.50",
            "2026-01-02",
            "2026-01-02 03:00:00",
            "2026-01-02T01:00:00+00:00",
        ]
    ]


def test_fields_of_a_later_release_are_left_out() -> None:
    content = FULL.to_dict() | {"news": 1}
    content["columns"][0]["news"] = content["columns"][0]["keys"][0]["news"] = content["findings"][0][
        "news"
    ] = 1
    assert AuditReport.from_dict(content) == FULL


def test_a_report_of_an_earlier_release_lacks_optional_fields() -> None:
    content = FULL.to_dict()
    for name in ("options", "server", "operator", "versions"):
        del content[name]
    del content["columns"][0]["active_key"]
    earlier = AuditReport.from_dict(content)
    assert (earlier.server, earlier.operator, earlier.versions) == ({}, "", {})
    assert (earlier.options, earlier.columns[0].active_key) == ({}, None)


def test_a_newer_format_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="format 2, and this release reads up to 1"):
        AuditReport.from_dict(FULL.to_dict() | {"format": 2})


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        "report",
        {"format": "one"},
        {**FULL.to_dict(), "created": "yesterday"},
        {**FULL.to_dict(), "columns": None},
        {**FULL.to_dict(), "columns": [{}]},
        {**FULL.to_dict(), "findings": [5]},
        {**FULL.to_dict(), "findings": [{**FULL.to_dict()["findings"][0], "severity": "dire"}]},
        {name: value for name, value in FULL.to_dict().items() if name != "database"},
    ],
)
def test_what_is_no_report_is_refused(content: Any) -> None:
    with pytest.raises(ConfigurationError, match="this is no report of an audit") as caught:
        AuditReport.from_dict(content)
    assert caught.value.__context__ is None


# -- the documentation ---------------------------------------------------------------------------------------------


def test_every_kind_of_finding_is_documented() -> None:
    page = ROOT / "docs" / "reference" / "audit.md"
    documented = {
        code: row[1] for row in table_of(section_of(page, "## Findings")) for code in names_in(row[0])
    }
    assert documented == {code: kind.severity for code, kind in KINDS.items()}


@pytest.mark.parametrize(
    ("heading", "classes"),
    [
        ("## The report", (AuditReport, ColumnAudit, Finding)),
        ("## Scan", (ScanReport, FoundTokens, FailedTable)),
    ],
)
def test_every_field_of_a_report_is_documented(heading: str, classes: tuple[Any, ...]) -> None:
    section = section_of(ROOT / "docs" / "reference" / "audit.md", heading)
    fields = {field.name for class_ in classes for field in dataclasses.fields(class_)} | {"format", "ok"}
    assert {name for name in fields if f"`{name}`" not in section} == set()
    documented = {name for row in table_of(section) for name in names_in(row[0])}
    assert documented - fields == set()
