"""Deletion of rows whose token has expired, in batches. Envelopes show their expiry, so no key is needed."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import Column, Engine, Table, delete
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.types import TypeDecorator

from .column.comparator import EncryptedComparator
from .database.key_order import KeyOrder, KeyRange
from .errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, CursorResult

__all__ = ["purge_expired"]

# Other transactions may have to wait for the rows of one batch.
_BATCH: Final = 500


def purge_expired(
    session: Session | Connection | Engine,
    column: Any,
    *,
    before: datetime | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Delete the rows whose token has expired, and return their number.

    Rows without a readable expiry stay: NULL, tokens without ``exp``, plaintext, and rows that were written before the
    column had ``expose_expiry=True``. A row that gets a new token meanwhile stays too. Statements are bounded, 500 rows
    each, and found through the primary key. Row-level security applies: a role under a policy purges the rows that it
    sees.

    Args:
        session: A session or connection, which is not committed; or an engine, whose every batch is a transaction of
            its own. An :class:`AsyncSession` runs it as ``await session.run_sync(purge_expired, Login.token)``.
        column: A mapped attribute such as ``Login.token``, or a column of a table. Of a mapped attribute, the
            session forgets the objects that were deleted. Cascades of the ORM do not run; those of the database do.
        before: Tokens that expire at this time or earlier; timezone-aware. None means now.
        progress: Called after each batch with the number of rows that were deleted so far.

    Returns:
        The number of rows that were deleted.

    Raises:
        UnsupportedComparisonError: The column does not store the expiry, or *before* is a naive time.
        ConfigurationError: Not a column of a table with a primary key.
    """
    source = _column_of(column)
    table = source.table
    keys = list(table.primary_key.columns)
    if not keys:
        raise ConfigurationError(f"{table.fullname} has no primary key to find its rows by")
    expires_at = EncryptedComparator(source).expires_at
    expired = expires_at <= (datetime.now(UTC) if before is None else before)
    removal = delete(_entity_of(column, table) if isinstance(session, Session) else table)
    order = KeyOrder(table, keys, _dialect_of(session, table))
    rows = order.rows_at_once(_BATCH)
    # Each batch begins behind the last one: a snapshot may go on showing rows that others have deleted.
    window = KeyRange()
    deleted = 0
    while True:
        with _transaction(session) as bind:
            batch = bind.execute(order.batch((), window, rows, expired)).all()
            if batch:
                # The condition once more: a row may have been given another token since its key was read.
                result = bind.execute(removal.where(order.among(batch), expired))
                deleted += cast("CursorResult[Any]", result).rowcount
        if progress is not None:
            progress(deleted)
        if len(batch) < rows:
            return deleted
        window = KeyRange(after=batch[-1])


def _column_of(column: Any) -> Column[Any]:
    """Return the column of the table that an argument names."""
    source = getattr(getattr(column, "property", None), "columns", [column])[0]
    if not isinstance(source, Column) or not isinstance(source.table, Table):
        raise ConfigurationError("purge_expired() takes a mapped attribute or a column of a table")
    if not isinstance(source.type, TypeDecorator) or not isinstance(source.comparator, EncryptedComparator):
        raise ConfigurationError(f"{source} is not a column of type EncryptedJWT")
    return source


def _entity_of(column: Any, table: Any) -> Any:
    """Return the class that is mapped to the table, so that a session forgets deleted objects; else the table."""
    mapper = getattr(column, "parent", None)
    if not isinstance(mapper, Mapper):
        return table
    return next((base for base in mapper.iterate_to_root() if base.local_table is table), table)


def _dialect_of(session: Session | Connection | Engine, table: Table) -> str:
    bind = session.get_bind(clause=table) if isinstance(session, Session) else session
    return bind.dialect.name


def _transaction(session: Session | Connection | Engine) -> Any:
    return session.begin() if isinstance(session, Engine) else nullcontext(session)
