"""The day on which a token expires, worked out by the database, so that it counts rows per day and sends the counts."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler

_EPOCH: Final = date(1970, 1, 1).toordinal()
_SECONDS: Final = 86_400
_DIGITS: Final = 12


class ExpiryDay(FunctionElement[int]):
    """Days since 1970 of an expiry, from its 12 lower-case hex digits."""

    type: BigInteger = BigInteger()
    inherit_cache: bool = True
    name = "expiry_day"


@compiles(ExpiryDay)
def _compile_day(element: ExpiryDay, compiler: SQLCompiler, **kw: Any) -> str:
    # No function of SQLite makes a number of hex digits, so they are added up.
    digits = compiler.process(element.clauses, **kw)
    terms = (
        f"(instr('0123456789abcdef', substr({digits}, {place + 1}, 1)) - 1) * {16 ** (_DIGITS - 1 - place)}"
        for place in range(_DIGITS)
    )
    return f"(({' + '.join(terms)}) / {_SECONDS})"


@compiles(ExpiryDay, "postgresql")
def _compile_day_postgresql(element: ExpiryDay, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(('x' || {compiler.process(element.clauses, **kw)})::bit(48)::bigint / {_SECONDS})"


@compiles(ExpiryDay, "mysql", "mariadb")
def _compile_day_mysql(element: ExpiryDay, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(CAST(CONV({compiler.process(element.clauses, **kw)}, 16, 10) AS UNSIGNED) DIV {_SECONDS})"


def day_of(number: int) -> date:
    """Return the day of a number, at most the last one of :class:`datetime.date`."""
    return date.fromordinal(min(_EPOCH + number, date.max.toordinal()))
