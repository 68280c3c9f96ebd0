"""One conversion of a column's rows from the command line, for ``reencrypt`` and ``encrypt``.

The engine, :func:`migrations_helpers.engine.reencryption.convert_column`, does the work. This module handles
the column and the database that the command line names, progress, signals, the summary, and how the command ends.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import typer
from sqlalchemy import create_engine, inspect, text

from migrations_helpers.engine.endings import explain
from migrations_helpers.engine.expired import choose_expired
from migrations_helpers.engine.options import Options
from migrations_helpers.engine.reencryption import convert_column
from migrations_helpers.engine.tenants import schema_names

from ..census import key_usage
from ..database.time_limits import lifted
from ..errors import ConfigurationError, JWTColumnError, ReencryptionError
from ..wording import counted
from .console import DatabaseError, make_console, print_json, print_problem
from .databases import (
    connect,
    connect_arguments,
    is_async,
    read_url,
    refusals,
    sync_drivername,
    with_engine,
)
from .options import split_names
from .preflight import show_preflight
from .progress import run_progress
from .signals import Interruptions, Pauses, ignore_pauses
from .summary import Summary, listed_keys, print_summary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import URL, Engine

    from migrations_helpers import ReencryptionReport
    from migrations_helpers.engine.conversions import Conversion
    from migrations_helpers.engine.expired import ExpiredChoice
    from migrations_helpers.engine.progress import Progress

    from .columns import ChosenColumn
    from .reencrypt import RunOptions
    from .summary import Census, Words


@dataclass(frozen=True)
class Run:
    """One run that the command line asks for."""

    column: ChosenColumn
    options: RunOptions
    make_conversion: Callable[..., Conversion]
    words: Words
    expired: ExpiredChoice = "keep"
    recompute: bool = False

    def schemas(self, engine: Engine) -> list[str] | None:
        """Return the schemas that the command line names; None for the one of the column."""
        names, query = split_names(self.options.schemas), self.options.schemas_query
        if not names and not query:
            return None
        if (names and query) or (self.column.options is not None and self.column.schema is not None):
            raise ConfigurationError(
                "--schema, --schemas and --schemas-query exclude each other; give one of them"
            )
        with connect(engine) as connection:
            found = schema_names(connection, text(query) if query else names)
        if not found:
            raise ConfigurationError("--schemas-query found no schema; nothing was done")
        return found

    def column_in(self, engine: Engine, schemas: Sequence[str] | None) -> ChosenColumn:
        """Return the column as the database has it; of several schemas, as the first one that has it."""
        failure: ConfigurationError | None = None
        with connect(engine) as connection:
            for schema in [self.column.schema] if schemas is None else schemas:
                try:
                    return replace(self.column, schema=schema).found_in(
                        connection,
                        key_columns=split_names(self.options.key_columns),
                        preserve=split_names(self.options.preserve),
                        writes=not self.options.dry_run,
                    )
                except ConfigurationError as error:
                    failure = failure or error
        assert failure is not None  # noqa: S101 - there is one schema at least
        raise failure

    @property
    def of_engine(self) -> dict[str, Any]:
        """The options as keywords of the engine's."""
        options = self.options
        same = ("batch_size", "shards", "dry_run", "on_row_error", "wait")
        return {
            **{name: getattr(options, name) for name in same},
            "verify": "tokens" if options.verify_tokens else "decrypt" if options.verify else "stamp",
            "key_columns": split_names(options.key_columns) or None,
            "preserve": split_names(options.preserve),
            "recompute": self.recompute,
            **options.of_engine,
        }


def convert(database: str | None, run: Run) -> None:
    """Do a run and show its summary."""
    url = read_url(database)
    if run.options.preflight:
        with_engine(url, partial(show_preflight, run))
        return
    run.column.type_.ring()
    if run.options.shards > 1 and is_async(url):
        raise ConfigurationError(
            f"--shards needs a synchronous driver, and {url.drivername}:// is an asynchronous one; write "
            f"{sync_drivername(url)}:// in the URL, or leave --shards out"
        )
    with Interruptions() as interruptions, Pauses() as pauses:
        work = _Work(run, interruptions, pauses)
        try:
            with_engine(url, work.run)
        except (Exception, KeyboardInterrupt):
            if interruptions.number is None:
                raise
        else:
            return
    # Any exception then came from the signal.
    work.report_stop()
    raise typer.Exit(interruptions.exit_code)


