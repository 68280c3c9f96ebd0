"""The report of an audit on a terminal: rows per key, findings with their cures, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.padding import Padding
from rich.text import Text

from ..auditing import Severity
from ..auditing.grouping import by_kind
from ..wording import counted
from .console import indented, key_cells, plain_table, state_order, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console, RenderableType
    from rich.table import Table

    from ..auditing import AuditReport
    from ..auditing.grouping import FindingGroup

_SEVERITY_STYLES: Final = {
    Severity.CRITICAL: "bold red",
    Severity.WARNING: "yellow",
    Severity.INFO: "cyan",
}

_NOUNS: Final = {Severity.CRITICAL: "critical one", Severity.WARNING: "warning", Severity.INFO: "note"}

# Primary keys that a terminal shows; --json has twenty.
_MAX_KEYS: Final = 5


def print_report(
    console: Console, report: AuditReport, *, baseline: AuditReport | None, retired: Sequence[str]
) -> None:
    """Print a report."""
    print_database(console, report.database)
    indented(console, Text(_extent(report)))
    console.print()
    indented(console, _census(report, baseline))
    for group in by_kind(report.findings):
        console.print()
        for renderable in _kind(group):
            indented(console, renderable)
    console.print()
    indented(console, _verdict(console, report, retired))


def print_database(console: Console, url: str) -> None:
    """Print the database's URL; in a pipe on one line, however long it is."""
    console.print(Text(url, "bold"), soft_wrap=not console.is_terminal)


def _extent(report: AuditReport) -> str:
    """Return the extent of the audit."""
    rows = sum(column.rows for column in report.columns)
    parts = [
        counted(len(report.columns), "column"),
        counted(rows, "row"),
        *([f"{sum(column.examined for column in report.columns):,} opened"] if report.deep else []),
        *([f"active key {report.active_key}"] if report.active_key else []),
    ]
    return ", ".join(parts)


def _census(report: AuditReport, baseline: AuditReport | None) -> Table:
    """Return the rows per column, key and state, beside those of an earlier report."""
    counts = [">rows"] if baseline is None else [f">{baseline.created:%Y-%m-%d %H:%M}", ">now"]
    table = plain_table("column", "key id", "state", *counts)
    then = {} if baseline is None else _rows_by_key(baseline)
    now = _rows_by_key(report)
    names = [column.column for column in report.columns]
    for name in names:
        keys = sorted({key for key in (*now, *then) if key[0] == name}, key=lambda key: state_order(key[1:]))
        for place, key in enumerate(keys):
            cells = [f"{then.get(key, 0):,}"] if baseline is not None else []
            table.add_row(
                Text("" if place else name),
                *key_cells(key[1:]),
                *cells,
                f"{now.get(key, 0):,}",
            )
        if not keys:
            table.add_row(
                Text(name), "", Text("no token", "dim"), *([""] if baseline is not None else []), "0"
            )
    return table


def _rows_by_key(report: AuditReport) -> dict[tuple[str, str | None, str], int]:
    return {
        (column.column, count.key_id, count.state): count.rows
        for column in report.columns
        for count in column.keys
    }


def _kind(group: FindingGroup) -> Iterator[RenderableType]:
    """Yield one kind of finding: a line for each column, and what holds for all of them once."""
    yield Text.assemble((str(group.severity), _SEVERITY_STYLES[group.severity]), "  ", (group.code, "bold"))
    is_common = group.message is not None and len(group.findings) > 1
    if is_common:
        yield Padding(Text(str(group.message)), (0, 0, 0, 2))
    for finding in group.findings:
        rows = f" {counted(finding.count, 'row')}." if finding.count else ""
        text = rows if is_common else f" {finding.message}"
        if finding.primary_keys:
            listed = ", ".join(map(shown_key, finding.primary_keys[:_MAX_KEYS]))
            more = ", ..." if finding.count > _MAX_KEYS else ""
            text += f" Primary {'key' if finding.count == 1 else 'keys'}: {listed}{more}"
        name = f"{finding.column}:" if text else finding.column
        yield Padding(Text.assemble((name, "bold"), text), (0, 0, 0, 2))
    yield Padding(Text(group.action, "dim"), (0, 0, 0, 2))


def shown_key(key: Sequence[Any]) -> str:
    """Return a primary key for display."""
    values = [str(value) for value in key]
    return values[0] if len(values) == 1 else f"({', '.join(values)})"


def _verdict(console: Console, report: AuditReport, retired: Sequence[str]) -> Text:
    if retired and report.ok:
        keys = "the key" if len(retired) == 1 else "the keys"
        proof = f"No row is under {keys} {', '.join(retired)}."
        return verdict(console, proof, ok=True)
    counts = [
        counted(number, noun)
        for severity, noun in _NOUNS.items()
        if (number := sum(finding.severity is severity for finding in report.findings))
    ]
    text = f"Findings: {', '.join(counts)}." if counts else "Nothing was found."
    return verdict(console, text, ok=report.ok)
