"""``jwt-column audit``: the state of the encrypted columns of a database."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import typer
from sqlalchemy import Engine

from ..auditing import AuditReport, Finding, Severity, audit
from ..auditing.kinds import KINDS
from ..errors import ConfigurationError
from .audit_output import STDOUT, Format, Output, read_baseline
from .columns import Targets, choose_targets
from .console import ExitCode, did_you_mean
from .databases import connect, read_urls, with_engine
from .declaring import flag, option_group, value, values
from .options import DATABASES, MODELS, ColumnOptions
from .progress import shown_progress
from .signals import stoppable
from .watch import watch_columns

_OUTPUT: Final = "Output"

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

# Findings about a retired key, or that prevent an answer about it.
_ABOUT_RETIRED: Final = ("retired-key", "column-missing", "refused", "rows-hidden")


@option_group("Checks")
class Checks:
    """The options that choose the checks."""

    active: list[str] = values(
        "--active KEY_ID",
        "The key id that counts as the active one; several of a ring with tenants. No key ring is then loaded, but "
        "with --deep.",
    )
    retired: list[str] = values(
        "--retired KEY_ID",
        "Ask one thing only: is any row under this key? Ends with 1 if so, and if a column cannot be asked. Once for "
        "each key. No key is needed.",
    )
    deep: bool = flag("--deep", "Open every row too, which takes the keys, and look at the tokens.")
    sample: int | None = value(
        "--sample ROWS",
        "With --deep: open this number of rows of each column, evenly spread, instead of all.",
        min=1,
    )
    allowed_algorithms: list[str] = values(
        "--algorithm ALG",
        "With --deep: an alg that tokens may have, such as RS256; once for each. Without it, all but none.",
    )
    max_lifetime: str | None = value(
        "--max-lifetime TIME", "With --deep: the longest time from iat to exp, such as 15m, 12h or 90d."
    )
    compromised_kids: list[str] = values(
        "--compromised-kid KID", "With --deep: a kid of tokens whose signing key others have; once for each."
    )

    try_contexts: list[str] = values(
        "--try-context NAME",
        "With --deep: the context that a column had before a rename, such as sessions.token; once for each.",
    )

    operator: str | None = value(
        "--operator NAME",
        "The person or job that audits, as the report names it. Without it, user and host of this process.",
        panel=_OUTPUT,
    )

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of :func:`audit` that are given."""
        if self.retired and self.deep:
            raise ConfigurationError("--retired asks one thing, without keys; run --deep by itself")
        given = dict(vars(self))
        if self.max_lifetime is not None:
            given["max_lifetime"] = read_duration(self.max_lifetime)
        return {name: value for name, value in given.items() if value not in (None, False, [])}


@option_group(_OUTPUT)
class Outputs:
    """The options that choose the output and the exit status."""

    fail_on: list[str] = values(
        "--fail-on SEVERITY|KIND",
        "Which findings make the command end with 1: info, warning or critical and worse, never, or those of one "
        "kind, such as plaintext; once for each. Without it, warning.",
        default=["warning"],
    )
    format: Format | None = value("--format", "The form of the report on standard output. Without it, text.")
    as_json: bool = flag("--json", "The same as --format json.")
    html: Path | None = value(
        "--html PATH",
        "Write the report as one HTML file too, for the person who signs the audit; - for standard output.",
    )
    baseline: Path | None = value(
        "--baseline PATH",
        "The output of an earlier --json: its rows are shown beside those of now; - for standard input.",
    )
    live: bool = flag(
        "--watch",
        "Show configuration and census of every column, again and again while a rotation runs, until Ctrl-C.",
    )
    every: float = value(
        "--every SECONDS", "With --watch: seconds from one look to the next.", default=2.0, min=0.1
    )

    @property
    def formats(self) -> set[str]:
        """The forms that are asked for on standard output."""
        asked = {self.format, "json" if self.as_json else None, "html" if self.html == STDOUT else None}
        return {one for one in asked if one is not None}


def audit_columns(
    *,
    databases: list[str] = DATABASES,
    models: list[str] = MODELS,
    columns: ColumnOptions,
    checks: Checks,
    outputs: Outputs,
) -> None:
    """Audit columns; see :mod:`jwt_column.cli.app` for the help text."""
    parameters = checks.parameters
    if outputs.live and (
        outputs.formats or outputs.baseline or outputs.html or parameters.keys() - {"active"}
    ):
        raise ConfigurationError("--watch shows rows per key and nothing else; run the audit by itself")
    fails = failing(outputs.fail_on)
    targets = choose_targets(columns, models)
    urls = read_urls(databases)
    if outputs.live:
        if len(urls) > 1:
            raise ConfigurationError("--watch shows one database; give one --database")
        with stoppable(None):
            with_engine(
                urls[0],
                lambda engine: watch_columns(engine, targets, active=checks.active, every=outputs.every),
            )
        return
    output = Output(outputs.formats, outputs.html, read_baseline(outputs.baseline))
    with stoppable("stopped; an audit writes nothing."):
        reports = [with_engine(url, lambda engine: _audit(engine, targets, parameters)) for url in urls]
    if checks.retired:
        reports = [
            replace(each, findings=tuple(one for one in each.findings if one.code in _ABOUT_RETIRED))
            for each in reports
        ]
    output.show(reports, checks.retired)
    if any(fails(finding) for report in reports for finding in report.findings):
        raise typer.Exit(ExitCode.FAILURE)


def _audit(engine: Engine, targets: Targets, parameters: Mapping[str, Any]) -> AuditReport:
    with connect(engine) as connection, shown_progress() as show:
        return audit(
            connection,
            targets(connection),
            progress=lambda at: show(at.column, at.examined, at.rows, "rows", at.column),
            **parameters,
        )


def failing(limits: Sequence[str]) -> Callable[[Finding], bool]:
    """Return the test that ``--fail-on`` asks for: True for a finding that makes the command fail."""
    severities = [str(severity) for severity in Severity]
    for limit in limits:
        if limit not in (*severities, "never", *KINDS):
            question = did_you_mean(limit, (*severities, "never", *KINDS))
            raise ConfigurationError(
                f"--fail-on: {limit!r} is no severity and no kind of finding{question}; give info, warning, critical, "
                "never, or a kind that the documentation of the audit lists, such as plaintext"
            )
    least = min((Severity(limit).rank for limit in limits if limit in severities), default=None)
    return lambda one: one.code in limits or (least is not None and one.severity.rank >= least)


def read_duration(text: str) -> timedelta:
    """Return a time such as ``90d``."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if found is None:
        raise ConfigurationError("--max-lifetime is a number and s, m, h or d, as in 90d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
