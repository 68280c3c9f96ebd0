"""One run: what it rewrites, what it leaves, what it says, and how it behaves on a connection that it was given."""

from __future__ import annotations

import resource
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from jwt_column import JWT, EncryptedJWT, KeyRing, decrypt_token
from jwt_column.errors import ConfigurationError, KeyUnavailableError, ReencryptionError
from jwt_column.format import base64url
from jwt_column.format.envelope import parse
from migrations_helpers import reencrypt
from migrations_helpers.engine.strategies import choose_strategy
from tests.support.tokens import compact
from tests.support.workload import (
    CONTEXT,
    LOST_KEY,
    NEW,
    NEW_KEY,
    OLD,
    OLD_KEY,
    PATIENCE,
    Sessions,
    after,
    column_type,
    create_sessions,
    engine_on,
    every_storage,
    every_strategy,
    processes,
    record_updates,
    run,
    seal,
    token,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe
    from pathlib import Path

    from migrations_helpers import ReencryptionReport
    from tests.support.databases import Database, Server
    from tests.support.workload import Stored


# -- rows of every kind together -----------------------------------------------------------------------------------


def damage(stored: Stored) -> Stored:
    """Change the last byte of an envelope: the stamp stays as it is, and the tag no longer fits."""
    if isinstance(stored, bytes):
        return stored[:-1] + bytes([stored[-1] ^ 1])
    return stored[:-4] + ("AAAA" if stored[-4:] != "AAAA" else "BBBB")


def bad_values(storage: str) -> list[Stored]:
    """Return values that no ring of the tests opens, each bad in its own way."""
    good = seal(token(1), storage=storage)
    foreign: list[Stored] = [
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        b"",
        b"\x00",
        b"hello",
        b"\x02 newer version",
    ]
    texts: list[Stored] = ["\x89PNG", "", "hello", "jc02 newer version", "jc" + 30 * "Z", "gAAAAABkFernet=="]
    return [
        damage(good),
        good[:40],
        good[:7],
        seal(token(1), KeyRing([LOST_KEY]), storage=storage),
        seal(token(1), context="sessions.refresh_token", storage=storage),
        seal(token(1), storage=storage) + (b"x" if storage == "binary" else "A"),  # type: ignore[operator]
        *(foreign if storage == "binary" else texts),
    ]


def mix_in(
    engine: sa.Engine, sessions: Sessions, storage: str
) -> tuple[dict[Any, Stored], dict[Any, Stored]]:
    """Overwrite every fifth row with something bad, and a few with NULL and plaintext; return bad and clear ones."""
    bad: dict[Any, Stored] = {}
    # An empty value is no bad one: it stands for no token.
    values = [value for value in bad_values(storage) if value]
    for number, stored in enumerate(values, 1):
        bad[5 * number] = stored
    clear = {
        number: token(number).encode() if storage == "binary" else token(number) for number in (6, 13, 57)
    }
    nulls = dict.fromkeys((8, 58))
    for number, value in (bad | clear | nulls).items():
        sessions.put(engine, (number,), value)
        del sessions.tokens[number,]
    return bad, clear


@every_strategy
@every_storage
def test_good_rows_are_rewritten_and_bad_ones_listed_and_left_alone(
    engine: sa.Engine, strategy: str, storage: str
) -> None:
    for verify in ("stamp", "decrypt"):
        rotates_good_rows_only(engine, strategy, storage, verify)


def rotates_good_rows_only(engine: sa.Engine, strategy: str, storage: str, verify: str) -> None:
    sessions = create_sessions(engine, 60, name=f"sessions_{verify}", storage=storage)
    bad, clear = mix_in(engine, sessions, storage)
    good = len(sessions.tokens)
    options: dict[str, Any] = {"strategy": strategy, "verify": verify, "batch_size": 10}

    for rewritten in (good, 0):
        with pytest.raises(ReencryptionError, match=f"{len(bad)} rows cannot be read") as caught:
            sessions.reencrypt(engine, **options)
        report: Any = caught.value.report
        assert sorted(bad) == report.undecryptable
        assert len(bad) == report.undecryptable_count
        assert len(bad) == report.remaining
        assert rewritten == report.reencrypted
        assert good - rewritten == report.already_current
        assert good + len(bad) == report.scanned
        assert len(clear) == report.plaintext
        assert report.superseded == 0
        assert report.passes == 1
        assert ({OLD: good} if rewritten else {}) == report.by_key_id
        assert (good if verify == "decrypt" else 0) == report.verified
        assert token(1)[:20] not in str(caught.value)

        stored = sessions.stored(engine)
        assert bad | clear | {8: None, 58: None} == {
            number: stored[number,] for number in (*bad, *clear, 8, 58)
        }
        assert sessions.tokens == {
            key: decrypt_token(stored[key], after(), context=CONTEXT) for key in sessions.tokens
        }


@every_storage
def test_a_dry_run_reports_what_a_run_would_do_and_writes_nothing(engine: sa.Engine, storage: str) -> None:
    sessions = create_sessions(engine, 60, storage=storage)
    bad, clear = mix_in(engine, sessions, storage)
    before = sessions.stored(engine)
    good = len(sessions.tokens)
    report = sessions.reencrypt(engine, dry_run=True, batch_size=10)
    assert before == sessions.stored(engine)
    assert report.dry_run
    assert (good, good + len(bad), good + len(bad)) == (report.reencrypted, report.remaining, report.total)
    assert sorted(bad) == report.undecryptable
    assert {OLD: good} == report.by_key_id
    assert len(clear) == report.plaintext
    assert not report.is_complete


def test_many_undecryptable_rows_are_counted_exactly_and_listed_up_to_a_limit(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("migrations_helpers.engine.report.MAX_LISTED", 7)
    with engine_on(sqlite_database.url()) as engine:
        sessions = create_sessions(engine, 20)
        with pytest.raises(ReencryptionError, match=r"primary keys 1, 2, 3, 4, 5, \.\.\.") as caught:
            sessions.reencrypt(engine, KeyRing([NEW_KEY]))
    report: Any = caught.value.report
    assert list(range(1, 8)) == report.undecryptable
    assert report.undecryptable_count == 20


def test_verification_finds_a_current_row_that_does_not_open(engine: sa.Engine) -> None:
    """More rows than verification reads at once, so that it has to page."""
    sessions = create_sessions(engine, 1_100)
    sessions.reencrypt(engine, batch_size=1_000)
    sessions.put(engine, (777,), damage(seal(token(777), after())))
    assert sessions.reencrypt(engine, verify="stamp").is_complete
    with pytest.raises(ReencryptionError) as caught:
        sessions.reencrypt(engine, verify="decrypt")
    report: Any = caught.value.report
    assert (
        report.undecryptable,
        report.verified,
        report.scanned,
        report.remaining,
    ) == ([777], 1_099, 1_100, 0)


# -- layouts -------------------------------------------------------------------------------------------------------

LAYOUTS: list[dict[str, Any]] = [
    {"fingerprints": ["token"]},
    {"fingerprints": ["sub", "jti"], "expose_expiry": True},
    {"expose_expiry": True},
    {},
]


@every_strategy
@every_storage
def test_a_change_of_layout_makes_rows_stale_and_a_run_gives_them_the_new_one(
    engine: sa.Engine, strategy: str, storage: str
) -> None:
    sessions = create_sessions(engine, 30, storage=storage)
    sessions.reencrypt(engine)
    made: set[str] = set()
    for layout in LAYOUTS:
        sessions.options = {"storage": storage} | layout
        makes = {*layout.get("fingerprints", ()), *(["expiry"] if "expose_expiry" in layout else ())}
        assert sessions.census(engine) == {(NEW, "stale"): 30}
        report = sessions.reencrypt(engine, strategy=strategy, drop=sorted(made - makes))
        made = makes
        assert (report.by_key_id, report.reencrypted) == ({NEW: 30}, 30)
        assert sessions.census(engine) == {(NEW, "current"): 30}
        assert sessions.tokens == sessions.decrypted(engine)


@pytest.mark.parametrize("exp", ["soon", -1, 2**48, True, None, [1]])
def test_a_token_whose_expiry_cannot_be_exposed_leaves_the_old_key_too(
    sqlite_database: Database, exp: object
) -> None:
    with engine_on(sqlite_database.url()) as engine:
        sessions = create_sessions(engine, 5)
        sessions.put(engine, (2,), seal(compact({"alg": "HS256"}, {"exp": exp}, b"signature")))
        sessions.options = {"expose_expiry": True}
        report = sessions.reencrypt(engine)
        assert (report.undecryptable, report.unwritable, report.reencrypted) == ([], [], 5)
        assert parse(sessions.stored(engine)[2,]).expiry is None


@every_storage
def test_opaque_tokens_are_rotated_in_a_column_that_takes_them(engine: sa.Engine, storage: str) -> None:
    sessions = create_sessions(engine, 3, storage=storage, allow_opaque=True)
    sessions.put(engine, (2,), seal("an opaque refresh token", storage=storage, allow_opaque=True))
    sessions.tokens[2,] = "an opaque refresh token"
    clear = b"an opaque one in the clear" if storage == "binary" else "an opaque one in the clear"
    sessions.put(engine, (3,), clear)
    report = sessions.reencrypt(engine)
    assert (report.reencrypted, report.plaintext) == (2, 1)
    del sessions.tokens[3,]
    stored = sessions.stored(engine)
    assert clear == stored.pop((3,))
    assert sessions.tokens == {
        key: decrypt_token(value, after(), context=CONTEXT) for key, value in stored.items()
    }


def test_a_column_that_has_become_stricter_keeps_what_it_took_before(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 3, allow_opaque=True, allow_unsigned=True)
    sessions.put(engine, (2,), seal("an opaque refresh token", allow_opaque=True))
    sessions.tokens[2,] = "an opaque refresh token"
    sessions.options = {"max_length": 10}
    sessions.reencrypt(engine)
    assert sessions.tokens == sessions.decrypted(engine)


# -- keys that are not to be had -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"strategy": "auto"}, {"strategy": "cas"}, {"dry_run": True}])
def test_a_ring_that_cannot_be_reloaded_ends_the_run_and_blames_no_row(
    engine: sa.Engine, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Whether the ring lacks the key is not known then: it may be a new key that the application writes under."""
    sessions = create_sessions(engine, 30)
    unknown = seal(token(20), KeyRing([LOST_KEY]))
    sessions.put(engine, (20,), unknown)
    ring = ring_in_file(tmp_path / "keys", NEW_KEY, OLD_KEY)
    (tmp_path / "keys").unlink()
    reports: list[list[Any]] = []
    with pytest.raises(KeyUnavailableError):
        sessions.reencrypt(
            engine,
            ring,
            batch_size=10,
            progress=lambda report: reports.append(list(report.undecryptable)),
            **options,
        )
    assert [[]] * len(reports) == reports
    assert unknown == sessions.stored(engine)[20,]

    sessions.tokens[20,] = token(20)
    sessions.reencrypt(
        engine, KeyRing([NEW_KEY, OLD_KEY, LOST_KEY]), strategy=options.get("strategy", "auto")
    )
    assert sessions.tokens == sessions.decrypted(engine)


def test_a_ring_that_cannot_be_reloaded_ends_a_verification(engine: sa.Engine, tmp_path: Path) -> None:
    """A current row of another key id cannot be; one that the ring lost by a reload can."""
    sessions = create_sessions(engine, 5)
    ring = ring_in_file(tmp_path / "keys", NEW_KEY, OLD_KEY)

    def lose_the_key(report: ReencryptionReport) -> None:
        if report.reencrypted == 5:
            ring.snapshot().by_prefix.clear()
            (tmp_path / "keys").unlink(missing_ok=True)

    with pytest.raises(KeyUnavailableError):
        sessions.reencrypt(engine, ring, verify="decrypt", progress=lose_the_key)


def ring_in_file(path: Path, *keys: bytes) -> KeyRing:
    path.write_text("".join(f"{base64url.encode(key)}\n" for key in keys), encoding="ascii")
    path.chmod(0o600)
    return KeyRing.from_uri(f"file:{path}")


# -- nothing but the one column ------------------------------------------------------------------------------------


def test_a_run_touches_no_orm_event_onupdate_or_version_counter(engine: sa.Engine) -> None:
    class Base(DeclarativeBase):
        pass

    class Login(Base):
        __tablename__ = "sessions"
        id: Mapped[int] = mapped_column(primary_key=True)
        token: Mapped[JWT] = mapped_column(EncryptedJWT(KeyRing([OLD_KEY, NEW_KEY])))
        version: Mapped[int] = mapped_column(sa.Integer)
        touched: Mapped[str] = mapped_column(sa.String(20), default="never", onupdate="by the ORM")
        __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's form

    events: list[str] = []
    for name in ("load", "refresh", "before_update", "after_update"):
        sa.event.listen(Login, name, lambda *_, name=name: events.append(name))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Login(id=number, token=token(number)) for number in range(1, 21)])
        session.commit()
    events.clear()

    table = Login.__table__
    untouched = sa.select(table.c.id, table.c.version, table.c.touched).order_by(table.c.id)
    before = run(engine, lambda connection: connection.execute(untouched).all())
    report = reencrypt(engine, "sessions", "token", type_=EncryptedJWT(after()))
    assert report.reencrypted == 20
    assert events == []
    assert before == run(engine, lambda connection: connection.execute(untouched).all())

    with Session(engine) as session:
        login = session.get(Login, 7)
        assert login is not None
        login.touched = "by the application"
        session.commit()
        assert token(7) == login.token
    # The control: what the ORM does is seen.
    assert events[:3] == ["load", "before_update", "after_update"]
    assert [
        (row.version, row.touched)
        for row in run(engine, lambda connection: connection.execute(untouched).all())
        if row.id == 7
    ] == [(2, "by the application")]


# -- size and pace -------------------------------------------------------------------------------------------------


class Watched:
    """The automatic strategy; remembers how many rows each batch was to have, and how many it had."""

    def __init__(self) -> None:
        self.limits: list[int] = []
        self.read: list[int] = []

    def run_batch(self, task: Any) -> Any:
        strategy = choose_strategy(task.connection.sqlalchemy, task.table, "auto")
        batch = strategy.run_batch(task)
        self.limits.append(task.limit)
        self.read.append(batch.read)
        return batch


def test_batches_grow_by_a_fifth_at_most_towards_the_time_they_may_take(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 700)
    watched = Watched()
    sessions.reencrypt(engine, strategy=watched, batch_size=100, batch_seconds=3_600, nice=0)
    assert watched.limits[:5] == [100, 120, 144, 173, 208]
    assert sum(watched.read) == 700
    assert all(read <= limit for read, limit in zip(watched.read, watched.limits, strict=True))


def test_batches_shrink_where_rows_take_longer_but_not_below_fifty_rows(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 400)
    watched = Watched()
    sessions.reencrypt(engine, strategy=watched, batch_size=200, batch_seconds=1e-9, nice=0)
    assert watched.limits[:5] == [200, 50, 50, 50, 50]


def test_batches_grow_where_few_rows_need_work(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row in ten: on SQLite a batch is a window of rows, of which most are only looked at."""
    sessions = create_sessions(engine, 1_000)
    sessions.reencrypt(engine, nice=0)
    for number in range(5, 1_000, 10):
        sessions.put(engine, (number,), seal(token(number)))
    watched = Watched()
    # A tenth of a second for each batch, which is what it should take for a hundred rows.
    ticks = iter(range(1_000_000))
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks) / 10)
    report = sessions.reencrypt(engine, strategy=watched, batch_size=100, batch_seconds=1.0, nice=0)
    assert report.reencrypted == 100
    assert watched.limits == sorted(watched.limits)
    assert sessions.tokens == sessions.decrypted(engine)


def test_a_batch_size_below_fifty_is_kept(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 60)
    watched = Watched()
    sessions.reencrypt(engine, strategy=watched, batch_size=20, batch_seconds=1e-9, nice=0)
    assert {20} == set(watched.limits)


@pytest.mark.parametrize("nice", [None, 0, 2.5])
def test_a_run_sleeps_in_proportion_to_its_batches(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, nice: float | None
) -> None:
    """The clock of this run goes a second forward with each look at it, so that nothing depends on the machine."""
    ticks = iter(range(1_000_000))
    slept: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(time, "sleep", slept.append)
    sessions = create_sessions(engine, 95)
    sessions.reencrypt(engine, batch_size=10, batch_seconds=1e-9, nice=nice)
    default = 1.0 if engine.dialect.name == "sqlite" else 0.0
    factor = default if nice is None else nice
    assert ([factor] * 9 if factor else []) == slept


def test_progress_is_told_after_the_survey_and_after_each_batch(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 95)
    told: list[tuple[int, int]] = []
    report = sessions.reencrypt(
        engine, batch_size=10, batch_seconds=1e-9, progress=lambda r: told.append((r.reencrypted, r.total))
    )
    assert [(rows, 95) for rows in (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 95)] == told
    assert report.seconds > 0
    assert report.rows_per_second > 0
    assert {"reencrypted": 95, "undecryptable": []}.items() <= report.to_dict().items()


def test_progress_is_told_while_rows_are_opened_at_the_end(engine: sa.Engine) -> None:
    create = create_sessions(engine, 1_100)
    told: list[tuple[int, bool]] = []
    report = create.reencrypt(
        engine,
        batch_size=1_100,
        verify="decrypt",
        progress=lambda r: told.append((r.verified, r.finished)),
    )
    assert told[-3:] == [(500, False), (1_000, False), (1_100, True)]
    assert report.finished


def test_a_run_that_stops_is_not_finished(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 30)
    seen: list[ReencryptionReport] = []

    def stop(report: ReencryptionReport) -> None:
        seen.append(report)
        if report.reencrypted:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        sessions.reencrypt(engine, batch_size=10, batch_seconds=1e-9, progress=stop)
    assert not seen[-1].finished
    assert sessions.reencrypt(engine).finished


def test_rows_in_the_clear_are_counted_as_they_are_at_the_end(engine: sa.Engine) -> None:
    """The application encrypts one while the run is at work, and writes two."""
    sessions = create_sessions(engine, 30)
    sessions.put(engine, (3,), token(3).encode())
    counts: list[int] = []

    def write(report: ReencryptionReport) -> None:
        counts.append(report.plaintext)
        if len(counts) == 1:
            sessions.put(engine, (3,), seal(token(3), after()))
            for number in (7, 8):
                sessions.put(engine, (number,), token(number).encode())

    report = sessions.reencrypt(engine, progress=write)
    assert (counts[0], counts[-1], report.plaintext) == (1, 2, 2)


def test_an_error_says_whether_anything_was_done(engine: sa.Engine) -> None:
    """By an attribute, so that nobody has to read its text."""
    sessions = create_sessions(engine, 5)
    reasons = []
    for table, column in (("nowhere", "token"), ("sessions", "nothing")):
        with pytest.raises(ReencryptionError) as caught:
            reencrypt(engine, table, column, type_=column_type())
        assert caught.value.report is None
        reasons.append(caught.value.reason)
    sessions.put(engine, (3,), damage(seal(token(3))))
    with pytest.raises(ReencryptionError) as caught:
        sessions.reencrypt(engine)
    reasons.append(caught.value.reason)
    run(engine, lambda c: c.exec_driver_sql("ALTER TABLE sessions RENAME TO others"))

    def vanish(report: ReencryptionReport) -> None:
        run(engine, lambda c: c.exec_driver_sql("ALTER TABLE others RENAME TO gone"))

    with pytest.raises(ReencryptionError) as caught:
        reencrypt(engine, "others", "token", type_=column_type(KeyRing([OLD_KEY, NEW_KEY])), progress=vanish)
    reasons.append(caught.value.reason)
    assert reasons == ["refused", "refused", "rows", "database"]


@pytest.mark.each_server
@every_storage
def test_tokens_of_the_greatest_length_go_in_several_statements(
    driver_engine: sa.Engine, storage: str
) -> None:
    """More in one batch than a statement may have: MySQL refuses one past max_allowed_packet."""
    medium: Any = mysql.MEDIUMTEXT() if storage == "text" else None
    token_type = sa.Text().with_variant(medium, "mysql", "mariadb") if medium else None
    sessions = create_sessions(driver_engine, 100, size=64_000, storage=storage, token_type=token_type)
    updates = record_updates(driver_engine)
    sessions.reencrypt(driver_engine, batch_size=100)
    assert sessions.tokens == sessions.decrypted(driver_engine)
    assert (1 if driver_engine.dialect.name == "sqlite" else 2) <= len(updates)


@pytest.mark.matrix
def test_a_batch_goes_in_parts_where_a_statement_can_be_sent_before_the_one_before_it_has_ended(
    driver_engine: sa.Engine,
) -> None:
    """Any other driver would wait for the server once more with every part."""
    sessions = create_sessions(driver_engine, 600)
    updates = record_updates(driver_engine)
    sessions.reencrypt(driver_engine, batch_size=600)
    assert sessions.tokens == sessions.decrypted(driver_engine)
    assert len(updates) == (3 if driver_engine.dialect.driver == "psycopg" else 1)


# -- the connection ------------------------------------------------------------------------------------------------


def settings(connection: sa.Connection) -> dict[str, Any]:
    """Return what a run may change about a connection, as the database and the driver have it."""
    found: dict[str, Any] = {"isolation level": connection.get_isolation_level()}
    queries = {
        "postgresql": [
            "SHOW lock_timeout",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        ],
        "mariadb": ["SELECT @@innodb_lock_wait_timeout", "SELECT @@tx_isolation", "SELECT @@sql_mode"],
    }
    for query in queries.get(connection.dialect.name, []):
        found[query] = connection.exec_driver_sql(query).scalar()
    driver: Any = connection.connection.driver_connection
    found["cursors"] = getattr(driver, "cursor_factory", None)
    found["prepared"] = getattr(driver, "prepare_threshold", None)
    autocommit = getattr(driver, "autocommit", None)
    found["autocommit"] = autocommit if isinstance(autocommit, bool) else None
    connection.rollback()
    return found


@pytest.mark.each_server
@pytest.mark.parametrize("fails", [False, True])
def test_a_given_connection_gets_its_settings_back(driver_engine: sa.Engine, fails: bool) -> None:
    sessions = create_sessions(driver_engine, 20)
    if fails:
        sessions.put(driver_engine, (3,), damage(seal(token(3))))
    with driver_engine.connect() as connection:
        for statement in {
            "postgresql": ["SET lock_timeout = '7s'"],
            "mariadb": [
                "SET innodb_lock_wait_timeout = 7",
                "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            ],
        }.get(driver_engine.dialect.name, []):
            connection.exec_driver_sql(statement)
        connection.commit()
        before = settings(connection)
        with pytest.raises(ReencryptionError) if fails else nullcontext():
            reencrypt(connection, "sessions", "token", type_=column_type())
        assert not connection.in_transaction()
        assert before == settings(connection)
        rolls_back(connection, sessions)


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "SERIALIZABLE", None])
@pytest.mark.parametrize("of", ["engine", "options"])
def test_a_given_connection_keeps_its_isolation_level(
    driver_engine: sa.Engine, level: str | None, of: str
) -> None:
    create_sessions(driver_engine, 20)
    options: dict[str, Any] = {"isolation_level": level} if level else {}
    with (
        engine_on(driver_engine.url, **(options if of == "engine" else {})) as engine,
        engine.connect() as connection,
    ):
        if of == "options":
            connection.execution_options(**options)
        before = settings(connection)
        reencrypt(connection, "sessions", "token", type_=column_type())
        assert before == settings(connection)


