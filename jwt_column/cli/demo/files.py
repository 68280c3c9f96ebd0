"""What lies in a database file, read as bytes: what a thief of the disk or of a backup reads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

__all__ = ["count_occurring", "flip_bit", "hex_lines"]

# Sixteen characters of text in a row: in ciphertext one place in ten million looks like that, and no token's
# payload is shorter than that.
_READABLE: Final = re.compile(rb"[\t\n\r\x20-\x7e]{16,}")
_BYTES_PER_LINE: Final = 16


def count_occurring(data: bytes, texts: Collection[bytes]) -> int:
    """Return how many of these texts occur anywhere in the data.

    Searching all of the data for each of ten thousand tokens would take a minute. But a text can only lie
    within a stretch of readable characters, so those are cut out first. They are nearly all of a plaintext
    file, where the texts are then found between two dots, and nearly nothing of an encrypted one, where
    searching is cheap.

    Args:
        data: A whole file.
        texts: What to look for. Binary or short ones are searched for in all of the data.
    """
    stretches = _READABLE.findall(data)
    pieces = {piece for stretch in stretches for piece in stretch.split(b".")}
    readable = b"\x00".join(stretches)
    wanted = set(texts)
    found = wanted & pieces
    return len(found) + sum(
        text in (readable if _READABLE.fullmatch(text) else data) for text in wanted - found
    )


def hex_lines(
    data: bytes, start: int, count: int, styles: Collection[tuple[int, str]] = ()
) -> Iterator[Text]:
    """Yield lines of a hex dump: offset, sixteen bytes, and what of them is readable.

    Args:
        data: A whole file.
        start: Where to begin.
        count: How many lines.
        styles: Lengths of fields from *start* on, each with a style.
    """
    style_of = [style for length, style in styles for _ in range(length)]
    for line_start in range(start, start + count * _BYTES_PER_LINE, _BYTES_PER_LINE):
        line = data[line_start : line_start + _BYTES_PER_LINE]
        text = Text.assemble((f"{line_start:08x} ", "dim"))
        for place, byte in enumerate(line, line_start - start):
            text.append(" ")
            text.append(f"{byte:02x}", style_of[place] if place < len(style_of) else "")
        readable = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in line)
        text.append(f"  {readable}", "dim")
        yield text


def flip_bit(path: Path, offset: int) -> None:
    """Invert the lowest bit of one byte of a file, in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
