"""Rows per key and state, and per day of expiry: counted by SQL alone, without a key."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import and_, distinct, false, func, not_, or_, select, tuple_, type_coerce
from sqlalchemy.types import NullType

from ..census import current_stamps, history_usage, key_usage
from ..column.comparator import EncryptedComparator
from ..format.envelope import HEADER_LENGTHS
from ..format.readable import without_tokens
from ..wording import counted
from .days import ExpiryDay, day_of
from .kinds import KINDS
from .report import ExpiryCount, KeyCount

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection

    from ..keys.ring import KeyRing
    from .columns import AuditedColumn
    from .report import Finding

    PrimaryKeys = Sequence[tuple[Any, ...]]

__all__ = ["EXAMPLES", "Count", "census", "count_rows", "row_findings"]

#: Primary keys that a finding names.
EXAMPLES: Final = 20

# The active key id of a column that has none: every envelope then counts as stale.
_NO_KEY: Final = "00000000"


class Count(NamedTuple):
    """The rows of a column."""

    nulls: int
    keys: tuple[KeyCount, ...]
    expired: int | None
    expiry: tuple[ExpiryCount, ...]

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return self.nulls + sum(count.rows for count in self.keys)


def census(
    connection: Connection, column: AuditedColumn, active: Sequence[str], destroyed: Collection[str] = ()
) -> tuple[KeyCount, ...]:
    """Return rows per key id and state; without a known active key, every envelope is ``"unknown"``."""
    rows: Counter[tuple[str | None, str]] = Counter()
    result: Any = connection.execute(key_usage(column.column, active=active or [_NO_KEY]))
    for key_id, state, count in result:
        if key_id in destroyed:
            rows[key_id, "destroyed"] += count
            continue
        rows[key_id, state if active or key_id is None else "unknown"] += count
    return tuple(KeyCount(key_id, state, count) for (key_id, state), count in rows.items())


def count_rows(
    connection: Connection,
    column: AuditedColumn,
    active: Sequence[str],
    now: datetime,
    destroyed: Collection[str] = (),
) -> Count:
    """Count the rows of a column."""
    # Spelled without NOT, which of NULL is NULL.
    has_none = or_(column.column.is_(None), not_(column.header.has_value()))
    nulls = select(func.count()).select_from(column.table).where(has_none)
    expired = None
    expiry: tuple[ExpiryCount, ...] = ()
    if column.type_.expose_expiry:
        expired = connection.scalar(
            select(func.count()).select_from(column.table).where(_has_expired(column, now))
        )
        expiry = tuple(_expiry_by_day(connection, column))
    return Count(
        connection.scalar(nulls) or 0, census(connection, column, active, destroyed), expired, expiry
    )


def _has_expired(column: AuditedColumn, now: datetime) -> ColumnElement[bool]:
    return EncryptedComparator(column.column).expires_at <= now


def _expiry_by_day(connection: Connection, column: AuditedColumn) -> Iterator[ExpiryCount]:
    header = column.header
    found = select(header.expiry_digits().label("digits")).where(header.expires_at().is_not(None))
    if connection.dialect.name == "sqlite":
        # Keeps SQLite from working each expiry out anew for each digit.
        found = found.limit(-1)
    expiries = found.subquery("expiries")
    by_day = (
        select(ExpiryDay(expiries.c.digits).label("day"), func.count().label("rows"))
        .group_by("day")
        .order_by("day")
    )
    rows: Counter[Any] = Counter()
    for day, count in connection.execute(by_day):
        rows[day_of(int(day))] += count
    yield from (ExpiryCount(day, count) for day, count in rows.items())


def row_findings(
    connection: Connection,
    column: AuditedColumn,
    count: Count,
    *,
    active: Sequence[str],
    ring: KeyRing | None,
    retired: Iterable[str],
    now: datetime,
) -> Iterator[Finding]:
    """Yield the findings of the counts, each with its first rows."""
    states: Counter[str] = Counter()
    by_key: Counter[str] = Counter()
    for key_id, state, rows in ((key.key_id, key.state, key.rows) for key in count.keys):
        states[state] += rows
        if key_id is not None:
            by_key[key_id] += rows
    header = column.header

    def found(code: str, message: str, rows: int, condition: ColumnElement[bool]) -> Finding:
        examples = _first_keys(connection, column, condition)
        return KINDS[code].found(
            column.name, f"{counted(rows, 'row', ('is', 'are'))} {message}.", rows, examples
        )

    for key_id in retired:
        if by_key[key_id]:
            condition = and_(header.is_envelope(), header.key_id() == key_id)
            yield found(
                "retired-key",
                f"under the key {key_id}, which counts as retired",
                by_key[key_id],
                condition,
            )
    history = history_usage(connection, column.column)
    if history:
        yield from _history_findings(column, history, retired)
    absent = [] if ring is None else sorted(by_key.keys() - set(ring.key_ids))
    destroyed = sorted({str(key.key_id) for key in count.keys if key.state == "destroyed"})
    missing = [key_id for key_id in absent if key_id not in destroyed]
    for code, key_ids, fault in (
        ("unknown-key", missing, "which the key ring lacks"),
        ("destroyed-key", destroyed, "destroyed on purpose"),
    ):
        rows = sum(by_key[key_id] for key_id in key_ids)
        if rows:
            yield found(code, f"under {_keys(key_ids)}, {fault}", rows, header.is_under(*key_ids))
    # Rows under an absent key cannot be re-encrypted, so they do not count as stale.
    lost = sum(by_key[key_id] for key_id in missing)
    if states["stale"] > lost:
        conditions = [header.has_other_stamp(*current_stamps(column.type_, active)), header.is_envelope()]
        if absent:
            conditions.append(header.key_id().not_in(absent))
        yield found(
            "stale",
            "stale: under another key than the active one, or of another layout",
            states["stale"] - lost,
            and_(*conditions),
        )
    if states["stale"] or states["unknown"]:
        yield from _search_findings(connection, column)
    if states["plaintext"]:
        yield found(
            "plaintext",
            "in the clear",
            states["plaintext"],
            and_(header.is_plaintext(), not_(header.is_envelope())),
        )
    if states["unreadable"]:
        yield found(
            "unreadable",
            "neither an envelope nor a token in the clear",
            states["unreadable"],
            and_(header.has_value(), not_(header.is_envelope()), not_(header.is_plaintext())),
        )
    repeated, condition = _repeated_nonces(connection, column)
    if repeated:
        yield found("nonce-repeated", "under a nonce that another row has, too", repeated, condition)
    if count.expired:
        yield found("expired", "expired and still stored", count.expired, _has_expired(column, now))


def _search_findings(connection: Connection, column: AuditedColumn) -> Iterator[Finding]:
    """Yield the findings about envelopes of a layout in which fingerprints or the expiry are not looked for."""
    type_, header = column.type_, column.header
    by_layouts: dict[tuple[bytes, ...], list[str]] = {}
    for name in type_.fingerprints:
        layouts = tuple(spec.layout.byte for spec in type_.spec.layouts_with(name))
        by_layouts.setdefault(layouts, []).append(f"`{name}`")
    conditions = [
        (f"by {', '.join(names)}", not_(or_(*map(header.has_layout, layouts))))
        for layouts, names in by_layouts.items()
    ]
    if type_.expose_expiry:
        # Odd layouts have an expiry.
        other = (header.has_layout(bytes([byte])) for byte in HEADER_LENGTHS if byte & 1)
        conditions.append(("by expiry", not_(or_(*other))))
    for missing, condition in conditions:
        condition = and_(header.is_envelope(), condition)
        rows = connection.scalar(select(func.count()).select_from(column.table).where(condition)) or 0
        if rows:
            message = f"{counted(rows, 'row')} cannot be found {missing}: re-encrypt {'it' if rows == 1 else 'them'}."
            examples = _first_keys(connection, column, condition)
            yield KINDS["not-searchable"].found(column.name, message, rows, examples)


def _history_findings(
    column: AuditedColumn, history: Counter[str | None], retired: Iterable[str]
) -> Iterator[Finding]:
    """Yield the findings about old versions of rows."""
    for key_id in retired:
        if history[key_id]:
            message = f"{history[key_id]:,} old values in the table's history are under the key {key_id}"
            yield KINDS["retired-key"].found(
                column.name, f"{message}, which counts as retired.", history[key_id]
            )
    kept = [
        f"{rows:,} {'in the clear' if key is None else f'under the key {key}'}"
        for key, rows in history.items()
    ]
    yield KINDS["history-kept"].found(
        column.name,
        f"The table is system-versioned, and its history keeps old values: {', '.join(sorted(kept))}.",
        sum(history.values()),
    )


def _repeated_nonces(connection: Connection, column: AuditedColumn) -> tuple[int, ColumnElement[bool]]:
    """Return the number of rows that share key and nonce with a different envelope, and their condition."""
    header = column.header
    key_id, nonce = header.key_id(), header.nonce()
    grouped = select(key_id.label("key_id"), nonce.label("nonce"), func.count().label("rows")).where(
        header.is_envelope()
    )
    # A copy of a row repeats the nonce and reveals nothing. The sort that tells copies apart runs only if needed.
    shared = grouped.group_by("key_id", "nonce").having(func.count() > 1)
    if connection.execute(shared.limit(1)).first() is None:
        return 0, false()
    groups = shared.having(func.count(distinct(type_coerce(column.column, NullType()))) > 1).subquery(
        "shared"
    )
    rows = connection.scalar(select(func.sum(groups.c.rows))) or 0
    return int(rows), tuple_(key_id, nonce).in_(select(groups.c.key_id, groups.c.nonce))


def _first_keys(connection: Connection, column: AuditedColumn, condition: ColumnElement[bool]) -> PrimaryKeys:
    """Return the primary keys of the first rows for which a condition holds."""
    if not column.keys:
        return ()
    statement = select(*column.keys).where(condition).order_by(*column.keys).limit(EXAMPLES)
    return [key for row in connection.execute(statement) if (key := without_tokens(row)) is not None]


def _keys(key_ids: Sequence[str]) -> str:
    return f"{'the key' if len(key_ids) == 1 else 'the keys'} {', '.join(key_ids)}"
