"""A fleet: processes report what they have loaded, and only those who have the keys can write such a report."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from jwt_column import ConfigurationError, KeyRing, generate_key, providers
from jwt_column import fleet as fleets
from jwt_column.database.clock import database_time
from jwt_column.fleet import Fleet, FleetProcess, fleet_table
from jwt_column.keys.data_key import DataKey
from tests.support.command_line import keys
from tests.support.forks import raw_fork

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.databases import Database

OLD, NEW = generate_key(), generate_key()
OLD_ID, NEW_ID = DataKey(OLD).id, DataKey(NEW).id


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "jwt.keys"
    providers.write_key_file(path, [OLD])
    return path


def rotate(path: Path) -> None:
    """Make the new key active, as the fleet's operator does."""
    providers.write_key_file(path, [NEW, OLD], overwrite=True)


def ring_of(path: Path, fleet: Callable[[KeyRing], object]) -> KeyRing:
    """Return a ring whose thread has not been started; refresh() and acknowledge() are what it would call."""
    return KeyRing.from_uri(f"file:{path}", refresh="watch", report_to=fleet)


def change(engine: sa.Engine, table: sa.Table, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(table.update().values(**values))


def row_of(engine: sa.Engine, table: sa.Table) -> dict[str, Any]:
    with engine.connect() as connection:
        return dict(connection.execute(table.select()).mappings().one())


@pytest.fixture
def fleet(engine: sa.Engine) -> Fleet:
    fleet = Fleet(engine)
    fleet.table.create(engine)
    return fleet


def test_a_process_reports_what_it_has_loaded(driver_engine: sa.Engine, key_file: Path) -> None:
    fleet = Fleet(driver_engine)
    fleet.table.create(driver_engine)
    ring = ring_of(key_file, fleet)
    ring.acknowledge()
    (one,) = fleet.processes(ring)
    assert (one.host, one.pid, one.revision) == (os.uname().nodename, os.getpid(), 0)
    assert (one.key_ids, one.encrypting, one.error) == ((OLD_ID,), (OLD_ID,), None)
    assert (one.is_live, one.is_authentic, one.seen <= 5, one.age <= 5) == (True, True, True, True)
    rotate(key_file)
    ring.refresh()
    (one,) = fleet.processes(ring)
    assert (one.key_ids, one.encrypting, one.is_authentic) == ((NEW_ID, OLD_ID), (NEW_ID,), True)


def test_a_report_takes_no_connection_of_the_application(sqlite_database: Database, key_file: Path) -> None:
    """Neither from its pool, nor in its transaction."""
    engine = sa.create_engine(sqlite_database.url(), pool_size=1, max_overflow=0, pool_timeout=1)
    fleet = Fleet(engine)
    fleet.table.create(engine)
    with engine.connect():
        ring_of(key_file, fleet).acknowledge()
    assert len(fleet.processes(KeyRing([OLD]))) == 1
    engine.dispose()


def test_options_of_the_engine_hold_for_reports(engine: sa.Engine, key_file: Path) -> None:
    translated = engine.execution_options(schema_translate_map={"elsewhere": None})
    fleet = Fleet(translated, schema="elsewhere", table="loaded")
    fleet.table.create(translated)
    ring_of(key_file, fleet).acknowledge()
    assert len(fleet.processes(KeyRing([OLD]))) == 1
    assert sa.inspect(engine).has_table("loaded")


def test_rings_and_processes_have_rows_of_their_own(fleet: Fleet, key_file: Path) -> None:
    ring = ring_of(key_file, fleet)
    other = ring.with_active(OLD_ID)
    ring.acknowledge()
    ring.acknowledge()
    other.acknowledge()
    assert len(fleet.processes(ring)) == 2

    def report() -> bytes:
        ring.report_when_due()
        return str(os.getpid()).encode()

    child = int(raw_fork(report))
    assert [one.pid for one in fleet.processes(ring)].count(child) == 1
    assert len(fleet.processes(ring)) == 3


def test_the_thread_reports_at_once_and_after_each_change(
    engine: sa.Engine, fleet: Fleet, key_file: Path
) -> None:
    ring = ring_of(key_file, fleet)
    assert fleet.processes(KeyRing([OLD])) == []
    assert ring.active == OLD_ID  # The first use starts the thread.
    wait_until(lambda: len(fleet.processes(KeyRing([OLD]))) == 1)
    rotate(key_file)
    wait_until(lambda: fleet.processes(KeyRing([NEW, OLD]))[0].encrypting == (NEW_ID,))


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_report_that_fails_is_logged_and_harms_nothing(
    sqlite: sa.Engine, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ring = ring_of(key_file, Fleet(sqlite))  # There is no table.
    with caplog.at_level(logging.WARNING, "jwt_column.keys"):
        ring.refresh()
    assert [record.message for record in caplog.records] == [
        "the state of the key ring could not be reported (OperationalError)"
    ]
    assert ring.status.error is None
    with pytest.raises(sa.exc.OperationalError):
        ring.acknowledge()


def test_a_report_that_hangs_does_not_stop_the_refresh(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jwt_column.keys.ring._REPORT_PATIENCE", 0.05)
    begun, end = [], threading.Event()

    def hang(ring: KeyRing) -> None:
        begun.append(ring.active)
        end.wait(60)

    ring = ring_of(key_file, hang)
    ring.refresh()
    rotate(key_file)
    before = time.monotonic()
    ring.refresh()
    assert ring.active == NEW_ID
    assert time.monotonic() - before < 10
    # One at a time: the next report waits for the end of this one.
    assert begun == [OLD_ID]
    end.set()

    def has_reported() -> bool:
        ring.report_when_due()
        return begun == [OLD_ID, NEW_ID]

    wait_until(has_reported)


def test_any_callable_takes_reports(key_file: Path) -> None:
    told: list[tuple[str, ...]] = []
    ring = ring_of(key_file, lambda ring: told.append(ring.report().key_ids))
    for _ in range(3):
        ring.refresh()
    rotate(key_file)
    for _ in range(3):
        ring.refresh()
    # Once at first, and once after the change: the next is due in ten seconds.
    assert told == [(OLD_ID,), (NEW_ID, OLD_ID)]


def test_a_report_of_keys_without_a_file_has_no_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEYS", OLD)
    for ring in (KeyRing([OLD]), KeyRing.from_uri("env:SOME_KEYS")):
        report = ring.report()
        assert (report.revision, report.active_since, report.error) == (0, None, None)


def test_a_row_has_the_beginning_of_an_error_and_the_next_whole_interval(key_file: Path) -> None:
    report = ring_of(key_file, lambda _: None).report()._replace(error="e" * 600)
    members = json.loads(fleets._to_json(report))
    assert (members["error"], members["interval"]) == ("e" * 500, 11)


def test_a_report_needs_a_refresh(key_file: Path, fleet: Fleet) -> None:
    for options in ({"report_to": fleet}, {"report_to": "x", "refresh": 60}):
        with pytest.raises(ConfigurationError, match="report_to"):
            KeyRing.from_uri(f"file:{key_file}", **options)
    KeyRing([OLD]).acknowledge()  # Nobody is told.


def test_an_asynchronous_engine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="synchronous Engine"):
        Fleet(create_async_engine("sqlite+aiosqlite://"))  # type: ignore[arg-type]


class TestForgery:
    """What a writer of the database without a key can do."""

    def test_no_part_of_a_row_can_be_changed(self, engine: sa.Engine, fleet: Fleet, key_file: Path) -> None:
        ring = ring_of(key_file, fleet)
        ring.acknowledge()
        good = row_of(engine, fleet.table)
        members = json.loads(good["report"])
        changes: list[dict[str, Any]] = [
            {"report": json.dumps(members | {name: value}, sort_keys=True)}
            for name, value in {
                "host": "elsewhere",
                "pid": 1,
                "revision": 9,
                "key_ids": [OLD_ID, NEW_ID],
                "age": 0 if members["age"] else 1,
                "error": "none",
                "interval": 10**6,
            }.items()
        ]
        changes += [{"process": "f" * 32}, {"mac": "A" * 43}, {"reported_at": good["reported_at"] + 1}]
        for changed in changes:
            change(engine, fleet.table, **(good | changed))
            (one,) = fleet.processes(ring)
            assert not one.is_authentic, changed
            # It counts as a process that has nothing, and so it stops a rotation.
            assert fleets.without_key([one], OLD_ID) == [one]
            assert fleets.encrypting_under([one], ["00000000"]) == [one]
        change(engine, fleet.table, **good)
        (one,) = fleet.processes(ring)  # The control.
        assert one.is_authentic
        assert fleets.without_key([one], OLD_ID) == []
        assert fleets.encrypting_under([one], ["00000000"]) == []

    def test_a_key_of_the_ring_is_needed(
        self, engine: sa.Engine, fleet: Fleet, key_file: Path, tmp_path: Path
    ) -> None:
        providers.write_key_file(tmp_path / "strange.keys", [NEW])
        ring_of(tmp_path / "strange.keys", fleet).acknowledge()
        assert fleet.processes(KeyRing([OLD])) == []  # Another ring's.
        row = row_of(engine, fleet.table)
        change(engine, fleet.table, report=row["report"].replace(NEW_ID, OLD_ID))
        (one,) = fleet.processes(KeyRing([OLD]))
        assert not one.is_authentic

    def test_an_old_row_cannot_look_fresh(self, engine: sa.Engine, fleet: Fleet, key_file: Path) -> None:
        ring = ring_of(key_file, fleet)
        ring.acknowledge()
        row = row_of(engine, fleet.table)
        with engine.connect() as connection:
            now = int(database_time(connection))
        assert abs(row["reported_at"] - now) <= 2
        old = row["reported_at"] - 3600
        mac = fleets._mac(ring.snapshot().active, row["process"], old, row["report"])
        change(engine, fleet.table, reported_at=old, mac=mac)
        (one,) = fleet.processes(ring)
        assert (one.is_live, one.is_authentic) == (False, True)
        assert fleets.without_key([one], NEW_ID) == []
        change(engine, fleet.table, reported_at=now)
        (one,) = fleet.processes(ring)
        assert (one.is_live, one.is_authentic) == (True, False)

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "{}", "null", '{"key_ids": 1}', "9" * 5000, "[" * 100_000]
    )
    def test_a_row_of_any_text_is_passed_over(self, sqlite: sa.Engine, key_file: Path, text: str) -> None:
        fleet = Fleet(sqlite)
        fleet.table.create(sqlite)
        ring = ring_of(key_file, fleet)
        ring.acknowledge()
        good = json.loads(row_of(sqlite, fleet.table)["report"])
        for report in (text, json.dumps(good | {"key_ids": [1]}), json.dumps(good | {"pid": "1"})):
            change(sqlite, fleet.table, report=report)
            assert fleet.processes(ring) == []
        change(sqlite, fleet.table, report=json.dumps(good | {"encrypting": []}))
        assert [one.is_authentic for one in fleet.processes(ring)] == [False]


