"""Logging in to Vault, with a given token or by AppRole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ...errors import ConfigurationError
from ..regular_file import read_regular

if TYPE_CHECKING:
    from .vault_uri import KEKName

# A batch token of Vault is a few hundred characters long.
_MAX_BYTES: Final = 64 * 1024


def log_in(name: KEKName, client: Any) -> str:
    """Return a token. Secret.

    A given token is read each time, because agents replace one that expires. Without one, AppRole exchanges a role id
    and a secret id for a token. One URI thus serves hosts that log in differently.
    """
    has_token = name.token_file or os.environ.get("VAULT_TOKEN")
    has_role = name.role_id_file or os.environ.get("VAULT_ROLE_ID")
    if name.auth == "token" or (name.auth is None and has_token):
        return _secret(name.token_file, "VAULT_TOKEN", "token_file")
    if name.auth == "approle" or has_role:
        role_id = _secret(name.role_id_file, "VAULT_ROLE_ID", "role_id_file")
        secret_id = _secret(name.secret_id_file, "VAULT_SECRET_ID", "secret_id_file")
        answer = client.auth.approle.login(role_id, secret_id, use_token=False, mount_point=name.auth_mount)
        return str(answer["auth"]["client_token"])
    raise ConfigurationError(
        "no credentials for Vault: set VAULT_TOKEN, or VAULT_ROLE_ID and VAULT_SECRET_ID, or name their files behind "
        "the ? of the URI by token_file=, or by role_id_file= and secret_id_file="
    )


def _secret(file: str | None, variable: str, parameter: str) -> str:
    """Return the text of a file, or else of an environment variable. Secret."""
    if file is not None:
        return _read(Path(file), parameter)
    text = os.environ.get(variable, "").strip()
    if not text:
        raise ConfigurationError(
            f"no credentials for Vault: set {variable}, or add {parameter}=/PATH behind the ? of the URI"
        )
    return text


def _read(path: Path, parameter: str) -> str:
    try:
        data, _ = read_regular(path, _MAX_BYTES + 1)
        text, problem = data.decode("ascii").strip(), "it is empty"
        if len(data) > _MAX_BYTES:
            text, problem = "", f"it has more than {_MAX_BYTES} bytes"
    except OSError as error:
        text, problem = "", str(error.strerror)
    except UnicodeDecodeError:
        text, problem = "", "it is not in ASCII"
    if not text:
        raise ConfigurationError(f"{parameter}= names {path}, which cannot be used: {problem}")
    return text
