"""Turns Markdown that a code host shows into what MyST needs, while a page is read.

The pages are written for both readers. On a code host, HTML comments are invisible and tables of members are read as
they are; here, a comment becomes the directive that it names.

``<!-- autodoc: jwt_column.KeyRing -->``
    The docstring, from the code. Everything up to ``<!-- /autodoc -->``, if there is one, is a summary for the code
    host and gives way to it.
A heading with a signature (``### key_usage(column, *, active=None)``)
    Keeps the name alone, because the docstring below it begins with the signature.
A link that leaves ``docs/``
    Keeps its text alone: a test or a vector is no page of the site.
The lists of ``index.md``
    Also become the navigation, one group for each heading.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_AUTODOC: Final = re.compile(
    r"^<!-- autodoc: (?P<name>[\w.]+) -->$(?:(?:(?!<!-- autodoc:).)*?^<!-- /autodoc -->$)?",
    re.MULTILINE | re.DOTALL,
)
_SIGNATURE: Final = re.compile(r"^(?P<heading>#{2,4} \w+)\(.*\)$", re.MULTILINE)
_LINK_OUT: Final = re.compile(r"\[(?P<text>[^\]]+)\]\((?:\.\./)+(?:README\.md|tests/|jwt_column/)[^)]*\)")
_GROUP: Final = re.compile(r"^## (?P<caption>.+)\n(?P<body>(?:(?!^## ).*\n?)*)", re.MULTILINE)
_PAGE: Final = re.compile(r"\[(?P<title>[^\]]+)\]\((?P<page>[\w/-]+)\.md\)")


#: Public members of public classes that only the package itself calls.
INTERNAL: Final = (
    "awaits_row, current, encrypting_key, in_row, key, keys, keys_for_search, snapshot, stored_as"
)


def directive(name: str) -> str:
    """Return the autodoc directive of a public name, as a block of MyST."""
    last = name.rpartition(".")[2]
    if last.endswith("Error"):
        lines = [f".. autoexception:: {name}"]
    elif last[0].islower():
        lines = [f".. autofunction:: {name}"]
    elif last in ("EncryptedJWT", "EncryptedJSON") or last.endswith(("Index", "Op")):
        # Their members are SQLAlchemy's and Alembic's.
        lines = [f".. autoclass:: {name}"]
    else:
        lines = [f".. autoclass:: {name}", "   :members:", f"   :exclude-members: {INTERNAL}"]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def navigation(text: str) -> str:
    """Return one hidden table of contents for each heading of the index."""
    parts = []
    for group in _GROUP.finditer(text):
        links = _PAGE.findall(group["body"])
        if links:
            entries = "\n".join(f"{title} <{page}>" for title, page in links)
            parts.append(f"```{{toctree}}\n:hidden:\n:caption: {group['caption']}\n\n{entries}\n```\n")
    return "\n".join(parts)


def on_source_read(app: Sphinx, page: str, content: list[str]) -> None:
    """Rewrite the text of a page."""
    text = _AUTODOC.sub(lambda found: directive(found["name"]), content[0])
    text = _SIGNATURE.sub(r"\g<heading>()", text)
    text = _LINK_OUT.sub(r"\g<text>", text)
    if page == app.config.root_doc:
        text += "\n" + navigation(text)
    content[0] = text
