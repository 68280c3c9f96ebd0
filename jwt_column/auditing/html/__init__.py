"""The report of an audit as one HTML file, for the person who signs it.

The page is a Jinja2 template under ``templates/``: Jinja2 escapes every value that the template prints, so no part of
the page depends on an author who remembers to. It has no script, loads nothing, and its Content-Security-Policy admits
its own style sheet only, by hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from ...database.printable import printable
from ...errors import MissingExtraError
from ..comparison import Change, changes_by_kind, compare, keys_of
from ..grouping import by_kind, combined, database_labels, json_of
from ..report import reports_of, utc
from .expiry import EXPIRED_SPANS, VALID_SPANS, expiry_spans, heights
from .keys import STATES, rows_by_state, segments, tokens
from .text import key_text, name_parts, number, share, signed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jinja2 import Environment

    from ..report import AuditReport

__all__ = ["render_html"]

_TEMPLATES: Final = "templates"
_PAGE: Final = "report.html"
_STYLE: Final = "report.css"


def render_html(
    report: AuditReport | Sequence[AuditReport],
    *,
    baseline: AuditReport | Sequence[AuditReport] | None = None,
) -> str:
    """Return a report as an HTML document, to write as UTF-8.

    The document needs no other file, no script and no network. The same reports give the same text.

    Args:
        report: The report, or one for each of several databases. Names and key values in it may be hostile; they are
            escaped.
        baseline: The report of an earlier audit, or one for each database, with which the page then compares.

    Raises:
        ConfigurationError: A list of reports is empty, or a value is no report.
        MissingExtraError: Jinja2 is not installed.
    """
    page = _environment().get_template(_PAGE)
    reports = reports_of(report=report)
    earlier = None if baseline is None else reports_of(baseline=baseline)
    whole, progress = combined(reports), None
    if earlier is not None:
        labels = database_labels(reports) if len(reports) > 1 else None
        progress = compare(combined(earlier, labels), whole)
    return page.render(
        reports=reports,
        report=whole,
        labels=database_labels(reports),
        groups=by_kind(whole.findings),
        progress=progress,
        # A name from the database is not fit for an id.
        anchors={column.column: f"column-{place}" for place, column in enumerate(whole.columns, 1)},
        found=Counter(finding.column for finding in whole.findings),
        shared=_shared_configuration(whole),
        digest=hashlib.sha256(json_of(reports).encode()).hexdigest(),
    )


def _shared_configuration(report: AuditReport) -> dict[str, str]:
    """Return the parameters that every column has, with the same value."""
    pairs = [set(column.configuration.items()) for column in report.columns]
    shared = set.intersection(*pairs) if len(pairs) > 1 else set()
    return {name: value for name, value in sorted(shared) if name != "context"}


@cache
def _environment() -> Environment:
    try:
        # Here, because the package installs without it.
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ModuleNotFoundError:
        raise MissingExtraError('the HTML report needs Jinja2; run: pip install "jwt-column[cli]"') from None
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup | int | float) else printable(str(value))

    environment = Environment(
        loader=FunctionLoader(_read),  # a PackageLoader does not find the files of every zip
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = _read(_STYLE)
    filters = (key_text, name_parts, number, share, signed, utc)
    environment.filters.update({one.__name__: one for one in filters})
    functions = (changes_by_kind, expiry_spans, heights, keys_of, rows_by_state, segments, tokens)
    environment.globals.update(
        {one.__name__: one for one in functions},
        # The one text that is not escaped: it is ours, and the policy knows it by its hash.
        style=Markup(style),  # noqa: S704
        style_hash=_hash(style),
        states=STATES,
        changes=tuple(Change),
        expired_spans=EXPIRED_SPANS,
        valid_spans=VALID_SPANS,
    )

    return environment


def _read(name: str) -> str:
    return (files(__package__) / _TEMPLATES / name).read_text(encoding="utf-8")


def _hash(style: str) -> str:
    """Return the style sheet's source expression (Content Security Policy Level 3, section 2.3.1)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}"
