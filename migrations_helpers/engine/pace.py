"""The pace of a run: how long it waits between two batches, and when it ends before the table does."""

from __future__ import annotations

import logging
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Executable, select

from jwt_column.errors import ConfigurationError

from .calling import call
from .replicas import ReplicaLag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Row

    from .options import Options
    from .report import ReencryptionReport

    #: A function that returns seconds, and may take the report; or a query that does.
    Throttle = Callable[..., float | None] | Executable


logger: logging.Logger = logging.getLogger("migrations_helpers")

# Seconds between two looks at what a run waits for, and between two at the lag of replicas.
_LOOK_INTERVAL: Final = 1.0
# Seconds of waiting after which the connection is used: idle ones are closed by many a proxy.
_KEEP_INTERVAL: Final = 20.0
# The pause for a latency that is too high, as a multiple of a batch's duration: first, at most, and how it shrinks.
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 50.0
_SHRINKING: Final = 0.8
_SMALLEST_PAUSE: Final = 0.05
# The part of its usual time to which a batch shrinks at most.
_SHORTEST_BATCH: Final = 10


@dataclass
class Pace:
    """Waits between batches for what the options ask for.

    Attributes:
        nice: Sleep this times a batch's duration.
        tell: Called while the run waits, which the report says.
    """

    options: Options
    nice: float
    read: Callable[[Executable], Sequence[Row[Any]]]
    dialect: str
    report: ReencryptionReport
    tell: Callable[[], None]
    _pause: float = 0.0
    _lag_seen: float = float("-inf")

    def __post_init__(self) -> None:
        limit, replicas = self.options.max_replica_lag, self.options.replicas
        self._lag = None if limit is None else ReplicaLag(self.read, self.dialect, replicas)

    def close(self) -> None:
        """Close connections to replicas."""
        if self._lag is not None:
            self._lag.close()

    @property
    def batch_seconds(self) -> float:
        """How long a batch should take: the shorter, the longer the pauses that the application's latency asks for."""
        return self.options.batch_seconds / min(1 + self._pause, _SHORTEST_BATCH)

    @property
    def is_over(self) -> bool:
        """Whether the time of the run is over."""
        return self._seconds_until_over() <= 0

    @property
    def is_closed(self) -> bool:
        """Whether every part of the run waits: for its window, or because it is paused."""
        return self._seconds_until_open() > 0 or self._is_paused()

    def _seconds_until_open(self) -> float:
        window: Any = self.options.window
        # The hours of a window are local, and change with the clocks of summer.
        return 0.0 if window is None else window.seconds_until_open(datetime.now())

    def _is_paused(self) -> bool:
        return self.options.is_paused is not None and bool(self.options.is_paused())

    def may_go_on(self) -> bool:
        """Wait until the next batch may begin, and return False if the time of the run is over before."""
        kept = time.monotonic()
        try:
            for reason in self._reasons_to_wait():
                if self.is_over:
                    return False
                self._note(reason)
                self.tell()
                time.sleep(min(_LOOK_INTERVAL, self._seconds_until_over()))
                if time.monotonic() - kept > _KEEP_INTERVAL:
                    kept = time.monotonic()
                    self.read(select(1))
        finally:
            self.report.waiting = None
        return not self.is_over

    def _reasons_to_wait(self) -> Iterator[str]:
        """Yield what the next batch waits for, as long as there is something."""
        while True:
            if self._is_paused():
                yield "paused"
            elif self._seconds_until_open() > 0:
                yield "window"
            elif self._is_lagging():
                yield "replicas"
            else:
                return

    def _is_lagging(self) -> bool:
        limit = self.options.max_replica_lag
        if self._lag is None or limit is None:
            return False
        if time.monotonic() - self._lag_seen < min(_LOOK_INTERVAL, limit / 2):
            return False
        lag = self._lag.seconds()
        if lag > limit:
            # Looked at again before the next batch, however soon that is.
            self._lag_seen = float("-inf")
            return True
        self._lag_seen = time.monotonic()
        return False

    def rest(self, duration: float, *, is_last: bool) -> None:
        """Sleep after a batch that took so many seconds, as ``nice`` and ``throttle`` say.

        *is_last* is true where no batch follows it at once.
        """
        asked = self._asked()
        if self.options.max_latency is not None:
            self._adapt(asked)
            asked = self._pause * duration
        seconds = min(max(asked, 0.0 if is_last else self.nice * duration), self._seconds_until_over())
        if seconds <= 0:
            return
        if seconds > _LOOK_INTERVAL:
            self._note("throttle")
            self.tell()
        time.sleep(seconds)
        self.report.waiting = None

    def _asked(self) -> float:
        """Return what ``throttle`` says, in seconds."""
        throttle = self.options.throttle
        if throttle is None:
            return 0.0
        if isinstance(throttle, Executable):
            rows = self.read(throttle)
            value: Any = rows[0][0] if rows else None
        else:
            value = call(throttle, self.report)
        with suppress(TypeError, ValueError):
            seconds = 0.0 if value is None else float(value)
            if math.isfinite(seconds):
                return seconds
        shown = value if isinstance(value, float) else type(value).__name__
        raise ConfigurationError(f"throttle (--throttle-query) returns seconds, and returned {shown}")

    def _adapt(self, latency: float) -> None:
        """Pause twice as long while the latency is too high, and a fifth less while it is not."""
        limit = self.options.max_latency
        if limit is not None and latency > limit:
            self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)
        else:
            self._pause *= _SHRINKING
            if self._pause < _SMALLEST_PAUSE:
                self._pause = 0.0

    def _seconds_until_over(self) -> float:
        """Return how long the run may still work."""
        until: Any = self.options.until
        return math.inf if until is None else max(0.0, (until - datetime.now(UTC)).total_seconds())

    def _note(self, reason: str) -> None:
        if self.report.waiting != reason:
            self.report.waiting = reason
            logger.info("%s.%s: waiting (%s)", self.report.table, self.report.column, reason)
