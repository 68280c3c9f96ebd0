"""One conversion of a column's rows from the command line, for ``reencrypt`` and ``encrypt``.

The engine, :func:`migrations_helpers.engine.reencryption.convert_column`, does the work. This module handles
the column and the database that the command line names, progress, signals, the summary, and how the command ends.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import typer
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from migrations_helpers.engine.expired import choose_expired
from migrations_helpers.engine.progress import line_progress, progress_bar
from migrations_helpers.engine.reencryption import convert_column
from migrations_helpers.engine.run import Options, explain
from migrations_helpers.engine.tenants import schema_names

from ..census import key_usage
from ..database.error_sentences import explained
from ..database.time_limits import lifted
from ..errors import ConfigurationError, JWTColumnError, ReencryptionError
from .console import DatabaseError, counted, make_console, print_json, print_problem
from .databases import connect, connect_arguments, is_async, read_url, sync_drivername, with_engine
from .preflight import show_preflight
from .progress import terminal
from .signals import Interruptions, Pauses, ignore_pauses
from .summary import Summary, listed_keys, print_summary
from .verbosity import is_quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import URL, Connection, Engine

    from migrations_helpers import ReencryptionReport
    from migrations_helpers.engine.conversions import Conversion
    from migrations_helpers.engine.expired import ExpiredChoice
    from migrations_helpers.engine.progress import Progress

    from .columns import ChosenColumn
    from .reencrypt import RunOptions
    from .summary import Census, Words

__all__ = ["convert", "split_names"]


def convert(
    database: str | None,
    column: ChosenColumn,
    options: RunOptions,
    make_conversion: Callable[..., Conversion],
    words: Words,
    *,
    expired: ExpiredChoice = "keep",
    recompute: bool = False,
) -> None:
    """Run a conversion and show its summary.

    Raises:
        JWTColumnError: It was not done; :func:`print_error` knows the exit code.
        typer.Exit: It was stopped by a signal.
    """
    url = read_url(database)
    if options.preflight:
        with_engine(url, partial(_preflight, column, options, make_conversion))
        return
    column.type_.ring()
    if options.shards > 1 and is_async(url):
        raise ConfigurationError(
            f"--shards needs a synchronous driver, and {url.drivername}:// is an asynchronous one; write "
            f"{sync_drivername(url)}:// in the URL, or leave --shards out"
        )
    with Interruptions() as interruptions, Pauses() as pauses:
        run = _Run(
            column, options, make_conversion, words, expired, interruptions, pauses, recompute=recompute
        )
        try:
            with_engine(url, run.run)
        except (Exception, KeyboardInterrupt):
            if interruptions.number is None:
                raise
        else:
            return
    # Any exception then came from the signal.
    run.report_stop()
    raise typer.Exit(interruptions.exit_code)


def _preflight(
    column: ChosenColumn, options: RunOptions, make_conversion: Callable[..., Conversion], engine: Engine
) -> None:
    schemas = _schemas(engine, column, options)
    show_preflight(
        engine,
        column,
        [column.schema] if schemas is None else schemas,
        make_conversion,
        split_names(options.key_columns),
        split_names(options.preserve),
        as_json=options.as_json,
    )


def _schemas(engine: Engine, column: ChosenColumn, options: RunOptions) -> list[str] | None:
    """Return the schemas that the command line names; None for the one of the column.

    Raises:
        ConfigurationError: It names them twice, or there are none.
    """
    names, query = split_names(options.schemas), options.schemas_query
    if not names and not query:
        return None
    if (names and query) or (column.options is not None and column.schema is not None):
        raise ConfigurationError(
            "--schema, --schemas and --schemas-query exclude each other; give one of them"
        )
    with connect(engine) as connection:
        found = schema_names(connection, text(query) if query else names)
    if not found:
        raise ConfigurationError("--schemas-query found no schema; nothing was done")
    return found


class _Run:
    """One run, and its last report."""

    def __init__(
        self,
        column: ChosenColumn,
        options: RunOptions,
        make_conversion: Callable[..., Conversion],
        words: Words,
        expired: ExpiredChoice,
        interruptions: Interruptions,
        pauses: Pauses,
        *,
        recompute: bool,
    ) -> None:
        self._column = column
        self._options = options
        self._key_columns, self._preserve = split_names(options.key_columns), split_names(options.preserve)
        self._make_conversion = make_conversion
        self._words = words
        self._expired = expired
        self._interruptions = interruptions
        self._recompute = recompute
        self._pauses = pauses
        self._report: ReencryptionReport | None = None
        # A report shows the rows of shards now and then, and counts them when a shard ends.
        self._rows_seen = 0

    def run(self, engine: Engine) -> None:
        """Convert: wrong options are refused before any row is read."""
        options = self._options
        schemas = _schemas(engine, self._column, options)
        with connect(engine) as connection:
            column = self._found_in(connection, schemas)
        expired = choose_expired(self._expired, column.type_)
        failure: JWTColumnError | None = None
        before = after = None
        with self._progress(column) as progress:
            if not options.as_json:
                before = _census(engine, column, schemas)
            try:
                self._report = convert_column(
                    engine,
                    column.table,
                    column.column,
                    column.type_,
                    self._make_conversion,
                    self._engine_options(engine.url, progress, schemas),
                    schema=column.schema if schemas is None else None,
                    expired=expired,
                )
            except ReencryptionError as error:
                if error.reason == "schemas":
                    # Until now it was the report of the last schema.
                    self._report = cast("ReencryptionReport", error.report)
                failure = DatabaseError(str(error)) if error.reason == "database" else error
            except DBAPIError as error:
                # While it was connecting, or between two batches; its text may hold values of a row.
                failure = DatabaseError(f"{column.name}: the database refused ({explained(error)})")
            self._interruptions.check()
            # A database that has just refused is not asked again.
            if before is not None and not options.dry_run and not isinstance(failure, DatabaseError):
                after = _census(engine, column, schemas)
        report = self._report
        if report is not None and options.as_json:
            print_json(report.to_dict())
        elif report is not None and before is not None and not isinstance(failure, DatabaseError):
            column = column if schemas is None else replace(column, schema=None)
            is_done = failure is None and (report.dry_run or report.is_complete)
            summary = Summary(column, report, before, after, is_done, self._expired)
            print_summary(make_console(), summary, self._words)
        if failure is None and report is not None and not report.dry_run and not report.is_complete:
            failure = ReencryptionError(explain(report), reason="rows", report=report)
        if failure is None and report is not None and report.dry_run and report.left:
            # The engine fails where it would have written.
            failure = ReencryptionError(
                f"{column.name}: a run would leave {_left_rows(report)} as they are, and would end like this one. "
                "Tokens that are no JWT need allow_opaque (--allow-opaque), JSON objects --type json, rows of a "
                "renamed table or column its old name as context (--context), others a key that the ring lacks or more "
                "room; give these, or restore the rows",
                reason="rows",
                report=report,
            )
        if failure is not None:
            raise failure

    def _found_in(self, connection: Connection, schemas: Sequence[str] | None) -> ChosenColumn:
        """Return the column as the database has it; of several schemas, as the first one that has it.

        Raises:
            ConfigurationError: No schema has it.
        """
        failure: ConfigurationError | None = None
        for schema in [self._column.schema] if schemas is None else schemas:
            column = replace(self._column, schema=schema)
            try:
                return column.found_in(
                    connection,
                    key_columns=self._key_columns,
                    preserve=self._preserve,
                    writes=not self._options.dry_run,
                )
            except ConfigurationError as error:
                failure = failure or error
        assert failure is not None  # noqa: S101 - there is one schema at least
        raise failure

    def _engine_options(self, url: URL, progress: Progress, schemas: Sequence[str] | None) -> Options:
        options = self._options
        return Options(
            batch_size=options.batch_size,
            nice=options.nice,
            shards=options.shards,
            dry_run=options.dry_run,
            verify="tokens" if options.verify_tokens else "decrypt" if options.verify else "stamp",
            key_columns=self._key_columns or None,
            preserve=self._preserve,
            on_row_error=options.on_row_error,
            schemas=schemas,
            until=options.until,
            window=options.window,
            throttle=None if options.throttle_query is None else text(options.throttle_query),
            max_latency=options.max_latency,
            max_replica_lag=options.max_replica_lag,
            replicas=options.replicas,
            is_paused=self._pauses.is_paused,
            recompute=self._recompute,
            wait=options.wait,
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
        """Return a function that shows a report: as a bar on a terminal, as lines elsewhere."""
        console = terminal()
        if is_quiet():
            yield line_progress(lambda _: None)
        elif console is None:
            yield line_progress(partial(typer.echo, err=True))
        else:
            with progress_bar(column.name, console, transient=True) as show:
                yield show

    def report_stop(self) -> None:
        """Print the state after Ctrl-C."""
        report = self._report
        if report is not None and not report.dry_run:
            report.reencrypted = self._rows_seen
        if report is not None and self._options.as_json:
            print_json(report.to_dict())
        # A batch may be in the database and not in the report yet, and a shard tells its rows when it ends.
        kept = f"{counted(self._rows_seen, 'row')} or more were" if self._rows_seen else "rows may be"
        kept = f"{kept} {self._words.done}, and stay so"
        if report is None or report.dry_run:
            kept = "nothing was written"
        print_problem(f"stopped: {kept}. The same command goes on from there.")


def split_names(text: str | None) -> tuple[str, ...]:
    """Return the names of a list with commas."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _census(engine: Engine, column: ChosenColumn, schemas: Sequence[str] | None) -> Census:
    """Count the rows by key id and state, by SQL alone, in all schemas that have the table."""
    counted: Counter[tuple[str | None, str]] = Counter()
    with connect(engine) as connection, lifted(connection):
        for schema in [column.schema] if schemas is None else schemas:
            if schemas is None or inspect(connection).has_table(column.table, schema=schema):
                for row in connection.execute(key_usage(replace(column, schema=schema).typed())):
                    counted[row.key_id, row.state] += row.rows
    return counted


def _left_rows(report: ReencryptionReport) -> str:
    """Return the rows that a run leaves as they are, and the reason."""
    return " and ".join(
        f"{counted(count, 'row')} that cannot be {verb} (primary keys {listed_keys(keys, count, 5)})"
        for verb, keys, count in (
            ("read", report.undecryptable, report.undecryptable_count),
            ("written", report.unwritable, report.unwritable_count),
        )
        if count
    )


def _shard_engine(url: URL) -> Engine:
    """Return the engine of a shard, in its own process."""
    if threading.current_thread() is threading.main_thread():
        # Ctrl-C reaches every process of a terminal. A shard ends at once and prints nothing, as its parent expects.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        ignore_pauses()
    return create_engine(url, hide_parameters=True, connect_args=connect_arguments(url))
