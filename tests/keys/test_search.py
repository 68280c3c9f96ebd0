"""A search by fingerprint finds rows under keys that reached the ring's file after the ring was loaded."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from jwt_column import ConfigurationError, EncryptedJWT, KeyRing, KeyRingError, generate_key, providers
from jwt_column.keys import loader as loading
from jwt_column.keys.data_key import DataKey
from jwt_column.keys.providers.file import FileSource
from jwt_column.keys.ring_file.changes import created
from jwt_column.keys.ring_file.store import create_ring_file
from jwt_column.keys.ring_file.unwrapping import wrap
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.clock import Clock

NOW = datetime(2026, 11, 23, tzinfo=UTC)
OLD, NEW = generate_key(), generate_key()


class Logins:
    """A table that another process fills, and this one searches."""

    def __init__(self, ring: KeyRing) -> None:
        self.engine = sa.create_engine("sqlite://")
        self.column = self._table(ring)
        self.column.table.create(self.engine)

    @staticmethod
    def _table(ring: KeyRing) -> sa.Column[Any]:
        type_ = EncryptedJWT(ring, fingerprints=["token"])
        return sa.Table("logins", sa.MetaData(), sa.Column("token", type_)).c.token

    def write(self, ring: KeyRing, token: str) -> None:
        """Store a token as a process with another ring does."""
        with self.engine.begin() as connection:
            connection.execute(self._table(ring).table.insert(), {"token": token})

    def found(self, token: str) -> int:
        """Return the number of rows that a search finds, without reading one."""
        query = sa.select(sa.func.count()).where(self.column == token)
        with self.engine.connect() as connection:
            return connection.execute(query).scalar_one()


def write_ring(path: Path, *keys: str | bytes, kek: str) -> None:
    """Replace a key-ring file, the first key active."""
    path.unlink(missing_ok=True)
    data_keys = [DataKey(key) for key in keys]
    wrapped = wrap(providers.open_wrapper(kek), "app", data_keys)
    entries = [(key.id, ciphertext) for key, ciphertext in zip(data_keys, wrapped, strict=True)]
    create_ring_file(path, created("app", entries, kek, NOW), {key.id: key for key in data_keys})


@pytest.mark.parametrize("kind", ["plain", "wrapped"])
def test_search_finds_a_row_under_a_key_that_reached_the_file_later(
    tmp_path: Path, clock: Clock, kind: str
) -> None:
    path, kek = tmp_path / "ring", tmp_path / "kek"
    providers.write_key_file(kek, [generate_key()])

    def replace(*keys: str) -> None:
        if kind == "plain":
            providers.write_key_file(path, keys, overwrite=True)
        else:
            write_ring(path, *keys, kek=f"file:{kek}")

    replace(OLD)
    ring = KeyRing.from_uri(f"file:{path}")
    logins, token = Logins(ring), signed_token(sub="alice")
    assert logins.found(token) == 0
    replace(NEW, OLD)
    logins.write(KeyRing.from_uri(f"file:{path}"), token)
    # The control: within the second of the last look, a search still finds nothing.
    assert logins.found(token) == 0
    clock.now += loading.LOOK_INTERVAL
    assert logins.found(token) == 1
    assert ring.active == DataKey(NEW).id


def test_search_looks_once_a_second_and_loads_only_after_a_change(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    providers.write_key_file(path, [OLD])
    ring = KeyRing.from_uri(f"file:{path}")
    looks: list[str] = []
    loads: list[str] = []

    def counting(calls: list[str], method: Callable[[FileSource], Any]) -> Callable[[FileSource], Any]:
        def call(source: FileSource) -> Any:
            calls.append(source.name)
            return method(source)

        return call

    monkeypatch.setattr(FileSource, "stamp", counting(looks, FileSource.stamp))
    monkeypatch.setattr(FileSource, "load", counting(loads, FileSource.load))
    for _ in range(5):
        ring.keys_for_search()
    assert (len(looks), loads) == (1, [])
    clock.now += loading.LOOK_INTERVAL
    ring.keys_for_search()
    assert (len(looks), loads) == (2, [])


def test_search_never_waits_for_a_kms(
    tmp_path: Path, clock: Clock, standin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The changed file is loaded in the background, for the searches that follow."""
    path = tmp_path / "ring.json"
    write_ring(path, OLD, kek="standin:kek")
    ring = KeyRing.from_uri(f"file:{path}")
    write_ring(path, NEW, OLD, kek="standin:kek")
    before = set(threading.enumerate())
    callers: list[threading.Thread] = []
    unwrapped = standin.after_unwrap

    def note(keys: list[bytes]) -> list[bytes]:
        callers.append(threading.current_thread())
        return list(unwrapped(keys))

    standin.after_unwrap = note
    clock.now += loading.LOOK_INTERVAL
    ring.keys_for_search()
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
    assert callers
    assert threading.current_thread() not in callers
    assert DataKey(NEW).id in ring.key_ids


def test_broken_file_leaves_the_search_its_keys_and_shows_in_the_status(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "keys"
    providers.write_key_file(path, [OLD])
    ring = KeyRing.from_uri(f"file:{path}")
    path.write_text("not a key\n")
    clock.now += loading.LOOK_INTERVAL
    assert [key.id for key in ring.keys_for_search()] == [DataKey(OLD).id]
    assert "line 1" in (ring.status.error or "")
    # It is tried again, at the rate of loads for unknown keys, also if the time stamp stays.
    loaded_at = ring.status.age
    providers.write_key_file(path, [NEW, OLD], overwrite=True)
    clock.now += loading.RELOAD_INTERVAL
    ring.keys_for_search()
    assert ring.status.error is None
    assert ring.status.age <= loaded_at


def test_ring_of_the_environment_does_not_notice(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """As the pages say: a running process does not see a changed variable of another one."""
    monkeypatch.setenv("SEARCH_KEYS", OLD)
    ring = KeyRing.from_uri("env:SEARCH_KEYS")
    clock.now += loading.LOOK_INTERVAL
    assert [key.id for key in ring.keys_for_search()] == [DataKey(OLD).id]


def test_missing_keys_show_in_the_status_and_make_the_ring_not_ready(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "keys"
    providers.write_key_file(path, [OLD])
    ring = KeyRing.from_uri(f"file:{path}")
    logins = Logins(ring)
    logins.write(ring, signed_token(sub="alice"))
    assert ring.is_ready(logins.engine, [logins.column])
    assert ring.is_ready(logins.engine, logins.column)
    others: list[Any] = [None, [None], logins.column.table.metadata, logins.column.table]
    for other in others:
        with pytest.raises(ConfigurationError, match="list of encrypted columns"):
            ring.is_ready(logins.engine, other)
    # Another process writes under a key that has not reached this host.
    logins.write(KeyRing([NEW]), signed_token(sub="bob"))
    assert [*ring.status.missing_key_ids] == []
    assert not ring.is_ready(logins.engine, [logins.column])
    assert [*ring.status.missing_key_ids] == [DataKey(NEW).id]
    # The refresh repeats the look.
    providers.write_key_file(path, [OLD, NEW], overwrite=True)
    ring.refresh()
    assert [*ring.status.missing_key_ids] == []
    assert ring.is_ready(logins.engine, [logins.column])
    path.write_text("broken")
    with pytest.raises(KeyRingError):
        ring.refresh()
    assert not ring.is_ready(logins.engine, [logins.column])


def test_asynchronous_engine_is_refused(clock: Clock) -> None:
    engine: Any = object()
    with pytest.raises(ConfigurationError, match="synchronous"):
        KeyRing([OLD]).is_ready(engine, [])
