"""When a run waits, and when it ends before its table does."""

from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from jwt_column.errors import ConfigurationError, ReencryptionError
from migrations_helpers.engine import pace
from migrations_helpers.engine.hours import Window, moment, window
from migrations_helpers.engine.replicas import ReplicaLag
from tests.support.replicas import Replicated, replicated
from tests.support.workload import column_type, create_sessions, engine_on, every_server, seal, token

if TYPE_CHECKING:
    from collections.abc import Callable

    from migrations_helpers import ReencryptionReport
    from tests.support.workload import Sessions


# -- hours ---------------------------------------------------------------------------------------------------------


def test_windows_of_the_day() -> None:
    day = datetime(2026, 11, 28)
    night = window("22:00-05:00")
    assert night == window(("22:00", time_of_day(5))) == window(" 22:00 \u2013 5:00 ")
    assert str(night) == "22:00-05:00"
    for hour, minutes, expected in ((22, 0, 0), (23, 59, 0), (0, 0, 0), (4, 59, 0), (5, 0, 17), (21, 0, 1)):
        now = day + timedelta(hours=hour, minutes=minutes)
        assert night.seconds_until_open(now) == expected * 3600, now
    noon = window("12:00-13:00")
    for hour, expected in ((11, 1), (12, 0), (13, 23), (23, 13)):
        assert noon.seconds_until_open(day + timedelta(hours=hour)) == expected * 3600
    for bad in ("22:00", "22:00-22:00", "25:00-26:00", "22-5", 5, ("22:00",), None, ("a", "b")):
        with pytest.raises(ConfigurationError, match="--window"):
            window(bad)


def test_moments() -> None:
    now = datetime(2026, 11, 28, 23, 30)
    local = now.astimezone().tzinfo
    assert moment("05:00", now) == moment(time_of_day(5), now) == datetime(2026, 11, 29, 5, tzinfo=local)
    assert moment("23:45", now) == datetime(2026, 11, 28, 23, 45, tzinfo=local)
    assert moment("2026-11-30T05:00") == datetime(2026, 11, 30, 5, tzinfo=local)
    assert moment("2026-11-30T05:00+00:00") == datetime(2026, 11, 30, 5, tzinfo=UTC)
    assert moment(moment("05:00", now)) == moment("05:00", now)
    # Of the first and the last day, another zone has none.
    for bad in ("soon", "25:00", 5, timedelta(1), "0001-01-01T00:00+14:00", "9999-12-31T23:00-12:00"):
        with pytest.raises(ConfigurationError, match="--until"):
            moment(bad)


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


