"""PostgreSQL: lock a batch that nobody else has locked, write it with one ``UPDATE ... FROM unnest(...)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._base import Batch, convert_rows, in_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection, Dialect

    from ..channel import Channel
    from ..conversions import Conversion
    from ..target import KeyRange, Target

__all__ = ["PostgreSQLSkipLocked"]


class PostgreSQLSkipLocked:
    """``SELECT ... FOR NO KEY UPDATE SKIP LOCKED``, then one set-based statement.

    ``FOR NO KEY UPDATE`` is the lock that an UPDATE of this column takes anyway: foreign keys to the row stay usable.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._statement: str | None = None
        self._to_driver: list[Callable[[Any], Any] | None] = []

    def run_batch(
        self, channel: Channel, target: Target, conversion: Conversion, keys: KeyRange, limit: int
    ) -> Batch:
        """Lock, read, convert and write in one transaction; rows that somebody else has locked are left out."""
        select = target.batch(conversion, keys, limit).with_for_update(key_share=True, skip_locked=True)
        with channel.transaction(binary=target.has_binary_form) as connection:
            rows = connection.execute(select).all()
            batch, changes = convert_rows(target, conversion, rows, limit)
            for chunk in in_chunks(changes, with_old=False):
                batch.written += self._write(connection, target, chunk)
        return batch

    def _write(self, connection: Connection, target: Target, changes: Sequence[Any]) -> int:
        if self._statement is None:
            self._statement = self._compile(target)
            self._to_driver = [
                key.type.dialect_impl(self._dialect).bind_processor(self._dialect) for key in target.keys
            ]
        columns: list[list[Any]] = []
        for position, convert in enumerate(self._to_driver):
            values = [row[position] for row, _ in changes]
            columns.append(values if convert is None else [convert(value) for value in values])
        columns.append([new for _, new in changes])
        return connection.exec_driver_sql(self._statement, tuple(columns)).rowcount

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
