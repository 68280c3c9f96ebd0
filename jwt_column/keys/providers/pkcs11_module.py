"""PKCS#11 modules in this process: one call at a time, and made anew after a fork and after trouble.

The binding promises each module that this process has one thread (``C_Initialize(NULL)``) and then lets threads run
during calls, so that modules crash. Every call of ours therefore holds one lock.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from ...errors import KeyUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["initialize_again", "load", "turn"]

_lock = threading.Lock()

#: In which process each module works, by its path; None where it had trouble.
_process_of: Final[dict[str, int | None]] = {}


def _unlock_after_fork() -> None:
    """Make a new lock: one that another thread held during the fork is never released in the child."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # pragma: no branch - absent on Windows only, where nothing forks
    os.register_at_fork(after_in_child=_unlock_after_fork)


@contextmanager
def turn(seconds: float, late: str) -> Iterator[None]:
    """Wait until no other thread calls a module, for so long at most.

    Raises:
        KeyUnavailableError: Another call still runs: the module hangs, or the system behind it is slow.
    """
    lock = _lock
    if not lock.acquire(timeout=max(seconds, 0.0)):
        raise KeyUnavailableError(late, retryable=True)
    try:
        yield
    finally:
        lock.release()


def load(pkcs11: Any, path: str) -> Any:
    """Return the binding's object of a module, ready for calls. To be called in one's :func:`turn`.

    In a child of the process that used it, and after :func:`initialize_again`, the module is finalized and
    initialized: what it has is of another process, or of a token that was away. An application that uses the same
    module in the same process loses its sessions by that.
    """
    library = pkcs11.lib(path)
    process = os.getpid()
    if _process_of.setdefault(path, process) != process:
        # In a child some modules refuse to be finalized, p11-kit for one. The binding takes it for done.
        with suppress(pkcs11.PKCS11Error):
            library.finalize()
        library.initialize()
        _process_of[path] = process
    return library


def initialize_again(path: str) -> None:
    """Have a module initialized again before its next use. To be called in one's :func:`turn`."""
    _process_of[path] = None
