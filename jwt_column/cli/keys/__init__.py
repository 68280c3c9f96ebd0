"""``jwt-column keys``: the keys that encrypt the tokens, and the file that holds them wrapped."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

import typer

from ...keys.providers.file import uri_of as file_uri
from .changing import activate, add, compromise, rewrap
from .checking import check
from .listing import list_keys
from .making import generate, init
from .removing import remove
from .rings import EXIT_CODES

__all__ = ["app", "file_uri"]

app = typer.Typer(no_args_is_help=True, help="Make and keep the keys that encrypt the tokens.")


@app.callback()
def keys() -> None:
    """Make and keep the keys that encrypt the tokens."""


app.command(epilog=EXIT_CODES)(generate)
app.command(epilog=EXIT_CODES)(init)
app.command("list", epilog=EXIT_CODES)(list_keys)
app.command(epilog=EXIT_CODES)(add)
app.command(epilog=EXIT_CODES)(activate)
app.command(epilog=EXIT_CODES)(compromise)
app.command(epilog=EXIT_CODES)(remove)
app.command(epilog=EXIT_CODES)(rewrap)
app.command(epilog=EXIT_CODES)(check)
