"""Removal of rows whose token has expired, in batches. Envelopes show their expiry, so no key is needed."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Mapper, Session, scoped_session
from sqlalchemy.types import NullType, TypeDecorator

from .column.comparator import EncryptedComparator
from .database.driver_errors import error_name, is_null_refused, is_refusal_of_row
from .database.drivers import own_connection, without_prepared_statements
from .database.error_sentences import explained, is_setup_problem
from .database.key_order import UNREADABLE, KeyOrder, KeyRange, paged_by, plain_type, unreadable_key
from .database.reading import is_autocommit, refuse_asynchronous
from .database.time_limits import lifted_and_restored
from .database.writability import why_no_writes
from .errors import ConfigurationError, JWTColumnError, ReencryptionError
from .option_values import FUNCTION, choice, instance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .database.key_order import Key

Action = Literal["delete", "null"]


logger: logging.Logger = logging.getLogger("jwt_column.purge")

# Other transactions may have to wait for the rows of one batch.
_BATCH: Final = 500
# Rows that the database may refuse before it has let one go. Then it is no fault of the rows.
_HOPELESS: Final = 1_000
# Rows that the database refused, of which a purge keeps the keys.
_LISTED: Final = 10_000
_KEPT: Final = "the database kept it, as a trigger, a rule or a policy can"
_NOT_NULL: Final = (
    "{name} is NOT NULL, so action='null' cannot clear it; make the column nullable first, or delete the rows"
)


class PurgedRows(int):
    """The number of rows that a purge removed, and the rows that the database refused to let go.

    Attributes:
        refused: The primary key of each such row, a tuple, and the name of the database's error, or that the row was
            kept without one; at most 10,000.
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
    session: Session | sa.Connection | sa.Engine,
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
            may not write, or the database does not understand *where*.
        ReencryptionError: The database refused for another reason, or the connection was lost; ``reason`` is
            ``"database"``, and ``report`` the :class:`PurgedRows` so far. Roll your transaction back, and purge again.
    """
    instance("a datetime with a time zone", datetime).or_none.check(before=before)
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
    session: Session | sa.Connection | sa.Engine,
    column: Any,
    condition: sa.ColumnElement[bool],
    *,
    where: Any = None,
    action: Action = "delete",
    progress: Callable[[int], None] | None = None,
) -> PurgedRows:
    """Remove the rows that meet a condition on their envelope; see :func:`purge_expired`."""
    refuse_asynchronous(session, "purge_expired")
    choice(*get_args(Action)).check(action=action)
    FUNCTION.or_none.check(progress=progress)
    purge = _Purge(_bind_of(session), column, condition, where, action)
    # Each batch begins behind the last one: a snapshot may go on showing rows that others have deleted.
    window: KeyRange | None = KeyRange()
    while window is not None:
        try:
            window = purge.work(window)
        except SQLAlchemyError as error:
            raise purge.failure(error) from None
        if progress is not None:
            progress(purge.removed)
    return purge.result()


def _bind_of(given: Any) -> Session | sa.Connection | sa.Engine:
    """Return the session behind a scoped one, and any other bind as it is.

    Raises:
        ConfigurationError: It is something else.
    """
    bind = given() if isinstance(given, scoped_session) else given
    if not isinstance(bind, Session | sa.Connection | sa.Engine):
        raise ConfigurationError(
            f"purge_expired() takes a Session, a Connection or an Engine, not {type(bind).__name__}"
        )
    return bind


class _Purge:
    """One purge, and what it has done so far."""

    def __init__(
        self,
        session: Session | sa.Connection | sa.Engine,
        column: Any,
        condition: sa.ColumnElement[bool],
        where: Any,
        action: Action,
    ) -> None:
        source = _column_of(column)
        table = source.table
        self.name = f"{table.fullname}.{source.name}"
        self.removed = 0
        self.refused: list[tuple[tuple[Any, ...], str]] = []
        self.refused_count = 0
        self._session = session
        self._table = table
        self._conditions = [condition, *_of_class(column, table), *_checked(where, table)]
        self._removal = _removal(action, source, column if isinstance(session, Session) else source)
        self._clears = action == "null"
        try:
            dialect = self._writable_dialect()
        except SQLAlchemyError as error:
            raise self.failure(error) from None
        # Read as what is deleted: a session may limit a class further, to a tenant for example.
        rows = _entity_of(column, table) if isinstance(session, Session) else table
        self._order = KeyOrder(rows, paged_by(table, dialect), dialect)

    def result(self) -> PurgedRows:
        """Return the rows that were removed so far, and those that were refused."""
        return PurgedRows.of(self.removed, self.refused, self.refused_count)

    def failure(self, error: SQLAlchemyError) -> JWTColumnError:
        """Return the error that ends the purge; its message has no value of a row."""
        if not isinstance(error, DBAPIError):
            return ConfigurationError(
                f"{self.name}: SQLAlchemy refused ({type(error).__name__}); look at the session or the connection, and "
                f"at where=; {self.removed} rows were removed before"
            )
        message = (
            f"{self.name}: the database refused ({explained(error)}); {self.removed} rows were removed before"
        )
        if is_setup_problem(error):
            return ConfigurationError(message)
        return ReencryptionError(message, reason="database", report=self.result())

    def _writable_dialect(self) -> str:
        """Return the name of the database's dialect.

        Raises:
            ConfigurationError: The database is a replica, or read-only; also where nothing has expired.
        """
        with self._connected() as (_, connection):
            refusal = why_no_writes(connection)
            name = connection.dialect.name
        if refusal is not None:
            raise ConfigurationError(
                f"{self.name} cannot be purged: {refusal.reason}; {refusal.cure}. Nothing was done"
            )
        return name

    @contextmanager
    def _connected(self) -> Iterator[tuple[Any, sa.Connection]]:
        """Yield what executes statements, and its connection; of an engine, in a transaction of its own."""
        session = self._session
        if isinstance(session, sa.Engine):
            with (
                own_connection(session) as connection,
                connection.begin(),
                without_prepared_statements(connection),
            ):
                yield connection, connection
            return
        if isinstance(session, Session):
            connection = session.connection(bind_arguments={"clause": self._table})
        else:
            connection = session
        with without_prepared_statements(connection):
            yield session, connection

    def _refuse_unreadable_keys(self) -> None:
        """Raise a ConfigurationError if a driver cannot send a row's key back, so that it would stay in silence."""
        with self._connected() as (bind, connection), lifted_and_restored(connection):
            key = unreadable_key(bind, self._order, connection.dialect.driver, *self._conditions)
        if key is not None:
            raise ConfigurationError(
                f"{self.name} cannot be purged by the key {key.name}: {UNREADABLE}. Give the table a primary key "
                "without such values, or leave these rows out by a condition (where=); nothing was done"
            )

    def work(self, window: KeyRange) -> KeyRange | None:
        """Remove the next rows of a range, and return the range of those that are left; None at its end."""
        if window.after is None:
            self._refuse_unreadable_keys()
        # To find the next rows that have expired may take as long as to read the table.
        with self._connected() as (bind, connection), lifted_and_restored(connection):
            batch = bind.execute(self._order.batch((), window, _BATCH, *self._conditions)).all()
        self._remove([tuple(key) for key in batch])
        return KeyRange(after=batch[-1]) if len(batch) == _BATCH else None

    def _remove(self, keys: Sequence[Key]) -> None:
        """Remove rows; of a batch that the database refuses, each half, down to the row."""
        if not keys:
            return
        try:
            with self._attempt() as bind:
                done = [self._remove_at_once(bind, part) for part in self._order.portions(keys)]
        except DBAPIError as error:
            if not is_refusal_of_row(error):
                raise
            refusal = error
        else:
            for removed, kept in done:
                self.removed += removed
                self._list(kept, _KEPT)
            return
        if self._clears and is_null_refused(refusal):
            raise ConfigurationError(_NOT_NULL.format(name=self.name))
        if len(keys) == 1:
            if not self.removed and self.refused_count == _HOPELESS:
                raise refusal
            self._list(keys, error_name(refusal))
            return
        half = len(keys) // 2
        self._remove(keys[:half])
        self._remove(keys[half:])

    def _list(self, keys: Sequence[Key], reason: str) -> None:
        """Note rows that the database did not let go."""
        self.refused_count += len(keys)
        room = max(0, _LISTED - len(self.refused))
        self.refused += [(tuple(key), reason) for key in keys[:room]]

    def _remove_at_once(self, bind: Any, keys: Sequence[Key]) -> tuple[int, Sequence[Key]]:
        """Remove rows; return how many these were, and the keys of those that are still there.

        A trigger may skip a row, which the row count tells, or write the old token back, which it does not.
        """
        # The conditions once more: a row may have been given another token since its key was read.
        meant = (self._order.among(keys), *self._conditions)
        removed = cast("sa.CursorResult[Any]", bind.execute(self._removal.where(*meant))).rowcount
        if removed == len(keys) and not self._clears:
            return removed, ()
        still = self._order.batch((), KeyRange(), len(keys), *meant)
        if self._order.dialect in ("mysql", "mariadb"):
            # A snapshot goes on showing rows that others have deleted.
            still = still.with_for_update()
        kept = [tuple(key) for key in bind.execute(still)]
        return min(removed, len(keys) - len(kept)), kept

    @contextmanager
    def _attempt(self) -> Iterator[Any]:
        """Yield what executes statements that may be refused, and takes nothing else back then."""
        with self._connected() as (bind, connection):
            # After a statement that failed, PostgreSQL refuses every other one in its transaction.
            is_mine = isinstance(self._session, sa.Engine)
            if is_mine or connection.dialect.name != "postgresql" or is_autocommit(connection):
                yield bind
            else:
                with bind.begin_nested():
                    yield bind


