"""Reports of audits in SARIF 2.1.0, the format of code scanners' results.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .grouping import by_kind
from .report import Severity, reports_of, utc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .report import AuditReport

_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS: Final = {Severity.CRITICAL: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


def to_sarif(reports: Sequence[AuditReport]) -> dict[str, Any]:
    """Return a SARIF log with one run for each report: a rule for each kind of finding, a result for each finding.

    A result is at a logical location, the column: an audit knows no source file.

    Raises:
        ConfigurationError: There is no report, or one of them is something else.
    """
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [_run(report) for report in reports_of(reports=reports)],
    }


def _run(report: AuditReport) -> dict[str, Any]:
    groups = by_kind(report.findings)
    driver: dict[str, Any] = {
        "name": "jwt-column",
        "rules": [
            {
                "id": group.code,
                "shortDescription": {"text": group.title},
                "help": {"text": group.action},
                "defaultConfiguration": {"level": _LEVELS[group.severity]},
            }
            for group in groups
        ],
    }
    if "jwt-column" in report.versions:
        driver["version"] = report.versions["jwt-column"]
    content = report.to_dict()
    keys = {
        id(one): each["primary_keys"] for one, each in zip(report.findings, content["findings"], strict=True)
    }
    end = utc(report.created).isoformat(timespec="seconds").replace("+00:00", "Z")
    return {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": True, "endTimeUtc": end}],
        "results": [
            {
                "ruleId": finding.code,
                "ruleIndex": index,
                "level": _LEVELS[finding.severity],
                "message": {"text": f"{finding.column}: {finding.message} {finding.action}"},
                "locations": [{"logicalLocations": [_location(finding.column)]}],
                "partialFingerprints": {"column/v1": f"{report.database} {finding.column} {finding.code}"},
                "properties": {"rows": finding.count, "primaryKeys": keys[id(finding)]},
            }
            for index, group in enumerate(groups)
            for finding in group.findings
        ],
        "properties": {
            name: content[name] for name in ("database", "server", "operator", "deep", "ok", "options")
        },
    }


def _location(column: str) -> dict[str, str]:
    return {"name": column.rpartition(".")[2], "fullyQualifiedName": column, "kind": "member"}
