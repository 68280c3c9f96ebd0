"""After a rename no row opens: the audit names the rename first, and proves it without a change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from jwt_column import ConfigurationError, EncryptedJWT, audit
from jwt_column.auditing.kinds import KINDS
from jwt_column.column.cipher import TokenCipher
from tests.support.audited import AFTER, codes, envelope, examine, found, put, token
from tests.support.models import table_of

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.fixture
def sqlite() -> sa.Engine:
    return sa.create_engine("sqlite://", poolclass=sa.StaticPool)


def renamed(engine: sa.Engine, *, damaged: Sequence[int] = (), rows: int = 3, **options: Any) -> sa.Table:
    """Return the table ``logins``, whose rows were written when it was called ``sessions``."""
    logins = table_of(EncryptedJWT(AFTER, **options), name="logins")
    sessions = table_of(EncryptedJWT(AFTER, **options))
    logins.create(engine)
    with engine.begin() as connection:
        for number in range(1, rows + 1):
            stored = envelope(sessions.c.token, token(jti=f"{number}"))
            assert isinstance(stored, bytes)
            put(connection, logins.c.token, [stored[:-1] if number in damaged else stored], first=number)
    return logins


def test_a_table_none_of_whose_rows_opens_was_renamed(sqlite: sa.Engine) -> None:
    """Nothing advises to change or clear rows that are whole."""
    logins = renamed(sqlite)
    finding = found(examine(sqlite, logins), "no-row-opens")
    assert finding.message == "3 rows hold envelopes, and none of them opens in the context 'logins.token'."
    assert finding.action.startswith("Look for a rename")
    assert "context=OLD" in finding.action
    assert not any(word in finding.action for word in ("backup", "clear", "changed"))
    # Control: beside one row that opens, the others may have been changed; a rename is still named first.
    with sqlite.begin() as connection:
        put(connection, logins.c.token, [envelope(logins.c.token, token(jti="4"))], first=4)
    finding = found(examine(sqlite, logins), "undecryptable")
    assert finding.count == 3
    assert finding.action.index("renamed") < finding.action.index("backup")


def test_the_old_context_is_tried_and_proves_the_rename(sqlite: sa.Engine) -> None:
    """The tokens are then examined as any others, and a wrong name proves nothing."""
    logins = renamed(sqlite, damaged=[2])
    report = audit(sqlite, logins, deep=True, try_contexts=["people.token", "sessions.token"])
    finding = found(report, "other-context")
    assert (finding.count, finding.primary_keys) == (2, ((1,), (3,)))
    assert finding.message == "2 rows open in another context: sessions.token."
    assert found(report, "undecryptable").primary_keys == ((2,),)
    assert report.options["try_contexts"] == "people.token, sessions.token"
    report = audit(sqlite, logins, deep=True, try_contexts=["people.token"])
    assert "other-context" not in codes(report)
    assert found(report, "no-row-opens").count == 3
    pinned = table_of(EncryptedJWT(AFTER, context="sessions.token"), name="logins")
    assert codes(examine(sqlite, pinned)) == ["undecryptable"]


def test_damage_alone_is_no_rename(sqlite: sa.Engine) -> None:
    """A truncated envelope fails in any context."""
    table = table_of(EncryptedJWT(AFTER))
    table.create(sqlite)
    stored = envelope(table.c.token, token())
    with sqlite.begin() as connection:
        put(connection, table.c.token, [stored[:20]])
    assert "undecryptable" in codes(examine(sqlite, table))


def test_contexts_are_tried_by_a_deep_audit_only(sqlite: sa.Engine) -> None:
    """A text is refused in place of a list."""
    for options in ({"try_contexts": ["a.b"]}, {"try_contexts": "a.b", "deep": True}):
        with pytest.raises(ConfigurationError):
            audit(sqlite, renamed(sa.create_engine("sqlite://")), **options)


@pytest.mark.parametrize("code", ["undecryptable", "moved", "no-row-opens", "other-context"])
def test_context_comes_before_any_other_remedy(code: str) -> None:
    """No advice destroys rows that a rename has closed."""
    action = KINDS[code].action
    assert "context=" in action
    assert "renamed" in action or "rename " in action


def test_an_audit_of_many_columns_is_linear(sqlite: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """800 tables once built 1,280,800 ciphers: each column made one for every other."""
    made = 0
    real = TokenCipher.__init__

    def count(*args: Any) -> None:
        nonlocal made
        made += 1
        real(*args)

    monkeypatch.setattr(TokenCipher, "__init__", count)
    ciphers = []
    for tables in (10, 20):
        metadata = sa.MetaData()
        for number in range(tables):
            table_of(EncryptedJWT(AFTER), name=f"t{tables}_{number}", metadata=metadata)
        metadata.create_all(sqlite)
        made = 0
        examine(sqlite, metadata)
        ciphers.append(made)
    assert ciphers[1] == 2 * ciphers[0]
    assert ciphers[0] <= 10 * 10
