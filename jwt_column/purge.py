"""Removal of rows whose token has expired, in batches. Envelopes show their expiry, so no key is needed."""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

from sqlalchemy import Column, Engine, Table, delete, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.types import TypeDecorator

from .column.comparator import EncryptedComparator
from .database.driver_errors import error_name, is_null_refused, is_refusal_of_row
from .database.error_sentences import explained, is_setup_problem
from .database.key_order import UNREADABLE, KeyOrder, KeyRange, paged_by, unreadable_key
from .database.reading import is_autocommit, refuse_asynchronous
from .database.writability import why_no_writes
from .errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import ColumnElement, Connection, CursorResult

    from .database.key_order import Key

Action = Literal["delete", "null"]

__all__ = ["Action", "PurgedRows", "purge_expired", "purge_rows"]

logger: logging.Logger = logging.getLogger("jwt_column.purge")

# Other transactions may have to wait for the rows of one batch.
_BATCH: Final = 500
# Rows that the database may refuse before it has let one go. Then it is no fault of the rows.
_HOPELESS: Final = 1_000
# Rows that the database refused, of which a purge keeps the keys.
_LISTED: Final = 10_000
_NOT_NULL: Final = (
    "{name} is NOT NULL, so action='null' cannot clear it; make the column nullable first, or delete the rows"
)


class PurgedRows(int):
    """The number of rows that a purge removed, and the rows that the database refused to let go.

    Attributes:
        refused: The primary key of each such row, a tuple, and the name of the database's error; at most 10,000.
        refused_count: How many there are.
    """

    refused: list[tuple[tuple[Any, ...], str]]
    refused_count: int

    @classmethod
    def of(cls, rows: int, refused: list[tuple[tuple[Any, ...], str]], refused_count: int) -> PurgedRows:
        """Return the result of a purge."""
        made = cls(rows)
        made.refused, made.refused_count = refused, refused_count
        return made


def purge_expired(
    session: Session | Connection | Engine,
    column: Any,
    *,
    before: datetime | None = None,
    where: Any = None,
    action: Action = "delete",
    progress: Callable[[int], None] | None = None,
) -> PurgedRows:
    """Delete the rows whose token has expired, or clear the token, and return their number.

    Rows without a readable expiry stay: NULL, tokens without ``exp``, plaintext, and rows that were written before the
    column had ``expose_expiry=True``. A row that gets a new token meanwhile stays too, and so does one that the
    database refuses to let go, because a foreign key or a trigger forbids it: it is listed in the result, logged, and
    does not stop the others. Statements are bounded, 500 rows each, and found through the primary key. Row-level
    security applies: a role under a policy purges the rows that it sees.

    Args:
        session: A session or connection, which is not committed; or an engine, whose every batch is a transaction of
            its own. An :class:`AsyncSession` runs it as ``await session.run_sync(purge_expired, Login.token)``.
        column: A mapped attribute such as ``Login.token``, or a column of a table. Of a mapped attribute, the
            session forgets the objects that were deleted. Cascades of the ORM do not run; those of the database do.
        before: Tokens that expire at this time or earlier; timezone-aware. None means now.
        where: A condition that rows must meet too, such as ``Login.tenant == 5``. Other tables are asked by
            subqueries: ``Login.user_id.in_(select(...))``.
        action: ``"delete"`` the row, or set the column to NULL (``"null"``) and keep the rest of the row.
        progress: Called after each batch with the number of rows that were removed so far.

    Returns:
        The number of rows that were deleted or cleared: a :class:`PurgedRows`, an ``int`` that has the list of those
        that the database refused.

    Raises:
        UnsupportedComparisonError: The column does not store the expiry, or *before* is a naive time.
        ConfigurationError: Not a column of a table with a primary key that rows can be found by; *where* or *action* is
            something else; or ``action="null"`` and the column is NOT NULL; or the database is a replica, or the role
            may not write.
    """
    expires_at = EncryptedComparator(_column_of(column)).expires_at
    expired = expires_at <= (datetime.now(UTC) if before is None else before)
    purged = purge_rows(session, column, expired, where=where, action=action, progress=progress)
    if purged.refused_count:
        logger.warning(
            "%s: rows that the database refused to let go: %d (%s)",
            _column_of(column),
            purged.refused_count,
            ", ".join(dict.fromkeys(reason for _, reason in purged.refused)),
        )
    return purged


def purge_rows(
    session: Session | Connection | Engine,
    column: Any,
    condition: ColumnElement[bool],
    *,
    where: Any = None,
    action: Action = "delete",
    progress: Callable[[int], None] | None = None,
) -> PurgedRows:
    """Remove the rows that meet a condition on their envelope; see :func:`purge_expired`."""
    refuse_asynchronous(session, "purge_expired")
    purge = _Purge(session, column, condition, where, action)
    # Each batch begins behind the last one: a snapshot may go on showing rows that others have deleted.
    window: KeyRange | None = KeyRange()
    while window is not None:
        try:
            window = purge.work(window)
        except DBAPIError as error:
            if not is_setup_problem(error):
                raise
            raise ConfigurationError(
                f"{purge.name}: the database refused ({explained(error)}); {purge.removed} rows were removed before"
            ) from None
        if progress is not None:
            progress(purge.removed)
    return PurgedRows.of(purge.removed, purge.refused, purge.refused_count)


