"""The last look at a statement, before it is sent: values that would be stored in the clear.

A value reaches an encrypted column as an envelope if it is bound through the column's type. SQLAlchemy builds
statements in which it is not: ``values(token=func.coalesce(None, raw))``, ``insert().from_select(...)``, an upsert
with ``set_={"token": literal(raw)}``. The database cannot encrypt, so such a statement raises. :mod:`.predicates` does
the same for comparisons.

Each compiled statement is looked at once, so a statement of SQLAlchemy's cache costs nothing, and one that names no
encrypted column costs a walk through its elements. ``str(statement)`` and Alembic's ``--sql`` send nothing, and are
not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import LargeBinary, String, Table, event
from sqlalchemy.engine import Engine
from sqlalchemy.sql import elements, operators, visitors
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import (
    CompoundSelect,
    ScalarSelect,
    Select,
    SelectStatementGrouping,
    TableClause,
)

from ..errors import InvalidTokenError, JWTColumnError
from ..format.envelope import looks_like_envelope
from .comparator import name_of
from .expiry import ExpiryTime
from .misuses import misuses_of, tokens_sent_by, warn_of
from .predicates import ciphertext_in, coerced_refusal, comparison_refusal
from .stored_type import storage_refusal
from .types import EncryptedJWT, is_encrypted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# The name of a parameter, that of its column, and what returns the error if the value is no envelope.
_Envelope = tuple[str, str, Callable[[str], JWTColumnError]]

# Under this name a compiled statement keeps the parameters whose values are looked at each time: stored envelopes,
# bound as bytes or text. Of nearly every statement, none.
_CHECKED: Final = "_jwt_column_envelopes"

# The types by which stored envelopes can be bound as they are.
_RAW: Final = {"binary": LargeBinary, "text": String}

_EQUALITY: Final = (
    operators.eq,
    operators.ne,
    operators.in_op,
    operators.not_in_op,
    operators.is_distinct_from,
    operators.is_not_distinct_from,
)

#: Functions that return one of their arguments.
_CHOOSING: Final = frozenset({"coalesce", "ifnull"})
#: Texts that the database reads as a value of its own.
_HARMLESS: Final = frozenset({"null", "default"})


@event.listens_for(Engine, "before_cursor_execute")
def _look(*given: Any) -> None:
    """Refuse a statement before it is sent, given the six arguments of the event."""
    context = given[4]
    compiled = context.compiled
    if compiled is None or getattr(compiled, "isplaintext", False):
        warn_of(tokens_sent_by(given[3]))
    envelopes = None if compiled is None else compiled.__dict__.get(_CHECKED)
    if envelopes == () or not isinstance(compiled, SQLCompiler):
        return
    refusal = None
    if envelopes is None:
        envelopes, refusal, misuses = examine(compiled)
        refusal = refusal or _type_refusal(given[0], compiled)
        if refusal is None:
            warn_of(misuses)
        compiled.__dict__[_CHECKED] = envelopes
    if refusal is None and envelopes:
        refusal = _envelope_refusal(envelopes, context.compiled_parameters)
    if refusal is not None:
        del compiled.__dict__[_CHECKED]
        # The parameters are among them, and error reporters show local variables.
        del given, context, compiled
        raise refusal


def _type_refusal(connection: Any, compiled: SQLCompiler) -> JWTColumnError | None:
    """Return the error for an INSERT or UPDATE of a column whose type in the database does not fit the storage form."""
    if not (compiled.isinsert or compiled.isupdate):
        return None
    table = getattr(compiled.compile_state, "dml_table", None)
    columns = table.c if isinstance(table, Table) else ()
    encrypted = [column for column in columns if is_encrypted(column.type)]
    refusals = (storage_refusal(connection, table, column.name, column.type) for column in encrypted)
    return next((refusal for refusal in refusals if refusal is not None), None)


def examine(compiled: SQLCompiler) -> tuple[tuple[_Envelope, ...], JWTColumnError | None, list[str]]:
    """Return a compiled statement's parameters that must be envelopes, the error that refuses it, and its misuses.

    The error is returned and not raised, so that no frame of this module is in its traceback.
    """
    envelopes: list[_Envelope] = []
    found = tuple(_elements(compiled))
    if not any(map(_concerns_tokens, found)):
        return (), None, []
    for element in found:
        refusal: JWTColumnError | None = None
        if isinstance(element, UpdateBase):
            refusal = _value_refusal(element, compiled, envelopes)
        elif isinstance(element, elements.BinaryExpression):
            envelopes += _compared_envelopes(element, compiled)
        if refusal is None:
            refusal = comparison_refusal(element)
        if refusal is not None:
            return (), refusal, []
    return tuple(envelopes), None, [misuse for element in found for misuse in misuses_of(element)]


def _elements(compiled: SQLCompiler) -> Iterator[Any]:
    """Yield every element of a statement, as it was written and as the ORM resolved it."""
    statement: Any = getattr(compiled.statement, "_resolved", compiled.statement)
    # The ORM compiles another statement than the one that was written: joins and attributes are resolved there.
    resolved = getattr(compiled.compile_state, "statement", None)
    for one in (statement,) if resolved is None or resolved is statement else (statement, resolved):
        for element in visitors.iterate(one):
            yield element
            # SQLAlchemy 2.0 does not look into the clauses of an upsert.
            for clause in _upserts(element.__dict__.get("_post_values_clause")):
                yield clause
                for part in _parts_of(clause):
                    yield from visitors.iterate(part)


def _concerns_tokens(element: Any) -> bool:
    """Return True for an element that has the type of a token or of its expiry, or a table with such a column.

    A statement without one can neither store nor compare tokens: a column that it names by a text is one of a table or
    subquery among its elements.
    """
    columns = element.c if isinstance(element, TableClause) else (element,)
    types = (getattr(column, "type", None) for column in columns)
    return any(is_encrypted(type_) or isinstance(type_, ExpiryTime) for type_ in types)


def _value_refusal(
    statement: Any, compiled: SQLCompiler, envelopes: list[_Envelope]
) -> JWTColumnError | None:
    """Return the error for the first value that an INSERT or UPDATE would store in the clear."""
    for key, value in _assignments(statement):
        column = _column(statement, key)
        type_: Any = getattr(column, "type", None)
        if not is_encrypted(type_) or _is_sealed(value, type_, outermost=True):
            continue
        name = compiled.bind_names.get(value) if isinstance(value, elements.BindParameter) else None
        if name is None or not isinstance(value.type, _RAW[type_.storage]):
            return _refusal(name_of(column))
        envelopes.append((name, name_of(column), _refusal))
    return None


def _compared_envelopes(comparison: Any, compiled: SQLCompiler) -> Iterator[_Envelope]:
    """Yield the parameters that are compared with the bytes or the text of a column, by ``type_coerce()``.

    A token would equal nothing, and be sent in the clear. While rows may be in the clear, it finds those.
    """
    if comparison.operator not in _EQUALITY:
        return
    for side, other in ((comparison.left, comparison.right), (comparison.right, comparison.left)):
        column: Any = ciphertext_in(side.clause) if isinstance(side, elements.TypeCoerce) else None
        name = compiled.bind_names.get(other) if isinstance(other, elements.BindParameter) else None
        if column is not None and name is not None and column.type.plaintext == "refuse":
            yield name, name_of(column), coerced_refusal


def _envelope_refusal(envelopes: tuple[_Envelope, ...], rows: Iterable[Any]) -> JWTColumnError | None:
    """Return the error for a parameter, bound as bytes or text, that is no envelope in one of the rows."""
    for row in rows:
        for name, column, refuse in envelopes:
            for value in _values_of(name, row):
                is_stored = isinstance(value, bytes | str) and looks_like_envelope(value)
                is_empty = refuse is coerced_refusal and not value
                if value is not None and not is_stored and not is_empty:
                    return refuse(column)
    return None


def _values_of(name: str, row: Any) -> Iterable[Any]:
    """Return the values of a parameter: one, or those of a list, which SQLAlchemy has numbered."""
    given = row[name] if name in row else [value for key, value in row.items() if key.startswith(f"{name}_")]
    return given if isinstance(given, list | tuple) else (given,)


def _refusal(context: str) -> InvalidTokenError:
    return InvalidTokenError(
        f"{context} does not take a SQL expression: the database cannot encrypt its result. Bind the token itself, or "
        "bindparam(..., type_=...) with the column's type; NULL, envelopes, the column itself and columns of the same "
        "context can be copied",
        reason="SQL expression",
        context=context,
    )


def _assignments(statement: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what an INSERT or UPDATE names as columns, each with its value, wherever SQLAlchemy keeps them."""
    attribute = statement.__dict__.get
    yield from _pairs(attribute("_values"))
    yield from _pairs(attribute("_ordered_values"))
    for rows in attribute("_multi_values") or ():
        for row in rows:
            yield from row.items() if isinstance(row, dict) else zip(statement.table.c, row, strict=False)
    for clause in _upserts(attribute("_post_values_clause")):
        yield from _values_set(clause)
    selected = attribute("select")
    if selected is not None:
        for row in _selected(selected):
            yield from zip(attribute("_select_names") or (), row, strict=False)


