"""Readable tokens in a whole database, in tables that no model knows too.

:func:`find_plaintext_tokens` is the door. ``tables.py`` says where is looked, ``jwt_column.readable`` what is a token.
"""

from __future__ import annotations

from .report import FailedTable, FoundTokens, ScanProgress, ScanReport
from .run import find_plaintext_tokens

__all__ = ["FailedTable", "FoundTokens", "ScanProgress", "ScanReport", "find_plaintext_tokens"]