# -- the end of a run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["decrypt", "tokens"])
def test_until_leaves_the_rest_to_another_run(
    engine: sa.Engine, verify: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = create_sessions(engine, 60)
    with monkeypatch.context() as patch:
        # The time is over after the first batch, however slow the machine is.
        patch.setattr(
            pace.Pace, "_seconds_until_over", lambda one: 0.0 if one.report.reencrypted else 3_600.0
        )
        report = sessions.reencrypt(engine, batch_size=10, until=soon(3_600), verify=verify)
    assert report.reason == "until"
    assert report.finished
    assert not report.is_complete
    assert (report.reencrypted, report.remaining) == (10, 50)
    # To look at the whole table again takes time, too.
    compared = 0 if report.tokens is None else report.tokens.rows_after
    assert (report.verified, compared) == (0, 0)
    assert report.seconds < 30
    assert sessions.reencrypt(engine).is_complete


def test_until_is_over_at_once(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 20)
    report = sessions.reencrypt(engine, until=soon(-1))
    assert (report.reencrypted, report.remaining, report.reason) == (0, 20, "until")
    recomputed = sessions.reencrypt(engine, until=soon(-1), recompute=True)
    assert recomputed.reason == "until"
    sessions.reencrypt(engine)
    # Nothing is left, so nothing was cut short, but rows that are current were not looked at.
    assert sessions.reencrypt(engine, until=soon(-1)).is_complete
    assert sessions.reencrypt(engine, until=soon(-1), recompute=True).reason == "until"


def old_writer(engine: sa.Engine, sessions: Sessions) -> Callable[[ReencryptionReport], None]:
    """Return an application that writes under the old key for as long as the run goes on."""

    def progress(report: ReencryptionReport) -> None:
        if report.reencrypted:
            number = 1_000 + report.reencrypted
            sessions.put(engine, (1,), seal(token(number)))

    return progress


def test_writers_of_the_old_key_are_reported_and_no_error(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 20)
    report = sessions.reencrypt(engine, batch_size=10, max_passes=4, progress=old_writer(engine, sessions))
    assert (report.reason, report.remaining, report.passes) == ("writers", 1, 4)
    assert report.finished
    assert not report.is_complete


def test_a_revision_waits_for_rows_that_writers_leave(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 20)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"transaction_per_migration": True})
        op: Any = Operations(context)
        other = sa.create_engine(engine.url)
        try:
            with (
                pytest.raises(ReencryptionError, match="go on writing under another key") as caught,
                context.begin_transaction(_per_migration=True),
            ):
                op.reencrypt_jwt_column(
                    "sessions",
                    "token",
                    type_=column_type(),
                    batch_size=10,
                    max_passes=2,
                    progress=old_writer(other, sessions),
                )
        finally:
            other.dispose()
    report: Any = caught.value.report
    assert report.reason == "writers"


# -- pauses --------------------------------------------------------------------------------------------------------


