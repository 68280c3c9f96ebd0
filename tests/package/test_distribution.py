"""The wheel and the sdist: built twice with the same bytes, with every file that they need and no other."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from typing import TYPE_CHECKING, Final

import pytest

import jwt_column
from tests.support.docs_examples import ROOT
from tests.support.kms import require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.processes

PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
STEM: Final = f"jwt_column-{jwt_column.__version__}"
#: Files that are read at run time or by type checkers, beside the modules.
DATA: Final = ("*.css", "*.html", "*.ini", "*.json", "py.typed")


def run(*arguments: str | Path, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def build(directory: Path) -> Path:
    # Without isolation, because a test installs nothing. The time is that of any commit.
    run("build", "--no-isolation", "--outdir", directory, SOURCE_DATE_EPOCH="1700000000")
    return directory


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("build", "jwt-column[release]")
    require("hatchling", "jwt-column[release]")
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(built: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(built / f"{STEM}-py3-none-any.whl") as archive:
        yield archive


def package_files() -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for package in ("jwt_column", "migrations_helpers")
        for pattern in ("*.py", *DATA)
        for path in (ROOT / package).rglob(pattern)
    }


def test_a_second_build_has_the_same_bytes(built: Path, tmp_path: Path) -> None:
    def digests(directory: Path) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}

    expected = digests(built)
    assert set(expected) == {f"{STEM}-py3-none-any.whl", f"{STEM}.tar.gz"}
    assert expected == digests(build(tmp_path))


def test_the_wheel_has_the_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert files == package_files()
    assert {"jwt_column/py.typed", "migrations_helpers/py.typed"} <= files


def test_the_wheel_s_metadata_is_that_of_the_project(wheel: zipfile.ZipFile) -> None:
    metadata = Parser().parsestr(wheel.read(f"{STEM}.dist-info/METADATA").decode())
    assert metadata["Version"] == jwt_column.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(PROJECT["optional-dependencies"]) == set(metadata.get_all("Provides-Extra", []))
    entry_points = wheel.read(f"{STEM}.dist-info/entry_points.txt").decode()
    for expected in ("jwt-column = jwt_column.cli:main", "[pytest11]", "[alembic.plugins]"):
        assert expected in entry_points
    assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())


def test_the_sdist_has_what_the_tests_need(built: Path) -> None:
    with tarfile.open(built / f"{STEM}.tar.gz") as archive:
        files = {name.removeprefix(f"{STEM}/") for name in archive.getnames()}
    assert package_files() | {"LICENSE", "README.md", "pyproject.toml", "PKG-INFO"} <= files
    assert {"tests/conftest.py", "tests/vectors/rfc_tokens.json", "docs/index.md"} <= files
    assert not {name for name in files if name.startswith((".ci", ".git")) and name != ".gitignore"}


def test_an_index_renders_the_description(built: Path) -> None:
    require("twine", "jwt-column[release]")
    run("twine", "check", "--strict", *built.iterdir())


def test_the_version_is_in_one_place() -> None:
    """``jwt_column.__version__``; pyproject.toml reads it from there."""
    sources = [*(ROOT / "jwt_column").rglob("*.py"), *(ROOT / "migrations_helpers").rglob("*.py")]
    found = [path for path in sources if f'"{jwt_column.__version__}"' in path.read_text(encoding="utf-8")]
    assert found == [ROOT / "jwt_column" / "__init__.py"]
    assert "version" in PROJECT["dynamic"]
