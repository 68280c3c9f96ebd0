"""Findings of one kind together, and reports of several databases as one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from ..errors import ConfigurationError
from .kinds import KINDS
from .report import FORMAT, AuditReport

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .report import Finding, Severity

_COUNTED: Final = re.compile(r"^(?:1 row is|[\d,]+ rows are)\b")


@dataclass(frozen=True, slots=True)
class FindingGroup:
    """The findings of one kind, and one sentence that holds for every column; None if the sentences differ."""

    code: str
    severity: Severity
    action: str
    message: str | None
    findings: tuple[Finding, ...]

    @property
    def title(self) -> str:
        """The code as words."""
        return self.code.replace("-", " ").capitalize()

    @property
    def rows(self) -> int:
        """The number of rows; 0 if the kind is not about rows."""
        return sum(finding.count for finding in self.findings)

    @property
    def columns(self) -> int:
        """The number of columns that it concerns."""
        return len({finding.column for finding in self.findings})


def by_kind(findings: Iterable[Finding]) -> list[FindingGroup]:
    """Return the findings of each kind together, the most severe kinds first."""
    kinds: dict[tuple[int, str, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((-finding.severity.rank, finding.code, finding.action), []).append(finding)
    return [
        FindingGroup(code, found[0].severity, action, _common_message(found), tuple(found))
        for (_, code, action), found in sorted(kinds.items())
    ]


def _common_message(findings: Sequence[Finding]) -> str | None:
    """Return the message that all findings share when their counts are left out."""
    if len(findings) == 1:
        return findings[0].message
    messages = {_uncounted(finding) for finding in findings}
    return messages.pop() if len(messages) == 1 else None


def _uncounted(finding: Finding) -> str:
    kind = KINDS.get(finding.code)
    if kind is not None and kind.rows[1]:
        counted = kind.message(finding.count)
        if finding.message.startswith(counted):
            return f"Rows {kind.rows[1]}{finding.message.removeprefix(counted)}"
    return _COUNTED.sub("Rows are", finding.message)


def database_labels(reports: Sequence[AuditReport]) -> dict[str, str]:
    """Return a short name for the database of each report, by its URL.

    Raises:
        ConfigurationError: Two reports have the same URL, so that a reader could not tell them apart.
    """
    urls = [report.database for report in reports]
    if len(set(urls)) < len(urls):
        url = next(url for url in urls if urls.count(url) > 1)
        raise ConfigurationError(
            f"two of the reports are of {url}; user and query of a URL are not part of a report, so name each database "
            "once"
        )
    names = [report.server.get("name", "") for report in reports]
    if not all(names) or len(set(names)) < len(names):
        names = [f"database {number}" for number in range(1, len(reports) + 1)]
    return dict(zip(urls, names, strict=True))


def combined(reports: Sequence[AuditReport], labels: Mapping[str, str] | None = None) -> AuditReport:
    """Return the report of several databases as one, each column with its database in front.

    Args:
        reports: One or more; a single one is returned as it is.
        labels: The names of the databases, by their URLs; without them, :func:`database_labels`.
    """
    if len(reports) == 1 and not labels:
        return reports[0]
    labels = labels or database_labels(reports)

    def named(report: AuditReport, column: str) -> str:
        return f"{labels.get(report.database, report.database)}: {column}"

    active = {report.active_key for report in reports}
    columns = [replace(one, column=named(each, one.column)) for each in reports for one in each.columns]
    findings = [replace(one, column=named(each, one.column)) for each in reports for one in each.findings]
    return replace(
        reports[0],
        created=max(report.created for report in reports),
        database=", ".join(dict.fromkeys(report.database for report in reports)),
        deep=all(report.deep for report in reports),
        active_key=active.pop() if len(active) == 1 else None,
        seconds=sum(report.seconds for report in reports),
        columns=tuple(columns),
        findings=tuple(sorted(findings, key=lambda one: (-one.severity.rank, one.column, one.code))),
    )


def json_of(reports: Sequence[AuditReport]) -> str:
    """Return the JSON file of an audit, of which the HTML report has the SHA-256.

    The file of one database is its report's :meth:`~jwt_column.AuditReport.to_json`. That of several has ``format``,
    ``ok`` and the list ``reports``.
    """
    if len(reports) == 1:
        return reports[0].to_json()
    content = {
        "format": FORMAT,
        "ok": all(report.ok for report in reports),
        "reports": [report.to_dict() for report in reports],
    }
    return json.dumps(content, indent=2) + "\n"
