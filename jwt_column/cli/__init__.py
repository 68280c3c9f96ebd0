"""The ``jwt-column`` command. It needs the ``cli`` extra and may import everything; nothing imports it."""

from __future__ import annotations

import sys

from ..errors import MissingExtraError

__all__ = ["main"]

# What the extra brings. Typer has Rich as a dependency of its own, and either may be missing or broken.
_EXTRA = ("rich", "typer")


def main() -> None:
    """Run the command line and exit: 0 when all is well, 1 on a failure, 2 on wrong usage or setup."""
    try:
        # Here, because the package installs without what this imports.
        from .app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        missing = MissingExtraError(
            'the jwt-column command needs Typer and Rich; run: pip install "jwt-column[cli]"'
        )
        sys.stderr.write(f"jwt-column: {missing}\n")
        sys.exit(2)
    app(prog_name="jwt-column")