def _values_set(upsert: Any) -> Iterable[tuple[Any, Any]]:
    """Return what ON CONFLICT (SQLite, PostgreSQL) or ON DUPLICATE KEY (MySQL, MariaDB) sets."""
    return _pairs(getattr(upsert, "update_values_to_set", None) or getattr(upsert, "update", None))


def _pairs(values: Any) -> Iterable[tuple[Any, Any]]:
    return values.items() if hasattr(values, "items") else values or ()


def _parts_of(upsert: Any) -> Iterator[Any]:
    """Yield the expressions of ON CONFLICT or ON DUPLICATE KEY: the new values and the conditions."""
    conditions = (
        getattr(upsert, name, None) for name in ("update_whereclause", "inferred_target_whereclause")
    )
    for part in (*(value for _, value in _values_set(upsert)), *conditions):
        if isinstance(part, visitors.Visitable):
            yield part


def _upserts(clause: Any) -> Iterable[Any]:
    """Return the clauses that follow VALUES: one, or several."""
    return () if clause is None else getattr(clause, "clauses", None) or (clause,)


def _column(statement: Any, key: Any) -> Any:
    """Return the column that an assignment names: by itself, by its key, or by the name of a mapped attribute."""
    if hasattr(key, "__clause_element__"):
        key = key.__clause_element__()
    if not isinstance(key, str):
        return key
    mapper = getattr(statement, "_propagate_attrs", {}).get("plugin_subject")
    mapped = getattr(mapper, "mapper", mapper)
    if mapped is not None and key in mapped.column_attrs:
        return mapped.column_attrs[key].columns[0]
    return statement.table.c.get(key)


