"""From one stored form of a token to another, row by row: the rows that need it, and their new values."""

from __future__ import annotations

from .adoption import Adoption
from .base import Conversion, Rows, Stored, was_read
from .decryption import Decryption
from .reencryption import Recomputation, Reencryption, find_lost_fields

__all__ = [
    "Adoption",
    "Conversion",
    "Decryption",
    "Recomputation",
    "Reencryption",
    "Rows",
    "Stored",
    "find_lost_fields",
    "was_read",
]
