"""Indexes on envelope headers as the database has them, to compare with the declared ones."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import inspect, text

from ..column.header_sql import DEFINITION, HeaderPart, generated_columns, indexed_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Index, Table


class Positions(NamedTuple):
    """Parts of envelopes that an index reads, as ``"13:16"`` for position and length, in its order.

    The rows are those that it compares with a constant, and the constant, as ``"1:1:01"``.
    """

    parts: tuple[str, ...]
    rows: frozenset[str]


class FoundIndex(NamedTuple):
    """An index of the database: its uniqueness, its definition as text, and its columns; None is an expression."""

    unique: bool
    definition: str
    columns: tuple[str | None, ...]

    @property
    def positions(self) -> Positions | None:
        """Return what it reads of envelopes; None if that is nothing."""
        found = _positions(self.definition)
        return found if found.parts else None


# Each database spells the rest its own way: substr(token, 6, 1) = X'02', (substr(token, 6, 1) = '\\x02'::bytea)
_POSITION: Final = re.compile(
    r",\s*(\d+),\s*(\d+)\)(?:\s*AS\s*(?:BLOB|TEXT)\))?(?:\s*=\s*[EX]?'(?:\\{1,2}x)?(\w+)')?", re.IGNORECASE
)


def _positions(definition: str) -> Positions:
    found = _POSITION.findall(definition)
    parts = dict.fromkeys(f"{start}:{length}" for start, length, constant in found if not constant)
    return Positions(tuple(parts), frozenset(":".join(one) for one in found if one[2]))


def positions_of(parts: Sequence[HeaderPart], connection: Connection) -> Positions:
    """Return the :attr:`FoundIndex.positions` of an index on these parts of an envelope in this database."""
    compiled = [
        str(part.indexed().compile(dialect=connection.dialect, compile_kwargs={DEFINITION: True}))
        for part in parts
    ]
    return _positions(" ".join(compiled))


def is_as_declared(found: FoundIndex, index: Index, connection: Connection) -> bool:
    """Return True if an index of the database is the one that is declared: on the same parts, and as unique."""
    expressions: Sequence[Any] = index.expressions
    columns = tuple(None if isinstance(one, HeaderPart) else one.name for one in expressions)
    declared = bool(index.unique), columns, positions_of(indexed_parts(index), connection)
    return (found.unique, found.columns, found.positions) == declared


def existing_indexes(connection: Connection, table: Table) -> dict[str, FoundIndex]:
    """Return the indexes of a table in the database by name, those on expressions included."""
    if connection.dialect.name == "sqlite":
        master = f"{connection.dialect.identifier_preparer.quote(table.schema or 'main')}.sqlite_master"
        rows = connection.execute(
            text(
                f"SELECT m.name, m.sql, c.name FROM {master} AS m "  # noqa: S608
                "JOIN pragma_index_xinfo(m.name, :schema) AS c ON c.key "
                "WHERE m.type = 'index' AND m.tbl_name = :name ORDER BY m.name, c.seqno"
            ),
            {"name": table.name, "schema": table.schema or "main"},
        ).all()
        return {
            name: FoundIndex(
                "UNIQUE" in (sql or "").split("ON")[0].upper(),
                sql or "",
                tuple(column for *_, column in group),
            )
            for (name, sql), group in groupby(rows, key=lambda row: (row[0], row[1]))
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
        ours = generated_columns(str(found["name"]))
        columns = tuple(None if name in ours else name for name in found["column_names"])
        indexes[str(found["name"])] = FoundIndex(bool(found["unique"]), " ".join(expressions), columns)
    return indexes
