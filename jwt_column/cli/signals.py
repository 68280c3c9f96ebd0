"""Ctrl-C and SIGTERM: a command stops at once, and says how to go on. SIGUSR1 and SIGUSR2: it pauses, and resumes."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Self

import typer

from .console import print_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
# Windows has neither.
_PAUSING: Final[tuple[int, ...]] = tuple(
    getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)


class _Handling:
    """Handles signals within the block."""

    def __init__(self, handlers: Mapping[int, Callable[[int, FrameType | None], Any]]) -> None:
        self._handlers = handlers
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python sets handlers in the main thread only, and signals come there only.
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, handler) for number, handler in self._handlers.items()
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Interruptions(_Handling):
    """Within the block, the signals that end a program raise KeyboardInterrupt and are remembered.

    Remembered, because the exception may not arrive: SQLite turns an exception of a Python function that it calls
    into an error of its own.

    Attributes:
        number: The signal that came, or None.
    """

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(_SIGNALS, self._handle))
        self.number: int | None = None

    @property
    def exit_code(self) -> int:
        """The exit status of a program that this signal has ended: 130 after Ctrl-C."""
        return 128 + (self.number or signal.SIGINT)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal came and its exception was lost."""
        if self.number is not None:
            raise KeyboardInterrupt

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.number = number
        # Shards are child processes, and their pool waits for them to finish.
        for process in multiprocessing.active_children():
            process.terminate()
        raise KeyboardInterrupt


class Pauses(_Handling):
    """Within the block, SIGUSR1 pauses a run after its batch, and SIGUSR2 resumes it.

    SIGTSTP (Ctrl-Z) and SIGSTOP stop a process wherever it is, in a transaction that holds locks too. The state is a
    file, which the processes of shards see, those that start later among them.

    Attributes:
        is_paused: Whether the run is to wait; it can travel to another process.
    """

    def __init__(self) -> None:
        super().__init__(dict(zip(_PAUSING, (self._pause, self._resume), strict=False)))
        self._directory = TemporaryDirectory(prefix="jwt-column-")
        self._file = Path(self._directory.name) / "paused"
        self.is_paused: Callable[[], bool] = self._file.exists

    def _pause(self, *_: object) -> None:
        self._file.touch()

    def _resume(self, *_: object) -> None:
        self._file.unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._directory.cleanup()


def ignore_pauses() -> None:
    """Let a shard's process survive the signals when they go to a whole group of processes."""
    for number in _PAUSING:
        signal.signal(number, signal.SIG_IGN)


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