def rolls_back(connection: sa.Connection, sessions: Sessions) -> None:
    """Fail unless the connection still has transactions that can be undone."""
    count = sa.select(sa.func.count()).select_from(sessions.table)
    rows = connection.execute(count).scalar()
    connection.execute(sa.delete(sessions.table))
    connection.rollback()
    assert rows == connection.execute(count).scalar()
    connection.rollback()


def test_a_connection_in_autocommit_mode_stays_in_it(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 20)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # In this mode a transaction of SQLAlchemy's is none of the database's.
        connection.execute(sa.select(sessions.table)).all()
        assert connection.in_transaction()
        assert reencrypt(connection, "sessions", "token", type_=column_type()).reencrypted == 20
        connection.execute(sa.delete(sessions.table))
    assert sessions.stored(engine) == {}


def test_a_connection_in_a_transaction_is_refused(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 20)
    with engine.begin() as connection:
        connection.execute(sa.delete(sessions.table).where(sessions.table.c.id == 7))
        with pytest.raises(ConfigurationError, match="is in a transaction"):
            reencrypt(connection, "sessions", "token", type_=column_type())
        connection.rollback()
    assert sessions.tokens == sessions.decrypted(engine)
    assert sessions.census(engine) == {(OLD, "stale"): 20}


def test_a_bind_of_another_kind_is_refused_and_told_apart(tmp_path: Path) -> None:
    for bind in (create_async_engine("sqlite+aiosqlite://"), Session(), "sqlite://", None):
        with pytest.raises(ConfigurationError, match=f"not {type(bind).__name__}; with an AsyncEngine use"):
            reencrypt(bind, "sessions", "token", type_=column_type())  # type: ignore[arg-type]


