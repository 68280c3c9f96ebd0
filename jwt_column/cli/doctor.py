"""``jwt-column doctor``: is an application ready for its keys and its database?"""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

import typer
from rich.text import Text
from sqlalchemy import Engine

from ..auditing.columns import columns_of
from ..auditing.readiness import Check, checks_of
from .columns import Targets, choose_targets
from .console import ExitCode, make_console, mark, print_json, written_out
from .databases import connect, read_url, with_engine
from .options import DATABASE, JSON, MODELS, ColumnOptions


def doctor(
    *,
    database: str | None = DATABASE,
    models: list[str] = MODELS,
    columns: ColumnOptions,
    as_json: bool = JSON,
) -> None:
    """Check an application; see :mod:`jwt_column.cli.app` for the help text."""
    targets = choose_targets(columns, models)
    url = read_url(database)
    checks = with_engine(url, lambda engine: _checks(engine, targets))
    findings = [finding for check in checks for finding in check.findings]
    is_ready = not any(finding.severity.rank for finding in findings)
    if as_json:
        print_json({"ready": is_ready, "checks": [_to_dict(check) for check in checks]})
    else:
        console = make_console()
        for check in checks:
            faults = [finding for finding in check.findings if finding.severity.rank]
            for text in [f"{one.message} {one.action}" for one in faults] or [check.text]:
                line = Text.assemble(
                    mark(console, ok=not faults), " ", written_out(f"{check.subject}: {text}")
                )
                console.print(line, soft_wrap=not console.is_terminal)
    if not is_ready:
        raise typer.Exit(ExitCode.FAILURE)


def _checks(engine: Engine, targets: Targets) -> list[Check]:
    with connect(engine) as connection:
        return list(checks_of(connection, columns_of(list(targets(connection)))))


def _to_dict(check: Check) -> dict[str, object]:
    members = ("code", "severity", "message", "action")
    return {
        "subject": check.subject,
        "ok": not any(one.severity.rank for one in check.findings),
        "findings": [{name: str(getattr(one, name)) for name in members} for one in check.findings],
    }
