"""Comparisons of an encrypted column that go around its comparator.

``Session.token == value`` becomes a condition on fingerprints. ``tuple_(user, token).in_(...)``,
``literal(value) == Session.token``, ``case({value: ...}, value=Session.token)`` and
``func.nullif(Session.token, value)`` are built without the comparator: ciphertext would equal nothing, and the token
would be sent in the clear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.sql import elements, operators, visitors
from sqlalchemy.sql.functions import Function, FunctionElement
from sqlalchemy.sql.selectable import Exists, ScalarSelect, Select, SelectBase
from sqlalchemy.sql.sqltypes import _Binary
from sqlalchemy.types import NullType, String

from ..errors import UnsupportedComparisonError
from .comparator import name_of
from .expiry import ExpiryTime
from .header_sql import is_header_sql
from .types import is_encrypted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_NULL_TESTS: Final = (operators.is_, operators.is_not)
_ORDERS: Final = (operators.asc_op, operators.desc_op)
# Functions whose result is one of their arguments, or a number of rows.
_OF_TIMES: Final = frozenset(("coalesce", "count", "max", "min"))


def comparison_refusal(element: Any) -> UnsupportedComparisonError | None:
    """Return the error for an element that compares ciphertext, or None. Elements within it are looked at alone."""
    if _calculates_with_expiry(element):
        return UnsupportedComparisonError(
            f"expires_at: {function_name(element)} is not asked of it, and the statement was not sent; select "
            "expires_at, and calculate in Python"
        )
    if isinstance(element, elements.BinaryExpression):
        operands = [
            one.clause if isinstance(one, elements.Cast) else one for one in (element.left, element.right)
        ]
        column = ciphertext_in(*operands)
        is_null_test = element.operator in _NULL_TESTS and isinstance(element.right, elements.Null)
        if column is not None and not is_null_test:
            return _refusal(column, "this comparison")
    elif isinstance(element, elements.Case):
        conditions = [when for when, _ in element.whens]
        results = [*(result for _, result in element.whens), element.else_]
        column = ciphertext_in(element.value, *conditions)
        if column is None and any(map(_is_plain, results)):
            column = ciphertext_in(*results)
        if column is not None:
            return _refusal(column, "CASE with it")
    elif isinstance(element, FunctionElement) and not is_header_sql(element):
        column = ciphertext_in(*element.clauses)
        if column is not None and (_has_plain_parameter(element) or function_name(element) == "nullif"):
            return _refusal(column, f"{function_name(element)}() with a value")
    elif isinstance(element, elements.Cast | elements.TypeCoerce):
        column = _ciphertext(element.clause)
        if column is not None and not _reads_stored(element, column.type):
            name = "CAST" if isinstance(element, elements.Cast) else "type_coerce()"
            return _refusal(column, f"{name} to {type(element.type).__name__}")
    elif isinstance(element, elements.Extract):
        column = _ciphertext(element.expr)
        if column is not None:
            return _refusal(column, "EXTRACT")
    elif isinstance(element, elements.UnaryExpression) and element.modifier in _ORDERS:
        column = _ciphertext(element.element)
        if column is not None:
            return _refusal(column, "ORDER BY")
    return _predicate_refusal(element)


def _predicate_refusal(element: Any) -> UnsupportedComparisonError | None:
    """Return the error for ciphertext, or a function over it, in WHERE, HAVING or ON, or for ORDER BY ciphertext."""
    column = ciphertext_in(*_conditions(element))
    if column is not None:
        return _refusal(column, "the column alone as a condition")
    for condition in _conditions(element):
        for part in visitors.iterate(condition):
            column = None
            if isinstance(part, FunctionElement) and not is_header_sql(part):
                column = None if function_name(part) == "count" else ciphertext_in(*part.clauses)
            elif isinstance(part, elements.Cast):
                column = _ciphertext(part.clause)
            if column is not None:
                return _refusal(column, f"{function_name(part)}() in a condition")
    orders = element.__dict__.get("_order_by_clauses", ())
    # The second is that of OVER, WITHIN GROUP and PostgreSQL's aggregates.
    column = ciphertext_in(*orders, element.__dict__.get("order_by"), *columns_named(element, orders))
    return None if column is None else _refusal(column, "ORDER BY")


def _calculates_with_expiry(element: Any) -> bool:
    """Return True for a function of ``expires_at`` that would take the stored bytes for a time."""
    if isinstance(element, elements.Extract):
        operands = [element.expr]
    elif isinstance(element, elements.Cast):
        operands = [element.clause]
    elif isinstance(element, Function):  # sqlalchemy.func; an element of another class knows what it compiles
        operands = [] if function_name(element) in _OF_TIMES else list(element.clauses)
    else:
        return False
    return any(isinstance(getattr(operand, "type", None), ExpiryTime) for operand in operands)


def _conditions(element: Any) -> Iterator[Any]:
    """Yield the conditions of a statement, an upsert, a join or an aggregate, and those that AND or OR combines."""
    attribute = element.__dict__.get
    yield from attribute("_where_criteria", ())
    yield from attribute("_having_criteria", ())
    named = ("onclause", "criterion", "update_whereclause", "inferred_target_whereclause")
    for condition in (*map(attribute, named), *(join[1] for join in attribute("_setup_joins", ()))):
        if isinstance(condition, elements.ClauseElement):
            yield condition
    if isinstance(element, elements.BooleanClauseList):
        yield from element.clauses


def _ciphertext(element: Any) -> elements.ColumnElement[Any] | None:
    """Return the first operand of an encrypted type in an operand: itself, or a member of a tuple or a subquery."""
    is_reference = getattr(element, "__visit_name__", "") == "label_reference"
    if is_reference or isinstance(element, elements.Grouping | elements.Label | elements.CollectionAggregate):
        return _ciphertext(element.element)
    if isinstance(element, ScalarSelect | Exists):
        return None if isinstance(element, Exists) else _ciphertext(element.element)
    if isinstance(element, SelectBase):
        return ciphertext_in(*element.selected_columns)
    if isinstance(element, elements.Tuple | elements.ClauseList | elements.ExpressionClauseList):
        return ciphertext_in(*element.clauses)
    if isinstance(element, elements.ColumnElement) and is_encrypted(element.type):
        return element
    return None


def ciphertext_in(*operands: Any) -> elements.ColumnElement[Any] | None:
    """Return the first ciphertext in several operands."""
    found = (_ciphertext(operand) for operand in operands)
    return next((one for one in found if one is not None), None)


def columns_named(statement: Any, clauses: Iterable[Any]) -> Iterator[Any]:
    """Yield the columns of a statement that texts in ORDER BY, GROUP BY or DISTINCT name: ``order_by("token")``."""
    parts: Iterator[Any] = (part for clause in clauses for part in visitors.iterate(clause))
    names = [part.element for part in parts if part.__visit_name__ == "textual_label_reference"]
    if names:
        froms = statement.get_final_froms() if isinstance(statement, Select) else ()
        known: dict[str, Any] = {}
        for column in (*statement.selected_columns, *(column for one in froms for column in one.c)):
            known.setdefault(column.key, column)
        yield from (known[name] for name in names if name in known)


def _reads_stored(element: Any, type_: Any) -> bool:
    """Return True for a CAST or a type_coerce() that gives the stored bytes, or the stored text, as they are."""
    wanted = getattr(element.type, "impl_instance", element.type)
    if is_encrypted(element.type) or isinstance(wanted, NullType):
        return True
    # Neither SQLite nor MariaDB makes a text of bytes that are none; PostgreSQL makes one that is no envelope.
    is_converted = type_.storage == "binary" and isinstance(element, elements.Cast)
    return isinstance(wanted, _Binary) or (isinstance(wanted, String) and not is_converted)


def _has_plain_parameter(function: Any) -> bool:
    """Return True for a function with a parameter that is not encrypted, as in ``nullif(token, 'eyJ...')``."""
    return any(_is_plain(part) for argument in function.clauses for part in visitors.iterate(argument))


def _is_plain(part: Any) -> bool:
    """Return True for a parameter that is sent as it is."""
    return isinstance(part, elements.BindParameter) and isinstance(part.type, String | NullType)


def function_name(element: Any) -> str:
    """Return the name of a function in SQL, in lower case."""
    return str(getattr(element, "name", None) or type(element).__name__).lower()


def coerced_refusal(context: str) -> UnsupportedComparisonError:
    """Return the error for a value that is no envelope, compared with the bytes or the text of a column."""
    return UnsupportedComparisonError(
        f"{context}: type_coerce() compares the stored envelopes, none of which equals a token, and the statement was "
        "not sent; compare the column itself with ==, in_() or .claim()",
        context=context,
    )


def _refusal(column: Any, subject: str) -> UnsupportedComparisonError:
    return UnsupportedComparisonError(
        f"{name_of(column)}: {subject} cannot be answered from ciphertext, and the statement was not sent; compare the "
        "column itself with ==, in_() or .claim(), ask .is_not(None), or take its bytes by "
        "sqlalchemy.type_coerce(column, LargeBinary or Text)",
        context=column.type.context,
    )