# -- one run at a time ---------------------------------------------------------------------------------------------


@pytest.mark.each_server
def test_a_second_run_is_refused_while_the_first_works_and_served_afterwards(
    driver_engine: sa.Engine,
) -> None:
    sessions = create_sessions(driver_engine, 50)
    refused: list[str] = []

    def try_as_well(report: ReencryptionReport) -> None:
        if report.reencrypted == 10:
            with engine_on(driver_engine.url) as second:
                try:
                    sessions.reencrypt(second)
                except ReencryptionError as error:
                    refused.append(str(error))
                # It takes no lock, because it takes nothing from anybody.
                assert sessions.reencrypt(second, dry_run=True).dry_run

    report = sessions.reencrypt(driver_engine, batch_size=10, batch_seconds=1e-9, progress=try_as_well)
    if driver_engine.dialect.name == "sqlite":
        # There is no such lock; the second run did the rest of the work, and the first found none left.
        assert (refused, report.reencrypted, report.superseded) == ([], 10, 40)
    else:
        (why,) = refused
        assert why.startswith("another run is at work on sessions.token; nothing was done. To wait for it")
        assert report.reencrypted == 50
    assert sessions.tokens == sessions.decrypted(driver_engine)
    with engine_on(driver_engine.url) as second:
        assert sessions.reencrypt(second).already_current == 50


