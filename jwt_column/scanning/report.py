"""The findings of a scan as plain data: the places of tokens, and no part of a token."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..database.json_report import json_dict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

#: Version of the JSON form.
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class FoundTokens:
    """A column that holds readable tokens.

    Attributes:
        table: The table, with its schema in front where it is not the default one.
        column: The column.
        rows: How many rows hold one or more, of those looked at.
        examined: Rows of the table that were looked at.
        complete: Whether this was the whole table.
        primary_key: The primary key of one such row; None if the table has no key, or if the key holds a token.
    """

    table: str
    column: str
    rows: int
    examined: int
    complete: bool
    primary_key: tuple[Any, ...] | None


@dataclass(frozen=True, slots=True)
class FailedTable:
    """A table that could not be searched.

    Attributes:
        table: The table.
        reason: The class of the error and its code, as in ``"InsufficientPrivilege 42501"``, or a sentence about
            row-level security.
    """

    table: str
    reason: str


@dataclass(frozen=True, slots=True)
class ScanProgress:
    """The progress of a scan, reported before each table and after the last one.

    Attributes:
        table: The next table; empty after the last one.
        done: Tables that were looked through.
        tables: Tables of the database.
        found: Columns with readable tokens so far.
    """

    table: str
    done: int
    tables: int
    found: int


@dataclass(frozen=True, slots=True)
class ScanReport:
    """The result of :func:`jwt_column.find_plaintext_tokens`. Iterating over it yields :attr:`found`.

    Attributes:
        created: End of the scan, UTC.
        database: The database's URL without user, password and query.
        sample: The most rows of each table that were looked at; None for all.
        seconds: Duration of the scan.
        tables: Tables that were looked through.
        columns: Their columns that can hold text or bytes.
        rows: Their rows that were looked at.
        found: Columns with readable tokens, by table and column.
        failed: Tables that could not be looked through.
    """

    created: datetime
    database: str
    sample: int | None
    seconds: float
    tables: int
    columns: int
    rows: int
    found: tuple[FoundTokens, ...]
    failed: tuple[FailedTable, ...]

    @property
    def ok(self) -> bool:
        """Whether every table was looked through and nothing was found."""
        return not self.found and not self.failed

    def __iter__(self) -> Iterator[FoundTokens]:
        return iter(self.found)

    def to_dict(self) -> dict[str, Any]:
        """Return the report and ``ok`` in the types of JSON; other values of primary keys become text."""
        return json_dict(self, format=FORMAT, ok=self.ok)

    def to_json(self) -> str:
        """Return :meth:`to_dict` as text, indented by two spaces."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
