"""Text of a database for display: the names of its tables may hold terminal commands."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return *text* with every control and format character written out, such as ``\u202e``.

    A terminal obeys control characters, and the escaping of HTML leaves them alone: the one just named turns the rest
    of the line around, so that a table name reads as another one. Line ends, no-break spaces and lone surrogates are
    written out too.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
