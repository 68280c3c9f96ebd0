"""Refuse a column that cannot hold the new values, before the first row is rewritten.

A database that is given too much may cut it off: outside strict mode, and MariaDB in a multi-table UPDATE always. The
rest of an envelope opens nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from jwt_column.database.column_size import capacity_of, storage_of
from jwt_column.errors import JWTColumnError, KeyUnavailableError, ReencryptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from jwt_column.column.types import EncryptedJWT

    from .conversions import Conversion
    from .table import RunTable

__all__ = ["find_capacity"]

# A token that does not fit into this many bytes is rare, and to look for one takes a scan of the table.
_AMPLE: Final = 2**16 - 1
# Values whose new length is worked out beforehand. The longest is nearly always among the first.
_PROBES: Final = 20


def find_capacity(
    connection: Connection,
    table: RunTable,
    type_: EncryptedJWT,
    make_conversion: Callable[..., Conversion],
) -> int | None:
    """Return the bytes that a value of the column may have; None for no limit.

    Raises:
        ReencryptionError: The column is of the other storage form, or too short for the new form of its longest values.
    """
    name = f"{table.name}.{table.value.name}"
    storage = storage_of(table.type_in_database, table.dialect)
    if storage is not None and storage != type_.storage:
        holds = "text" if storage == "text" else "bytes"
        raise ReencryptionError(
            f"{name} is a column of {holds}, which goes with storage={storage!r} and not with {type_.storage!r}; "
            "nothing was done",
            context=type_.context,
        )
    capacity = capacity_of(table.type_in_database, table.dialect)
    if capacity is None or capacity >= _AMPLE:
        return capacity
    needed = _longest(connection, table, make_conversion(type_, table.value))
    if needed > capacity:
        unit, better = ("characters", "TEXT") if type_.storage == "text" else ("bytes", "BLOB")
        raise ReencryptionError(
            f"{name} holds {capacity} {unit}, and the longest new value needs {needed}; change the column to {better} "
            "first. Nothing was done",
            context=type_.context,
        )
    return capacity


def _longest(connection: Connection, table: RunTable, conversion: Conversion) -> int:
    """Return the length of the new form of the longest values; 0 where there is nothing to do."""
    statement = (
        select(*table.bound, table.value)
        .where(conversion.rows.pending)
        .order_by(func.length(table.value).desc())
        .limit(_PROBES)
    )
    longest = 0
    for *bound, stored in connection.execute(statement):
        try:
            longest = max(longest, len(conversion.convert(stored, *bound)))
        except KeyUnavailableError:
            raise
        except JWTColumnError:
            # The run lists it.
            continue
    return longest