def _checked(where: Any, table: sa.Table) -> list[Any]:
    """Return the condition of a caller, in a list that is empty without one.

    Raises:
        ConfigurationError: It is no SQL expression, or joins other tables.
    """
    if where is None:
        return []
    condition = where.__clause_element__() if hasattr(where, "__clause_element__") else where
    if not isinstance(condition, sa.ColumnElement | sa.TextClause):
        raise ConfigurationError(
            f"where is a SQL condition such as Login.tenant == 5, not {type(where).__name__}"
        )
    type_ = getattr(condition, "type", None)
    # MySQL and SQLite take a number for true. A text has no type, and an unknown function one that is not known.
    if type_ is not None and not isinstance(plain_type(type_, ""), sa.Boolean | NullType):
        raise ConfigurationError(
            f"where is a SQL condition, and this is a value of type {type_!r}; compare it, as in Login.tenant == 5"
        )
    others = set(sa.select(table).where(condition).get_final_froms()) - {table}
    if others:
        names = ", ".join(sorted(_shown(one) for one in others))
        raise ConfigurationError(
            f"where names {names}, and a purge is of {table.fullname} alone; ask other tables by a subquery, as in "
            "Login.user_id.in_(select(User.id).where(...))"
        )
    return [where]


def _of_class(column: Any, table: sa.Table) -> list[sa.ColumnElement[bool]]:
    """Return the condition of the rows of a mapped class that shares its table with others, in a list.

    Raises:
        ConfigurationError: Its attribute stands in a table of another class, which has other rows too.
    """
    mapper = getattr(column, "parent", None)
    if not isinstance(mapper, Mapper):
        return []
    if mapper.local_table is not table:
        raise ConfigurationError(
            f"{column} stands in {table.fullname}, which has rows that are no {mapper.class_.__name__}; give the "
            "attribute of the class of that table, and which of its rows by where="
        )
    if not mapper.single or mapper.polymorphic_on is None:
        return []
    return [mapper.polymorphic_on.in_([one.polymorphic_identity for one in mapper.self_and_descendants])]


