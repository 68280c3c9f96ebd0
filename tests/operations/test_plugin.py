"""Alembic's plugin entry point: the operations are there without an import, and ``import alembic`` stays whole."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from alembic.operations import Operations

import migrations_helpers  # noqa: F401 - registers the operations
from jwt_column import alembic_plugin

if TYPE_CHECKING:
    from pathlib import Path

# Another name than that of the installed package, which Alembic registers too.
ENTRY_POINTS = "[alembic.plugins]\njwt_column_of_the_test = jwt_column.alembic_plugin\n"
CALL = """
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import create_engine
with create_engine("sqlite://").connect() as connection:
    connection.exec_driver_sql("CREATE TABLE sessions (id INTEGER PRIMARY KEY, token BLOB)")
    context = MigrationContext.configure(connection)
    with Operations.context(context):
        op.ensure_jwt_column_current("sessions", "token")
"""


@pytest.mark.parametrize("first", ["alembic", "alembic.autogenerate", "migrations_helpers"])
def test_operations_are_registered_whatever_is_imported_first(first: str, tmp_path: Path) -> None:
    pytest.importorskip("alembic.runtime.plugins", reason="Alembic has plugins from 1.18")
    installed = tmp_path / "jwt_column_plugin-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: jwt-column-plugin\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(ENTRY_POINTS)
    program = f"import sys; sys.path[:] = {[str(tmp_path), *sys.path]}\nimport {first}\nfrom alembic import op\n{CALL}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_every_operation_has_a_stand_in() -> None:
    ours = {name for name in dir(Operations) if re.search("_jwt_", name)}
    assert ours == set(alembic_plugin._OPERATIONS)


def test_entry_point_can_be_iterated_over() -> None:
    """Alembic 1.18.0 to 1.20.0 iterates over a module and fails on any other."""
    assert list(alembic_plugin) == [alembic_plugin]  # type: ignore[arg-type]
