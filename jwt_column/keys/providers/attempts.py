"""A call to another system, tried again when that may help, and never for longer than one deadline.

Between two attempts lies a random pause from zero up to a limit that doubles ("full jitter"), so that a fleet that
lost its server together does not come back to it together.
"""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future, wait
from contextvars import copy_context
from typing import TYPE_CHECKING, Final, TypeVar

from ...errors import JWTColumnError, KeyUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["attempt_within"]

Result = TypeVar("Result")

#: The first try and three more. A server that needs longer than that is not back within seconds.
_ATTEMPTS: Final = 4
#: Longest pause, in seconds, before the second, third, ... attempt; and where the doubling ends.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0


def attempt_within(
    seconds: float, call: Callable[[float], Result], *, late: str, attempts: int = _ATTEMPTS
) -> Result:
    """Return what *call* returns, after as many attempts as it takes and the deadline allows.

    An attempt runs in a thread of its own, because no time-out of a library bounds everything: not the lookup of a
    host name, not a server that sends a byte now and then, not a PKCS#11 module. An attempt that is still
    running at the deadline is left to end by itself, and what it returns is dropped.

    Args:
        seconds: How long all attempts may take together, pauses included.
        call: Makes one attempt. It is given the seconds that are left, for time-outs of its own.
        late: Message of the error where the deadline comes first.
        attempts: How often it is tried at most.

    Raises:
        KeyUnavailableError: The last attempt's, or *late* with ``retryable=True``. Only an error that is
            ``retryable`` leads to another attempt.
        Exception: Any other error of *call*, at once.
    """
    return _attempt_within(
        seconds,
        call,
        late=late,
        attempts=attempts,
        sleep=time.sleep,
        uniform=random.uniform,  # It spreads load and guards nothing.
        clock=time.monotonic,
    )


def _attempt_within(
    seconds: float,
    call: Callable[[float], Result],
    *,
    late: str,
    attempts: int,
    sleep: Callable[[float], object],
    uniform: Callable[[float, float], float],
    clock: Callable[[], float],
) -> Result:
    deadline = clock() + seconds
    limit = _FIRST_PAUSE
    while True:
        attempts -= 1
        try:
            return _in_thread(call, deadline - clock(), late)
        except KeyUnavailableError as error:
            pause = uniform(0.0, limit)
            if not error.retryable or attempts == 0 or clock() + pause >= deadline:
                raise
        sleep(pause)
        limit = min(2 * limit, _LONGEST_PAUSE)


def _in_thread(call: Callable[[float], Result], seconds: float, late: str) -> Result:
    """Make one attempt, and wait for it no longer than *seconds*."""
    future: Future[Result] = Future()
    arguments = (_settle, future, call, seconds)
    threading.Thread(target=copy_context().run, args=arguments, name="jwt-column-keys", daemon=True).start()
    try:
        if not wait([future], max(seconds, 0.0)).done:
            raise KeyUnavailableError(late, retryable=True)
        return future.result()
    finally:
        # An error's traceback holds this frame. Without the two names, nothing in it leads back to the error.
        del future, arguments


def _settle(future: Future[Result], call: Callable[[float], Result], seconds: float) -> None:
    try:
        future.set_result(call(seconds))
    except JWTColumnError as error:
        # Without its frames: they hold keys and PINs in local variables, which error reporters show.
        error.__context__ = None
        future.set_exception(error.with_traceback(None))
    except BaseException as error:  # noqa: BLE001 - it is raised where the caller waits.
        future.set_exception(error)
    finally:
        del future
