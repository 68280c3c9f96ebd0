"""The deep part of an audit: every row of a column is opened, and its token looked at."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..format.readable import without_tokens
from .counting import EXAMPLES
from .kinds import KINDS
from .repeats import Repeats
from .rows import batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

    from .columns import AuditedColumn
    from .report import Finding
    from .rows import Opener, StoredRow
    from .tokens import TokenChecks


@dataclass(frozen=True, slots=True)
class AuditProgress:
    """The progress of a deep audit.

    Attributes:
        column: The current column, ``table.column``.
        number: Its number, counted from 1.
        columns: Columns of the audit.
        examined: Rows of this column that were opened.
        rows: Rows of this column to open in all.
    """

    column: str
    number: int
    columns: int
    examined: int
    rows: int


class Examination:
    """The examination of one column's rows; *progress* gets the number of examined rows after each batch."""

    def __init__(
        self, column: AuditedColumn, opener: Opener, checks: TokenChecks, progress: Callable[[int], None]
    ) -> None:
        self._column = column
        self._opener = opener
        self._checks = checks
        self._progress = progress
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[tuple[Any, ...]]] = {}
        self._origins: dict[str, set[str]] = {}
        #: Rows that were opened.
        self.examined: int = 0

    def run(self, connection: Connection, rows: int, sample: int | None) -> None:
        """Examine all *rows* rows, or *sample* of them."""
        with closing(Repeats()) as repeats:
            for batch in batches(connection, self._column, rows, sample):
                for row in batch:
                    self._examine(row, repeats)
                self.examined += len(batch)
                self._progress(self.examined)

    def _examine(self, row: StoredRow, repeats: Repeats) -> None:
        token, code, origin = self._opener.open(row)
        if code is not None:
            self._add(code, row)
            if origin:
                self._origins.setdefault(code, set()).add(origin)
        if token is None:
            return
        found: dict[str, None] = {}
        jti = None
        for inner in self._opener.tokens_in(token):
            codes, jti = self._checks.check(inner)
            found.update(dict.fromkeys(codes))
        missing, is_wrong = self._opener.unindexed(token)
        if missing:
            found["claim-not-indexed"] = None
        if is_wrong:
            found["exp-invalid"] = None
        for one in found:
            self._add(one, row)
        # A token that is stored twice has its jti twice, which is no second finding.
        if repeats.repeats("token", token):
            self._add("duplicate-token", row)
        elif jti is not None and inner is token and repeats.repeats("jti", f"{type(jti).__name__}{jti}"):
            self._add("duplicate-jti", row)

    def _add(self, code: str, row: StoredRow) -> None:
        self._counts[code] += 1
        examples = self._examples.setdefault(code, [])
        if row.key and len(examples) < EXAMPLES and without_tokens(row.key) is not None:
            examples.append(row.key)

    def findings(self) -> Iterator[Finding]:
        """Yield the findings."""
        for code, count in self._counts.items():
            kind = KINDS[code]
            if code == "undecryptable" and not self._opener.opened and count == self._opener.unauthenticated:
                # A damaged row does not have only damaged neighbours.
                kind = KINDS["no-row-opens"]
            message = kind.message(count)
            if code in self._origins:
                message += f": {', '.join(sorted(self._origins[code]))}"
            elif code == "undecryptable":
                message += f" {self._column.context!r}"
            yield kind.found(self._column.name, f"{message}.", count, self._examples[code])