@dataclass
class _Work:
    """A run while it is done, and its last report."""

    asked: Run
    interruptions: Interruptions
    pauses: Pauses
    report: ReencryptionReport | None = None
    # A report shows the rows of shards now and then, and counts them when a shard ends.
    rows_seen: int = 0

    def run(self, engine: Engine) -> None:
        """Convert: wrong options are refused before any row is read."""
        run, options = self.asked, self.asked.options
        schemas = run.schemas(engine)
        column = run.column_in(engine, schemas)
        expired = choose_expired(run.expired, column.type_)
        failure: JWTColumnError | None = None
        before = after = None
        with run_progress(column.name) as progress:
            if not options.as_json:
                before = _census(engine, column, schemas)
            try:
                with refusals(column.name):
                    self.report = convert_column(
                        engine,
                        (column if schemas is None else replace(column, schema=None)).subject(),
                        run.make_conversion,
                        Options(
                            expired=expired,
                            schemas=schemas,
                            is_paused=self.pauses.is_paused,
                            make_engine=partial(_shard_engine, engine.url),
                            progress=partial(self._watch, progress),
                            **run.of_engine,
                        ),
                    )
            except ReencryptionError as error:
                if error.reason == "schemas":
                    # Until now it was the report of the last schema.
                    self.report = cast("ReencryptionReport", error.report)
                failure = error
            except DatabaseError as error:
                failure = error
            self.interruptions.check()
            # A database that has just refused is not asked again.
            if before is not None and not options.dry_run and not isinstance(failure, DatabaseError):
                after = _census(engine, column, schemas)
        report = self.report
        if report is not None and options.as_json:
            print_json(report.to_dict())
        elif report is not None and before is not None and not isinstance(failure, DatabaseError):
            column = column if schemas is None else replace(column, schema=None)
            is_done = failure is None and (report.dry_run or report.is_complete)
            summary = Summary(column, report, before, after, is_done, run.expired)
            print_summary(make_console(), summary, run.words)
        if failure is None and report is not None:
            failure = _left_over(column.name, report)
        if failure is not None:
            raise failure

    def _watch(self, progress: Progress, report: ReencryptionReport) -> None:
        self.report = report
        self.rows_seen = max(self.rows_seen, report.reencrypted)
        self.interruptions.check()
        progress(report)

    def report_stop(self) -> None:
        """Print the state after Ctrl-C."""
        report = self.report
        if report is not None and not report.dry_run:
            report.reencrypted = self.rows_seen
        if report is not None and self.asked.options.as_json:
            print_json(report.to_dict())
        # A batch may be in the database and not in the report yet, and a shard tells its rows when it ends.
        kept = f"{counted(self.rows_seen, 'row')} or more were" if self.rows_seen else "rows may be"
        kept = f"{kept} {self.asked.words.done}, and stay so"
        if report is None or report.dry_run:
            kept = "nothing was written"
        print_problem(f"stopped: {kept}. The same command goes on from there.")


def _census(engine: Engine, column: ChosenColumn, schemas: Sequence[str] | None) -> Census:
    """Count the rows by key id and state, by SQL alone, in all schemas that have the table."""
    counted: Counter[tuple[str | None, str]] = Counter()
    with connect(engine) as connection, lifted(connection):
        for schema in [column.schema] if schemas is None else schemas:
            if schemas is None or inspect(connection).has_table(column.table, schema=schema):
                for row in connection.execute(key_usage(replace(column, schema=schema).typed())):
                    counted[row.key_id, row.state] += row.rows
    return counted


def _left_over(column: str, report: ReencryptionReport) -> ReencryptionError | None:
    """Return the error of a run that leaves rows, or would; None if it leaves none."""
    if not report.dry_run:
        return (
            None if report.is_complete else ReencryptionError(explain(report), reason="rows", report=report)
        )
    # The engine fails where it would have written.
    left = " and ".join(
        f"{counted(count, 'row')} that cannot be {verb} (primary keys {listed_keys(keys, count, 5)})"
        for verb, keys, count in (
            ("read", report.undecryptable, report.undecryptable_count),
            ("written", report.unwritable, report.unwritable_count),
        )
        if count
    )
    if not report.left:
        return None
    return ReencryptionError(
        f"{column}: a run would leave {left} as they are, and would end like this one. Tokens that are no JWT need "
        "allow_opaque (--allow-opaque), JSON objects --type json, rows of a renamed table or column its old name as "
        "context (--context), others a key that the ring lacks or more room; give these, or restore the rows",
        reason="rows",
        report=report,
    )


def _shard_engine(url: URL) -> Engine:
    """Return the engine of a shard, in its own process."""
    if threading.current_thread() is threading.main_thread():
        # Ctrl-C reaches every process of a terminal. A shard ends at once and prints nothing, as its parent expects.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        ignore_pauses()
    return create_engine(url, hide_parameters=True, connect_args=connect_arguments(url))
