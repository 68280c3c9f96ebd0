"""State that a forked child must not share with its parent: locks, threads, sessions, connections.

The process id is compared where the state is used. ``os.register_at_fork`` would not do: servers such as uWSGI fork
without running Python's hooks.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PerProcess"]

Value = TypeVar("Value")


class PerProcess(Generic[Value]):
    """A value that each process makes for itself at first use.

    Args:
        make: Returns a new value, such as ``threading.Lock``. Two threads may call it at once; one result is kept.
    """

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
