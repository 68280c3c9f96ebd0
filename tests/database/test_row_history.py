"""System-versioned tables of MariaDB: a re-encryption leaves old values, with their keys, in the history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from jwt_column import EncryptedJWT, KeyRing, audit, generate_key, key_usage
from jwt_column.census import history_usage
from jwt_column.cli.console import ExitCode
from jwt_column.database.row_history import keeps_history
from jwt_column.providers import write_key_file
from migrations_helpers import reencrypt
from tests.support.audited import codes, found
from tests.support.command_line import invoke
from tests.support.models import table_of
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from pathlib import Path


KEYS = [generate_key(), generate_key()]
BEFORE, AFTER = KeyRing([KEYS[1]]), KeyRing(KEYS)
OLD, NEW = BEFORE.active, AFTER.active


@pytest.fixture
def engine(mariadb: sa.Engine) -> sa.Engine:
    return mariadb


def sessions(ring: KeyRing) -> sa.Table:
    return table_of(EncryptedJWT(ring, context="sessions.token"))


def filled(engine: sa.Engine, *, versioned: bool) -> Any:
    """Make a table of three rows under the old key, one of which was in the clear before."""
    table = sessions(BEFORE)
    with engine.begin() as connection:
        table.create(connection)
        if versioned:
            connection.exec_driver_sql("ALTER TABLE sessions ADD SYSTEM VERSIONING")
        token = signed_token(exp=4_000_000_000)
        connection.execute(table.insert(), [{"id": n, "token": token} for n in (1, 2, 3)])
        raw = sa.table("sessions", sa.column("id"), sa.column("token", sa.LargeBinary))
        connection.execute(raw.update().where(raw.c.id == 3).values(token=token.encode()))
    with engine.begin() as connection:
        connection.execute(table.update().where(table.c.id == 3).values(token=token))
    return sessions(AFTER)


def test_old_values_of_the_history_are_counted_and_named(engine: sa.Engine, tmp_path: Path) -> None:
    """No row is under the old key any more, and the history still needs it."""
    table = filled(engine, versioned=True)
    report = reencrypt(engine, "sessions", "token", type_=table.c.token.type)
    assert (report.reencrypted, report.keeps_history) == (3, True)
    with engine.connect() as connection:
        assert [row.key_id for row in connection.execute(key_usage(table.c.token))] == [NEW]
        usage = history_usage(connection, table.c.token)
    assert usage[None] == 1
    assert usage[OLD] >= 3
    finding = found(audit(engine, table), "history-kept")
    assert f"under the key {OLD}" in finding.message
    assert "1 in the clear" in finding.message
    assert finding.count == sum(usage.values())
    retired = audit(engine, table, retired=[OLD])
    assert "which counts as retired" in found(retired, "retired-key").message

    ring = tmp_path / "ring.keys"
    write_key_file(ring, KEYS)
    url = engine.url.render_as_string(hide_password=False)
    column = ["--database", url, "--table", "sessions", "--column", "token"]
    remove = ["keys", "remove", OLD, "--file", str(ring), *column]
    result = invoke(*remove)
    assert result.exit_code == ExitCode.FAILURE
    assert "the history of a system-versioned table keeps" in result.stderr
    shown = invoke("reencrypt", *column, "--keyring", f"file:{ring}").stdout
    assert "history keeps the old values" in shown
    assert "No row here needs" not in shown
    # Control: without the history, the key can go.
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE HISTORY FROM sessions")
    assert "history-kept" not in codes(audit(engine, table))
    assert invoke(*remove).exit_code == 0


def test_a_table_without_versioning_has_no_history(engine: sa.Engine) -> None:
    """The control: the same changes leave nothing behind."""
    table = filled(engine, versioned=False)
    report = reencrypt(engine, "sessions", "token", type_=table.c.token.type)
    assert not report.keeps_history
    with engine.connect() as connection:
        assert not keeps_history(connection, table)
        assert not history_usage(connection, table.c.token)
    assert codes(audit(engine, table)) == []
    with sa.create_engine("sqlite://").connect() as connection:
        assert not keeps_history(connection, table)
