"""One column of one database examined before a run, and the table of the run if nothing stands in the way."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sqlalchemy import table as table_clause

from jwt_column.auditing import Finding, Severity
from jwt_column.auditing.declaration import longest_value
from jwt_column.database.key_order import UNREADABLE, unreadable_key
from jwt_column.errors import ReencryptionError

from ..reflection import find_table
from .kinds import KINDS, Fact, finding
from .relation import hidden_facts, kind_facts, relation_facts
from .rights import rights_facts
from .room import column_facts, disk_facts
from .server import bytes_facts, server_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection

    from ..conversions import Conversion
    from ..reflection import Subject
    from ..table import RunTable


logger: logging.Logger = logging.getLogger("migrations_helpers")

_UNDONE = "nothing was done"
# With one of these, rows are not read.
_UNREADABLE: Final = ("rows-hidden", "rights-read")


@dataclass(slots=True)
class Examination:
    """The findings of an examination, and the table, if there is one that a run could work on."""

    column: str
    findings: list[Finding] = field(default_factory=list)
    is_empty: bool = False
    table: RunTable | None = None
    _failure: ReencryptionError | None = None

    def fit_table(self, *, writes: bool = True) -> RunTable:
        """Return the table, if a run on it would be right; what forbids only to write does not stop a reader.

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

    def found(self, *codes: str) -> bool:
        """Return True if there is a finding of one of these kinds."""
        return any(one.code in codes for one in self.findings)

    def add(self, facts: Iterable[Fact]) -> None:
        """Add facts as findings about the column."""
        self.findings += [finding(self.column, fact) for fact in facts]

    def fail(self, error: ReencryptionError) -> None:
        """Note why the table cannot be worked on."""
        self._failure = error
        text = str(error).rstrip(".")
        # The findings of a preflight are of the database as it is, and nothing was to be done.
        for ending in (f"; {_UNDONE}", f". {_UNDONE.capitalize()}"):
            text = text.removesuffix(ending)
        message, separator, action = text.partition(". ")
        if not separator:
            message, _, action = text.partition("; ")
        code, cure = "key", "name a unique key of other columns with key_columns= (--key-columns)"
        if message.startswith("there is no"):
            code, cure = "table", "apply the migration that creates it"
        self.add([Fact(code, message, action or cure)])


def examine(
    connection: Connection,
    subject: Subject,
    conversions: Sequence[Callable[..., Conversion]] = (),
    limits: Mapping[str, str] | None = None,
) -> Examination:
    """Examine a column: everything that would stop a run, falsify it or make it slow, as far as can be known before.

    *conversions* make those of the run: the column must have room for what they make. *limits* are the time-outs of the
    session, from :func:`~.server.time_outs`.
    """
    clause = table_clause(subject.table, schema=subject.schema)
    examination = Examination(subject.name)
    add = examination.add
    add(server_facts(connection, examination.column, longest_value(subject.type_), limits or {}))
    add(kind_facts(connection, subject.shown, clause))
    add(hidden_facts(connection, clause))
    if examination.found("relation", "foreign-part"):
        return examination
    try:
        examination.table = table = find_table(connection, subject)
    except ReencryptionError as error:
        examination.fail(error)
        return examination
    add(bytes_facts(connection, table))
    add(rights_facts(connection, table))
    add(relation_facts(connection, table))
    can_read = not examination.found(*_UNREADABLE)
    if can_read:
        examination.is_empty = connection.execute(table.any_row()).first() is None
    if can_read and not examination.is_empty:
        add(_key_facts(connection, table))
        add(column_facts(connection, table, subject.type_, conversions))
    add(disk_facts(connection, table))
    return examination


def _key_facts(connection: Connection, table: RunTable) -> Iterator[Fact]:
    """Yield the fact that a key has values that drivers cannot read, or read as others."""
    key = unreadable_key(connection, table.order, connection.dialect.driver)
    if key is not None:
        yield Fact(
            "key",
            f"{table.name} cannot be paged by {key.name}: {UNREADABLE}",
            "name a unique key of other types with key_columns= (--key-columns), after adding one if there is none",
        )


def _told(one: Finding) -> str:
    """Return a finding in the words of an error: what is wrong, and what to do."""
    action = one.action.rstrip(".")
    # A SQL command keeps its capitals.
    lower = action[:1].lower() + action[1:] if action[1:2].islower() else action
    return f"{one.message.rstrip('.')}; {lower}"
