"""The connections that teams give Alembic in ``env.py``: a run commits batch by batch, or says what to change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from jwt_column import ConfigurationError
from tests.support.workload import NEW, OLD, column_type, create_sessions

if TYPE_CHECKING:
    from sqlalchemy import Connection

ROWS = 5


def operate(connection: Connection) -> Any:
    context = MigrationContext.configure(connection)
    with Operations.context(context) as op:
        operations: Any = op
        return operations.reencrypt_jwt_column("sessions", "token", type_=column_type())


def test_a_transaction_of_the_caller_is_refused_and_kept(engine: sa.Engine) -> None:
    """As pytest-alembic and the cookbook's ``config.attributes["connection"]`` may have it."""
    sessions = create_sessions(engine, ROWS)
    with engine.begin() as connection:
        with pytest.raises(ConfigurationError, match=r"engine\.connect\(\) instead of engine\.begin\(\)"):
            operate(connection)
        assert connection.in_transaction()
    assert sessions.census(engine) == {(OLD, "stale"): ROWS}


def test_a_statement_before_the_configuration_is_refused_too(engine: sa.Engine) -> None:
    create_sessions(engine, ROWS)
    with engine.connect() as connection:
        connection.execute(sa.select(1))
        with pytest.raises(ConfigurationError, match=r"execute nothing on it before context\.configure"):
            operate(connection)


def test_an_empty_table_passes_in_any_transaction(engine: sa.Engine) -> None:
    """So a fresh database is migrated from the first revision to the last."""
    create_sessions(engine, 0)
    with engine.begin() as connection:
        report = operate(connection)
    assert (report.table, report.reencrypted, report.is_complete) == ("sessions", 0, True)


def test_control(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, ROWS)
    with engine.connect() as connection:
        assert operate(connection).reencrypted == ROWS
    assert sessions.census(engine) == {(NEW, "current"): ROWS}
