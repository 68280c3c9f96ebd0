"""Rows that a database does not take: each is listed with the reason, and the run does all the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from jwt_column import ReencryptionError
from migrations_helpers import reencrypt
from migrations_helpers.engine.strategies import CompareAndSwap
from migrations_helpers.engine.strategies.base import KEPT
from migrations_helpers.engine.strategies.postgresql import PostgreSQLSkipLocked
from migrations_helpers.engine.strategies.sqlite import SQLiteFunction
from tests.support.workload import OLD, Sessions, create_sessions, every_server, seal, token

if TYPE_CHECKING:
    from migrations_helpers.engine.strategies import Batch, Strategy, Task

ROWS = 120
POISON = 51


def execute(engine: sa.Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def trigger(engine: sa.Engine, body: dict[str, str], *, row: int | None = POISON) -> None:
    """Create a trigger before each update of a row, or of every row."""
    name = engine.dialect.name
    is_it = "" if row is None else f"NEW.id = {row}"
    if name == "postgresql":
        action = body[name] if row is None else f"IF {is_it} THEN {body[name]}; END IF"
        execute(
            engine,
            f"CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {action}; RETURN NEW; END $$",
            "CREATE TRIGGER poison BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION poison()",
        )
    elif name == "sqlite":
        when = f"WHEN {is_it}" if is_it else ""
        execute(engine, f"CREATE TRIGGER poison {body[name]} {when} BEGIN {body['do']}; END")
    else:
        action = body["mariadb"] if row is None else f"IF {is_it} THEN {body['mariadb']}; END IF"
        execute(engine, f"CREATE TRIGGER poison BEFORE UPDATE ON sessions FOR EACH ROW {action}")


RAISES = {
    "postgresql": "RAISE EXCEPTION 'no'",
    "mariadb": "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no'",
    "sqlite": "BEFORE UPDATE ON sessions",
    "do": "SELECT RAISE(ABORT, 'no')",
}
KEEPS = {
    "postgresql": "NEW.token := OLD.token",
    "mariadb": "SET NEW.token = OLD.token",
    "sqlite": "AFTER UPDATE ON sessions",
    "do": "UPDATE sessions SET token = OLD.token WHERE id = OLD.id",
}
CODES = {"postgresql": "P0001", "mariadb": "1644", "sqlite": "SQLITE_CONSTRAINT_TRIGGER"}


def refused(sessions: Sessions, engine: sa.Engine, **options: Any) -> Any:
    with pytest.raises(ReencryptionError) as failure:
        sessions.reencrypt(engine, nice=0, **options)
    assert sessions.tokens == sessions.decrypted(engine)
    return failure.value


@pytest.mark.each_server
@pytest.mark.parametrize("strategy", ["auto", "cas"])
def test_one_poison_row_stops_no_column(strategy: str, engine: sa.Engine) -> None:
    sessions = create_sessions(engine, ROWS)
    trigger(engine, RAISES)
    error = refused(sessions, engine, strategy=strategy)
    report = error.report
    assert (error.reason, report.reencrypted, report.unwritable, report.remaining) == (
        "rows",
        ROWS - 1,
        [POISON],
        1,
    )
    ((key, name),) = report.refused
    assert (key, CODES[engine.dialect.name] in name) == (POISON, True)
    assert f"primary keys {POISON}: {name}" in str(error)
    assert sessions.census(engine)[OLD, "stale"] == 1
    assert report.to_dict()["refused"] == [[POISON, name]]


@pytest.mark.each_server
@every_server
def test_a_row_that_the_application_holds_is_not_taken_for_the_poison_row(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, ROWS)
    trigger(engine, RAISES)
    with engine.connect() as holder:
        before_it = sa.select(sessions.table).where(sessions.table.c.id == POISON - 1)
        holder.execute(before_it.with_for_update())
        report = refused(sessions, engine, max_passes=1).report
    assert ([key for key, _ in report.refused], report.reencrypted) == ([POISON], ROWS - 2)


@pytest.mark.parametrize("strategy", ["auto", "cas"])
def test_a_batch_of_one_row_is_that_row_alone(strategy: str, memory: sa.Engine) -> None:
    """Down to it a batch is halved, and what it is refused for is written down for its first row."""
    sessions = create_sessions(memory, 3)
    trigger(memory, RAISES, row=2)
    report = refused(sessions, memory, strategy=strategy, batch_size=1).report
    assert ([key for key, _ in report.refused], report.reencrypted) == ([2], 2)


def test_a_poison_row_ends_the_run_where_that_is_asked_for(engine: sa.Engine) -> None:
    """The control: as every run did before."""
    sessions = create_sessions(engine, ROWS)
    trigger(engine, RAISES)
    error = refused(sessions, engine, on_row_error="fail", batch_size=ROWS)
    assert (error.reason, error.report.unwritable, error.report.is_complete) == ("database", [], False)


@pytest.mark.parametrize("strategy", ["auto", "cas"])
@pytest.mark.parametrize("row", [POISON, None], ids=["one", "all"])
def test_rows_whose_old_value_a_trigger_writes_back_are_listed_at_once(
    strategy: str, row: int | None, engine: sa.Engine
) -> None:
    """Ten passes said "500 rewritten" of 50, and that the application writes the old way."""
    sessions = create_sessions(engine, ROWS)
    trigger(engine, KEEPS, row=row)
    report = refused(sessions, engine, strategy=strategy).report
    kept = [row] if row else list(range(1, ROWS + 1))
    assert (sorted(report.refused), report.reencrypted) == ([(key, KEPT) for key in kept], ROWS - len(kept))
    assert report.passes <= 2


@pytest.mark.parametrize("strategy", ["auto", "cas"])
def test_a_row_whose_old_value_is_written_back_is_no_altered_token(strategy: str, memory: sa.Engine) -> None:
    """Every new value is read again, and this one holds the same token: it is not written, and not another."""
    sessions = create_sessions(memory, ROWS)
    trigger(memory, KEEPS)
    report = refused(sessions, memory, strategy=strategy, verify="tokens").report
    assert (report.refused, report.reencrypted) == ([(POISON, KEPT)], ROWS - 1)


def test_rows_that_a_trigger_skips_are_listed_at_once(postgresql: sa.Engine) -> None:
    sessions = create_sessions(postgresql, ROWS)
    trigger(postgresql, {"postgresql": "RETURN NULL"})
    report = refused(sessions, postgresql).report
    assert (report.refused, report.reencrypted, report.passes) == ([(POISON, KEPT)], ROWS - 1, 1)


class Blind:
    """A strategy that is told of no trigger, as where the role of the run cannot see them."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy

    def run_batch(self, task: Task) -> Batch:
        return self._strategy.run_batch(task._replace(confirm=False))


