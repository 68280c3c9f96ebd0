"""The package works with what ``pip install jwt-column`` brings, and no more."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import pytest

# What the extras and other packages of a test environment bring, and a bare installation does not.
CLI_REQUIRED = ["typer", "rich", "jinja2"]
NOT_REQUIRED = [
    *CLI_REQUIRED,
    *("greenlet", "distributed", "psycopg", "aiosqlite", "testcontainers", "opentelemetry", "requests"),
    *("azure", "boto3", "google", "hvac", "keyring", "pkcs11"),
]

SCRIPT = dedent(
    """
    import sys
    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {absent!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    sys.meta_path.insert(0, Absent())
    {statement}
    """
)


@pytest.mark.parametrize(
    "statement",
    [
        "import jwt_column, migrations_helpers",
        "from jwt_column.errors import ConfigurationError; import jwt_column.format.token, jwt_column.census",
        "import jwt_column as j; from sqlalchemy import create_engine; j.redact_errors(create_engine('sqlite://'))",
    ],
)
def test_packages_import_without_what_they_do_not_require(statement: str) -> None:
    script = SCRIPT.format(absent=NOT_REQUIRED, statement=statement)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_command_line_needs_no_more_than_its_extra() -> None:
    absent = [name for name in NOT_REQUIRED if name not in CLI_REQUIRED]
    script = SCRIPT.format(absent=absent, statement="sys.argv = ['jwt-column', '--version']")
    script += "from jwt_column.cli import main\nmain()\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_absence_is_really_made() -> None:
    """The control: in the same interpreter the absent packages cannot be imported."""
    script = SCRIPT.format(absent=NOT_REQUIRED, statement="import greenlet")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "No module named 'greenlet'" in done.stderr
