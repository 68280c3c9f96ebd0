"""Proof that a run kept every token: keyed digests of the whole table, taken before the run and after it.

Digests of single rows wait in a temporary file, 40 to 60 bytes a row, so that memory does not grow with the table. The
digest key is random, exists in memory only, and is gone with the run: neither the file nor the report confirms a token.
"""

from __future__ import annotations

import hmac
import pickle
import secrets
from dataclasses import dataclass
from itertools import chain
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import case

from jwt_column.database.key_order import KeyRange

from .report import TokenReport, hex_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import IO

    from .conversions import Conversion, Stored
    from .report import ReencryptionReport
    from .table import Read, RunTable


# Changed rows whose digests are held in memory at once.
_CHANGES: Final = 100_000


@dataclass
class TokenComparison:
    """The tokens of a table before a run, to be compared with those after it."""

    read: Read
    table: RunTable
    conversion: Conversion
    report: ReencryptionReport
    tell: Callable[[], None]

    def __post_init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._before: IO[bytes] = TemporaryFile()  # noqa: SIM115 - closed by close()
        self._changed: IO[bytes] = TemporaryFile()  # noqa: SIM115
        self.outcome: TokenReport = TokenReport()
        self.report.tokens = self.outcome

    def close(self) -> None:
        """Remove the temporary files."""
        self._before.close()
        self._changed.close()

    def take(self) -> None:
        """Take the digests before the run."""
        total, keys = 0, KeyRange()
        for rows in self._pages(keys):
            digests = {}
            for row in rows:
                identity = self.table.identity_of(row)
                digests[identity] = digest = self._digest(row)
                total += self._placed(identity, digest)
            self.outcome.rows_before += len(rows)
            pickle.dump((self.table.key_of(rows[-1]), digests), self._before)
            self.tell()
        self.outcome.before = hex_digest(total)

    def compare(self) -> None:
        """Take the digests after the run, and compare them row by row."""
        outcome, total, after = self.outcome, 0, None
        for last_key, before in chain(_load(self._before), [(None, {})]):
            for rows in self._pages(KeyRange(after, last_key)):
                for row in rows:
                    total += self._compare_row(row, before)
                outcome.rows_after += len(rows)
                self.tell()
            outcome.removed += len(before)
            after = last_key
        outcome.after = hex_digest(total)
        self._find_misplaced()

    def _compare_row(self, row: Sequence[Any], before: dict[tuple[Any, ...], bytes]) -> int:
        """Compare one row, and return its part of the table's digest."""
        identity = self.table.identity_of(row)
        digest, old = self._digest(row, verify=bool(row[-1])), before.pop(identity, None)
        if old is None:
            self.outcome.inserted += 1
        elif old == digest:
            self.outcome.unchanged += 1
        else:
            self.outcome.superseded += 1
            pickle.dump((self.table.key_of(row), old, digest), self._changed)
        return self._placed(identity, digest)

    def _find_misplaced(self) -> None:
        """Find the changed rows that hold the token which another changed row held before.

        The application writes new tokens. One that has left its row for another was moved, as by an UPDATE that mixes
        up its rows.
        """
        parts = 1 + self.outcome.superseded // _CHANGES
        for part in range(parts):
            held = {old for _, old, _ in _load(self._changed) if old[0] % parts == part}
            for key, _, new in _load(self._changed):
                if new in held:
                    self.outcome.add_misplaced(key)
        self.outcome.superseded -= self.outcome.misplaced_count

    def _pages(self, keys: KeyRange) -> Iterator[Sequence[Sequence[Any]]]:
        """Yield the rows of a range with a value, page by page: as RunTable has them, and whether they need no work."""
        is_finished = case((self.conversion.rows.finished, 1), else_=0)
        return self.table.pages(self.read, self.table.has_value, keys, is_finished)

    def _digest(self, row: Sequence[Any], *, verify: bool = False) -> bytes:
        """Return the digest of a row's token; of a value that cannot be read, the digest of the value."""
        stored: Stored = row[-2]
        token = self.conversion.token_or_none(stored, *self.table.bound_of(row[:-1]))
        if token is None:
            if verify:
                self.report.add_undecryptable(self.table.key_of(row))
            return self._hmac(b"value", _bytes_of(stored))
        self.report.verified += verify
        return self._hmac(b"token", _bytes_of(token))

    def _placed(self, identity: tuple[Any, ...], digest: bytes) -> int:
        """Return a row's part of the table's digest, which depends on its place."""
        return int.from_bytes(self._hmac(b"placed", repr(identity).encode() + digest))

    def _hmac(self, purpose: bytes, data: bytes) -> bytes:
        return hmac.digest(self._key, purpose + b"\x00" + data, "sha256")


def _load(file: IO[bytes]) -> Iterator[Any]:
    """Yield what was written to a file."""
    file.seek(0)
    while True:
        try:
            yield pickle.load(file)  # noqa: S301 - an unnamed file that this process has written
        except EOFError:
            return


def _bytes_of(value: Stored) -> bytes:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else bytes(value)
