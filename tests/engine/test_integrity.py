"""``verify="tokens"``: a token that ends up in another row is found, and what the application writes is no damage."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from jwt_column import EncryptedJSON, EncryptedJWT, KeyRing
from jwt_column.errors import KeyUnavailableError, ReencryptionError
from jwt_column.format import base64url
from migrations_helpers.engine import integrity, reflection
from migrations_helpers.engine.conversions import Adoption, Decryption, Reencryption
from migrations_helpers.engine.options import Options
from migrations_helpers.engine.reencryption import convert_column
from migrations_helpers.engine.reflection import Subject
from tests.support.models import table_of
from tests.support.workload import (
    BYTES,
    COMPOSITE,
    KEY_KINDS,
    NEW_KEY,
    OLD_KEY,
    after,
    application,
    column_type,
    create_sessions,
    engine_on,
    every_storage,
    every_strategy,
    seal,
    token,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from migrations_helpers import ReencryptionReport
    from tests.support.databases import Database
    from tests.support.workload import KeyKind, Sessions


def once(happen: Callable[[], object]) -> Callable[[ReencryptionReport], None]:
    """Return a progress function that does something once, after rows were rewritten."""
    happened: list[bool] = []

    def progress(report: ReencryptionReport) -> None:
        if report.reencrypted and not happened:
            happened.append(True)
            happen()

    return progress


def swap(engine: sa.Engine, sessions: Sessions, first: int, second: int) -> None:
    """Exchange the stored values of two rows, as a wrong UPDATE does: both still open."""
    stored = sessions.stored(engine)
    sessions.put(engine, (first,), stored[second,])
    sessions.put(engine, (second,), stored[first,])


@every_strategy
@every_storage
def test_an_undisturbed_run_has_equal_digests(engine: sa.Engine, strategy: str, storage: str) -> None:
    sessions = create_sessions(engine, 60, COMPOSITE, storage=storage)

    report = sessions.reencrypt(engine, verify="tokens", strategy=strategy, batch_size=20)

    tokens: Any = report.tokens
    assert tokens.is_same
    assert re.fullmatch("[0-9a-f]{64}", tokens.before)
    assert (tokens.rows_before, tokens.rows_after, tokens.unchanged) == (60, 60, 60)
    assert (tokens.superseded, tokens.inserted, tokens.removed, tokens.misplaced_count) == (0, 0, 0, 0)
    assert report.verified == 60
    assert report.is_complete
    assert report.to_dict()["tokens"]["before"] == tokens.before
    again = sessions.reencrypt(engine, verify="tokens").tokens
    assert again is not None
    # Nobody can try tokens against a digest: its key is another one in every run.
    assert again.is_same
    assert again.before != tokens.before


def exchange(engine: sa.Engine, verify: str, **options: Any) -> ReencryptionReport:
    """Re-encrypt a table while two of its rows exchange their tokens."""
    sessions = create_sessions(engine, 60, name=f"sessions_{verify}")
    progress = once(lambda: swap(engine, sessions, 3, 4))
    try:
        return sessions.reencrypt(engine, verify=verify, batch_size=10, progress=progress, **options)
    finally:
        decrypted = sessions.decrypted(engine)
        assert (token(4), token(3)) == (decrypted[3,], decrypted[4,])


@pytest.mark.parametrize("shards", [1, 2])
def test_two_rows_that_exchange_their_tokens_are_named(engine: sa.Engine, shards: int) -> None:
    with ThreadPoolExecutor(shards) as executor:
        # The control: two sessions have changed hands, and the run is content.
        assert exchange(engine, "stamp", shards=shards, executor=executor).is_complete
        with pytest.raises(ReencryptionError, match=r"2 rows hold a token that another row") as caught:
            exchange(engine, "tokens", shards=shards, executor=executor)
    report: Any = caught.value.report
    assert caught.value.reason == "tokens"
    assert sorted(report.tokens.misplaced) == [3, 4]
    assert (report.tokens.unchanged, report.tokens.superseded) == (58, 0)
    assert not report.tokens.is_same
    assert not report.is_complete
    assert report.remaining == 0
    assert token(3)[:20] not in f"{caught.value} {report}"


def trigger(engine: sa.Engine, table: str, row: int, other: int) -> list[str]:
    """Return the statements of a trigger that gives a row another row's value whenever it is rewritten."""
    copied = f"(SELECT token FROM {table}_source WHERE id = {other})"
    source = f"CREATE TABLE {table}_source AS SELECT id, token FROM {table}"
    if engine.dialect.name == "postgresql":
        return [
            source,
            f"CREATE FUNCTION {table}_swap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF NEW.id = {row} THEN NEW.token := {copied}; END IF; RETURN NEW; END $$",
            f"CREATE TRIGGER {table}_swap BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_swap()",
        ]
    if engine.dialect.name == "sqlite":
        return [
            source,
            f"CREATE TRIGGER {table}_swap AFTER UPDATE ON {table} WHEN NEW.id = {row} AND OLD.token <> NEW.token "
            f"BEGIN UPDATE {table} SET token = {copied} WHERE id = {row}; END",
        ]
    return [
        source,
        f"CREATE TRIGGER {table}_swap BEFORE UPDATE ON {table} FOR EACH ROW "
        f"SET NEW.token = IF(NEW.id = {row}, {copied}, NEW.token)",
    ]


