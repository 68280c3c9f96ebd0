"""The condition in SQL of a value with the beginning of a token."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Boolean, case, collate, literal_column, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from ..format.readable import MARKS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import ColumnElement
    from sqlalchemy.sql.compiler import SQLCompiler

    from .tables import Form

# By their first two characters, which rule out most values: ten searches in place of one for each mark.
_GROUPS: Final = {start: list(marks) for start, marks in groupby(sorted(MARKS), lambda mark: mark[:2])}
_FOUND: Final[ColumnElement[int]] = literal_column("1")


def may_hold_token(value: ColumnElement[Any], form: Form, dialect: str) -> ColumnElement[bool]:
    """Return a condition that holds for every value with the beginning of a token, and for few others."""
    if dialect == "postgresql":
        # By bytes: faster, and some collations know no substrings.
        return _InBytes(value) if form == "bytes" else _InText(collate(value, "C"))
    if dialect in ("sqlite", "mysql", "mariadb"):
        return _InBytes(value)
    return true() if form == "bytes" else _InText(value)  # Of bytes, another database sends every value.


def any_of(conditions: Iterable[ColumnElement[bool]]) -> ColumnElement[bool]:
    """Return a condition that holds if one of these does.

    Not by OR: over many columns SQLite would refuse the depth of the expression.
    """
    return case(*((condition, _FOUND) for condition in conditions), else_=literal_column("0")) == _FOUND


class _InText(FunctionElement[bool]):
    """Whether a text contains a mark. Compiled by hand: SQLAlchemy would take seconds for hundreds of columns."""

    type = Boolean()
    inherit_cache = True
    name = "may_hold_token"


class _InBytes(_InText):
    """The same for the databases that search bytes."""

    inherit_cache = True


@compiles(_InText)
def _compile(element: _InText, compiler: SQLCompiler, **kw: Any) -> str:
    (argument,) = element.clauses
    value = compiler.process(argument, **kw)

    def has(mark: str) -> str:
        # Literals, because some databases take few parameters.
        if not isinstance(element, _InBytes):
            pattern: ColumnElement[str] = literal_column(f"'%{mark}%'")
            return f"{value} LIKE {compiler.process(pattern)}"
        match compiler.dialect.name:
            case "sqlite":
                return f"instr({value}, X'{mark.encode().hex()}') > 0"
            case "postgresql":
                return f"position(E'\\\\x{mark.encode().hex()}'::bytea IN {value}) > 0"
            case _:
                return f"locate('{mark}', {value}) > 0"

    def has_one(start: str, marks: list[str]) -> str:
        one = " OR ".join(has(mark) for mark in marks)
        return one if len(marks) == 1 else f"{has(start)} AND ({one})"

    return f"({' OR '.join(f'({has_one(start, marks)})' for start, marks in _GROUPS.items())})"