def _selected(select: Any) -> Iterator[list[Any]]:
    """Yield the columns of a SELECT, or of each one that a UNION puts together."""
    if isinstance(select, SelectStatementGrouping):
        yield from _selected(select.element)
    elif isinstance(select, CompoundSelect):
        for one in select.selects:
            yield from _selected(one)
    elif isinstance(select, Select):
        yield list(select.selected_columns)
    else:
        # Text, or rows of VALUES: the content of their columns is unknown.
        yield [elements.TextClause("") for _ in select.selected_columns]


def _is_sealed(value: Any, type_: EncryptedJWT, *, outermost: bool = False) -> bool:
    """Return True for a value that reaches the database as an envelope of the column, or as NULL.

    Only listed forms are good: an expression's own type proves nothing, since ``coalesce(token, raw)`` has that of its
    first argument.
    """
    if hasattr(value, "__clause_element__"):
        value = value.__clause_element__()
    if not isinstance(value, elements.ColumnElement | elements.TextClause):
        # A plain value is bound through the type of its column; a SELECT is a subquery by another name.
        return not isinstance(value, visitors.Visitable)
    if isinstance(value, elements.BindParameter):
        # SQLAlchemy gives a parameter without a type that of its column, but not within another expression.
        return (outermost and value.type._isnull) or _is_alike(value.type, type_)  # noqa: SLF001
    if isinstance(value, elements.Null):
        return True
    if isinstance(value, elements.TextClause):
        return value.text.strip().lower() in _HARMLESS
    if isinstance(value, elements.ColumnClause):
        return _is_sealed_column(value, type_)
    return all(_is_sealed(part, type_) for part in _results(value))


def _is_sealed_column(column: Any, type_: EncryptedJWT) -> bool:
    if column.is_literal:
        return str(column.name).lower() in _HARMLESS
    # A column of a subquery is as good as the expression that it stands for.
    proxied = list(column._proxies)  # noqa: SLF001
    return all(_is_sealed(one, type_) for one in proxied) if proxied else _is_alike(column.type, type_)


def _results(value: Any) -> list[Any]:
    """Return the expressions one of which an expression gives as its value."""
    if isinstance(value, elements.Grouping | elements.Label):
        return [value.element]
    if isinstance(value, elements.TypeCoerce | elements.Cast):
        return [getattr(value, "typed_expression", value.clause)]
    if isinstance(value, elements.Case):
        return [result for _, result in value.whens] + ([] if value.else_ is None else [value.else_])
    if isinstance(value, FunctionElement) and str(getattr(value, "name", "")).lower() in _CHOOSING:
        return list(value.clauses)
    if isinstance(value, ScalarSelect):
        return [column for row in _selected(value.element) for column in row]
    # Anything else is as unknown as a text.
    return [elements.TextClause("")]


def _is_alike(type_: Any, wanted: EncryptedJWT) -> bool:
    """Return True if values of a type are envelopes that open in a column of the wanted type."""
    if not is_encrypted(type_):
        return False
    spec, other = type_.spec, wanted.spec
    return (spec.context, spec.storage) == (other.context, other.storage)
