"""The ORM extension: tokens are checked at the line that assigns them.

Every mapped attribute whose column is an :class:`EncryptedJWT` turns an assigned ``str`` into a :class:`JWT`:
declarative, dataclass-mapped and imperative alike. A value that is no token raises there and then, and every
later dump of parameters, by SQLAlchemy or an error reporter, shows a redacted value.

A column that is added to a class after its mapper was configured is encrypted, but not checked at assignment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, get_args

from sqlalchemy import Engine, event
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.elements import ClauseElement, Null

from ..errors import ConfigurationError, InvalidTokenError
from ..format.token import JWT
from ..option_values import instance
from .json_document import TokenDict
from .json_type import EncryptedJSON
from .row_binding import listen_to_rows
from .sealed import SealedJWT
from .types import EncryptedJWT

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine.interfaces import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine


@event.listens_for(Mapper, "mapper_configured")
def _listen(mapper: Mapper[Any], class_: type[Any]) -> None:
    """Listen to assignments of a newly mapped class's encrypted attributes, and bind their rows.

    Each class listens for itself: a subclass may be mapped to a table of its own, with another type.
    """
    for prop in mapper.column_attrs:
        type_ = prop.columns[0].type
        if isinstance(type_, EncryptedJWT):
            coerce = _coercion(type_)
            # Neither the object nor a key is looked at; but without raw and include_key SQLAlchemy wraps the listener.
            event.listen(getattr(class_, prop.key), "set", coerce, raw=True, retval=True, include_key=True)
            for name in ("refresh", "refresh_flush"):
                event.listen(class_, name, _restoration(prop.key, coerce), raw=True)
            # SQLModel puts the plain value back after an assignment.
            if hasattr(class_, "__sqlmodel_relationships__"):
                for name in ("before_insert", "before_update"):
                    event.listen(mapper, name, _repetition(prop.key, coerce), raw=True)
            if type_.bound_to:
                listen_to_rows(mapper, prop)
            # After the rows' listeners, which open what SQLAlchemy is to track.
            if isinstance(type_, EncryptedJSON):
                TokenDict.associate_with_attribute(getattr(class_, prop.key))


@event.listens_for(Mapper, "instrument_class")
def _refuse_plaintext(mapper: Mapper[Any], class_: type[Any]) -> None:
    """Refuse a field of SQLModel that would store tokens in the clear: it makes a text column for a subclass of str."""
    for name, field in getattr(class_, "model_fields", {}).items():
        column = mapper.local_table.c.get(name)
        if (
            column is not None
            and _is_token(field.annotation)
            and type(column.type).__module__ == _SQLMODEL_TYPES
        ):
            raise ConfigurationError(
                f"{column}: a field of type JWT without a column type would be stored in the clear; declare "
                "Field(sa_type=EncryptedJWT())",
                context=str(column),
            )


def _is_token(annotation: object) -> bool:
    """Return True for ``JWT``, and for a union with it."""
    return annotation is JWT or any(map(_is_token, get_args(annotation)))


_SQLMODEL_TYPES: Final = "sqlmodel.sql.sqltypes"
_NOT_CHECKED: Final = (SealedJWT, Null)
#: The values that an attribute may have once it was checked.
_RESTORED: Final = (JWT, TokenDict, SealedJWT, ClauseElement, type(None))


def _coercion(type_: EncryptedJWT) -> Callable[[Any, Any, Any, Any], Any]:
    """Return the listener that checks the values assigned to one attribute."""
    cipher = type_.cipher()
    # Otherwise another object than this token is encrypted.
    keep_frame = type_.plaintext != "write" and not type_.bound_to

    def coerce(_state: Any, value: Any, _old: Any, _initiator: Any) -> Any:
        if value is None or isinstance(value, _NOT_CHECKED):
            return value
        if isinstance(value, ClauseElement):
            raise InvalidTokenError(
                f"{cipher.context} does not take a SQL expression: the database cannot encrypt its result",
                reason="SQL expression",
                context=cipher.context,
            )
        try:
            return cipher.value_of(cipher.check(value, keep_frame=keep_frame))
        except InvalidTokenError as error:
            failure = error
        # The frames below hold the value in their local variables, which error reporters show.
        value = None
        raise failure.with_traceback(None) from None

    return coerce


def _restoration(key: str, coerce: Callable[..., Any]) -> Callable[[Any, Any, Any], None]:
    """Return the listener that makes a JWT of a plain text, which SQLAlchemy puts in place of an attribute.

    It does so without an assignment: with a default or ``onupdate`` of the column, and with the values of a bulk
    UPDATE that is synchronized with the session.
    """

    def restore(state: Any, _context: Any, _attributes: Any) -> None:
        value = state.dict.get(key)
        if not isinstance(value, _RESTORED):
            state.dict[key] = restored = coerce(None, value, None, None)
            if isinstance(restored, TokenDict):
                restored._parents[state] = key  # noqa: SLF001 - as SQLAlchemy does for a value that it loads

    return restore


def _repetition(key: str, coerce: Callable[..., Any]) -> Callable[[Any, Any, Any], None]:
    """Return the listener that does the same before a flush."""
    restore = _restoration(key, coerce)
    return lambda _mapper, _connection, state: restore(state, None, None)


def redact_errors(engine: Engine | AsyncEngine) -> None:
    """Make the exceptions of an engine carry no parameters.

    For Core statements that are given plain strings: when another column of such a row fails to bind,
    SQLAlchemy puts the raw parameters of the whole row into the text of its exception and into ``params``.
    Mapped attributes hold values with a redacted ``repr`` and do not need this.

    Args:
        engine: Its statements from now on. Calling it twice is harmless.
    """
    # Not isinstance: importing AsyncEngine takes greenlet, which SQLAlchemy installs for its asyncio extra only.
    target: Any = getattr(engine, "sync_engine", engine)
    instance("an Engine or an AsyncEngine", Engine).check(engine=target)
    if not event.contains(target, "handle_error", _drop_parameters):
        event.listen(target, "handle_error", _drop_parameters)


def _drop_parameters(context: ExceptionContext) -> None:
    error = context.sqlalchemy_exception
    if error is not None and hasattr(error, "params"):
        error.params = None
        error.hide_parameters = True
