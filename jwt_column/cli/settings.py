"""Defaults of a project: ``[tool.jwt-column]`` in ``pyproject.toml``, below the environment and the command line."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .options import DATABASE_VARIABLE, MODEL_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..errors import JWTColumnError

_RING_VARIABLE: Final = "JWT_COLUMN_KEYRING"

# The settings, and the environment variable that each is a default of.
_VARIABLES: Final = {"model": MODEL_VARIABLE, "database": DATABASE_VARIABLE, "ring": _RING_VARIABLE}


def apply_project_settings() -> None:
    """Set the environment variables that are not set, from the nearest ``pyproject.toml``."""
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
            raise _error(_refusal(path, name))
        variable = _VARIABLES[name]
        if variable == _RING_VARIABLE and "JWT_COLUMN_KEYS" in os.environ:
            continue
        os.environ.setdefault(variable, " ".join(words))


def _refusal(path: Path, name: str) -> str:
    if name in _VARIABLES:
        return f"{path}: [tool.jwt-column] {name} is a text, or for model and database a list"
    # Here, because it brings Rich's tables, and a help text does without.
    from .console import did_you_mean

    return f"{path}: [tool.jwt-column] has no setting {name!r}{did_you_mean(name, _VARIABLES)}"


def _read(path: Path) -> Mapping[str, Any]:
    """Return the settings of a file; a reason never quotes it, because other tools' secrets may stand there."""
    try:
        data = path.read_bytes()
        settings: dict[str, Any] = tomllib.loads(data.decode())
    except OSError as error:
        raise _error(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise _error(f"{path}, line {data[: error.start].count(10) + 1}: this is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\bline (\d+)", str(error))
        place = f"line {found[1]}" if found else "at its end"
        raise _error(f"{path}, {place}: this is not TOML; mend the file") from None
    for name in ("tool", "jwt-column"):
        settings = settings.get(name, {})
        if not isinstance(settings, dict):
            raise _error(f"{path}: {name} is a table, as in [tool.jwt-column]")
    return settings


def _error(text: str) -> JWTColumnError:
    # Here, because it brings SQLAlchemy, and a help text does without.
    from ..errors import ConfigurationError

    return ConfigurationError(text)
