"""The mutants that ``python -m tests.mutation`` makes."""

from __future__ import annotations

import ast

from tests.mutation import CORE, ROOT, mutants_of, order_tests

SOURCE = """\
def first(values, limit):
    check(values)
    if len(values) < limit and values:
        return values[0]
    return None
"""


def test_each_mutant_has_one_change() -> None:
    found = [(mutant.line, mutant.change) for mutant in mutants_of(SOURCE)]
    assert found == [
        (2, "check(values)  ->  deleted"),
        (3, "if len(values) < limit and values  ->  if not ..."),
        (3, "len(values) < limit and values  ->  len(values) < limit or values"),
        (4, "return values[0]  ->  return None"),
        (3, "len(values) < limit  ->  len(values) <= limit"),
        (4, "0  ->  1"),
    ]


def test_every_mutant_is_another_module() -> None:
    original = ast.unparse(ast.parse(SOURCE))
    sources = {mutant.source for mutant in mutants_of(SOURCE)}
    assert len(sources) == 6
    assert original not in sources


def test_the_tests_of_a_module_come_first() -> None:
    assert order_tests("jwt_column/format/aead.py", ["tests/format"]) == [
        "tests/format/test_aead.py",
        "tests/format",
    ]
    assert order_tests("jwt_column/format/shape.py", ["tests/format"]) == ["tests/format"]


def test_modules_and_tests_exist() -> None:
    for folder, tests in CORE.items():
        assert (ROOT / folder).is_dir()
        for test in tests:
            assert (ROOT / test).exists()
