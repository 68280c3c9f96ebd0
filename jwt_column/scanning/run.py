"""``find_plaintext_tokens()``: searches one table after another."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import inspect
from sqlalchemy.exc import DBAPIError

from ..database.driver_errors import error_name
from ..database.reading import audited, rolled_back, streamed
from ..database.row_security import hidden_rows
from ..database.server import public_url
from ..errors import ConfigurationError
from ..format.readable import has_token, without_tokens
from ..option_values import FUNCTION, TEXT, number
from .report import FailedTable, FoundTokens, ScanProgress, ScanReport
from .tables import read_table, table_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sqlalchemy import Connection, Engine, Select

    from .tables import ScannedTable

#: Rows of each table that are looked at by default.
SAMPLE: Final = 10_000

# Rows in memory at once: a value can be a document of megabytes.
_BATCH: Final = 50


def find_plaintext_tokens(
    bind: Engine | Connection,
    *,
    schema: str | None = None,
    sample: int | None = SAMPLE,
    progress: Callable[[ScanProgress], None] | None = None,
) -> ScanReport:
    """Return which columns of a database hold readable tokens, in tables that no model knows too.

    Every column that can hold text, JSON or bytes is looked through, for tokens anywhere in a value: after
    ``Bearer``, in a JSON document, in a connection string, in a log. The database sends only values that have the
    beginning of a token in them, and they are streamed. Nothing is written, and of a token nothing is kept but where it
    lies. Views are left out. A table that cannot be read is reported, and the others are looked through.

    Found too are tokens that are padded, wrapped over lines, percent-encoded or in base64 once more, and opaque tokens
    with a well-known prefix. docs/reference/audit.md lists these, and the encodings that are not found.

    Args:
        bind: An engine or a connection. With an ``AsyncEngine``: ``await connection.run_sync(find_plaintext_tokens)``.
        schema: One schema. None: on PostgreSQL every schema but the system's, elsewhere the default one.
        sample: Rows of each table to look at: half of them the first by primary key, half the last. None for all, each
            table in one statement.
        progress: Called before each table and after the last one.

    Returns:
        The report. ``found`` is empty where there is none; ``failed`` lists the tables that could not be read.

    Raises:
        ConfigurationError: No such schema, or *sample* is no number of rows.
        AuditError: The database cannot be reached, or the connection was lost.
    """
    TEXT.or_none.check(schema=schema)
    number("a number of rows, at least 1, or None for all", at_least=1, whole=True).or_none.check(
        sample=sample
    )
    FUNCTION.or_none.check(progress=progress)
    started = time.monotonic()
    with audited(bind, "find_plaintext_tokens") as connection:
        scan = _Scan(connection, sample)
        scan.run(schema, progress or (lambda _: None))
        url = public_url(connection.engine.url)
    return ScanReport(
        created=datetime.now(UTC),
        database=url,
        sample=sample,
        seconds=round(time.monotonic() - started, 3),
        tables=scan.tables,
        columns=scan.columns,
        rows=scan.rows,
        found=tuple(sorted(scan.found, key=lambda one: (one.table, one.column))),
        failed=tuple(scan.failed),
    )


class _Scan:
    """One scan and its findings so far."""

    def __init__(self, connection: Connection, sample: int | None) -> None:
        self._connection = connection
        self._sample = sample
        self.tables = 0
        self.columns = 0
        self.rows = 0
        self.found: list[FoundTokens] = []
        self.failed: list[FailedTable] = []

    def run(self, schema: str | None, progress: Callable[[ScanProgress], None]) -> None:
        """Search every table."""
        with rolled_back(self._connection):
            if schema is not None and schema not in inspect(self._connection).get_schema_names():
                raise ConfigurationError(f"there is no schema {schema}")
            names = table_names(self._connection, schema)
        for done, (where, name) in enumerate(names):
            shown = f"{where}.{name}" if where else name
            progress(ScanProgress(shown, done, len(names), len(self.found)))
            reason = self._try_table(where, name, shown)
            if reason is not None:
                self.failed.append(FailedTable(shown, reason))
        progress(ScanProgress("", len(names), len(names), len(self.found)))

    def _try_table(self, schema: str | None, name: str, shown: str) -> str | None:
        """Search one table; return the reason if it cannot be read, else None."""
        try:
            with rolled_back(self._connection):
                table = read_table(self._connection, schema, name)
                hidden = hidden_rows(self._connection, table.source)
                if hidden is None:
                    self._scan_table(table, shown)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            # The message of the database may hold values of a row.
            return error_name(error)
        except Exception as error:  # noqa: BLE001 - a driver that cannot convert a stored value
            return type(error).__name__
        return hidden

    def _scan_table(self, table: ScannedTable, shown: str) -> None:
        found: Counter[str] = Counter()
        keys: dict[str, tuple[Any, ...] | None] = {}
        rows = 0
        for values, count in self._statements(table):
            rows += self._connection.scalar(count) or 0
            for row in self._rows(values):
                for column, value in zip(table.forms, row[len(table.keys) :], strict=True):
                    if has_token(value):
                        found[column] += 1
                        # The first key that holds no token.
                        if table.keys and keys.get(column) is None:
                            keys[column] = without_tokens(row[: len(table.keys)])
        self.tables += 1
        self.columns += len(table.forms)
        self.rows += rows
        complete = self._sample is None or rows < self._sample
        for column, tokens in found.items():
            self.found.append(FoundTokens(shown, column, tokens, rows, complete, keys.get(column)))

    def _statements(self, table: ScannedTable) -> Iterable[tuple[Select[Any], Select[Any]]]:
        if not table.forms:
            return []
        return [table.everything()] if self._sample is None else table.sample(self._connection, self._sample)

    def _rows(self, statement: Select[Any]) -> Iterator[Sequence[Any]]:
        options = streamed(self._connection, _BATCH)
        with closing(self._connection.execute(statement.execution_options(**options))) as result:
            yield from result
