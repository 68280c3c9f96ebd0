"""Compare-and-swap for any database: a row is written only if it still holds the value that was read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import LargeBinary, bindparam, cast, collate, select, update
from sqlalchemy.types import BINARY

from .base import KEPT, Batch, Changes, convert_rows, in_chunks

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Update

    from jwt_column.database.key_order import KeyRange

    from ..connection import RunConnection
    from ..conversions import Conversion
    from ..table import Key, RunTable

__all__ = ["CompareAndSwap"]


class CompareAndSwap:
    """One ``UPDATE ... WHERE key = ? AND value = ?`` for each row, sent together."""

    def run_batch(
        self,
        connection: RunConnection,
        table: RunTable,
        conversion: Conversion,
        keys: KeyRange,
        limit: int,
        confirm: bool = False,
    ) -> Batch:
        """Read without locks, convert, and write the rows that are unchanged."""
        rows = connection.sqlalchemy.execute(table.rows(conversion.rows.pending, keys, limit)).all()
        batch = Batch.of(table, rows, limit)
        changes = convert_rows(table, conversion, rows, batch)
        if not changes:
            return batch
        statement = self._statement(table)
        with connection.transaction() as transaction:
            for chunk in in_chunks(changes, with_old=True):
                parameters = [
                    {f"key_{i}": value for i, value in enumerate(table.key_of(row))}
                    | {"old_value": row[-1], "new_value": new}
                    for row, new in zip(chunk.rows, chunk.new, strict=True)
                ]
                result = transaction.execute(statement, parameters)
                batch.written += len(chunk)
                # Not every driver counts the rows of an executemany, and none says which row was not written.
                is_sane = result.supports_sane_multi_rowcount() and result.rowcount == len(chunk)
                if confirm or not is_sane:
                    lost, kept = self._superseded(transaction, table, chunk)
                    batch.written -= len(lost)
                    batch.origins -= conversion.origins(lost.old, lost.new)
                    batch.refused += [(key, KEPT) for key in kept]
        return batch

    @staticmethod
    def _superseded(transaction: Connection, table: RunTable, chunk: Changes) -> tuple[Changes, list[Key]]:
        """Return the changes that were not written, and the keys of those where the old value is still there.

        The application was quicker to replace or delete the others.
        """
        is_one_of = table.order.among(chunk.keys(table))
        held = transaction.execute(select(*table.keys, table.value).where(is_one_of))
        # Tables that inherit from this one may have the same keys.
        now = {(table.key_of(row), row[-1]) for row in held}
        lost, kept = Changes(), []
        for row, new in zip(chunk.rows, chunk.new, strict=True):
            if (table.key_of(row), new) not in now:
                lost.rows.append(row)
                lost.new.append(new)
                if (table.key_of(row), row[-1]) in now:
                    kept.append(table.key_of(row))
        return lost, kept

    def _statement(self, table: RunTable) -> Update:
        conditions: list[ColumnElement[bool]] = [
            key == bindparam(f"key_{i}", type_=key.type) for i, key in enumerate(table.keys)
        ]
        kept: dict[Any, Any] = {column: column for column in table.preserve}
        kept[table.value] = bindparam("new_value", type_=table.value.type)
        return update(table.clause).values(kept).where(*conditions, self._is_unchanged(table))

    def _is_unchanged(self, table: RunTable) -> ColumnElement[bool]:
        """Compare byte by byte: the column's collation may take different values for equal."""
        old = bindparam("old_value", type_=table.value.type)
        if isinstance(table.value.type, LargeBinary):
            return table.value == old
        if table.dialect == "mysql":
            return cast(table.value, BINARY()) == cast(old, BINARY())
        binary = {"sqlite": "BINARY", "postgresql": "C"}.get(table.dialect)
        return (collate(table.value, binary) if binary else table.value) == old
