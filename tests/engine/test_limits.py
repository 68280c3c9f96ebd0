"""Limits of a run, each counted: retries, waits for locks, bytes of a statement, rows that a shard visits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from jwt_column.errors import InvalidTokenError, ReencryptionError
from migrations_helpers.engine.conversions import Adoption, limited
from migrations_helpers.engine.options import Options
from migrations_helpers.engine.reencryption import convert_column
from migrations_helpers.engine.reflection import Subject
from migrations_helpers.engine.shards import Shard
from migrations_helpers.engine.strategies import CompareAndSwap
from migrations_helpers.engine.strategies.base import _ROW_BYTES, Changes, in_chunks
from tests.support.tokens import compact
from tests.support.workload import after, create_sessions, run_connection, seal, token

if TYPE_CHECKING:
    from jwt_column import EncryptedJWT


class Locked:
    """A strategy whose database is always locked."""

    def __init__(self) -> None:
        self.calls = 0

    def run_batch(self, *_: Any) -> Any:
        self.calls += 1
        assert self.calls < 20, "the run does not give up"
        raise OperationalError("UPDATE", None, Exception("database is locked"))


def test_a_batch_is_retried_so_often_and_no_more(memory: sa.Engine) -> None:
    locked = Locked()
    with pytest.raises(ReencryptionError, match="the database refused a batch") as failure:
        create_sessions(memory, 3).reencrypt(memory, strategy=locked, max_retries=2)
    assert locked.calls == 3
    report: Any = failure.value.report
    assert report.retries == 2


def test_postgresql_waits_for_a_lock_no_longer_than_it_was_told(postgresql: sa.Engine) -> None:
    """Well under the second after which the application could be the victim of a deadlock."""
    create_sessions(postgresql, 1)
    connection = run_connection(postgresql, lock_timeout=0.05)
    try:
        with postgresql.begin() as application:
            application.exec_driver_sql("SELECT * FROM sessions FOR UPDATE")
            began = time.monotonic()
            # The control: without a limit this waits until the other limit, or until the test ends.
            update = "SET LOCAL statement_timeout = '20s'; UPDATE sessions SET token = token"
            with pytest.raises(OperationalError), connection.transaction() as transaction:
                transaction.exec_driver_sql(update)
            assert time.monotonic() - began < 10
    finally:
        connection.close()


def test_mariadb_waits_for_a_lock_no_longer_than_it_was_told(mariadb: sa.Engine) -> None:
    """And takes its time where the application's own limits would end a batch, or the wait for a key server."""
    show = (
        "SELECT @@innodb_lock_wait_timeout, @@max_statement_time, @@idle_transaction_timeout, "
        "@@idle_write_transaction_timeout, @@wsrep_sync_wait, @@tx_isolation, "
        "FIND_IN_SET('STRICT_ALL_TABLES', @@sql_mode) > 0"
    )
    with mariadb.connect() as application:
        for setting in ("max_statement_time = 7", "idle_transaction_timeout = 7", "sql_mode = ''"):
            application.exec_driver_sql(f"SET SESSION {setting}")
        before = application.exec_driver_sql(show).one()
        application.rollback()
        connection = run_connection(application, lock_timeout=2)
        within = connection.sqlalchemy.exec_driver_sql(show).one()
        connection.close()
        assert application.exec_driver_sql(show).one() == before
    assert before != within == (2, 0, 600, 0, 0, "READ-COMMITTED", 1)


@pytest.mark.parametrize(("with_old", "statements"), [(False, [4]), (True, [2, 2])])
def test_old_values_count_towards_the_bytes_of_a_statement(with_old: bool, statements: list[int]) -> None:
    changes = Changes(rows=[(number, b"o" * (10 + _ROW_BYTES)) for number in range(4)], new=[b"n" * 10] * 4)
    assert [
        len(chunk) for chunk in in_chunks(changes, 4 * (10 + _ROW_BYTES), with_old=with_old)
    ] == statements


@pytest.mark.parametrize("can_lock", [True, False])
def test_a_row_that_was_superseded_is_no_foreign_one(memory: sa.Engine, can_lock: bool) -> None:
    """Compare-and-swap counts which rows it wrote; the one that the application wrote is none of them."""
    sessions = create_sessions(memory, 2, storage="text")
    for number in (1, 2):
        sessions.put(memory, (number,), f"foreign {number}")
    written = False

    def decrypt(stored: str) -> str:
        nonlocal written
        if not written:
            written = True
            sessions.put(memory, (1,), str(seal(token(1), after(), storage="text")))
        return token(int(stored[-1]))

    def adopt(type_: EncryptedJWT, value: Any, **options: Any) -> Adoption:
        return Adoption(type_, value, decrypt, **options)

    options = Options(strategy=CompareAndSwap(can_lock=can_lock), nice=0)
    report = convert_column(memory, Subject("sessions", "token", sessions.type_()), adopt, options)
    assert (report.reencrypted, report.by_key_id, report.superseded) == (1, {"foreign": 1}, 1)


def test_a_value_that_fills_its_column_is_written_and_a_longer_one_is_not() -> None:
    convert = limited(10, lambda stored: stored, "s.token")
    assert [convert(value) for value in (b"x" * 10, "é" * 5)] == [b"x" * 10, "é" * 5]
    for value in (b"x" * 11, "é" * 6):
        with pytest.raises(InvalidTokenError, match="and the column holds 10"):
            convert(value)


def test_an_unsigned_token_is_unwritable_where_the_column_takes_none(memory: sa.Engine) -> None:
    """It was read, so it is not reported as damaged."""
    sessions = create_sessions(memory, 2, storage="text")
    sessions.put(memory, (1,), compact({"alg": "none"}, {"sub": "alice"}, b""))
    with pytest.raises(ReencryptionError) as failure:
        convert_column(memory, Subject("sessions", "token", sessions.type_()), Adoption, Options(nice=0))
    report: Any = failure.value.report
    assert (report.undecryptable, report.unwritable) == ([], [1])


def test_a_shard_visits_its_own_rows_only(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row is read by one shard: a shard that worked on the whole table would do the work of all."""
    from concurrent.futures import ThreadPoolExecutor

    engine = sa.create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    sessions = create_sessions(engine, 90)
    visited: list[int] = []
    work = Shard.__call__

    def count(shard: Shard) -> Any:
        report = work(shard)
        visited.append(report.reencrypted)
        return report

    monkeypatch.setattr(Shard, "__call__", count)
    with ThreadPoolExecutor(1) as executor:
        report = sessions.reencrypt(engine, shards=3, executor=executor, nice=0)
    engine.dispose()
    assert (sorted(visited), report.reencrypted) == ([30, 30, 30], 90)
