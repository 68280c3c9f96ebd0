"""Findings about the table: its kind, its parts, and what stands beside it in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import inspect, text

from jwt_column.database.catalogue import IS_NAMED
from jwt_column.database.row_history import keeps_history
from jwt_column.database.row_security import hidden_rows
from jwt_column.wording import counted

from .kinds import finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, TableClause

    from jwt_column.auditing import Finding

__all__ = ["kind_finding", "relation_findings", "rows_hidden_finding"]

# Kinds of PostgreSQL's pg_class.relkind that a row can be locked in and written to.
_TABLES: Final = frozenset("rp")
_KINDS: Final = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}

# A table and all that hang on it, partitions and tables that inherit from it.
_FAMILY: Final = f"""
WITH RECURSIVE family(oid) AS (
    SELECT t.oid FROM pg_catalog.pg_class t WHERE {IS_NAMED}
    UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN family f ON f.oid = i.inhparent
)
"""  # noqa: S608
_PARTS: Final = text(
    f"{_FAMILY} SELECT CAST(c.relkind AS TEXT), c.relname, c.relispartition FROM family f "  # noqa: S608
    "JOIN pg_catalog.pg_class c ON c.oid = f.oid ORDER BY c.relname"
)
_RULES: Final = text(
    f"{_FAMILY} SELECT r.rulename FROM family f JOIN pg_catalog.pg_rewrite r ON r.ev_class = f.oid "  # noqa: S608
    "WHERE r.ev_type = '2' AND r.ev_enabled <> 'D' ORDER BY 1"
)
_INVALID: Final = text(
    f"{_FAMILY} SELECT c.relname FROM family f JOIN pg_catalog.pg_index i ON i.indrelid = f.oid "  # noqa: S608
    "JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid WHERE NOT i.indisvalid AND c.relkind = 'i' ORDER BY 1"
)
# A table without the columns that tell its rows apart on the other side takes no UPDATE.
_IDENTITIES: Final = text(
    f"{_FAMILY} SELECT CAST(c.relreplident AS TEXT), EXISTS (SELECT 1 FROM pg_catalog.pg_index i "  # noqa: S608
    "WHERE i.indrelid = c.oid AND i.indisvalid AND (CASE c.relreplident WHEN 'd' THEN i.indisprimary "
    "WHEN 'i' THEN i.indisreplident ELSE false END)) FROM family f JOIN pg_catalog.pg_class c ON c.oid = f.oid "
    "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_publication_tables pt "
    "ON pt.schemaname = n.nspname AND pt.tablename = c.relname "
    "JOIN pg_catalog.pg_publication p ON p.pubname = pt.pubname WHERE p.pubupdate AND c.relkind = 'r'"
)


def kind_finding(connection: Connection, name: str, shown: str, clause: TableClause) -> Finding | None:
    """Return the finding about a relation whose rows are elsewhere, all or some; None for a table."""
    kind = _kind(connection, clause)
    if kind is not None:
        return finding("relation", name, f"{shown} is {kind}", "run on the table that holds the rows")
    if connection.dialect.name != "postgresql":
        return None
    foreign = [part for relkind, part, _ in _parts(connection, _name_of(clause)) if relkind == "f"]
    if not foreign:
        return None
    return finding(
        "foreign-part",
        name,
        f"{shown} is a table with parts that are foreign tables ({', '.join(foreign)}), where rows can be neither "
        "locked nor told apart",
        "run on the servers that hold them, and on the local parts by their own names",
    )


def _parts(connection: Connection, named: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Return the partitions of a table, or the tables that inherit from it: kind, name, whether it is a partition."""
    found = connection.execute(_PARTS, named).all()
    return [(relkind, part, is_partition) for relkind, part, is_partition in found if part != named["name"]]


def _kind(connection: Connection, clause: TableClause) -> str | None:
    """Return the kind of a relation that is no table, in words; None for a table."""
    if connection.dialect.name == "postgresql":
        statement = text(f"SELECT CAST(relkind AS TEXT) FROM pg_catalog.pg_class t WHERE {IS_NAMED}")  # noqa: S608
        relkind = connection.execute(statement, _name_of(clause)).scalar()
        return None if relkind is None or relkind in _TABLES else _KINDS.get(relkind, "no table")
    views = inspect(connection).get_view_names(schema=clause.schema)
    return "a view" if clause.name in views else None