def test_a_process_is_live_until_half_a_minute_after_three_missed_reports(
    engine: sa.Engine, fleet: Fleet, key_file: Path
) -> None:
    ring = ring_of(key_file, fleet)
    ring.acknowledge()
    row = row_of(engine, fleet.table)
    # A watch reports every 10 seconds, and a row says the next whole number. Of a row that anyone may have written,
    # the interval is not obeyed.
    for age, is_authentic, is_live in (
        (60, True, True),
        (68, True, False),
        (206, False, True),
        (212, False, False),
    ):
        reported_at = int(time.time()) - age
        mac = fleets._mac(ring.snapshot().active, row["process"], reported_at, row["report"])
        change(engine, fleet.table, reported_at=reported_at, mac=mac if is_authentic else "A" * 43)
        (one,) = fleet.processes(ring)
        assert (one.is_authentic, one.is_live) == (is_authentic, is_live), age


def test_rows_of_ended_processes_go_after_a_day(engine: sa.Engine, fleet: Fleet, key_file: Path) -> None:
    ring_of(key_file, fleet).acknowledge()
    for age, left in ((fleets._FORGOTTEN_AFTER - 60, 2), (fleets._FORGOTTEN_AFTER + 60, 2)):
        change(engine, fleet.table, reported_at=int(time.time()) - age)
        ring_of(key_file, fleet).acknowledge()
        with engine.connect() as connection:
            rows = connection.execute(sa.select(sa.func.count()).select_from(fleet.table)).scalar_one()
        # The second time both old rows are gone, and then there is the new one.
        assert rows == (left if age < fleets._FORGOTTEN_AFTER else 1)


