"""Uses of ciphertext that SQLAlchemy builds and a database answers, and whose answer means nothing.

Equal tokens have different ciphertext, so ``DISTINCT``, ``GROUP BY`` and ``max()`` of the column work on values of
which each is different. A statement may still be right, for instance because it names the primary key too, so it is
sent, with a :class:`CiphertextWarning`, once for each compiled statement.
"""

from __future__ import annotations

import sys
import warnings
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import Over, UnaryExpression
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import CompoundSelect, Select

from ..errors import CiphertextWarning
from ..format.token import JWT
from .comparator import name_of
from .header_sql import is_header_sql
from .predicates import ciphertext_in, columns_named, function_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

_ROWS: Final = (dict, list, tuple)

#: Functions whose answer about ciphertext means something, or that return it as it is.
_SENSIBLE: Final = frozenset(
    (
        "count", "coalesce", "ifnull", "length", "octet_length", "char_length", "pg_column_size",
        "first_value", "last_value", "nth_value", "lag", "lead", "any_value", "grouping",
        "row_number", "rank", "dense_rank", "row", "json_object", "json_build_object", "jsonb_build_object",
    )
)  # fmt: skip


def misuses_of(element: Any) -> Iterator[str]:
    """Yield what is wrong with one element of a statement. Elements within it are looked at alone."""
    if isinstance(element, Select):
        if element._distinct:  # noqa: SLF001 - no public name tells it
            yield from _of_equal_rows("DISTINCT", element._distinct_on or element.selected_columns)  # noqa: SLF001
        groups = element._group_by_clauses  # noqa: SLF001
        yield from _of_equal_rows("GROUP BY", [*groups, *columns_named(element, groups)])
    elif isinstance(element, CompoundSelect):
        if not str(element.keyword.value).endswith("ALL"):
            yield from _of_equal_rows(str(element.keyword.value), element.selected_columns)
    elif isinstance(element, Over):
        yield from _of_equal_rows("PARTITION BY", [element.partition_by])
    elif isinstance(element, UnaryExpression) and element.operator is operators.distinct_op:
        yield from _of_equal_rows("DISTINCT", [element.element])
    elif isinstance(element, FunctionElement) and not is_header_sql(element):
        column = ciphertext_in(*element.clauses)
        name = function_name(element)
        if column is not None and name not in _SENSIBLE:
            yield f"{name_of(column)}: {name}() works on ciphertext, and says nothing about tokens"


def _of_equal_rows(words: str, expressions: Iterable[Any]) -> Iterator[str]:
    """Yield the fault of comparing rows by ciphertext, unless the rows' primary key is compared too."""
    found = list(expressions)
    column = ciphertext_in(*found)
    if column is None:
        return
    names = {getattr(one, "name", None) for one in found}
    keys = getattr(getattr(column, "table", None), "primary_key", None) or ()
    if not keys or any(key.name not in names for key in keys):
        yield (
            f"{name_of(column)}: {words} of ciphertext takes all rows for different, because equal tokens have "
            "different ciphertext; leave the column out"
        )


def tokens_sent_by(parameters: Any) -> Iterator[str]:
    """Yield the fault of a statement in plain SQL with a token among its parameters."""
    rows = parameters if isinstance(parameters, list | tuple) else (parameters,)
    values = (row.values() if isinstance(row, dict) else row for row in rows if isinstance(row, _ROWS))
    # By their types, of which even a statement of many rows has few.
    kinds = {*map(type, rows), *map(type, chain.from_iterable(values))}
    if any(issubclass(kind, JWT) for kind in kinds):
        yield (
            "a statement in plain SQL has a JWT among its parameters, which goes to the database in the clear; "
            "use text(...).bindparams(bindparam(name, type_=Model.token.type)), or a statement on the column"
        )


def warn_of(misuses: Iterable[str]) -> None:
    """Warn, at the line of the application that executes the statement."""
    # The ORM has most elements twice: as they were written, and resolved.
    for misuse in dict.fromkeys(misuses):
        frame = _calling_frame()
        if frame is None:
            warnings.warn(misuse, CiphertextWarning, stacklevel=2)
        else:
            warnings.warn_explicit(
                misuse,
                CiphertextWarning,
                frame.f_code.co_filename,
                frame.f_lineno,
                registry=frame.f_globals.setdefault("__warningregistry__", {}),
            )


def _calling_frame() -> FrameType | None:
    """Return the innermost frame outside of SQLAlchemy and this package."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as the module warnings does
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ("sqlalchemy", "jwt_column"):
            return frame
        frame = frame.f_back
    return None
