"""PostgreSQL: lock a batch that nobody else has locked, write it with ``UPDATE ... FROM unnest(...)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .base import Batch, Changes, convert_rows, in_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Dialect

    from ..connection import Channel
    from ..conversions import Conversion
    from ..table import KeyRange, Target

    #: The parameters of one UPDATE: a list for each column of the key, and one of the new values.
    Columns = tuple[list[Any], ...]

__all__ = ["PostgreSQLSkipLocked"]

# Rows of one UPDATE among several under way: a part of a batch, which takes both sides some milliseconds.
_ROWS_UNDER_WAY: Final = 250


class PostgreSQLSkipLocked:
    """``SELECT ... FOR NO KEY UPDATE SKIP LOCKED``, then set-based statements.

    ``FOR NO KEY UPDATE`` is the lock that an UPDATE of this column takes anyway: foreign keys to the row stay usable.
    Where the driver can send a statement without waiting for the one before it, the server writes one part of the batch
    while the next part is converted. Not where the application converts: it might use the connection, which is busy.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._can_pipeline = dialect.driver == "psycopg"
        self._statement: str | None = None
        self._to_driver: list[Callable[[Any], Any] | None] = []

    def run_batch(
        self, channel: Channel, target: Target, conversion: Conversion, keys: KeyRange, limit: int
    ) -> Batch:
        """Lock, read, convert and write in one transaction; rows that somebody else has locked are left out."""
        select = target.batch(conversion, keys, limit).with_for_update(key_share=True, skip_locked=True)
        if self._statement is None:
            self._statement = self._compile(target)
            self._to_driver = [
                key.type.dialect_impl(self._dialect).bind_processor(self._dialect) for key in target.keys
            ]
        statement = self._statement
        with channel.transaction(binary=target.has_binary_form) as connection:
            rows = connection.execute(select).all()
            batch = Batch.of(target, rows, limit)
            if self._can_pipeline and not conversion.calls_out:
                parts = self._convert(target, conversion, rows, batch, _ROWS_UNDER_WAY)
                batch.written = channel.execute_pipelined(statement, parts)
            else:
                parts = self._convert(target, conversion, rows, batch, limit)
                batch.written = sum(connection.exec_driver_sql(statement, part).rowcount for part in parts)
        return batch

    def _convert(
        self, target: Target, conversion: Conversion, rows: Sequence[Sequence[Any]], batch: Batch, size: int
    ) -> Iterator[Columns]:
        """Yield what is to be written, each part of so many rows converted when it is asked for."""
        for start in range(0, len(rows), size):
            changes = convert_rows(target, conversion, rows[start : start + size], batch)
            for chunk in in_chunks(changes, with_old=False):
                yield self._columns(chunk)

    def _columns(self, changes: Changes) -> Columns:
        columns: list[list[Any]] = []
        for position, convert in enumerate(self._to_driver):
            values = [row[position] for row in changes.rows]
            columns.append(values if convert is None else [convert(value) for value in values])
        return (*columns, changes.new)

    def _compile(self, target: Target) -> str:
        """Return the UPDATE in the driver's own placeholders.

        Through SQLAlchemy's, psycopg 3 sends a list of bytes as text, which costs four times as much.
        """
        quote = self._dialect.identifier_preparer.quote
        types = [key.type.compile(self._dialect) for key in target.keys]
        types.append(target.value.type.compile(self._dialect))
        if self._dialect.driver == "asyncpg":
            marks = [f"${number}" for number in range(1, len(types) + 1)]
        else:
            marks = ["%b" if self._dialect.driver in ("psycopg", "psycopg_async") else "%s"] * len(types)
        arrays = ", ".join(f"{mark}::{type_}[]" for mark, type_ in zip(marks, types, strict=True))
        names = [f"k{number}" for number in range(len(target.keys))]
        joined = " AND ".join(
            f"t.{quote(key.name)} = d.{name}" for key, name in zip(target.keys, names, strict=True)
        )
        kept = "".join(f", {quote(column.name)} = t.{quote(column.name)}" for column in target.preserve)
        table = self._dialect.identifier_preparer.format_table(target.table)
        return (
            f"UPDATE {table} AS t SET {quote(target.value.name)} = d.new{kept} "  # noqa: S608 - quoted identifiers
            f"FROM unnest({arrays}) AS d({', '.join(names)}, new) WHERE {joined}"
        )