def test_many_threads_that_report_write_one_row(fleet: Fleet, key_file: Path) -> None:
    ring = ring_of(key_file, fleet)
    ring.acknowledge()
    threads = [threading.Thread(target=ring.report_when_due) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fleet.processes(ring)) == 1


@pytest.mark.parametrize("attempts", [1, 4])
def test_processes_that_start_together_all_report(
    mariadb: sa.Engine, key_file: Path, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    """Both look for their row before one of them inserts: InnoDB ends one. The control makes no second attempt."""
    monkeypatch.setattr(fleets, "_ATTEMPTS", attempts)
    both = threading.Barrier(2, timeout=10)
    inserts: list[str] = []
    errors: list[Exception] = []

    @sa.event.listens_for(mariadb, "do_execute")
    def meet(_cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT"):
            inserts.append(statement)
            if len(inserts) <= 2:
                both.wait()

    def report(fleet: Fleet) -> None:
        try:
            fleet(KeyRing.from_uri(f"file:{key_file}"))
        except sa.exc.DBAPIError as error:
            errors.append(error)

    started = [Fleet(mariadb), Fleet(mariadb)]
    started[0].table.create(mariadb)
    threads = [threading.Thread(target=report, args=[fleet]) for fleet in started]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reported = len(started[0].processes(KeyRing.from_uri(f"file:{key_file}")))
    assert (reported, len(errors)) == ((2, 0) if attempts > 1 else (1, 1))


def test_the_table_of_the_models_is_that_of_the_fleet(engine: sa.Engine, key_file: Path) -> None:
    metadata = sa.MetaData()
    fleet_table(metadata, name="loaded")
    metadata.create_all(engine)
    fleet = Fleet(engine, table="loaded")
    ring_of(key_file, fleet).acknowledge()
    assert [type(one) for one in fleet.processes(KeyRing([OLD]))] == [FleetProcess]


def test_a_table_in_another_schema(postgresql_database: Database, key_file: Path) -> None:
    engine = sa.create_engine(postgresql_database.url())
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "Ops"')
    fleet = Fleet(engine, schema="Ops")
    fleet.table.create(engine)
    ring_of(key_file, fleet).acknowledge()
    assert len(fleet.processes(KeyRing([OLD]))) == 1
    ring = (
        "--file",
        str(key_file),
        "--database",
        postgresql_database.url().render_as_string(hide_password=False),
    )
    for table, status in ((["--fleet-table", "Ops.jwt_column_fleet"], 0), ([], 2)):
        assert keys("fleet", *ring, *table).exit_code == status
    engine.dispose()


def test_a_role_needs_no_more_than_four_rights(postgresql_database: Database, key_file: Path) -> None:
    engine = sa.create_engine(postgresql_database.url())
    fleet = Fleet(engine)
    fleet.table.create(engine)
    role = f"fleet_{os.getpid()}"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role}")
        connection.exec_driver_sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON jwt_column_fleet TO {role}")

    @sa.event.listens_for(engine, "connect")
    def become_the_role(connection: Any, _record: Any) -> None:
        connection.execute(f"SET ROLE {role}")
        connection.commit()

    engine.dispose()
    try:
        ring = ring_of(key_file, fleet)
        ring.acknowledge()
        ring.acknowledge()
        assert len(fleet.processes(ring)) == 1
    finally:
        engine.dispose()
        admin = sa.create_engine(postgresql_database.url())
        with admin.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role}; DROP ROLE {role}")
        admin.dispose()
