"""The process and the thread that code runs in: state that a forked child must not share, and event loops.

The process id is compared where the state is used. ``os.register_at_fork`` would not do: servers such as uWSGI fork
without running Python's hooks.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Value = TypeVar("Value")


class PerProcess(Generic[Value]):
    """A value that each process makes for itself at first use. Two threads may make it at once; one result is kept."""

    __slots__ = ("_make", "_values")

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        self._values: dict[int, Value] = {}

    def get(self) -> Value:
        """Return the value of this process."""
        process = os.getpid()
        try:
            return self._values[process]
        except KeyError:
            # Atomic, so that all threads of a child agree on one lock.
            return self._values.setdefault(process, self._make())


_reports = True


@contextmanager
def without_reports() -> Iterator[None]:
    """Make rings that are loaded within the block report to no fleet.

    The command line imports an application's models and, with them, its rings. It is no process of the application: it
    ends soon, and would count as one that lacks the next key.
    """
    global _reports
    before, _reports = _reports, False
    try:
        yield
    finally:
        _reports = before


def may_report() -> bool:
    """Return False within :func:`without_reports`."""
    return _reports


def is_uwsgi_without_threads() -> bool:
    """Return True in a uWSGI that runs no thread of Python between requests: neither a refresh nor a report."""
    # A module of this name exists inside the server only.
    options = getattr(sys.modules.get("uwsgi"), "opt", None)
    if options is None:
        return False
    names = {name.decode() if isinstance(name, bytes) else str(name) for name in options}
    return names.isdisjoint({"enable-threads", "threads"})


def on_event_loop() -> bool:
    """Return True if this thread runs an asyncio event loop now, which a blocking call would stop."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
