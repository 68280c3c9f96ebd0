"""Tokens and ``jti`` that are stored more than once, found in memory that does not grow with the table.

Keyed hashes of them are kept in a temporary database of SQLite, which has no name and vanishes with the process. The
key is random and stays in memory, so the hashes on the disk reveal nothing about a token.
"""

from __future__ import annotations

import sqlite3
from hashlib import blake2b
from secrets import token_bytes
from typing import Final

# Two of 2**40 different tokens have the same 16 bytes with a chance of 2**-49.
_LENGTH: Final = 16
_MEMORY_KIB: Final = 8192


class Repeats:
    """The values of one column, until it is closed."""

    def __init__(self) -> None:
        self._key = token_bytes(32)
        # With an empty name SQLite keeps the database in its cache, and in an unlinked file beyond that.
        self._database = sqlite3.connect("", isolation_level=None)
        for statement in (
            f"PRAGMA cache_size = -{_MEMORY_KIB}",
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "CREATE TABLE seen (hash BLOB PRIMARY KEY) WITHOUT ROWID",
            "BEGIN",
        ):
            self._database.execute(statement)

    def repeats(self, kind: str, value: str) -> bool:
        """Return True if this value of this kind was seen before, and remember it."""
        digest = blake2b(
            value.encode(errors="surrogatepass"), digest_size=_LENGTH, key=self._key, person=kind.encode()
        )
        cursor = self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest.digest(),))
        return cursor.rowcount == 0

    def close(self) -> None:
        """Forget the values."""
        self._database.close()
