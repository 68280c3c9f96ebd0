"""Reports of audits that never were: each state that the HTML report has to show, made by hand."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from jwt_column.auditing.report import AuditReport, ColumnAudit, ExpiryCount, Finding, KeyCount, Severity

__all__ = [
    "ACTIVE",
    "CREATED",
    "DAY",
    "HOSTILE",
    "OLD",
    "REPORTS",
    "column",
    "expiry",
    "finding",
    "report",
    "rotation",
]

CREATED: Final = datetime(2026, 10, 18, 9, 41, tzinfo=UTC)
DAY: Final = date(2026, 10, 18)
ACTIVE: Final = "3f9c2a10"
OLD: Final = "b81d07ee"

#: Leaves an element, an attribute, a comment, a style sheet and SVG, and turns a line of text around.
HOSTILE: Final = (
    "\"'><script>alert(1)</script><img src=http://127.0.0.1:9/x onerror=alert(2)>"
    "--></style></svg>&lt;\u202egnp\x00\n"
)


def column(name: str, *keys: tuple[str | None, str, int], **attributes: Any) -> ColumnAudit:
    """Make a column that holds *keys*: key id, state and rows."""
    counts = tuple(KeyCount(*key) for key in keys)
    defaults: dict[str, Any] = {
        "context": name,
        "configuration": {"storage": "binary", "fingerprints": "token, jti", "context": name},
        "rows": sum(count.rows for count in counts) + 5,
        "nulls": 5,
        "expired": None,
        "expiry": (),
        "examined": 0,
        "active_key": ACTIVE,
    }
    return ColumnAudit(column=name, keys=counts, **{**defaults, **attributes})


def expiry(*counts: tuple[int, int]) -> tuple[ExpiryCount, ...]:
    """Make counts of expiry: days after the audit's day, and rows."""
    return tuple(ExpiryCount(DAY + timedelta(days=days), rows) for days, rows in counts)


def finding(code: str, severity: Severity, column: str, count: int = 0, **attributes: Any) -> Finding:
    """Make a finding."""
    defaults: dict[str, Any] = {
        "message": f"{count:,} rows are {code}.",
        "primary_keys": tuple((n,) for n in range(min(count, 20))),
        "action": f"Mend what is {code}.",
    }
    return Finding(code=code, severity=severity, column=column, count=count, **{**defaults, **attributes})


def report(*columns: ColumnAudit, findings: tuple[Finding, ...] = (), **attributes: Any) -> AuditReport:
    """Make a report."""
    defaults: dict[str, Any] = {
        "created": CREATED,
        "database": "postgresql+psycopg://db.example.org:5432/app",
        "deep": False,
        "active_key": ACTIVE,
        "seconds": 4.21,
    }
    return AuditReport(columns=columns, findings=findings, **{**defaults, **attributes})


_SESSIONS = column(
    "app.sessions.token",
    (ACTIVE, "current", 812_345),
    (OLD, "stale", 120_442),
    (None, "plaintext", 1_311),
    expired=1_200,
    expiry=expiry(*((day, 300 + day * day % 97 * 5) for day in range(-12, 60))),
)
_LOGINS = column(
    "app.logins.id_token",
    (ACTIVE, "current", 9_112),
    (None, "unreadable", 2),
    expired=0,
    expiry=expiry((3, 9_112)),
)
_TEN_YEARS = column(
    "app.credentials.refresh_token",
    (ACTIVE, "current", 40_122),
    expired=301,
    expiry=expiry(*((day, 33) for day in range(-30, 3_600, 3))),
)
_MANY_KEYS = column(
    "app.keys.token",
    *((f"{n:08x}", "stale" if n else "current", 1 + n) for n in range(200)),
    active_key="00000000",
)
_HOSTILE = column(
    HOSTILE,
    (HOSTILE, "current", 1),
    (HOSTILE, HOSTILE, 1),
    (None, HOSTILE, 1),
    context=HOSTILE + "x" * 300,
    configuration={HOSTILE: HOSTILE},
    expired=1,
    expiry=expiry((1, 3)),
    active_key=HOSTILE,
)


