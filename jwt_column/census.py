"""The census: rows per key, by SQL alone.

It reads the first bytes of each row and needs no key, so it can run on a host that has none.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Integer, case, cast, func, literal, null, or_, select

from .column.header_sql import HeaderSQL
from .column.types import EncryptedJWT
from .database.row_history import EVERY_VERSION, keeps_history
from .database.row_security import AllRowsVisible
from .errors import ConfigurationError
from .option_values import texts_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection, Select

#: Stands for the active key where none is known, or only key ids matter: every envelope then counts as stale.
NO_KEY: Final = "00000000"


def encrypted_type(column: Any) -> EncryptedJWT:
    """Return the type of an encrypted column or mapped attribute.

    Raises:
        ConfigurationError: The column has another type.
    """
    type_ = getattr(column, "type", None)
    if not isinstance(type_, EncryptedJWT):
        # Another value is not shown: it may be a token.
        shown = (
            column
            if hasattr(column, "__clause_element__") or hasattr(column, "type")
            else type(column).__name__
        )
        raise ConfigurationError(f"{shown} is not a column of type EncryptedJWT")
    return type_


def key_usage(
    column: Any, *, active: str | Iterable[str] | None = None
) -> Select[tuple[str | None, str, int]]:
    """Return the census of a column as a statement: ``key_id``, ``state`` and ``rows`` per key and state.

    ``state`` is ``"current"`` (stamped as the column would write today), ``"stale"`` (another key or layout),
    ``"plaintext"``, or ``"unreadable"`` (neither); and ``"destroyed"`` (under a key that the ring's file marks as
    destroyed, where the ring is asked). ``key_id`` is NULL for plaintext and what is unreadable. Rows without a token,
    NULL or an empty value, are not counted. On PostgreSQL the statement fails where row-level security would hide rows
    from it.

    Args:
        column: A mapped attribute such as ``Session.token``, or a Core column.
        active: The active key's id, 8 hex digits, on a host without keys, or :attr:`KeyRing.current_key_ids` of a
            ring with tenants; None takes them from the column's ring.

    Raises:
        ConfigurationError: Not an encrypted column, or no ring and no *active*.
    """
    type_ = encrypted_type(column)
    stored = HeaderSQL(column, type_)
    # Grouped by the raw stamp first, so that a handful of groups is interpreted and not every row.
    stamps = (
        select(stored.stamp().label("stamp"), func.count().label("rows"))
        .where(stored.has_value())
        .group_by("stamp")
    )
    by_stamp = stamps.where(*map(AllRowsVisible, stamps.get_final_froms())).subquery("stamps")
    header = HeaderSQL(by_stamp.c.stamp, type_)
    is_current = header.has_stamp(*current_stamps(type_, active))
    destroyed = type_.ring().destroyed_key_ids if active is None else ()
    is_destroyed = [(header.is_under(*destroyed), literal("destroyed"))] if destroyed else []
    state = case(
        (is_current, literal("current")),
        *is_destroyed,
        (header.is_envelope(), literal("stale")),
        (header.is_plaintext(), literal("plaintext")),
        else_=literal("unreadable"),
    )
    rows = (
        select(
            case((header.is_envelope(), header.key_id()), else_=null()).label("key_id"),
            state.label("state"),
            by_stamp.c.rows,
        )
        .select_from(by_stamp)
        .subquery("census")
    )
    return (
        select(rows.c.key_id, rows.c.state, cast(func.sum(rows.c.rows), Integer).label("rows"))
        .group_by(rows.c.key_id, rows.c.state)
        .order_by(rows.c.state, rows.c.key_id)
    )


def history_usage(connection: Connection, column: Any) -> Counter[str | None]:
    """Return the old values that the database keeps in a table's history, per key id; None counts plaintext.

    Empty but for a system-versioned table of MariaDB, whose history a re-encryption does not reach.
    """
    old: Counter[str | None] = Counter()
    if not keeps_history(connection, column.table):
        return old
    header = HeaderSQL(column, encrypted_type(column))
    usage = (
        select(case((header.is_envelope(), header.key_id()), else_=null()).label("key_id"), func.count())
        .where(or_(header.is_envelope(), header.is_plaintext()))
        .group_by("key_id")
    )
    for key_id, rows in connection.execute(usage.with_hint(column.table, EVERY_VERSION)):
        old[key_id] += rows
    for key_id, rows in connection.execute(usage):
        old[key_id] -= rows
    return +old


def current_stamps(type_: EncryptedJWT, active: str | Iterable[str] | None = None) -> list[bytes]:
    """Return the stamps of rows that are not stale: under the given key ids, or under the active keys of the ring."""
    if active is None:
        active = type_.ring().current_key_ids
    cipher = type_.cipher()
    key_ids = (active,) if isinstance(active, str) else texts_of("active", active, "key ids")
    if not key_ids:
        raise ConfigurationError("active is a key id or a list of them, which is not empty")
    return [cipher.stamp(key_id) for key_id in key_ids]
