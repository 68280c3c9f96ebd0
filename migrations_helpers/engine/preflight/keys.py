"""Findings about the values of the key: those that drivers do not read, or read as others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jwt_column.database.key_order import UNREADABLE, unreadable_key

from .kinds import finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from jwt_column.auditing import Finding

    from ..table import RunTable

__all__ = ["key_findings"]


def key_findings(connection: Connection, name: str, table: RunTable) -> Iterator[Finding]:
    """Yield the finding about a key with values that drivers cannot read, or read as others."""
    key = unreadable_key(connection, table.order)
    if key is not None:
        yield finding(
            "key",
            name,
            f"{table.name} cannot be paged by {key.name}: {UNREADABLE}",
            "name a unique key of other types with key_columns= (--key-columns), after adding one if there is none",
        )
