"""Ctrl-C and its kin: a run stops at once wherever it is, and says that a new one goes on from there."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType

__all__ = ["Interruptions"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Interruptions:
    """Within the block, the signals that end a program raise KeyboardInterrupt and are remembered.

    Remembered, because the exception may not arrive: SQLite calls our functions, and turns whatever they raise into
    an error of its own.

    Attributes:
        number: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """What a shell shows for a program that this signal has ended: 130 after Ctrl-C."""
        return 128 + (self.number or signal.SIGINT)

    def check(self) -> None:
        """Raise what did not arrive."""
        if self.number is not None:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.number = number
        # Shards are processes of ours, and their pool waits for them to finish.
        for process in multiprocessing.active_children():
            process.terminate()
        raise KeyboardInterrupt

    def __enter__(self) -> Self:
        # Elsewhere Python lets nobody set handlers, and signals do not come there.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
