"""Findings about the declaration of a column and the schema of the database; no row is read."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import MetaData, inspect
from sqlalchemy.exc import NoSuchTableError

from ..column.declarations import problems_of
from ..column.fingerprints import part_of
from ..column.header_sql import indexed_parts
from ..column.row_binding import python_type_of
from ..column.spec import WHOLE
from ..database.column_size import capacity_of, is_padded, without_domain
from ..database.indexes import existing_indexes, is_as_declared, positions_of
from ..errors import ConfigurationError
from ..format.envelope import TEXT_PREFIX
from .kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.types import TypeEngine

    from ..column.header_sql import HeaderPart
    from ..column.types import EncryptedJWT
    from ..database.indexes import FoundIndex
    from ..keys.ring import KeyRing
    from .columns import AuditedColumn
    from .report import Finding

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
        what = "are written in the clear" if type_.plaintext == "write" else "in the clear are read"
        yield column.finding(
            "plaintext-mode", f"The column has plaintext={type_.plaintext!r}: tokens {what}."
        )
    if type_.allow_unsigned:
        yield column.finding("unsigned-allowed", "The column takes tokens with alg: none.")
    if type_.context_is_default:
        message = "The context is the column's name and not pinned, so after a rename no envelope would open."
        yield column.finding("context-default", message)


def sharing_findings(columns: Sequence[AuditedColumn]) -> Iterator[Finding]:
    """Yield the columns that share a context, so that an envelope of one opens in the other."""
    by_context: dict[str, list[AuditedColumn]] = {}
    for column in columns:
        by_context.setdefault(column.context, []).append(column)
    for column in columns:
        others = [one.name for one in by_context[column.context] if one is not column]
        if others:
            shared = f"The context {column.context!r} is also that of {', '.join(others)}"
            yield column.finding("context-shared", f"{shared}: an envelope opens in either.")


def schema_findings(connection: Connection, column: AuditedColumn) -> list[Finding]:
    """Return the findings about the schema: whether the column exists, its type, and its indexes."""
    table = column.table
    types: dict[str, TypeEngine[Any]] = {}
    with suppress(NoSuchTableError):
        described = inspect(connection).get_columns(table.name, schema=table.schema)
        types = {info["name"]: info["type"] for info in described}
    needed = (column.column, *column.keys, *column.bound)
    missing = next((one.name for one in needed if one.name not in types), None)
    if missing is not None:
        what = f"has no column {missing}" if types else "is not there"
        return [column.finding("column-missing", f"The table {table.fullname} {what}.")]
    return [
        *_type_findings(connection, column, types[column.column.name]),
        *_index_findings(connection, column, existing_indexes(connection, table)),
    ]


def _type_findings(
    connection: Connection, column: AuditedColumn, in_database: TypeEngine[Any]
) -> Iterator[Finding]:
    if connection.dialect.name == "sqlite":
        return  # Any column of SQLite takes any value.
    type_ = column.type_
    is_text = type_.storage == "text"
    if python_type_of(without_domain(in_database)) is not (str if is_text else bytes):
        needs = f"storage={type_.storage!r} needs {'text' if is_text else 'bytes'}"
        yield column.finding("column-type", f"The column is {in_database!r} in the database, and {needs}.")
        return
    if is_padded(in_database, connection.dialect.name):
        message = f"The column is {in_database!r} in the database, which fills values up to its length."
        yield column.finding("column-type", message)
        return
    length = capacity_of(in_database, connection.dialect.name)
    needed = longest_value(type_)
    is_short = length is not None and length < needed
    if is_short and not (connection.dialect.name != "postgresql" and length == _BLOB):
        holds = f"The column holds {length:,} {'characters' if is_text else 'bytes'} in the database"
        needs = f"a token of max_length={type_.max_length} needs up to {needed:,}"
        yield column.finding("column-short", f"{holds}, and {needs}.")


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
        if not indexed_parts(index) or column.column not in tuple(index.columns):
            continue
        name = str(index.name)
        found = existing.get(name)
        if found is None:
            yield column.finding("index-missing", f"The declared index {name} is not in the database.")
        elif not is_as_declared(found, index, connection):
            yield column.finding(
                "index-outdated",
                f"The index {name} of the database is not the one that is declared: it is on other parts of the "
                "envelopes or other columns, or unique where that is not.",
            )
    type_, header = column.type_, column.header
    covered = [
        found.positions
        for found in existing.values()
        if found.positions and _names(column.column.name, found.definition)
    ]

    def is_covered(part: HeaderPart) -> bool:
        """Return True if an index has a part, among others perhaps."""
        (place,), rows = positions_of([part], connection)
        return any(place in one.parts and rows == one.rows for one in covered)

    for name in type_.fingerprints:
        specs = type_.spec.layouts_with(name)
        # While there are several layouts, an index that holds the rows of one serves as well.
        ways = (False, True) if type_.previous else (False,)
        parts = [[part_of(header, spec, name, for_layout=way) for way in ways] for spec in specs]
        if not all(any(map(is_covered, either)) for either in parts):
            what = "the whole token" if name == WHOLE else f"the claim {name}"
            message = f"No index has the fingerprint of {what}, so a lookup by it reads every row."
            yield column.finding("fingerprint-unindexed", message)
    if type_.expose_expiry and positions_of([header.expires_at()], connection) not in covered:
        message = "No index has the expiry, so a search for expired tokens reads every row."
        yield column.finding("expiry-unindexed", message)


def _names(column: str, definition: str) -> bool:
    """Return True if the definition of an index names a column, quoted or not."""
    return re.search(rf"(?<!\w){re.escape(column)}(?!\w)", definition) is not None