@every_strategy
def test_a_trigger_that_stores_another_rows_token_is_found_before_its_batch_is_kept(
    engine: sa.Engine, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for verify in ("stamp", "tokens", "unseen"):
        sessions = create_sessions(engine, 40, name=f"sessions_{verify}")
        # The other row's token is under the new key already: the stamp of both is today's.
        sessions.put(engine, (9,), seal(token(9), after()))
        before = sessions.stored(engine)
        with engine.begin() as connection:
            for statement in trigger(engine, sessions.table.name, 25, 9):
                connection.exec_driver_sql(statement)
        options: dict[str, Any] = {"verify": verify, "batch_size": 10, "strategy": strategy, "nice": 0}
        if verify == "unseen":
            # The control, a role that sees no triggers: row 25 has lost its token.
            monkeypatch.setattr(reflection, "_triggers", lambda *_: ())
            options["verify"] = "stamp"
            assert sessions.reencrypt(engine, **options).is_complete
            assert sessions.decrypted(engine)[25,] == token(9)
            continue
        with pytest.raises(ReencryptionError, match="stored other tokens than the run wrote") as caught:
            sessions.reencrypt(engine, **options)
        report: Any = caught.value.report
        assert report.tokens.misplaced == [25]
        assert before[25,] == sessions.stored(engine)[25,]
        assert sessions.decrypted(engine)[25,] == token(25)


@every_strategy
def test_a_type_that_cuts_values_off_is_found_before_the_first_rows_are_kept(
    postgresql: sa.Engine, strategy: str
) -> None:
    texts = {number: f"opaque token {number}" for number in range(1, 31)}
    with postgresql.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE sessions (id int PRIMARY KEY, token name)")
        table = table_of(sa.Text)
        connection.execute(table.insert(), [{"id": key, "token": text} for key, text in texts.items()])
    column = column_type(storage="text", allow_opaque=True)
    options = Options(batch_size=10, strategy=strategy)
    with pytest.raises(ReencryptionError, match="stored other tokens than the run wrote") as caught:
        convert_column(postgresql, Subject("sessions", "token", column), Adoption, options)
    assert caught.value.reason == "tokens"
    with postgresql.begin() as connection:
        assert {row.id: row.token for row in connection.execute(sa.select(table))} == texts
        # The control: PostgreSQL does so without a word.
        connection.execute(sa.update(table).values(token="x" * 90))
        assert set(connection.scalars(sa.select(table.c.token))) == {"x" * 63}


def test_rows_of_the_application_are_counted_and_are_no_damage(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 60)

    def write() -> None:
        sessions.put(engine, (1,), seal(token(1001)))
        sessions.put(engine, (59,), seal(token(1059)))
        # One token in two rows: a client has one, and stores it twice.
        sessions.put(engine, (2,), seal(token(1059)))
        sessions.put(engine, (3,), None)
        with engine.begin() as connection:
            connection.execute(sa.delete(sessions.table).where(sessions.table.c.id == 4))
            # A session that gets another id, as after a login, takes its token along.
            connection.execute(sa.update(sessions.table).where(sessions.table.c.id == 5).values(id=1005))
            connection.execute(sa.insert(sessions.table).values(id=1006, token=seal(token(1006))))

    report = sessions.reencrypt(engine, verify="tokens", batch_size=10, progress=once(write))

    tokens: Any = report.tokens
    assert report.is_complete
    assert (tokens.superseded, tokens.inserted, tokens.removed) == (3, 2, 3)
    assert (tokens.unchanged, tokens.rows_before, tokens.rows_after) == (54, 60, 59)
    assert tokens.misplaced == []


def test_a_busy_application_is_no_damage(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 200)
    with application(engine, sessions) as running:
        # The application writes under the old key, so a run ends when it does.
        report: Any = sessions.reencrypt(
            engine, verify="tokens", batch_size=20, nice=0.5, progress=once(running.stop)
        )
    assert report.is_complete
    assert report.tokens.superseded > 0
    assert report.tokens.misplaced == []


def test_rows_that_cannot_be_read_are_compared_as_they_are(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 30)
    sessions.put(engine, (7,), seal(token(7))[:-1])
    with pytest.raises(ReencryptionError, match="1 row cannot be read") as caught:
        sessions.reencrypt(engine, verify="tokens", batch_size=10)
    report: Any = caught.value.report
    assert report.tokens.is_same
    assert report.undecryptable == [7]
    assert (report.tokens.unchanged, report.verified) == (30, 29)


def test_a_current_row_that_does_not_open_is_listed(engine: sa.Engine) -> None:
    sessions = create_sessions(engine, 30)
    sessions.put(engine, (7,), seal(token(7), after())[:-1])
    with pytest.raises(ReencryptionError, match="1 row cannot be read") as caught:
        sessions.reencrypt(engine, verify="tokens", batch_size=10)
    report: Any = caught.value.report
    assert (report.undecryptable, report.tokens.is_same) == ([7], True)


def test_a_key_that_cannot_be_had_ends_the_run(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of a row: nothing is compared, and nothing rewritten."""
    sessions = create_sessions(engine, 3)
    before = sessions.stored(engine)

    def token_of(*_: Any) -> str:
        raise KeyUnavailableError("the key server does not answer", retryable=True)

    monkeypatch.setattr(Reencryption, "token", token_of)
    with pytest.raises(KeyUnavailableError):
        sessions.reencrypt(engine, verify="tokens")
    assert sessions.stored(engine) == before


def test_more_changes_than_are_held_at_once(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "_CHANGES", 2)
    monkeypatch.setattr("migrations_helpers.engine.table._PAGE", 7)
    sessions = create_sessions(engine, 60)

    def write() -> None:
        swap(engine, sessions, 10, 50)
        for number in range(20, 30):
            sessions.put(engine, (number,), seal(token(1000 + number)))

    with pytest.raises(ReencryptionError) as caught:
        sessions.reencrypt(engine, verify="tokens", batch_size=10, progress=once(write))
    report: Any = caught.value.report
    assert sorted(report.tokens.misplaced) == [10, 50]
    assert (report.tokens.superseded, report.tokens.unchanged) == (10, 48)


def test_the_temporary_file_holds_no_token(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = create_sessions(engine, 30)
    kept: list[bytes] = []
    close = integrity.TokenComparison.close

    def read_and_close(comparison: integrity.TokenComparison) -> None:
        for file in (comparison._before, comparison._changed):
            file.seek(0)
            kept.append(file.read())
        close(comparison)

    monkeypatch.setattr(integrity.TokenComparison, "close", read_and_close)
    stored = sessions.stored(engine)
    sessions.reencrypt(engine, verify="tokens")
    content = b"".join(kept)
    assert len(content) > 30 * 32
    for number, value in stored.items():
        for secret in (value, token(*number).encode(), OLD_KEY, NEW_KEY):
            assert not any(secret[at : at + 12] in content for at in range(0, len(secret) - 12, 12))


@pytest.mark.parametrize("kind", [BYTES, KEY_KINDS[5]], ids=lambda kind: kind.name)
def test_every_driver_reads_the_same_keys_twice(driver_engine: sa.Engine, kind: KeyKind) -> None:
    sessions = create_sessions(driver_engine, 30, kind)
    report: Any = sessions.reencrypt(driver_engine, verify="tokens", batch_size=10)
    assert report.tokens.is_same
    assert report.tokens.unchanged == 30


def test_every_asynchronous_driver_too(async_driver_engine: AsyncEngine) -> None:
    sessions = create_sessions(async_driver_engine, 30)
    report: Any = sessions.reencrypt(async_driver_engine, verify="tokens", batch_size=10)
    assert report.tokens.is_same
    assert report.tokens.unchanged == 30


@pytest.mark.parametrize("type_", [EncryptedJWT, EncryptedJSON])
def test_tokens_are_the_same_in_the_clear_and_encrypted(engine: sa.Engine, type_: type[EncryptedJWT]) -> None:
    """A column is adopted and left again: one report compares plaintext with envelopes, the other the other way."""
    table = table_of(sa.Text)
    table.create(engine)
    texts = {
        number: token(number) if type_ is EncryptedJWT else f'{{"access_token":"{token(number)}"}}'
        for number in range(1, 21)
    }
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"id": key, "token": text} for key, text in texts.items()])
    column = type_(after(), storage="text", context="sessions.token")
    options = Options(verify="tokens", batch_size=5)
    for conversion in (Adoption, Decryption):
        report: Any = convert_column(engine, Subject("sessions", "token", column), conversion, options)
        assert report.reencrypted == 20
        assert report.tokens.is_same
        assert report.tokens.unchanged == 20
    with engine.connect() as connection:
        assert {row.id: row.token for row in connection.execute(sa.select(table))} == texts


@pytest.mark.processes
def test_shards_in_processes_read_back_what_they_write(
    postgresql_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ",".join(base64url.encode(key) for key in (NEW_KEY, OLD_KEY))
    monkeypatch.setenv("JWT_COLUMN_TEST_INTEGRITY", keys)
    ring = KeyRing.from_uri("env:JWT_COLUMN_TEST_INTEGRITY")
    with engine_on(postgresql_database.url()) as engine:
        sessions = create_sessions(engine, 200)
        report: Any = sessions.reencrypt(engine, ring, verify="tokens", shards=2)
        assert report.tokens.is_same
        sessions = create_sessions(engine, 40, name="with_trigger")
        sessions.put(engine, (9,), seal(token(9), after()))
        with engine.begin() as connection:
            for statement in trigger(engine, sessions.table.name, 25, 9):
                connection.exec_driver_sql(statement)
        with pytest.raises(ReencryptionError, match="stored other tokens than the run wrote") as caught:
            sessions.reencrypt(engine, ring, verify="tokens", shards=2)
    refused: Any = caught.value.report
    assert 25 in refused.tokens.misplaced
    assert caught.value.reason == "tokens"
