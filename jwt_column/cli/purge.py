"""``jwt-column purge``: remove the rows whose token has expired, or those under a key, by SQL alone."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import typer
from rich.text import Text
from sqlalchemy import Column, ColumnElement, Engine, func, select

from ..column.comparator import EncryptedComparator
from ..database.printable import printable
from ..database.row_security import hidden_rows
from ..database.time_limits import lifted_and_restored
from ..errors import ConfigurationError, KeyRingError, ReencryptionError, UnsupportedComparisonError
from ..keys.snapshot import parse_key_id
from ..purge import Action, purge_rows
from ..wording import counted
from .columns import ChosenColumn, choose_column
from .console import DatabaseError, ExitCode, indented, make_console, print_json, verdict
from .databases import connect, read_url, with_engine
from .declaring import flag, value
from .options import DATABASE, JSON, MODEL, ColumnOptions, StoredColumn
from .progress import shown_progress
from .signals import stoppable
from .summary import listed_keys

# Rows that the database refused, of which the terminal shows the primary keys.
_SHOWN: Final = 10


@dataclass
class _Purge:
    """One purge, and its state."""

    column: str
    action: Action
    dry_run: bool
    before: datetime | None = None
    key: str | None = None
    hidden: str | None = None
    found: int = 0
    removed: int = 0
    refused: list[tuple[tuple[Any, ...], str]] = field(default_factory=list)
    refused_count: int = 0
    seconds: float = 0.0

    def run(self, engine: Engine, chosen: ChosenColumn) -> None:
        """Count the rows, and remove them."""
        started = time.monotonic()
        with connect(engine) as connection, lifted_and_restored(connection):
            column = chosen.in_table(connection)
            self.hidden = hidden_rows(connection, column.table)
            condition = self._condition(column)
            count = select(func.count()).select_from(column.table).where(condition)
            self.found = connection.scalar(count) or 0
        if not self.dry_run:
            self._remove(engine, column, condition)
        self.seconds = round(time.monotonic() - started, 3)

    def _condition(self, column: Column[Any]) -> ColumnElement[bool]:
        if self.key is not None:
            return EncryptedComparator(column).key_id == self.key
        return _expiry_of(column) <= self.before

    @property
    def done(self) -> str:
        """The word for what was done to a row."""
        return "deleted" if self.action == "delete" else "cleared"

    @property
    def which(self) -> str:
        """The rows in words."""
        if self.before is not None:
            return f"expired by {self.before:%Y-%m-%d %H:%M:%S} UTC"
        return f"under key {self.key}"

    def _remove(self, engine: Engine, column: Column[Any], condition: ColumnElement[bool]) -> None:
        with shown_progress() as show:

            def progress(removed: int) -> None:
                self.removed = removed
                # Tokens go on expiring.
                show(self.column, removed, max(removed, self.found), f"rows {self.done}")

            try:
                result = purge_rows(engine, column, condition, action=self.action, progress=progress)
            except ReencryptionError as error:
                raise DatabaseError(str(error)) from None
        self.removed, self.refused = int(result), result.refused
        self.refused_count = result.refused_count

    def to_dict(self) -> dict[str, Any]:
        """Return the purge as JSON's types."""
        return {
            "column": self.column,
            "before": None if self.before is None else self.before.isoformat(),
            "key": self.key,
            "action": self.action,
            "dry_run": self.dry_run,
            "found": self.found,
            "expired": self.found if self.key is None else None,
            "deleted": self.removed if self.action == "delete" else 0,
            "cleared": self.removed if self.action == "null" else 0,
            "refused": self.refused_count,
            "seconds": self.seconds,
            "row_security": self.hidden is not None,
        }


