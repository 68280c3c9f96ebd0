"""Row-level security of PostgreSQL: a role that sees some rows gets an error where all rows matter."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import aliased

from jwt_column import (
    EncryptedJWT,
    KeyRing,
    ReencryptionError,
    audit,
    find_plaintext_tokens,
    generate_key,
    key_usage,
    purge_expired,
)
from jwt_column.cli.console import ExitCode
from jwt_column.database.reading import rolled_back
from jwt_column.database.row_security import AllRowsVisible, hidden_rows
from jwt_column.providers import write_key_file
from tests.support.command_line import invoke
from tests.support.models import mapped, store
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


KEY = "A" * 43
RING = KeyRing([KEY])


Session = mapped("sessions", token=EncryptedJWT(RING, expose_expiry=True))
SESSIONS: Any = Session.__table__


@pytest.fixture
def engine(postgresql: sa.Engine) -> sa.Engine:
    """Four rows, of which a policy shows the role two."""
    with postgresql.begin() as connection:
        store(connection, SESSIONS, [signed_token(exp=1_000)] * 4)
        connection.exec_driver_sql("ALTER TABLE sessions ENABLE ROW LEVEL SECURITY")
        connection.exec_driver_sql("CREATE POLICY tenant ON sessions USING (id <= 2)")
    return postgresql


@pytest.fixture
def role(engine: sa.Engine) -> Iterator[str]:
    """A role that the policy applies to; roles are those of the whole server."""
    name = f"jwt_column_{uuid4().hex[:12]}"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
        connection.exec_driver_sql(f"GRANT ALL ON SCHEMA public TO {name}")
        connection.exec_driver_sql(f"GRANT ALL ON sessions TO {name}")
    yield name
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {name}")
        connection.exec_driver_sql(f"DROP ROLE {name}")


@contextmanager
def acting_as(engine: sa.Engine, role: str) -> Iterator[sa.Connection]:
    with engine.connect() as connection:
        connection.exec_driver_sql(f"SET LOCAL ROLE {role}")
        yield connection


def test_the_census_fails_where_the_same_select_hides_rows(engine: sa.Engine, role: str) -> None:
    """Control: without the condition the server counts two of four rows, and none where none is visible."""
    unguarded = sa.select(sa.func.count()).select_from(SESSIONS)
    for policy, visible in (("id <= 2", 2), ("false", 0)):
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER POLICY tenant ON sessions USING ({policy})")
            assert connection.execute(key_usage(Session.token)).one().rows == 4
        for attribute in (Session.token, aliased(Session).token, SESSIONS.c.token):
            with acting_as(engine, role) as connection:
                assert connection.scalar(unguarded) == visible
                with pytest.raises(DBAPIError, match=f"sessions from the role {role}; use .* BYPASSRLS"):
                    connection.execute(key_usage(attribute))


def test_the_census_names_the_table_of_a_translated_schema(engine: sa.Engine, role: str) -> None:
    """Beside a table of the same name that the role sees whole."""
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "tenant O\'1"')
        connection.exec_driver_sql('CREATE TABLE "tenant O\'1".sessions (id INT PRIMARY KEY, token BYTEA)')
        connection.exec_driver_sql(f'GRANT ALL ON SCHEMA "tenant O\'1" TO {role}')
        connection.exec_driver_sql(f'GRANT ALL ON "tenant O\'1".sessions TO {role}')
    with acting_as(engine, role) as connection:
        translated = connection.execution_options(schema_translate_map={None: "tenant O'1"})
        assert translated.execute(key_usage(Session.token)).all() == []
        assert hidden_rows(translated, SESSIONS) is None
    with acting_as(engine, role) as connection:
        assert hidden_rows(connection, SESSIONS) is not None


def test_a_percent_sign_in_a_name_hides_no_policy(engine: sa.Engine, role: str) -> None:
    """The control is the row that a plain SELECT does not see."""
    with engine.begin() as connection:
        connection.execute(sa.text('CREATE TABLE "50%_off" (id INT PRIMARY KEY, token BYTEA)'))
        connection.execute(sa.text('INSERT INTO "50%_off" VALUES (1), (3)'))
        connection.execute(sa.text('ALTER TABLE "50%_off" ENABLE ROW LEVEL SECURITY'))
        connection.execute(sa.text('CREATE POLICY tenant ON "50%_off" USING (id <= 2)'))
        connection.execute(sa.text(f'GRANT ALL ON "50%_off" TO {role}'))
        assert hidden_rows(connection, sa.table("50%_off")) is None
    for schema in (None, "public"):
        named = sa.table("50%_off", sa.column("id", sa.Integer), schema=schema)
        with acting_as(engine, role) as connection:
            assert connection.scalars(sa.select(named.c.id)).all() == [1]
            reason = hidden_rows(connection, named)
            assert reason is not None
            assert f"hide rows of {named.fullname} from the role {role}" in reason
            with pytest.raises(DBAPIError, match="row-level security may hide rows"):
                connection.execute(sa.select(named.c.id).where(AllRowsVisible(named)))


def test_audit_and_scan_say_that_rows_are_hidden(engine: sa.Engine, role: str) -> None:
    """The owner's audit is the control: it is ok."""
    assert audit(engine, Session.token).ok
    for deep in (False, True):
        with acting_as(engine, role) as connection:
            report = audit(connection, Session.token, deep=deep)
        assert not report.ok
        (finding,) = [one for one in report.findings if one.code == "rows-hidden"]
        assert f"hide rows of sessions from the role {role}" in finding.message
        assert (report.columns[0].rows, report.columns[0].examined) == (0, 0)
    with acting_as(engine, role) as connection:
        scanned = find_plaintext_tokens(connection)
    assert not scanned.ok
    assert [one.table for one in scanned.failed] == ["sessions"]
    assert "a role with BYPASSRLS" in scanned.failed[0].reason


