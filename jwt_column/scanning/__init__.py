"""Readable tokens in a whole database, in tables that no model knows too.

:func:`find_plaintext_tokens` is the entry point. ``tables.py`` lists the tables to search, and
:mod:`jwt_column.format.readable` recognises tokens.
"""

from __future__ import annotations

from .report import FailedTable, FoundTokens, ScanProgress, ScanReport
from .run import find_plaintext_tokens

__all__ = ["FailedTable", "FoundTokens", "ScanProgress", "ScanReport", "find_plaintext_tokens"]
