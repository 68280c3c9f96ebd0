"""A fork of which Python's hooks know nothing, as servers written in C do it."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["raw_fork"]


def raw_fork(work: Callable[[], bytes]) -> bytes:
    """Return the result of *work* in a child by fork(2) itself; one that hangs is ended by an alarm.

    No other thread may be about to run at that moment: the child would inherit the mutex of the interpreter's lock.
    """
    reader, writer = os.pipe()
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(60)
            os.write(writer, work())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        result = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return result
