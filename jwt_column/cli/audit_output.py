"""The outputs of an audit: a terminal, JSON, an HTML file."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from ..auditing import AuditReport
from ..errors import ConfigurationError
from .audit_view import print_report
from .console import make_console, print_json, written_out

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Output", "read_baseline"]

# The file name that stands for standard output, and for standard input.
_STDOUT: Final = Path("-")


@dataclass(frozen=True)
class Output:
    """The outputs that the command line asks for.

    Raises:
        ConfigurationError: The HTML file cannot be written there. Said before the audit, which may take long.
    """

    as_json: bool = False
    html: Path | None = None
    baseline: AuditReport | None = None

    def __post_init__(self) -> None:
        if self.html == _STDOUT and self.as_json:
            raise ConfigurationError("--html - and --json both print; leave one out")
        if self.html is not None and not self.html.absolute().parent.is_dir():
            raise ConfigurationError(f"--html: there is no directory {self.html.absolute().parent}")

    def show(self, report: AuditReport, retired: Sequence[str]) -> None:
        """Show a report."""
        if self.html is not None:
            self._write_html(self.html, report)
        if self.html == _STDOUT:
            return
        if self.as_json:
            print_json(report.to_dict())
        else:
            baseline = written_out(self.baseline)
            print_report(make_console(), written_out(report), baseline=baseline, retired=retired)

    def _write_html(self, path: Path, report: AuditReport) -> None:
        from ..auditing.html import render_html  # It takes Jinja2, and a tenth of a second.

        text = render_html(report, baseline=self.baseline)
        if path == _STDOUT:
            typer.echo(text)
            return
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            reason = error.strerror
        else:
            return
        raise ConfigurationError(f"--html: {path} cannot be written: {reason}")


def read_baseline(path: Path | None) -> AuditReport | None:
    """Return the report that an earlier ``--json`` has written.

    Raises:
        ConfigurationError: The file holds none.
    """
    if path is None:
        return None
    try:
        text = sys.stdin.read() if path == _STDOUT else path.read_text(encoding="utf-8")
        content = json.loads(text)
    except OSError as error:
        reason = error.strerror
    except ValueError:
        reason = "it is no JSON"
    else:
        return AuditReport.from_dict(content)
    raise ConfigurationError(f"--baseline: {path} cannot be read: {reason}")
