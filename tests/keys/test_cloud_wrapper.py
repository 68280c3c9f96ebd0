"""What the wrappers of the clouds share: many keys through a system that takes one to a call."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from jwt_column import ConfigurationError, JWTColumnError, KeyUnavailableError
from jwt_column.keys.providers.cloud import CloudWrapper
from jwt_column.keys.providers.parameters import split_parameters
from jwt_column.providers import AssociatedData, WrappedKey

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

KEYS = {AssociatedData("sessions", f"{number:08x}"): bytes([number]) * 32 for number in range(40)}
WRAPPED = [WrappedKey(key[::-1], bound) for bound, key in KEYS.items()]
PATIENCE = 30


class Fake(CloudWrapper):
    """A cloud that does to each wrapped key what a test wants.

    Attributes:
        asked: The key ids that were asked for, in order.
        clients: How many clients were made, and how many were closed.
    """

    scheme = "fake"
    system = "The fake"
    loggers = ()

    def __init__(self, behaviour: Callable[[bytes], bytes], timeout: float = PATIENCE) -> None:
        super().__init__("kek", split_parameters(f"kek?timeout={timeout}", self.scheme, "timeout")[1])
        self._behaviour = behaviour
        self.asked: list[str] = []
        self.clients = [0, 0]

    def _decrypt(self, client: str, ciphertext: bytes, associated_data: AssociatedData) -> bytes:
        self.asked.append(associated_data.key_id)
        return self._behaviour(ciphertext)

    def _encrypt(self, client: str, key: bytes, associated_data: AssociatedData) -> bytes:
        return self._behaviour(key)

    def _open_client(self, stack: ExitStack) -> str:
        self.clients[0] += 1
        stack.callback(self._close)
        return "client"

    def _close(self) -> None:
        self.clients[1] += 1

    def _error_of(self, error: Exception, key_id: str | None) -> JWTColumnError:
        return KeyUnavailableError(
            f"{type(error).__name__} at {key_id}", retryable=isinstance(error, OSError)
        )


def test_keys_come_in_order_and_eight_calls_run_at_a_time() -> None:
    running, most = 0, 0
    lock, all_lanes = threading.Lock(), threading.Barrier(8, timeout=PATIENCE)

    def behaviour(ciphertext: bytes) -> bytes:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        # 40 keys are five times eight, and each eight wait for one another.
        all_lanes.wait()
        with lock:
            running -= 1
        return ciphertext[::-1]

    fake = Fake(behaviour)
    assert fake.unwrap(WRAPPED) == list(KEYS.values())
    assert most == 8
    assert fake.clients == [1, 1]


def test_second_attempt_asks_only_for_what_is_missing() -> None:
    failing = iter([OSError()])

    def behaviour(ciphertext: bytes) -> bytes:
        if ciphertext == WRAPPED[20].ciphertext:
            for error in failing:
                raise error
        return ciphertext[::-1]

    fake = Fake(behaviour)
    assert fake.unwrap(WRAPPED) == list(KEYS.values())
    assert fake.clients == [2, 2]
    assert sorted(fake.asked) == sorted(
        [*(bound.key_id for bound in KEYS), WRAPPED[20].associated_data.key_id]
    )


def test_first_failure_that_no_retry_mends_ends_it() -> None:
    def behaviour(ciphertext: bytes) -> bytes:
        raise ValueError(ciphertext)

    fake = Fake(behaviour)
    with pytest.raises(KeyUnavailableError, match=r"ValueError at 0000000\d") as caught:
        fake.unwrap(WRAPPED)
    assert caught.value.__context__ is None
    assert len(fake.asked) <= 8
    assert fake.clients == [1, 1]


def test_attempt_that_was_left_at_the_time_out_asks_for_nothing_more() -> None:
    woken = threading.Event()

    def behaviour(ciphertext: bytes) -> bytes:
        woken.wait(PATIENCE)
        return ciphertext[::-1]

    fake = Fake(behaviour, timeout=0.2)
    with pytest.raises(
        KeyUnavailableError, match=r"^fake:kek: The fake did not answer within 0\.2 s$"
    ) as caught:
        fake.unwrap(WRAPPED)
    assert caught.value.retryable
    woken.set()
    end = time.monotonic() + PATIENCE
    while fake.clients != [1, 1] and time.monotonic() < end:
        time.sleep(0.01)
    assert fake.clients == [1, 1]
    assert len(fake.asked) == 8


@pytest.mark.parametrize("query", ["a=1&a=2", "a=", "=1", "b=1", "a", "a=1&", "", "a=1;a=2&b"])
def test_parameters_that_the_scheme_does_not_have_are_refused(query: str) -> None:
    with pytest.raises(ConfigurationError, match=r"a URI of fake: has name=value of a, c"):
        split_parameters(f"kek?{query}", "fake", "a", "c")


def test_parameters_are_decoded() -> None:
    assert split_parameters("kek?a=1%2F2&c=x", "fake", "a", "c") == ("kek", {"a": "1/2", "c": "x"})
    assert split_parameters("kek", "fake", "a") == ("kek", {})
