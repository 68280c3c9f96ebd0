"""The options by which several commands name a column and its type."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

from enum import StrEnum
from typing import Annotated, Final

import typer

from .databases import DATABASE_VARIABLE

__all__ = [
    "COLUMN_PANEL",
    "AllowOpaqueOption",
    "AllowUnsignedOption",
    "BoundToOption",
    "ColumnOption",
    "ContextOption",
    "DatabaseOption",
    "ExposeExpiryOption",
    "FingerprintOption",
    "KeyringOption",
    "ModelOption",
    "SchemaOption",
    "Storage",
    "StorageOption",
    "TableOption",
]

#: Above which of them the help says what they are for.
COLUMN_PANEL: Final = "Which column"
_TYPE: Final = "The column's type, with --table"


class Storage(StrEnum):
    """The storage forms of a column."""

    BINARY = "binary"
    TEXT = "text"


DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        envvar=DATABASE_VARIABLE,
        help="SQLAlchemy's URL of the database. Better in the environment: others can list a command line.",
        show_default=False,
        rich_help_panel=COLUMN_PANEL,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODULE:CLASS.ATTR",
        help="The application's mapped attribute, such as app.models:Session.token: table, type and key ring.",
        show_default=False,
        rich_help_panel=COLUMN_PANEL,
    ),
]
TableOption = Annotated[
    str | None,
    typer.Option(
        "--table", metavar="NAME", help="The table.", show_default=False, rich_help_panel=COLUMN_PANEL
    ),
]
ColumnOption = Annotated[
    str | None,
    typer.Option(
        "--column",
        metavar="NAME",
        help="The encrypted column.",
        show_default=False,
        rich_help_panel=COLUMN_PANEL,
    ),
]
SchemaOption = Annotated[
    str | None,
    typer.Option(
        "--schema",
        metavar="NAME",
        help="The table's schema, if it is not the default one.",
        show_default=False,
        rich_help_panel=COLUMN_PANEL,
    ),
]
KeyringOption = Annotated[
    str | None,
    typer.Option(
        "--keyring",
        metavar="URI",
        help="The key ring, such as file:/etc/app/jwt.keys. Without it, that of JWT_COLUMN_KEYRING or JWT_COLUMN_KEYS.",
        show_default=False,
        rich_help_panel=_TYPE,
    ),
]
StorageOption = Annotated[
    Storage | None,
    typer.Option(
        "--storage",
        help="How tokens are stored. Without it, as the column of the database asks for.",
        show_default=False,
        rich_help_panel=_TYPE,
    ),
]
ContextOption = Annotated[
    str | None,
    typer.Option(
        "--context",
        metavar="TEXT",
        help="The context of its envelopes, if the model names one. Without it, TABLE.COLUMN.",
        show_default=False,
        rich_help_panel=_TYPE,
    ),
]
FingerprintOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fingerprint",
        metavar="NAME",
        help="A fingerprint that the model names; once for each, in the model's order.",
        show_default=False,
        rich_help_panel=_TYPE,
    ),
]
ExposeExpiryOption = Annotated[
    bool, typer.Option("--expose-expiry", help="The model has expose_expiry=True.", rich_help_panel=_TYPE)
]
AllowOpaqueOption = Annotated[
    bool, typer.Option("--allow-opaque", help="The model has allow_opaque=True.", rich_help_panel=_TYPE)
]
AllowUnsignedOption = Annotated[
    bool, typer.Option("--allow-unsigned", help="The model has allow_unsigned=True.", rich_help_panel=_TYPE)
]
BoundToOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bound-to",
        metavar="NAME",
        help="A column that the model names in bound_to; once for each, in the model's order.",
        show_default=False,
        rich_help_panel=_TYPE,
    ),
]
