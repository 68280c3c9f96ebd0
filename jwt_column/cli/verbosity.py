"""The options ``--quiet`` and ``--verbose``."""

from __future__ import annotations

import logging
from typing import Final

from ..database.printable import printable

_LOGGERS: Final = ("jwt_column", "migrations_helpers")

_quiet = False


class _Formatter(logging.Formatter):
    """Writes out control characters, since a record may name a table."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return printable(super().format(record))


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Set the amount of output of this process."""
    global _quiet
    _quiet = quiet
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(_Formatter("%(asctime)s %(name)s: %(message)s"))
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(handler)
            logging.getLogger(name).setLevel(logging.DEBUG)


def is_quiet() -> bool:
    """Return True after ``--quiet``: no progress, no hints."""
    return _quiet
