"""``jwt-column keys``: the keys that encrypt the tokens, and the file that holds them wrapped."""

from __future__ import annotations

from typing import Final

import typer

from ..commands import Command, group_of

_EXIT_CODES: Final = (
    "Exit codes: 0 done; 1 refused because rows are under the key or processes are behind, or a check failed; 2 wrong "
    "usage, configuration or key ring; 3 the database, or the system that holds the KEK, cannot be reached: a retry "
    "may help."
)

_COMMANDS: Final = {
    "generate": (
        "making:generate",
        "Make random 256-bit keys.\n\n"
        "Prints nothing else, so this works: export JWT_COLUMN_KEYS=$(jwt-column keys generate).",
    ),
    "init": ("making:init", "Make a key-ring file with one new data key, wrapped. Never replaces a file."),
    "list": (
        "listing:list_keys",
        "List the keys of a ring: ids, state, age, what wraps them, and the rows under each of them.\n\n"
        "Shows the content of the file; 'check' asks the KEK whether it is true. Rows are counted where a column is "
        "named.",
    ),
    "fleet": (
        "fleets:fleet",
        "List the processes that use a ring, by what they report to a table of the database.\n\n"
        "Ends with 1 if a live process has other keys than the file, or if fewer report than --expect.",
    ),
    "add": ("changing:add", "Add a new data key, which decrypts only until it is activated."),
    "activate": (
        "changing:activate",
        "Make a key the one that encrypts: the ring's, or its tenant's. The one before goes on decrypting.",
    ),
    "compromise": (
        "changing:compromise",
        "Mark a key as leaked: it goes on decrypting, never becomes active again, and fails 'check' until it is "
        "gone.",
    ),
    "remove": (
        "removing:remove",
        "Remove keys from a ring, after a look at the databases that no row is under them. Never the active key.\n\n"
        "The version before stays beside the file, as PATH.previous, unless --no-previous is given.",
    ),
    "rewrap": (
        "changing:rewrap",
        "Wrap all keys of the file anew, under a new KEK or the newest version of the same one. No row changes.",
    ),
    "check": (
        "checking:check",
        "Check that a ring loads: permissions, every key unwraps and has its id, the file is unchanged, ages.\n\n"
        "Ends with 1 if a check fails, so that it can watch over a ring, and with 3 if the system that holds the KEK "
        "cannot be reached.",
    ),
}

app: typer.Typer = typer.Typer(
    cls=group_of(
        {
            name: Command(f"keys.{function}", help_, _EXIT_CODES)
            for name, (function, help_) in _COMMANDS.items()
        }
    ),
    invoke_without_command=True,
    add_completion=False,
)


@app.callback(
    help="Make and keep the keys that encrypt the tokens.\n\n"
    "A key ring is a set of data keys, one of them active: it encrypts, and all decrypt. In a key-ring file each data "
    "key is wrapped (encrypted) by a key-encryption key (KEK), which stays in an HSM, Vault or a cloud KMS."
)
def keys(context: typer.Context) -> None:
    """Show the help if no command is named."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
