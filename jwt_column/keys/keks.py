"""The KEKs that the configuration of the application allows.

A key-ring file names the KEKs of its keys, and authenticates itself only with the keys that those KEKs unwrap. A KEK
URI can hold an endpoint, the path of a file with credentials or a PKCS#11 module. So a file that anyone may have
changed must not choose it: the application lists its KEKs, in code or in ``JWT_COLUMN_KEKS``.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The environment variable: URIs with white space between them. White space in a URI is percent-encoded.
VARIABLE: Final = "JWT_COLUMN_KEKS"

_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]")


class KEKRefusedError(ConfigurationError):
    """A key-ring file names a KEK that the configuration does not allow."""


def configured_keks() -> tuple[str, ...]:
    """Return the KEK URIs of the environment variable."""
    return tuple(os.environ.get(VARIABLE, "").split())


def canonical_kek(uri: str) -> str:
    """Return the form in which two KEK URIs are compared.

    The scheme is in lower case, escapes are normalized (RFC 3986 section 6.2.2), parameters are sorted, and the path of
    a ``file:`` URI is absolute. Every parameter counts, and there are no patterns.
    """
    scheme, _, rest = uri.partition(":")
    scheme = scheme.lower()
    if scheme == "file":
        path = unquote(rest.removeprefix("//") if rest.startswith("///") else rest)
        return f"file:{quote(str(Path(path).absolute()))}"
    path, mark, query = _ESCAPE.sub(_normalized, rest).partition("?")
    if scheme == "pkcs11":
        # RFC 7512 section 2.3: the order of attributes has no meaning.
        path = ";".join(sorted(path.split(";")))
    return f"{scheme}:{path}{mark}{'&'.join(sorted(query.split('&')))}"


def check_allowed(named: Iterable[str], allowed: Iterable[str] | None) -> None:
    """Refuse KEKs that the configuration does not allow. Reaches nothing.

    Args:
        named: The KEK URIs of a key-ring file. The file need not be authentic.
        allowed: The KEK URIs that the application allows; None for those of the environment variable.

    Raises:
        KEKRefusedError: A KEK is not allowed. The message prints the setting that would allow it.
    """
    configured = configured_keks() if allowed is None else tuple(allowed)
    known = {canonical_kek(uri) for uri in configured}
    missing = [uri for uri in dict.fromkeys(named) if canonical_kek(uri) not in known]
    if missing:
        setting = (
            variable_line(*configured, *missing) if allowed is None else f"keks={[*configured, *missing]!r}"
        )
        raise KEKRefusedError(
            f"the file names the KEK {missing[0]}, which this application does not allow; nothing was read from it or "
            f"sent to it. If it is your KEK, and not that of someone who changed the file, set: {setting}"
        )


def variable_line(*uris: str) -> str:
    """Return the setting of the environment variable, quoted for a shell."""
    return f"{VARIABLE}={shlex.quote(' '.join(uris))}"


def _normalized(escape: re.Match[str]) -> str:
    character = chr(int(escape[1], 16))
    return character if _UNRESERVED.match(character) else escape[0].upper()
