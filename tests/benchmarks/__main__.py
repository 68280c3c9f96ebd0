"""Print what encryption costs, or search, or re-encryption: ``python -m tests.benchmarks [NAME]``."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.benchmarks import access_trail, auditing, columns, key_loading, lookup, scale, service
from tests.benchmarks.reencryption import command as reencryption
from tests.benchmarks.report import WIDTH, print_limits, print_table, write_json, write_markdown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.benchmarks.measure import Table

__all__ = ["main"]

# A benchmark is a module with HELP, add_arguments(parser) and measure(options), which yields its tables.
_BENCHMARKS: Final[dict[str, Any]] = {
    "columns": columns,
    "lookup": lookup,
    "auditing": auditing,
    "access-trail": access_trail,
    "key-loading": key_loading,
    "reencryption": reencryption,
    "service": service,
    "scale": scale,
}
_DEFAULT: Final = "columns"

_PACKAGES: Final = (
    "SQLAlchemy",
    "cryptography",
    "pybase64",
    "SQLAlchemy-Utils",
    "psycopg",
    "psycopg2-binary",
    "asyncpg",
    "mariadb",
    "PyMySQL",
    "mysqlclient",
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Print what things cost, as ratios within this run.",
        epilog=f"Without a name it is {_DEFAULT}.",
    )
    commands = parser.add_subparsers(dest="benchmark", metavar="|".join(_BENCHMARKS))
    for name, benchmark in _BENCHMARKS.items():
        command = commands.add_parser(name, help=benchmark.HELP, description=benchmark.__doc__)
        benchmark.add_arguments(command)
        command.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables to a file, too")
        command.add_argument("--json", type=Path, metavar="FILE", help="write every figure to a file, too")
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; the benchmark's name may be left out."""
    is_named = bool(arguments) and (arguments[0] in _BENCHMARKS or arguments[0] in ("-h", "--help"))
    return _parser().parse_args(arguments if is_named else [_DEFAULT, *arguments])


def _environment() -> dict[str, str]:
    """Return the versions of what the figures depend on."""
    versions = {platform.python_implementation(): platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    environment = _environment()
    versions = ", ".join(f"{name} {version}" for name, version in environment.items())
    print(textwrap.fill(versions, WIDTH, break_on_hyphens=False))
    tables: list[Table] = []
    for table in _BENCHMARKS[options.benchmark].measure(options):
        print_table(table)
        tables.append(table)
    print_limits(tables)
    if options.markdown:
        write_markdown(options.markdown, tables)
    if options.json:
        write_json(options.json, environment, tables)


if __name__ == "__main__":
    main()
