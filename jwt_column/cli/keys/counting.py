"""Rows per key in the databases that a command is given, by SQL alone."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import typer
from sqlalchemy import Engine

from ...census import key_usage
from ...database.row_security import hidden_rows
from ...errors import ConfigurationError
from ..columns import ChosenColumn, ColumnOptions, choose_column
from ..console import DatabaseError
from ..databases import DATABASE_VARIABLE, connect, read_url, with_engine

__all__ = [
    "ColumnOption",
    "DatabaseOption",
    "ModelOption",
    "SchemaOption",
    "TableOption",
    "count_rows",
]

_PANEL = "Which rows to count"

DatabaseOption = Annotated[
    list[str] | None,
    typer.Option(
        "--database",
        metavar="URL",
        help=f"SQLAlchemy's URL of a database; once for each. Without it {DATABASE_VARIABLE}, which nobody can list.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="MODULE:CLASS.ATTR",
        help="The application's mapped attribute, such as app.models:Session.token; once for each.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
TableOption = Annotated[
    str | None,
    typer.Option("--table", metavar="NAME", help="The table.", show_default=False, rich_help_panel=_PANEL),
]
ColumnOption = Annotated[
    str | None,
    typer.Option(
        "--column", metavar="NAME", help="The encrypted column.", show_default=False, rich_help_panel=_PANEL
    ),
]
SchemaOption = Annotated[
    str | None,
    typer.Option(
        "--schema",
        metavar="NAME",
        help="The table's schema, if it is not the default one.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]

# The census says of each row whether it is under this key; here only the key ids matter.
_NO_KEY = "00000000"


def count_rows(
    database: list[str] | None,
    model: list[str] | None,
    table: str | None,
    column: str | None,
    schema: str | None,
) -> dict[str, int] | None:
    """Return the rows under each key id, over all columns in all databases named; None where no column is named.

    Raises:
        ConfigurationError: A column or a database is named badly, is not there, or a database without a column.
        DatabaseError: A database cannot be reached, or refuses.
    """
    if not (model or table or column or schema):
        if database:
            raise ConfigurationError(
                "which rows? Beside --database, give --model module:Class.attribute, or --table and --column"
            )
        return None
    options = [ColumnOptions(model=name) for name in model or ()]
    if table or column or schema:
        options.append(ColumnOptions(table=table, column=column, schema=schema))
    columns = [choose_column(one) for one in options]
    counted: Counter[str] = Counter()
    urls = [read_url(text) for text in database or (os.environ.get(DATABASE_VARIABLE),)]
    for url in urls:
        with_engine(url, partial(_count, columns, counted))
    return dict(counted)


def _count(columns: Sequence[ChosenColumn], counted: Counter[str], engine: Engine) -> None:
    with connect(engine) as connection:
        for column in columns:
            found = column.counted_in(connection)
            typed = found.typed()
            hidden = hidden_rows(connection, typed.table)
            if hidden is not None:
                raise DatabaseError(f"{found.name}: {hidden}")
            for row in connection.execute(key_usage(typed, active=_NO_KEY)):
                if row.key_id is not None:
                    counted[row.key_id] += row.rows
