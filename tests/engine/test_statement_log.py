"""No statement of an adoption carries a token: statements are logged, by the application and by the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from migrations_helpers.engine.conversions import Adoption
from migrations_helpers.engine.options import Options
from migrations_helpers.engine.reencryption import convert_column
from migrations_helpers.engine.reflection import Subject
from tests.support.workload import Sessions, create_sessions, engine_on, run

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS = 12


def plaintext(engine: sa.Engine, storage: str) -> Sessions:
    sessions = create_sessions(engine, ROWS, storage=storage)
    for key, token in sessions.tokens.items():
        sessions.put(engine, key, token if storage == "text" else token.encode())
    return sessions


def sent(engine: sa.Engine) -> list[str]:
    """Return a list that gets every statement with its parameters."""
    found: list[str] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def record(_c: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        found.append(f"{statement} {parameters!r}")

    return found


def shown(engine: sa.Engine, sessions: Sessions, statements: list[str]) -> int:
    text = "\n".join(statements)
    return sum(token.rpartition(".")[2] in text for token in sessions.tokens.values())


@pytest.fixture
def myisam(request: pytest.FixtureRequest) -> Iterator[sa.Engine]:
    with engine_on(request.getfixturevalue("mariadb_database").url()) as engine:
        yield engine


@pytest.mark.parametrize("storage", ["binary", "text"])
@pytest.mark.parametrize("strategy", ["auto", "cas"])
def test_adoption_sends_no_token(strategy: str, storage: str, engine: sa.Engine) -> None:
    sessions = plaintext(engine, storage)
    statements = sent(engine)
    options = Options(strategy=strategy, nice=0)
    report = convert_column(engine, Subject("sessions", "token", sessions.type_()), Adoption, options)
    assert (report.reencrypted, shown(engine, sessions, statements)) == (ROWS, 0)
    assert sessions.decrypted(engine) == sessions.tokens


@pytest.mark.parametrize("storage", ["binary", "text"])
def test_a_table_without_row_locks_compares_digests(storage: str, myisam: sa.Engine) -> None:
    sessions = plaintext(myisam, storage)
    run(myisam, lambda c: c.exec_driver_sql("ALTER TABLE sessions ENGINE=MyISAM"))
    statements = sent(myisam)
    report = convert_column(myisam, Subject("sessions", "token", sessions.type_()), Adoption, Options())
    assert (report.reencrypted, shown(myisam, sessions, statements)) == (ROWS, 0)
    assert sessions.decrypted(myisam) == sessions.tokens


def test_control(engine: sa.Engine) -> None:
    """A comparison with the old value shows every token."""
    sessions = plaintext(engine, "text")
    statements = sent(engine)
    table = sessions.table

    def compare(connection: sa.Connection) -> Any:
        for token in sessions.tokens.values():
            connection.execute(sa.update(table).where(table.c.token == token).values(token=token))

    run(engine, compare)
    assert shown(engine, sessions, statements) == ROWS