def test_a_block_that_reads_all_rows_fails_behind_a_view_too(engine: sa.Engine, role: str) -> None:
    """A view has no policy, so only the server knows that it hides rows. The setting ends with the block."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"SET LOCAL ROLE {role}")
        connection.exec_driver_sql("CREATE VIEW mine AS SELECT * FROM sessions")
    count = sa.text("SELECT count(*) FROM mine")
    with acting_as(engine, role) as connection:
        assert hidden_rows(connection, sa.table("mine")) is None
        with pytest.raises(DBAPIError, match="row-level security"), rolled_back(connection):
            connection.execute(count)
        assert connection.scalar(count) == 2
        assert connection.exec_driver_sql("SHOW row_security").scalar() == "on"


def test_the_owner_is_named_unless_the_policy_is_forced_on_it(engine: sa.Engine, role: str) -> None:
    """An owner under FORCE ROW LEVEL SECURITY needs a role with BYPASSRLS too."""
    with acting_as(engine, role) as connection:
        assert "; use the table's owner, " in str(hidden_rows(connection, SESSIONS))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE sessions OWNER TO {role}")
    with acting_as(engine, role) as connection:
        assert hidden_rows(connection, SESSIONS) is None
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE sessions FORCE ROW LEVEL SECURITY")
    with acting_as(engine, role) as connection:
        assert str(hidden_rows(connection, SESSIONS)).endswith("; use a role with BYPASSRLS")


def test_commands_count_all_rows_or_fail_and_a_purge_says_what_it_saw(
    engine: sa.Engine, role: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`keys remove` would delete a key that hidden rows need; a purge of a tenant's rows is legitimate."""
    monkeypatch.setenv("JWT_COLUMN_KEYS", KEY)
    table = ["--table", "sessions", "--column", "token"]

    def run(*arguments: str, as_role: bool = True) -> tuple[int, str, str]:
        url = engine.url.set(username=role, password=role) if as_role else engine.url
        database = ["--database", url.render_as_string(hide_password=False)]
        result = invoke(*arguments, *database, *table)
        return result.exit_code, result.stdout, result.stderr

    ring = tmp_path / "ring.keys"
    write_key_file(ring, [generate_key(), KEY])
    (old,) = RING.key_ids
    code, _, problem = run("keys", "remove", old, "--file", str(ring))
    assert code == ExitCode.DATABASE
    assert f"from the role {role}; use the table's owner" in problem
    assert old in KeyRing.from_uri(f"file:{ring}").key_ids
    code, _, problem = run("keys", "remove", old, "--file", str(ring), as_role=False)
    assert (code, "4 rows" in problem) == (ExitCode.FAILURE, True)
    code, output, _ = run("purge", "--json")
    assert (code, json.loads(output)["deleted"], json.loads(output)["row_security"]) == (0, 2, True)
    code, output, _ = run("purge")
    assert "Visible rows only" in output
    assert role in output
    code, output, _ = run("purge", "--json", as_role=False)
    assert (json.loads(output)["deleted"], json.loads(output)["row_security"]) == (2, False)


def test_the_gate_of_a_migration_fails_and_does_not_pass_over_hidden_rows(
    engine: sa.Engine, role: str
) -> None:
    """No row is visible, and every row is stale."""
    type_ = EncryptedJWT(KeyRing.generate(), context="sessions.token")
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER POLICY tenant ON sessions USING (false)")
    with acting_as(engine, role) as connection:
        op: Any = Operations(MigrationContext.configure(connection))
        with pytest.raises(ReencryptionError, match=f"from the role {role}; use the table's owner"):
            op.ensure_jwt_column_current("sessions", "token", type_=type_)


def test_a_purge_deletes_the_rows_that_its_role_sees(engine: sa.Engine, role: str) -> None:
    """The policy is the tenant's filter."""
    with acting_as(engine, role) as connection:
        assert purge_expired(connection, Session.token) == 2


def test_other_databases_have_no_condition() -> None:
    """SQLite and MariaDB have no policies."""
    assert str(sa.select(AllRowsVisible(SESSIONS))) == "SELECT 1 = 1 AS anon_1"
    with sa.create_engine("sqlite://").connect() as connection:
        assert hidden_rows(connection, SESSIONS) is None
