"""What state the encrypted columns of a database are in, as findings and as a report.

:func:`audit` is the door. ``report.py`` says what it gives, ``kinds.py`` what it can find.
"""

from __future__ import annotations

from .examination import AuditProgress
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
]
