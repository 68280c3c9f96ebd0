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


AUTOGENERATE = """
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext
from sqlalchemy import Column, Integer, MetaData, Table, create_engine
from jwt_column import EncryptedJWT, FingerprintIndex
assert "migrations_helpers" not in sys.modules
metadata = MetaData()
Table(
    "sessions", metadata, Column("id", Integer, primary_key=True), Column("token", EncryptedJWT(fingerprints=["jti"])),
    FingerprintIndex("ux_jti", "token", "jti", unique=True),
)
with create_engine("sqlite://").connect() as connection:
    context = MigrationContext.configure(connection)
    for _ in range(2):
        code = render_python_code(produce_migrations(context, metadata).upgrade_ops)
        assert "sa.Column('token', sa.LargeBinary()" in code, code
        assert code.count("op.create_jwt_index('ux_jti', 'sessions', 'token', fingerprint='jti'") == 1, code
"""


def run_installed(directory: Path, program: str) -> None:
    """Run a program in a process where the plugin is installed."""
    pytest.importorskip("alembic.runtime.plugins", reason="Alembic has plugins from 1.18")
    installed = directory / "jwt_column_plugin-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: jwt-column-plugin\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(ENTRY_POINTS)
    program = f"import sys; sys.path[:] = {[str(directory), *sys.path]}\n{program}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("first", ["alembic", "alembic.autogenerate", "migrations_helpers"])
def test_operations_are_registered_whatever_is_imported_first(first: str, tmp_path: Path) -> None:
    run_installed(tmp_path, f"import {first}\nfrom alembic import op\n{CALL}")


def test_autogenerate_needs_no_import_either(tmp_path: Path) -> None:
    """Flask-Migrate makes the ``env.py``; without the import, its revisions named a module that they did not import.

    The second comparison is that of ``migrations_helpers`` itself, which the first one has imported.
    """
    run_installed(tmp_path, AUTOGENERATE)


def test_every_operation_has_a_stand_in() -> None:
    ours = {name for name in dir(Operations) if re.search("_jwt_", name)}
    assert ours == set(alembic_plugin._OPERATIONS)


def test_entry_point_can_be_iterated_over() -> None:
    """Alembic 1.18.0 to 1.20.0 iterates over a module and fails on any other."""
    assert list(alembic_plugin) == [alembic_plugin]  # type: ignore[arg-type]
