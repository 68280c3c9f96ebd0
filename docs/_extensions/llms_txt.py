"""Writes ``llms.txt``: every page with its title, its source in Markdown, and its first sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HEAD = """\
# jwt-column

> JSON Web Tokens encrypted at rest: a SQLAlchemy column type, key rings in an HSM, a KMS or a file, and online
> re-encryption by Alembic.
"""


def first_sentence(app: Sphinx, page: str) -> str:
    """Return the first sentence of a page's text."""
    for paragraph in app.env.get_doctree(page).findall(nodes.paragraph):
        return re.split(r"(?<=[.:])\s", " ".join(paragraph.astext().split()), maxsplit=1)[0].rstrip(":")
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
            lines.append(f"- [{title}](_sources/{page}.md.txt): {first_sentence(app, page)}")
        lines.append("")
    Path(app.outdir, "llms.txt").write_text("\n".join(lines), encoding="utf-8")
