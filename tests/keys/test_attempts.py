"""Calls to other systems: tried again where that may help, ended by one deadline."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from jwt_column import KeyRingError, KeyUnavailableError
from jwt_column.keys.providers.attempts import attempt_within
from tests.support.tokens import locals_shown_by, revealed_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LATE = "it did not answer in time"


def down() -> KeyUnavailableError:
    return KeyUnavailableError("it is down", retryable=True)


class Calls:
    """A call that goes through a list of outcomes: errors are raised, anything else is returned."""

    def __init__(self, *outcomes: Any) -> None:
        self._outcomes: Iterator[Any] = iter(outcomes)
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> Any:
        self.seconds.append(seconds)
        outcome = next(self._outcomes)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class Time:
    """A clock on which only pauses take time, and a random source that always gives the upper end."""

    def __init__(self, share: float = 1.0) -> None:
        self._share = share
        self.now = 1000.0
        self.pauses: list[float] = []
        self.limits: list[tuple[float, float]] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def uniform(self, low: float, high: float) -> float:
        self.limits.append((low, high))
        return low + self._share * (high - low)

    def run(self, call: Callable[[float], Any], *, seconds: float = 60.0, attempts: int = 4) -> Any:
        return attempt_within(
            seconds,
            call,
            late=LATE,
            attempts=attempts,
            sleep=self.sleep,
            uniform=self.uniform,
            clock=lambda: self.now,
        )


class TestAttempts:
    """How often, and how far apart."""

    def test_first_answer_is_returned(self) -> None:
        time, calls = Time(), Calls("answer")
        assert time.run(calls) == "answer"
        assert time.pauses == []

    def test_a_failure_that_may_pass_is_tried_again(self) -> None:
        time, calls = Time(), Calls(down(), down(), "answer")
        assert time.run(calls) == "answer"
        assert len(calls.seconds) == 3

    def test_the_last_failure_is_raised(self) -> None:
        last = down()
        time, calls = Time(), Calls(down(), down(), last, "too late")
        with pytest.raises(KeyUnavailableError) as caught:
            time.run(calls, attempts=3)
        assert caught.value is last
        assert len(calls.seconds) == 3

    @pytest.mark.parametrize(
        "error",
        [
            KeyUnavailableError("wrong PIN"),
            KeyRingError("not wrapped by this KEK"),
            TimeoutError("of another"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_a_failure_that_stays_is_raised_at_once(self, error: Exception) -> None:
        time, calls = Time(), Calls(error, "never reached")
        with pytest.raises(type(error)) as caught:
            time.run(calls)
        assert caught.value is error
        assert len(calls.seconds) == 1

    def test_pauses_are_random_from_zero_up_to_a_limit_that_doubles_and_ends(self) -> None:
        time, calls = Time(share=0.5), Calls(*(down() for _ in range(7)), "answer")
        time.run(calls, attempts=8)
        assert time.limits == [(0.0, limit) for limit in (0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0)]
        assert time.pauses == [limit / 2 for _, limit in time.limits]


class TestDeadline:
    """One deadline over everything."""

    def test_each_attempt_is_told_how_long_it_may_take(self) -> None:
        time, calls = Time(), Calls(down(), down(), "answer")
        time.run(calls, seconds=10.0)
        assert calls.seconds == pytest.approx([10.0, 9.9, 9.7])

    def test_a_pause_that_would_pass_the_deadline_is_not_begun(self) -> None:
        last = down()
        time, calls = Time(), Calls(down(), last, "too late")
        with pytest.raises(KeyUnavailableError) as caught:
            time.run(calls, seconds=0.3)
        assert caught.value is last
        assert time.pauses == [0.1]

    def test_with_a_longer_deadline_it_is_begun(self) -> None:
        time, calls = Time(), Calls(down(), down(), "in time")
        assert time.run(calls, seconds=0.31) == "in time"

    def test_an_attempt_that_never_ends_is_left_behind(self) -> None:
        release = threading.Event()
        try:
            with pytest.raises(KeyUnavailableError, match=LATE) as caught:
                attempt_within(0.05, lambda seconds: release.wait(), late=LATE)
            assert caught.value.retryable
        finally:
            release.set()

    def test_without_any_time_left_nothing_is_waited_for(self) -> None:
        release = threading.Event()
        try:
            with pytest.raises(KeyUnavailableError, match=LATE):
                attempt_within(-1.0, lambda seconds: release.wait(), late=LATE)
        finally:
            release.set()


class TestThread:
    """An attempt runs in another thread, and its caller need not know."""

    def test_context_variables_are_those_of_the_caller(self) -> None:
        variable = contextvars.ContextVar("variable", default="of the thread")
        variable.set("of the caller")
        assert attempt_within(5.0, lambda seconds: variable.get(), late=LATE) == "of the caller"

    def test_an_interrupt_inside_of_it_reaches_the_caller(self) -> None:
        with pytest.raises(KeyboardInterrupt):
            attempt_within(5.0, Calls(KeyboardInterrupt()), late=LATE)

    def test_an_error_comes_without_the_frames_that_it_left(self) -> None:
        def call(seconds: float) -> None:
            pin = "secret-pin-4711"
            try:
                raise ValueError(pin)  # noqa: TRY301 - the frame is what is looked for
            except ValueError:
                raise KeyRingError("refused") from None

        with pytest.raises(KeyRingError) as control:
            call(1.0)
        assert "secret-pin-4711" in locals_shown_by(control.value)
        with pytest.raises(KeyRingError) as caught:
            attempt_within(5.0, call, late=LATE)
        assert "secret-pin-4711" not in locals_shown_by(caught.value)
        assert set() == revealed_by(caught.value, "secret-pin-4711")

    @pytest.mark.parametrize("outcome", ["answer", "error"])
    def test_nothing_of_an_attempt_is_kept_alive(self, outcome: str) -> None:
        """Neither a key nor a connection waits for the garbage collector."""

        class Secret:
            pass

        secrets = [Secret()]
        watched = weakref.ref(secrets[0])

        def call(seconds: float) -> Any:
            secret = secrets.pop()
            if outcome == "error":
                raise KeyRingError("refused")
            return secret

        gc.disable()
        try:
            with contextlib.suppress(KeyRingError):
                attempt_within(5.0, call, late=LATE)
            for thread in threading.enumerate():
                if thread.name == "jwt-column-keys":
                    thread.join(5.0)
            assert watched() is None
        finally:
            gc.enable()