@pytest.mark.parametrize(
    "strategy", [SQLiteFunction(), CompareAndSwap(can_lock=True), CompareAndSwap(can_lock=False)]
)
def test_rows_that_a_trigger_skips_unseen_are_told_by_the_row_count(
    strategy: Strategy, memory: sa.Engine
) -> None:
    sessions = create_sessions(memory, ROWS)
    trigger(memory, {"sqlite": "BEFORE UPDATE ON sessions", "do": "SELECT RAISE(IGNORE)"})
    report = refused(sessions, memory, strategy=Blind(strategy)).report
    assert (report.refused, report.reencrypted, report.passes) == ([(POISON, KEPT)], ROWS - 1, 1)


def test_so_are_those_of_a_batch_that_postgresql_writes_in_parts(postgresql: sa.Engine) -> None:
    sessions = create_sessions(postgresql, ROWS)
    trigger(postgresql, {"postgresql": "RETURN NULL"})
    strategy = Blind(PostgreSQLSkipLocked(postgresql.dialect))
    report = refused(sessions, postgresql, strategy=strategy).report
    assert (report.refused, report.reencrypted, report.passes) == ([(POISON, KEPT)], ROWS - 1, 1)


def test_a_constraint_that_is_looked_at_when_a_transaction_ends(postgresql: sa.Engine) -> None:
    """The error comes from COMMIT."""
    sessions = create_sessions(postgresql, ROWS)
    execute(
        postgresql,
        f"CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.id = {POISON} THEN "
        "RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation'; END IF; RETURN NULL; END $$",
        "CREATE CONSTRAINT TRIGGER poison AFTER UPDATE ON sessions DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION poison()",
    )
    report = refused(sessions, postgresql).report
    ((key, name),) = report.refused
    assert (key, name.split()[-1], report.reencrypted) == (POISON, "23514", ROWS - 1)


