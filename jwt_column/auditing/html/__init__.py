"""The report of an audit as one HTML file, for the person who signs it.

The page is a Jinja2 template under ``templates/``: Jinja2 escapes every value that the template prints, so no part of
the page depends on an author who remembers to. It has no script, loads nothing, and its Content-Security-Policy admits
its own style sheet only, by hash.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from ...database.printable import printable
from ...errors import MissingExtraError
from ..comparison import Change, compare
from ..report import utc
from .expiry import expiry_plot
from .keys import STATES, rows_by_state, segments, tokens
from .text import key_text, name_parts, number, share, signed

if TYPE_CHECKING:
    from jinja2 import Environment

    from ..report import AuditReport, Finding

__all__ = ["render_html"]

_TEMPLATES: Final = "templates"
_PAGE: Final = "report.html"
_STYLE: Final = "report.css"


def render_html(report: AuditReport, *, baseline: AuditReport | None = None) -> str:
    """Return a report as an HTML document, to write as UTF-8.

    The document needs no other file, no script and no network. The same reports give the same text.

    Args:
        report: The report. Names and key values in it may be hostile; they are escaped.
        baseline: The report of an earlier audit of the same database, with which the page then compares.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    page = _environment().get_template(_PAGE)
    progress = None if baseline is None else compare(baseline, report)
    # A name from the database is not fit for an id.
    anchors = {column.column: f"column-{place}" for place, column in enumerate(report.columns, 1)}
    found: dict[str, list[tuple[str, Finding]]] = {name: [] for name in anchors}
    for place, finding in enumerate(report.findings, 1):
        found.setdefault(finding.column, []).append((f"finding-{place}", finding))
    return page.render(report=report, progress=progress, anchors=anchors, found=found)


@cache
def _environment() -> Environment:
    try:
        # Here, because the package installs without it.
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError:
        raise MissingExtraError('the HTML report needs Jinja2; run: pip install "jwt-column[cli]"') from None
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup | int | float) else printable(str(value))

    environment = Environment(
        loader=PackageLoader(__package__, _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (files(__package__) / _TEMPLATES / _STYLE).read_text(encoding="utf-8")
    environment.filters.update(
        key_text=key_text, name_parts=name_parts, number=number, share=share, signed=signed, utc=utc
    )
    environment.globals.update(
        # The one text that is not escaped: it is ours, and the policy knows it by its hash.
        style=Markup(style),  # noqa: S704
        style_hash=_hash(style),
        version=version("jwt-column"),
        states=STATES,
        changes=tuple(Change),
        expiry_plot=expiry_plot,
        rows_by_state=rows_by_state,
        segments=segments,
        tokens=tokens,
    )
    return environment


def _hash(style: str) -> str:
    """Return the style sheet's source expression (Content Security Policy Level 3, section 2.3.1)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}"
