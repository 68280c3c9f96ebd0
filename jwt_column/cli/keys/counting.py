"""Rows per key in the databases that a command is given, by SQL alone."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from ...census import NO_KEY, history_usage, key_usage
from ...database.row_security import hidden_rows
from ...database.time_limits import lifted
from ...errors import ConfigurationError
from ..columns import choose_column
from ..console import DatabaseError
from ..databases import connect, read_urls, with_engine
from ..options import ColumnName, ColumnOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Column, Connection, Engine

    from ..columns import ChosenColumn
    from ..options import RowsToCount


def count_rows(which: RowsToCount, history: Counter[str | None] | None = None) -> dict[str, int] | None:
    """Return the rows under each key id, over all named columns of all databases; None if no column is named.

    *history* is given the old values that system-versioned tables keep under each key id.
    """
    columns = columns_to_count(which)
    if columns is None:
        return None
    counted: Counter[str] = Counter()
    for url in read_urls(which.databases):
        with_engine(url, partial(_count, columns, counted, Counter() if history is None else history))
    return dict(counted)


def columns_to_count(which: RowsToCount) -> list[ChosenColumn] | None:
    """Return the columns that are named; None if none is. No database is asked."""
    named = ColumnName(which.table, which.column, which.schema)
    if not which.models and named == ColumnName():
        if which.databases:
            raise ConfigurationError(
                "which rows? Beside --database, give --model MODULE:CLASS.ATTR, or --table and --column"
            )
        return None
    columns = [choose_column(ColumnOptions(), model) for model in which.models]
    if named != ColumnName():
        columns.append(choose_column(ColumnOptions(**vars(named)), None))
    return columns


def _count(
    columns: Sequence[ChosenColumn], counted: Counter[str], history: Counter[str | None], engine: Engine
) -> None:
    with connect(engine) as connection:
        for column in columns:
            found = column.counted_in(connection)
            count_column(connection, found.typed(), counted, history)


def count_column(
    connection: Connection, column: Column[Any], counted: Counter[str], history: Counter[str | None]
) -> None:
    """Add the rows of a column under each key id, and the old values that its table keeps; refuse hidden rows."""
    hidden = hidden_rows(connection, column.table)
    if hidden is not None:
        raise DatabaseError(f"{column.table.fullname}.{column.name}: {hidden}")
    with lifted(connection):
        history += history_usage(connection, column)
        for row in connection.execute(key_usage(column, active=NO_KEY)):
            if row.key_id is not None:
                counted[row.key_id] += row.rows
