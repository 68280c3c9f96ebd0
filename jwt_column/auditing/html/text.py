"""Numbers, shares, names and key values as the HTML report writes them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from ...database.json_report import json_text

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Characters of a key value that are shown; a key may be a text of any length.
LONGEST: Final = 80


def name_parts(name: str) -> list[str]:
    """Return a name in parts between which a line may end: behind each dot, underscore, slash and colon."""
    return re.split(r"(?<=[._/:])(?=[^._/:])", name)


def number(value: int) -> str:
    """Return a count with a comma between thousands."""
    return f"{value:,}"


def signed(value: int) -> str:
    """Return a change of a count, with its sign; 0 has none."""
    return f"{value:+,}".replace("-", "\N{MINUS SIGN}") if value else "0"


def share(part: int, whole: int) -> str:
    """Return a share in percent, one decimal place. It says 0% and 100% only of nothing and of all."""
    if part <= 0 or whole <= 0:
        return "0%"
    if part >= whole:
        return "100%"
    rounded = f"{100 * part / whole:.1f}"
    return {"0.0": "<0.1%", "100.0": ">99.9%"}.get(rounded, f"{rounded}%")


def key_text(key: Sequence[Any]) -> str:
    """Return a primary key in one line, each value cut at :data:`LONGEST` characters."""
    return ", ".join(_cut(json_text(value)) for value in key)


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}… ({number(len(text))} characters)"
