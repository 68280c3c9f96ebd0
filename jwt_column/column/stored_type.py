"""A look at PostgreSQL's own type of a column, before the first envelope is written into it.

PostgreSQL writes bytes into a text column as hex digits, and some drivers let text pass into a column of bytes. Nothing
opens such a row, so the mismatch of ``storage=`` and the column is named before there is one. SQLite stores either form
as it is, and MySQL and MariaDB refuse bytes that are no text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Table, event, text

from ..errors import ConfigurationError
from .types import EncryptedJWT

if TYPE_CHECKING:
    from sqlalchemy import Engine

_TYPE: Final = text(
    "SELECT t.typname FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid "
    "WHERE a.attrelid = pg_catalog.to_regclass(:table) AND a.attname = :name"
)
# Types into which each storage form does not fit. Any other type is left to the database, which refuses or converts.
_JSON: Final = frozenset({"json", "jsonb"})
_MISFITS: Final = {
    "binary": frozenset({"text", "varchar", "bpchar"}) | _JSON,
    "text": frozenset({"bytea"}) | _JSON,
}

_Place = tuple[str | None, str, str, str]
#: The columns that were looked at, of each engine, and those of the tables that it created itself.
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
    schema = translated_schema(connection, table.schema)
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
    cure = f"declare storage={other!r}, or change the type of the column"
    if found in _JSON:
        cure = "add a column of bytes or text, and move the values there through a model that has both"
    return ConfigurationError(
        f"{table.fullname}.{name} is declared with storage={type_.storage!r}, and the database has a column of type "
        f"{found}, from which no envelope would open; {cure}",
        context=type_.context,
    )


def translated_schema(connection: Connection, schema: str | None) -> str | None:
    """Return a schema as the ``schema_translate_map`` of a connection has it."""
    translations: Any = connection.get_execution_options().get("schema_translate_map") or {}
    translated: str | None = translations.get(schema, schema)
    return translated


@event.listens_for(Table, "after_create")
def _take_note(table: Table, connection: Any, **_: Any) -> None:
    """Note the columns of a table that is created as it is declared.

    No query follows: applications' tests create their tables, and count the statements of what they test.
    """
    # A migration that is written out as SQL has no connection, or an imitation.
    if isinstance(connection, Connection) and connection.dialect.name == "postgresql":
        schema = translated_schema(connection, table.schema)
        _seen.setdefault(connection.engine, set()).update(
            (schema, table.name, column.name, column.type.storage)
            for column in table.c
            if isinstance(column.type, EncryptedJWT)
        )


@event.listens_for(Table, "after_drop")
def _forget(table: Table, connection: Any, **_: Any) -> None:
    """Forget the columns of a table that is dropped: the next one of its name may have others."""
    if isinstance(connection, Connection):
        place = (translated_schema(connection, table.schema), table.name)
        seen = _seen.get(connection.engine, set())
        seen.difference_update([one for one in seen if one[:2] == place])
