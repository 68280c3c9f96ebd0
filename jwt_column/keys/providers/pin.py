"""Reading a PIN from the file or environment variable of a ``pin-source``."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from ...errors import ConfigurationError
from ..regular_file import read_regular

#: The size limit of a PIN file.
_MAX_BYTES: Final = 1024


def read_pin(source: str) -> str:
    """Return the PIN, without a line feed at its end. Secret.

    Args:
        source: ``file:/PATH`` of a file that only its owner may read, or ``env:NAME``.
    """
    kind, _, name = source.partition(":")
    pin = _read(Path(name)) if kind == "file" else os.environ.get(name, "")
    pin = pin.removesuffix("\n").removesuffix("\r")
    if not pin:
        where = f"the file {name}" if kind == "file" else f"the environment variable {name}"
        raise ConfigurationError(f"{where} holds no PIN")
    return pin


def _read(path: Path) -> str:
    try:
        data, status = read_regular(path, _MAX_BYTES + 1)
    except OSError as error:
        problem = error.strerror
    else:
        if os.name == "posix" and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationError(
                f"the PIN file {path} is open to its group or to others (mode {stat.S_IMODE(status.st_mode):04o}); "
                f"run: chmod 600 {path}"
            )
        try:
            text = data.decode() if len(data) <= _MAX_BYTES else "\0"
        except UnicodeDecodeError:
            text = "\0"
        if "\0" not in text:
            return text
        problem = "it is not a text, or too long for a PIN"
    raise ConfigurationError(f"the PIN file {path} cannot be read: {problem}")
