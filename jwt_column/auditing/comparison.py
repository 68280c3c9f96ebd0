"""The comparison of two audits: rows per key then and now; findings that are new, gone or changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from .report import utc

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .report import AuditReport, ColumnAudit, Finding, KeyCount, Severity


class Change(StrEnum):
    """The change of a finding between two audits."""

    NEW = "new"
    GONE = "gone"
    CHANGED = "changed"
    SAME = "same"
    #: Its column is not part of the later audit, which therefore says nothing about it.
    NOT_AUDITED = "not audited"


@dataclass(frozen=True, slots=True)
class FindingChange:
    """A kind of finding in one column, then and now; a count is None in the audit that lacks it."""

    change: Change
    column: str
    code: str
    severity: Severity
    then: int | None
    now: int | None


@dataclass(frozen=True, slots=True)
class KeyProgress:
    """Rows under one key then and now, or of one state: ``"plaintext"`` or ``"unreadable"``.

    Envelopes have no state here, because they change it when another key becomes active.
    """

    key_id: str | None
    state: str | None
    then: int
    now: int


@dataclass(frozen=True, slots=True)
class ColumnProgress:
    """One column then and now; None on the side that did not audit it.

    Attributes:
        then: The earlier audit, with the states of its rows if the key that is active now is the
            measure: rows that were current under a key that has been replaced count as stale.
        active_key: The active key in the later audit; None if it was not known.
        keys: Rows per key, those with the most rows now first.
    """

    column: str
    then: ColumnAudit | None
    now: ColumnAudit | None
    active_key: str | None
    keys: tuple[KeyProgress, ...]

    @property
    def left_then(self) -> int | None:
        """Tokens of the earlier audit that are not under the key that is active now; None if that is not known."""
        if self.then is None or self.active_key is None:
            return None
        return sum(key.then for key in self.keys if key.key_id != self.active_key)

    @property
    def left_now(self) -> int | None:
        """Tokens that are not under the active key; None if that is not known."""
        if self.now is None or self.active_key is None:
            return None
        return sum(key.now for key in self.keys if key.key_id != self.active_key)


@dataclass(frozen=True, slots=True)
class Progress:
    """Two audits, compared: the earlier one is the baseline.

    Attributes:
        notes: Why the two can be compared only in part, a sentence each.
        columns: Every column of either audit, by name.
        findings: Every kind of finding of either audit, those that need attention first.
    """

    baseline: AuditReport
    notes: tuple[str, ...]
    columns: tuple[ColumnProgress, ...]
    findings: tuple[FindingChange, ...]

    @property
    def both(self) -> tuple[list[ColumnAudit], list[ColumnAudit]]:
        """The columns that are part of both audits, then and now."""
        pairs = [(one.then, one.now) for one in self.columns if one.then is not None and one.now is not None]
        return [then for then, _ in pairs], [now for _, now in pairs]

    def count(self, change: Change) -> int:
        """Return how many kinds of finding changed in this way."""
        return sum(finding.change is change for finding in self.findings)


def compare(baseline: AuditReport, report: AuditReport) -> Progress:
    """Compare an audit with an earlier one."""
    then = {column.column: column for column in baseline.columns}
    now = {column.column: column for column in report.columns}
    return Progress(
        baseline=baseline,
        notes=tuple(_notes(baseline, report)),
        columns=tuple(_column(name, then.get(name), now.get(name)) for name in sorted(then | now)),
        findings=tuple(_findings(baseline, report)),
    )


def _notes(baseline: AuditReport, report: AuditReport) -> Iterable[str]:
    if baseline.database != report.database:
        yield f"The last audit was of another database: {baseline.database}."
    if utc(baseline.created) > utc(report.created):
        yield "The audit given as the last one is the later of the two."
    if baseline.deep and not report.deep:
        yield (
            "The last audit was deep and this one is not. Findings that need opened tokens count as gone only "
            "because this audit did not look for them."
        )
    if report.deep and not baseline.deep:
        yield (
            "This audit is deep and the last one was not. Findings that need opened tokens count as new because "
            "the last audit did not look for them."
        )
    if baseline.deep and report.deep and dict(baseline.options) != dict(report.options):
        yield "The two audits ran with different options, so they did not look for the same things."


def _column(name: str, then: ColumnAudit | None, now: ColumnAudit | None) -> ColumnProgress:
    active_key = None if now is None else now.active_key
    if then is not None and active_key not in (None, then.active_key):
        then = replace(then, keys=tuple(_measured(count, active_key) for count in then.keys))
    both = ([] if then is None else [then], [] if now is None else [now])
    return ColumnProgress(name, then, now, active_key, keys_of(both))


def keys_of(both: tuple[Sequence[ColumnAudit], Sequence[ColumnAudit]]) -> tuple[KeyProgress, ...]:
    """Return the rows of columns per key, then and now; those with the most rows now first."""
    rows: dict[tuple[str | None, str | None], list[int]] = {}
    for side, columns in enumerate(both):
        for count in (count for column in columns for count in column.keys):
            state = count.state if count.key_id is None else None
            rows.setdefault((count.key_id, state), [0, 0])[side] += count.rows
    keys = [KeyProgress(key_id, state, *counts) for (key_id, state), counts in rows.items()]
    keys.sort(key=lambda key: (key.key_id is None, -key.now, -key.then, key.key_id or key.state or ""))
    return tuple(keys)


def changes_by_kind(changes: Iterable[FindingChange]) -> list[list[FindingChange]]:
    """Return the changes of each kind of finding together, in the order of *changes*."""
    kinds: dict[tuple[Change, Severity, str], list[FindingChange]] = {}
    for one in changes:
        kinds.setdefault((one.change, one.severity, one.code), []).append(one)
    return list(kinds.values())


def _measured(count: KeyCount, active_key: str | None) -> KeyCount:
    if count.key_id is None:
        return count
    return replace(count, state="current" if count.key_id == active_key else "stale")


def _findings(baseline: AuditReport, report: AuditReport) -> list[FindingChange]:
    audited = {column.column for column in report.columns}
    then, now = _by_kind(baseline.findings), _by_kind(report.findings)
    changes = []
    for kind, (severity, _) in (then | now).items():
        before, after = then.get(kind), now.get(kind)
        if before is None:
            change = Change.NEW
        elif after is not None:
            change = Change.SAME if before == after else Change.CHANGED
        else:
            change = Change.GONE if kind[0] in audited else Change.NOT_AUDITED
        rows_then, rows_now = before and before[1], after and after[1]
        changes.append(FindingChange(change, *kind, severity, rows_then, rows_now))
    order = list(Change)
    changes.sort(key=lambda one: (order.index(one.change), -one.severity.rank, one.column, one.code))
    return changes


def _by_kind(findings: Iterable[Finding]) -> dict[tuple[str, str], tuple[Severity, int]]:
    """Return the worst severity and all rows of each kind of finding, by column and code."""
    kinds: dict[tuple[str, str], tuple[Severity, int]] = {}
    for finding in findings:
        kind = (finding.column, finding.code)
        severity, count = kinds.get(kind, (finding.severity, 0))
        worst = max(severity, finding.severity, key=lambda one: one.rank)
        kinds[kind] = (worst, count + finding.count)
    return kinds
