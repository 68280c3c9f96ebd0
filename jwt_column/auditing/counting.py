"""Rows per key and state, and per day of expiry: counted by SQL alone, without a key."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, distinct, false, func, not_, or_, select, tuple_, type_coerce
from sqlalchemy.types import NullType

from ..census import NO_KEY, current_stamps, history_usage, key_usage
from ..column.comparator import EncryptedComparator
from ..format.envelope import HEADER_LENGTHS
from ..format.readable import without_tokens
from ..wording import counted
from .days import ExpiryDay, day_of
from .report import ExpiryCount, KeyCount

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection

    from ..keys.ring import KeyRing
    from .columns import AuditedColumn
    from .report import ColumnAudit, Finding

    PrimaryKeys = Sequence[tuple[Any, ...]]

#: Primary keys that a finding names.
EXAMPLES: Final = 20


def census(
    connection: Connection, column: AuditedColumn, active: Sequence[str], destroyed: Collection[str] = ()
) -> tuple[KeyCount, ...]:
    """Return rows per key id and state; without a known active key, every envelope is ``"unknown"``."""
    rows: Counter[tuple[str | None, str]] = Counter()
    result: Any = connection.execute(key_usage(column.column, active=active or [NO_KEY]))
    for key_id, state, count in result:
        if key_id in destroyed:
            state = "destroyed"
        elif key_id is not None and not active:
            state = "unknown"
        rows[key_id, state] += count
    return tuple(KeyCount(key_id, state, count) for (key_id, state), count in rows.items())


def count_rows(
    connection: Connection,
    column: AuditedColumn,
    active: Sequence[str],
    now: datetime,
    destroyed: Collection[str],
    audit: ColumnAudit,
) -> ColumnAudit:
    """Return the audit of a column with the counts of its rows."""
    # Spelled without NOT, which of NULL is NULL.
    has_none = or_(column.column.is_(None), not_(column.header.has_value()))
    nulls, keys = _rows(connection, column, has_none), census(connection, column, active, destroyed)
    rows = nulls + sum(count.rows for count in keys)
    audit = replace(audit, rows=rows, nulls=nulls, keys=keys)
    if not column.type_.expose_expiry:
        return audit
    expired = _rows(connection, column, _has_expired(column, now))
    return replace(audit, expired=expired, expiry=_expiry_by_day(connection, column))


def _rows(connection: Connection, column: AuditedColumn, condition: ColumnElement[bool]) -> int:
    """Return the number of rows for which a condition holds."""
    return connection.scalar(select(func.count()).select_from(column.table).where(condition)) or 0


def _has_expired(column: AuditedColumn, now: datetime) -> ColumnElement[bool]:
    return EncryptedComparator(column.column).expires_at <= now


def _expiry_by_day(connection: Connection, column: AuditedColumn) -> tuple[ExpiryCount, ...]:
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
    return tuple(ExpiryCount(day, count) for day, count in rows.items())


def row_findings(
    connection: Connection,
    column: AuditedColumn,
    audit: ColumnAudit,
    *,
    active: Sequence[str],
    ring: KeyRing | None,
    retired: Iterable[str],
    now: datetime,
) -> Iterator[Finding]:
    """Yield the findings of the counts, each with its first rows."""
    states: Counter[str] = Counter()
    by_key: Counter[str] = Counter()
    for key in audit.keys:
        states[key.state] += key.rows
        if key.key_id is not None:
            by_key[key.key_id] += key.rows
    header = column.header
    is_envelope, is_plaintext = header.is_envelope(), header.is_plaintext()

    def about(code: str, rows: int, what: str, *conditions: ColumnElement[bool]) -> Iterator[Finding]:
        """Yield the finding about these rows, if there are any."""
        if rows:
            message = f"{counted(rows, 'row', ('is', 'are'))} {what}."
            yield column.finding(code, message, rows, _first_keys(connection, column, and_(*conditions)))

    for key_id in retired:
        what = f"under the key {key_id}, which counts as retired"
        yield from about("retired-key", by_key[key_id], what, header.is_under(key_id))
    history = history_usage(connection, column.column)
    if history:
        yield from _history_findings(column, history, retired)
    absent = [] if ring is None else sorted(by_key.keys() - set(ring.key_ids))
    destroyed = sorted({str(key.key_id) for key in audit.keys if key.state == "destroyed"})
    missing = [key_id for key_id in absent if key_id not in destroyed]
    for code, key_ids, fault in (
        ("unknown-key", missing, "which the key ring lacks"),
        ("destroyed-key", destroyed, "destroyed on purpose"),
    ):
        rows = sum(by_key[key_id] for key_id in key_ids)
        yield from about(code, rows, f"under {_keys(key_ids)}, {fault}", header.is_under(*key_ids))
    # Rows under an absent key cannot be re-encrypted, so they do not count as stale.
    lost = sum(by_key[key_id] for key_id in missing)
    if states["stale"] > lost:
        is_stale = header.has_other_stamp(*current_stamps(column.type_, active))
        what = "stale: under another key than the active one, or of another layout"
        others = [header.key_id().not_in(absent)] if absent else []
        yield from about("stale", states["stale"] - lost, what, is_stale, is_envelope, *others)
    if states["stale"] or states["unknown"]:
        yield from _search_findings(connection, column)
    yield from about("plaintext", states["plaintext"], "in the clear", is_plaintext, not_(is_envelope))
    neither = (header.has_value(), not_(is_envelope), not_(is_plaintext))
    what = "neither an envelope nor a token in the clear"
    yield from about("unreadable", states["unreadable"], what, *neither)
    repeated, condition = _repeated_nonces(connection, column)
    yield from about("nonce-repeated", repeated, "under a nonce that another row has, too", condition)
    if audit.expired:
        yield from about("expired", audit.expired, "expired and still stored", _has_expired(column, now))


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
        rows = _rows(connection, column, condition)
        if rows:
            message = f"{counted(rows, 'row')} cannot be found {missing}: re-encrypt {'it' if rows == 1 else 'them'}."
            examples = _first_keys(connection, column, condition)
            yield column.finding("not-searchable", message, rows, examples)


def _history_findings(
    column: AuditedColumn, history: Counter[str | None], retired: Iterable[str]
) -> Iterator[Finding]:
    """Yield the findings about old versions of rows."""
    for key_id in retired:
        if history[key_id]:
            message = f"{history[key_id]:,} old values in the table's history are under the key {key_id}"
            yield column.finding("retired-key", f"{message}, which counts as retired.", history[key_id])
    kept = sorted(
        f"{rows:,} {'in the clear' if key is None else f'under the key {key}'}"
        for key, rows in history.items()
    )
    message = f"The table is system-versioned, and its history keeps old values: {', '.join(kept)}."
    yield column.finding("history-kept", message, sum(history.values()))


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
