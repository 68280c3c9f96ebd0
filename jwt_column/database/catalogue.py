"""The look-up of a table in PostgreSQL's catalogue, by its name as it is and not as SQL quotes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sqlalchemy import TableClause

#: SQL condition of the row ``t`` of pg_class that has the name ``:name``, in ``:schema`` or, if that is NULL, on the
#: search path.
IS_NAMED: Final = (
    "t.relname = :name AND CASE WHEN CAST(:schema AS TEXT) IS NULL THEN pg_catalog.pg_table_is_visible(t.oid) "
    "ELSE t.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = :schema) END"
)


def named(table: TableClause) -> dict[str, str | None]:
    """Return a table's name as the parameters of :data:`IS_NAMED`."""
    return {"name": table.name, "schema": table.schema}
