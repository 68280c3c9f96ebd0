"""Passwords in text that is printed: in URLs, in their parameters, in connection strings."""

from __future__ import annotations

import re
from typing import Final

#: A member with a password in a connection string of ODBC or libpq, or in a URL's query: PWD={...}; or password='...'.
SECRET_MEMBER: Final = re.compile(
    r"\w*(?:pass(?:word|wd|phrase)?|pwd|secret)\w*\s*=\s*(\{[^}]*\}|'[^']*'|\"[^\"]*\"|[^\s;&'\"]+)",
    re.IGNORECASE,
)

# The password of a URL anywhere in a text; it may hold an @ of its own.
_URL_PASSWORD: Final = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*:)\S*@", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """Return a text without the passwords of any URL or connection string in it."""
    text = _URL_PASSWORD.sub(r"\1***@", text)
    return SECRET_MEMBER.sub(lambda found: found[0].replace(found[1], "***"), text)
