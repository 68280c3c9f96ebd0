"""What a column can hold, looked at before the first row is rewritten.

A database that is given too much may cut it off: outside strict mode, and MariaDB in a multi-table UPDATE always. What
is left of an envelope then opens nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import String, func, select

from ..errors import JWTColumnError, KeyUnavailableError, ReencryptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from migrations_helpers.engine.conversions import Conversion
    from migrations_helpers.engine.table import Target

    from ..column.types import EncryptedJWT

__all__ = ["find_room"]

# Bytes that a type of MySQL and MariaDB holds without saying so in its declaration.
_MYSQL_ROOM: Final = {
    "TINYTEXT": 2**8 - 1,
    "TINYBLOB": 2**8 - 1,
    "TEXT": 2**16 - 1,
    "BLOB": 2**16 - 1,
    "MEDIUMTEXT": 2**24 - 1,
    "MEDIUMBLOB": 2**24 - 1,
}
# In a column of this many bytes it takes a very long token to find none, and a scan of the table to look for one.
_AMPLE: Final = 2**16 - 1
# Values whose new length is worked out beforehand. The longest is nearly always among the first.
_PROBES: Final = 20


def find_room(
    connection: Connection,
    target: Target,
    type_: EncryptedJWT,
    make_conversion: Callable[..., Conversion],
) -> int | None:
    """Refuse a column that cannot hold what is to be written, before the first row is.

    Returns:
        The bytes that a value of the column may have; None for no limit.

    Raises:
        ReencryptionError: It is of the other storage form, or too short for what its longest values become.
    """
    in_database = target.type_in_database
    # An SQLite column holds both forms, and of any length.
    if target.dialect not in ("postgresql", "mysql"):
        return None
    where = f"{target.name}.{target.value.name}"
    is_text = isinstance(in_database, String)
    if is_text != (type_.storage == "text") and (is_text or in_database.python_type is bytes):
        holds, storage = ("text", "text") if is_text else ("bytes", "binary")
        raise ReencryptionError(
            f"{where} is a column of {holds}, which goes with storage={storage!r} and not with {type_.storage!r}; "
            "nothing was done",
            context=type_.context,
        )
    room: int | None = getattr(in_database, "length", None)
    if room is None and target.dialect == "mysql":
        room = _MYSQL_ROOM.get(in_database.__visit_name__)
    if room is None or room >= _AMPLE:
        return room
    needed = _longest(connection, target, make_conversion(type_))
    if needed > room:
        unit, better = ("characters", "TEXT") if is_text else ("bytes", "BLOB")
        raise ReencryptionError(
            f"{where} holds {room} {unit}, and what is to be written needs {needed}; change the column to {better} "
            "first. Nothing was done",
            context=type_.context,
        )
    return room


def _longest(connection: Connection, target: Target, conversion: Conversion) -> int:
    """Return the length of what the longest values become; 0 where there is nothing to do."""
    statement = (
        select(*target.bound, target.value)
        .where(target.pending(conversion))
        .order_by(func.length(target.value).desc())
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
