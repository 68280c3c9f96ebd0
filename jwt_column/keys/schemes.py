"""The table of URI schemes and the modules that serve them.

A provider is such a module, or an entry point of another distribution in the group ``jwt_column.providers`` with the
name of its scheme. It has ``open_source(rest)``, ``open_wrapper(rest)`` or both, where *rest* is the URI without its
scheme and colon. Neither function does any I/O.

A module is imported when a URI first names it: most need an extra, and a process needs one or two of them.
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConfigurationError
from .source import WatchedSource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .source import KeySource
    from .wrapping import KeyWrapper

#: The providers of this distribution, by scheme.
MODULE_OF_SCHEME: Final[Mapping[str, str]] = {
    scheme: scheme.replace("-", "_")
    for scheme in [
        "aws-kms",
        "azure-keyvault",
        "env",
        "file",
        "gcp-kms",
        "keyring",
        "pkcs11",
        "vault-transit",
    ]
}

#: The group of entry points for providers of other distributions.
PROVIDER_GROUP: Final = "jwt_column.providers"

#: Providers of this process, by scheme, while a test uses them (``jwt_column.testing``).
TEMPORARY: Final[dict[str, Any]] = {}


def open_source(uri: str, keks: Sequence[str] | None = None) -> KeySource:
    """Return the key source that a URI names. Nothing is read yet.

    Args:
        uri: The URI of a key ring.
        keks: The KEK URIs that wrapped keys may be under; None for those of ``JWT_COLUMN_KEKS``.

    Raises:
        ConfigurationError: No scheme, an unknown one, or one that wraps keys and holds none. The message shows
            nothing of the URI, which may hold a PIN.
        MissingExtraError: The provider's extra is not installed.
    """
    scheme, rest = _split(uri, "key ring")
    make_source = getattr(_provider(scheme, "key ring"), "open_source", None)
    if make_source is None:
        raise ConfigurationError(
            f"{scheme}: names a KEK, not a key ring; make a key-ring file with 'jwt-column keys init --file PATH "
            "--wrapped-by URI', and name that file as the ring, as in file:/etc/app/ring.json"
        )
    source: KeySource = make_source(rest)
    if isinstance(source, WatchedSource):
        source.keks = keks
    return source


def open_wrapper(uri: str) -> KeyWrapper:
    """Return the wrapper of the KEK that a URI names. Nothing is sent yet.

    Raises:
        ConfigurationError: No scheme, an unknown one, or one that wraps no keys. The message shows nothing of the
            URI, which may hold a PIN.
        MissingExtraError: The provider's extra is not installed.
    """
    scheme, rest = _split(uri, "KEK")
    make_wrapper = getattr(_provider(scheme, "KEK"), "open_wrapper", None)
    if make_wrapper is None:
        raise ConfigurationError(f"the provider of {scheme}: holds keys and cannot wrap any")
    wrapper: KeyWrapper = make_wrapper(rest)
    return wrapper


def _split(uri: str, kind: str) -> tuple[str, str]:
    """Return the scheme and the rest of a URI."""
    if not isinstance(uri, str):
        raise ConfigurationError(f"a {kind} URI is a str, not {type(uri).__name__}")
    scheme, colon, rest = uri.partition(":")
    if not colon:
        advice = "; a key itself goes into KeyRing([key])" if kind == "key ring" else ""
        raise ConfigurationError(f"a {kind} URI begins with one of {_known()}{advice}")
    return scheme.lower(), rest


def _provider(scheme: str, kind: str) -> Any:
    """Return the module or object that serves a scheme. An entry point cannot replace a scheme of the table."""
    if scheme in MODULE_OF_SCHEME:
        return import_module(f".providers.{MODULE_OF_SCHEME[scheme]}", __package__)
    return TEMPORARY[scheme] if scheme in TEMPORARY else _installed(scheme, kind, tuple(sys.path))


@cache
def _installed(scheme: str, kind: str, _path: tuple[str, ...]) -> Any:
    """Return the provider of another distribution on the path; to read all entry points takes milliseconds."""
    found = list(entry_points(group=PROVIDER_GROUP, name=scheme))
    if not found:
        question = "".join(
            f" (did you mean {one}:?)" for one in get_close_matches(scheme, MODULE_OF_SCHEME, n=1)
        )
        raise ConfigurationError(
            f"no provider of a {kind} for this URI scheme{question}; there are {_known()}"
        )
    if len(found) > 1:
        names = ", ".join(sorted(str(getattr(point.dist, "name", None)) for point in found))
        raise ConfigurationError(f"several distributions serve {scheme}: ({names}); uninstall all but one")
    (point,) = found
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        reason = type(error).__name__
        missing = getattr(error, "name", None)
    raise ConfigurationError(
        f"the provider of {scheme}: ({point.value}) cannot be imported: {reason}"
        + (f", {missing}" if missing else "")
    )


def _known() -> str:
    """Return the known schemes, for an error."""
    others = {point.name for point in entry_points(group=PROVIDER_GROUP)} - set(MODULE_OF_SCHEME)
    return ", ".join(f"{name}:" for name in (*MODULE_OF_SCHEME, *sorted(others)))
