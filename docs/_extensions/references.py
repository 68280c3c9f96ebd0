"""Finds the page of a name that a docstring refers to in another way than it is documented."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Final

from docutils import nodes

import jwt_column
import migrations_helpers
from jwt_column import access_trail, errors, providers, testing

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

PACKAGES: Final = ("jwt_column", "migrations_helpers")

#: Public names by the last part, which is what annotations and docstrings of any module have in common.
PUBLIC: Final = {
    name: f"{module.__name__}.{name}"
    for module in (testing, providers, access_trail, errors, migrations_helpers, jwt_column)
    for name in module.__all__
}


#: Inventory entries by kind of reference; those of functions and exceptions are looked up as well.
KINDS: Final = ("py:class", "py:exception", "py:function")


def resolve_public(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element
) -> Element | None:
    """Return a link to a public name that is referred to by the private module that defines it."""
    parts = node["reftarget"].lstrip(".").split(".")
    for at, part in enumerate(parts):
        if part in PUBLIC:
            target = ".".join([PUBLIC[part], *parts[at + 1 :]])
            found = env.domains["py"].resolve_xref(
                env, node["refdoc"], app.builder, "obj", target, node, content
            )
            if found is not None:
                return found
    return None


def resolve_elsewhere(env: BuildEnvironment, node: pending_xref, content: Element) -> Element | None:
    """Return a link to a name of another project that is written without its module, as annotations do."""
    last = node["reftarget"].lstrip(".").rpartition(".")[2]
    for kind in KINDS:
        for name, entry in getattr(env, "intersphinx_inventory", {}).get(kind, {}).items():
            if name.rpartition(".")[2] == last:
                link = nodes.reference("", "", content, internal=False, refuri=entry.uri)
                link["reftitle"] = f"{entry.project_name} {entry.project_version}".strip()
                return link
    return None


def on_missing_reference(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element
) -> Element | None:
    """Resolve a name that the domain did not find; leave private names as text.

    A role in a docstring carries ``refwarn``. An annotation does not, and may name a private type; a role may name
    one by its full path, for readers of the code.
    """
    if node.get("refdomain") != "py":
        return None
    found = resolve_public(app, env, node, content) or resolve_elsewhere(env, node, content)
    is_text = "refwarn" not in node or is_private(node["reftarget"]) or is_field(node)
    if found is None and is_text:
        return content
    return found


def is_private(target: str) -> bool:
    """Return True for a name that a module of these packages defines, given by its full path or alone."""
    module, _, name = target.lstrip(".").rpartition(".")
    with suppress(ImportError):
        if module.partition(".")[0] in PACKAGES:
            import_module(module)
    loaded = [sys.modules.get(module)] if module else list(sys.modules.values())
    return any(
        hasattr(found, name)
        for found in loaded
        if getattr(found, "__name__", "").partition(".")[0] in PACKAGES
    )


def is_field(node: pending_xref) -> bool:
    """Return True for a field of the class whose docstring refers to it; it has a description and no anchor."""
    owner = PUBLIC.get(str(node.get("py:class", "")).rpartition(".")[2])
    if owner is None:
        return False
    module, _, name = owner.rpartition(".")
    class_ = getattr(import_module(module), name)
    return node["reftarget"].lstrip(".") in getattr(class_, "__annotations__", {})
