"""``recompute=True``: current rows whose index fields are not those of their token are rewritten, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from jwt_column.format import envelope
from migrations_helpers.engine.strategies.base import KEPT
from tests.engine.test_refused_rows import KEEPS, refused, trigger
from tests.support.workload import NEW, Sessions, after, create_sessions, seal, token

if TYPE_CHECKING:
    import sqlalchemy as sa

ROWS = 30
INDEXED: dict[str, Any] = {"fingerprints": ["jti"], "expose_expiry": True}


def prepared(engine: sa.Engine) -> Sessions:
    """Return a table of which row 7 is under the active key, with the fingerprint of another claim."""
    sessions = create_sessions(engine, ROWS, **INDEXED)
    sessions.reencrypt(engine, nice=0)
    other = INDEXED | {"fingerprints": ["sub"]}
    sessions.put(engine, (7,), seal(token(7), after(), **other))
    return sessions


def fingerprints(sessions: Sessions, engine: sa.Engine) -> dict[Any, Any]:
    return {key: envelope.parse(stored).fingerprints for key, stored in sessions.stored(engine).items()}


@pytest.mark.parametrize("strategy", ["auto", "cas"])
def test_the_row_that_differs_is_rewritten_and_no_other(strategy: str, engine: sa.Engine) -> None:
    sessions = prepared(engine)
    before = sessions.stored(engine)
    # The control: the stamp does not tell.
    assert sessions.reencrypt(engine, strategy=strategy, nice=0).recomputed == 0
    assert sessions.stored(engine) == before
    report = sessions.reencrypt(engine, strategy=strategy, recompute=True, nice=0)
    assert (report.recomputed, report.reencrypted, report.is_complete) == (1, 0, True)
    changed = {key for key, stored in sessions.stored(engine).items() if stored != before[key]}
    assert changed == {(7,)}
    assert (
        fingerprints(sessions, engine)[7,] == envelope.parse(seal(token(7), after(), **INDEXED)).fingerprints
    )
    assert sessions.decrypted(engine) == sessions.tokens
    assert sessions.reencrypt(engine, recompute=True, nice=0).recomputed == 0


@pytest.mark.parametrize("strategy", ["auto", "cas"])
def test_a_row_that_a_trigger_keeps_is_listed_and_not_counted(strategy: str, memory: sa.Engine) -> None:
    sessions = prepared(memory)
    before = sessions.stored(memory)
    trigger(memory, KEEPS, row=7)
    report = refused(sessions, memory, strategy=strategy, recompute=True).report
    assert (report.recomputed, report.refused) == (0, [(7, KEPT)])
    assert sessions.stored(memory) == before


def test_a_rehearsal_counts_them(engine: sa.Engine) -> None:
    sessions = prepared(engine)
    before = sessions.stored(engine)
    assert sessions.reencrypt(engine, recompute=True, dry_run=True).recomputed == 1
    assert sessions.stored(engine) == before


def test_stale_rows_are_re_encrypted_as_ever(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, ROWS, **INDEXED)
    report = sessions.reencrypt(engine, recompute=True, nice=0)
    assert (report.reencrypted, report.recomputed) == (ROWS, 0)
    assert sessions.census(engine) == {(NEW, "current"): ROWS}
