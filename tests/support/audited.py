"""Tables with rows of every kind, for tests of what an audit finds in them."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from jwt_column import KeyRing
from jwt_column.auditing.run import Options, audit_at
from tests.support.raw import raw_table
from tests.support.tokens import compact

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from jwt_column import AuditReport, Finding

__all__ = [
    "AFTER",
    "BEFORE",
    "LOST",
    "NEW",
    "NOW",
    "OLD",
    "codes",
    "envelope",
    "examine",
    "expiring",
    "found",
    "put",
    "token",
]

_OLD_KEY, _NEW_KEY, _LOST_KEY = (hashlib.sha256(name).digest() for name in (b"old", b"new", b"lost"))
#: The ring before a rotation, the one after it, and one whose key nobody has any more.
BEFORE, AFTER, LOST = KeyRing([_OLD_KEY]), KeyRing([_NEW_KEY, _OLD_KEY]), KeyRing([_LOST_KEY])
OLD: Final = BEFORE.active
NEW: Final = AFTER.active

#: The time of every audit here.
NOW: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)


def token(header: Mapping[str, Any] | None = None, **claims: Any) -> str:
    """Return a token that lives for an hour and has no jti, unless told otherwise; nothing is signed.

    A claim or header parameter of None is left out.
    """
    fields = {"alg": "RS256"} | dict(header or {})
    issued = int(NOW.timestamp())
    content = {"sub": "alice", "iat": issued, "exp": issued + 3600} | claims
    return compact(
        {name: value for name, value in fields.items() if value is not None},
        {name: value for name, value in content.items() if value is not None},
        b"" if str(fields["alg"]).lower() == "none" else b"signature",
    )


def expiring(days: float, **claims: Any) -> str:
    """Return a token that expires in so many days."""
    return token(exp=int(NOW.timestamp() + 86_400 * days), **claims)


def envelope(column: sa.Column[Any], text: str, ring: KeyRing = AFTER, binding: bytes = b"") -> bytes | str:
    """Return the envelope of a token as a column stores it."""
    type_: Any = column.type
    sealed: bytes | str = type_.cipher().encrypt(text, ring, binding)
    return sealed


def put(
    connection: sa.Connection,
    column: sa.Column[Any],
    values: Iterable[object],
    *,
    first: int = 1,
    **others: Any,
) -> None:
    """Write values into a column past its type, with primary keys that count up."""
    table = column.table
    raw: Any = sa.Text() if column.type.storage == "text" else sa.LargeBinary()  # type: ignore[attr-defined]
    for number, value in enumerate(values, start=first):
        if isinstance(value, str) and not isinstance(raw, sa.Text):
            value = value.encode()
        connection.execute(raw_table(table).insert().values({"id": number, column.name: value, **others}))


def examine(bind: sa.Engine | sa.Connection, target: Any, **options: Any) -> AuditReport:
    """Return a deep audit at the time of these tests."""
    return audit_at(NOW, bind, target, Options(deep=True, **options))


def codes(report: AuditReport, *without: str) -> Collection[str]:
    """Return the codes of what was found, but for what a declaration alone causes."""
    left_out = {"context-default", "fingerprint-unindexed", "expiry-unindexed", *without}
    return [finding.code for finding in report.findings if finding.code not in left_out]


def found(report: AuditReport, code: str) -> Finding:
    """Return the one finding with a code."""
    (finding,) = [finding for finding in report.findings if finding.code == code]
    return finding
