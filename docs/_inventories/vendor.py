"""Write the inventories beside this file, from documentation that package managers carry. Last run: 2026-11-28.

    apt-get download python3.11-doc            # holds objects.inv
    pip download --no-deps --no-binary :all: sqlalchemy alembic pyjwt
    python docs/_inventories/vendor.py objects.inv sqlalchemy-2.1.9 alembic-1.20.1 pyjwt-2.15.1

The source distributions of SQLAlchemy and Alembic hold their HTML pages, whose anchors are the names. That of PyJWT
holds the pages' sources. That of cryptography needs a Rust toolchain to be fetched, so its few names are listed here.
"""

from __future__ import annotations

import re
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE: Final = Path(__file__).parent
KINDS: Final = ("class", "exception", "function", "method", "module")
MODULES_OF_PYTHON: Final = frozenset(
    [
        "collections",
        "concurrent",
        "contextlib",
        "datetime",
        "logging",
        "os",
        "pathlib",
        "ssl",
        "typing",
        "uuid",
    ]
)
CRYPTOGRAPHY: Final = [
    ("cryptography.fernet.Fernet", "class", "fernet/#cryptography.fernet.Fernet"),
    ("cryptography.fernet.MultiFernet", "class", "fernet/#cryptography.fernet.MultiFernet"),
    ("cryptography.exceptions.InvalidTag", "class", "exceptions/#cryptography.exceptions.InvalidTag"),
    (
        "cryptography.hazmat.primitives.ciphers.aead.AESGCM",
        "class",
        "hazmat/primitives/aead/#cryptography.hazmat.primitives.ciphers.aead.AESGCM",
    ),
]

Entry = tuple[str, str, str]


def of_inventory(path: Path) -> Iterator[Entry]:
    """Yield the names of Python's own inventory that annotations and docstrings use."""
    packed = path.read_bytes().split(b"compressed using zlib.\n", 1)[1]
    for line in zlib.decompress(packed).decode().splitlines():
        name, role, _, address, _ = line.split(maxsplit=4)
        domain, _, kind = role.partition(":")
        is_builtin = "." not in name
        if domain == "py" and kind in KINDS and (is_builtin or name.partition(".")[0] in MODULES_OF_PYTHON):
            yield name, kind, address.replace("$", name)


def of_html(folder: Path) -> Iterator[Entry]:
    """Yield the classes and functions that the pages of a folder describe."""
    for page in sorted(folder.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        pattern = r'<dl class="py (class|exception|function)">\s*<dt[^>]* id="([\w.]+)"'
        for kind, name in re.findall(pattern, text):
            yield name, kind, f"{page.relative_to(folder).as_posix()}#{name}"


def of_pyjwt(folder: Path) -> Iterator[Entry]:
    """Yield the functions of PyJWT's API page, and the exceptions of the module that it documents whole."""
    page = (folder / "docs" / "api.rst").read_text(encoding="utf-8")
    for name in re.findall(r"^\.\. autofunction:: (\w+)", page, re.MULTILINE):
        yield f"jwt.{name}", "function", f"api.html#jwt.{name}"
    exceptions = (folder / "jwt" / "exceptions.py").read_text(encoding="utf-8")
    for name in re.findall(r"^class (\w+)", exceptions, re.MULTILINE):
        for alias in (f"jwt.{name}", f"jwt.exceptions.{name}"):
            yield alias, "exception", f"api.html#jwt.exceptions.{name}"


def write(project: str, version: str, entries: Iterator[Entry]) -> None:
    """Write one inventory in version 2 of Sphinx's format."""
    lines = {name: f"{name} py:{kind} 1 {address} -\n" for name, kind, address in entries}
    body = zlib.compress("".join(lines[name] for name in sorted(lines)).encode(), 9)
    head = (
        f"# Sphinx inventory version 2\n# Project: {project}\n# Version: {version}\n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    (HERE / f"{project}.inv").write_bytes(head.encode() + body)
    sys.stdout.write(f"{project} {version}: {len(lines)} names\n")


def main(python: str, sqlalchemy: str, alembic: str, pyjwt: str) -> None:
    """Write all five."""
    folders = {name: Path(name) for name in (sqlalchemy, alembic, pyjwt)}
    versions = {name: path.name.rpartition("-")[2] for name, path in folders.items()}
    write("python", "3.11", of_inventory(Path(python)))
    write("sqlalchemy", versions[sqlalchemy], of_html(folders[sqlalchemy] / "doc"))
    write("alembic", versions[alembic], of_html(folders[alembic] / "docs"))
    write("pyjwt", versions[pyjwt], of_pyjwt(folders[pyjwt]))
    write("cryptography", "", iter(CRYPTOGRAPHY))


if __name__ == "__main__":
    main(*sys.argv[1:])