def purge(
    *,
    database: str | None = DATABASE,
    model: str | None = MODEL,
    name: StoredColumn,
    before: str | None = value(
        "--before TIME",
        "Rows whose token expires at this time or earlier: 2026-03-01 or 2026-03-01T12:00:00+00:00. Without it, now.",
    ),
    key: str | None = value(
        "--key KEY_ID",
        "In place of expired rows, those under this key, which nobody needs any more: it was destroyed, or was a "
        "tenant's that has gone.",
    ),
    action: Action = value("--action", "Delete the rows, or only set the column to NULL.", default="delete"),
    dry_run: bool = flag("--dry-run", "Count the rows, and remove none."),
    as_json: bool = JSON,
) -> None:
    """Remove expired rows; see :mod:`jwt_column.cli.app` for the help text."""
    if key is not None and before is not None:
        raise ConfigurationError(
            "--before is for expired rows, and --key takes all rows under the key; give one of them"
        )
    # An envelope shows whether it has an expiry; only a model can say that the column exposes none.
    chosen = choose_column(ColumnOptions(**vars(name), expose_expiry=model is None), model)
    if key is not None:
        _check_key(key, chosen)
    work = _Purge(chosen.name, action, dry_run, None if key is not None else read_time(before), key)
    url = read_url(database)

    def stopped() -> str:
        rows = f"{counted(work.removed, 'row')} or more were" if work.removed else "nothing was"
        return f"stopped: {rows} {work.done}. The same command goes on from there."

    with stoppable(stopped):
        with_engine(url, lambda engine: work.run(engine, chosen))
    if as_json:
        print_json(work.to_dict())
    else:
        _show(work)
    if work.refused_count:
        raise typer.Exit(ExitCode.FAILURE)


def _show(work: _Purge) -> None:
    console = make_console()
    console.print(Text(printable(work.column), "bold"))
    console.print()
    if work.hidden is not None:
        indented(console, Text(f"Visible rows only: {work.hidden} to purge all of them.", "yellow"))
    if work.dry_run:
        found = f"Dry run: {counted(work.found, 'row')} {work.which}. Nothing was {work.done}."
        indented(console, Text(found, "bold"))
        return
    for reason, count in Counter(reason for _, reason in work.refused).most_common():
        keys = [key[0] if len(key) == 1 else key for key, why in work.refused if why == reason]
        listed = f" ({reason}; primary keys {printable(listed_keys(keys[:_SHOWN], count, _SHOWN))})"
        indented(console, Text.assemble("refused by the database  ", (f"{count:,}", "bold red"), listed))
    verb = "" if work.before is None else "that "
    done = f"{counted(work.removed, 'row')} {work.done} {verb}{work.which}."
    indented(console, verdict(console, done, ok=not work.refused_count))


def _check_key(key_id: str, chosen: ChosenColumn) -> None:
    """Refuse a key that new rows are written under, if the ring is here to tell."""
    parse_key_id(key_id)
    try:
        active = chosen.type_.ring().current_key_ids
    except (ConfigurationError, KeyRingError):
        return  # A host without keys.
    if key_id in active:
        raise ConfigurationError(
            f"{key_id} is an active key, and new rows are written under it; make another key active first ('jwt-column "
            "keys activate'), or remove the tenant's keys. Nothing was removed"
        )


def _expiry_of(column: Column[Any]) -> ColumnElement[Any]:
    try:
        return EncryptedComparator(column).expires_at
    except UnsupportedComparisonError as error:
        # Before anything was asked of the rows, it is the command that is wrong.
        reason = str(error)
    raise ConfigurationError(f"{reason}; nothing was deleted")


def read_time(text: str | None) -> datetime:
    """Return a time in UTC: now, the beginning of a day, or a time with its zone."""
    if text is None:
        return datetime.now(UTC)
    try:
        time_ = datetime.fromisoformat(text)
    except ValueError:
        time_ = None
    if time_ is not None and len(text) == len("2026-03-01"):
        return time_.replace(tzinfo=UTC)
    if time_ is None or time_.utcoffset() is None:
        raise ConfigurationError(
            "--before is a day, which begins in UTC, or a time with its zone, as in 2026-03-01T12:00:00+00:00"
        )
    return time_.astimezone(UTC)
