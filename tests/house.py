"""Print the size, the import floor and the circles of each folder: ``python -m tests.house``. Needs the extra ``lint``.

A module stands one floor above the highest module that it imports. Imports for type checking do not count.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["circles", "floors", "imports", "lines", "report"]

ROOT: Final = Path(__file__).parent.parent
PACKAGES: Final = ("jwt_column", "migrations_helpers")

Imports = dict[str, set[str]]


def imports() -> Imports:
    """Return the modules of the packages, each with the modules of the packages that it imports."""
    import grimp

    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def floors(imports: Mapping[str, set[str]]) -> dict[str, int]:
    """Return the floor of each module that neither is in a circle nor imports one, from 0."""
    result: dict[str, int] = {}
    left = dict(imports)
    for floor in range(len(imports)):
        ready = [module for module, imported in left.items() if imported <= result.keys()]
        result |= dict.fromkeys(ready, floor)
        for module in ready:
            del left[module]
    return result


def circles(imports: Mapping[str, set[str]]) -> set[str]:
    """Return the modules that import each other in a circle, and those between two circles."""
    above = imports.keys() - floors(imports).keys()
    importers = {module: {other for other in above if module in imports[other]} for module in above}
    return above - floors(importers).keys()


def folder_of(module: str) -> str:
    """Return the path of a module's folder."""
    path = ROOT.joinpath(*module.split("."))
    return str((path if path.is_dir() else path.parent).relative_to(ROOT))


def lines() -> Counter[str]:
    """Return the number of non-blank lines of each folder, without its sub-folders."""
    result: Counter[str] = Counter()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            result[str(path.parent.relative_to(ROOT))] += sum(
                bool(line.strip()) for line in text.splitlines()
            )
    return result


def report() -> str:
    """Return the table, and the circles."""
    found = imports()
    floor_of: dict[str, list[int]] = {}
    for module, floor in floors(found).items():
        floor_of.setdefault(folder_of(module), []).append(floor)
    rows = [f"{'folder':40} {'lines':>6}  floors"]
    for folder, count in sorted(lines().items()):
        numbers = floor_of.get(folder, [])
        rows.append(f"{folder:40} {count:6,}  {f'{min(numbers)} to {max(numbers)}' if numbers else 'none'}")
    rows.append(f"{'all':40} {lines().total():6,}")
    rows.append(f"circles: {', '.join(sorted(circles(found))) or 'none'}")
    return "\n".join(rows)


if __name__ == "__main__":
    print(report())
