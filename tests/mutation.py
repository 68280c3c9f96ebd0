"""Change the security core in small ways, and print the changes that no test notices: ``python -m tests.mutation``.

Each mutant is one changed expression or deleted statement, in a copy of the checkout, against the tests of its folder
on SQLite, those of its own name first. A survivor is a missing test, or a change without effect. ``python -m
tests.mutation --sample 20 aead`` takes twenty mutants of the modules whose path contains "aead".
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Mutant", "mutants_of"]

ROOT: Final = Path(__file__).parent.parent
#: The modules to change, with the tests that have to notice.
CORE: Final = {
    "jwt_column/format": ["tests/format"],
    "jwt_column/keys": [
        "tests/keys/test_ring.py",
        "tests/keys/test_ring_file.py",
        "tests/keys/test_providers.py",
    ],
    "jwt_column/keys/ring_file": ["tests/keys/test_ring_file.py", "tests/cli/test_keys.py"],
    "jwt_column/column": ["tests/column", "tests/format", "tests/package/test_leaks.py"],
}
SECONDS: Final = 300
OPPOSITES: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


class Mutant(NamedTuple):
    """One change: the line, a description, and the module's changed source."""

    line: int
    change: str
    source: str


def mutants_of(source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module's source."""
    for number in range(sum(1 for _ in ast.walk(ast.parse(source)))):
        tree = ast.parse(source)
        node = next(node for index, node in enumerate(ast.walk(tree)) if index == number)
        change = _mutate(node)
        if change is not None:
            yield Mutant(getattr(node, "lineno", 0), change, ast.unparse(ast.fix_missing_locations(tree)))


def _mutate(node: ast.AST) -> str | None:
    """Change a node in place and return a description, or None where there is nothing to change."""
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in OPPOSITES:
            before = ast.unparse(node)
            node.ops = [OPPOSITES[type(operator)]()]
            return f"{before}  ->  {ast.unparse(node)}"
        case ast.BoolOp():
            before = ast.unparse(node)
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            return f"{before}  ->  {ast.unparse(node)}"
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            # Without effect where the types can be imported.
            return None
        case ast.If():
            before = ast.unparse(node.test)
            node.test = ast.UnaryOp(ast.Not(), node.test)
            return f"if {before}  ->  if not ..."
        case ast.BinOp(op=ast.Add() | ast.Sub()):
            before = ast.unparse(node)
            node.op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
            return f"{before}  ->  {ast.unparse(node)}"
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            node.value = number + 1
            return f"{number}  ->  {number + 1}"
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            node.value = ast.Constant(None)
            return f"return {ast.unparse(value)}  ->  return None"
        case ast.Expr(value=ast.Call() as call):
            node.value = ast.Constant(None)
            return f"{ast.unparse(call)}  ->  deleted"
    return None


def order_tests(module: str, tests: list[str]) -> list[str]:
    """Return the tests of a module in the order in which they are likely to notice: its own file first."""
    path = Path(module)
    own = Path("tests", *path.parts[1:-1], f"test_{path.name}")
    return [own.as_posix(), *tests] if (ROOT / own).exists() else tests


def _survives(tree: Path, module: str, mutant: Mutant, tests: list[str]) -> bool:
    """Return True if the tests pass with a mutant in place of its module."""
    path = tree / module
    original = path.read_text(encoding="utf-8")
    path.write_text(mutant.source, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            [*command, "-k", "not postgresql and not mariadb"],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    finally:
        path.write_text(original, encoding="utf-8")
    return done.returncode == 0


def main() -> None:
    """Take a sample of mutants, and print the survivors and their share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", nargs="?", default="", help="a part of the path of the modules to change")
    parser.add_argument("--sample", type=int, default=100, help="number of mutants (100)")
    parser.add_argument("--seed", type=int, default=0, help="another sample")
    options = parser.parse_args()
    every = [
        (path.relative_to(ROOT).as_posix(), mutant, tests)
        for folder, tests in CORE.items()
        for path in sorted((ROOT / folder).glob("*.py"))
        if options.module in path.as_posix()
        for mutant in mutants_of(path.read_text(encoding="utf-8"))
    ]
    sample = random.Random(options.seed).sample(every, min(options.sample, len(every)))
    survivors = 0
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory, "tree")
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache"))
        for module, mutant, tests in sample:
            if _survives(tree, module, mutant, order_tests(module, tests)):
                survivors += 1
                print(f"{module}:{mutant.line}: {mutant.change}", flush=True)
    print(f"{survivors} of {len(sample)} mutants survived; there are {len(every)}.")


if __name__ == "__main__":
    main()
