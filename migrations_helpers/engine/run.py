"""One run over one column, or over one key range of it: batches, retries, passes, and the report."""

from __future__ import annotations

import logging
import math
import random
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from sqlalchemy.exc import DBAPIError

from jwt_column.database.driver_errors import error_name, is_refusal_of_row, is_retryable
from jwt_column.database.key_order import KeyRange
from jwt_column.errors import ConfigurationError, ReencryptionError

from .conversions import Reencryption, find_lost_fields
from .endings import database_failure, explain, listed, rewritten
from .integrity import TokenComparison
from .pace import Pace
from .report import ReencryptionReport, TokenReport
from .strategies import AlteredError, Batch, Strategy, Task, choose_removal, choose_strategy, read_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnElement, Executable, Row

    from .connection import RunConnection
    from .conversions import Conversion, Recomputation
    from .options import Options
    from .table import RunTable


_Result = TypeVar("_Result")

logger: logging.Logger = logging.getLogger("migrations_helpers")

_SMALLEST_BATCH: Final = 50
_LARGEST_BATCH: Final = 1_000
# A batch grows by a fifth at most, so that one lucky batch does not make the next one long.
_GROWTH: Final = 1.2
# Weight of the newest batch in the moving average of the time that a row takes.
_SMOOTHING: Final = 0.4
# The share of the table that may become dead rows before PostgreSQL is asked to reuse their space.
_VACUUM_SHARE: Final = 0.1
_VACUUM_ROWS: Final = 20_000
# Rows that the database may refuse before it has taken one. Then it is no fault of the rows.
_REFUSED_AT_FIRST: Final = 1_000
# Seconds of the last progress that tell how long the rest will take.
_RECENT: Final = 60.0


class Survey(NamedTuple):
    """Rows with a value: all of them, and those of each condition of :class:`~.conversions.Rows`."""

    rows: int = 0
    pending: int = 0
    plaintext: int = 0
    expired: int = 0
    protected: int = 0
    destroyed: int = 0


