"""Importing ``jwt_column`` loads the parts that every application needs, and no others."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import resolve_name

import pytest

import jwt_column

#: Modules, with all that is below them, that ``import jwt_column`` leaves alone: it runs at the start of every worker.
NOT_LOADED = {
    "alembic",
    "jinja2",
    "jwt",
    "jwt_column.auditing",
    "jwt_column.census",
    "jwt_column.cli",
    "jwt_column.column.indexes",
    "jwt_column.database",
    "jwt_column.keys.providers",
    "jwt_column.keys.ring_file",
    "jwt_column.purge",
    "jwt_column.scanning",
    "migrations_helpers",
    "rich",
    "sqlalchemy.dialects.mysql",
    "sqlalchemy.dialects.postgresql",
    "typer",
}


def loaded_by(statement: str) -> set[str]:
    """Return the modules of a new process that ran a statement."""
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_loads_no_module_that_an_application_may_never_use() -> None:
    loaded = loaded_by("from jwt_column import JWT, EncryptedJWT, KeyRing, set_default_keyring")
    assert {name for name in loaded if any(f"{name}.".startswith(f"{one}.") for one in NOT_LOADED)} == set()
    assert "jwt_column.column.orm" in loaded  # The control: the list is that of the process.


def test_package_itself_loads_nothing() -> None:
    """The command shows its help without SQLAlchemy; see tests/cli/test_cli.py."""
    loaded = loaded_by("import jwt_column")
    assert "jwt_column" in loaded
    assert not [name for name in loaded if name.startswith(("jwt_column.", "sqlalchemy", "cryptography"))]


def test_any_way_to_the_type_loads_the_orm_extension() -> None:
    """Otherwise attributes of mapped classes would not check what is assigned."""
    for way in ("from jwt_column import EncryptedJWT", "import jwt_column.column.types"):
        assert "jwt_column.column.orm" in loaded_by(way)


def test_every_public_name_is_there_and_the_same_each_time() -> None:
    for name in jwt_column.__all__:
        assert getattr(jwt_column, name) is getattr(jwt_column, name)
    assert set(jwt_column.__all__) <= set(dir(jwt_column))


def test_star_import_brings_every_public_name() -> None:
    names: dict[str, object] = {}
    exec("from jwt_column import *", names)
    assert set(jwt_column.__all__) <= set(names)


def test_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'keyring'"):
        jwt_column.keyring  # type: ignore[attr-defined]  # noqa: B018


def test_annotations_of_public_names_are_those_of_the_modules() -> None:
    """The table of lazy names must lead to the modules that define them."""
    for name, module in jwt_column._MODULES.items():
        assert getattr(jwt_column, name) is getattr(sys.modules[resolve_name(module, "jwt_column")], name)


def test_the_pytest_plugin_loads_nothing_before_a_fixture_is_used() -> None:
    """pytest imports it in every run of every project, before coverage is measured."""
    loaded = loaded_by("import jwt_column.testing.plugin")
    assert "jwt_column.testing.plugin" in loaded
    assert not loaded & {"sqlalchemy", "cryptography"}
    for first in ("FakeKEK", "fake_kek", "assert_encrypted"):
        # The function, and no module of the same name.
        statement = f"from jwt_column.testing import {first}, fake_kek; callable(fake_kek) or 1 / 0"
        assert "jwt_column.testing.kek" in loaded_by(statement)
