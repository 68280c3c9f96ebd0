"""Findings about room: in the column for the new values, and on the disk for what a rewrite leaves behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select, text

from jwt_column.database.catalogue import IS_NAMED, named
from jwt_column.database.column_size import capacity_of, is_padded, storage_of
from jwt_column.errors import JWTColumnError, KeyUnavailableError

from .kinds import Fact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection

    from jwt_column.column.types import EncryptedJWT

    from ..conversions import Conversion
    from ..table import RunTable


# A token that does not fit into this many bytes is rare, and to look for one takes a scan of the table.
_AMPLE: Final = 2**16 - 1
# Values whose new length is worked out beforehand. The longest is nearly always among the first.
_PROBES: Final = 20
_MIB: Final = 1024 * 1024
# Shares of the table's size: bloat of a tenth and the log between two checkpoints; undo and row images of a binary
# log; the journal of a batch.
_GROWTH: Final = {"postgresql": 0.5, "mysql": 1.0, "sqlite": 0.1}
_SIZES: Final = {
    # The directory is shown to a role that may see all settings.
    "postgresql": "SELECT pg_catalog.pg_total_relation_size(t.oid), (SELECT setting FROM pg_catalog.pg_settings "  # noqa: S608
    f"WHERE name = 'data_directory') FROM pg_catalog.pg_class t WHERE {IS_NAMED}",
    "mysql": "SELECT data_length + index_length, @@datadir FROM information_schema.tables WHERE table_name = :name "
    "AND table_schema = COALESCE(:schema, DATABASE())",
}
_LOCAL: Final = frozenset({None, "", "localhost", "127.0.0.1", "::1"})


def column_facts(
    connection: Connection,
    table: RunTable,
    type_: EncryptedJWT,
    conversions: Sequence[Callable[..., Conversion]],
) -> Iterator[Fact]:
    """Yield the facts about a column of the other storage form, of a fixed length, or too short for new values.

    A database that is given too much may cut it off: outside strict mode, and MariaDB in a multi-table UPDATE always.
    The rest of an envelope opens nothing.
    """
    name = f"{table.name}.{table.value.name}"
    storage = storage_of(table.type_in_database, table.dialect)
    if storage is not None and storage != type_.storage:
        holds = "text" if storage == "text" else "bytes"
        yield Fact(
            "column-type",
            f"{name} is a column of {holds}, which goes with storage={storage!r} and not with {type_.storage!r}",
            "change the column's type, or the storage of its EncryptedJWT",
        )
        return
    if is_padded(table.type_in_database, table.dialect):
        yield Fact(
            "column-type",
            f"{name} has a fixed length, up to which the database fills values, and a filled envelope does not open",
            f"change the column to {_better(type_)} first",
        )
        return
    capacity = capacity_of(table.type_in_database, table.dialect)
    if capacity is None or capacity >= _AMPLE:
        return
    needed = max((_longest(connection, table, make(type_, table.value)) for make in conversions), default=0)
    if needed > capacity:
        unit = "characters" if type_.storage == "text" else "bytes"
        yield Fact(
            "column-short",
            f"{name} holds {capacity} {unit}, and the longest new value needs {needed}",
            f"change the column to {_better(type_)} first",
        )


def _better(type_: EncryptedJWT) -> str:
    return "TEXT" if type_.storage == "text" else "BLOB"


def _longest(connection: Connection, table: RunTable, conversion: Conversion) -> int:
    """Return the length of the new form of the longest values; 0 where there is nothing to do."""
    statement = (
        select(*table.bound, table.value)
        .where(conversion.rows.pending)
        .order_by(func.length(table.value).desc())
        .limit(_PROBES)
    )
    longest = 0
    for *bound, stored in connection.execute(statement):
        try:
            longest = max(longest, len(conversion.convert(stored, *bound)))
        except KeyUnavailableError:
            raise
        except JWTColumnError:
            # The run lists it.
            continue
    return longest


def disk_facts(connection: Connection, table: RunTable) -> Iterator[Fact]:
    """Yield the fact about a disk that the run may fill, where the disk is one of this machine."""
    found = _size_and_place(connection, table)
    if found is None:
        return
    size, place = found
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        # The server's directories are closed to this program, or on another machine.
        return
    needed = round(size * _GROWTH[table.dialect])
    if needed > free:
        yield Fact(
            "disk-short",
            f"the disk has {free // _MIB:,} MiB free, and a rewrite of {table.name}, of {size // _MIB:,} MiB, may need "
            f"{needed // _MIB:,} MiB until old rows and log are reused",
            "make room, or run with nice=1 and look at the disk",
        )


def _size_and_place(connection: Connection, table: RunTable) -> tuple[int, Path] | None:
    """Return the size of a table in bytes, and a directory of its server on this machine; None if not known."""
    if table.dialect == "sqlite":
        schema = table.clause.schema or "main"
        statement = text("SELECT file FROM pragma_database_list WHERE name = :schema")
        place = connection.execute(statement, {"schema": schema}).scalar() or ""
        return (Path(place).stat().st_size, Path(place).parent) if place and Path(place).exists() else None
    found = _SIZES.get(table.dialect)
    if found is None or connection.engine.url.host not in _LOCAL:
        return None
    size, place = connection.execute(text(found), named(table.clause)).one()
    return (int(size), Path(place)) if size and place else None