@pytest.mark.each_server
def test_the_lock_is_free_after_a_run_that_failed(engine: sa.Engine) -> None:
    """Whether the connection is given or taken from a pool, where it lives on."""
    sessions = create_sessions(engine, 5)
    sessions.put(engine, (3,), b"foreign")
    with engine.connect() as connection:
        for bind in (engine, connection):
            with pytest.raises(ReencryptionError, match="cannot be read"):
                reencrypt(bind, "sessions", "token", type_=column_type())
        with engine_on(engine.url) as other, pytest.raises(ReencryptionError, match="cannot be read"):
            sessions.reencrypt(other)


def test_runs_on_other_columns_and_tables_are_not_refused(engine: sa.Engine) -> None:
    first = create_sessions(engine, 20, columns=(sa.Column("refresh", sa.LargeBinary),))
    second = create_sessions(engine, 5, name="other_sessions")
    done: list[int] = []

    def work_elsewhere(report: ReencryptionReport) -> None:
        if report.reencrypted == 10:
            done.append(second.reencrypt(engine).reencrypted)
            done.append(reencrypt(engine, "sessions", "refresh", type_=column_type()).reencrypted)

    first.reencrypt(engine, batch_size=10, batch_seconds=1e-9, progress=work_elsewhere)
    assert done == [5, 0]


