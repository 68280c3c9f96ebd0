"""Data keys and rings: their forms, which key does what, reloads, threads, forks, and the default ring."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import hashlib
import hmac
import itertools
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jwt_column import (
    ConfigurationError,
    JWTColumnError,
    KeyRing,
    KeyRingError,
    KeyUnavailableError,
    UnknownKeyError,
    decrypt_token,
    encrypt_token,
    generate_key,
    providers,
    set_default_keyring,
)
from jwt_column.format import base64url
from jwt_column.keys import default as default_ring
from jwt_column.keys import refresh as refreshing
from jwt_column.keys import schemes
from jwt_column.keys.data_key import DataKey
from jwt_column.keys.default import default_keyring, keyring_of_uri, resolve_keyring
from jwt_column.keys.process import PerProcess
from jwt_column.keys.ring import RingStatus
from jwt_column.keys.snapshot import parse_key_id
from tests.support import independent_envelope as independent
from tests.support.clock import Clock
from tests.support.forks import raw_fork
from tests.support.tokens import locals_shown_by, revealed_by, signed_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from jwt_column.keys.source import KeySource

FIRST, SECOND, THIRD, FOURTH = KEYS = tuple(bytes([number]) * 32 for number in (1, 2, 3, 4))
IDS = FIRST_ID, SECOND_ID, THIRD_ID, FOURTH_ID = tuple(independent.key_id(key) for key in KEYS)
CONTEXT = "sessions.token"

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="This system has no fork.")


def text(key: bytes) -> str:
    """Return a key as text."""
    return base64url.encode(key)


class Source:
    """A place where keys are, whose keys and faults the test sets."""

    name = "test:source"

    def __init__(self) -> None:
        self.keys = [FIRST]
        self.tenants: dict[bytes, str] = {}
        self.failure: JWTColumnError | None = None
        self.loads = 0
        self.before_load: Callable[[], object] = lambda: None

    def load(self) -> tuple[DataKey, ...]:
        """Return the keys, or fail."""
        self.loads += 1
        self.before_load()
        if self.failure is not None:
            raise self.failure
        return tuple(DataKey(key, tenant=self.tenants.get(key)) for key in self.keys)


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    """The source behind every URI of the scheme ``test``."""
    source = Source()
    others = schemes.open_source

    def open_source(uri: str, keks: Any = None) -> KeySource:
        return source if uri.startswith("test:") else others(uri, keks)

    monkeypatch.setattr("jwt_column.keys.ring.open_source", open_source)
    return source


class TestDataKey:
    """One key, and what is derived from it."""

    def test_key_id_is_derived_as_the_format_says(self) -> None:
        extracted = hmac.digest(bytes(32), FIRST, "sha256")
        expected = hmac.new(extracted, b"jwt-column/v1/key-id\x01", hashlib.sha256).digest()[:4]
        key = DataKey(FIRST)
        assert (expected, expected.hex(), b"\x01" + expected) == (key.id_bytes, key.id, key.stamp_prefix)

    @given(key=st.binary(min_size=32, max_size=32), context=st.text(max_size=9), name=st.text(max_size=9))
    def test_derived_keys_are_those_of_the_independent_implementation(
        self, key: bytes, context: str, name: str
    ) -> None:
        expected = independent.fingerprint_key(key, context, name)
        data_key = DataKey(key)
        assert independent.key_id(key) == data_key.id
        # The second time it is remembered.
        assert [expected] * 2 == [data_key.fingerprint_key(context, name) for _ in range(2)]
        sealed = data_key.aead.seal(b"message", b"")
        opened = independent.xaes_decrypt(independent.encryption_key(key), sealed[:24], sealed[24:], b"")
        assert opened == b"message"

    def test_secret_leaves_by_its_one_door(self) -> None:
        assert DataKey(text(FIRST)).secret_material() == FIRST

    def test_repr_shows_the_key_id_alone(self) -> None:
        assert repr(DataKey(FIRST)) == f"DataKey({FIRST_ID})"

    @pytest.mark.parametrize("take_away", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_key_cannot_be_pickled_or_copied(self, take_away: Callable[[DataKey], object]) -> None:
        with pytest.raises(KeyRingError, match="pickled"):
            take_away(DataKey(FIRST))

    def test_generated_key_is_43_characters_of_base64url_and_never_twice_the_same(self) -> None:
        keys = {generate_key() for _ in range(100)}
        assert len(keys) == 100
        assert {43} == {len(key) for key in keys}
        assert {32} == {len(DataKey(key).secret_material()) for key in keys}

    @pytest.mark.parametrize(
        "form", [FIRST, text(FIRST), text(FIRST) + "="], ids=["bytes", "text", "padded text"]
    )
    def test_key_is_taken_as_bytes_or_text(self, form: bytes | str) -> None:
        assert DataKey(form).id == FIRST_ID

    @pytest.mark.parametrize(
        "form",
        [
            b"",
            FIRST[:31],
            FIRST + b"\x01",
            text(FIRST).encode(),
            "",
            text(FIRST)[:-1],
            text(FIRST) + "A",
            text(FIRST) + "==",
            text(FIRST) + "\n",
            " " + text(FIRST),
            text(FIRST)[:-1] + "F",
            text(b"\xff" * 32).replace("_", "/"),
            text(FIRST)[:-1] + "\u00e9",
            text(FIRST)[:-1] + "\ud800",
            FIRST.hex(),
            bytearray(FIRST),
            None,
            5,
            [FIRST],
        ],
        ids=lambda form: f"{type(form).__name__} of {len(form) if hasattr(form, '__len__') else form}",
    )
    def test_anything_else_is_refused_and_not_shown(self, form: Any) -> None:
        with pytest.raises(KeyRingError) as caught:
            DataKey(form)
        secret = form if isinstance(form, bytes | str) else FIRST
        assert set() == revealed_by(caught.value, secret, text(FIRST), FIRST)

    def test_refusal_that_showed_a_key_would_be_noticed(self) -> None:
        """The control of the test above."""
        assert revealed_by(KeyRingError(f"no key: {text(FIRST)[:20]}"), FIRST)
        assert revealed_by(KeyRingError(f"no key: {FIRST[:20]!r} {FIRST.hex()}"), FIRST)

    @pytest.mark.parametrize(
        "key_id", ["2d5f44d", "2d5f44dd0", "2D5F44DD", "2d5f44dg", "", "2d5f44dd\n", None, 5]
    )
    def test_key_id_is_eight_lower_case_hex_digits(self, key_id: Any) -> None:
        with pytest.raises(KeyRingError):
            parse_key_id(key_id)
        assert parse_key_id("2d5f44dd") == b"\x2d\x5f\x44\xdd"


class TestRing:
    """Keys by key id, one of them active."""

    def test_first_key_is_active_where_none_is_named(self) -> None:
        ring = KeyRing([FIRST, text(SECOND)])
        assert (ring.active, ring.key_ids) == (FIRST_ID, (FIRST_ID, SECOND_ID))

    def test_named_key_is_active_and_comes_first(self) -> None:
        ring = KeyRing([FIRST, SECOND, THIRD], active=SECOND_ID)
        assert (ring.active, ring.key_ids) == (SECOND_ID, (SECOND_ID, FIRST_ID, THIRD_ID))
        assert [key.id for key in ring.keys] == [SECOND_ID, FIRST_ID, THIRD_ID]

    def test_keys_may_come_from_any_iterable(self) -> None:
        assert KeyRing(key for key in (FIRST, SECOND)).key_ids == (FIRST_ID, SECOND_ID)

    def test_generated_ring_has_one_key_of_its_own(self) -> None:
        first, second = KeyRing.generate(), KeyRing.generate()
        assert len(first.key_ids) == 1
        assert first.active != second.active

    @pytest.mark.parametrize("keys", [FIRST, text(FIRST)], ids=["bytes", "text"])
    def test_one_key_without_brackets_is_refused(self, keys: Any) -> None:
        with pytest.raises(KeyRingError, match="brackets"):
            KeyRing(keys)

    def test_ring_without_keys_is_refused(self) -> None:
        with pytest.raises(KeyRingError, match="at least one key"):
            KeyRing([])

    def test_key_that_is_there_twice_is_refused_by_its_key_id(self) -> None:
        with pytest.raises(KeyRingError, match="twice") as caught:
            KeyRing([FIRST, SECOND, text(FIRST)])
        assert caught.value.key_id == FIRST_ID

    def test_active_key_must_be_in_the_ring(self) -> None:
        with pytest.raises(UnknownKeyError) as caught:
            KeyRing([FIRST], active=SECOND_ID)
        assert caught.value.key_id == SECOND_ID
        with pytest.raises(KeyRingError, match="8 lower-case hex digits"):
            KeyRing([FIRST], active="first")

    def test_key_is_found_by_its_id(self) -> None:
        ring = KeyRing([FIRST, SECOND])
        assert ring.key(bytes.fromhex(SECOND_ID)).secret_material() == SECOND

    def test_unknown_key_id_is_named_beside_those_that_are_there(self) -> None:
        with pytest.raises(UnknownKeyError) as caught:
            KeyRing([FIRST, SECOND]).key(bytes.fromhex(THIRD_ID))
        assert caught.value.key_id == THIRD_ID
        assert all(key_id in str(caught.value) for key_id in IDS[:3])

    def test_with_active_gives_another_ring_and_leaves_this_one(self) -> None:
        ring = KeyRing([FIRST, SECOND])
        assert ring.with_active(SECOND_ID).key_ids == (SECOND_ID, FIRST_ID)
        assert ring.key_ids == (FIRST_ID, SECOND_ID)

    @pytest.mark.parametrize(("key_id", "error"), [(THIRD_ID, UnknownKeyError), ("", KeyRingError)])
    def test_with_active_refuses_a_key_that_is_not_there(
        self, key_id: str, error: type[KeyRingError]
    ) -> None:
        with pytest.raises(error):
            KeyRing([FIRST, SECOND]).with_active(key_id)

    def test_with_key_gives_a_ring_that_reads_more_and_writes_the_same(self) -> None:
        ring = KeyRing([FIRST, SECOND], active=SECOND_ID)
        assert ring.with_key(text(THIRD)).key_ids == (SECOND_ID, FIRST_ID, THIRD_ID)
        assert ring.key_ids == (SECOND_ID, FIRST_ID)

    @pytest.mark.parametrize("key", [FIRST, text(SECOND), b"short"])
    def test_with_key_refuses_a_key_that_is_there_or_none(self, key: bytes | str) -> None:
        with pytest.raises(KeyRingError):
            KeyRing([FIRST, SECOND]).with_key(key)

    def test_repr_shows_key_ids_and_no_key(self) -> None:
        shown = repr(KeyRing([FIRST, SECOND]))
        assert shown == f"KeyRing(active={FIRST_ID!r}, key_ids=[{FIRST_ID!r}, {SECOND_ID!r}])"

    def test_ring_knows_the_uri_that_it_came_from(self, source: Source) -> None:
        assert KeyRing.from_uri("test:").uri == "test:source"
        assert KeyRing([FIRST]).uri is None

    def test_ring_that_could_not_be_made_has_a_repr(self) -> None:
        assert repr(KeyRing.__new__(KeyRing)) == "KeyRing()"

    def test_repr_shows_where_the_keys_come_from(self, source: Source) -> None:
        shown = repr(KeyRing.from_uri("test:"))
        assert shown == f"KeyRing(active={FIRST_ID!r}, key_ids=[{FIRST_ID!r}], source='test:source')"

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_ring_cannot_be_pickled(self, protocol: int) -> None:
        with pytest.raises(KeyRingError, match="pickled"):
            pickle.dumps(KeyRing([FIRST]), protocol)

    def test_copies_are_the_ring_itself(self) -> None:
        """A copied column type keeps its ring, and so the cache of compiled statements tells rings apart."""
        ring = KeyRing([FIRST])
        assert [ring, ring] == [copy.copy(ring), copy.deepcopy([ring])[0]]

    def test_rings_are_told_apart_by_identity(self) -> None:
        assert KeyRing([FIRST]) != KeyRing([FIRST])


class TestReload:
    """A ring is loaded again from where it came."""

    def test_ring_that_was_given_its_keys_stays_as_it_is(self) -> None:
        ring = KeyRing([FIRST])
        ring.reload()
        assert ring.key_ids == (FIRST_ID,)

    def test_reload_brings_new_keys_and_takes_away_old_ones(self, source: Source) -> None:
        source.keys = [FIRST, SECOND]
        ring = KeyRing.from_uri("test:")
        source.keys = [SECOND, THIRD]
        ring.reload()
        assert ring.key_ids == (SECOND_ID, THIRD_ID)

    def test_chosen_key_stays_active_through_a_reload(self, source: Source) -> None:
        source.keys = [FIRST, SECOND]
        ring = KeyRing.from_uri("test:").with_active(SECOND_ID)
        source.keys = [THIRD, FIRST, SECOND]
        ring.reload()
        assert ring.key_ids == (SECOND_ID, THIRD_ID, FIRST_ID)

    def test_reload_that_lacks_the_chosen_key_is_refused_and_changes_nothing(self, source: Source) -> None:
        source.keys = [FIRST, SECOND]
        ring = KeyRing.from_uri("test:").with_active(SECOND_ID)
        source.keys = [FIRST]
        with pytest.raises(UnknownKeyError):
            ring.reload()
        assert ring.key_ids == (SECOND_ID, FIRST_ID)

    @pytest.mark.parametrize("failure", [KeyUnavailableError("down"), KeyRingError("line 2")])
    def test_reload_that_fails_is_raised_and_changes_nothing(
        self, source: Source, failure: KeyRingError
    ) -> None:
        ring = KeyRing.from_uri("test:")
        source.keys, source.failure = [SECOND, FIRST], failure
        with pytest.raises(type(failure)):
            ring.reload()
        assert [*ring.key_ids] == [FIRST_ID]
        source.failure = None
        ring.reload()
        assert [*ring.key_ids] == [SECOND_ID, FIRST_ID]

    def test_ring_with_a_key_added_by_hand_is_not_loaded_again(self, source: Source) -> None:
        ring = KeyRing.from_uri("test:").with_key(SECOND)
        ring.reload()
        with pytest.raises(UnknownKeyError):
            ring.key(bytes.fromhex(THIRD_ID))
        assert (source.loads, ring.key_ids) == (1, (FIRST_ID, SECOND_ID))

    def test_frames_of_a_failed_load_show_no_key(self, source: Source) -> None:
        """Error reporters show local variables, and those of a provider hold keys."""

        def fail() -> None:
            secret = text(FIRST)
            try:
                int(secret)
            except ValueError:
                raise KeyRingError("line 1") from None

        source.before_load = fail
        with pytest.raises(KeyRingError) as direct:
            source.load()
        # The control: asked directly, the provider's frames are there, and the key in them.
        assert text(FIRST) in locals_shown_by(direct.value)
        assert revealed_by(direct.value, FIRST)
        ring = KeyRing([FIRST])
        ring._loader.source = source
        for load in (lambda: KeyRing.from_uri("test:"), ring.reload):
            with pytest.raises(KeyRingError) as caught:
                load()
            assert text(FIRST) not in locals_shown_by(caught.value)
            assert set() == revealed_by(caught.value, FIRST)

    def test_cause_that_a_provider_gives_is_kept(self, source: Source) -> None:
        cause = OSError("connection refused")
        source.failure = KeyUnavailableError("down")
        source.failure.__cause__ = cause
        with pytest.raises(KeyUnavailableError) as caught:
            KeyRing.from_uri("test:")
        assert cause is caught.value.__cause__


class TestTenants:
    """Keys for the rows of one tenant each."""

    @pytest.fixture
    def ring(self, source: Source) -> KeyRing:
        source.keys = [FIRST, SECOND, THIRD, FOURTH]
        source.tenants = {SECOND: "acme", THIRD: "acme", FOURTH: "globex"}
        return KeyRing.from_uri("test:")

    def test_first_key_of_each_tenant_is_its_active_one(self, ring: KeyRing) -> None:
        assert ring.active == FIRST_ID
        assert ring.tenants == {"acme": SECOND_ID, "globex": FOURTH_ID}

    def test_rows_are_current_under_the_active_keys(self, ring: KeyRing) -> None:
        assert ring.current_key_ids == (FIRST_ID, SECOND_ID, FOURTH_ID)
        assert KeyRing([FIRST, SECOND]).current_key_ids == (FIRST_ID,)

    def test_rows_stay_with_their_tenant(self, ring: KeyRing) -> None:
        keys = {key.id: key for key in ring.keys}
        successors = {key_id: ring.snapshot().successor(key).id for key_id, key in keys.items()}
        assert successors == {
            FIRST_ID: FIRST_ID,
            SECOND_ID: SECOND_ID,
            THIRD_ID: SECOND_ID,
            FOURTH_ID: FOURTH_ID,
        }

    def test_key_of_a_tenant_that_came_later_has_no_successor(self, ring: KeyRing) -> None:
        key = DataKey(bytes(32), tenant="initech")
        assert ring.snapshot().successor(key) is key

    def test_key_of_a_tenant_does_not_become_the_active_one(self, ring: KeyRing, source: Source) -> None:
        with pytest.raises(KeyRingError, match="tenant acme") as caught:
            ring.with_active(SECOND_ID)
        assert caught.value.key_id == SECOND_ID
        source.keys = [SECOND, FIRST]
        with pytest.raises(KeyRingError, match="tenant acme"):
            KeyRing.from_uri("test:")


class TestUsing:
    """Another key for one unit of work."""

    @pytest.fixture
    def ring(self) -> KeyRing:
        return KeyRing([FIRST, SECOND, THIRD])

    def written_under(self, ring: KeyRing) -> str:
        stored = encrypt_token(signed_token(), ring, context=CONTEXT)
        assert isinstance(stored, bytes)
        return stored[1:5].hex()

    def test_key_of_choice_encrypts_within_the_block_only(self, ring: KeyRing) -> None:
        seen = [self.written_under(ring)]
        with ring.using(SECOND_ID) as same:
            seen.append(self.written_under(ring))
        seen.append(self.written_under(ring))
        assert seen == [FIRST_ID, SECOND_ID, FIRST_ID]
        assert same is ring

    def test_blocks_may_lie_in_each_other(self, ring: KeyRing) -> None:
        with ring.using(SECOND_ID):
            with ring.using(THIRD_ID):
                assert self.written_under(ring) == THIRD_ID
            assert self.written_under(ring) == SECOND_ID

    def test_block_that_fails_ends_all_the_same(self, ring: KeyRing) -> None:
        with pytest.raises(ZeroDivisionError), ring.using(SECOND_ID):
            raise ZeroDivisionError
        assert self.written_under(ring) == FIRST_ID

    def test_active_key_and_what_is_current_stay_as_they_are(self, ring: KeyRing) -> None:
        """A census or a re-encryption that happens to run within the block must not mean another key."""
        with ring.using(SECOND_ID):
            assert (ring.active, ring.current_key_ids) == (FIRST_ID, (FIRST_ID,))

    def test_reading_is_the_same_within_the_block(self, ring: KeyRing) -> None:
        value = signed_token()
        stored = encrypt_token(value, ring, context=CONTEXT)
        with ring.using(SECOND_ID):
            assert value == decrypt_token(stored, ring, context=CONTEXT)

    def test_other_rings_are_not_concerned(self, ring: KeyRing) -> None:
        other = KeyRing([FIRST, SECOND])
        with ring.using(SECOND_ID):
            assert self.written_under(other) == FIRST_ID
            with other.using(SECOND_ID), ring.using(THIRD_ID):
                assert [self.written_under(one) for one in (ring, other)] == [THIRD_ID, SECOND_ID]

    def test_rings_of_one_uri_are_one(self, source: Source) -> None:
        """A column that names its ring by URI has another object than who asks for the ring of that URI."""
        source.keys = [FIRST, SECOND]
        with KeyRing.from_uri("test:").using(SECOND_ID):
            assert self.written_under(keyring_of_uri("test:")) == SECOND_ID

    @pytest.mark.parametrize(("key_id", "error"), [(FOURTH_ID, UnknownKeyError), ("acme", KeyRingError)])
    def test_key_that_the_ring_lacks_is_refused(
        self, ring: KeyRing, key_id: str, error: type[KeyRingError]
    ) -> None:
        with pytest.raises(error), ring.using(key_id):
            raise AssertionError
        assert self.written_under(ring) == FIRST_ID

    def test_key_that_has_just_been_made_is_found_without_a_restart(self, source: Source) -> None:
        ring = KeyRing.from_uri("test:")
        source.keys = [FIRST, SECOND]
        with ring.using(SECOND_ID):
            assert self.written_under(ring) == SECOND_ID
        assert source.loads == 2

    def test_key_that_went_away_within_the_block_is_not_replaced_by_another(self, source: Source) -> None:
        source.keys = [FIRST, SECOND]
        ring = KeyRing.from_uri("test:")
        with ring.using(SECOND_ID):
            source.keys = [FIRST]
            ring.reload()
            with pytest.raises(UnknownKeyError, match="nothing was encrypted") as caught:
                self.written_under(ring)
        assert caught.value.key_id == SECOND_ID
        assert self.written_under(ring) == FIRST_ID

    def test_thread_that_is_started_within_the_block_is_outside(self, ring: KeyRing) -> None:
        with ring.using(SECOND_ID), ThreadPoolExecutor(1) as pool:
            assert pool.submit(self.written_under, ring).result() == FIRST_ID
            inside = contextvars.copy_context()
            assert pool.submit(inside.run, self.written_under, ring).result() == SECOND_ID


class TestStatus:
    """How a ring is doing."""

    def test_ring_that_was_given_its_keys_grows_old(self, clock: Clock) -> None:
        ring = KeyRing([FIRST])
        clock.now += 5
        assert ring.status == (5.0, None, False, ())

    def test_reload_makes_it_young(self, source: Source, clock: Clock) -> None:
        ring = KeyRing.from_uri("test:")
        clock.now += 60
        assert ring.status.age == 60
        ring.reload()
        assert ring.status == (0.0, None, False, ())

    def test_failure_is_kept_until_a_reload_works(self, source: Source, clock: Clock) -> None:
        ring = KeyRing.from_uri("test:")
        source.failure = KeyUnavailableError("server is down", retryable=True)
        clock.now += 60
        with pytest.raises(KeyUnavailableError):
            ring.reload()
        assert ring.status == RingStatus(60.0, "server is down", True)
        source.failure = None
        ring.reload()
        assert ring.status == RingStatus(0.0)

    def test_failure_for_an_unknown_key_id_is_kept_too(self, source: Source, clock: Clock) -> None:
        ring = KeyRing.from_uri("test:")
        source.failure = ConfigurationError("the PIN file is gone")
        with pytest.raises(KeyUnavailableError, match="the PIN file is gone") as caught:
            ring.key(bytes.fromhex(SECOND_ID))
        assert ring.status.error == "the PIN file is gone"
        assert not caught.value.retryable

    def test_foreign_error_is_named_without_its_text(self, source: Source) -> None:
        ring = KeyRing.from_uri("test:")
        source.failure = cast("Any", ValueError(text(FIRST)))
        with pytest.raises(KeyRingError):
            ring.reload()
        assert ring.status.error == "the provider of test:source failed (ValueError)"


class Ticks:
    """What a refreshing thread waits for: it goes on when the test says so."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.before_tick: list[Callable[[], object]] = []

    def __call__(self, seconds: float) -> bool:
        """Return whether the thread is to end."""
        self.waits.append(seconds)
        if not self.before_tick:
            return True
        self.before_tick.pop(0)()
        return False


