"""Row binding: an envelope that opens only beside the values of its own row (``bound_to``).

The column type never sees a row, so the ORM's unit of work carries the values across: before an INSERT or
UPDATE the token gets the binding of its row (:class:`BoundJWT`), and a loaded envelope, which the type leaves
closed, is opened as soon as its row is there. A statement that goes around the unit of work has no row to
give and is refused.

A change of a bound column encrypts the token again. Where the unit of work does not see the change (a bulk or Core
UPDATE, ``ON UPDATE CASCADE``, a relationship with ``post_update``), the token no longer opens, as if its envelope had
been copied from another row.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from sqlalchemy import Table, Uuid, event, select
from sqlalchemy.orm import LoaderCallableStatus, PassiveFlag
from sqlalchemy.orm.attributes import flag_modified, get_history
from sqlalchemy.orm.exc import ObjectDeletedError, UnmappedColumnError
from sqlalchemy.types import TypeDecorator

from ..errors import ConfigurationError, DecryptionError
from .binding import binding_of
from .sealed import SealedJWT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sqlalchemy import Column, Connection, Result, Select
    from sqlalchemy.orm import ColumnProperty, InstanceState, Mapper, Session
    from sqlalchemy.types import TypeEngine

    from .types import EncryptedJWT

_BINDABLE: Final = (str, int, UUID, bytes)

# The methods by which a TypeDecorator changes values.
_CONVERTS: Final = (
    "bind_processor", "process_bind_param", "process_result_value", "python_type", "result_processor",
)  # fmt: skip

#: A value that the database has and this process does not know.
_UNKNOWN: Final = LoaderCallableStatus.NO_VALUE


def listen_to_rows(mapper: Mapper[Any], prop: ColumnProperty[Any]) -> None:
    """Bind the tokens of one mapped attribute to values of their rows.

    Raises:
        ConfigurationError: ``bound_to`` names something that a token cannot be bound to.
    """
    binding = _RowBinding(mapper, prop)
    event.listen(mapper, "before_insert", binding.before_insert, raw=True)
    event.listen(mapper, "before_update", binding.before_update, raw=True)
    event.listen(mapper.class_, "load", binding.after_load, raw=True)
    event.listen(mapper.class_, "refresh", binding.after_refresh, raw=True)


class _RowBinding:
    """Ties the tokens of one attribute of one mapper to the bound attributes of the same object."""

    def __init__(self, mapper: Mapper[Any], prop: ColumnProperty[Any]) -> None:
        column: Any = prop.columns[0]
        self._mapper = mapper
        self._key = prop.key
        self._type: EncryptedJWT = column.type
        self._context = self._type.context
        if not isinstance(column.table, Table):
            raise self._error("is no column of a table, so it has no row to be bound to")
        self._column: Column[Any] = column
        bound = {name: self._find(name) for name in self._type.bound_to}
        #: Attributes by the names in bound_to, and the columns of all attributes concerned.
        self._keys = {name: self._key_of(column) for name, column in bound.items()}
        self._columns = {self._key: column, **{self._keys[name]: bound[name] for name in bound}}

    def _error(self, message: str) -> ConfigurationError:
        return ConfigurationError(f"{self._context} {message}", context=self._context)

    def _find(self, name: str) -> Column[Any]:
        """Return the column that a name of ``bound_to`` means, checked."""
        table = self._column.table
        column = find_bound_column(table, name, self._mapper)
        if column is None:
            raise self._error(f"cannot be bound to {name}: {table.name} has no such column")
        if column is self._column:
            raise self._error("cannot be bound to itself")
        # A UUID as text has several spellings, and the database gives back another one than was written.
        plain = _undecorated(column.type)
        is_uuid_text = isinstance(plain, Uuid) and not plain.as_uuid
        if is_uuid_text or python_type_of(column.type) not in _BINDABLE:
            raise self._error(
                f"cannot be bound to {name}, whose type is {column.type!r}: only text, integers, uuid.UUID "
                "and bytes come back from every database as they were written"
            )
        return column

    def _key_of(self, column: Column[Any]) -> str:
        try:
            return self._mapper.get_property_by_column(column).key
        except UnmappedColumnError:
            raise self._error(f"cannot be bound to {column.name}: no attribute is mapped to it") from None

    def before_insert(self, _mapper: Mapper[Any], _connection: Connection, state: InstanceState[Any]) -> None:
        """Give the token of a new row its binding."""
        self._attach(state, state.dict.get(self._key), state.dict)

    def before_update(self, _mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
        """Give a new token its binding, and an old one too when the row's bound values change."""
        is_new = self._is_changed(state, self._key)
        if not is_new and not any(self._is_changed(state, key) for key in self._keys.values()):
            return
        # An attribute that was neither loaded nor assigned is as the database has it.
        missing = [key for key in self._columns if key not in state.dict and key not in state.committed_state]
        stored: dict[str, Any] = {}
        if missing:
            # An old token opens beside the old values only, so it takes all of them.
            statement = self._select(state, list(self._columns) if self._key in missing else missing)
            stored = _one_row(connection.execute(statement), state)
        attributes = stored | dict.fromkeys(state.committed_state) | state.dict
        token = attributes[self._key]
        if not is_new and isinstance(token, SealedJWT):
            # No token was assigned, but this one has to move along with its row.
            token = token.reveal(**self._named(stored)) if token.awaits_row else token.reveal()
        self._attach(state, token, attributes)
        if not is_new and token is not None:
            flag_modified(state.obj(), self._key)

    @staticmethod
    def _is_changed(state: InstanceState[Any], key: str) -> bool:
        return get_history(state.obj(), key, PassiveFlag.PASSIVE_NO_INITIALIZE).has_changes()

    def _attach(self, state: InstanceState[Any], token: object, attributes: Mapping[str, Any]) -> None:
        """Put a token with the binding of its row in the place of a token."""
        if isinstance(token, SealedJWT):
            raise DecryptionError(
                f"{self._context}: a sealed value cannot be written into a bound column; reveal() it first",
                context=self._context,
                key_id=token.key_id,
            )
        # Anything else is NULL, or a default that the type will refuse.
        if isinstance(token, self._type.python_type):
            values = self._named(attributes)
            for name, value in values.items():
                self._check_value(name, value)
            state.dict[self._key] = self._type.cipher().bound(token, binding_of(values.items()))

    def _named(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the bound values, by the names that ``bound_to`` has for them."""
        return {name: attributes.get(key) for name, key in self._keys.items()}

    def _check_value(self, name: str, value: object) -> None:
        """Refuse a value that is not known yet, or that would come back from the database as another type."""
        if value is None:
            raise self._error(
                f"is bound to {name}, which has no value yet; set it before the flush: what the database or "
                "a column default fills in comes too late to be authenticated"
            )
        column = self._columns[self._keys[name]]
        expected = python_type_of(column.type)
        if isinstance(value, bool) or expected is None or not isinstance(value, expected):
            raise self._error(
                f"is bound to {name}, which holds {type(value).__name__}, while its column is {column.type!r}"
            )

    def after_load(self, state: InstanceState[Any], _context: object) -> None:
        """Open the token of a row that was loaded whole."""
        self._open(state, fresh=None)

    def after_refresh(
        self, state: InstanceState[Any], _context: object, attrs: Collection[str] | None
    ) -> None:
        """Open the token of a row of which these attributes were loaded; None means all."""
        self._open(state, fresh=attrs)

    def _open(self, state: InstanceState[Any], *, fresh: Collection[str] | None) -> None:
        sealed = state.dict.get(self._key)
        if not isinstance(sealed, SealedJWT) or not sealed.awaits_row:
            return
        try:
            opened = sealed.in_row(self._named(self._row_values(state, fresh)))
            if isinstance(opened, SealedJWT) and self._type.undecryptable == "raise":
                raise opened.reason  # noqa: TRY301 - the handler is for every error alike
        except BaseException:
            # Else the object would be found in its session with the token still closed.
            _session_of(state).expire(state.obj(), [self._key])
            raise
        state.dict[self._key] = opened

    def _row_values(self, state: InstanceState[Any], fresh: Collection[str] | None) -> Mapping[str, Any]:
        """Return the bound attributes as the database has them, in spite of later assignments."""
        values = {}
        for key in self._keys.values():
            is_assigned = key in state.committed_state and fresh is not None and key not in fresh
            values[key] = (state.committed_state if is_assigned else state.dict).get(key, _UNKNOWN)
        if _UNKNOWN not in values.values():
            return values
        statement = self._select(state, self._keys.values())
        return _one_row(_session_of(state).execute(statement, bind_arguments={"mapper": self._mapper}), state)

    def _select(self, state: InstanceState[Any], keys: Iterable[str]) -> Select[Any]:
        """Return the statement that reads attributes from the row of an object."""
        mapper = self._mapper
        return (
            select(*(self._columns[key].label(key) for key in keys))
            .select_from(mapper.persist_selectable)
            .where(*map(operator.eq, mapper.primary_key, state.identity or ()))
        )


def _one_row(result: Result[Any], state: InstanceState[Any]) -> dict[str, Any]:
    row = result.mappings().one_or_none()
    if row is None:
        raise ObjectDeletedError(state)
    return dict(row)


def find_bound_column(table: Table, name: str, mapper: Mapper[Any] | None) -> Column[Any] | None:
    """Return the column that a name of ``bound_to`` means: of the table, else of a mapped attribute."""
    by_name: dict[str, Any] = {column.name: column for column in table.c}
    column: Column[Any] | None = table.c.get(name, by_name.get(name))
    if column is None and mapper is not None and name in mapper.column_attrs:
        columns: list[Any] = mapper.column_attrs[name].columns
        column = next((column for column in columns if column.table is table), None)
    return column


def python_type_of(type_: TypeEngine[Any]) -> type | None:
    """Return the Python type of a type's values, or None if the type does not say."""
    try:
        return _undecorated(type_).python_type
    except NotImplementedError:
        return None


def _undecorated(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type within a decorator that leaves the values as they are, such as SQLModel's AutoString."""
    if isinstance(type_, TypeDecorator):
        own = type(type_)
        if all(getattr(own, name) is getattr(TypeDecorator, name) for name in _CONVERTS):
            return type_.impl_instance
    return type_


def _session_of(state: InstanceState[Any]) -> Session:
    return cast("Session", state.session)  # An object that is being loaded has one.