def test_a_check_that_old_rows_do_not_meet(postgresql: sa.Engine) -> None:
    sessions = create_sessions(postgresql, ROWS)
    execute(postgresql, f"ALTER TABLE sessions ADD CHECK (id NOT IN ({POISON}, {POISON + 1})) NOT VALID")
    report = refused(sessions, postgresql).report
    assert report.unwritable == [POISON, POISON + 1]
    assert {name.split()[-1] for _, name in report.refused} == {"23514"}


def test_a_database_that_refuses_every_row_is_no_fault_of_the_rows(
    postgresql: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("migrations_helpers.engine.run._REFUSED_AT_FIRST", 5)
    sessions = create_sessions(postgresql, ROWS)
    trigger(postgresql, RAISES, row=None)
    error = refused(sessions, postgresql)
    assert (error.reason, error.report.unwritable_count) == ("database", 5)


def test_a_right_that_is_missing_is_no_fault_of_a_row(postgresql: sa.Engine) -> None:
    """The run ends before its first batch, instead of halving it."""
    sessions = create_sessions(postgresql, ROWS)
    execute(
        postgresql,
        "CREATE ROLE reader_of_the_test",
        "GRANT SELECT ON sessions TO reader_of_the_test",
    )
    try:
        with postgresql.connect() as connection:
            connection.exec_driver_sql("SET ROLE reader_of_the_test")
            connection.commit()
            with pytest.raises(ReencryptionError, match="may not write sessions; GRANT UPDATE"):
                reencrypt(connection, "sessions", "token", type_=sessions.type_())
            connection.rollback()
            connection.exec_driver_sql("RESET ROLE")
            connection.commit()
    finally:
        execute(postgresql, "DROP OWNED BY reader_of_the_test", "DROP ROLE reader_of_the_test")


def test_a_run_that_died_is_not_complete(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, ROWS)
    reports: list[Any] = []

    def die(report: Any) -> None:
        reports.append(report)
        if report.reencrypted:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        sessions.reencrypt(engine, batch_size=50, progress=die, nice=0)
    assert 0 < reports[-1].reencrypted < ROWS
    assert not reports[-1].is_complete
    # The control: the next run ends, and is.
    assert sessions.reencrypt(engine, nice=0).is_complete


def test_an_application_that_writes_the_old_way_is_told_from_a_trigger(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 3)

    def write(report: Any) -> None:
        if report.reencrypted:
            sessions.put(engine, (1,), seal(token(1)))

    report = sessions.reencrypt(engine, nice=0, progress=write, max_passes=2)
    assert (report.refused, report.remaining, report.reason) == ([], 1, "writers")


@pytest.mark.parametrize("action", ["substr(NEW.token, 1, 60)", "NULL"])
def test_a_token_that_a_trigger_destroys_is_kept(engine: sa.Engine, action: str) -> None:
    """No option is needed for that: a stamp is the same in what is left of an envelope."""
    sessions = create_sessions(engine, ROWS)
    destroys = {
        "postgresql": f"NEW.token := {action}",
        "mariadb": f"SET NEW.token = {action}",
        "sqlite": "AFTER UPDATE ON sessions",
        "do": f"UPDATE sessions SET token = {action} WHERE id = NEW.id",
    }
    trigger(engine, destroys)
    assert refused(sessions, engine).reason == "tokens"
