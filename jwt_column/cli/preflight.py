"""``jwt-column reencrypt --preflight``: what a run would meet, without a run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import typer
from rich.text import Text

from migrations_helpers.engine.preflight import preflight_column

from ..auditing.report import Severity
from ..errors import JWTColumnError
from .console import ExitCode, make_console, print_json, verdict, written_out
from .databases import connect
from .options import split_names

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Engine

    from migrations_helpers.engine.conversions import Conversion

    from ..auditing.report import Finding
    from .conversion import Run

_STYLES: Final = {Severity.CRITICAL: "bold red", Severity.WARNING: "yellow", Severity.INFO: "dim"}


def show_preflight(run: Run, engine: Engine) -> None:
    """Show what stands in the way of a run over a column, in each of its schemas, and what makes it slow."""
    column, schemas = run.column, run.schemas(engine)
    key_columns, preserve = split_names(run.options.key_columns), split_names(run.options.preserve)
    findings: list[Finding] = []
    for schema in [column.schema] if schemas is None else schemas:
        with connect(engine) as connection:
            found = replace(column, schema=schema).counted_in(connection)
            # Without keys nothing can be said about the length of new values, and all else can.
            conversions: tuple[Callable[..., Conversion], ...] = ()
            with suppress(JWTColumnError):
                found.type_.ring()
                conversions = (run.make_conversion,)
            connection.rollback()
            of_column = preflight_column(connection, found.subject(key_columns, preserve), conversions)
            findings += of_column
            if not any(one.severity is Severity.CRITICAL for one in of_column):
                found.refuse_lost_fields(connection)
    findings.sort(key=lambda one: (-one.severity.rank, one.column, one.code))
    is_ready = not any(one.severity is Severity.CRITICAL for one in findings)
    if run.options.as_json:
        members = ("code", "severity", "column", "message", "action")
        shown = [{name: str(getattr(one, name)) for name in members} for one in findings]
        print_json({"ready": is_ready, "findings": shown})
    else:
        _print(findings, is_ready=is_ready)
    if not is_ready:
        raise typer.Exit(ExitCode.USAGE)


def _print(findings: Sequence[Finding], *, is_ready: bool) -> None:
    console = make_console()
    for one in findings:
        line = Text.assemble(
            (str(one.severity), _STYLES[one.severity]),
            "  ",
            (one.code, "bold"),
            "  ",
            written_out(f"{one.message} {one.action}"),
        )
        console.print(line, soft_wrap=not console.is_terminal)
    text = "Nothing stands in the way of a run." if is_ready else "A run would be refused."
    console.print(verdict(console, text, ok=is_ready))
