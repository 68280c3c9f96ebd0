"""The options that several commands take. A field of a group is an option: name, type, default and help text."""

# No "from __future__ import annotations": Typer reads the annotations of options when it builds a command.

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final, Literal

from .declaring import flag, option_group, value, values

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


def split_names(text: str | None) -> tuple[str, ...]:
    """Return the names of a list with commas."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


_COLUMN: Final = "Which column"
_TYPE: Final = "The column's type, with --table"

DATABASE: Final[Any] = value(
    "--database URL",
    "SQLAlchemy's URL of the database. Better in the environment: others can list a command line.",
    panel=_COLUMN,
    envvar=DATABASE_VARIABLE,
)
DATABASES: Final[Any] = values(
    "--database URL",
    f"SQLAlchemy's URL of a database; once for each. Without it {DATABASE_VARIABLE}, which a process list does not "
    "show, with white space between several.",
    panel=_COLUMN,
)
MODEL: Final[Any] = value(
    "--model MODULE:CLASS.ATTR",
    "The application's mapped attribute, such as app.models:Session.token: table, type and key ring. Without it and "
    f"--table, that of {MODEL_VARIABLE}.",
    panel=_COLUMN,
)
MODELS: Final[Any] = values(
    "--model MODULE:NAME",
    "The application's declarative base or MetaData for all its columns, a mapped class, or an attribute such as "
    f"app.models:Session.token; once for each. Without it and --table, those of {MODEL_VARIABLE}.",
    panel=_COLUMN,
)
FILE: Final[Any] = value(
    "--file PATH", "The key-ring file. Without it, the one that JWT_COLUMN_KEYRING names."
)
JSON: Final[Any] = flag("--json", "Print JSON on standard output, and nothing else there.", panel="Options")


@option_group(_COLUMN)
class ColumnName:
    """A column by its name in the database."""

    table: str | None = value("--table NAME", "The table.")
    column: str | None = value("--column NAME", "The encrypted column.")
    schema: str | None = value("--schema NAME", "The table's schema, if it is not the default one.")


@option_group(_TYPE)
class StoredColumn(ColumnName):
    """A column by its name, and its storage form."""

    storage: Literal["binary", "text"] | None = value(
        "--storage", "How tokens are stored. Without it, as the database's column asks for."
    )


@option_group(_TYPE)
class ColumnOptions(StoredColumn):
    """A column by its name, and its type: each further field is a parameter of it."""

    type: Literal["jwt", "json"] | None = value(
        "--type", "The model's type: jwt for EncryptedJWT, json for EncryptedJSON. Without it, jwt."
    )
    keyring: str | None = value(
        "--keyring URI",
        "The key ring, such as file:/etc/app/jwt.keys. Without it, that of JWT_COLUMN_KEYRING or JWT_COLUMN_KEYS.",
    )
    context: str | None = value(
        "--context TEXT",
        "The context, if the model names one: the text that stored tokens are bound to, so that they open in their "
        "own column only. Without it, TABLE.COLUMN.",
    )
    fingerprints: list[str] = values(
        "--fingerprint NAME", "A fingerprint that the model names; once for each, in the model's order."
    )
    expose_expiry: bool = flag("--expose-expiry", "The model has expose_expiry=True.")
    allow_opaque: bool = flag("--allow-opaque", "The model has allow_opaque=True.")
    allow_unsigned: bool = flag("--allow-unsigned", "The model has allow_unsigned=True.")
    bound_to: list[str] = values(
        "--bound-to NAME", "A column that the model names in bound_to; once for each, in the model's order."
    )

    @property
    def type_parameters(self) -> dict[str, Any]:
        """The parameters of the type that are given."""
        names = {one.name for one in fields(self)} - {one.name for one in fields(ColumnName)} - {"type"}
        return {name: given for name in sorted(names) if (given := getattr(self, name))}

    @property
    def arguments(self) -> str:
        """The options as a command line has them; without the key ring, whose URI may hold a password."""
        words: list[str] = []
        for one in fields(self):
            given, option = getattr(self, one.name), one.metadata["option"].name
            if one.name == "keyring" or not given:
                continue
            if given is True:
                words.append(option)
            else:
                for text in (given,) if isinstance(given, str) else given:
                    words += [option, shlex.quote(text)]
        return " ".join(words)


@option_group(_COLUMN)
class RowsToCount(ColumnName):
    """The columns, in several databases perhaps, whose rows a command of ``keys`` counts."""

    databases: list[str] = DATABASES
    models: list[str] = values(
        "--model MODULE:CLASS.ATTR",
        "The application's mapped attribute, such as app.models:Session.token; once for each.",
    )
