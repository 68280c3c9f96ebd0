"""MariaDB and MySQL: lock the unlocked rows of a batch, write them in the fastest form of the driver."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BINARY, VARBINARY, LargeBinary, and_, bindparam
from sqlalchemy.exc import DBAPIError

from jwt_column.database.driver_errors import mysql_code

from .base import Batch, Changes, convert_rows, count_written, in_chunks
from .removal import ExpiredRemoval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnClause, ColumnElement, Connection, Dialect

    from jwt_column.database.key_order import KeyRange

    from ..connection import RunConnection
    from ..conversions import Conversion
    from ..expired import Expired
    from ..table import Key, RunTable

__all__ = ["MySQLExpiredRemoval", "MySQLSkipLocked", "locks_rows"]

_ILLEGAL_MIX_OF_COLLATIONS: Final = 1267


class MySQLSkipLocked:
    """``SELECT ... FOR UPDATE SKIP LOCKED``, then the mariadb connector's bulk protocol, or one join for the others."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._writes_in_bulk = dialect.driver == "mariadbconnector"

    @staticmethod
    def is_supported(connection: Connection, table: RunTable) -> bool:
        """Return True if rows can be locked and SKIP LOCKED is known: InnoDB, MariaDB from 10.6, MySQL from 8.0.1."""
        dialect: Any = connection.dialect
        version: tuple[int, ...] = dialect.server_version_info or ()
        if version < ((10, 6) if getattr(dialect, "is_mariadb", False) else (8, 0, 1)):
            return False
        return locks_rows(connection, table)

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
        select = table.rows(conversion.rows.pending, keys, limit).with_for_update(skip_locked=True)
        with connection.transaction() as transaction:
            rows = transaction.execute(select).all()
            batch = Batch.of(table, rows, limit)
            changes = convert_rows(table, conversion, rows, batch)
            chunks = in_chunks(changes, connection.statement_bytes, with_old=False)
            rowcount = sum(self._write(transaction, table, chunk) for chunk in chunks)
            count_written(transaction, table, conversion, changes, batch, rowcount, confirm=confirm)
        return batch

    def _write(self, transaction: Connection, table: RunTable, changes: Changes) -> int:
        """Write changes, and return how many rows the database found."""
        if not self._writes_in_bulk:
            try:
                return self._write_join(transaction, table, changes)
            except DBAPIError as error:
                # A text key with letters that the column's character set has and the join cannot compare.
                if mysql_code(error.orig) != _ILLEGAL_MIX_OF_COLLATIONS:
                    raise
                self._writes_in_bulk = True
        return self._write_bulk(transaction, table, changes)

    def _write_bulk(self, transaction: Connection, table: RunTable, changes: Changes) -> int:
        """Send one statement with many rows of parameters (COM_STMT_BULK_EXECUTE)."""
        quote = self._dialect.identifier_preparer.quote
        columns = (table.value, *table.keys)
        new, *keys = (_mark(self._dialect, column) for column in columns)
        is_it = " AND ".join(
            f"{quote(key.name)} = {mark}" for key, mark in zip(table.keys, keys, strict=True)
        )
        kept = "".join(f", {quote(column.name)} = {quote(column.name)}" for column in table.preserve)
        name = self._dialect.identifier_preparer.format_table(table.clause)
        rows = [(new, *key) for key, new in zip(changes.keys(table), changes.new, strict=True)]
        # Written out: the work of SQLAlchemy for each row of parameters costs more than the encryption.
        return transaction.exec_driver_sql(
            f"UPDATE {name} SET {quote(table.value.name)} = {new}{kept} WHERE {is_it}",  # noqa: S608 - quoted identifiers
            _to_driver(self._dialect, columns, rows),
        ).rowcount

    def _write_join(self, transaction: Connection, table: RunTable, changes: Changes) -> int:
        """Join the table with the new values: one round trip where an executemany has one for each row."""
        quote = self._dialect.identifier_preparer.quote
        rows = [(*key, new) for key, new in zip(changes.keys(table), changes.new, strict=True)]
        joined, parameters = _join(self._dialect, table, (*table.keys, table.value), rows)
        new = f"d.c{len(table.keys)}"
        kept = "".join(f", t.{quote(column.name)} = t.{quote(column.name)}" for column in table.preserve)
        return transaction.exec_driver_sql(
            f"UPDATE {joined} SET t.{quote(table.value.name)} = {new}{kept}",  # noqa: S608 - quoted identifiers
            parameters,
        ).rowcount