class _Purge:
    """One purge, and what it has done so far."""

    def __init__(
        self,
        session: Session | Connection | Engine,
        column: Any,
        condition: ColumnElement[bool],
        where: Any,
        action: Action,
    ) -> None:
        source = _column_of(column)
        table = source.table
        self.name = f"{table.fullname}.{source.name}"
        _refuse_replica(session, table, self.name)
        self.removed = 0
        self.refused: list[tuple[tuple[Any, ...], str]] = []
        self.refused_count = 0
        self._session = session
        self._table = table
        self._conditions = [condition, *_checked(where, table)]
        dialect = _dialect_of(session, table)
        self._order = KeyOrder(table, paged_by(table, dialect), dialect)
        self._rows = self._order.rows_at_once(_BATCH)
        self._removal = _removal(action, source, column if isinstance(session, Session) else source)
        self._clears = action == "null"

    def _refuse_unreadable_keys(self) -> None:
        """Raise if a row to remove has a key that a driver cannot send back: it would stay, in silence.

        Raises:
            ConfigurationError: There is such a row.
        """
        with _transaction(self._session) as bind:
            key = unreadable_key(bind, self._order, *self._conditions)
        if key is not None:
            raise ConfigurationError(
                f"{self.name} cannot be purged by the key {key.name}: {UNREADABLE}. Give the table a primary key "
                "without such values, or leave these rows out by a condition (where=); nothing was done"
            )

    def work(self, window: KeyRange) -> KeyRange | None:
        """Remove the next rows of a range, and return the range of those that are left; None at its end."""
        if window.after is None:
            self._refuse_unreadable_keys()
        with _transaction(self._session) as bind:
            batch = bind.execute(self._order.batch((), window, self._rows, *self._conditions)).all()
        self._remove([tuple(key) for key in batch])
        return KeyRange(after=batch[-1]) if len(batch) == self._rows else None

    def _remove(self, keys: Sequence[Key]) -> None:
        """Remove rows; of a batch that the database refuses, each half, down to the row."""
        if not keys:
            return
        try:
            with self._attempt() as bind:
                # The conditions once more: a row may have been given another token since its key was read.
                result = bind.execute(self._removal.where(self._order.among(keys), *self._conditions))
        except DBAPIError as error:
            if not is_refusal_of_row(error):
                raise
            refusal, reason = error, error_name(error)
            is_not_null = self._clears and is_null_refused(error)
        else:
            self.removed += cast("CursorResult[Any]", result).rowcount
            return
        if is_not_null:
            raise ConfigurationError(_NOT_NULL.format(name=self.name))
        if len(keys) == 1:
            if not self.removed and self.refused_count == _HOPELESS:
                raise refusal
            self.refused_count += 1
            if len(self.refused) < _LISTED:
                self.refused.append((tuple(keys[0]), reason))
            return
        half = len(keys) // 2
        self._remove(keys[:half])
        self._remove(keys[half:])

    @contextmanager
    def _attempt(self) -> Iterator[Any]:
        """Yield what executes a statement that may be refused, and takes nothing else back then."""
        session = self._session
        if isinstance(session, Engine):
            with session.begin() as connection:
                yield connection
        elif _needs_savepoint(session, self._table):
            with session.begin_nested():
                yield session
        else:
            yield session


def _needs_savepoint(session: Session | Connection, table: Table) -> bool:
    """Return True if a statement that fails ends its transaction."""
    connection = (
        session.connection(bind_arguments={"clause": table}) if isinstance(session, Session) else session
    )
    return connection.dialect.name == "postgresql" and not is_autocommit(connection)


def _checked(where: Any, table: Table) -> list[Any]:
    """Return the condition of a caller, in a list that is empty without one.

    Raises:
        ConfigurationError: It is no SQL expression, or joins other tables.
    """
    if where is None:
        return []
    if not isinstance(where, ClauseElement) and not hasattr(where, "__clause_element__"):
        raise ConfigurationError(
            f"where is a SQL condition such as Login.tenant == 5, not {type(where).__name__}"
        )
    others = set(select(table).where(where).get_final_froms()) - {table}
    if others:
        names = ", ".join(sorted(str(getattr(one, "name", one)) for one in others))
        raise ConfigurationError(
            f"where names {names}, and a purge is of {table.fullname} alone; ask other tables by a subquery, as in "
            "Login.user_id.in_(select(User.id).where(...))"
        )
    return [where]


def _removal(action: Action, source: Column[Any], column: Any) -> Any:
    """Return the statement that deletes rows, or clears their token.

    Raises:
        ConfigurationError: There is no such action, or the column is NOT NULL.
    """
    if action not in get_args(Action):
        raise ConfigurationError("action is 'delete' or 'null'")
    table = source.table
    entity = _entity_of(column, table)
    if action == "delete":
        return delete(entity)
    if not source.nullable:
        raise ConfigurationError(_NOT_NULL.format(name=f"{table.fullname}.{source.name}"))
    return update(entity).values({source: None})


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


def _refuse_replica(session: Session | Connection | Engine, table: Table, name: str) -> None:
    """Raise for a database that takes no writes, also where nothing has expired.

    Raises:
        ConfigurationError: It is a replica, or read-only.
    """
    with session.connect() if isinstance(session, Engine) else nullcontext(session) as bind:
        connection = bind.connection(bind_arguments={"clause": table}) if isinstance(bind, Session) else bind
        refusal = why_no_writes(connection)
    if refusal is not None:
        raise ConfigurationError(
            f"{name} cannot be purged: {refusal.reason}; {refusal.cure}. Nothing was done"
        )


def _transaction(session: Session | Connection | Engine) -> Any:
    return session.begin() if isinstance(session, Engine) else nullcontext(session)