def test_a_run_waits_for_its_window(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = create_sessions(engine, 20)
    closed = iter([60.0])
    monkeypatch.setattr(Window, "seconds_until_open", lambda _window, _now: next(closed, 0.0))
    waiting: list[str | None] = []
    report = sessions.reencrypt(
        engine, window="22:00-05:00", progress=lambda report: waiting.append(report.waiting)
    )
    assert report.is_complete
    assert waiting.count("window") == 1
    assert report.waiting is None


def test_a_closed_window_and_until_end_a_run(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 20)
    now = datetime.now()
    later = ((now + timedelta(hours=1)).time(), (now + timedelta(hours=2)).time())
    report = sessions.reencrypt(engine, window=later, until=soon(0.3))
    assert (report.reencrypted, report.remaining, report.reason) == (0, 20, "until")


def test_a_throttle_is_asked_after_each_batch(engine: sa.Engine) -> None:
    for number, (throttle, calls) in enumerate(throttles()):
        sessions = create_sessions(engine, 40, name=f"sessions_{number}")
        report = sessions.reencrypt(engine, batch_size=10, batch_seconds=0.001, nice=0, throttle=throttle)
        assert report.is_complete
        assert report.seconds > 0.2
        assert calls == [] or len(calls) >= 2


def throttles() -> list[tuple[Any, list[Any]]]:
    """Return functions and a query that return seconds to sleep, each with the calls that it notes."""
    calls: list[list[Any]] = [[], []]

    def with_report(report: ReencryptionReport) -> float | None:
        calls[0].append(report.reencrypted)
        return 0.1 if len(calls[0]) < 4 else None

    def without() -> float:
        calls[1].append(1)
        return 0.1

    return [
        (with_report, calls[0]),
        (without, calls[1]),
        (sa.text("SELECT 0.1"), []),
    ]


def test_latency_above_its_limit_slows_a_run_down(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of this run goes a second forward with each look at it, so a batch takes one second."""
    ticks = iter(range(1_000_000))
    slept: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(time, "sleep", slept.append)
    latencies = iter([0.03, 0.03, 0.03, 0.01, 0.01, 0.03, *[0.01] * 30])
    sessions = create_sessions(engine, 300)
    sessions.reencrypt(
        engine,
        batch_size=10,
        batch_seconds=1e-9,
        nice=0,
        throttle=lambda: next(latencies, 0.03),
        max_latency=0.02,
    )
    assert slept[:6] == pytest.approx([0.5, 1.0, 2.0, 1.6, 1.28, 2.56])
    # No pause at last.
    assert slept[6:] == sorted(slept[6:], reverse=True)
    assert len(slept) < 30


def test_latency_above_its_limit_shortens_batches(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1_000_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    batches = {}
    for latency in (0.05, 0.01):
        sessions = create_sessions(engine, 600, name=f"sessions_{round(latency * 100)}")
        done: list[int] = []
        sessions.reencrypt(
            engine,
            batch_size=200,
            batch_seconds=1.0,
            nice=0,
            throttle=lambda: latency,  # noqa: B023 - called before the next round
            max_latency=0.02,
            progress=lambda report: done.append(report.reencrypted),  # noqa: B023
        )
        batches[latency] = [after - before for before, after in itertools.pairwise(done) if after > before]
    assert batches[0.01] == [200, 200, 200]
    assert batches[0.05][:2] == [200, 200]
    assert 50 <= batches[0.05][2] < 150
    assert batches[0.05] == sorted(batches[0.05], reverse=True)


def test_a_paused_run_waits_between_batches(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    # It uses its connection meanwhile.
    monkeypatch.setattr(pace, "_KEEP_INTERVAL", 0.5)
    sessions = create_sessions(engine, 40)
    answers = iter([False, True])
    waiting: list[str | None] = []
    began = time.monotonic()
    report = sessions.reencrypt(
        engine,
        batch_size=10,
        is_paused=lambda: next(answers, False),
        progress=lambda report: waiting.append(report.waiting),
    )
    assert report.is_complete
    assert report.waiting is None
    assert waiting.count("paused") == 1
    assert time.monotonic() - began >= 1


def test_options_of_the_pace_are_checked(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 3)
    for options, message in (
        ({"max_latency": 0.1}, "--throttle-query"),
        ({"max_latency": 0, "throttle": lambda: 0}, "max_latency is a number of seconds, more than 0"),
        ({"max_replica_lag": -1}, "max_replica_lag is a number of seconds, more than 0"),
        ({"replicas": ["sqlite://"]}, "--max-replica-lag"),
        ({"replicas": "sqlite://", "max_replica_lag": 1}, "a list of URLs"),
        ({"replicas": 1, "max_replica_lag": 1}, "a list of URLs"),
        ({"throttle": "SELECT 1"}, "sqlalchemy.text"),
        ({"is_paused": True}, "is_paused is a function"),
        ({"throttle": lambda: "soon"}, "returned str"),
        ({"until": "soon"}, "--until"),
        ({"window": "night"}, "--window"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            sessions.reencrypt(engine, **options)


@pytest.mark.parametrize("options", [{}, {"max_latency": 1.0}])
@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf"])
def test_a_throttle_returns_a_number_that_is_one(
    memory: sa.Engine, seconds: str, options: dict[str, Any]
) -> None:
    sessions = create_sessions(memory, 3)
    with pytest.raises(ConfigurationError, match=f"returns seconds, and returned {seconds}"):
        sessions.reencrypt(memory, throttle=lambda: float(seconds), **options)


@every_server
def test_replicas_that_are_none_are_refused(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 3)
    own = engine.url.render_as_string(hide_password=False)
    with pytest.raises(ConfigurationError, match=r"no replica streams|needs the replicas"):
        sessions.reencrypt(engine, max_replica_lag=1)
    with pytest.raises(ConfigurationError, match=r"replica 1 .* is no replica"):
        sessions.reencrypt(engine, max_replica_lag=1, replicas=[own])
    with pytest.raises(ConfigurationError, match="cannot be used") as caught:
        sessions.reencrypt(engine, max_replica_lag=1, replicas=["nothing:secret@host"])
    assert "secret" not in str(caught.value)
    lost = engine.url.set(port=1)
    with pytest.raises(ConfigurationError, match="cannot be asked"):
        sessions.reencrypt(engine, max_replica_lag=1, replicas=[lost])
    assert len(sessions.census(engine)) == 1


@pytest.mark.processes
@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_a_run_waits_for_replicas_that_lag(name: str) -> None:
    with replicated(name) as pair, engine_on(pair.url) as server:
        with server.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("CREATE DATABASE app")
        url = pair.url.set(database="app")
        named = [pair.replica.render_as_string(hide_password=False)]
        with engine_on(url) as engine:
            for number, replicas in enumerate([named, []] if name == "postgresql" else [named]):
                sessions = create_sessions(engine, 60, name=f"sessions_{number}")
                waits_for(engine, sessions, pair, replicas)
            with engine.begin() as connection:
                for statement in _ACCOUNTS[name]:
                    connection.exec_driver_sql(statement)
            if name == "postgresql":
                refused_without_a_right(engine)
            else:
                with pytest.raises(ConfigurationError, match="SLAVE MONITOR"):
                    sessions.reencrypt(
                        engine, max_replica_lag=1, replicas=[url.set(username="app", password="app")]
                    )
            replica_that_goes(engine, pair)


def waits_for(engine: sa.Engine, sessions: Sessions, pair: Replicated, replicas: list[str]) -> None:
    waited: list[int] = []

    def progress(report: ReencryptionReport) -> None:
        if report.reencrypted == 10 and not waited and report.waiting is None:
            pair.tell(pair.stop)
        if report.waiting == "replicas":
            waited.append(report.reencrypted)
            if len(waited) == 2:
                pair.tell(pair.go_on)

    report = sessions.reencrypt(
        engine,
        batch_size=10,
        batch_seconds=1e-9,
        throttle=lambda: 0.4,
        max_replica_lag=0.5,
        replicas=replicas,
        progress=progress,
    )
    assert report.is_complete
    assert len(waited) >= 2
    # Batches that fall between two looks are done.
    assert waited[0] < 60


_ACCOUNTS = {
    "postgresql": ["CREATE ROLE app LOGIN PASSWORD 'app' IN ROLE pg_read_all_data, pg_write_all_data"],
    "mariadb": ["CREATE USER app IDENTIFIED BY 'app'", "GRANT ALL ON app.* TO app"],
}


def replica_that_goes(engine: sa.Engine, pair: Replicated) -> None:
    """Waiting does not bring a replica back."""

    def read(statement: sa.Executable) -> Any:
        with engine.connect() as connection:
            return connection.execute(statement).all()

    with engine_on(pair.replica) as replica:
        kinds: list[list[Any]] = [[replica]] if engine.dialect.name == "mariadb" else [[replica], []]
        lags = [ReplicaLag(read, engine.dialect.name, replicas) for replicas in kinds]
        pair.close()
        replica.dispose()
        for lag in lags:
            # The primary notices a moment later.
            patience = time.monotonic() + 30
            while lag.seconds() > 0:
                assert time.monotonic() < patience
                time.sleep(0.1)
            while not lag._unreachable:
                assert time.monotonic() < patience
                time.sleep(0.1)
                lag.seconds()
            lag.close()


def refused_without_a_right(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 3, name="of_the_application")
    with engine_on(engine.url.set(username="app", password="app")) as other:
        with pytest.raises(ConfigurationError, match="pg_monitor"):
            sessions.reencrypt(other, max_replica_lag=1)
        with engine.begin() as connection:
            connection.exec_driver_sql("GRANT pg_monitor TO app")
        assert sessions.reencrypt(other, max_replica_lag=5).is_complete


def test_time_left_is_that_of_the_last_minute(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 200)
    seen: list[float | None] = []
    sessions.reencrypt(
        engine,
        batch_size=20,
        batch_seconds=0.01,
        nice=0,
        throttle=lambda: 0.02,
        progress=lambda report: seen.append(report.seconds_left),
    )
    known = [seconds for seconds in seen if seconds is not None]
    assert known
    assert known[-1] == 0
    assert max(known) < 60
