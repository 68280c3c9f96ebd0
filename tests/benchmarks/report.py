"""Tables for the screen, 80 columns wide and with colours where Rich is installed, and JSON for machines."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.benchmarks.measure import Table

__all__ = ["WIDTH", "print_limits", "print_table", "write_json", "write_markdown"]

#: Characters of a line.
WIDTH: Final = 80

_LIMITS_TITLE: Final = "Limits that the project has set itself"


def print_table(table: Table) -> None:
    """Print a row for each subject, and a column for each thing that was measured."""
    columns, cells = _cells(table)
    # "bind 1 KB" becomes a heading of two lines.
    _print(table.title, [what.replace(" ", "\n", 1) for what in columns], cells)


def print_limits(tables: Sequence[Table]) -> None:
    """Print every figure that has a limit beside it, and whether it keeps it."""
    columns, cells = _limits(tables)
    if cells:
        _print(_LIMITS_TITLE, columns, cells)


def write_markdown(path: Path, tables: Sequence[Table]) -> None:
    """Write the same tables as they stand in the documentation."""
    titles = [table.title for table in tables]
    contents = [_cells(table) for table in tables]
    limits = _limits(tables)
    if limits[1]:
        titles.append(_LIMITS_TITLE)
        contents.append(limits)
    blocks = []
    for title, (columns, cells) in zip(titles, contents, strict=True):
        lines = [columns, ["---"] * len(columns), *cells]
        blocks.append(f"{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    path.write_text("\n".join(blocks), encoding="utf-8")


def _cells(table: Table) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows of a table."""
    columns = list(dict.fromkeys(figure.what for figure in table.figures))
    rows: dict[str, dict[str, str]] = {}
    for figure in table.figures:
        rows.setdefault(figure.subject, {})[figure.what] = _shown(figure.value, figure.unit)
    return ["", *columns], [
        [subject, *(row.get(what, "") for what in columns)] for subject, row in rows.items()
    ]


def _limits(tables: Sequence[Table]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows of the figures that have a limit."""
    cells = []
    for table in tables:
        for figure in table.figures:
            if figure.at_most is not None:
                name = f"{table.where}: {figure.what}" if table.where else f"{figure.what}, {figure.subject}"
                limit = _shown(figure.at_most, figure.unit)
                lowest = "" if figure.lowest is None else _shown(figure.lowest, figure.unit)
                verdict = "ok" if figure.is_met else "missed"
                cells.append([name, limit, _shown(figure.value, figure.unit), verdict, lowest])
    return ["", "at most", "median", "", "lowest sample"], cells


def write_json(path: Path, environment: Mapping[str, str], tables: Sequence[Table]) -> None:
    """Write every figure with its lowest and highest sample."""
    report = {"environment": dict(environment), "tables": [asdict(table) for table in tables]}
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _shown(value: float, unit: str) -> str:
    """Return a figure as a cell: 2.91x, 0.90 us, 0.80, 3 rows; fewer decimals for what is large."""
    decimals = 0 if unit == "rows" else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{decimals}f}{unit if unit in ('', 'x') else f' {unit}'}"


def _print(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are figures. What is too wide continues below."""
    try:
        importlib.import_module("rich")
    except ImportError:
        print_block = _print_plain
    else:
        print_block = _print_rich
    for numbers in _blocks(columns, rows):
        print()
        print_block(
            title,
            [columns[number] for number in numbers],
            [[row[number] for number in numbers] for row in rows],
        )


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[int]]:
    """Return the numbers of the columns that stand beside each other; each block begins with the names."""
    widths = [
        max(len(text) for cell in column for text in cell.split("\n"))
        for column in zip(columns, *rows, strict=True)
    ]
    blocks = [[0]]
    for number in range(1, len(columns)):
        # A space stands before each column but the first.
        if sum(widths[one] + 1 for one in blocks[-1]) + widths[number] > WIDTH:
            blocks.append([0])
        blocks[-1].append(number)
    return blocks


def _print_rich(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    styles = {"ok": "green", "missed": "bold red"}
    drawn = RichTable(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for number, column in enumerate(columns):
        drawn.add_column(column, justify="right" if number else "left", vertical="bottom", no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(cell, styles.get(cell, "")) for cell in row))
    console = Console(width=WIDTH)
    console.print(Text(title, "bold"), drawn, sep="\n\n")


def _print_plain(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    # A heading of one line stands above its second half, as it does with Rich.
    headings = [column.split("\n") for column in columns]
    height = max(map(len, headings))
    above = zip(*([""] * (height - len(heading)) + heading for heading in headings), strict=True)
    lines = [*map(list, above), *rows]
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns))]
    lines.insert(height, ["-" * width for width in widths])
    print(title, end="\n\n")
    for line in lines:
        name, *figures = line
        cells = [name.ljust(widths[0])]
        cells += [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True)]
        print(" ".join(cells).rstrip())
