"""``jwt-column purge``: delete the rows whose token has expired, by SQL alone."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

import time
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Any

import typer
from rich.text import Text
from sqlalchemy import Column, ColumnElement, Engine, func, select
from sqlalchemy.exc import DBAPIError

from ..column.comparator import EncryptedComparator
from ..database.driver_errors import error_name
from ..database.printable import printable
from ..database.row_security import hidden_rows
from ..errors import ConfigurationError, UnsupportedComparisonError
from ..purge import purge_expired
from .columns import ChosenColumn, choose_column
from .console import DatabaseError, counted, indented, make_console, mark, print_json
from .databases import connect, read_url, with_engine
from .options import ColumnOptions, DatabaseOption, JsonOption, ModelColumn, StoredColumn, option
from .progress import shown_progress
from .signals import stoppable

__all__ = ["purge"]


@dataclass
class _Purge:
    """One purge, and its state."""

    column: str
    before: datetime
    dry_run: bool
    hidden: str | None = None
    expired: int = 0
    deleted: int = 0
    seconds: float = 0.0

    def run(self, engine: Engine, chosen: ChosenColumn) -> None:
        """Count the expired rows, and delete them."""
        started = time.monotonic()
        with connect(engine) as connection:
            column = chosen.in_table(connection)
            self.hidden = hidden_rows(connection, column.table)
            has_expired = _expiry_of(column) <= self.before
            count = select(func.count()).select_from(column.table).where(has_expired)
            self.expired = connection.scalar(count) or 0
        if not self.dry_run:
            self._delete(engine, column)
        self.seconds = round(time.monotonic() - started, 3)

    def _delete(self, engine: Engine, column: Column[Any]) -> None:
        with shown_progress() as show:

            def progress(deleted: int) -> None:
                self.deleted = deleted
                # Tokens go on expiring.
                show(self.column, deleted, max(deleted, self.expired), "rows deleted")

            try:
                self.deleted = purge_expired(engine, column, before=self.before, progress=progress)
            except DBAPIError as error:
                reason = error_name(error)
            else:
                return
        raise DatabaseError(
            f"{self.column}: the database refused ({reason}); {counted(self.deleted, 'row', ('was', 'were'))} deleted"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the purge as JSON's types."""
        done = asdict(self) | {"before": self.before.isoformat(), "row_security": self.hidden is not None}
        del done["hidden"]
        return done


def purge(
    *,
    database: DatabaseOption = None,
    model: ModelColumn = None,
    name: StoredColumn,
    before: Annotated[
        str | None,
        option(
            "--before",
            metavar="TIME",
            help="Rows whose token expires at this time or earlier: 2026-03-01 or 2026-03-01T12:00:00+00:00. Without "
            "it, now.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the rows, and delete none.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete expired rows; see :mod:`jwt_column.cli.app` for the help text."""
    # An envelope shows whether it has an expiry; only a model can say that the column exposes none.
    chosen = choose_column(ColumnOptions(**vars(name), expose_expiry=model is None), model)
    work = _Purge(chosen.name, read_time(before), dry_run)
    url = read_url(database)

    def stopped() -> str:
        rows = f"{counted(work.deleted, 'row')} or more were" if work.deleted else "nothing was"
        return f"stopped: {rows} deleted. The same command goes on from there."

    with stoppable(stopped):
        with_engine(url, lambda engine: work.run(engine, chosen))
    if as_json:
        print_json(work.to_dict())
        return
    console = make_console()
    console.print(Text(printable(work.column), "bold"))
    console.print()
    if work.hidden is not None:
        indented(console, Text(f"Visible rows only: {work.hidden} to purge all of them.", "yellow"))
    when = f"expired by {work.before:%Y-%m-%d %H:%M:%S} UTC"
    if dry_run:
        indented(
            console, Text(f"Dry run: {counted(work.expired, 'row')} {when}. Nothing was deleted.", "bold")
        )
        return
    done = f"{counted(work.deleted, 'row')} deleted that {when}."
    indented(console, Text.assemble(mark(console, ok=True), " ", (done, "bold")))


def _expiry_of(column: Column[Any]) -> ColumnElement[Any]:
    try:
        return EncryptedComparator(column).expires_at
    except UnsupportedComparisonError as error:
        # Before anything was asked of the rows, it is the command that is wrong.
        reason = str(error)
    raise ConfigurationError(f"{reason}; nothing was deleted")


def read_time(text: str | None) -> datetime:
    """Return a time in UTC: now, the beginning of a day, or a time with its zone.

    Raises:
        ConfigurationError: The text has another form.
    """
    if text is None:
        return datetime.now(UTC)
    try:
        if len(text) == len("2026-03-01"):
            day = date.fromisoformat(text)
            return datetime(day.year, day.month, day.day, tzinfo=UTC)
        time_ = datetime.fromisoformat(text)
    except ValueError:
        time_ = None
    if time_ is None or time_.utcoffset() is None:
        raise ConfigurationError(
            "--before is a day, which begins in UTC, or a time with its zone, as in 2026-03-01T12:00:00+00:00"
        )
    return time_.astimezone(UTC)
