"""``jwt-column scan``: readable tokens in a whole database, in tables without a model too."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

import typer
from rich.console import Console
from rich.text import Text
from sqlalchemy import Engine

from ..scanning import ScanReport, find_plaintext_tokens
from ..scanning.run import SAMPLE
from ..wording import counted
from .audit_view import print_database, shown_key
from .console import ExitCode, indented, make_console, plain_table, print_json, verdict, written_out
from .databases import connect, read_url, with_engine
from .declaring import flag, value
from .options import DATABASE, JSON
from .progress import shown_progress
from .signals import stoppable


def scan(
    *,
    database: str | None = DATABASE,
    schema: str | None = value(
        "--schema NAME",
        "Look through this schema only. Without it, on PostgreSQL all but the system's, elsewhere the default one.",
    ),
    sample: int = value(
        "--sample ROWS",
        "Rows of each table to look at: half of them the first by primary key, half the last.",
        default=SAMPLE,
        min=1,
    ),
    full: bool = flag("--full", "Look at every row of every table."),
    as_json: bool = JSON,
) -> None:
    """Report readable tokens; see :mod:`jwt_column.cli.app` for the help text."""
    url = read_url(database)
    with stoppable("stopped; a scan writes nothing."):
        report = with_engine(url, lambda engine: _scan(engine, schema, None if full else sample))
    if as_json:
        print_json(report.to_dict())
    else:
        _print_report(make_console(), written_out(report))
    if not report.ok:
        raise typer.Exit(ExitCode.FAILURE)


def _scan(engine: Engine, schema: str | None, sample: int | None) -> ScanReport:
    with connect(engine) as connection, shown_progress() as show:
        return find_plaintext_tokens(
            connection,
            schema=schema,
            sample=sample,
            progress=lambda at: show(at.table, at.done, at.tables, "tables"),
        )


def _print_report(console: Console, report: ScanReport) -> None:
    looked_at = "every row" if report.sample is None else f"up to {report.sample:,} rows of each"
    print_database(console, report.database)
    indented(
        console, Text(f"{counted(report.tables, 'table')}, {counted(report.columns, 'column')}, {looked_at}")
    )
    if report.found:
        table = plain_table("table", "column", ">with tokens", ">of rows", "for example")
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
    indented(console, verdict(console, _verdict(report), ok=report.ok))
    if report.found:
        console.print()
        indented(
            console,
            Text(
                "Every reader of the database can use these tokens. Encrypt a column with jwt-column encrypt, clear "
                "tokens that should not be there, and have the issuer revoke them."
            ),
        )


def _verdict(report: ScanReport) -> str:
    if report.ok:
        return f"No readable token in {counted(report.rows, 'row')}."
    parts = []
    if report.found:
        parts.append(f"readable tokens in {counted(len(report.found), 'column')}")
    if report.failed:
        parts.append(f"{counted(len(report.failed), 'table')} not read")
    text = ", ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
