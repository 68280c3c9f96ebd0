"""Check by SQL alone that a column holds ciphertext."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, scoped_session

from ..census import key_usage
from ..database.reading import refuse_asynchronous
from ..keys.default import resolve_keyring
from ..option_values import instance, number
from ..wording import counted

__all__ = ["assert_encrypted"]

_ENCRYPTED: Final = ("current", "stale", "destroyed")


def assert_encrypted(bind: Engine | Connection | Session, column: Any, *, at_least: int = 1) -> None:
    """Assert that every stored value of *column* is an envelope under a key of the column's ring.

    The values are read as the database holds them, without the type that would decrypt them. Rows without a token are
    not counted.

    Args:
        bind: An engine, which sees committed rows only, or the connection or session of the test. An asynchronous one
            runs it as ``await session.run_sync(assert_encrypted, Login.token)``.
        column: A mapped attribute such as ``Session.token``, or a Core column.
        at_least: Fewer encrypted rows fail the assertion too, so that an empty table proves nothing.

    Raises:
        AssertionError: The message has numbers of rows and key ids, and no stored byte.
        ConfigurationError: Not an encrypted column, no key ring, or an asynchronous engine, connection or session;
            or another value that a parameter cannot have.
    """
    refuse_asynchronous(bind, "assert_encrypted")
    binds = (Engine, Connection, Session, scoped_session)
    instance("an Engine, a Connection or a Session", *binds).check(bind=bind)
    number("a number of rows, at least 0", whole=True).check(at_least=at_least)
    with bind.connect() if isinstance(bind, Engine) else nullcontext(bind) as connection:
        census: list[Any] = list(connection.execute(key_usage(column)))
    ring = resolve_keyring(column.type.keyring)
    counts: Counter[str] = Counter()
    for key_id, state, rows in census:
        is_known = state not in _ENCRYPTED or key_id in {*ring.key_ids, *ring.destroyed_key_ids}
        counts[state if is_known else f"under the unknown key {key_id}"] += rows
    encrypted = sum(counts.pop(state, 0) for state in _ENCRYPTED)
    others = ", ".join(f"{rows} {state}" for state, rows in sorted(counts.items()))
    if others:
        raise AssertionError(
            f"{column}: {counted(encrypted, 'row', ('is', 'are'))} encrypted; not so: {others}"
        )
    if encrypted < at_least:
        raise AssertionError(
            f"{column}: {counted(encrypted, 'row', ('is', 'are'))} encrypted, and the test expects {at_least} or more"
        )