def rows_hidden_finding(connection: Connection, name: str, clause: TableClause) -> Finding | None:
    """Return the finding about rows that row-level security may hide; None if the role sees every row."""
    hidden = hidden_rows(connection, clause)
    if hidden is None:
        return None
    reason, _, cure = hidden.rpartition("; ")
    return finding("rows-hidden", name, reason, cure)


def relation_findings(
    connection: Connection, name: str, shown: str, clause: TableClause, triggers: tuple[str, ...]
) -> Iterator[Finding]:
    """Yield the findings about a table that was found."""
    if triggers:
        yield finding(
            "triggers",
            name,
            f"an UPDATE of {shown} fires triggers ({', '.join(triggers)}), each time for each row",
            "see that they let a rewritten token pass: a row that one refuses or changes back is listed, and left",
        )
    if keeps_history(connection, clause):
        yield finding(
            "history-kept",
            name,
            f"{shown} is system-versioned: its history keeps the old values under their keys",
            "delete the history (DELETE HISTORY FROM) before a key leaves the ring or plaintext counts as gone",
        )
    if connection.dialect.name == "postgresql":
        yield from _postgresql_findings(connection, name, shown, _name_of(clause))
    elif connection.dialect.name in ("mysql", "mariadb"):
        yield from _engine_findings(connection, name, shown, clause)


def _postgresql_findings(
    connection: Connection, name: str, shown: str, named: dict[str, Any]
) -> Iterator[Finding]:
    parts = _parts(connection, named)
    if parts:
        are = "is partitioned into" if parts[0][2] else "is inherited by"
        yield finding(
            "parts",
            name,
            f"{shown} {are} {counted(len(parts), 'table')}, whose rows are re-encrypted with it",
            "name a part by itself to re-encrypt that alone",
        )
    rules = connection.execute(_RULES, named).scalars().all()
    if rules:
        yield finding(
            "rule",
            name,
            f"rules rewrite an UPDATE of {shown} ({', '.join(rules)})",
            "drop or disable them for the run: ALTER TABLE ... DISABLE RULE",
        )
    invalid = connection.execute(_INVALID, named).scalars().all()
    if invalid:
        yield finding(
            "index-invalid",
            name,
            f"indexes of {shown} are invalid, as a failed CREATE INDEX CONCURRENTLY leaves them "
            f"({', '.join(invalid)}): they cost time and serve nothing",
            "drop them, and create them again",
        )
    identities = connection.execute(_IDENTITIES, named).all()
    if any(identity == "n" or (identity in "di" and not has_index) for identity, has_index in identities):
        yield finding(
            "replica-identity",
            name,
            f"{shown} is published for logical replication and has no replica identity, so PostgreSQL takes no UPDATE",
            "give it a primary key, or ALTER TABLE ... REPLICA IDENTITY USING INDEX or FULL",
        )
    if any(identity == "f" for identity, _ in identities):
        yield finding(
            "replica-identity-full",
            name,
            f"{shown} has REPLICA IDENTITY FULL: the log holds the old value beside the new one, and subscribers look "
            "up each row by all its columns",
            "give it a primary key and REPLICA IDENTITY DEFAULT",
        )


def _engine_findings(connection: Connection, name: str, shown: str, clause: TableClause) -> Iterator[Finding]:
    statement = text(
        "SELECT engine FROM information_schema.tables WHERE table_name = :name "
        "AND table_schema = COALESCE(:schema, DATABASE())"
    )
    engine = connection.execute(statement, _name_of(clause)).scalar()
    if engine is not None and engine != "InnoDB":
        yield finding(
            "engine",
            name,
            f"{shown} has the engine {engine}, which locks no rows and undoes no batch",
            "change it to InnoDB: ALTER TABLE ... ENGINE = InnoDB",
        )


def _name_of(clause: TableClause) -> dict[str, str | None]:
    return {"name": clause.name, "schema": clause.schema}
