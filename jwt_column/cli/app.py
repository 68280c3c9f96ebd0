"""The composition root of the command line: the top-level commands, each with its module and its help text."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

import sys
from typing import Annotated, Any, Final

import rich  # noqa: F401 - Typer does without it; a command does not
import typer

from ..keys.process import without_reports
from .commands import Command, group_of

_RUN_EXIT_CODES: Final = (
    "Exit codes: 0 done, no row is left; 1 rows are left or cannot be read, also where a dry run finds such rows; 2 "
    "wrong usage or configuration, such as no such table, no key ring or a bad URL; 3 the database cannot be reached, "
    "or refused; 130 stopped by Ctrl-C: the same command goes on from there."
)

_COMMANDS: Final = {
    "demo": Command(
        "demo:demo",
        "Store, look, rotate: real tokens in a SQLite file, from the first row to a retired key.\n\n"
        "Ends with 1 if anything is not as promised.",
    ),
    "audit": Command(
        "audit:audit_columns",
        "Report the state of the encrypted columns of a database.\n\n"
        "By SQL alone and without keys: rows per key, rows that are stale, in the clear or unreadable, missing "
        "indexes. With --deep, the tokens themselves too.",
        "Exit codes: 0 no finding that --fail-on names; 1 there is one; 2 wrong usage or "
        "configuration; 3 the database cannot be reached, or refused; 130 stopped by Ctrl-C, which is how --watch "
        "ends with 0.",
    ),
    "scan": Command(
        "scan:scan",
        "Find readable tokens anywhere in a database: in text, JSON and binary columns of every table.\n\n"
        "Shows where they are, and nothing of them. Needs no key, and writes nothing.",
        "Exit codes: 0 nothing was found; 1 there are readable tokens, or a table that cannot be read; 2 wrong usage; "
        "3 the database cannot be reached; 130 stopped by Ctrl-C.",
    ),
    "reencrypt": Command(
        "reencrypt:reencrypt",
        "Rewrite every stale row of a column under the active key of its ring.\n\n"
        "In short batches, while the application writes: its writes always win. A run that is stopped goes on where "
        "it was.",
        _RUN_EXIT_CODES,
    ),
    "encrypt": Command(
        "reencrypt:encrypt",
        "Encrypt every row of a column that is no envelope yet, in place.\n\n"
        "In short batches, while the application writes: its writes always win. A run that is stopped goes on where "
        "it was, and no row is encrypted twice.",
        _RUN_EXIT_CODES,
    ),
    "purge": Command(
        "purge:purge",
        "Delete or clear the rows whose token has expired, of a column that exposes the expiry, or those under a key."
        "\n\n"
        "In batches of 500 rows, each in a transaction of its own. No key is needed.",
        "Exit codes: 0 done; 1 the database refused to let rows go (a foreign key, a trigger), and all others went; 2 "
        "wrong usage or configuration, such as a column that does not expose the expiry; 3 the "
        "database cannot be reached, or refused; 130 stopped by Ctrl-C: the same command goes on from there.",
    ),
    "rotate": Command(
        "rotate:rotate",
        "Rotate a key: add a new one, wait for every process, activate it, re-encrypt the rows, remove the old one.\n\n"
        "Can be stopped at any step; the same command goes on from there, by the ring's file, the table of the fleet "
        "and the rows.",
        "Exit codes: 0 done; 1 processes are behind, rows are left or cannot be read, or --ship failed; 2 wrong usage, "
        "configuration or key ring; 3 the database, or the system that holds the KEK, cannot be reached; 130 stopped "
        "by Ctrl-C. The same command goes on from there.",
    ),
    "doctor": Command(
        "doctor:doctor",
        "Check that an application is ready: its key ring, its columns in the database, the clock.\n\n"
        "One line for each check. Reads no row.",
        "Exit codes: 0 ready; 1 a check failed; 2 wrong usage or configuration; 3 the database cannot be reached, or "
        "refused.",
    ),
    "keys": Command("keys:app", "Make and keep the keys that encrypt the tokens."),
}


class _Commands(group_of(_COMMANDS)):  # type: ignore[misc]
    """The top of the command line: an error of this package ends here, as one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            with without_reports():
                return super().invoke(ctx)
        except Exception as error:
            # A module that nothing imported has raised nothing.
            errors = sys.modules.get("jwt_column.errors")
            if errors is None or not isinstance(error, errors.JWTColumnError):
                message = getattr(error, "message", None)
                if isinstance(message, str):
                    from .passwords import without_passwords

                    # A usage error repeats an argument, and that may be a URL.
                    error.message = without_passwords(message)  # type: ignore[attr-defined]
                raise
            failure = error
        from .console import print_error

        raise typer.Exit(print_error(failure))


app: typer.Typer = typer.Typer(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    # Typer's own tracebacks can show local variables, tokens among them.
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
)


def _print_version(value: bool) -> None:
    if value:
        from .. import __version__

        typer.echo(f"jwt-column {__version__}")
        raise typer.Exit


@app.callback(help="JSON Web Tokens encrypted at rest, in a SQLAlchemy column.")
def top(
    context: typer.Context,
    *,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results and errors only: no progress, no hints.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log the work of the package on standard error.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Take the options before the command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
    if context.resilient_parsing:
        return
    from .settings import apply_project_settings
    from .verbosity import set_verbosity

    set_verbosity(quiet=quiet, verbose=verbose)
    apply_project_settings()
