"""A table as it is without this package: its columns take and give stored bytes or text."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from jwt_column import EncryptedJWT

__all__ = ["raw_table"]


def raw_table(table: Any) -> sa.TableClause:
    """Return the same table with plain types in the place of encrypted ones."""
    columns: list[Any] = []
    for column in table.c:
        type_ = column.type.impl_instance if isinstance(column.type, EncryptedJWT) else column.type
        columns.append(sa.column(column.name, type_))
    return sa.table(table.name, *columns, schema=table.schema)
