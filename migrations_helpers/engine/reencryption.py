"""Re-encryption of the rows of one column, on tables of any size, while the application writes.

The work is done in batches over the table's key, each in a short transaction of its own. The key id in front of every
envelope says which rows need work, so a run that was stopped goes on where it was, by the rows alone, and a second
run finds nothing to do. Nothing here knows Alembic.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError

from jwt_column.column.types import EncryptedJWT
from jwt_column.database.column_size import capacity_of
from jwt_column.database.key_order import KeyRange
from jwt_column.errors import ConfigurationError
from jwt_column.option_values import TEXT

from .connection import RunConnection
from .conversions import Recomputation, Reencryption
from .endings import database_failure
from .expired import choose_expired
from .layouts import check_drop
from .options import Options, check_options
from .preflight import Subject, examine
from .report import ReencryptionReport
from .run import Run
from .shards import work_in_shards
from .tenants import schema_names, work_in_schemas

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from sqlalchemy import Connection, Engine

    from .conversions import Conversion
    from .expired import ExpiredChoice


def reencrypt(
    bind: Engine | Connection,
    table: str,
    column: str,
    *,
    type_: EncryptedJWT | None = None,
    schema: str | None = None,
    batch_size: int = 500,
    nice: float | None = None,
    shards: int = 1,
    executor: Executor | None = None,
    expired: ExpiredChoice = "keep",
    drop: Sequence[str] = (),
    recompute: bool = False,
    wait: float = 0.0,
    dry_run: bool = False,
    progress: Callable[[ReencryptionReport], None] | None = None,
    **options: Any,
) -> ReencryptionReport:
    """Rewrite every stale row of a column under its active key, and return a report.

    Args:
        bind: An engine, or a connection that is in no transaction.
        table: The table's name.
        column: The encrypted column's name.
        type_: The column's type; None means ``EncryptedJWT()``, with the default key ring.
        schema: The table's schema; None for the default.
        batch_size: Rows of the first batch. Later ones adapt to ``batch_seconds``.
        nice: Sleep this times a batch's duration after it. None means 1.0 on SQLite, where the application waits
            during a write, and 0 elsewhere.
        shards: Cut the table into this many even key ranges and work on them at once.
        executor: Any :class:`concurrent.futures.Executor` for the shards, Dask's ``client.get_executor()`` among them;
            None makes a pool of processes. Each shard opens a connection and loads the key ring itself.
        expired: The treatment of stale rows whose token has expired when the run begins: ``"keep"`` re-encrypts them as
            any others, ``"skip"`` leaves them as they are, ``"null"`` sets the column to NULL, ``"delete"`` deletes
            the row. The last three need a column with ``expose_expiry=True``: SQL decides, by the envelope's header and
            without a key. A row that shows no expiry is re-encrypted.
        drop: Names of fingerprints, or ``"expiry"``, that rows have and *type_* does not make, and that may go. Without
            it a run that would drop one is refused: rows could no longer be found by it.
        recompute: Work out the fingerprints and the expiry of current rows anew too, and rewrite those that differ. It
            opens every row.
        wait: Seconds to wait for another run over the column, which may run on another host. 0 fails at once. When that
            run has ended well, this one finds nothing to do.
        dry_run: Open every stale row and make its new envelope, write nothing.
        progress: Called after each batch with the report so far.
        **options: ``batch_seconds`` (0.1: the time of a batch), ``verify`` (``"stamp"`` counts the rows that are
            left, by SQL; ``"decrypt"`` also opens every row at the end; ``"tokens"``
            compares every token before and after), ``strategy`` (``"auto"``, or ``"cas"`` for
            compare-and-swap), ``lock_timeout`` (0.2 seconds), ``max_retries`` (8 for one batch), ``max_passes`` (10),
            ``vacuum`` (True: PostgreSQL reuses the space of old rows as the run goes), ``key_columns`` (a unique key
            to page by, instead of the primary key), ``make_engine`` (makes the engine of a shard; None connects to the
            same URL with SQLAlchemy's defaults), ``preserve`` (columns that the database updates by itself, and
            must not; MySQL's are found without it), ``on_row_error`` (``"list"`` goes on without a row that the
            database refuses, ``"fail"`` ends the run), ``schemas`` (in place of *schema*: names, a query or a function
            that returns them; the run goes through all of them, and a schema that fails does not stop the others);
            and those of the pace: ``until`` (ends then), ``window`` (works in these hours only, ``"22:00-05:00"``),
            ``throttle`` (a function or a query that returns seconds to sleep after a batch), ``max_latency``
            (``throttle`` returns the application's latency, which is kept below this), ``max_replica_lag`` and
            ``replicas`` (waits for replicas), ``is_paused`` (a function; waits while it returns True).

    Returns:
        The report. If ``is_complete``, no stale row is left; else ``reason`` says why another run is needed.

    Raises:
        ReencryptionError: No such table or column, no key to page by, another run is at work, or rows are left that
            cannot be read or written; ``report`` says which. Rewritten rows stay rewritten.
        ConfigurationError: A parameter has a value that it cannot have, or there is no key ring; or *expired* needs a
            readable expiry, or a nullable column, and there is none; or
            *type_* does not make an index field that rows have, and *drop* does not name it.
        KeyRingError: The key ring cannot be loaded.
    """
    subject = Subject(table, column, in_column(type_, table, column, schema), schema)
    given = Options(
        batch_size=batch_size,
        nice=nice,
        shards=shards,
        executor=executor,
        dry_run=dry_run,
        recompute=recompute,
        wait=wait,
        progress=progress,
        expired=choose_expired(expired, subject.type_),
        **check_options(options),
    )
    return convert_column(bind, subject, partial(Reencryption, drop=check_drop(drop)), given)


def in_column(type_: EncryptedJWT | None, table: str, column: str, schema: str | None = None) -> EncryptedJWT:
    """Return the type of a column that a migration or a command names."""
    TEXT.check(table=table, column=column)
    TEXT.or_none.check(schema=schema)
    if type_ is None:
        type_ = EncryptedJWT()
    if not isinstance(type_, EncryptedJWT):
        raise ConfigurationError(f"type_ is an EncryptedJWT, not {type(type_).__name__}")
    return type_ if type_.context is not None else type_.in_context(f"{table}.{column}")


def convert_column(
    bind: Engine | Connection,
    subject: Subject,
    make_conversion: Callable[..., Conversion],
    options: Options,
) -> ReencryptionReport:
    """Run one conversion over a column; see :func:`reencrypt`. On an empty table no key is needed.

    *make_conversion* takes the type, the raw column and ``capacity=``, the bytes that a value of it may have; that of
    a re-encryption also ``expired=``. The columns to page by and to preserve are those of the options.
    """
    report = ReencryptionReport(table=subject.shown, column=subject.column, dry_run=options.dry_run)
    if options.schemas is not None:
        if subject.schema is not None:
            raise ConfigurationError("schema is one schema and schemas are several; give one of the two")
        alone = replace(options, schemas=None)
        return work_in_schemas(
            schema_names(bind, options.schemas),
            lambda name: convert_column(bind, subject.in_schema(name), make_conversion, alone),
            report,
        )
    subject = replace(subject, key_columns=options.key_columns, preserve=options.preserve)
    expired = options.expired
    if expired is not None:
        make_conversion = partial(make_conversion, expired=expired)
    try:
        with closing(RunConnection(bind, subject, options)) as connection:
            with connection.reading() as transaction:
                examination = examine(transaction, connection.subject, (make_conversion,))
                table = examination.fit_table(writes=not options.dry_run)
                if expired is not None:
                    expired.check_column(f"{table.name}.{subject.column}", is_nullable=table.is_nullable)
                if examination.is_empty:
                    report.finished = True
                    return report
            capacity = capacity_of(table.type_in_database, table.dialect)
            make_fitting = partial(make_conversion, capacity=capacity)
            with closing(Run(connection, table, make_fitting(subject.type_, table.value), options)) as run:
                report = run.report
                report.keeps_history = examination.found("history-kept")
                run.survey()
                run.refuse_lost_fields()
                run.remember_tokens()
                if options.shards > 1 and not options.dry_run:
                    work_in_shards(connection, table, run, make_fitting)
                    run.sweep()
                elif run.left_in(run.begin):
                    run.work(KeyRange())
                else:
                    # A pass would read the whole table, in the order of its key.
                    run.end_with(run.begin)
                if options.recompute:
                    run.recompute(Recomputation(subject.type_, table.value, capacity=capacity))
                run.conclude()
    except SQLAlchemyError as error:
        raise database_failure(report, error) from None
    return report
