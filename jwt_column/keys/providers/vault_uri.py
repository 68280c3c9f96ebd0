"""``vault-transit:`` URIs: a key of Vault's secrets engine transit, its server, and the login.

``vault-transit://HOST[:PORT]/MOUNT/keys/NAME`` names the server; ``vault-transit:MOUNT/keys/NAME`` takes that of
``VAULT_ADDR``.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, fields
from typing import Final
from urllib.parse import urlsplit

from ...errors import ConfigurationError
from .parameters import seconds_of, split_parameters

SCHEME: Final = "vault-transit"

_SEGMENT: Final = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_.-]+"
_MOUNT: Final = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_PATH: Final = re.compile(
    rf"(?://(?P<host>[A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\])(?::(?P<port>[0-9]{{1,5}}))?/)?"
    rf"(?P<mount>{_MOUNT.pattern})/keys/(?P<key>[A-Za-z0-9_][A-Za-z0-9_.-]*)"
)
_DEFAULT_PORT: Final = 8200
_CHOICES: Final = {"auth": ("token", "approle"), "derived": ("true", "false"), "tls": ("on", "off")}


@dataclass(frozen=True)
class KEKName:
    """A parsed URI.

    Attributes:
        host: Host and port of the server, or None for ``VAULT_ADDR``.
        mount: Mount point of transit.
        timeout: Time limit of a call in seconds, retries included.
        derived: ``"false"`` if the key was made without ``derived=true``.
        tls: ``"off"`` if plain HTTP is allowed, also to another machine.
        ca: File of trusted certificates, or None for ``VAULT_CACERT``, else those of the system.
        namespace: Vault's namespace, or None for ``VAULT_NAMESPACE``.
        auth: ``token`` or ``approle``, or None for the one that has credentials.
        auth_mount: Mount point of AppRole.
        token_file: File of the token, or None for ``VAULT_TOKEN``.
        role_id_file: File of the role id, or None for ``VAULT_ROLE_ID``.
        secret_id_file: File of the secret id, or None for ``VAULT_SECRET_ID``.
    """

    host: str | None
    mount: str
    key: str
    timeout: float
    derived: str = "true"
    tls: str = "on"
    ca: str | None = None
    namespace: str | None = None
    auth: str | None = None
    auth_mount: str = "approle"
    token_file: str | None = None
    role_id_file: str | None = None
    secret_id_file: str | None = None

    def address(self) -> str:
        """Return the server's URL.

        A token is a secret of one server. If ``VAULT_ADDR`` is set, a URI cannot send the token to another server.

        Raises:
            ConfigurationError: No server is named, the URI and ``VAULT_ADDR`` name different ones, or the connection
                would be unencrypted over a network.
        """
        given = os.environ.get("VAULT_ADDR", "").rstrip("/")
        allows_http = self.tls == "off"
        named = f"{'http' if allows_http else 'https'}://{self.host}" if self.host else None
        if given and named not in (None, given):
            raise ConfigurationError(
                f"the URI names the server {named}, and VAULT_ADDR names another; correct one of them, or remove the "
                "host from the URI"
            )
        address = given or named
        if not address:
            raise ConfigurationError(
                f"no Vault server is named; set VAULT_ADDR, or name it as in {SCHEME}://vault.example:8200/transit/keys/kek"
            )
        url = urlsplit(address)
        if url.scheme not in {"http", "https"} or not url.hostname or url.username is not None:
            raise ConfigurationError("VAULT_ADDR is a URL such as https://vault.example:8200")
        if url.scheme == "http" and not allows_http and not _is_loopback(url.hostname):
            raise ConfigurationError(
                f"the connection to {address} is not encrypted and would show data keys and tokens; use https, or add "
                "tls=off behind the ? of the URI if the network is safe"
            )
        return address


def parse(rest: str) -> KEKName:
    """Parse a ``vault-transit:`` URI, given without its scheme.

    Raises:
        ConfigurationError: It names no key, or has unknown parameters.
    """
    _, _, _, *parameters = (field.name for field in fields(KEKName))
    path, given = split_parameters(rest, SCHEME, *sorted(parameters))
    found = _PATH.fullmatch(path)
    if found is None:
        raise ConfigurationError(
            f"{SCHEME}: is followed by server and key, as in {SCHEME}://vault.example:8200/transit/keys/kek, or by the "
            f"key alone, as in {SCHEME}:transit/keys/kek"
        )
    for name, choices in _CHOICES.items():
        if given.get(name, choices[0]) not in choices:
            raise ConfigurationError(f"{name}= of a {SCHEME}: URI is {' or '.join(choices)}")
    if not _MOUNT.fullmatch(given.get("auth_mount", "approle")):
        raise ConfigurationError(
            f"auth_mount= of a {SCHEME}: URI is the mount point of AppRole, as in approle"
        )
    host = found["host"]
    server = None if host is None else f"{host}:{found['port'] or _DEFAULT_PORT}"
    timeout = seconds_of(given)
    given.pop("timeout", None)
    return KEKName(server, found["mount"], found["key"], timeout, **given)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
