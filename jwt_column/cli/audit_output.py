"""The outputs of an audit: a terminal, JSON, SARIF, metrics, an HTML file."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import typer

from ..auditing import AuditReport
from ..auditing.grouping import json_of
from ..errors import ConfigurationError
from .audit_view import print_report
from .console import make_console, print_json, written_out

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

#: The file name that stands for standard output, and for standard input.
STDOUT: Final = Path("-")

#: The forms of a report on standard output.
Format = Literal["text", "json", "html", "sarif", "prometheus"]


@dataclass(frozen=True)
class Output:
    """The outputs that the command line asks for; checked before the audit, which may take long."""

    formats: Collection[str] = ()
    html: Path | None = None
    baseline: Sequence[AuditReport] = ()

    def __post_init__(self) -> None:
        if len(self.formats) > 1:
            raise ConfigurationError(
                f"standard output takes one form, and {' and '.join(sorted(self.formats))} are asked for; leave one of "
                "--format, --json and --html - out"
            )
        if self.html is not None and not self.html.absolute().parent.is_dir():
            raise ConfigurationError(f"--html: there is no directory {self.html.absolute().parent}")

    def show(self, reports: Sequence[AuditReport], retired: Sequence[str]) -> None:
        """Show the report of each database."""
        if self.html is not None and self.html != STDOUT:
            self._write_html(self.html, reports)
        form = next(iter(self.formats), "text")
        if form == "json":
            typer.echo(json_of(reports), nl=False)
        elif form == "html":
            typer.echo(self._html(reports))
        elif form == "sarif":
            from ..auditing.sarif import to_sarif

            print_json(to_sarif(reports))
        elif form == "prometheus":
            from ..auditing.prometheus import to_prometheus

            typer.echo(to_prometheus(reports), nl=False)
        else:
            for number, report in enumerate(reports):
                if number:
                    typer.echo()
                baseline = written_out(self._baseline_of(report, len(reports)))
                print_report(make_console(), written_out(report), baseline=baseline, retired=retired)

    def _baseline_of(self, report: AuditReport, reports: int) -> AuditReport | None:
        """Return the earlier report of the same database; of a single one, the earlier report of any."""
        same = [earlier for earlier in self.baseline if earlier.database == report.database]
        return next(iter(same or (self.baseline if reports == len(self.baseline) == 1 else ())), None)

    def _html(self, reports: Sequence[AuditReport]) -> str:
        from ..auditing.html import render_html  # It takes Jinja2, and a tenth of a second.

        return render_html(reports, baseline=self.baseline or None)

    def _write_html(self, path: Path, reports: Sequence[AuditReport]) -> None:
        text = self._html(reports)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            reason = error.strerror
        else:
            return
        raise ConfigurationError(f"--html: {path} cannot be written: {reason}")


def read_baseline(path: Path | None) -> Sequence[AuditReport]:
    """Return the reports that an earlier ``--json`` has written; none without a file."""
    if path is None:
        return ()
    try:
        text = sys.stdin.read() if path == STDOUT else path.read_text(encoding="utf-8")
        content = json.loads(text)
    except OSError as error:
        reason = error.strerror
    except ValueError:
        reason = "it is no JSON"
    else:
        listed = content.get("reports") if isinstance(content, dict) else None
        return [AuditReport.from_dict(one) for one in (listed if isinstance(listed, list) else [content])]
    raise ConfigurationError(f"--baseline: {path} cannot be read: {reason}")
