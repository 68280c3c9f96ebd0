"""A look at PostgreSQL's own type of a column, before the first envelope is written into it.

PostgreSQL writes bytes into a text column as hex digits, and some drivers let text pass into a column of bytes. Nothing
opens such a row, so the mismatch of ``storage=`` and the column is named before there is one. SQLite stores either form
as it is, and MySQL and MariaDB refuse bytes that are no text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import text

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from .types import EncryptedJWT

__all__ = ["storage_refusal"]

_TYPE: Final = text(
    "SELECT t.typname FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid "
    "WHERE a.attrelid = pg_catalog.to_regclass(:table) AND a.attname = :name"
)
# Types into which each storage form does not fit. Any other type is left to the database, which refuses or converts.
_MISFITS: Final = {
    "binary": frozenset({"text", "varchar", "bpchar"}),
    "text": frozenset({"bytea"}),
}

_Place = tuple[str | None, str, str, str]
#: The columns that were looked at, of each engine.
_seen: WeakKeyDictionary[Engine, set[_Place]] = WeakKeyDictionary()


def storage_refusal(
    connection: Connection, table: Any, name: str, type_: EncryptedJWT
) -> ConfigurationError | None:
    """Return the error for a column whose type in the database does not hold envelopes of this storage form.

    One query for each column and engine.
    """
    dialect = connection.dialect
    if dialect.name != "postgresql":
        return None
    translated: Any = connection.get_execution_options().get("schema_translate_map") or {}
    schema = translated.get(table.schema, table.schema)
    place = (schema, table.name, name, type_.storage)
    seen = _seen.setdefault(connection.engine, set())
    if place in seen:
        return None
    quote = dialect.identifier_preparer.quote
    quoted = ".".join(quote(part) for part in (schema, table.name) if part)
    found = connection.scalar(_TYPE, {"table": quoted, "name": name})
    if found not in _MISFITS[type_.storage]:
        # A table that is not there yet is looked at again.
        if found is not None:
            seen.add(place)
        return None
    other = "text" if type_.storage == "binary" else "binary"
    return ConfigurationError(
        f"{table.fullname}.{name} is declared with storage={type_.storage!r}, and the database has a column of type "
        f"{found}, from which no envelope would open; declare storage={other!r}, or change the type of the column",
        context=type_.context,
    )
