"""The type of a column in the database: its storage form, and the length of its values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BINARY, CHAR, String
from sqlalchemy.dialects.postgresql import DOMAIN

from ..column.row_binding import python_type_of

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

    from ..format.envelope import Storage

# Bytes that a type of MySQL and MariaDB holds although its declaration has no length.
_MYSQL_CAPACITY: Final = {
    "TINYTEXT": 2**8 - 1,
    "TINYBLOB": 2**8 - 1,
    "TEXT": 2**16 - 1,
    "BLOB": 2**16 - 1,
    "MEDIUMTEXT": 2**24 - 1,
    "MEDIUMBLOB": 2**24 - 1,
}


def without_domain(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type that a domain of PostgreSQL, or a domain over domains, is made of."""
    while isinstance(type_, DOMAIN):
        type_ = type_.data_type
    return type_


def storage_of(type_: TypeEngine[Any], dialect: str) -> Storage | None:
    """Return the storage form that goes with a column's type in the database; None where both or neither do."""
    # An SQLite column takes text and bytes.
    if dialect not in ("postgresql", "mysql", "mariadb"):
        return None
    type_ = without_domain(type_)
    if isinstance(type_, String):
        return "text"
    return "binary" if python_type_of(type_) is bytes else None


def is_padded(type_: TypeEngine[Any], dialect: str) -> bool:
    """Return True for a column whose shorter values come back filled up to its length, so that no envelope opens."""
    # MySQL takes the blanks of its CHAR off again.
    padded = {"postgresql": CHAR, "mysql": BINARY, "mariadb": BINARY}.get(dialect, ())
    return isinstance(without_domain(type_), padded)


def capacity_of(type_: TypeEngine[Any], dialect: str) -> int | None:
    """Return how many bytes or characters a value of a column's type may have; None for no limit."""
    if dialect not in ("postgresql", "mysql", "mariadb"):
        return None
    type_ = without_domain(type_)
    length: int | None = getattr(type_, "length", None)
    if length is None and dialect in ("mysql", "mariadb"):
        return _MYSQL_CAPACITY.get(type_.__visit_name__)
    return length
