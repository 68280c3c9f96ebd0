"""Compare-and-swap for any database: a row is written only where it still holds what was read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import LargeBinary, bindparam, cast, collate, select, update
from sqlalchemy.types import BINARY

from .base import Batch, Changes, convert_rows, in_chunks

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Update

    from ..connection import Channel
    from ..conversions import Conversion
    from ..table import KeyRange, Target

__all__ = ["CompareAndSwap"]


class CompareAndSwap:
    """One ``UPDATE ... WHERE key = ? AND value = ?`` for each row, sent together."""

    def run_batch(
        self, channel: Channel, target: Target, conversion: Conversion, keys: KeyRange, limit: int
    ) -> Batch:
        """Read without locks, convert, and write what is still unchanged."""
        rows = channel.connection.execute(target.batch(conversion, keys, limit)).all()
        batch = Batch.of(target, rows, limit)
        changes = convert_rows(target, conversion, rows, batch)
        if not changes:
            return batch
        statement = self._statement(target)
        with channel.transaction() as connection:
            for chunk in in_chunks(changes, with_old=True):
                parameters = [
                    {f"key_{i}": value for i, value in enumerate(target.key_of(row))}
                    | {"old_value": row[-1], "new_value": new}
                    for row, new in zip(chunk.rows, chunk.new, strict=True)
                ]
                result = connection.execute(statement, parameters)
                batch.written += len(chunk)
                # Not every driver counts the rows of an executemany, and none says which row was not written.
                if not result.supports_sane_multi_rowcount() or result.rowcount != len(chunk):
                    lost = self._superseded(connection, target, chunk)
                    batch.written -= len(lost)
                    batch.origins -= conversion.origins(lost.old, lost.new)
        return batch

    @staticmethod
    def _superseded(connection: Connection, target: Target, chunk: Changes) -> Changes:
        """Return the changes of rows that the application was quicker to replace or delete."""
        is_one_of = target.among(chunk.keys(target))
        held = connection.execute(select(*target.keys, target.value).where(is_one_of))
        now = {target.key_of(row): row[-1] for row in held}
        lost = Changes()
        for row, new in zip(chunk.rows, chunk.new, strict=True):
            if now.get(target.key_of(row)) != new:
                lost.rows.append(row)
                lost.new.append(new)
        return lost

    def _statement(self, target: Target) -> Update:
        conditions: list[ColumnElement[bool]] = [
            key == bindparam(f"key_{i}", type_=key.type) for i, key in enumerate(target.keys)
        ]
        kept: dict[Any, Any] = {column: column for column in target.preserve}
        kept[target.value] = bindparam("new_value", type_=target.value.type)
        return update(target.table).values(kept).where(*conditions, self._is_unchanged(target))

    def _is_unchanged(self, target: Target) -> ColumnElement[bool]:
        """Compare byte by byte, whatever the column's collation takes for equal."""
        old = bindparam("old_value", type_=target.value.type)
        if isinstance(target.value.type, LargeBinary):
            return target.value == old
        if target.dialect == "mysql":
            return cast(target.value, BINARY()) == cast(old, BINARY())
        binary = {"sqlite": "BINARY", "postgresql": "C"}.get(target.dialect)
        return (collate(target.value, binary) if binary else target.value) == old
