"""Ctrl-C and SIGTERM: a command stops at once, and says how to go on."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

import typer

from .console import print_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, TracebackType

__all__ = ["Interruptions", "stoppable"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Interruptions:
    """Within the block, the signals that end a program raise KeyboardInterrupt and are remembered.

    Remembered, because the exception may not arrive: SQLite turns an exception of a Python function that it calls
    into an error of its own.

    Attributes:
        number: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """The exit status of a program that this signal has ended: 130 after Ctrl-C."""
        return 128 + (self.number or signal.SIGINT)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal came and its exception was lost."""
        if self.number is not None:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.number = number
        # Shards are child processes, and their pool waits for them to finish.
        for process in multiprocessing.active_children():
            process.terminate()
        raise KeyboardInterrupt

    def __enter__(self) -> Self:
        # Python sets handlers in the main thread only, and signals come there only.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextmanager
def stoppable(problem: str | Callable[[], str] | None) -> Iterator[None]:
    """End the command when a signal stops the block, and print a problem.

    Args:
        problem: The text, or a function that returns it then; None if Ctrl-C is the ordinary end of the block.
    """
    with Interruptions() as interruptions:
        try:
            yield
        except KeyboardInterrupt:
            if problem is None and interruptions.number == signal.SIGINT:
                return
            if problem is not None:
                print_problem(problem if isinstance(problem, str) else problem())
            raise typer.Exit(interruptions.exit_code) from None
