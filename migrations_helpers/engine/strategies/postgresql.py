"""PostgreSQL: lock the unlocked rows of a batch, write them with ``UPDATE ... FROM unnest(...)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .base import Changes, in_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Dialect

    from ..table import RunTable
    from .base import Batch, Task

    #: The parameters of one UPDATE: places and tables of the rows, each as the text of an array, and the new values.
    Columns = tuple[str, str, list[Any]]


# Rows of one UPDATE among several under way: a part of a batch, which takes both sides some milliseconds.
_ROWS_UNDER_WAY: Final = 250


class PostgreSQLSkipLocked:
    """``SELECT ... FOR NO KEY UPDATE SKIP LOCKED``, then set-based statements.

    A row is written as the row that was read, by its table and its place in it: a locked row keeps its place, and keys
    may repeat in tables that inherit from this one. ``FOR NO KEY UPDATE`` is the lock that an UPDATE of this column
    takes anyway: foreign keys to the row stay usable.

    Where the driver can send a statement without waiting for the one before it, the server writes one part of the batch
    while the next part is converted. Not where the application converts: it might use the connection, which is busy.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._can_pipeline = dialect.driver == "psycopg"
        self._statement: str | None = None

    def run_batch(self, task: Task) -> Batch:
        """Lock, read, convert and write in one transaction; rows that are locked are left out."""
        connection, table = task.connection, task.table
        select = task.rows.with_for_update(key_share=True, skip_locked=True)
        if self._statement is None:
            self._statement = self._compile(table)
        statement, changes = self._statement, Changes()
        with connection.transaction(binary=table.has_binary_form) as transaction:
            rows = transaction.execute(select).all()
            batch = task.batch_of(rows)
            if self._can_pipeline and not task.conversion.calls_out:
                parts = self._convert(task, rows, batch, changes, _ROWS_UNDER_WAY)
                rowcount = connection.execute_pipelined(statement, parts)
            else:
                parts = self._convert(task, rows, batch, changes, task.limit)
                rowcount = sum(transaction.exec_driver_sql(statement, part).rowcount for part in parts)
            task.count_written(changes, batch, rowcount)
        return batch

    @staticmethod
    def _convert(
        task: Task, rows: Sequence[Sequence[Any]], batch: Batch, made: Changes, size: int
    ) -> Iterator[Columns]:
        """Yield the parameters of the UPDATEs, each part of *size* rows converted when it is asked for.

        The changes are added to *made*.
        """
        place = len(task.table.keys)
        for start in range(0, len(rows), size):
            changes = task.convert(rows[start : start + size], batch)
            made.rows += changes.rows
            made.new += changes.new
            for chunk in in_chunks(changes, task.connection.statement_bytes, with_old=False):
                # Texts, because drivers have forms of their own for a ctid, and are slow with a list.
                places = '","'.join([row[place] for row in chunk.rows])
                origins = ",".join([str(row[place + 1]) for row in chunk.rows])
                yield f'{{"{places}"}}', f"{{{origins}}}", chunk.new

    def _compile(self, table: RunTable) -> str:
        """Return the UPDATE in the driver's own placeholders.

        Through SQLAlchemy's, psycopg 3 sends a list of bytes as text, which costs four times as much.
        """
        quote = self._dialect.identifier_preparer.quote
        if self._dialect.driver == "asyncpg":
            places, origins, new = "$1", "$2", "$3"
        else:
            places = origins = new = "%b" if self._dialect.driver in ("psycopg", "psycopg_async") else "%s"
        type_ = table.value.type.compile(self._dialect)
        kept = "".join(f", {quote(column.name)} = t.{quote(column.name)}" for column in table.preserve)
        name = self._dialect.identifier_preparer.format_table(table.clause)
        return (
            f"UPDATE {name} AS t SET {quote(table.value.name)} = d.new{kept} "  # noqa: S608 - quoted identifiers
            f"FROM unnest({places}::text::tid[], {origins}::text::oid[], {new}::{type_}[]) AS d(place, origin, new) "
            "WHERE t.ctid = d.place AND t.tableoid = d.origin"
        )
