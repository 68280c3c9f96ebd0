"""The result of an audit as plain data, which the command line, JSON and HTML render.

Nothing here holds a token, a key or a ciphertext: rows are named by their primary key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any, Final, get_args, get_origin, get_type_hints

from ..database.json_report import json_dict
from ..errors import AuditError, ConfigurationError
from ..option_values import choice
from ..wording import counted

#: Version of the JSON form; a reader refuses a newer one.
FORMAT: Final = 1


class Severity(StrEnum):
    """The weight of a finding. An audit with a WARNING or worse is not ok."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for INFO, 1 for WARNING, 2 for CRITICAL."""
        return list(type(self)).index(self)


_SEVERITY: Final = choice(*Severity)


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of problem in one column.

    Attributes:
        code: Stable name for scripts, e.g. ``"stale"`` or ``"alg-none"``; docs/reference/audit.md lists them all.
        severity: Its weight.
        column: ``table.column``, with the schema in front where there is one.
        message: One sentence.
        count: Rows, of those examined; 0 if the finding is not about rows.
        primary_keys: The first of these rows, at most 20: a tuple of key values each.
        action: The remedy, in one sentence.
    """

    code: str
    severity: Severity
    column: str
    message: str
    count: int
    primary_keys: tuple[tuple[Any, ...], ...]
    action: str


@dataclass(frozen=True, slots=True)
class KeyCount:
    """Rows of one key id and state.

    Attributes:
        key_id: 8 hex digits; None for rows that are no envelopes.
        state: ``"current"``, ``"stale"``, ``"destroyed"``, ``"plaintext"`` or ``"unreadable"``, as
            :func:`jwt_column.key_usage` gives them; ``"unknown"`` for every envelope of a column whose active key is
            not known.
        rows: Their number.
    """

    key_id: str | None
    state: str
    rows: int


@dataclass(frozen=True, slots=True)
class ExpiryCount:
    """Rows whose token expires on one day (UTC)."""

    day: date
    rows: int


@dataclass(frozen=True, slots=True)
class ColumnAudit:
    """One encrypted column.

    Attributes:
        column: ``table.column``, with the schema in front where there is one.
        context: The context that its envelopes are bound to.
        configuration: The parameters of its ``EncryptedJWT``, as text; the key ring by its name only.
        rows: Rows of the table; 0 if the database does not have it or refused to read it.
        nulls: Rows without a token: NULL or an empty value.
        keys: Rows per key id and state.
        expired: Rows whose token has expired; None for a column that does not expose the expiry.
        expiry: Rows per day of expiry, in the order of days, empty days left out; empty likewise.
        examined: Rows that a deep audit opened; 0 in a shallow one.
        active_key: Key id that counted as the active one; None if none was known.
    """

    column: str
    context: str
    configuration: Mapping[str, str]
    rows: int
    nulls: int
    keys: tuple[KeyCount, ...]
    expired: int | None
    expiry: tuple[ExpiryCount, ...]
    examined: int
    active_key: str | None = None


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The result of :func:`jwt_column.audit`.

    Attributes:
        created: End of the audit, UTC.
        database: The database's URL without user, password and query.
        deep: Whether rows were opened.
        active_key: Key id that counted as the active one; None if none was known, or columns differ.
        seconds: Duration of the audit.
        columns: Every column audited, by name.
        findings: The most severe first, then by column and code.
        options: Options other than the defaults, as text: ``"sample"``, ``"max_lifetime"`` and so on.
        server: ``"host"``, ``"name"`` and ``"version"`` of the database, as its server gives them.
        operator: The person or job that audited; by default user and host of the process.
        versions: The versions of jwt-column, SQLAlchemy and Python.
    """

    created: datetime
    database: str
    deep: bool
    active_key: str | None
    seconds: float
    columns: tuple[ColumnAudit, ...]
    findings: tuple[Finding, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    server: Mapping[str, str] = field(default_factory=dict)
    operator: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no finding is a WARNING or worse."""
        return not self.findings_from(Severity.WARNING)

    def findings_from(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings that are of this severity or worse.

        Raises:
            ConfigurationError: *severity* is none.
        """
        _SEVERITY.check(severity=severity)
        least = Severity(severity).rank
        return tuple(finding for finding in self.findings if finding.severity.rank >= least)

    def raise_for_findings(self, severity: Severity = Severity.WARNING) -> None:
        """Raise for a finding of this severity or worse: the gate of a deployment.

        Raises:
            AuditError: There is one; ``report`` is this report, and the message names columns, codes and counts.
            ConfigurationError: *severity* is none.
        """
        found = self.findings_from(severity)
        if found:
            listed = "; ".join(
                f"{finding.column}: {finding.code}"
                + (f" ({counted(finding.count, 'row')})" if finding.count else "")
                for finding in found
            )
            raise AuditError(f"the audit of {self.database} is not ok: {listed}", report=self)

    def to_dict(self) -> dict[str, Any]:
        """Return the report and ``ok`` in the types of JSON; other values of primary keys become text."""
        return json_dict(self, format=FORMAT, ok=self.ok)

    def to_json(self) -> str:
        """Return :meth:`to_dict` as a JSON file of ASCII, with its last line feed; the HTML report has its SHA-256."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> AuditReport:
        """Return the report of an earlier audit from its :meth:`to_dict`.

        Fields that a later release of the same format may add are left out.

        Raises:
            ConfigurationError: The content is no report, or one of a newer format.
        """
        try:
            if _of(Mapping, content)["format"] > FORMAT:
                raise ConfigurationError(
                    f"this report has format {int(content['format'])}, and this release reads up to {FORMAT}"
                )
            report: AuditReport | None = _read(cls, content)
        except (AttributeError, KeyError, TypeError, ValueError):
            # Raised below: the context of an error would show a part of a file of unknown content.
            report = None
        if report is None:
            raise ConfigurationError(
                "this is no report of an audit; give the output of audit --json or of to_dict()"
            )
        return report


def _read(kind: Any, value: Any) -> Any:
    """Return a value of JSON as this annotation of a field asks for it; members of no field are left out.

    Raises:
        TypeError: It is of another kind; and likewise ValueError and KeyError.
    """
    if isinstance(kind, type) and is_dataclass(kind):
        members = _of(Mapping, value)
        fields = {name: one for name, one in get_type_hints(kind).items() if name in members}
        return kind(**{name: _read(one, members[name]) for name, one in fields.items()})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        return tuple(_read(arguments[0], one) for one in _of(list | tuple, value))
    if origin is Mapping:
        return {_of(str, name): _of(str, text) for name, text in _of(Mapping, value).items()}
    if kind in (date, datetime):
        return kind.fromisoformat(value)
    if kind is Severity:
        return Severity(value)
    return value if kind is Any else _of(int | float if kind is float else kind, value)


def _of(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value


def reports_of(**option: object) -> tuple[AuditReport, ...]:
    """Return the reports that an option gives: one, or a list of some.

    Raises:
        ConfigurationError: It gives none, or something else.
    """
    ((name, given),) = option.items()
    reports = (given,) if isinstance(given, AuditReport) or not isinstance(given, Iterable) else tuple(given)
    if not all(isinstance(one, AuditReport) for one in reports):
        raise ConfigurationError(f"{name} is an AuditReport or a list of them, not {type(given).__name__}")
    if not reports:
        raise ConfigurationError(f"{name} needs one report or more; the list is empty")
    return reports


def utc(moment: datetime) -> datetime:
    """Return a time in UTC; a naive time counts as UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
