"""The import floors and circles that ``python -m tests.house`` prints."""

from __future__ import annotations

import pytest

from tests import house


def test_a_module_is_one_floor_above_its_imports() -> None:
    imports: house.Imports = {"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": set()}
    assert house.floors(imports) == {"a": 0, "b": 1, "c": 2, "d": 0}
    assert house.circles(imports) == set()


def test_a_circle_is_found_without_its_importers_and_imports() -> None:
    imports: house.Imports = {"bottom": set(), "x": {"y", "bottom"}, "y": {"x"}, "top": {"x"}}
    assert house.floors(imports) == {"bottom": 0}
    assert house.circles(imports) == {"x", "y"}


def test_the_packages_have_no_circle() -> None:
    pytest.importorskip("grimp", reason="No grimp for this test (the extra lint).")
    imports = house.imports()
    assert len(imports) > 50
    assert house.circles(imports) == set()


def test_lines_are_counted_by_folder() -> None:
    counted = house.lines()
    assert counted["jwt_column/format"] > 100
    assert 5_000 < counted.total() < 30_000
