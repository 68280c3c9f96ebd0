"""Findings about the table: its kind, its parts, and what stands beside it in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import inspect, text

from jwt_column.database.catalogue import IS_NAMED, named
from jwt_column.database.row_history import keeps_history
from jwt_column.database.row_security import hidden_rows
from jwt_column.wording import counted

from ..reflection import FAMILY
from .kinds import Fact

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, TableClause

    from ..table import RunTable


# Kinds of PostgreSQL's pg_class.relkind that a row can be locked in and written to.
_TABLES: Final = frozenset("rp")
_KINDS: Final = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}

_PARTS: Final = text(
    f"{FAMILY} SELECT CAST(c.relkind AS TEXT), c.relname, c.relispartition FROM family f "  # noqa: S608
    "JOIN pg_catalog.pg_class c ON c.oid = f.oid ORDER BY c.relname"
)
# Each with the message, the cure, and the query of the names that stand in the message.
_NAMED: Final = {
    "rule": (
        "rules rewrite an UPDATE of {shown} ({names})",
        "drop or disable them for the run: ALTER TABLE ... DISABLE RULE",
        text(
            f"{FAMILY} SELECT r.rulename FROM family f JOIN pg_catalog.pg_rewrite r ON r.ev_class = f.oid "  # noqa: S608
            "WHERE r.ev_type = '2' AND r.ev_enabled <> 'D' ORDER BY 1"
        ),
    ),
    "index-invalid": (
        "indexes of {shown} are invalid, as a failed CREATE INDEX CONCURRENTLY leaves them ({names}): they cost time "
        "and serve nothing",
        "drop them, and create them again",
        text(
            f"{FAMILY} SELECT c.relname FROM family f JOIN pg_catalog.pg_index i ON i.indrelid = f.oid "  # noqa: S608
            "JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid WHERE NOT i.indisvalid AND c.relkind = 'i' ORDER BY 1"
        ),
    ),
}
# A table without the columns that tell its rows apart on the other side takes no UPDATE.
_IDENTITIES: Final = text(
    f"{FAMILY} SELECT CAST(c.relreplident AS TEXT), EXISTS (SELECT 1 FROM pg_catalog.pg_index i "  # noqa: S608
    "WHERE i.indrelid = c.oid AND i.indisvalid AND (CASE c.relreplident WHEN 'd' THEN i.indisprimary "
    "WHEN 'i' THEN i.indisreplident ELSE false END)) FROM family f JOIN pg_catalog.pg_class c ON c.oid = f.oid "
    "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_publication_tables pt "
    "ON pt.schemaname = n.nspname AND pt.tablename = c.relname "
    "JOIN pg_catalog.pg_publication p ON p.pubname = pt.pubname WHERE p.pubupdate AND c.relkind = 'r'"
)


def kind_facts(connection: Connection, shown: str, clause: TableClause) -> Iterator[Fact]:
    """Yield the fact that a relation has its rows elsewhere, all or some."""
    kind = _kind(connection, clause)
    if kind is not None:
        yield Fact("relation", f"{shown} is {kind}", "run on the table that holds the rows")
    elif connection.dialect.name == "postgresql":
        foreign = [part for relkind, part, _ in _parts(connection, clause) if relkind == "f"]
        if foreign:
            yield Fact(
                "foreign-part",
                f"{shown} is a table with parts that are foreign tables ({', '.join(foreign)}), where rows can be "
                "neither locked nor told apart",
                "run on the servers that hold them, and on the local parts by their own names",
            )


def _kind(connection: Connection, clause: TableClause) -> str | None:
    """Return the kind of a relation that is no table, in words; None for a table."""
    if connection.dialect.name == "postgresql":
        statement = text(f"SELECT CAST(relkind AS TEXT) FROM pg_catalog.pg_class t WHERE {IS_NAMED}")  # noqa: S608
        relkind = connection.execute(statement, named(clause)).scalar()
        return None if relkind is None or relkind in _TABLES else _KINDS.get(relkind, "no table")
    views = inspect(connection).get_view_names(schema=clause.schema)
    return "a view" if clause.name in views else None


def _parts(connection: Connection, clause: TableClause) -> list[tuple[str, str, bool]]:
    """Return the partitions of a table, or the tables that inherit from it: kind, name, whether it is a partition."""
    found = connection.execute(_PARTS, named(clause)).all()
    return [(relkind, part, is_partition) for relkind, part, is_partition in found if part != clause.name]


def hidden_facts(connection: Connection, clause: TableClause) -> Iterator[Fact]:
    """Yield the fact that row-level security may hide rows from this role."""
    hidden = hidden_rows(connection, clause)
    if hidden is not None:
        reason, _, cure = hidden.rpartition("; ")
        yield Fact("rows-hidden", reason, cure)


def relation_facts(connection: Connection, table: RunTable) -> Iterator[Fact]:
    """Yield the facts about a table that was found."""
    shown, clause = table.name, table.clause
    if table.triggers:
        yield Fact(
            "triggers",
            f"an UPDATE of {shown} fires triggers ({', '.join(table.triggers)}), each time for each row",
            "see that they let a rewritten token pass: a row that one refuses or changes back is listed, and left",
        )
    if table.is_generated:
        yield Fact(
            "column-generated",
            f"{shown}.{table.value.name} is generated by the database from other columns, and takes no other value",
            "encrypt the column that it is made of",
        )
    if keeps_history(connection, clause):
        yield Fact(
            "history-kept",
            f"{shown} is system-versioned: its history keeps the old values under their keys",
            "delete the history (DELETE HISTORY FROM) before a key leaves the ring or plaintext counts as gone",
        )
    if table.dialect == "postgresql":
        yield from _postgresql_facts(connection, shown, clause)
    elif table.engine not in (None, "InnoDB"):
        yield Fact(
            "engine",
            f"{shown} has the engine {table.engine}, which locks no rows and undoes no batch",
            "change it to InnoDB: ALTER TABLE ... ENGINE = InnoDB",
        )


def _postgresql_facts(connection: Connection, shown: str, clause: TableClause) -> Iterator[Fact]:
    parts = _parts(connection, clause)
    if parts:
        are = "is partitioned into" if parts[0][2] else "is inherited by"
        yield Fact(
            "parts",
            f"{shown} {are} {counted(len(parts), 'table')}, whose rows are re-encrypted with it",
            "name a part by itself to re-encrypt that alone",
        )
    for code, (message, cure, query) in _NAMED.items():
        if names := ", ".join(connection.execute(query, named(clause)).scalars()):
            yield Fact(code, message.format(shown=shown, names=names), cure)
    identities = connection.execute(_IDENTITIES, named(clause)).all()
    if any(identity == "n" or (identity in "di" and not has_index) for identity, has_index in identities):
        yield Fact(
            "replica-identity",
            f"{shown} is published for logical replication and has no replica identity, so PostgreSQL takes no UPDATE",
            "give it a primary key, or ALTER TABLE ... REPLICA IDENTITY USING INDEX or FULL",
        )
    if any(identity == "f" for identity, _ in identities):
        yield Fact(
            "replica-identity-full",
            f"{shown} has REPLICA IDENTITY FULL: the log holds the old value beside the new one, and subscribers look "
            "up each row by all its columns",
            "give it a primary key and REPLICA IDENTITY DEFAULT",
        )
