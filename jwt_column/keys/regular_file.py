"""Bounded reads of files that a configuration names, which may be no files: a FIFO would wait, a device has no end."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)  # a FIFO waits for a writer
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_CLOEXEC", 0)
)


class NotRegularError(OSError):
    """A path leads to a FIFO, a device or a socket."""


def read_regular(path: Path, most: int) -> tuple[bytes, os.stat_result]:
    """Return at most *most* bytes of a regular file, and its status, through one descriptor.

    Raises:
        OSError: It cannot be read, or is not a regular file.
    """
    with os.fdopen(os.open(path, _FLAGS), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise NotRegularError(0, "it is not a regular file")
        return file.read(most), status
