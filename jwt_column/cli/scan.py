"""``jwt-column scan``: readable tokens in a whole database, in tables that no model knows too."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

import json
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.text import Text
from sqlalchemy import Engine

from ..scanning import ScanReport, find_plaintext_tokens
from ..scanning.run import SAMPLE
from .audit_progress import shown_scan
from .audit_view import plain_table, print_database, shown_key
from .console import ExitCode, counted, indented, make_console, mark, print_problem
from .databases import DATABASE_VARIABLE, connect, read_url, with_engine
from .signals import Interruptions

__all__ = ["EXIT_CODES", "scan"]

#: What stands below the help.
EXIT_CODES: Final = (
    "Exit codes: 0 nothing was found; 1 there are readable tokens, or a table that cannot be read; 2 wrong usage; 3 "
    "the database cannot be reached; 130 stopped by Ctrl-C."
)


def scan(
    *,
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            metavar="URL",
            envvar=DATABASE_VARIABLE,
            help="SQLAlchemy's URL of the database. Better in the environment: others can list a command line.",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Look through this schema only. Without it, on PostgreSQL all but the system's, elsewhere the default "
            "one.",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[
        int,
        typer.Option(
            metavar="ROWS",
            min=1,
            help="Rows of each table to look at: half of them the first by primary key, half the last.",
        ),
    ] = SAMPLE,
    full: Annotated[bool, typer.Option("--full", help="Look at every row of every table.")] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the report as JSON on standard output, and nothing else there."),
    ] = False,
) -> None:
    """Find readable tokens anywhere in a database: in text, JSON and binary columns of every table.

    Shows where they are, and nothing of them. Needs no key, and writes nothing.
    """
    url = read_url(database)
    with Interruptions() as interruptions:
        try:
            report = with_engine(url, lambda engine: _scan(engine, schema, None if full else sample))
        except KeyboardInterrupt:
            print_problem("stopped; a scan writes nothing.")
            raise typer.Exit(interruptions.exit_code) from None
    if as_json:
        # Not through Rich, which would break long lines.
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print_report(make_console(), report)
    if not report.ok:
        raise typer.Exit(ExitCode.FAILURE)


def _scan(engine: Engine, schema: str | None, sample: int | None) -> ScanReport:
    with connect(engine) as connection, shown_scan() as progress:
        return find_plaintext_tokens(connection, schema=schema, sample=sample, progress=progress)


def _print_report(console: Console, report: ScanReport) -> None:
    looked_at = "every row" if report.sample is None else f"up to {report.sample:,} rows of each"
    print_database(console, report.database)
    indented(
        console, Text(f"{counted(report.tables, 'table')}, {counted(report.columns, 'column')}, {looked_at}")
    )
    if report.found:
        table = plain_table()
        table.add_column("table", overflow="fold")
        table.add_column("column", overflow="fold")
        table.add_column("with tokens", justify="right", no_wrap=True)
        table.add_column("of rows", justify="right", no_wrap=True)
        table.add_column("for example", overflow="fold")
        for found in report.found:
            key = "" if found.primary_key is None else f"key {shown_key(found.primary_key)}"
            rows = f"{found.examined:,}{'' if found.complete else '+'}"
            table.add_row(
                Text(found.table), Text(found.column), Text(f"{found.rows:,}", "red"), rows, Text(key)
            )
        console.print()
        indented(console, table)
    for failed in report.failed:
        console.print()
        indented(
            console,
            Text.assemble(("not read", "bold red"), "  ", (failed.table, "bold"), f"  {failed.reason}"),
        )
    console.print()
    verdict = Text.assemble(mark(console, ok=report.ok), " ", (_verdict(report), "bold"))
    indented(console, verdict)
    if report.found:
        console.print()
        indented(
            console,
            Text(
                "Whoever reads the database can use these tokens. Encrypt a column with jwt-column encrypt, clear what "
                "should not be there, and have the issuer revoke what was."
            ),
        )


def _verdict(report: ScanReport) -> str:
    if report.ok:
        return f"No readable token in {report.rows:,} rows."
    parts = []
    if report.found:
        parts.append(f"readable tokens in {counted(len(report.found), 'column')}")
    if report.failed:
        parts.append(f"{counted(len(report.failed), 'table')} not read")
    text = ", ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
