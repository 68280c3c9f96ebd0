"""A database file as bytes: the view of a thief of the disk or of a backup."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

__all__ = ["count_occurring", "flip_bit", "hex_lines"]

# Sixteen readable characters in a row: one place in ten million of ciphertext, and no payload is shorter.
_READABLE: Final = re.compile(rb"[\t\n\r\x20-\x7e]{16,}")


def count_occurring(data: bytes, texts: Collection[bytes]) -> int:
    """Return how many of these texts occur anywhere in the data.

    Searching the whole file for each of ten thousand payloads would take a minute. A payload of text lies within a
    stretch of readable characters, so those are cut out first: in a plaintext file payloads stand between dots, and
    an encrypted one has few stretches.
    """
    stretches = _READABLE.findall(data)
    wanted = set(texts)
    found = wanted & {piece for stretch in stretches for piece in stretch.split(b".")}
    readable = b"\x00".join(stretches)
    return len(found) + sum(
        text in (readable if _READABLE.fullmatch(text) else data) for text in wanted - found
    )


def hex_lines(data: bytes, start: int, styles: Collection[tuple[int, str]] = ()) -> Iterator[Text]:
    """Yield four lines of a hex dump from *start*; *styles* are lengths of fields, each with a style."""
    style_of = [style for length, style in styles for _ in range(length)]
    for offset in range(0, 64, 16):
        line = data[start + offset : start + offset + 16]
        text = Text.assemble((f"{start + offset:08x} ", "dim"))
        for place, byte in enumerate(line, offset):
            text.append(" ")
            text.append(f"{byte:02x}", style_of[place] if place < len(style_of) else "")
        readable = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in line)
        yield text.append(f"  {readable}", "dim")


def flip_bit(path: Path, offset: int) -> None:
    """Invert the lowest bit of one byte of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
