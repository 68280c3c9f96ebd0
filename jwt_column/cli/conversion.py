"""One conversion of a column's rows from the command line: what ``reencrypt`` and ``encrypt`` have in common.

The engine, :func:`migrations_helpers.engine.reencryption.convert_column`, does the work. This module handles
the column and the database that the command line names, progress, signals, the summary, and how the command ends.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import typer
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from migrations_helpers.engine.expired import choose_expired
from migrations_helpers.engine.progress import line_progress, progress_bar
from migrations_helpers.engine.reencryption import convert_column
from migrations_helpers.engine.run import Options

from ..census import key_usage
from ..database.driver_errors import error_name
from ..errors import ConfigurationError, JWTColumnError, ReencryptionError
from .columns import choose_column
from .console import DatabaseError, make_console, print_problem
from .databases import connect, is_async, read_url, sync_drivername, with_engine
from .signals import Interruptions
from .summary import Summary, listed_keys, print_summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL, Engine

    from migrations_helpers import ReencryptionReport
    from migrations_helpers.engine.conversions import Conversion
    from migrations_helpers.engine.expired import ExpiredChoice
    from migrations_helpers.engine.progress import Progress

    from .columns import ChosenColumn, ColumnOptions
    from .summary import Census, Words

__all__ = ["RunOptions", "convert"]


@dataclass(frozen=True)
class RunOptions:
    """What the command line says about the run."""

    database: str | None = None
    dry_run: bool = False
    verify: bool = False
    shards: int = 1
    batch_size: int = 500
    nice: float | None = None
    key_columns: tuple[str, ...] = ()
    preserve: tuple[str, ...] = ()
    as_json: bool = False
    expired: ExpiredChoice = "keep"


def convert(
    column_options: ColumnOptions,
    options: RunOptions,
    make_conversion: Callable[..., Conversion],
    words: Words,
) -> None:
    """Run a conversion and show what it did.

    Raises:
        JWTColumnError: It was not done; :func:`print_error` knows the exit code.
        typer.Exit: It was stopped by a signal.
    """
    with Interruptions() as interruptions:
        run = _Run(options, make_conversion, words, interruptions)
        try:
            run.run(column_options)
        except (Exception, KeyboardInterrupt):
            if interruptions.number is None:
                raise
        else:
            return
    # Whatever was raised, the signal is why.
    run.say_stopped()
    raise typer.Exit(interruptions.exit_code)


class _Run:
    """One run, and what is known of it so far."""

    def __init__(
        self,
        options: RunOptions,
        make_conversion: Callable[..., Conversion],
        words: Words,
        interruptions: Interruptions,
    ) -> None:
        self._options = options
        self._make_conversion = make_conversion
        self._words = words
        self._interruptions = interruptions
        self._report: ReencryptionReport | None = None
        # A report shows the rows of shards now and then, and counts them when a shard ends.
        self._rows_seen = 0

    def run(self, column_options: ColumnOptions) -> None:
        """Find the column, its ring and the database, and convert: mistakes show before anything is asked of it."""
        column = choose_column(column_options)
        column.type_.ring()
        url = read_url(self._options.database)
        if self._options.shards > 1 and is_async(url):
            raise ConfigurationError(
                f"--shards needs a synchronous driver, and {url.drivername}:// is an asynchronous one; write "
                f"{sync_drivername(url)}:// in the URL, or leave --shards out"
            )
        with_engine(url, lambda engine: self._convert(engine, column))

    def _convert(self, engine: Engine, column: ChosenColumn) -> None:
        options = self._options
        with connect(engine) as connection:
            column = column.found_in(connection, key_columns=options.key_columns, preserve=options.preserve)
        expired = choose_expired(options.expired, column.type_)
        failure: JWTColumnError | None = None
        before = after = None
        with self._progress(column) as progress:
            if not options.as_json:
                before = _census(engine, column)
            try:
                self._report = convert_column(
                    engine,
                    column.table,
                    column.column,
                    column.type_,
                    self._make_conversion,
                    self._engine_options(engine.url, progress),
                    schema=column.schema,
                    expired=expired,
                )
            except ReencryptionError as error:
                failure = DatabaseError(str(error)) if error.reason == "database" else error
            except DBAPIError as error:
                # While it was connecting, or between two batches; what it says may hold values of a row.
                failure = DatabaseError(f"{column.name}: the database refused ({error_name(error)})")
            self._interruptions.check()
            # A database that has just refused is not asked again.
            if before is not None and not options.dry_run and not isinstance(failure, DatabaseError):
                after = _census(engine, column)
        report = self._report
        if report is not None and options.as_json:
            _print_json(report)
        elif report is not None and before is not None and not isinstance(failure, DatabaseError):
            summary = Summary(column, report, before, after, failure is None, options.expired)
            print_summary(make_console(), summary, self._words)
        if failure is None and report is not None and report.dry_run and report.left:
            # The engine fails where it would have written.
            failure = ReencryptionError(
                f"{column.name}: a run would leave {_left_rows(report)} as they are, and would end like this one. "
                "Restore or clear those rows, or add the key or the room that they need",
                reason="rows",
                report=report,
            )
        if failure is not None:
            raise failure

    def _engine_options(self, url: URL, progress: Progress) -> Options:
        options = self._options
        return Options(
            batch_size=options.batch_size,
            nice=options.nice,
            shards=options.shards,
            dry_run=options.dry_run,
            verify="decrypt" if options.verify else "stamp",
            key_columns=options.key_columns or None,
            preserve=options.preserve,
            make_engine=partial(_shard_engine, url),
            progress=partial(self._watch, progress),
        )

    def _watch(self, progress: Progress, report: ReencryptionReport) -> None:
        self._report = report
        self._rows_seen = max(self._rows_seen, report.reencrypted)
        self._interruptions.check()
        progress(report)

    @contextmanager
    def _progress(self, column: ChosenColumn) -> Iterator[Progress]:
        """Return what shows a report: a bar on a terminal, plain lines on standard error elsewhere."""
        console = make_console(stderr=True)
        # Rich takes a pipe for a terminal where the environment says so, which is meant for colours.
        if console.is_interactive and sys.stderr.isatty():
            with progress_bar(column.name, console, transient=True) as show:
                yield show
        else:
            yield line_progress(partial(typer.echo, err=True))

    def say_stopped(self) -> None:
        """Say what is there after Ctrl-C."""
        report = self._report
        if report is not None and not report.dry_run:
            report.reencrypted = self._rows_seen
        if report is not None and self._options.as_json:
            _print_json(report)
        done = self._words.done
        # A batch may be in the database and not in the report yet, and a shard tells its rows when it ends.
        kept = (
            f"{self._rows_seen:,} rows or more were {done}, and stay so"
            if self._rows_seen
            else f"what was {done} stays so"
        )
        if report is None or report.dry_run:
            kept = "nothing was written"
        print_problem(f"stopped: {kept}. The same command goes on from there.")


def _census(engine: Engine, column: ChosenColumn) -> Census:
    """Count the rows by key id and state, by SQL alone."""
    with connect(engine) as connection:
        rows = connection.execute(key_usage(column.typed())).all()
    return {(row.key_id, row.state): row.rows for row in rows}


def _left_rows(report: ReencryptionReport) -> str:
    """Say which rows a run leaves as they are, and why."""
    return " and ".join(
        f"{count} rows that cannot be {what} (primary keys {listed_keys(keys, count, 5)})"
        for what, keys, count in (
            ("read", report.undecryptable, report.undecryptable_count),
            ("written", report.unwritable, report.unwritable_count),
        )
        if count
    )


def _shard_engine(url: URL) -> Engine:
    """Return the engine of a shard, in its own process."""
    if threading.current_thread() is threading.main_thread():
        # Ctrl-C reaches every process of a terminal. A shard ends at once and without a word, as its parent expects.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return create_engine(url, hide_parameters=True)


def _print_json(report: ReencryptionReport) -> None:
    # Not through Rich, which would break long lines.
    typer.echo(json.dumps(report.to_dict(), indent=2))
