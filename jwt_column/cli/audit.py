"""``jwt-column audit``: what state the encrypted columns of a database are in."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

import re
import signal
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from sqlalchemy import URL, Engine

from ..auditing import AuditReport, Severity, audit
from ..errors import ConfigurationError
from .audit_columns import Targets, choose_targets
from .audit_output import Output, read_baseline
from .audit_progress import shown_progress
from .columns import ColumnOptions
from .console import ExitCode, print_problem
from .databases import connect, read_url, with_engine
from .options import (
    COLUMN_PANEL,
    AllowOpaqueOption,
    AllowUnsignedOption,
    BoundToOption,
    ColumnOption,
    ContextOption,
    DatabaseOption,
    ExposeExpiryOption,
    FingerprintOption,
    KeyringOption,
    SchemaOption,
    StorageOption,
    TableOption,
)
from .signals import Interruptions
from .watch import watch_columns

__all__ = ["EXIT_CODES", "audit_command"]

#: What stands below the help.
EXIT_CODES: Final = (
    "Exit codes: 0 no finding of the severity of --fail-on or worse; 1 there is one; 2 wrong usage or configuration; 3 "
    "the database cannot be reached, or refused; 130 stopped by Ctrl-C, which is how --watch ends with 0."
)

_CHECKS: Final = "What is looked at"
_OUTPUT: Final = "What comes out"

_UNITS: Final = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}

# What is in the way of an answer about a retired key.
_ABOUT_RETIRED: Final = ("retired-key", "column-missing", "refused")


class FailOn(StrEnum):
    """From which severity a finding makes the command fail."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"
    NEVER = "never"


_Model = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="MODULE:NAME",
        help="The application's declarative base or MetaData for all its columns, a mapped class, or an attribute such "
        "as app.models:Session.token; once for each.",
        show_default=False,
        rich_help_panel=COLUMN_PANEL,
    ),
]


def audit_command(
    *,
    database: DatabaseOption = None,
    model: _Model = None,
    table: TableOption = None,
    column: ColumnOption = None,
    schema: SchemaOption = None,
    keyring: KeyringOption = None,
    storage: StorageOption = None,
    context: ContextOption = None,
    fingerprint: FingerprintOption = None,
    expose_expiry: ExposeExpiryOption = False,
    allow_opaque: AllowOpaqueOption = False,
    allow_unsigned: AllowUnsignedOption = False,
    bound_to: BoundToOption = None,
    active: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY_ID",
            help="The key id that counts as the active one; several of a ring with tenants. No key ring is then "
            "loaded, but with --deep.",
            show_default=False,
            rich_help_panel=_CHECKS,
        ),
    ] = None,
    retired: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY_ID",
            help="Ask one thing only: is any row under this key? Ends with 1 if so, and if a column cannot be asked. "
            "Once for each key. No key is needed.",
            show_default=False,
            rich_help_panel=_CHECKS,
        ),
    ] = None,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Open every row too, which takes the keys, and look at the tokens.",
            rich_help_panel=_CHECKS,
        ),
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option(
            metavar="ROWS",
            min=1,
            help="With --deep: open so many rows of each column, evenly spread, instead of all.",
            show_default=False,
            rich_help_panel=_CHECKS,
        ),
    ] = None,
    algorithm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ALG",
            help="With --deep: an alg that tokens may have, such as RS256; once for each. Without it, all but none.",
            show_default=False,
            rich_help_panel=_CHECKS,
        ),
    ] = None,
    max_lifetime: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="With --deep: the longest time from iat to exp, such as 15m, 12h or 90d.",
            show_default=False,
            rich_help_panel=_CHECKS,
        ),
    ] = None,
    compromised_kid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KID",
            help="With --deep: a kid of tokens whose signing key others have; once for each.",
            show_default=False,
            rich_help_panel=_CHECKS,
        ),
    ] = None,
    fail_on: Annotated[
        FailOn,
        typer.Option(
            help="Which findings make the command end with 1: of this severity or worse.",
            rich_help_panel=_OUTPUT,
        ),
    ] = FailOn.WARNING,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="What --json printed earlier: rows are shown beside those of then.",
            show_default=False,
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Write the report as one HTML file too, for the person who signs the audit.",
            show_default=False,
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the report as JSON on standard output, and nothing else there.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    live: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Show configuration and census of every column, again and again while a rotation runs, until Ctrl-C.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    every: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0.1,
            help="With --watch: seconds from one look to the next.",
            rich_help_panel=_OUTPUT,
        ),
    ] = 2.0,
) -> None:
    """Say what state the encrypted columns of a database are in.

    By SQL alone and without keys: rows per key, rows that are stale, in the clear or unreadable, missing indexes. With
    --deep, what each token says too.
    """
    columns = ColumnOptions(
        table=table,
        column=column,
        schema=schema,
        keyring=keyring,
        storage=None if storage is None else storage.value,
        context=context,
        fingerprint=tuple(fingerprint or ()),
        expose_expiry=expose_expiry,
        allow_opaque=allow_opaque,
        allow_unsigned=allow_unsigned,
        bound_to=tuple(bound_to or ()),
    )
    checks = {
        "deep": deep,
        "active": active,
        "retired": retired or (),
        "sample": sample,
        "allowed_algorithms": algorithm,
        "max_lifetime": None if max_lifetime is None else read_duration(max_lifetime),
        "compromised_kids": compromised_kid or (),
    }
    if retired and deep:
        raise ConfigurationError("--retired asks one thing, without keys; run --deep by itself")
    if live and (
        as_json or any(given for given in (baseline, html, *checks.values()) if given is not active)
    ):
        raise ConfigurationError("--watch shows rows per key and nothing else; run the audit by itself")
    targets = choose_targets(columns, model or ())
    url = read_url(database)
    if live:
        _watch(url, targets, active or (), every)
        return
    output = Output(as_json=as_json, html=html, baseline=read_baseline(baseline))
    with Interruptions() as interruptions:
        try:
            report = with_engine(url, lambda engine: _audit(engine, targets, checks))
        except KeyboardInterrupt:
            print_problem("stopped; an audit writes nothing.")
            raise typer.Exit(interruptions.exit_code) from None
    if retired:
        report = replace(report, findings=tuple(one for one in report.findings if one.code in _ABOUT_RETIRED))
    output.show(report, retired or ())
    if fail_on is not FailOn.NEVER and report.findings_from(Severity(fail_on.value)):
        raise typer.Exit(ExitCode.FAILURE)


def _watch(url: URL, targets: Targets, active: Sequence[str], every: float) -> None:
    with Interruptions() as interruptions:
        try:
            with_engine(url, lambda engine: watch_columns(engine, targets, active=active, every=every))
        except KeyboardInterrupt:
            # Ctrl-C is the way to end it.
            if interruptions.number != signal.SIGINT:
                raise typer.Exit(interruptions.exit_code) from None


def _audit(engine: Engine, targets: Targets, checks: dict[str, Any]) -> AuditReport:
    with connect(engine) as connection, shown_progress() as progress:
        return audit(connection, targets(connection), progress=progress, **checks)


def read_duration(text: str) -> timedelta:
    """Return a time such as ``90d``.

    Raises:
        ConfigurationError: It has another form.
    """
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if found is None:
        raise ConfigurationError("--max-lifetime is a number and s, m, h or d, as in 90d")
    return int(found[1]) * _UNITS[found[2]]
