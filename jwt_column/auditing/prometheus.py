"""Reports of audits as metrics, in the text exposition format of Prometheus, version 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from .report import reports_of, utc

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .report import AuditReport

    #: Labels and value of one sample.
    Sample = tuple[Mapping[str, str], float]

_HELP: Final = {
    "jwt_column_audit_ok": "1 if no finding is a warning or critical.",
    "jwt_column_audit_timestamp_seconds": "End of the audit, in seconds since 1970.",
    "jwt_column_audit_duration_seconds": "Duration of the audit.",
    "jwt_column_rows": "Rows with a token, per key and state.",
    "jwt_column_rows_without_token": "Rows without a token.",
    "jwt_column_rows_expired": "Rows whose token has expired, of columns that expose the expiry.",
    "jwt_column_findings": "Findings, per kind.",
    "jwt_column_finding_rows": "Rows of the findings, per kind; 0 for a kind that is not about rows.",
}


def to_prometheus(reports: Sequence[AuditReport]) -> str:
    """Return the metrics of one report or more, all gauges, each with the label ``database``.

    Raises:
        ConfigurationError: There is no report, or one of them is something else.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in _HELP}
    for report in reports_of(reports=reports):
        for name, labels, value in _samples(report):
            samples[name].append(({"database": report.database, **labels}, value))
    lines: list[str] = []
    for name, text in _HELP.items():
        if samples[name]:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
            lines += [f"{name}{{{_labels(labels)}}} {value!r}" for labels, value in samples[name]]
    return "\n".join(lines) + "\n"


def _samples(report: AuditReport) -> Iterator[tuple[str, Mapping[str, str], float]]:
    yield "jwt_column_audit_ok", {}, int(report.ok)
    yield "jwt_column_audit_timestamp_seconds", {}, utc(report.created).timestamp()
    yield "jwt_column_audit_duration_seconds", {}, report.seconds
    for column in report.columns:
        labels = {"column": column.column}
        for count in column.keys:
            key = {"key_id": count.key_id or "", "state": count.state}
            yield "jwt_column_rows", labels | key, count.rows
        yield "jwt_column_rows_without_token", labels, column.nulls
        if column.expired is not None:
            yield "jwt_column_rows_expired", labels, column.expired
    # A column may have several findings of one kind, for instance one for each retired key.
    findings: Counter[tuple[str, str, str]] = Counter()
    rows: Counter[tuple[str, str, str]] = Counter()
    for finding in report.findings:
        kind = (finding.column, finding.code, str(finding.severity))
        findings[kind] += 1
        rows[kind] += finding.count
    for name, counts in (("jwt_column_findings", findings), ("jwt_column_finding_rows", rows)):
        for kind in findings:
            yield name, dict(zip(("column", "code", "severity"), kind, strict=True)), counts[kind]


def _labels(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
