"""``jwt-column reencrypt`` and ``jwt-column encrypt``: every row of a column under the active key, without Alembic."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Final

import typer

from migrations_helpers.engine.conversions import Adoption, Reencryption

from .columns import ColumnOptions
from .conversion import RunOptions, convert
from .formats import Format, Padding, make_reader
from .options import (
    AllowOpaqueOption,
    AllowUnsignedOption,
    BoundToOption,
    ColumnOption,
    ContextOption,
    DatabaseOption,
    ExposeExpiryOption,
    FingerprintOption,
    KeyringOption,
    ModelOption,
    SchemaOption,
    StorageOption,
    TableOption,
)
from .summary import Words

__all__ = ["EXIT_CODES", "encrypt", "reencrypt"]

#: What stands below the help of both commands.
EXIT_CODES: Final = (
    "Exit codes: 0 done, no row is left; 1 rows are left or cannot be read, also where a dry run finds such rows; 2 "
    "wrong usage or configuration, such as no such table, no key ring or a bad URL; 3 the database cannot be reached, "
    "or refused; 130 stopped by Ctrl-C: the same command goes on from there."
)

_FROM: Final = "What it reads"
_RUN: Final = "How it runs"


class Expired(StrEnum):
    """What becomes of stale rows whose token has expired."""

    KEEP = "keep"
    SKIP = "skip"
    NULL = "null"
    DELETE = "delete"


_Expired = Annotated[
    Expired,
    typer.Option(
        "--expired",
        help="Stale rows whose token has expired: keep them and re-encrypt them as any others, skip them, set the "
        "column to null, or delete the row. All but keep need a column whose expiry is exposed, and no key.",
        rich_help_panel=_RUN,
    ),
]
_DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Do everything but write: read and convert every row that needs work, and count. --shards and --verify "
        "then have no effect.",
        rich_help_panel=_RUN,
    ),
]
_Verify = Annotated[
    bool, typer.Option("--verify", help="Open every row of the table at the end.", rich_help_panel=_RUN)
]
_Shards = Annotated[
    int,
    typer.Option(
        "--shards",
        metavar="N",
        min=1,
        max=64,
        help="Cut the table into so many parts and work on them at once, each in a process of its own.",
        rich_help_panel=_RUN,
    ),
]
_BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size",
        metavar="ROWS",
        min=1,
        help="Rows of the first batch. Later ones adapt, to take 0.1 seconds each.",
        rich_help_panel=_RUN,
    ),
]
_Nice = Annotated[
    float | None,
    typer.Option(
        "--nice",
        metavar="FACTOR",
        min=0,
        help="Sleep this times a batch's duration after it. Without it 1 on SQLite, where the application waits while "
        "a batch is written, and 0 elsewhere.",
        show_default=False,
        rich_help_panel=_RUN,
    ),
]
_KeyColumns = Annotated[
    str | None,
    typer.Option(
        "--key-columns",
        metavar="NAMES",
        help="A unique key without NULLs to page by in place of the primary key: names, with commas between them.",
        show_default=False,
        rich_help_panel=_RUN,
    ),
]
_Preserve = Annotated[
    str | None,
    typer.Option(
        "--preserve",
        metavar="NAMES",
        help="Columns that the database updates by itself and must not; those of MySQL are found without it.",
        show_default=False,
        rich_help_panel=_RUN,
    ),
]
_Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the report as JSON on standard output, and nothing else there.",
        rich_help_panel=_RUN,
    ),
]


def reencrypt(
    *,
    database: DatabaseOption = None,
    model: ModelOption = None,
    table: TableOption = None,
    column: ColumnOption = None,
    schema: SchemaOption = None,
    keyring: KeyringOption = None,
    storage: StorageOption = None,
    context: ContextOption = None,
    fingerprint: FingerprintOption = None,
    expose_expiry: ExposeExpiryOption = False,
    allow_opaque: AllowOpaqueOption = False,
    allow_unsigned: AllowUnsignedOption = False,
    bound_to: BoundToOption = None,
    expired: _Expired = Expired.KEEP,
    dry_run: _DryRun = False,
    verify: _Verify = False,
    shards: _Shards = 1,
    batch_size: _BatchSize = 500,
    nice: _Nice = None,
    key_columns: _KeyColumns = None,
    preserve: _Preserve = None,
    as_json: _Json = False,
) -> None:
    """Rewrite every stale row of a column under the active key of its ring.

    In short batches, while the application writes: its writes always win. A run that is stopped goes on where it was.
    """
    convert(*_options(locals()), Reencryption, Words("reencrypt", "re-encrypted"))


def encrypt(
    *,
    database: DatabaseOption = None,
    model: ModelOption = None,
    table: TableOption = None,
    column: ColumnOption = None,
    schema: SchemaOption = None,
    from_: Annotated[
        Format | None,
        typer.Option(
            "--from",
            metavar="FORMAT",
            help=f"What another library has encrypted: {', '.join(Format)}. Without it, tokens in the clear.",
            show_default=False,
            rich_help_panel=_FROM,
        ),
    ] = None,
    from_key: Annotated[
        str | None,
        typer.Option(
            "--from-key",
            metavar="URI",
            help="Where that library's key is: env:NAME or file:PATH. Never the key itself.",
            show_default=False,
            rich_help_panel=_FROM,
        ),
    ] = None,
    from_padding: Annotated[
        Padding | None,
        typer.Option(
            "--from-padding",
            metavar="NAME",
            help=f"The padding of {Format.AES}: {', '.join(Padding)}. Without it naive, that library's default.",
            show_default=False,
            rich_help_panel=_FROM,
        ),
    ] = None,
    keyring: KeyringOption = None,
    storage: StorageOption = None,
    context: ContextOption = None,
    fingerprint: FingerprintOption = None,
    expose_expiry: ExposeExpiryOption = False,
    allow_opaque: AllowOpaqueOption = False,
    allow_unsigned: AllowUnsignedOption = False,
    bound_to: BoundToOption = None,
    dry_run: _DryRun = False,
    verify: _Verify = False,
    shards: _Shards = 1,
    batch_size: _BatchSize = 500,
    nice: _Nice = None,
    key_columns: _KeyColumns = None,
    preserve: _Preserve = None,
    as_json: _Json = False,
) -> None:
    """Encrypt every row of a column that is no envelope yet, in place.

    In short batches, while the application writes: its writes always win. A run that is stopped goes on where it was,
    and no row is encrypted twice.
    """
    options = _options(locals())
    reader = make_reader(from_, from_key, from_padding)
    words = Words("encrypt", "encrypted", is_foreign=reader is not None)
    convert(*options, partial(Adoption, decrypt_with=reader), words)


def _options(given: Mapping[str, Any]) -> tuple[ColumnOptions, RunOptions]:
    """Return a command's parameters, by name, as the two things that they describe."""
    column, run = (
        {name: given[name] for name in kind.__dataclass_fields__ if name in given}
        for kind in (ColumnOptions, RunOptions)
    )
    if given["storage"] is not None:
        column["storage"] = given["storage"].value
    if "expired" in given:
        run["expired"] = given["expired"].value
    for name in ("fingerprint", "bound_to"):
        column[name] = tuple(column[name] or ())
    for name in ("key_columns", "preserve"):
        run[name] = tuple(part.strip() for part in (run[name] or "").split(",") if part.strip())
    return ColumnOptions(**column), RunOptions(**run)
