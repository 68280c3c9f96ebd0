"""One column of one database examined before a run, and the table of the run if nothing stands in the way."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sqlalchemy import table as table_clause

from jwt_column.auditing import Finding, Severity
from jwt_column.auditing.declaration import longest_value
from jwt_column.errors import ReencryptionError

from ..reflection import find_table
from .keys import key_findings
from .kinds import KINDS, finding
from .relation import kind_finding, relation_findings, rows_hidden_finding
from .rights import rights_findings
from .room import column_findings, disk_findings
from .server import server_findings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection

    from jwt_column.column.types import EncryptedJWT

    from ..conversions import Conversion
    from ..table import RunTable

__all__ = ["Examination", "Subject", "examine"]

logger: logging.Logger = logging.getLogger("migrations_helpers")

_UNDONE = "nothing was done"
# With one of these, rows are not read.
_UNREADABLE: Final = frozenset({"rows-hidden", "rights-read"})


@dataclass(frozen=True, slots=True)
class Subject:
    """The column that is examined.

    Attributes:
        table: The table's name.
        column: The column's name.
        type_: Its type.
        schema: The table's schema, or None for the default.
        shown: The table's name in messages; None for the name with the schema.
        key_columns: A unique NOT NULL key to page by; None takes the primary key, else finds one.
        preserve: Columns that a rewrite must leave alone although the database updates them by itself.
        conversions: Make the conversions of the run; the column must have room for what they make.
    """

    table: str
    column: str
    type_: EncryptedJWT
    schema: str | None = None
    shown: str | None = None
    key_columns: Sequence[str] | None = None
    preserve: Sequence[str] = ()
    conversions: Sequence[Callable[..., Conversion]] = ()


@dataclass(slots=True)
class Examination:
    """The findings of an examination.

    Attributes:
        findings: All of it.
        is_empty: Whether the column holds no value.
        table: The table; None if there is none that a run could work on.
    """

    findings: list[Finding] = field(default_factory=list)
    is_empty: bool = False
    table: RunTable | None = None
    _failure: ReencryptionError | None = None

    def fit_table(self, *, writes: bool = True) -> RunTable:
        """Return the table, if a run on it would be right.

        Args:
            writes: Whether rows are written. What forbids only that does not stop a reader.

        Raises:
            ReencryptionError: A finding stands in the way; the message has every one, each with its cure.
        """
        stopping = [
            one
            for one in self.findings
            if one.severity is Severity.CRITICAL and (writes or KINDS[one.code].stops_readers)
        ]
        if stopping:
            if len(stopping) == 1 and self._failure is not None:
                raise self._failure
            raise ReencryptionError(f"{'. '.join(map(_told, stopping))}. Nothing was done")
        assert self.table is not None  # noqa: S101 - without it, there is a finding
        for one in self.findings:
            logger.info("%s: %s %s", one.column, one.message, one.action)
        return self.table

    def found(self, code: str) -> bool:
        """Return True if there is a finding of a kind."""
        return any(one.code == code for one in self.findings)

    def fail(self, code: str, column: str, error: ReencryptionError) -> None:
        """Note why the table cannot be worked on."""
        self._failure = error
        text = str(error).rstrip(".")
        # The findings of a preflight are of the database as it is, and nothing was to be done.
        for ending in (f"; {_UNDONE}", f". {_UNDONE.capitalize()}"):
            text = text.removesuffix(ending)
        message, separator, action = text.partition(". ")
        if not separator:
            message, _, action = text.partition("; ")
        self.findings.append(finding(code, column, message, action or "apply the migration that creates it"))


def examine(connection: Connection, subject: Subject, limits: Mapping[str, str]) -> Examination:
    """Examine a column: everything that would stop a run, falsify it or make it slow, as far as can be known before.

    Args:
        connection: To the database, in a transaction or in autocommit mode.
        subject: The column.
        limits: The time-outs of its session, from :func:`~.server.time_outs`.

    Raises:
        sqlalchemy.exc.DBAPIError: The database refused.
    """
    examination = Examination()
    clause = table_clause(subject.table, schema=subject.schema)
    shown = subject.shown or clause.fullname
    name = f"{shown}.{subject.column}"
    longest = longest_value(subject.type_)
    found = examination.findings
    found += server_findings(connection, name, longest, dict(limits))
    kind = kind_finding(connection, name, shown, clause)
    hidden = rows_hidden_finding(connection, name, clause)
    found += [one for one in (kind, hidden) if one is not None]
    if kind is not None:
        return examination
    try:
        table = find_table(
            connection,
            subject.table,
            subject.column,
            subject.type_,
            schema=subject.schema,
            shown=subject.shown,
            key_columns=subject.key_columns,
            preserve=subject.preserve,
        )
    except ReencryptionError as error:
        examination.fail("table" if str(error).startswith("there is no") else "key", name, error)
        return examination
    examination.table = table
    found += rights_findings(connection, name, table)
    found += relation_findings(connection, name, shown, table.clause, table.triggers)
    if table.is_generated:
        found.append(
            finding(
                "column-generated",
                name,
                f"{name} is generated by the database from other columns, and takes no other value",
                "encrypt the column that it is made of",
            )
        )
    can_read = not any(one.code in _UNREADABLE for one in found)
    if can_read:
        examination.is_empty = connection.execute(table.any_row()).first() is None
    if can_read and not examination.is_empty:
        found += key_findings(connection, name, table)
        found += column_findings(connection, name, table, subject.type_, subject.conversions)
    found += disk_findings(connection, name, table)
    return examination


def _told(one: Finding) -> str:
    """Return a finding in the words of an error: what is wrong, and what to do."""
    action = one.action.rstrip(".")
    # A SQL command keeps its capitals.
    lower = action[:1].lower() + action[1:] if action[1:2].islower() else action
    return f"{one.message.rstrip('.')}; {lower}"
