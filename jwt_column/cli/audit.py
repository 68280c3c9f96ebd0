"""``jwt-column audit``: the state of the encrypted columns of a database."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from sqlalchemy import Engine

from ..auditing import AuditReport, Finding, Severity, audit
from ..auditing.kinds import KINDS
from ..errors import ConfigurationError
from .audit_output import STDOUT, Format, Output, read_baseline
from .columns import choose_targets
from .console import ExitCode, did_you_mean
from .databases import connect, read_urls, with_engine
from .options import ColumnOptions, DatabasesOption, ModelTargets, option
from .progress import shown_progress
from .signals import stoppable
from .watch import watch_columns

if TYPE_CHECKING:
    from .columns import Targets

__all__ = ["audit_columns"]

_check_option = partial(option, rich_help_panel="Checks")
_output_option = partial(option, rich_help_panel="Output")

_UNITS: Final = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}

# Findings about a retired key, or that prevent an answer about it.
_ABOUT_RETIRED: Final = ("retired-key", "column-missing", "refused", "rows-hidden")


@dataclass(frozen=True)
class Checks:
    """The options that choose the checks."""

    active: Annotated[
        list[str],
        _check_option(
            "--active",
            metavar="KEY_ID",
            help="The key id that counts as the active one; several of a ring with tenants. No key ring is then "
            "loaded, but with --deep.",
        ),
    ] = field(default_factory=list)
    retired: Annotated[
        list[str],
        _check_option(
            "--retired",
            metavar="KEY_ID",
            help="Ask one thing only: is any row under this key? Ends with 1 if so, and if a column cannot be asked. "
            "Once for each key. No key is needed.",
        ),
    ] = field(default_factory=list)
    deep: Annotated[
        bool,
        _check_option("--deep", help="Open every row too, which takes the keys, and look at the tokens."),
    ] = False
    sample: Annotated[
        int | None,
        _check_option(
            "--sample",
            metavar="ROWS",
            min=1,
            help="With --deep: open this number of rows of each column, evenly spread, instead of all.",
        ),
    ] = None
    allowed_algorithms: Annotated[
        list[str],
        _check_option(
            "--algorithm",
            metavar="ALG",
            help="With --deep: an alg that tokens may have, such as RS256; once for each. Without it, all but none.",
        ),
    ] = field(default_factory=list)
    max_lifetime: Annotated[
        str | None,
        _check_option(
            "--max-lifetime",
            metavar="TIME",
            help="With --deep: the longest time from iat to exp, such as 15m, 12h or 90d.",
        ),
    ] = None
    compromised_kids: Annotated[
        list[str],
        _check_option(
            "--compromised-kid",
            metavar="KID",
            help="With --deep: a kid of tokens whose signing key others have; once for each.",
        ),
    ] = field(default_factory=list)

    try_contexts: Annotated[
        list[str],
        _check_option(
            "--try-context",
            metavar="NAME",
            help="With --deep: the context that a column had before a rename, such as sessions.token; once for each.",
        ),
    ] = field(default_factory=list)

    operator: Annotated[
        str | None,
        _output_option(
            "--operator",
            metavar="NAME",
            help="The person or job that audits, as the report names it. Without it, user and host of this process.",
        ),
    ] = None

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of :func:`audit` that are given.

        Raises:
            ConfigurationError: They do not go together, or a time has another form.
        """
        if self.retired and self.deep:
            raise ConfigurationError("--retired asks one thing, without keys; run --deep by itself")
        given = dict(vars(self))
        if self.max_lifetime is not None:
            given["max_lifetime"] = read_duration(self.max_lifetime)
        return {name: value for name, value in given.items() if value not in (None, False, [])}


@dataclass(frozen=True)
class Outputs:
    """The options that choose the output and the exit status."""

    fail_on: Annotated[
        list[str],
        _output_option(
            "--fail-on",
            metavar="SEVERITY|KIND",
            help="Which findings make the command end with 1: info, warning or critical and worse, never, or those of "
            "one kind, such as plaintext; once for each. Without it, warning.",
        ),
    ] = field(default_factory=lambda: ["warning"])
    format: Annotated[
        Format | None,
        _output_option("--format", help="The form of the report on standard output. Without it, text."),
    ] = None
    as_json: Annotated[bool, _output_option("--json", help="The same as --format json.")] = False
    html: Annotated[
        Path | None,
        _output_option(
            "--html",
            metavar="PATH",
            help="Write the report as one HTML file too, for the person who signs the audit; - for standard output.",
        ),
    ] = None
    baseline: Annotated[
        Path | None,
        _output_option(
            "--baseline",
            metavar="PATH",
            help="The output of an earlier --json: its rows are shown beside those of now; - for standard input.",
        ),
    ] = None
    live: Annotated[
        bool,
        _output_option(
            "--watch",
            help="Show configuration and census of every column, again and again while a rotation runs, until Ctrl-C.",
        ),
    ] = False
    every: Annotated[
        float,
        _output_option(
            metavar="SECONDS",
            min=0.1,
            help="With --watch: seconds from one look to the next.",
            show_default=True,
        ),
    ] = 2.0

    @property
    def formats(self) -> set[str]:
        """The forms that are asked for on standard output."""
        asked = {self.format, "json" if self.as_json else None, "html" if self.html == STDOUT else None}
        return {one for one in asked if one is not None}


def audit_columns(
    *,
    databases: DatabasesOption = None,
    models: ModelTargets = None,
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
    targets = choose_targets(columns, models or ())
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


def _audit(engine: Engine, targets: "Targets", parameters: Mapping[str, Any]) -> AuditReport:
    with connect(engine) as connection, shown_progress() as show:
        return audit(
            connection,
            targets(connection),
            progress=lambda at: show(at.column, at.examined, at.rows, "rows", at.column),
            **parameters,
        )


def failing(limits: Sequence[str]) -> Callable[[Finding], bool]:
    """Return the test that ``--fail-on`` asks for: True for a finding that makes the command fail.

    Raises:
        ConfigurationError: A limit is neither a severity nor a kind of finding.
    """
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
    """Return a time such as ``90d``.

    Raises:
        ConfigurationError: The text has another form.
    """
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if found is None:
        raise ConfigurationError("--max-lifetime is a number and s, m, h or d, as in 90d")
    return int(found[1]) * _UNITS[found[2]]