def test_the_same_table_of_another_database_is_another_table(mariadb_server: Server) -> None:
    """A named lock of MariaDB holds for the whole server, on which every tenant may have a database."""
    done: list[int] = []
    with (
        mariadb_server.fresh_database() as one,
        mariadb_server.fresh_database() as two,
        engine_on(one.url()) as engine,
        engine_on(two.url()) as other,
    ):
        first, second = create_sessions(engine, 20), create_sessions(other, 20)

        def work_elsewhere(report: ReencryptionReport) -> None:
            if report.reencrypted == 10:
                done.append(second.reencrypt(other).reencrypted)

        first.reencrypt(engine, batch_size=10, batch_seconds=1e-9, progress=work_elsewhere)
    assert done == [20]


# -- memory --------------------------------------------------------------------------------------------------------


def memory_of_a_run(url: sa.URL, name: str, pipe: Pipe) -> None:
    """Re-encrypt a table in this process, which does nothing else, and tell the most memory that it ever had."""
    engine = sa.create_engine(url)
    report = reencrypt(engine, name, "token", type_=column_type(), nice=0, batch_size=100, batch_seconds=1e-9)
    engine.dispose()
    pipe.send((report.reencrypted, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


@pytest.mark.processes
def test_memory_does_not_grow_with_the_table(engine: sa.Engine) -> None:
    """10,000 rows more, each read and written, would be some 25 MB if they were held at once."""
    peaks = []
    for rows in (2_000, 12_000):
        sessions = create_sessions(engine, rows, name=f"sessions_{rows}", size=1_500)
        ours, theirs = processes.Pipe(duplex=False)
        arguments = (engine.url, sessions.table.name, theirs)
        process = processes.Process(target=memory_of_a_run, args=arguments, daemon=True)
        process.start()
        assert ours.poll(PATIENCE), "the process hangs"
        written, peak = ours.recv()
        process.join(PATIENCE)
        process.close()
        assert written == rows
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 20 * 1024, peaks