def rotate_in_children(source: Source) -> None:
    """Give a forked child another active key."""
    parent = os.getpid()

    def rotate() -> None:
        if os.getpid() != parent:
            source.keys = [SECOND, FIRST]

    source.before_load = rotate


def refreshing_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "jwt-column key ring"]


@pytest.fixture(scope="class")
def quick_collections() -> None:
    """Let the collections of some tests look at what these made, and not at what the whole run has made."""
    gc.collect()
    gc.freeze()


@pytest.mark.usefixtures("quick_collections")
class TestRefresh:
    """A ring that is loaded again now and then."""

    @pytest.fixture(autouse=True)
    def no_thread_is_left(self) -> Iterator[None]:
        """Wait for the threads of a test, whose rings are gone."""
        yield
        gc.collect()
        for thread in refreshing_threads():
            thread.join(60)
        assert refreshing_threads() == []

    def test_each_wait_is_followed_by_a_reload(self, source: Source) -> None:
        ring, ticks = KeyRing.from_uri("test:"), Ticks()
        ticks.before_tick = [lambda: source.keys.append(SECOND), lambda: source.keys.append(THIRD)]
        refreshing.Refresher(ring, 300.0)._run(ticks, 0.0)
        assert ring.key_ids == IDS[:3]
        assert source.loads == 3

    def test_waits_are_spread(self, source: Source) -> None:
        ring, ticks = KeyRing.from_uri("test:"), Ticks()
        ticks.before_tick = [lambda: None] * 20
        refreshing.Refresher(ring, 100.0)._run(ticks, 100.0)
        assert all(80 <= seconds <= 120 for seconds in ticks.waits)
        assert len(set(ticks.waits)) > 15

    @pytest.mark.parametrize(
        "failure", [KeyUnavailableError("down", retryable=True), ConfigurationError("x"), ValueError("x")]
    )
    def test_failure_does_not_end_it(self, source: Source, failure: Any) -> None:
        ring, ticks = KeyRing.from_uri("test:"), Ticks()
        errors: list[str | None] = []
        ticks.before_tick = [
            lambda: setattr(source, "failure", failure),
            lambda: errors.append(ring.status.error),
            lambda: setattr(source, "failure", None),
        ]
        refreshing.Refresher(ring, 1.0)._run(ticks, 1.0)
        assert errors != [None]
        assert (ring.status.error, ring.key_ids) == (None, (FIRST_ID,))

    def test_it_ends_with_the_ring(self) -> None:
        ticks, ring = Ticks(), KeyRing([FIRST])
        refresher = refreshing.Refresher(ring, 1.0)
        ticks.before_tick = [lambda: None]
        del ring
        gc.collect()
        refresher._run(ticks, 1.0)
        assert len(ticks.waits) == 1

    @pytest.mark.parametrize("seconds", [0, -1, float("nan")])
    def test_interval_is_more_than_nothing(self, source: Source, seconds: float) -> None:
        with pytest.raises(ConfigurationError, match="refresh"):
            KeyRing.from_uri("test:", refresh=seconds)

    def test_new_keys_arrive_by_themselves(self, source: Source) -> None:
        has_loaded = threading.Event()
        ring = KeyRing.from_uri("test:", refresh=0.001)
        assert ring.active == FIRST_ID
        source.keys = [SECOND, FIRST]
        while ring.active != SECOND_ID:
            has_loaded.wait(0.001)
        assert ring.key_ids == (SECOND_ID, FIRST_ID)

    @pytest.mark.parametrize(
        "use",
        [
            lambda ring: ring.active,
            lambda ring: encrypt_token(signed_token(), ring, context=CONTEXT),
            lambda ring: ring.key(bytes.fromhex(FIRST_ID)),
            lambda ring: ring.status,
        ],
        ids=["active", "encrypt", "key", "status"],
    )
    def test_thread_begins_with_the_first_use_and_ends_with_the_ring(
        self, source: Source, use: Callable[[KeyRing], object]
    ) -> None:
        ring = KeyRing.from_uri("test:", refresh=3600)
        repr(ring)
        ring.reload()
        assert refreshing_threads() == []
        use(ring)
        use(ring)
        (thread,) = refreshing_threads()
        assert thread.daemon
        del ring
        gc.collect()
        thread.join(60)
        assert not thread.is_alive()

    def test_ring_with_another_active_key_is_refreshed_too(self, source: Source) -> None:
        source.keys = [FIRST, SECOND]
        ring = KeyRing.from_uri("test:", refresh=0.001).with_active(SECOND_ID)
        assert ring.active == SECOND_ID
        source.keys = [FIRST, SECOND, THIRD]
        while THIRD_ID not in ring.key_ids:
            pass
        assert ring.active == SECOND_ID

    def test_many_threads_that_use_it_first_start_one(self, source: Source) -> None:
        ring = KeyRing.from_uri("test:", refresh=3600)
        start = threading.Barrier(8)

        def use() -> str:
            start.wait()
            return ring.active

        with ThreadPoolExecutor(8) as pool:
            assert {future.result() for future in [pool.submit(use) for _ in range(8)]} == {FIRST_ID}
        assert len(refreshing_threads()) == 1

    def test_reload_before_the_first_use_is_not_undone_by_it(self, source: Source) -> None:
        ring = KeyRing.from_uri("test:", refresh=3600)
        source.keys = [SECOND, FIRST]
        ring.reload()
        assert (ring.active, ring.tenants) == (SECOND_ID, {})

    def test_ring_that_is_not_refreshed_has_no_thread(self, source: Source) -> None:
        """The control of the tests above."""
        ring = KeyRing.from_uri("test:")
        encrypt_token(signed_token(), ring, context=CONTEXT)
        assert refreshing_threads() == []

    def test_first_wait_is_an_interval_and_that_of_a_forked_child_a_fifth_at_most(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The keys of a child are as old as its parent's; a fleet that starts together must not ask in step."""
        clock, process, waits = Clock(), [1], []

        class Thread(threading.Thread):
            def start(self) -> None:
                waits.append(self._args[1])  # type: ignore[attr-defined]

        monkeypatch.setattr(refreshing, "monotonic", clock)
        monkeypatch.setattr(threading, "Thread", Thread)
        monkeypatch.setattr(os, "getpid", lambda: process[0])
        ring = KeyRing([FIRST])
        refresher = refreshing.Refresher(ring, 100.0)
        for _ in range(19):
            process[0] += 1
            clock.now += 1_000.0
            refresher.keep_running()
            refresher.keep_running()
        first, *others = waits
        assert len(waits) == 19
        assert 80 <= first <= 120
        assert all(0 <= seconds <= 20 for seconds in others)
        assert len(set(others)) > 15

    @needs_fork
    def test_child_of_a_fork_goes_on_refreshing(self, source: Source) -> None:
        ring = KeyRing.from_uri("test:", refresh=0.001)
        assert ring.active == FIRST_ID
        rotate_in_children(source)

        def use() -> str:
            before = len(refreshing_threads())
            while ring.active != SECOND_ID:
                pass
            return f"{before} {len(refreshing_threads())}"

        # The thread of the parent is not there, and a use begins another one.
        assert forked(use) == "0 1"
        assert len(refreshing_threads()) == 1

    @needs_fork
    def test_child_of_a_fork_without_hooks_goes_on_refreshing(self, source: Source) -> None:
        """Its locks are free, too, though a thread of the parent held them."""
        ring = KeyRing.from_uri("test:", refresh=0.02)
        assert ring.active == FIRST_ID
        rotate_in_children(source)

        def use() -> bytes:
            deadline = time.monotonic() + 30
            while ring.active != SECOND_ID and time.monotonic() < deadline:
                time.sleep(0.001)
            return f"{ring.active} {ring.status.error}".encode()

        with ring._loader.lock, ring._refresher._lock.get():  # type: ignore[union-attr]
            time.sleep(0.2)  # The thread has come to the lock, and waits.
            assert raw_fork(use) == f"{SECOND_ID} None".encode()

    def test_refresh_that_is_overdue_shows_in_the_status(self, source: Source, clock: Clock) -> None:
        ring = KeyRing.from_uri("test:", refresh=3600)
        assert ring.status.error is None
        clock.now += 3 * 3600 + 1
        assert "overdue" in (ring.status.error or "")
        assert ring.status.retryable
        ring.reload()
        assert ring.status.error is None


class TestReloadForUnknownKeys:
    """A key id that the ring lacks makes it look once more."""

    def test_new_key_is_found_without_a_restart(self, source: Source) -> None:
        ring = KeyRing.from_uri("test:")
        writer = KeyRing([SECOND])
        source.keys = [FIRST, SECOND]
        value = signed_token()
        stored = encrypt_token(value, writer, context=CONTEXT)
        assert value == decrypt_token(stored, ring, context=CONTEXT)
        assert (source.loads, ring.key_ids) == (2, (FIRST_ID, SECOND_ID))

    def test_known_key_causes_no_reload(self, source: Source) -> None:
        ring = KeyRing.from_uri("test:")
        stored = encrypt_token(signed_token(), ring, context=CONTEXT)
        for _ in range(3):
            decrypt_token(stored, ring, context=CONTEXT)
        assert source.loads == 1

    def test_unknown_key_ids_cause_one_reload_in_ten_seconds(self, source: Source, clock: Clock) -> None:
        ring = KeyRing.from_uri("test:")
        loads = []
        for clock.now in (1_000.0, 1_000.0, 1_009.9, 1_010.0, 1_015.0, 1_020.0):
            with pytest.raises(UnknownKeyError):
                ring.key(bytes.fromhex(SECOND_ID))
            loads.append(source.loads)
        assert loads == [2, 2, 2, 3, 3, 4]

    def test_ten_seconds_count_from_the_end_of_a_load(self, source: Source, clock: Clock) -> None:
        """Else the threads that waited for a slow load would each load once more."""
        ring = KeyRing.from_uri("test:")

        def take_a_minute() -> None:
            clock.now += 60

        source.before_load = take_a_minute
        for _ in range(3):
            with pytest.raises(UnknownKeyError):
                ring.key(bytes.fromhex(SECOND_ID))
        assert source.loads == 2

    def test_reload_by_hand_is_not_limited_and_counts(self, source: Source, clock: Clock) -> None:
        ring = KeyRing.from_uri("test:")
        ring.reload()
        ring.reload()
        with pytest.raises(UnknownKeyError):
            ring.key(bytes.fromhex(SECOND_ID))
        assert source.loads == 3

    @pytest.mark.parametrize(
        ("failure", "retryable"),
        [
            (KeyUnavailableError("server is down", retryable=True), True),
            (KeyUnavailableError("wrong PIN"), False),
            (KeyRingError("line 2"), False),
        ],
        ids=["down", "PIN", "malformed"],
    )
    def test_reload_that_fails_says_so_and_the_ring_goes_on_with_what_it_has(
        self, source: Source, clock: Clock, failure: KeyRingError, retryable: bool
    ) -> None:
        ring = KeyRing.from_uri("test:")
        value = signed_token()
        stored = encrypt_token(value, KeyRing([SECOND]), context=CONTEXT)
        source.keys, source.failure = [FIRST, SECOND], failure
        # The second time nothing is loaded, and still it is not known whether the key exists.
        for _ in range(2):
            with pytest.raises(KeyUnavailableError, match=str(failure)) as caught:
                decrypt_token(stored, ring, context=CONTEXT)
            assert caught.value.retryable is retryable
            assert (caught.value.key_id, caught.value.context) == (SECOND_ID, CONTEXT)
        assert source.loads == 2
        assert ring.key_ids == (FIRST_ID,)
        source.failure = None
        clock.now += 10
        assert value == decrypt_token(stored, ring, context=CONTEXT)

    def test_key_that_a_working_reload_did_not_bring_is_unknown(self, source: Source, clock: Clock) -> None:
        ring = KeyRing.from_uri("test:")
        source.failure = KeyUnavailableError("down")
        with pytest.raises(KeyUnavailableError):
            ring.key(bytes.fromhex(SECOND_ID))
        source.failure = None
        clock.now += 10
        with pytest.raises(UnknownKeyError):
            ring.key(bytes.fromhex(SECOND_ID))


class Waited:
    """A lock that another thread held, and did something under, while this one waited for it."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self.meanwhile = meanwhile

    def acquire(self, blocking: bool = True) -> bool:
        """Get the lock at last."""
        self.meanwhile()
        return True

    def release(self) -> None:
        """Release it."""

    def locked(self) -> bool:
        """Nobody else holds it now."""
        return False

    def __enter__(self) -> None:
        """Get the lock at last."""
        self.meanwhile()

    def __exit__(self, *error: object) -> None:
        """Release it."""


def replace_lock(ring: KeyRing, lock: Any) -> None:
    """Give a ring another lock."""
    ring._loader._lock = PerProcess(lambda: lock)


class TestThreads:
    """One ring serves every thread of a process."""

    def test_many_threads_that_miss_a_key_at_once_load_it_once(self, source: Source) -> None:
        ring = KeyRing.from_uri("test:")
        source.keys = [FIRST, SECOND]
        together = threading.Barrier(8, timeout=30)

        def ask(_number: int) -> str:
            together.wait()
            while True:
                try:
                    return ring.key(bytes.fromhex(SECOND_ID)).id
                except KeyUnavailableError:
                    time.sleep(0.001)  # Another thread is loading it.

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, range(8))) == [SECOND_ID] * 8
        assert source.loads == 2

    def test_nobody_waits_for_a_load_that_hangs(self, source: Source) -> None:
        """A KMS that hangs stops the thread that asks it, and no thread that meets an unknown key meanwhile."""
        ring = KeyRing.from_uri("test:")
        stored = encrypt_token(signed_token(), ring, context=CONTEXT)
        is_loading, may_go_on = threading.Event(), threading.Event()

        def hang() -> None:
            is_loading.set()
            may_go_on.wait(60)

        source.before_load, source.keys = hang, [FIRST, SECOND]
        with ThreadPoolExecutor(1) as pool:
            reload = pool.submit(ring.reload)
            try:
                assert is_loading.wait(30)
                started = time.monotonic()
                for _ in range(100):
                    with pytest.raises(KeyUnavailableError, match="is being loaded") as caught:
                        ring.key(bytes.fromhex(SECOND_ID))
                    assert (caught.value.retryable, caught.value.key_id) == (True, SECOND_ID)
                assert decrypt_token(stored, ring, context=CONTEXT)
                assert ring.status.error is None
                assert not reload.done()
                assert time.monotonic() - started < 20
            finally:
                may_go_on.set()
            reload.result(30)
        assert ring.key(bytes.fromhex(SECOND_ID)).id == SECOND_ID

    def test_event_loop_never_loads(self, source: Source) -> None:
        ring = KeyRing.from_uri("test:")
        source.keys = [FIRST, SECOND]
        loading_threads: list[str] = []
        source.before_load = lambda: loading_threads.append(threading.current_thread().name)

        async def ask() -> str:
            with pytest.raises(KeyUnavailableError, match="is being loaded") as caught:
                ring.key(bytes.fromhex(SECOND_ID))
            assert caught.value.retryable
            for _ in range(3000):
                try:
                    return ring.key(bytes.fromhex(SECOND_ID)).id
                except KeyUnavailableError:
                    await asyncio.sleep(0.01)
            raise AssertionError

        assert asyncio.run(ask()) == SECOND_ID
        assert loading_threads == ["jwt-column keys"]
        # The control: outside of a loop, the thread that asks loads.
        fresh = KeyRing.from_uri("test:")
        source.keys = [FIRST, SECOND, THIRD]
        assert fresh.key(bytes.fromhex(THIRD_ID)).id == THIRD_ID
        assert loading_threads[1:] == [threading.current_thread().name] * 2

    def test_key_that_another_thread_loaded_meanwhile_is_not_loaded_again(self, source: Source) -> None:
        ring = KeyRing.from_uri("test:")
        source.keys = [FIRST, SECOND]

        def load_and_fail_to_load_again() -> None:
            ring._keys = ring._loader.load(ring._keys)
            source.failure = KeyUnavailableError("down")
            with pytest.raises(KeyUnavailableError):
                ring._loader.load(ring._keys)

        replace_lock(ring, Waited(load_and_fail_to_load_again))
        assert ring.key(bytes.fromhex(SECOND_ID)).id == SECOND_ID
        assert source.loads == 3

    def test_view_is_whole_also_where_the_ring_changes_between_any_two_looks(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ring = KeyRing([FIRST, SECOND])
        looks = itertools.cycle([KeyRing([FIRST, SECOND]).snapshot(), KeyRing([SECOND, THIRD]).snapshot()])
        monkeypatch.setattr(KeyRing, "_keys", property(lambda _ring: next(looks), lambda _ring, _keys: None))
        whole = {(FIRST_ID, SECOND_ID), (SECOND_ID, THIRD_ID)}
        for _ in range(2):
            assert ring.key_ids in whole
            assert tuple(key.id for key in ring.keys) in whole
            assert ring.with_key(bytes([9]) * 32)
            assert repr(ring) in {f"KeyRing(active={ids[0]!r}, key_ids={list(ids)!r})" for ids in whole}
            next(looks)

    def test_known_keys_are_served_while_another_thread_loads(self, source: Source) -> None:
        ring = KeyRing.from_uri("test:")
        stored = encrypt_token(signed_token(), ring, context=CONTEXT)
        is_loading, may_go_on = threading.Event(), threading.Event()

        def block() -> None:
            is_loading.set()
            may_go_on.wait(30)

        source.before_load = block
        with ThreadPoolExecutor(1) as pool:
            reload = pool.submit(ring.reload)
            try:
                assert is_loading.wait(30)
                assert decrypt_token(stored, ring, context=CONTEXT)
                assert encrypt_token(signed_token(), ring, context=CONTEXT)
                assert not reload.done()
            finally:
                may_go_on.set()
            reload.result(30)

    def test_every_view_of_a_ring_is_whole_while_it_is_reloaded(self, source: Source) -> None:
        """Threads encrypt, decrypt and look at the ring while its keys come, go and change places."""
        source.keys = [FIRST, SECOND]
        ring = KeyRing.from_uri("test:")
        stored = {
            value: encrypt_token(value, KeyRing([key]), context=CONTEXT)
            for key in (FIRST, SECOND)
            for value in (signed_token(sub=key.hex()),)
        }
        is_over = threading.Event()

        def use() -> int:
            rounds = 0
            while not is_over.is_set() or rounds == 0:
                for value, envelope in stored.items():
                    assert value == decrypt_token(envelope, ring, context=CONTEXT)
                    assert encrypt_token(value, ring, context=CONTEXT)[1:5].hex() in IDS  # type: ignore[union-attr]
                key_ids = ring.key_ids
                assert len(set(key_ids)) == len(key_ids)
                assert {FIRST_ID, SECOND_ID} <= set(key_ids) <= set(IDS)
                keys = ring.keys
                assert len({key.id for key in keys}) == len(keys)
                assert ring.with_key(bytes([9]) * 32).active in IDS
                assert ring.with_active(SECOND_ID).active == SECOND_ID
                rounds += 1
            return rounds

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(4) as pool:
                users = [pool.submit(use) for _ in range(4)]
                try:
                    for number in range(300):
                        source.keys = [[FIRST, SECOND], [SECOND, THIRD, FIRST], [THIRD, FIRST, SECOND]][
                            number % 3
                        ]
                        ring.reload()
                finally:
                    is_over.set()
                assert all(user.result(60) for user in users)
        finally:
            sys.setswitchinterval(interval)


def forked(work: Callable[[], str]) -> str:
    """Return what *work* gives in a forked child; a child that hangs is ended by an alarm and gives nothing."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside other threads, and that is what is tested here.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        # Nothing of the test runner may run in the child, so it leaves by _exit whatever happens.
        try:
            signal.alarm(20)
            os.write(writer, work().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return answer


@needs_fork
class TestFork:
    """A child that is forked while another thread loads keys can use its rings."""

    @pytest.fixture
    def loading(self, source: Source) -> Iterator[Callable[[Callable[[], object]], None]]:
        """Start a load in another thread, to be inside it until the test is over."""
        is_loading, may_go_on = threading.Event(), threading.Event()
        parent = os.getpid()

        def block() -> None:
            if os.getpid() == parent:
                is_loading.set()
                may_go_on.wait(30)

        with ThreadPoolExecutor(1) as pool:

            def start(load: Callable[[], object]) -> None:
                source.before_load = block
                pool.submit(load)
                assert is_loading.wait(30)

            try:
                yield start
            finally:
                may_go_on.set()

    def test_reload_in_another_thread_does_not_lock_the_ring_of_the_child(
        self, source: Source, loading: Callable[[Callable[[], object]], None]
    ) -> None:
        ring = KeyRing.from_uri("test:")
        source.keys = [FIRST, SECOND]
        loading(ring.reload)
        # The control: the lock that the child inherits is taken.
        assert ring._loader.lock.locked()
        assert forked(lambda: ring.key(bytes.fromhex(SECOND_ID)).id) == SECOND_ID

    def test_first_load_in_another_thread_does_not_lock_the_default_ring_of_the_child(
        self, source: Source, loading: Callable[[Callable[[], object]], None]
    ) -> None:
        loading(lambda: keyring_of_uri("test:"))
        assert default_ring._lock.get().locked()
        assert forked(lambda: keyring_of_uri("test:").active) == FIRST_ID

    def test_child_of_a_quiet_process_uses_the_ring_of_its_parent(self) -> None:
        value, ring = signed_token(), KeyRing([FIRST])
        stored = encrypt_token(value, ring, context=CONTEXT)
        assert value == forked(lambda: str(decrypt_token(stored, ring, context=CONTEXT)))


class TestDefaultRing:
    """The ring of columns that name none."""

    def test_ring_that_was_set_comes_before_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JWT_COLUMN_KEYS", text(SECOND))
        ring = KeyRing([FIRST])
        set_default_keyring(ring)
        assert ring is default_keyring()

    def test_uri_of_the_environment_comes_before_its_keys(
        self, monkeypatch: pytest.MonkeyPatch, source: Source
    ) -> None:
        monkeypatch.setenv("JWT_COLUMN_KEYS", text(SECOND))
        monkeypatch.setenv("JWT_COLUMN_KEYRING", "test:")
        assert default_keyring().active == FIRST_ID

    @pytest.mark.parametrize("uri", [None, ""])
    def test_keys_of_the_environment_come_last(
        self, monkeypatch: pytest.MonkeyPatch, uri: str | None
    ) -> None:
        if uri is not None:
            monkeypatch.setenv("JWT_COLUMN_KEYRING", uri)
        monkeypatch.setenv("JWT_COLUMN_KEYS", f"{text(SECOND)},{text(FIRST)}")
        assert default_keyring().key_ids == (SECOND_ID, FIRST_ID)

    def test_without_any_of_them_the_message_says_what_to_set(self) -> None:
        with pytest.raises(ConfigurationError) as caught:
            default_keyring()
        for hint in ("set_default_keyring()", "JWT_COLUMN_KEYRING", "JWT_COLUMN_KEYS"):
            assert hint in str(caught.value)

    def test_environment_is_read_at_first_use_and_the_ring_then_kept(
        self, monkeypatch: pytest.MonkeyPatch, source: Source
    ) -> None:
        with pytest.raises(ConfigurationError):
            default_keyring()
        monkeypatch.setenv("JWT_COLUMN_KEYRING", "test:")
        assert source.loads == 0
        assert default_keyring() is default_keyring()
        assert source.loads == 1

    def test_load_that_failed_is_tried_again_at_the_next_use(
        self, monkeypatch: pytest.MonkeyPatch, source: Source
    ) -> None:
        monkeypatch.setenv("JWT_COLUMN_KEYRING", "test:")
        source.failure = KeyUnavailableError("down")
        with pytest.raises(KeyUnavailableError):
            default_keyring()
        source.failure = None
        assert default_keyring().active == FIRST_ID

    def test_setting_none_goes_back_to_the_environment_and_reads_it_anew(
        self, monkeypatch: pytest.MonkeyPatch, source: Source
    ) -> None:
        monkeypatch.setenv("JWT_COLUMN_KEYRING", "test:")
        before = default_keyring()
        set_default_keyring(KeyRing([THIRD]))
        source.keys = [SECOND, FIRST]
        set_default_keyring(None)
        assert (before.active, default_keyring().active) == (FIRST_ID, SECOND_ID)

    @pytest.mark.parametrize("ring", ["env:JWT_COLUMN_KEYS", FIRST, [FIRST], 5])
    def test_only_a_ring_can_be_set(self, ring: Any) -> None:
        with pytest.raises(ConfigurationError, match=type(ring).__name__):
            set_default_keyring(ring)

    def test_columns_that_name_the_same_uri_share_a_ring(self, source: Source) -> None:
        first, second = resolve_keyring("test:"), resolve_keyring("test:")
        assert first is second
        assert source.loads == 1

    def test_many_threads_that_name_a_uri_at_once_load_it_once(self, source: Source) -> None:
        together = threading.Barrier(8, timeout=30)

        def ask(_number: int) -> KeyRing:
            together.wait()
            return keyring_of_uri("test:")

        with ThreadPoolExecutor(8) as pool:
            assert len({id(ring) for ring in pool.map(ask, range(8))}) == 1
        assert source.loads == 1

    def test_ring_that_another_thread_loaded_meanwhile_is_shared(
        self, source: Source, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ring = KeyRing.from_uri("test:")
        lock: Any = Waited(lambda: default_ring._by_uri.setdefault("test:", ring))
        monkeypatch.setattr(default_ring, "_lock", PerProcess(lambda: lock))
        assert ring is keyring_of_uri("test:")
        assert source.loads == 1

    def test_ring_none_and_uri_are_each_resolved(self, source: Source) -> None:
        ring = KeyRing([THIRD])
        set_default_keyring(KeyRing([SECOND]))
        resolved = [resolve_keyring(named).active for named in (ring, None, "test:")]
        assert resolved == [THIRD_ID, SECOND_ID, FIRST_ID]

    def test_ring_of_a_file_is_loaded_by_its_uri(self, tmp_path: Path) -> None:
        providers.write_key_file(tmp_path / "keys", [text(SECOND), text(FIRST)])
        assert KeyRing.from_uri(f"file:{tmp_path / 'keys'}").key_ids == (SECOND_ID, FIRST_ID)
