"""Findings about the values of the key: dates and times that Python does not have, or has by another value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Date, DateTime, Interval, Time, extract, literal_column, or_, select
from sqlalchemy.dialects.postgresql import INTERVAL

from .kinds import finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement, Connection

    from jwt_column.auditing import Finding

    from ..table import RunTable

__all__ = ["key_findings"]

# From the year 1 to 9999; and within a day. Infinity is beyond, and so is 24:00 of PostgreSQL.
_FIRST_DAY: Final = "'0001-01-01'"
_LAST_DAY: Final = "'10000-01-01'"


def key_findings(connection: Connection, name: str, table: RunTable) -> Iterator[Finding]:
    """Yield the finding about a key with values that drivers cannot read, or read as others."""
    for key in table.keys:
        outside = _outside(key, table.dialect)
        if outside is None:
            continue
        if (
            connection.execute(select(1).select_from(table.clause).where(outside).limit(1)).first()
            is not None
        ):
            yield finding(
                "key",
                name,
                f"{table.name} cannot be paged by {key.name}: it has values that Python has no date, time or "
                "timedelta for, such as infinity, a year before 1, 24:00, or months",
                "name a unique key of other types with key_columns= (--key-columns), after adding one if there is none",
            )


def _outside(key: ColumnElement[Any], dialect: str) -> ColumnElement[bool] | None:
    if dialect == "postgresql" and isinstance(key.type, DateTime | Date):
        return or_(key < literal_column(_FIRST_DAY), key >= literal_column(_LAST_DAY))
    if dialect == "postgresql" and isinstance(key.type, Interval | INTERVAL):
        # They would come back as days.
        return or_(extract("year", key) != 0, extract("month", key) != 0)
    if isinstance(key.type, Time) and not key.type.timezone and dialect in ("postgresql", "mysql"):
        return or_(key < literal_column("'00:00:00'"), key >= literal_column("'24:00:00'"))
    return None
