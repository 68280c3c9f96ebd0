"""Findings about the declaration of a column and the schema of the database; no row is read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import MetaData, inspect
from sqlalchemy.exc import NoSuchTableError

from ..column.declarations import problems_of
from ..column.fingerprints import part_of
from ..column.header_sql import indexed_part
from ..column.row_binding import python_type_of
from ..column.spec import WHOLE
from ..database.column_size import capacity_of
from ..database.indexes import existing_indexes, positions_of
from ..errors import ConfigurationError
from ..format.envelope import TEXT_PREFIX
from .kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.types import TypeEngine

    from ..column.types import EncryptedJWT
    from ..database.indexes import FoundIndex
    from ..keys.ring import KeyRing
    from .columns import AuditedColumn
    from .report import Finding

__all__ = [
    "check_declarations",
    "configuration_of",
    "declaration_findings",
    "schema_findings",
    "sharing_findings",
]

# Nonce and tag; and the lengths in a packed frame, less the dots that they replace.
_SEAL: Final = 24 + 16
_FRAME: Final = 8
# A BLOB or TEXT of MySQL: EncryptedJWT itself refuses a longer value there.
_BLOB: Final = 2**16 - 1


def configuration_of(column: AuditedColumn, ring: KeyRing | None) -> dict[str, str]:
    """Return the parameters of a column as text, without defaults, and the ring by its name."""
    type_ = column.type_
    shown = {"storage": type_.storage, "plaintext": type_.plaintext, "key ring": _ring_name(type_, ring)}
    optional = {
        "fingerprints": ", ".join(type_.fingerprints),
        "expose_expiry": "yes" if type_.expose_expiry else "",
        "bound_to": ", ".join(type_.bound_to),
        "allow_opaque": "yes" if type_.allow_opaque else "",
        "allow_unsigned": "yes" if type_.allow_unsigned else "",
        "undecryptable": "" if type_.undecryptable == "raise" else type_.undecryptable,
    }
    return shown | {name: value for name, value in optional.items() if value}


def _ring_name(type_: EncryptedJWT, ring: KeyRing | None) -> str:
    """Return the name of a column's ring; never a URI as it was given, which may hold a password."""
    if ring is not None:
        return ring.uri or "keys given by the program"
    if isinstance(type_.keyring, str):
        scheme, colon, _ = type_.keyring.partition(":")
        return f"{scheme}: (not loaded)" if colon else "not loaded"
    return "the default ring (not loaded)"


def check_declarations(metadata: MetaData | Any) -> list[Finding]:
    """Return what is wrong with how the encrypted columns of a MetaData are declared. No database is needed.

    Args:
        metadata: Its tables, and those that were refused when they were made. A declarative base stands for its own.

    Raises:
        ConfigurationError: It is neither.
    """
    metadata = getattr(metadata, "metadata", metadata)
    if not isinstance(metadata, MetaData):
        raise ConfigurationError(
            f"check_declarations() takes a MetaData or a declarative base, not {type(metadata).__name__}"
        )
    return [
        KINDS["declaration"].found(problem.name, f"{problem.message}; {problem.recipe}.")
        for problem in problems_of(metadata)
    ]


def declaration_findings(column: AuditedColumn) -> Iterator[Finding]:
    """Yield the findings about the declaration."""
    type_ = column.type_
    if type_.plaintext != "refuse":
        what = (
            "tokens are written in the clear"
            if type_.plaintext == "write"
            else "tokens in the clear are read"
        )
        yield KINDS["plaintext-mode"].found(
            column.name, f"The column has plaintext={type_.plaintext!r}: {what}."
        )
    if type_.allow_unsigned:
        yield KINDS["unsigned-allowed"].found(column.name, "The column takes tokens with alg: none.")
    if type_.context_is_default:
        yield KINDS["context-default"].found(
            column.name,
            "The context is the column's name and not pinned, so after a rename no envelope would open.",
        )


def sharing_findings(columns: Sequence[AuditedColumn]) -> Iterator[Finding]:
    """Yield the columns that share a context, so that an envelope of one opens in the other."""
    by_context: dict[str, list[AuditedColumn]] = {}
    for column in columns:
        by_context.setdefault(column.context, []).append(column)
    for column in columns:
        others = [one.name for one in by_context[column.context] if one is not column]
        if others:
            yield KINDS["context-shared"].found(
                column.name,
                f"The context {column.context!r} is also that of {', '.join(others)}: an envelope opens in either.",
            )


