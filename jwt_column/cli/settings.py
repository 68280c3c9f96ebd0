"""Defaults of a project: ``[tool.jwt-column]`` in ``pyproject.toml``, below the environment and the command line."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from .options import DATABASE_VARIABLE, MODEL_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["apply_project_settings"]

_RING_VARIABLE: Final = "JWT_COLUMN_KEYRING"

# The settings, and the environment variable that each is a default of.
_VARIABLES: Final = {"model": MODEL_VARIABLE, "database": DATABASE_VARIABLE, "ring": _RING_VARIABLE}


def apply_project_settings() -> None:
    """Set the environment variables that are not set, from the nearest ``pyproject.toml``.

    Raises:
        ConfigurationError: Its table for this command cannot be read, or has an unknown setting.
    """
    here = Path.cwd()
    path = next(
        (one for folder in (here, *here.parents) if (one := folder / "pyproject.toml").is_file()), None
    )
    if path is None:
        return
    for name, value in _read(path).items():
        words = [value] if isinstance(value, str) else value
        if (
            name not in _VARIABLES
            or not isinstance(words, list)
            or not all(isinstance(one, str) for one in words)
            or (name == "ring" and value is words)
        ):
            _refuse(path, name)
        variable = _VARIABLES[name]
        if variable == _RING_VARIABLE and "JWT_COLUMN_KEYS" in os.environ:
            continue
        os.environ.setdefault(variable, " ".join(words))


def _refuse(path: Path, name: str) -> NoReturn:
    # Here, because they bring SQLAlchemy, and a help text does without.
    from ..errors import ConfigurationError
    from .console import did_you_mean

    if name in _VARIABLES:
        raise ConfigurationError(
            f"{path}: [tool.jwt-column] {name} is a text, or for model and database a list"
        )
    question = did_you_mean(name, _VARIABLES)
    raise ConfigurationError(f"{path}: [tool.jwt-column] has no setting {name!r}{question}")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # A command that needs a setting says which one is missing.
        return {}
    settings = tables.get("tool", {}).get("jwt-column", {})
    return settings if isinstance(settings, dict) else {}
