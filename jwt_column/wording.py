"""Numbers with their nouns, as messages have them."""

from __future__ import annotations


def counted(number: int, noun: str, verb: tuple[str, str] | None = None) -> str:
    """Return a number with its noun, which takes an "s" in the plural, and with its verb if it has one."""
    text = f"{number:,} {noun}{'' if number == 1 else 's'}"
    return text if verb is None else f"{text} {verb[number != 1]}"
