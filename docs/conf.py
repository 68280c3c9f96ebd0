"""Sphinx configuration: the site is made from the same Markdown files that a code host shows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import jwt_column

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS: Final = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_extensions"))

project = "jwt-column"
author = "The jwt-column developers"
project_copyright = author
version = release = jwt_column.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
language = "en"
nitpicky = True

# -- Markdown ----------------------------------------------------------------------------------------------------------

myst_heading_anchors = 4  # the anchors that a code host makes, which the pages' links use
myst_enable_extensions = ["deflist"]

# -- docstrings --------------------------------------------------------------------------------------------------------

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# The inventories are in the repository, so that a build needs no network; _inventories/vendor.py makes them.
intersphinx_mapping = {
    name: (address, str(DOCS / "_inventories" / f"{name}.inv"))
    for name, address in {
        "python": "https://docs.python.org/3",
        "sqlalchemy": "https://docs.sqlalchemy.org/en/21",
        "alembic": "https://alembic.sqlalchemy.org/en/latest",
        "cryptography": "https://cryptography.io/en/latest",
        "pyjwt": "https://pyjwt.readthedocs.io/en/stable",
    }.items()
    if (DOCS / "_inventories" / f"{name}.inv").exists()
}

# -- the pages ---------------------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"jwt-column {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_search_scorer = str(DOCS / "_static" / "scorer.js")
html_copy_source = True
html_show_sphinx = False
html_permalinks_icon = "#"
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True


def without_signature_of_exception(_app: Sphinx, what: str, *_details: object) -> tuple[str, None] | None:
    """Leave out how an exception is made: programs catch them, and only the package raises them."""
    return ("", None) if what == "exception" else None


def setup(app: Sphinx) -> None:
    """Connect the extensions of this folder."""
    import host_markdown
    import llms_txt
    import references

    app.connect("autodoc-process-signature", without_signature_of_exception)
    app.connect("source-read", host_markdown.on_source_read)
    app.connect("missing-reference", references.on_missing_reference, priority=900)
    app.connect("build-finished", llms_txt.on_build_finished)