def rotation(columns: int = 30) -> AuditReport:
    """Make the report of many columns in the middle of a rotation, with the findings that such an audit has."""
    audited: list[ColumnAudit] = []
    findings: list[Finding] = []
    for n in range(columns):
        name = f"service_{n:02}.refresh_token"
        stale = 0 if n < columns // 2 else 90 + 7 * n
        keys = [(ACTIVE, "current", 400 - stale), *([(OLD, "stale", stale)] if stale else [])]
        exposed = {"expired": 9, "expiry": expiry((-20, 9), (5, 41), (90, 200))} if n % 5 else {}
        audited.append(column(name, *keys, **exposed))
        if stale:
            message = f"{stale} rows are stale: under another key than the active one, or of another layout."
            findings.append(finding("stale", Severity.WARNING, name, stale, message=message))
        if exposed:
            findings.append(
                finding("expired", Severity.INFO, name, 9, message="9 rows are expired and still stored.")
            )
    findings.append(finding("plaintext", Severity.CRITICAL, "service_03.refresh_token", 1))
    return report(*audited, findings=tuple(sorted(findings, key=lambda one: -one.severity.rank)))


_EARLIER: Final = report(
    column("app.sessions.token", (OLD, "current", 770_000), (None, "plaintext", 20_311), active_key=OLD),
    column("app.old.token", (OLD, "current", 7), active_key=OLD),
    findings=(
        finding("alg-none", Severity.CRITICAL, "app.sessions.token", 3),
        finding("plaintext", Severity.CRITICAL, "app.sessions.token", 20_311),
        finding("no-exp", Severity.WARNING, "app.old.token", 1),
    ),
    created=CREATED - timedelta(days=17),
    active_key=OLD,
    deep=True,
)

#: What a page is made of: the report, and the one to compare it with. By a name for the test.
REPORTS: Final[dict[str, tuple[AuditReport, AuditReport | None]]] = {
    "not ok": (
        report(
            _SESSIONS,
            _LOGINS,
            _TEN_YEARS,
            column("app.empty.token", rows=0, nulls=0),
            findings=(
                finding("plaintext", Severity.CRITICAL, "app.sessions.token", 1_311),
                finding("stale", Severity.WARNING, "app.sessions.token", 120_442, primary_keys=()),
                finding("missing-index", Severity.INFO, "app.logins.id_token"),
            ),
            server={"host": "10.0.0.7:5432", "name": "app", "version": "PostgreSQL 15.3"},
            operator="nightly@audit.example.org",
            versions={"jwt-column": "0.2.0", "SQLAlchemy": "2.1.0", "Python": "3.11.7"},
        ),
        _EARLIER,
    ),
    "ok": (report(_TEN_YEARS, deep=True, options={"sample": "500 rows of each column"}), None),
    "nothing": (report(active_key=None), None),
    "no rows": (report(column("app.empty.token", rows=0, nulls=0, expired=0)), None),
    "many keys": (report(_MANY_KEYS, active_key="00000000"), None),
    "unknown": (
        report(
            column("app.a.token", (ACTIVE, "unknown", 3), (OLD, "unknown", 2), active_key=None),
            column("app.b.token", (ACTIVE, "current", 3), expired=0),
            active_key=None,
        ),
        None,
    ),
    "hostile": (
        report(
            _HOSTILE,
            findings=(
                finding(
                    HOSTILE,
                    Severity.CRITICAL,
                    HOSTILE,
                    9,
                    message=HOSTILE,
                    action=HOSTILE,
                    primary_keys=((HOSTILE, b"\x00<"), ("y" * 5_000,)),
                ),
                finding("elsewhere", Severity.WARNING, HOSTILE + "elsewhere"),
            ),
            database=f"sqlite:///{HOSTILE}{'long' * 60}",
            active_key=HOSTILE,
            options={HOSTILE: HOSTILE},
            server={"host": HOSTILE, "name": HOSTILE, "version": HOSTILE},
            operator=HOSTILE,
            versions={HOSTILE: HOSTILE},
        ),
        report(_HOSTILE, findings=(finding(HOSTILE, Severity.INFO, HOSTILE),), database=HOSTILE),
    ),
}
