"""``jwt-column purge``: rows whose token has expired are deleted, by SQL alone."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

import json
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final

import typer
from rich.text import Text
from sqlalchemy import Column, ColumnElement, Engine, func, select
from sqlalchemy.exc import DBAPIError

from ..column.comparator import EncryptedComparator
from ..column.types import EncryptedJWT
from ..database.driver_errors import error_name
from ..database.row_security import hidden_rows
from ..errors import ConfigurationError, UnsupportedComparisonError
from ..purge import purge_expired
from .audit_columns import choose_targets, typed_column
from .audit_progress import shown_bar
from .columns import ColumnOptions, choose_column
from .console import DatabaseError, indented, make_console, mark, print_problem
from .databases import connect, read_url, with_engine
from .options import ColumnOption, DatabaseOption, ModelOption, SchemaOption, StorageOption, TableOption
from .signals import Interruptions

__all__ = ["EXIT_CODES", "purge"]

#: What stands below the help.
EXIT_CODES: Final = (
    "Exit codes: 0 done; 2 wrong usage or configuration, such as a column that does not expose the expiry; 3 the "
    "database cannot be reached, or refused; 130 stopped by Ctrl-C: the same command goes on from there."
)


@dataclass
class _Purge:
    """One purge, and what it has done so far."""

    before: datetime
    dry_run: bool
    column: str = ""
    hidden: str | None = None
    expired: int = 0
    deleted: int = 0
    seconds: float = 0.0

    def run(self, engine: Engine, options: ColumnOptions) -> None:
        """Count what has expired, and delete it."""
        started = time.monotonic()
        with connect(engine) as connection:
            column = _chosen(connection, options)
            self.column = f"{column.table.fullname}.{column.name}"
            self.hidden = hidden_rows(connection, column.table)
            has_expired = _expiry_of(column) <= self.before
            count = select(func.count()).select_from(column.table).where(has_expired)
            self.expired = connection.scalar(count) or 0
        if not self.dry_run:
            self._delete(engine, column)
        self.seconds = round(time.monotonic() - started, 3)

    def _delete(self, engine: Engine, column: Column[Any]) -> None:
        with shown_bar() as show:

            def progress(deleted: int) -> None:
                self.deleted = deleted
                # Tokens go on expiring.
                show(self.column, deleted, max(deleted, self.expired), "rows")

            try:
                self.deleted = purge_expired(engine, column, before=self.before, progress=progress)
            except DBAPIError as error:
                reason = error_name(error)
            else:
                return
        raise DatabaseError(
            f"{self.column}: the database refused ({reason}); {self.deleted} rows were deleted, and stay so"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON's types."""
        return {
            "column": self.column,
            "before": self.before.isoformat(),
            "dry_run": self.dry_run,
            "expired": self.expired,
            "deleted": self.deleted,
            "seconds": self.seconds,
            "row_security": self.hidden is not None,
        }


def purge(
    *,
    database: DatabaseOption = None,
    model: ModelOption = None,
    table: TableOption = None,
    column: ColumnOption = None,
    schema: SchemaOption = None,
    storage: StorageOption = None,
    before: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Rows whose token expires at this time or earlier: 2026-03-01 or 2026-03-01T12:00:00+00:00. Without "
            "it, now.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the rows, and delete none.")] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print what was done as JSON on standard output, and nothing else there."
        ),
    ] = False,
) -> None:
    """Delete the rows whose token has expired, of a column that exposes the expiry.

    In batches of 500 rows, each in a transaction of its own. No key is needed.
    """
    options = ColumnOptions(
        table=table,
        column=column,
        schema=schema,
        model=model,
        storage=None if storage is None else storage.value,
        # It says nothing of the rows where a table is named: an envelope shows whether it has an expiry.
        expose_expiry=model is None,
    )
    work = _Purge(read_time(before), dry_run)
    url = read_url(database)
    with Interruptions() as interruptions:
        try:
            with_engine(url, lambda engine: work.run(engine, options))
        except KeyboardInterrupt:
            kept = (
                f"{work.deleted:,} rows or more were deleted, and stay so"
                if work.deleted
                else "nothing was deleted"
            )
            print_problem(f"stopped: {kept}. The same command goes on from there.")
            raise typer.Exit(interruptions.exit_code) from None
    if as_json:
        # Not through Rich, which would break long lines.
        typer.echo(json.dumps(work.to_dict(), indent=2))
        return
    console = make_console()
    console.print(Text(work.column, "bold"))
    console.print()
    if work.hidden is not None:
        indented(console, Text(f"Visible rows only: {work.hidden} to purge all of them.", "yellow"))
    when = f"expired by {work.before:%Y-%m-%d %H:%M:%S} UTC"
    if dry_run:
        indented(console, Text(f"Dry run: {work.expired:,} rows {when}. Nothing was deleted.", "bold"))
        return
    done = f"{work.deleted:,} rows deleted that {when}."
    indented(console, Text.assemble(mark(console, ok=True), " ", (done, "bold")))


def _chosen(connection: Any, options: ColumnOptions) -> Column[Any]:
    """Return the column that the command line names, in its table."""
    if options.model is None:
        return typed_column(connection, choose_column(options).counted_in(connection))
    (attribute,) = choose_targets(ColumnOptions(), [options.model])(connection)
    found: Any = getattr(getattr(attribute, "property", None), "columns", [attribute])[0]
    if not isinstance(found, Column) or not isinstance(found.type, EncryptedJWT):
        raise ConfigurationError(
            f"--model: {options.model} is no encrypted column; name one, as in app.models:Session.token"
        )
    return found


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
        ConfigurationError: It has another form.
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
