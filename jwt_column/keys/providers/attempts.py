"""Calls of another system, retried after transient errors within one deadline.

The pause between two attempts is random, from zero up to a limit that doubles ("full jitter"), so that the processes
of a fleet do not come back to a recovering server at the same moment.
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

Result = TypeVar("Result")

#: The first attempt and three more. A server that needs longer is not back within seconds.
_ATTEMPTS: Final = 4
#: Longest pause before the second attempt, in seconds, and the limit of its doubling.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0


def attempt_within(
    seconds: float,
    call: Callable[[float], Result],
    *,
    late: str,
    attempts: int = _ATTEMPTS,
    sleep: Callable[[float], object] = time.sleep,
    uniform: Callable[[float, float], float] = random.uniform,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Return the result of *call*, retried while its errors are retryable and the deadline allows.

    Each attempt runs in a thread of its own, because the time-outs of libraries do not cover the lookup of a host name,
    a server that sends a byte now and then, or a PKCS#11 module. An attempt that still runs at the deadline is
    abandoned, and its result is dropped.

    Args:
        seconds: Time limit of all attempts together, pauses included.
        call: Makes one attempt. Its argument is the number of seconds left, for time-outs of its own.
        late: Message of the error at the deadline.
        attempts: The largest number of attempts.
        sleep: Pauses; this and the others are parameters for tests.
        uniform: Chooses a pause. It spreads load; no secret depends on it.
        clock: Returns the time.

    Raises:
        KeyUnavailableError: The error of the last attempt, or *late* with ``retryable=True``.
        Exception: Any other error of *call*, at once.
    """
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
    """Make one attempt in a thread, and wait for it at most *seconds*."""
    future: Future[Result] = Future()
    arguments = (_settle, future, call, seconds)
    threading.Thread(target=copy_context().run, args=arguments, name="jwt-column-keys", daemon=True).start()
    try:
        if not wait([future], max(seconds, 0.0)).done:
            raise KeyUnavailableError(late, retryable=True)
        return future.result()
    finally:
        # The traceback of an error holds this frame. Without the two names the frame does not refer to the error.
        del future, arguments


def _settle(future: Future[Result], call: Callable[[float], Result], seconds: float) -> None:
    try:
        future.set_result(call(seconds))
    except JWTColumnError as error:
        # Drop the frames: error reporters show local variables, and theirs are keys and PINs.
        error.__context__ = None
        future.set_exception(error.with_traceback(None))
    except BaseException as error:  # noqa: BLE001 - it is raised where the caller waits.
        future.set_exception(error)
    finally:
        del future