def schema_findings(connection: Connection, column: AuditedColumn) -> list[Finding]:
    """Return the findings about the schema: whether the column exists, its type, and its indexes."""
    table = column.table
    try:
        described = {
            info["name"]: info for info in inspect(connection).get_columns(table.name, schema=table.schema)
        }
    except NoSuchTableError:
        described = {}
    needed = (column.column, *column.keys, *column.bound)
    missing = next((one.name for one in needed if one.name not in described), None)
    if missing is not None:
        what = f"has no column {missing}" if described else "is not there"
        return [KINDS["column-missing"].found(column.name, f"The table {table.fullname} {what}.")]
    return [
        *_type_findings(connection, column, described[column.column.name]["type"]),
        *_index_findings(connection, column, existing_indexes(connection, table)),
    ]


def _type_findings(
    connection: Connection, column: AuditedColumn, in_database: TypeEngine[Any]
) -> Iterator[Finding]:
    if connection.dialect.name == "sqlite":
        return  # Any column of SQLite takes any value.
    type_ = column.type_
    held = python_type_of(in_database)
    wanted = str if type_.storage == "text" else bytes
    if held is not wanted:
        yield KINDS["column-type"].found(
            column.name,
            f"The column is {in_database!r} in the database, and storage={type_.storage!r} needs "
            f"{'text' if wanted is str else 'bytes'}.",
        )
        return
    length = capacity_of(in_database, connection.dialect.name)
    needed = longest_value(type_)
    is_short = length is not None and length < needed
    if is_short and not (connection.dialect.name != "postgresql" and length == _BLOB):
        yield KINDS["column-short"].found(
            column.name,
            f"The column holds {length:,} {'characters' if wanted is str else 'bytes'} in the database, and a token of "
            f"max_length={type_.max_length} needs up to {needed:,}.",
        )


def longest_value(type_: EncryptedJWT) -> int:
    """Return the most bytes or characters of a column's envelope, with packed tokens."""
    spec = type_.spec
    header = spec.layout.header_length
    # An opaque token is stored as it is, and its characters may take four bytes each.
    frame = 1 + 4 * spec.max_length if spec.allow_opaque else _FRAME + spec.max_length * 3 // 4
    if spec.storage == "binary":
        return header + _SEAL + frame
    return len(TEXT_PREFIX) + 2 * header + 1 + (_SEAL + frame) * 4 // 3 + 4


def _index_findings(
    connection: Connection, column: AuditedColumn, existing: Mapping[str, FoundIndex]
) -> Iterator[Finding]:
    for index in sorted(column.table.indexes, key=lambda index: str(index.name)):
        part = indexed_part(index)
        if part is None or column.column not in tuple(index.columns):
            continue
        name = str(index.name)
        found = existing.get(name)
        if found is None:
            yield KINDS["index-missing"].found(
                column.name, f"The declared index {name} is not in the database."
            )
        elif found.unique != bool(index.unique) or found.positions != positions_of(part, connection):
            yield KINDS["index-outdated"].found(
                column.name,
                f"The index {name} of the database is not the one that is declared: it is on another part of the "
                "envelopes, or unique where that is not.",
            )
    type_, header = column.type_, column.header
    covered = [found.positions for found in existing.values() if _names(column.column.name, found.definition)]
    for name in type_.fingerprints:
        specs = type_.spec.layouts_with(name)
        # While there are several layouts, an index that holds the rows of one serves as well.
        ways = (False, True) if type_.previous else (False,)
        parts = [[part_of(header, spec, name, for_layout=way) for way in ways] for spec in specs]
        if not all(any(positions_of(part, connection) in covered for part in either) for either in parts):
            what = "the whole token" if name == WHOLE else f"the claim {name}"
            yield KINDS["fingerprint-unindexed"].found(
                column.name, f"No index has the fingerprint of {what}, so a lookup by it reads every row."
            )
    if type_.expose_expiry and positions_of(header.expires_at(), connection) not in covered:
        yield KINDS["expiry-unindexed"].found(
            column.name, "No index has the expiry, so a search for expired tokens reads every row."
        )


def _names(column: str, definition: str) -> bool:
    """Return True if the definition of an index names a column, quoted or not."""
    return re.search(rf"(?<!\w){re.escape(column)}(?!\w)", definition) is not None
