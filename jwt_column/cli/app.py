"""The composition root of the command line: each family of commands is one module, added here."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import JWTColumnError
from . import audit, demo, keys, purge, reencrypt, scan
from .console import print_error

__all__ = ["app"]


class _Commands(TyperGroup):
    """The top of the command line: our own errors end here, as one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except JWTColumnError as error:
            failure = error
        raise typer.Exit(print_error(failure))


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    # Typer's own tracebacks can show local variables, and some of ours hold tokens.
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(keys.app, name="keys")
app.command("demo")(demo.demo)
app.command("audit", epilog=audit.EXIT_CODES)(audit.audit_command)
app.command("scan", epilog=scan.EXIT_CODES)(scan.scan)
app.command("reencrypt", epilog=reencrypt.EXIT_CODES)(reencrypt.reencrypt)
app.command("encrypt", epilog=reencrypt.EXIT_CODES)(reencrypt.encrypt)
app.command("purge", epilog=purge.EXIT_CODES)(purge.purge)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"jwt-column {version('jwt-column')}")
        raise typer.Exit


@app.callback()
def top(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """JSON Web Tokens encrypted at rest, in a SQLAlchemy column."""
