"""PKCS#11 modules in this process: one call at a time, initialized again after a fork and after an error.

The binding tells each module that this process has one thread (``C_Initialize(NULL)``), but releases the GIL during
calls, so that modules crash under threads. Every call therefore holds one lock.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from ...errors import KeyUnavailableError
from ..process import PerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

_lock: Final = PerProcess(threading.Lock)

#: The process that initialized each module, by path; None after an error.
_process_of: Final[dict[str, int | None]] = {}


@contextmanager
def turn(seconds: float, late: str) -> Iterator[None]:
    """Hold the lock of all modules; wait for it at most *seconds*.

    Raises:
        KeyUnavailableError: Another call still runs: the module hangs, or the system behind it is slow.
    """
    lock = _lock.get()
    if not lock.acquire(timeout=max(seconds, 0.0)):
        raise KeyUnavailableError(late, retryable=True)
    try:
        yield
    finally:
        lock.release()


def load(pkcs11: Any, path: str) -> Any:
    """Return the binding's object of a module, ready for calls. Call it within :func:`turn`.

    In a forked child, and after :func:`initialize_again`, the module is finalized and initialized: its state belongs to
    another process, or to a token that was removed. An application that uses the same module in the same process
    loses its sessions by that.
    """
    library = pkcs11.lib(path)
    process = os.getpid()
    if _process_of.setdefault(path, process) != process:
        # In a child some modules, such as p11-kit, refuse to be finalized. The binding regards them as finalized.
        with suppress(pkcs11.PKCS11Error):
            library.finalize()
        library.initialize()
        _process_of[path] = process
    return library


def initialize_again(path: str) -> None:
    """Mark a module to be initialized again before its next use. Call it within :func:`turn`."""
    _process_of[path] = None
