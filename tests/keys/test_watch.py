"""``refresh="watch"`` loads a file when it changes, and asks a KMS only then; ``wait=`` outlasts an outage at start."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from jwt_column import ConfigurationError, KeyRing, KeyRingError, KeyUnavailableError, generate_key, providers
from jwt_column.keys import loader as loading
from jwt_column.keys.data_key import DataKey
from jwt_column.keys.ring import RingStatus
from jwt_column.testing import fake_kek
from tests.keys.test_search import write_ring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from jwt_column.testing import FakeKEK
    from tests.support.standin import Standin
    from tests.support.vault import OpenBao

OLD, NEW = generate_key(), generate_key()
OLD_ID, NEW_ID = DataKey(OLD).id, DataKey(NEW).id


@pytest.fixture
def kek() -> Iterator[FakeKEK]:
    with fake_kek() as kek:
        yield kek


def eventually(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_so()


class TestWatch:
    """A ring that is loaded when its file changes."""

    def test_a_kms_is_asked_only_after_a_change(self, tmp_path: Path, kek: FakeKEK) -> None:
        path = tmp_path / "ring.json"
        write_ring(path, OLD, kek=kek.uri)
        ring = KeyRing.from_uri(f"file:{path}", refresh="watch")
        asked = kek.unwrapped
        for _ in range(5):
            ring.refresh()
        assert (kek.unwrapped, ring.status.error) == (asked, None)
        write_ring(path, NEW, OLD, kek=kek.uri)
        asked = kek.unwrapped
        for _ in range(5):
            ring.refresh()
        assert (ring.active, ring.key_ids) == (NEW_ID, (NEW_ID, OLD_ID))
        assert kek.unwrapped == asked + 2
        # The control: a refresh by the clock asks each time.
        by_the_clock = KeyRing.from_uri(f"file:{path}", refresh=3600)
        asked = kek.unwrapped
        by_the_clock.refresh()
        by_the_clock.refresh()
        assert kek.unwrapped == asked + 4

    def test_the_thread_takes_a_change_over(self, tmp_path: Path) -> None:
        path = tmp_path / "keys"
        providers.write_key_file(path, [OLD])
        ring = KeyRing.from_uri(f"file:{path}", refresh="watch")
        other = ring.with_active(OLD_ID)
        assert (ring.active, other.active) == (OLD_ID, OLD_ID)
        providers.write_key_file(path, [NEW, OLD], overwrite=True)
        assert eventually(lambda: ring.active == NEW_ID and NEW_ID in other.key_ids)
        assert other.active == OLD_ID

    def test_a_load_that_fails_is_repeated_every_ten_seconds(
        self, tmp_path: Path, kek: FakeKEK, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [1_000.0]
        monkeypatch.setattr(loading, "monotonic", lambda: now[0])
        path = tmp_path / "ring.json"
        write_ring(path, OLD, kek=kek.uri)
        ring = KeyRing.from_uri(f"file:{path}", refresh="watch")
        write_ring(path, NEW, OLD, kek=kek.uri)
        kek.is_available = False
        with pytest.raises(KeyUnavailableError):
            ring.refresh()
        ring.refresh()  # Not yet.
        assert (ring.active, ring.status.retryable) == (OLD_ID, True)
        kek.is_available = True
        ring.refresh()
        assert ring.active == OLD_ID
        now[0] += loading.RELOAD_INTERVAL
        ring.refresh()
        assert (ring.active, ring.status.error) == (NEW_ID, None)

    def test_a_file_that_goes_away_is_an_error_until_it_is_back(self, tmp_path: Path) -> None:
        path = tmp_path / "keys"
        providers.write_key_file(path, [OLD])
        ring = KeyRing.from_uri(f"file:{path}", refresh="watch")
        path.unlink()
        with pytest.raises(KeyUnavailableError):
            ring.refresh()
        assert ring.status.error is not None
        providers.write_key_file(path, [NEW, OLD])
        ring.refresh()
        assert ring.active == NEW_ID
        assert ring.status.error is None

    def test_a_watch_that_has_ended_shows_in_the_status(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [1_000.0]
        monkeypatch.setattr(loading, "monotonic", lambda: now[0])
        providers.write_key_file(tmp_path / "keys", [OLD])
        ring = KeyRing.from_uri(f"file:{tmp_path / 'keys'}", refresh="watch")
        now[0] += 50
        ring.refresh()  # Unchanged keys are not overdue, however old they are.
        now[0] += 50
        assert ring.status == RingStatus(100.0, None, False, ())
        now[0] += 11
        assert "overdue" in (ring.status.error or "")

    def test_a_ring_without_a_file_cannot_be_watched(
        self, monkeypatch: pytest.MonkeyPatch, standin: Standin
    ) -> None:
        monkeypatch.setenv("SOME_KEYS", OLD)
        standin.keys = (bytes(32),)
        for uri in ("env:SOME_KEYS", "standin:x"):
            with pytest.raises(ConfigurationError, match=f"{uri} is none; give refresh= a number"):
                KeyRing.from_uri(uri, refresh="watch")

    @pytest.mark.parametrize("refresh", ["", "Watch", "60", True, float("inf"), b"watch", [1]])
    def test_other_words_are_refused(self, tmp_path: Path, refresh: Any) -> None:
        with pytest.raises(ConfigurationError, match="refresh is a number of seconds"):
            KeyRing.from_uri(f"file:{tmp_path}", refresh=refresh)


class TestWait:
    """A start while the KMS is away."""

    def test_the_start_outlasts_an_outage(self, tmp_path: Path, kek: FakeKEK) -> None:
        path = tmp_path / "ring.json"
        write_ring(path, OLD, kek=kek.uri)
        kek.is_available = False
        with pytest.raises(KeyUnavailableError):  # The control: without it the start fails.
            KeyRing.from_uri(f"file:{path}")
        back = threading.Timer(0.3, lambda: setattr(kek, "is_available", True))
        back.start()
        assert KeyRing.from_uri(f"file:{path}", wait=60).active == OLD_ID
        back.join()

    def test_it_ends_with_the_error_of_the_last_attempt(self, tmp_path: Path, kek: FakeKEK) -> None:
        path = tmp_path / "ring.json"
        write_ring(path, OLD, kek=kek.uri)
        kek.is_available = False
        begun = time.monotonic()
        with pytest.raises(KeyUnavailableError, match="fake-kek:test is not available") as caught:
            KeyRing.from_uri(f"file:{path}", wait=0.5)
        assert caught.value.retryable
        assert time.monotonic() - begun < 5

    def test_it_tries_more_than_once(self, standin: Standin) -> None:
        standin.failure = KeyUnavailableError("away", retryable=True)
        for wait, least in ((0, 1), (0.4, 2)):
            standin.calls.clear()
            with pytest.raises(KeyUnavailableError, match="away"):
                KeyRing.from_uri("standin:x", wait=wait)
            assert len(standin.calls) >= least
            assert wait or len(standin.calls) == 1

    def test_what_a_retry_does_not_mend_is_raised_at_once(self, tmp_path: Path, kek: FakeKEK) -> None:
        path = tmp_path / "ring.json"
        begun = time.monotonic()
        with pytest.raises(KeyUnavailableError, match="cannot be read"):
            KeyRing.from_uri(f"file:{path}", wait=60)
        path.write_text("no key")
        path.chmod(0o600)
        with pytest.raises(KeyRingError):
            KeyRing.from_uri(f"file:{path}", wait=60)
        with pytest.raises(KeyUnavailableError):
            KeyRing.from_uri("env:NO_SUCH_VARIABLE", wait=60)
        assert time.monotonic() - begun < 30

    @pytest.mark.parametrize("wait", [-1, float("nan"), float("inf"), True, "60", None])
    def test_it_is_a_number_of_seconds(self, wait: Any) -> None:
        with pytest.raises(ConfigurationError, match="wait is a number"):
            KeyRing.from_uri("env:X", wait=wait)


@pytest.mark.cloud
def test_watch_and_wait_with_openbao(
    openbao: OpenBao, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", openbao.token)
    monkeypatch.setenv("VAULT_ADDR", openbao.address)
    kek = f"vault-transit:{openbao.rest(openbao.new_key(derived=True), timeout='1')}"
    path = tmp_path / "ring.json"
    write_ring(path, OLD, kek=kek)
    with openbao.frozen():
        back = threading.Timer(1.5, openbao.thaw)
        back.start()
        ring = KeyRing.from_uri(f"file:{path}", refresh="watch", wait=60)
        back.join()
    write_ring(path, NEW, OLD, kek=kek)
    assert eventually(lambda: ring.active == NEW_ID)
    with openbao.frozen():
        # Without a change the server is not asked.
        for _ in range(3):
            ring.refresh()
    assert ring.status.error is None