def _shown(source: Any) -> str:
    if isinstance(source, sa.Alias):
        return f"an alias of {_shown(source.element)}"
    return str(getattr(source, "name", source))


def _removal(action: Action, source: sa.Column[Any], column: Any) -> Any:
    """Return the statement that deletes rows, or clears their token.

    Raises:
        ConfigurationError: The column is NOT NULL.
    """
    table = source.table
    entity = _entity_of(column, table)
    if action == "delete":
        return sa.delete(entity)
    if not source.nullable:
        raise ConfigurationError(_NOT_NULL.format(name=f"{table.fullname}.{source.name}"))
    return sa.update(entity).values({source: None})


def _column_of(column: Any) -> sa.Column[Any]:
    """Return the column of the table that an argument names."""
    source = getattr(getattr(column, "property", None), "columns", [column])[0]
    if not isinstance(source, sa.Column) or not isinstance(source.table, sa.Table):
        raise ConfigurationError("purge_expired() takes a mapped attribute or a column of a table")
    if not isinstance(source.type, TypeDecorator) or not isinstance(source.comparator, EncryptedComparator):
        raise ConfigurationError(f"{source} is not a column of type EncryptedJWT")
    return source


def _entity_of(column: Any, table: sa.Table) -> Any:
    """Return the class that is mapped to the table, so that a session forgets deleted objects; else the table."""
    mapper = getattr(column, "parent", None)
    return mapper if isinstance(mapper, Mapper) else table
