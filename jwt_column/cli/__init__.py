"""The ``jwt-column`` command. It needs the ``cli`` extra and may import everything; nothing imports it."""

from __future__ import annotations

import sys

__all__ = ["main"]

# The packages of the extra that every command needs. Typer depends on Rich, and either may be missing or broken.
_EXTRA = ("rich", "typer")


def main() -> None:
    """Run the command line and exit: 0 when all is well, 1 on a failure, 2 on wrong usage or setup."""
    try:
        # Here, because the package installs without the extra.
        from .app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        sys.stderr.write(
            'jwt-column: the jwt-column command needs Typer and Rich; run: pip install "jwt-column[cli]"\n'
        )
        sys.exit(2)
    app(prog_name="jwt-column")
