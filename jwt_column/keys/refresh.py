"""The daemon thread that reloads a ring at intervals, or looks at its file each second.

It starts with the first use of the ring in a process, not when the ring is made: servers load the application, and
with it the ring, before they fork their workers, and a thread does not survive a fork. A child notices that its
refresh is overdue and starts a thread of its own; no hook of Python has to run for that.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from random import SystemRandom
from time import monotonic
from typing import TYPE_CHECKING, Final, Literal
from weakref import ref

from ..errors import ConfigurationError
from .loader import LOOK_INTERVAL
from .process import PerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from .ring import KeyRing

#: The word for a look at the ring's file each second in place of a load at intervals.
WATCH: Final = "watch"

Interval = float | Literal["watch"]

# A fleet whose processes started together must not ask its KMS in step for ever.
_SPREAD: Final = (0.8, 1.2)
_uniform: Final = SystemRandom().uniform

# A look takes no time, unless the file has changed and a KMS is slow.
_WATCH_PATIENCE: Final = 60.0


def check_interval(refresh: Interval) -> None:
    """Raise a ConfigurationError for anything but a number of seconds above 0 or the word."""
    is_number = isinstance(refresh, int | float) and not isinstance(refresh, bool)
    if refresh != WATCH and not (is_number and 0 < refresh < float("inf")):
        raise ConfigurationError(f'refresh is a number of seconds, more than 0, or "{WATCH}"')


class Refresher:
    """Refreshes a ring at an interval, give or take a fifth, in a thread that ends with the ring.

    Attributes:
        interval: The number of seconds, or ``"watch"``.
        seconds: The number of seconds; 1 for ``"watch"``.
        patience: Seconds without a refresh that worked after which it is overdue.
    """

    def __init__(self, ring: KeyRing, interval: Interval) -> None:
        self._ring = ref(ring, self._end)
        self.interval: Interval = interval
        self.seconds: float = LOOK_INTERVAL if interval == WATCH else interval
        self.patience: float = _WATCH_PATIENCE if interval == WATCH else 3 * interval
        self._lock = PerProcess(threading.Lock)
        self._stop: threading.Event | None = None
        self._process: int | None = None
        # The thread moves it on. In a child of a fork it passes, because no thread does.
        self._due = 0.0

    def keep_running(self) -> None:
        """Start the thread if this process has none. Called at every use of the ring, so it looks at the clock only."""
        if monotonic() < self._due:
            return
        with self._lock.get():
            self._put_off()
            process = os.getpid()
            if self._process != process:
                # The keys of a forked child are as old as the missed refresh.
                first_wait = _uniform(*_SPREAD) if self._process is None else _uniform(0.0, 0.2)
                self._process = process
                self._stop = threading.Event()
                threading.Thread(
                    target=self._run,
                    args=(self._stop.wait, first_wait * self.seconds),
                    name="jwt-column key ring",
                    daemon=True,
                ).start()

    def _run(self, wait: Callable[[float], bool], seconds: float) -> None:
        """Refresh the ring after every wait until it is gone."""
        ring = self._ring()
        if ring is not None:
            ring.report_when_due()
        del ring
        while not wait(seconds):
            ring = self._ring()
            if ring is None:
                return
            # The ring's status reports the error; the ring keeps its keys. A database that cannot be asked must not end
            # the thread either.
            with suppress(Exception):
                ring.refresh()
            del ring
            self._put_off()
            seconds = self.seconds * _uniform(*_SPREAD)

    def _put_off(self) -> None:
        self._due = monotonic() + 1.25 * self.seconds

    def _end(self, _ring: object) -> None:
        if self._stop is not None:
            self._stop.set()
