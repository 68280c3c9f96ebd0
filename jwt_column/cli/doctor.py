"""``jwt-column doctor``: is an application ready for its keys and its database?"""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

from typing import TYPE_CHECKING

import typer
from rich.text import Text
from sqlalchemy import Engine

from ..auditing.columns import columns_of
from ..auditing.readiness import Check, checks_of
from .columns import choose_targets
from .console import ExitCode, make_console, mark, print_json, written_out
from .databases import connect, read_url, with_engine
from .options import ColumnOptions, DatabaseOption, JsonOption, ModelTargets

if TYPE_CHECKING:
    from .columns import Targets

__all__ = ["doctor"]


def doctor(
    *,
    database: DatabaseOption = None,
    models: ModelTargets = None,
    columns: ColumnOptions,
    as_json: JsonOption = False,
) -> None:
    """Check an application; see :mod:`jwt_column.cli.app` for the help text."""
    targets = choose_targets(columns, models or ())
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


def _checks(engine: Engine, targets: "Targets") -> list[Check]:
    with connect(engine) as connection:
        return list(checks_of(connection, columns_of(list(targets(connection)))))


def _to_dict(check: Check) -> dict[str, object]:
    findings = [
        {"code": one.code, "severity": str(one.severity), "message": one.message, "action": one.action}
        for one in check.findings
    ]
    return {
        "subject": check.subject,
        "ok": not any(one.severity.rank for one in check.findings),
        "findings": findings,
    }
