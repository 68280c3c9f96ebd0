"""What tests of the command line begin with: a plain display, and for some a file of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jwt_column.cli.options import DATABASE_VARIABLE
from jwt_column.providers import write_key_file
from tests.support.command_line import take_display_away
from tests.support.workload import NEW_KEY, OLD_KEY

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def plain_display(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wishes of the machine about colour and width."""
    take_display_away(monkeypatch)


@pytest.fixture
def key_file(key_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The ring after the rotation, as the environment names it to every command."""
    path = tmp_path / "jwt.keys"
    write_key_file(path, [NEW_KEY, OLD_KEY])
    monkeypatch.setenv("JWT_COLUMN_KEYRING", f"file:{path}")
    monkeypatch.delenv(DATABASE_VARIABLE, raising=False)
    return path