def locks_rows(connection: Connection, table: RunTable) -> bool:
    """Return True if the table's engine locks rows: MyISAM and its kin take FOR UPDATE, and lock nothing."""
    engine = connection.exec_driver_sql(
        "SELECT engine FROM information_schema.tables WHERE table_name = %s "
        "AND table_schema = COALESCE(%s, DATABASE())",
        (table.clause.name, table.clause.schema),
    )
    return engine.scalar() == "InnoDB"


class MySQLExpiredRemoval(ExpiredRemoval):
    """The same for rows that are cleared or deleted; goes with :class:`MySQLSkipLocked`.

    ``DELETE ... WHERE id IN (...)`` may read more rows than it names, and then waits for those that are
    locked. A join reads by the key. The rows cannot have changed: they are locked since they were read.
    """

    def __init__(self, expired: Expired, dialect: Dialect) -> None:
        super().__init__(expired, skips_locked=True)
        self._dialect = dialect
        self._in_bulk = dialect.driver == "mariadbconnector"

    def _remove(
        self,
        transaction: Connection,
        table: RunTable,
        expired: ColumnElement[bool],  # noqa: ARG002
        found: Sequence[Sequence[Any]],
    ) -> int:
        keys = [table.key_of(row) for row in found]
        if keys and not self._in_bulk:
            try:
                return self._remove_join(transaction, table, keys)
            except DBAPIError as error:
                if mysql_code(error.orig) != _ILLEGAL_MIX_OF_COLLATIONS:
                    raise
                self._in_bulk = True
        if not keys:
            return 0
        conditions = [key == bindparam(f"key_{i}", type_=key.type) for i, key in enumerate(table.keys)]
        return transaction.execute(
            self._statement(table, and_(*conditions)),
            [{f"key_{i}": value for i, value in enumerate(key)} for key in keys],
        ).rowcount

    def _remove_join(self, transaction: Connection, table: RunTable, keys: list[Key]) -> int:
        quote = self._dialect.identifier_preparer.quote
        joined, parameters = _join(self._dialect, table, table.keys, keys)
        if self._expired.action == "delete":
            statement = f"DELETE t FROM {joined}"
        else:
            kept = "".join(f", t.{quote(column.name)} = t.{quote(column.name)}" for column in table.preserve)
            statement = f"UPDATE {joined} SET t.{quote(table.value.name)} = NULL{kept}"  # noqa: S608 - likewise
        return transaction.exec_driver_sql(statement, parameters).rowcount


def _join(
    dialect: Dialect, table: RunTable, columns: Sequence[ColumnClause[Any]], rows: list[tuple[Any, ...]]
) -> tuple[str, tuple[Any, ...]]:
    """Return rows of values (``d``, with columns ``c0`` and so on) joined with the table (``t``) by its key.

    The key's columns come first. Of a small table the server would rather read every row, and then wait for those
    that are locked, so it is told which index to use.
    """
    preparer = dialect.identifier_preparer
    marks = [_mark(dialect, column) for column in columns]
    first = "SELECT " + ", ".join(f"{mark} AS c{number}" for number, mark in enumerate(marks))
    values = " UNION ALL ".join([first] + ["SELECT " + ", ".join(marks)] * (len(rows) - 1))
    joined = " AND ".join(
        f"t.{preparer.quote(key.name)} = d.c{number}" for number, key in enumerate(table.keys)
    )
    parameters = itertools.chain.from_iterable(_to_driver(dialect, columns, rows))
    name = preparer.format_table(table.clause)
    index = f" FORCE INDEX ({preparer.quote(table.key_index)})" if table.key_index else ""
    return f"({values}) AS d STRAIGHT_JOIN {name} AS t{index} ON {joined}", tuple(parameters)


def _to_driver(
    dialect: Dialect, columns: Sequence[ColumnClause[Any]], rows: list[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    """Return rows of values as the driver wants them, which takes bytes as they are."""
    converters = [
        None
        if isinstance(column.type, LargeBinary)
        else column.type.dialect_impl(dialect).bind_processor(dialect)
        for column in columns
    ]
    if any(converters):
        values = (
            column if convert is None else map(convert, column)
            for convert, column in zip(converters, zip(*rows, strict=True), strict=True)
        )
        rows = list(zip(*values, strict=True))
    return rows


def _mark(dialect: Dialect, column: ColumnClause[Any]) -> str:
    """Return the placeholder of a column's value: mysqlclient does not mark bytes as such, PyMySQL does."""
    if dialect.paramstyle == "qmark":
        return "?"
    is_binary = isinstance(column.type, LargeBinary | BINARY | VARBINARY)
    return "_binary%s" if is_binary and dialect.driver == "mysqldb" else "%s"
