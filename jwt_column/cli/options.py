"""The options that several commands take. A field of a group is an option: name, type, default and help text."""

# No "from __future__ import annotations": Typer reads the annotations of options when it builds a command.

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_type_hints

import typer

__all__ = [
    "DATABASE_VARIABLE",
    "MODEL_VARIABLE",
    "ColumnName",
    "ColumnOptions",
    "DatabaseOption",
    "DatabasesOption",
    "FileOption",
    "JsonOption",
    "ModelColumn",
    "ModelTargets",
    "RowsToCount",
    "StoredColumn",
    "given_databases",
    "option",
]

#: The environment variable of the database's URL: a process list does not show it.
DATABASE_VARIABLE: Final = "JWT_COLUMN_DATABASE_URL"

#: The environment variable of the models, with white space between them.
MODEL_VARIABLE: Final = "JWT_COLUMN_MODEL"


# A path of SQLite may hold a space; another URL begins behind it only where a scheme stands.
_BETWEEN_URLS: Final = re.compile(r"\s+(?=[A-Za-z][\w+.-]*://)")


def given_databases(databases: Sequence[str] | None) -> list[str]:
    """Return the URLs of a command line; without one, those of the environment variable, which may be none."""
    configured = os.environ.get(DATABASE_VARIABLE, "").strip()
    return list(databases or filter(None, _BETWEEN_URLS.split(configured)))


def option(*names: str, show_default: bool = False, **settings: Any) -> Any:
    """Return an option whose help text says its default, or that has none."""
    return typer.Option(*names, show_default=show_default, **settings)


_column_option = partial(option, rich_help_panel="Which column")
_type_option = partial(option, rich_help_panel="The column's type, with --table")

DatabaseOption = Annotated[
    str | None,
    _column_option(
        "--database",
        metavar="URL",
        envvar=DATABASE_VARIABLE,
        help="SQLAlchemy's URL of the database. Better in the environment: others can list a command line.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")
]
FileOption = Annotated[
    Path | None,
    option(
        "--file", metavar="PATH", help="The key-ring file. Without it, the one that JWT_COLUMN_KEYRING names."
    ),
]


@dataclass(frozen=True)
class ColumnName:
    """A column by its name in the database."""

    table: Annotated[str | None, _column_option("--table", metavar="NAME", help="The table.")] = None
    column: Annotated[
        str | None, _column_option("--column", metavar="NAME", help="The encrypted column.")
    ] = None
    schema: Annotated[
        str | None,
        _column_option("--schema", metavar="NAME", help="The table's schema, if it is not the default one."),
    ] = None


@dataclass(frozen=True)
class StoredColumn(ColumnName):
    """A column by its name, and its storage form."""

    storage: Annotated[
        Literal["binary", "text"] | None,
        _type_option(
            "--storage", help="How tokens are stored. Without it, as the database's column asks for."
        ),
    ] = None


@dataclass(frozen=True)
class ColumnOptions(StoredColumn):
    """A column by its name, and its type: each further field is a parameter of it."""

    type: Annotated[
        Literal["jwt", "json"] | None,
        _type_option(
            "--type", help="The model's type: jwt for EncryptedJWT, json for EncryptedJSON. Without it, jwt."
        ),
    ] = None
    keyring: Annotated[
        str | None,
        _type_option(
            "--keyring",
            metavar="URI",
            help="The key ring, such as file:/etc/app/jwt.keys. Without it, that of JWT_COLUMN_KEYRING or "
            "JWT_COLUMN_KEYS.",
        ),
    ] = None
    context: Annotated[
        str | None,
        _type_option(
            "--context",
            metavar="TEXT",
            help="The context, if the model names one: the text that stored tokens are bound to, so that they open in "
            "their own column only. Without it, TABLE.COLUMN.",
        ),
    ] = None
    fingerprints: Annotated[
        list[str],
        _type_option(
            "--fingerprint",
            metavar="NAME",
            help="A fingerprint that the model names; once for each, in the model's order.",
        ),
    ] = field(default_factory=list)
    expose_expiry: Annotated[
        bool, _type_option("--expose-expiry", help="The model has expose_expiry=True.")
    ] = False
    allow_opaque: Annotated[
        bool,
        _type_option("--allow-opaque", help="The model has allow_opaque=True."),
    ] = False
    allow_unsigned: Annotated[
        bool, _type_option("--allow-unsigned", help="The model has allow_unsigned=True.")
    ] = False
    bound_to: Annotated[
        list[str],
        _type_option(
            "--bound-to",
            metavar="NAME",
            help="A column that the model names in bound_to; once for each, in the model's order.",
        ),
    ] = field(default_factory=list)

    @property
    def type_parameters(self) -> dict[str, Any]:
        """The parameters of the type that are given."""
        names = {one.name for one in fields(self)} - {one.name for one in fields(ColumnName)} - {"type"}
        return {name: value for name in sorted(names) if (value := getattr(self, name))}

    @property
    def arguments(self) -> str:
        """The options as a command line has them; without the key ring, whose URI may hold a password."""
        words: list[str] = []
        hints = get_type_hints(type(self), include_extras=True)
        for name, annotated in hints.items():
            value, option = getattr(self, name), annotated.__metadata__[0].default
            if name == "keyring" or not value:
                continue
            if value is True:
                words.append(option)
            else:
                for one in (value,) if isinstance(value, str) else value:
                    words += [option, shlex.quote(one)]
        return " ".join(words)


ModelColumn = Annotated[
    str | None,
    _column_option(
        "--model",
        metavar="MODULE:CLASS.ATTR",
        help="The application's mapped attribute, such as app.models:Session.token: table, type and key ring. Without "
        f"it and --table, that of {MODEL_VARIABLE}.",
    ),
]

ModelTargets = Annotated[
    list[str] | None,
    _column_option(
        "--model",
        metavar="MODULE:NAME",
        help="The application's declarative base or MetaData for all its columns, a mapped class, or an attribute such "
        f"as app.models:Session.token; once for each. Without it and --table, those of {MODEL_VARIABLE}.",
    ),
]


DatabasesOption = Annotated[
    list[str] | None,
    _column_option(
        "--database",
        metavar="URL",
        help=f"SQLAlchemy's URL of a database; once for each. Without it {DATABASE_VARIABLE}, which a process list "
        "does not show, with white space between several.",
    ),
]


@dataclass(frozen=True)
class RowsToCount(ColumnName):
    """The columns, in several databases perhaps, whose rows a command of ``keys`` counts."""

    databases: DatabasesOption = None
    models: Annotated[
        list[str],
        _column_option(
            "--model",
            metavar="MODULE:CLASS.ATTR",
            help="The application's mapped attribute, such as app.models:Session.token; once for each.",
        ),
    ] = field(default_factory=list)
