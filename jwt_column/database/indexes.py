"""Indexes on envelope headers as the database has them, to compare with the declared ones."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import inspect, text

from ..column.header_sql import DEFINITION

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

    from ..column.header_sql import HeaderPart

__all__ = ["FoundIndex", "existing_indexes", "positions_of"]


class FoundIndex(NamedTuple):
    """An index of the database: its uniqueness and its definition as text."""

    unique: bool
    definition: str

    @property
    def positions(self) -> set[str]:
        """Return the positions and lengths that it reads, and the constants that it compares them with."""
        return _positions(self.definition)


# Each database spells the rest its own way: substr(token, 6, 1) = X'02', (substr(token, 6, 1) = '\\x02'::bytea)
_POSITION: Final = re.compile(
    r",\s*(\d+),\s*(\d+)\)(?:\s*AS\s*(?:BLOB|TEXT)\))?(?:\s*=\s*X?'(?:\\x)?(\w+)')?", re.IGNORECASE
)


def _positions(definition: str) -> set[str]:
    return {":".join(found) for found in _POSITION.findall(definition)}


def positions_of(part: HeaderPart, connection: Connection) -> set[str]:
    """Return the :attr:`FoundIndex.positions` of an index on this part of an envelope in this database."""
    indexed = part.indexed()
    return _positions(str(indexed.compile(dialect=connection.dialect, compile_kwargs={DEFINITION: True})))


def existing_indexes(connection: Connection, table: Table) -> dict[str, FoundIndex]:
    """Return the indexes of a table in the database by name, those on expressions included."""
    if connection.dialect.name == "sqlite":
        master = f"{connection.dialect.identifier_preparer.quote(table.schema or 'main')}.sqlite_master"
        rows = connection.execute(
            text(f"SELECT name, sql FROM {master} WHERE type = 'index' AND tbl_name = :name"),  # noqa: S608
            {"name": table.name},
        ).all()
        return {
            name: FoundIndex("UNIQUE" in (sql or "").split("ON")[0].upper(), sql or "") for name, sql in rows
        }
    inspector = inspect(connection)
    generated = {
        found["name"]: str(found["computed"]["sqltext"])
        for found in inspector.get_columns(table.name, schema=table.schema)
        if "computed" in found
    }
    indexes = {}
    for found in inspector.get_indexes(table.name, schema=table.schema):
        expressions = [
            *found.get("expressions", ()),
            *(generated.get(name or "", "") for name in found["column_names"]),
            str(found.get("dialect_options", {}).get("postgresql_where", "")),
        ]
        indexes[str(found["name"])] = FoundIndex(bool(found["unique"]), " ".join(expressions))
    return indexes
