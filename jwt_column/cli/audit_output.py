"""The outputs of an audit: a terminal, JSON, an HTML file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..auditing import AuditReport
from ..errors import ConfigurationError
from .audit_view import print_report
from .console import make_console, print_json, written_out

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Output", "read_baseline"]


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
        if self.html is not None and not self.html.absolute().parent.is_dir():
            raise ConfigurationError(f"--html: there is no directory {self.html.absolute().parent}")

    def show(self, report: AuditReport, retired: Sequence[str]) -> None:
        """Show a report."""
        if self.html is not None:
            self._write_html(self.html, report)
        if self.as_json:
            print_json(report.to_dict())
        else:
            baseline = written_out(self.baseline)
            print_report(make_console(), written_out(report), baseline=baseline, retired=retired)

    def _write_html(self, path: Path, report: AuditReport) -> None:
        from ..auditing.html import render_html  # It takes Jinja2, and a tenth of a second.

        try:
            path.write_text(render_html(report, baseline=self.baseline), encoding="utf-8")
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
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror
    except ValueError:
        reason = "it is no JSON"
    else:
        return AuditReport.from_dict(content)
    raise ConfigurationError(f"--baseline: {path} cannot be read: {reason}")