class Run:
    """One run over one column, or over one shard of it."""

    def __init__(
        self,
        connection: RunConnection,
        table: RunTable,
        conversion: Conversion,
        options: Options,
    ) -> None:
        self._connection = connection
        self._table = table
        # A trigger may change what it is given.
        self._reads_all_back = options.verify == "tokens" or bool(table.triggers)
        self._tokens: TokenComparison | None = None
        self.conversion: Conversion = conversion
        self.options = options
        self._strategy = (
            choose_strategy(connection.sqlalchemy, table, options.strategy)
            if isinstance(options.strategy, str)
            else options.strategy
        )
        self._removal: Strategy | None = None
        if options.expired is not None and options.expired.removes:
            self._removal = choose_removal(connection.sqlalchemy, self._strategy, options.expired)
        self._limit = options.batch_size
        self._row_seconds: float | None = None
        self._dead_rows = 0
        self._started = time.monotonic()
        #: The rows when the run began, and at the end of its last pass.
        self.begin: Survey
        self.begin = self._end = Survey()
        #: Seconds that the last count of the rows took.
        self.look_seconds: float = 0.0
        self.report: ReencryptionReport = ReencryptionReport(
            table=table.name, column=table.value.name, key_id=conversion.key_id, dry_run=options.dry_run
        )
        default_nice = 1.0 if connection.dialect == "sqlite" else 0.0
        nice = default_nice if options.nice is None else options.nice
        #: When the run waits, and when it ends early.
        self.pace: Pace = Pace(options, nice, self.read, connection.dialect, self.report, self.tell)
        # Moments of the last minute, and the rows that were done then.
        self._progress: deque[tuple[float, int]] = deque()

    def survey(self) -> None:
        """Count the rows that need work."""
        report = self.report
        self.begin = self._end = found = self.look(KeyRange())
        report.total = found.pending + found.expired
        report.plaintext = found.plaintext
        # Re-encryption leaves plaintext alone: it is neither pending nor current. Nor are expired rows current.
        untouched = found.plaintext if self.conversion.leaves_plaintext else 0
        report.destroyed = found.destroyed
        left = found.pending + found.expired + found.protected + found.destroyed + untouched
        report.already_current = found.rows - left
        if self.options.dry_run or self._removal is None:
            report.expired = found.expired
        report.scanned = report.already_current
        self.tell()

    def look(self, keys: KeyRange) -> Survey:
        """Count the rows of a key range, by SQL."""
        began = time.monotonic()
        conditions = [getattr(self.conversion.rows, name) for name in Survey._fields[1:]]
        found = Survey._make(self.read(self._table.counts(conditions, keys))[0])
        self.look_seconds = time.monotonic() - began
        return found

    def read(self, statement: Executable) -> Sequence[Row[Any]]:
        """Return the rows of a query, asked again where the database put it off or the connection was lost."""
        return self._retry(lambda: self._connection.read(statement))

    def left_in(self, found: Survey) -> int:
        """Return how many rows something is still to be done with."""
        return found.pending + (found.expired if self._removal is not None else 0)

    def refuse_lost_fields(self) -> None:
        """Raise if rows hold index fields that the run would drop; the message renders the type that keeps them."""
        conversion = self.conversion
        if not isinstance(conversion, Reencryption):
            return
        lost = find_lost_fields(
            self.read,
            self._table,
            conversion,
            protected=self.begin.protected,
            pending=self.begin.pending,
        )
        if lost is not None:
            raise ConfigurationError(
                f"{lost}, or name the fields that may go in drop=[...]. Nothing was done",
                context=conversion.type_.context,
            )

    def remember_tokens(self) -> None:
        """Take the digests of all tokens, to compare them when the run has ended; see :meth:`close`."""
        if self.options.verify == "tokens" and not self.options.dry_run:
            self._tokens = TokenComparison(self.read, self._table, self.conversion, self.report, self.tell)
            self._tokens.take()

    def close(self) -> None:
        """Remove what a run keeps outside of its memory."""
        self.pace.close()
        if self._tokens is not None:
            self._tokens.close()

    def work(self, keys: KeyRange) -> None:
        """Go over a key range until nothing is left that can be done."""
        report = self.report
        for number in range(self.options.max_passes):
            report.passes += 1
            before = report.reencrypted + report.expired
            self._pass_over(keys)
            self._count_left(keys)
            report.reason = None
            if self.options.dry_run or self.left_in(self._end) <= report.left:
                return
            # The rest is locked by the application, or was written by an old process meanwhile. Give a
            # transaction that holds locks a moment, unless this pass still got somewhere.
            is_stuck = report.reencrypted + report.expired == before
            report.reason = "until" if self.pace.is_over else "locks" if is_stuck else "writers"
            if self.pace.is_over:
                return
            if is_stuck:
                time.sleep(min(0.05 * 2**number, 2.0))

    def sweep(self) -> None:
        """Work on the rows that the shards have left, if there are any."""
        self._count_left(KeyRange())
        if self.left_in(self._end):
            self.work(KeyRange())
        else:
            self.report.forget_left()

    def _count_left(self, keys: KeyRange) -> None:
        self.end_with(self.look(keys))

    def end_with(self, found: Survey) -> None:
        """Take a count of the rows as the last one."""
        self._end = found
        # Rows that another release wrote meanwhile, with index fields that this run would drop, are not worked on.
        self.report.remaining = self.left_in(found) + found.protected
        self.report.plaintext = found.plaintext

    def conclude(self) -> None:
        """Verify, and fail if something is wrong; ``report.reason`` says why rows are left that only need another run.

        Raises:
            ReencryptionError: Rows are left that cannot be read or written, or would lose index fields; or tokens are
                in other rows than before.
        """
        report = self.report
        if self._removal is None:
            report.expired = self._end.expired
        self._count_scanned()
        if not report.dry_run:
            report.superseded = max(0, report.total - report.reencrypted - report.expired - report.remaining)
            has_time = report.reason != "until"
            if has_time and self.options.verify == "decrypt":
                self._open_finished_rows()
            elif has_time and self._tokens is not None:
                self._tokens.compare()
        report.finished = True
        self.tell()
        is_damaged = report.tokens is not None and report.tokens.misplaced_count
        if not report.dry_run and (is_damaged or report.left or self._end.protected):
            reason = "tokens" if is_damaged else "rows"
            raise ReencryptionError(explain(report, self._end.protected), reason=reason, report=report)

    def _count_scanned(self) -> None:
        self.report.scanned = self.report.already_current + self.report.done

    def _pass_over(self, keys: KeyRange) -> None:
        """Work once through a key range, batch by batch."""
        self.report.forget_left()
        window = self._up_to_last_row(keys)
        if window is None:
            return
        rows = self.conversion.rows
        if self._removal is not None and rows.expired is not None and not self.options.dry_run:
            self._batches(self._removal.run_batch, window, rows.expired)
        self._batches(self._run_converting, window, rows.pending, known=self._end.pending)

    def _up_to_last_row(self, keys: KeyRange) -> KeyRange | None:
        """Return a key range that ends at the last row of now, or sooner; None for an empty table.

        Rows that are inserted behind it while we work are for the next pass: without an end that was fixed before, a
        busy application could keep one pass going for ever.
        """
        end = self.read(self._table.order.last())
        return KeyRange(keys.after, keys.up_to or tuple(end[0])) if end else None

    @property
    def _run_converting(self) -> Callable[[Task], Batch]:
        return read_batch if self.options.dry_run else self._strategy.run_batch

    def recompute(self, conversion: Recomputation) -> None:
        """Rewrite current rows whose index fields are not those of their token, in one pass over the table."""
        own, self.conversion = self.conversion, conversion
        before = self.report.reencrypted
        try:
            window = self._up_to_last_row(KeyRange())
            if window is not None:
                self._batches(self._run_converting, window, conversion.rows.pending)
            if self.pace.is_over:
                self.report.reason = "until"
        finally:
            self.conversion = own
            self.report.recomputed = self.report.reencrypted - before
            self.report.reencrypted = before

    def _batches(
        self,
        run_batch: Callable[[Task], Batch],
        window: KeyRange,
        condition: ColumnElement[bool],
        *,
        known: int = 0,
    ) -> None:
        """Work through a key range; *known* is how many of its rows need work, or 0."""
        # In the first batch of a pass are the rows that an earlier pass wrote in vain.
        confirm = True
        while self.pace.may_go_on():
            began = time.monotonic()
            batch = self._run_batch(run_batch, window, condition, known, confirm=confirm)
            known = 0
            confirm = bool(self._table.triggers) or (confirm and bool(batch.refused))
            self._account(batch)
            duration = time.monotonic() - began
            self._adapt(batch.read, duration)
            self.tell()
            self._vacuum()
            if batch.read:
                self.pace.rest(duration, is_last=batch.at_end)
            if batch.at_end:
                return
            window = replace(window, after=batch.last_key)

    def _run_batch(
        self,
        run_batch: Callable[[Task], Batch],
        window: KeyRange,
        condition: ColumnElement[bool],
        known: int,
        *,
        confirm: bool,
    ) -> Batch:
        """Do one batch, again if the database put it off or the connection was lost.

        A row that the database refuses makes its whole batch fail. The batch is halved until it is that row.
        """
        self._connection.is_behind_key = window.after is not None
        # What the type of the column does to values, it does to the first rows.
        reads_back = self._reads_all_back or not self.report.reencrypted
        task = Task(
            self._connection, self._table, self.conversion, window, self._limit, confirm, reads_back, known
        )

        def attempt() -> Batch:
            # The limit anew: a batch that was put off is a smaller one the next time.
            return run_batch(task._replace(limit=self._limit))

        while True:
            try:
                return self._retry(attempt)
            except AlteredError as error:
                raise self._altered(error) from None
            except DBAPIError as error:
                if self._limit == 1:
                    return self._without_row(window, condition, error)
                self._limit //= 2

    def _altered(self, error: AlteredError) -> ReencryptionError:
        """Return the error that ends the run when the database stores other tokens than it is given."""
        report = self.report
        report.assume_remaining()
        report.tokens = tokens = report.tokens or TokenReport()
        for key in error.keys:
            tokens.add_misplaced(key)
        return ReencryptionError(
            f"{report.table}.{report.column}: the database stored other tokens than the run wrote, as a trigger or "
            f"the column's type can ({listed(tokens.misplaced, tokens.misplaced_count)}); that batch was undone, "
            f"{rewritten(report)} before. Disable the triggers of the table, or change the type, and run again",
            reason="tokens",
            report=report,
        )

    def _without_row(self, window: KeyRange, condition: ColumnElement[bool], error: DBAPIError) -> Batch:
        """Return a batch of the next row only, which the database refuses."""
        report, reason = self.report, error_name(error)
        if report.unwritable_count >= _REFUSED_AT_FIRST and not report.reencrypted + report.expired:
            raise database_failure(self.report, error) from None
        statement = self._table.keys_of(condition, window, 1)
        if self._connection.dialect != "sqlite":
            # The row that the batch took: those that are locked were left out.
            statement = statement.with_for_update(key_share=True, skip_locked=True)
        found = self.read(statement)
        if not found:
            return Batch(at_end=True)
        key = tuple(found[0])
        logger.info("%s.%s: a row was refused (%s)", report.table, report.column, reason)
        return Batch(read=1, last_key=key, refused=[(key, reason)])

    def _retry(self, action: Callable[[], _Result]) -> _Result:
        """Retry an atomic action while the database reports a transient error.

        Raises:
            ReencryptionError: It was refused ``max_retries`` times.
        """
        attempt = 0
        while True:
            try:
                return action()
            except DBAPIError as error:
                if is_refusal_of_row(error) and self.options.on_row_error == "list":
                    raise
                if not is_retryable(error) or attempt >= self.options.max_retries:
                    raise database_failure(self.report, error) from None
                self.report.retries += 1
                logger.info(
                    "%s.%s: batch put off (%s)", self.report.table, self.report.column, error_name(error)
                )
                # A lock is a matter of whose turn it is: half the batch next time, down to a single row, because an
                # application that writes to few rows all the time always holds one of many. A server that takes no
                # packet of this size closes the connection, each time again.
                is_lost = error.connection_invalidated or self._connection.is_lost
                if attempt or not is_lost:
                    self._limit = max(1, self._limit // 2)
                if is_lost:
                    if not self._connection.can_reopen:
                        raise database_failure(self.report, error) from None
                    self._reopen()
            # Two runs do not take the same pause.
            time.sleep(min(0.01 * 2**attempt, 1.0) * (0.5 + random.random()))  # noqa: S311 - jitter, no secret
            attempt += 1

    def _reopen(self) -> None:
        """Replace the connection.

        A server that is starting refuses that for a while, and one that has not noticed that the old connection is
        gone still keeps our lock for it.
        """
        attempt = 0
        while True:
            try:
                return self._connection.reopen()
            except (DBAPIError, ReencryptionError) as error:
                if attempt >= self.options.max_retries:
                    raise database_failure(self.report, error) from None
                time.sleep(min(0.1 * 2**attempt, 5.0))
                attempt += 1

    def _account(self, batch: Batch) -> None:
        report = self.report
        report.reencrypted += batch.written
        report.expired += batch.removed
        self._dead_rows += batch.written + batch.removed
        report.add_origins(batch.origins)
        for key in batch.undecryptable:
            report.add_undecryptable(key)
        for key in batch.unwritable:
            report.add_unwritable(key)
        for key, reason in batch.refused:
            report.add_refused(key, reason)
        self._count_scanned()

    def _adapt(self, rows: int, seconds: float) -> None:
        """Move the batch size towards the rows that fit into the time of a batch."""
        if not rows:
            return
        newest = seconds / rows
        old = newest if self._row_seconds is None else self._row_seconds
        self._row_seconds = _SMOOTHING * newest + (1 - _SMOOTHING) * old
        fitting = round(self.pace.batch_seconds / self._row_seconds)
        largest = max(_LARGEST_BATCH, self.options.batch_size)
        smallest = min(_SMALLEST_BATCH, self.options.batch_size)
        # Back to the smallest in steps: a batch that was put off has come down from there, and the next one may meet
        # the same application.
        self._limit = max(
            min(smallest, 2 * self._limit), min(fitting, math.ceil(self._limit * _GROWTH), largest)
        )

    def _vacuum(self) -> None:
        """Let PostgreSQL reuse the space of old rows, which autovacuum does not notice in time."""
        threshold = max(_VACUUM_ROWS, round(_VACUUM_SHARE * self.report.total))
        if self._connection.dialect != "postgresql" or not self.options.vacuum or self._dead_rows < threshold:
            return
        self._dead_rows = 0
        try:
            self._connection.vacuum(self._table.clause)
        except DBAPIError as error:
            # Not the owner, or locked: the run is none the worse, the table a little larger.
            logger.info("%s: not vacuumed (%s)", self.report.table, error_name(error))

    def _open_finished_rows(self) -> None:
        """Open every row that needs no work; those that do and cannot be read are known by now."""
        for rows in self._table.pages(self.read, self.conversion.rows.finished, KeyRange()):
            if self.report.verified:
                self.tell()
            for row in rows:
                if self.conversion.token_or_none(row[-1], *self._table.bound_of(row)) is None:
                    self.report.add_undecryptable(self._table.key_of(row))
                else:
                    self.report.verified += 1

    def _estimate(self) -> None:
        """Work out the time that is left from the last minute: the start of a run tells little of a busy evening."""
        report, now = self.report, time.monotonic()
        if report.waiting:
            # The time until a window opens says nothing about the rows.
            self._progress.clear()
            return
        done = report.done
        if not self._progress or now - self._progress[-1][0] >= 1.0:
            self._progress.append((now, done))
        while now - self._progress[0][0] > _RECENT and len(self._progress) > 1:
            self._progress.popleft()
        then, done_then = self._progress[0]
        if done > done_then and now > then:
            report.seconds_left = max(0, report.total - done) * (now - then) / (done - done_then)

    def tell(self) -> None:
        """Bring the report up to date and pass it to ``progress``."""
        self.report.seconds = time.monotonic() - self._started
        self._estimate()
        if self.options.progress is not None:
            self.options.progress(self.report)
