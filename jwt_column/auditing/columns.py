"""The encrypted columns of an audit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, MetaData, Table, inspect
from sqlalchemy.orm import Mapper

from ..column.header_sql import HeaderSQL
from ..column.row_binding import find_bound_column
from ..column.types import EncryptedJWT
from ..errors import ConfigurationError
from .kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .report import Finding


@dataclass(frozen=True, slots=True)
class AuditedColumn:
    """One encrypted column of a table, and the mapper that it came from, which knows what ``bound_to`` names."""

    column: Column[Any]
    type_: EncryptedJWT
    mapper: Mapper[Any] | None = None

    @property
    def table(self) -> Table:
        """The table."""
        return self.column.table

    @property
    def name(self) -> str:
        """``table.column``, with the schema in front where there is one."""
        return f"{self.table.fullname}.{self.column.name}"

    @property
    def keys(self) -> Sequence[Column[Any]]:
        """The columns of the primary key, if the table has one."""
        return tuple(self.table.primary_key.columns)

    @property
    def context(self) -> str:
        """The context of its envelopes."""
        # A column of a table has one; a cipher is made for each call.
        return self.type_.context or self.type_.cipher().context

    @property
    def header(self) -> HeaderSQL:
        """The header fields of its envelopes, as SQL."""
        return HeaderSQL(self.column, self.type_)

    @property
    def bound(self) -> Sequence[Column[Any]]:
        """The columns that its envelopes are bound to; names that are not found are left out."""
        found = (find_bound_column(self.table, name, self.mapper) for name in self.type_.bound_to)
        return tuple(column for column in found if column is not None)

    def finding(
        self, code: str, message: str, count: int = 0, primary_keys: Sequence[tuple[Any, ...]] = ()
    ) -> Finding:
        """Return a finding about this column."""
        return KINDS[code].found(self.name, message, count, primary_keys)

    def without_indexes(self) -> AuditedColumn:
        """Return the column of a copy of its table that declares no index.

        On MySQL and MariaDB a declared index is read through its generated column, which is missing with the index.
        """
        columns: list[Column[Any]] = [
            Column(column.name, column.type, key=column.key, primary_key=column.primary_key)
            for column in self.table.columns
        ]
        bare = Table(self.table.name, MetaData(), *columns, schema=self.table.schema)
        return AuditedColumn(bare.columns[self.column.key], self.type_, self.mapper)


def columns_of(target: Any) -> tuple[AuditedColumn, ...]:
    """Return the encrypted columns of a target, by name.

    Args:
        target: A mapped attribute, a column of a table, a table, a mapped class, a MetaData, or a list of these.

    Raises:
        ConfigurationError: The target is something else, or holds no encrypted column.
    """
    found: dict[tuple[str, int], AuditedColumn] = {}
    for one in target if isinstance(target, list | tuple) else [target]:
        sources, mapper = _sources(one)
        columns = [
            AuditedColumn(source, source.type, mapper)
            for source in sources
            if isinstance(source.type, EncryptedJWT)
        ]
        if not columns:
            raise ConfigurationError(
                f"{_described(one)} is no column of type EncryptedJWT and holds none; audit a mapped attribute, a "
                "column, a table, a mapped class or a MetaData that does"
            )
        for column in columns:
            found.setdefault((column.name, id(column.column)), column)
    if not found:
        raise ConfigurationError("nothing to audit: the list is empty")
    return tuple(found[key] for key in sorted(found))


def _sources(target: Any) -> tuple[Sequence[Column[Any]], Mapper[Any] | None]:
    """Return the columns of a target, encrypted or not, and its mapper if it has one."""
    if isinstance(target, MetaData):
        return [column for table in target.tables.values() for column in table.columns], None
    if isinstance(target, Table):
        return list(target.columns), None
    mapper = inspect(target, raiseerr=False) if isinstance(target, type) else target
    if isinstance(mapper, Mapper):
        tables = [table for table in mapper.tables if isinstance(table, Table)]
        return [column for table in tables for column in table.columns], mapper
    # Of a joined subclass, an attribute may stand for a column of each table.
    columns = getattr(getattr(target, "property", None), "columns", [target])
    parent = getattr(target, "parent", None)
    return (
        [column for column in columns if isinstance(column, Column) and isinstance(column.table, Table)],
        parent if isinstance(parent, Mapper) else None,
    )


def _described(target: Any) -> str:
    """Describe a target for an error message without its repr, which may hold secrets."""
    if isinstance(target, MetaData):
        return "this MetaData"
    if isinstance(target, Table):
        return f"the table {target.fullname}"
    if isinstance(target, Column):
        return f"the column {target}"
    if isinstance(target, type):
        return f"the class {target.__name__}"
    return f"a value of type {type(target).__name__}"
