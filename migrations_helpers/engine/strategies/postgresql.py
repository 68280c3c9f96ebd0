"""PostgreSQL: lock the unlocked rows of a batch, write them with ``UPDATE ... FROM unnest(...)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .base import Batch, Changes, convert_rows, count_written, in_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Dialect

    from jwt_column.database.key_order import KeyRange

    from ..connection import RunConnection
    from ..conversions import Conversion
    from ..table import RunTable

    #: The parameters of one UPDATE: a list for each column of the key, and one of the new values.
    Columns = tuple[list[Any], ...]

__all__ = ["PostgreSQLSkipLocked"]

# Rows of one UPDATE among several under way: a part of a batch, which takes both sides some milliseconds.
_ROWS_UNDER_WAY: Final = 250


class PostgreSQLSkipLocked:
    """``SELECT ... FOR NO KEY UPDATE SKIP LOCKED``, then set-based statements.

    A row is written as the row that was read, by its table and its place in it: keys may repeat in tables that inherit
    from this one. ``FOR NO KEY UPDATE`` is the lock that an UPDATE of this column takes anyway: foreign keys to the row
    stay usable.

    Where the driver can send a statement without waiting for the one before it, the server writes one part of the batch
    while the next part is converted. Not where the application converts: it might use the connection, which is busy.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._can_pipeline = dialect.driver == "psycopg"
        self._statement: str | None = None
        self._to_driver: list[Callable[[Any], Any] | None] = []

    def run_batch(
        self,
        connection: RunConnection,
        table: RunTable,
        conversion: Conversion,
        keys: KeyRange,
        limit: int,
        confirm: bool = False,
    ) -> Batch:
        """Lock, read, convert and write in one transaction; rows that are locked are left out."""
        select = table.rows(conversion.rows.pending, keys, limit).with_for_update(
            key_share=True, skip_locked=True
        )
        if self._statement is None:
            self._statement = self._compile(table)
            self._to_driver = [
                key.type.dialect_impl(self._dialect).bind_processor(self._dialect) for key in table.keys
            ]
        statement, most = self._statement, connection.statement_bytes
        with connection.transaction(binary=table.has_binary_form) as transaction:
            rows = transaction.execute(select).all()
            batch = Batch.of(table, rows, limit)
            changes = Changes()
            if self._can_pipeline and not conversion.calls_out:
                parts = self._convert(table, conversion, rows, batch, changes, _ROWS_UNDER_WAY, most)
                rowcount = connection.execute_pipelined(statement, parts)
            else:
                parts = self._convert(table, conversion, rows, batch, changes, limit, most)
                rowcount = sum(transaction.exec_driver_sql(statement, part).rowcount for part in parts)
            count_written(transaction, table, conversion, changes, batch, rowcount, confirm=confirm)
        return batch

    def _convert(
        self,
        table: RunTable,
        conversion: Conversion,
        rows: Sequence[Sequence[Any]],
        batch: Batch,
        made: Changes,
        size: int,
        most: int,
    ) -> Iterator[Columns]:
        """Yield the parameters of the UPDATEs, each part of *size* rows converted when it is asked for.

        None has more than *most* bytes. The changes are added to *made*.
        """
        for start in range(0, len(rows), size):
            changes = convert_rows(table, conversion, rows[start : start + size], batch)
            made.add(changes)
            for chunk in in_chunks(changes, most, with_old=False):
                yield self._columns(table, chunk)

    def _columns(self, table: RunTable, changes: Changes) -> Columns:
        columns: list[list[Any]] = []
        for position, convert in enumerate(self._to_driver):
            values = [row[position] for row in changes.rows]
            columns.append(values if convert is None else [convert(value) for value in values])
        places = [table.place_of(row) for row in changes.rows]
        columns += [list(column) for column in zip(*places, strict=True)]
        return (*columns, changes.new)

    def _compile(self, table: RunTable) -> str:
        """Return the UPDATE in the driver's own placeholders.

        Through SQLAlchemy's, psycopg 3 sends a list of bytes as text, which costs four times as much.
        """
        quote = self._dialect.identifier_preparer.quote
        types = [key.type.compile(self._dialect) for key in table.keys]
        # A ctid goes as text: drivers have forms of their own for it.
        types += ["text[]::tid", "oid", table.value.type.compile(self._dialect)]
        if self._dialect.driver == "asyncpg":
            marks = [f"${number}" for number in range(1, len(types) + 1)]
        else:
            marks = ["%b" if self._dialect.driver in ("psycopg", "psycopg_async") else "%s"] * len(types)
        arrays = ", ".join(f"{mark}::{type_}[]" for mark, type_ in zip(marks, types, strict=True))
        names = [f"k{number}" for number in range(len(table.keys))]
        joined = "".join(
            f" AND t.{quote(key.name)} = d.{name}" for key, name in zip(table.keys, names, strict=True)
        )
        kept = "".join(f", {quote(column.name)} = t.{quote(column.name)}" for column in table.preserve)
        name = self._dialect.identifier_preparer.format_table(table.clause)
        return (
            f"UPDATE {name} AS t SET {quote(table.value.name)} = d.new{kept} "  # noqa: S608 - quoted identifiers
            f"FROM unnest({arrays}) AS d({', '.join(names)}, place, origin, new) "
            f"WHERE t.ctid = d.place AND t.tableoid = d.origin{joined}"
        )
