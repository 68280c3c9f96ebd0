"""The deep part of an audit: every row of a column is opened, and its token looked at."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..format.readable import without_tokens
from .counting import EXAMPLES
from .kinds import KINDS
from .repeats import Repeats
from .rows import batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy import Connection

    from .columns import AuditedColumn
    from .report import Finding
    from .rows import Opener, StoredRow
    from .tokens import TokenChecks

__all__ = ["AuditProgress", "Examination"]

#: What a finding says of its rows, after their number.
_MESSAGES: Final[Mapping[str, tuple[str, str]]] = {
    "undecryptable": (
        "does not open under its key: it was changed",
        "do not open under their keys: they were changed",
    ),
    "moved": ("holds an envelope of another column", "hold envelopes of another column"),
    "unbound": ("is not bound to its row", "are not bound to their rows"),
    "alg-none": ("holds an unsigned token", "hold unsigned tokens"),
    "alg-not-allowed": (
        "holds a token whose alg is not an allowed one",
        "hold tokens whose alg is not an allowed one",
    ),
    "exp-missing": ("holds a token without exp", "hold tokens without exp"),
    "exp-invalid": (
        "holds a token whose exp is no time that can be read",
        "hold tokens whose exp is no time that can be read",
    ),
    "lifetime": ("holds a token that lives longer than allowed", "hold tokens that live longer than allowed"),
    "duplicate-token": ("repeats the token of an earlier row", "repeat the token of an earlier row"),
    "duplicate-jti": (
        "holds another token with the jti of an earlier row",
        "hold other tokens with the jti of an earlier row",
    ),
    "header-jku": ("says where to fetch the key (jku)", "say where to fetch the key (jku)"),
    "header-x5u": ("says where to fetch the certificate (x5u)", "say where to fetch the certificate (x5u)"),
    "header-jwk": ("brings its own key (jwk)", "bring their own keys (jwk)"),
    "header-x5c": ("brings its own certificates (x5c)", "bring their own certificates (x5c)"),
    "header-crit": ("has critical extensions (crit)", "have critical extensions (crit)"),
    "header-kid": (
        "has a kid with characters of paths, queries or commands",
        "have a kid with characters of paths, queries or commands",
    ),
    "compromised-kid": (
        "holds a token signed with a compromised key",
        "hold tokens signed with a compromised key",
    ),
}


@dataclass(frozen=True, slots=True)
class AuditProgress:
    """How far a deep audit is.

    Attributes:
        column: The column that it works on: ``table.column``.
        number: Which of the columns that is, counted from 1.
        columns: How many columns there are.
        examined: Rows of this column that were opened.
        rows: Rows of this column that are to be.
    """

    column: str
    number: int
    columns: int
    examined: int
    rows: int


class Examination:
    """The examination of one column's rows.

    Args:
        column: The column.
        opener: Opens its rows.
        checks: Looks at its tokens.
        progress: Told how many rows were examined, after each batch.
    """

    def __init__(
        self,
        column: AuditedColumn,
        opener: Opener,
        checks: TokenChecks,
        progress: Callable[[int], None],
    ) -> None:
        self._column = column
        self._opener = opener
        self._checks = checks
        self._progress = progress
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[tuple[Any, ...]]] = {}
        self._origins: Counter[str] = Counter()
        #: Rows that were looked at.
        self.examined = 0

    def run(self, connection: Connection, rows: int, sample: int | None) -> None:
        """Examine the rows, of which there are so many; or a sample."""
        with Repeats() as repeats:
            for batch in batches(connection, self._column, rows, sample):
                for row in batch:
                    self._examine(row, repeats)
                self.examined += len(batch)
                self._progress(self.examined)

    def _examine(self, row: StoredRow, repeats: Repeats) -> None:
        token, code, origin = self._opener.open(row)
        if code is not None:
            self._add(code, row)
            self._origins[origin] += 1
        if token is None:
            return
        codes, jti = self._checks.check(token)
        for one in codes:
            self._add(one, row)
        # A token that is there twice has its jti twice, which says nothing more.
        if repeats.repeats("token", token):
            self._add("duplicate-token", row)
        elif jti is not None and repeats.repeats("jti", f"{type(jti).__name__}{jti}"):
            self._add("duplicate-jti", row)

    def _add(self, code: str, row: StoredRow) -> None:
        self._counts[code] += 1
        examples = self._examples.setdefault(code, [])
        if row.key and len(examples) < EXAMPLES and without_tokens(row.key) is not None:
            examples.append(row.key)

    def findings(self) -> Iterator[Finding]:
        """Yield what was found."""
        for code, count in self._counts.items():
            one, many = _MESSAGES[code]
            message = f"1 row {one}" if count == 1 else f"{count:,} rows {many}"
            if code == "moved":
                origins = sorted(origin for origin in self._origins if origin)
                message += f": {', '.join(origins)}"
            yield KINDS[code].found(self._column.name, f"{message}.", count, self._examples[code])
