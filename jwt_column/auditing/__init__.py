"""The state of the encrypted columns of a database, as findings and as a report.

:func:`audit` is the entry point, ``report.py`` its result, ``kinds.py`` the list of findings.
"""

from __future__ import annotations

from .declaration import check_declarations
from .examination import AuditProgress
from .readiness import check_ready
from .report import AuditReport, ColumnAudit, ExpiryCount, Finding, KeyCount, Severity
from .run import audit

__all__ = [
    "AuditProgress",
    "AuditReport",
    "ColumnAudit",
    "ExpiryCount",
    "Finding",
    "KeyCount",
    "Severity",
    "audit",
    "check_declarations",
    "check_ready",
]
