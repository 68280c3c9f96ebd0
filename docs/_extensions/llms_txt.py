"""Writes ``llms.txt``: every page with its title, its source in Markdown, and its first sentences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from docutils import nodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx

#: Characters from which on no further sentence is added.
ENOUGH: Final = 70

HEAD: Final = """\
# jwt-column

> JSON Web Tokens encrypted at rest: a SQLAlchemy column type, key rings in an HSM, a KMS or a file, and online
> re-encryption by Alembic.
"""


def summary(app: Sphinx, page: str) -> str:
    """Return the first sentences of a page's text, enough for a line."""
    for paragraph in app.env.get_doctree(page).findall(nodes.paragraph):
        line = ""
        for sentence in re.split(r"(?<=\.)\s", " ".join(paragraph.astext().split())):
            if len(line) > ENOUGH:
                break
            line = f"{line} {sentence}".lstrip()
        return line.rstrip(":")
    return ""


def on_build_finished(app: Sphinx, exception: Exception | None) -> None:
    """Write the file beside the HTML pages."""
    if exception is not None or app.builder.name != "html":
        return
    lines = [HEAD]
    root = app.config.root_doc
    tables = app.env.get_doctree(root).findall(lambda node: node.tagname == "toctree")
    for table in tables:
        lines.append(f"## {table['caption']}\n")
        for _, page in table["entries"]:
            title = app.env.titles[page].astext()
            lines.append(f"- [{title}](_sources/{page}.md.txt): {summary(app, page)}")
        lines.append("")
    Path(app.outdir, "llms.txt").write_text("\n".join(lines), encoding="utf-8")
