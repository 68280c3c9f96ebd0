"""A ring file names KEKs; only those of the application's own configuration are read, called or loaded."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest

from jwt_column import ConfigurationError, JWTColumnError, KeyRing, generate_key, providers
from jwt_column.format.base64url import encode
from jwt_column.keys.data_key import DataKey
from jwt_column.keys.default import keyring_of_uri, set_default_keyring
from jwt_column.keys.keks import canonical_kek, variable_line
from jwt_column.keys.ring_file.changes import created
from jwt_column.keys.ring_file.store import StoredRing, create_ring_file
from jwt_column.keys.ring_file.unwrapping import try_unwrap, wrap
from tests.keys.test_search import NOW

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("listed_keks")

KEY = generate_key()
KEY_ID = DataKey(KEY).id


@pytest.fixture
def kek(tmp_path: Path) -> str:
    """The URI of the application's KEK."""
    providers.write_key_file(tmp_path / "kek", [generate_key()])
    return f"file:{tmp_path / 'kek'}"


@pytest.fixture
def path(tmp_path: Path, kek: str) -> Path:
    """The application's ring file."""
    path, key = tmp_path / "ring.json", DataKey(KEY)
    (wrapped,) = wrap(providers.open_wrapper(kek), "app", [key])
    create_ring_file(path, created("app", [(key.id, wrapped)], kek, NOW), {key.id: key})
    return path


def rewrite(path: Path, kek: str) -> None:
    """Name another KEK in a ring file, as someone does who can only edit the file."""
    file = json.loads(path.read_text())
    file["keys"][0] |= {"wrapped_by": kek, "wrapped": encode(b"vault:v1:AAAA")}
    path.write_text(json.dumps(file))


class Listener:
    """A server of a stranger, which notes that it was reached."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                self.received.append(connection.recv(65_536))
                connection.sendall(
                    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


class TestAllowed:
    """Loading with and without the setting."""

    def test_kek_of_the_argument(self, path: Path, kek: str) -> None:
        assert KeyRing.from_uri(f"file:{path}", keks=[kek]).active == KEY_ID

    def test_kek_of_the_environment(self, path: Path, kek: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JWT_COLUMN_KEKS", f"  aws-kms:alias/other?region=eu-west-1\n{kek} ")
        assert KeyRing.from_uri(f"file:{path}").active == KEY_ID
        assert keyring_of_uri(f"file:{path}").active == KEY_ID

    def test_argument_replaces_the_environment(
        self, path: Path, kek: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("JWT_COLUMN_KEKS", kek)
        with pytest.raises(ConfigurationError):
            KeyRing.from_uri(f"file:{path}", keks=[])

    def test_without_the_setting_the_error_prints_it(
        self, path: Path, kek: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("JWT_COLUMN_KEKS", "env:OTHER")
        with pytest.raises(ConfigurationError) as caught:
            KeyRing.from_uri(f"file:{path}")
        (line,) = [part for part in str(caught.value).split("set: ") if part.startswith("JWT_COLUMN_KEKS=")]
        name, _, value = shlex.split(line)[0].partition("=")
        monkeypatch.setenv(name, value)
        assert KeyRing.from_uri(f"file:{path}").active == KEY_ID

    def test_line_of_a_hostile_uri_runs_nothing_in_a_shell(self) -> None:
        uri = "file:/kek';touch${IFS}/tmp/x;$(id)`id`"
        done = subprocess.run(
            ["sh", "-c", f'{variable_line(uri)}; printf %s "$JWT_COLUMN_KEKS"'],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == uri

    def test_one_uri_without_brackets_is_refused(self, path: Path, kek: str) -> None:
        with pytest.raises(ConfigurationError, match="brackets"):
            KeyRing.from_uri(f"file:{path}", keks=kek)

    @pytest.mark.parametrize("keks", [5, [None], [b"file:/kek"]])
    def test_what_is_no_list_of_texts_is_refused(self, path: Path, keks: Any) -> None:
        with pytest.raises(ConfigurationError, match="keks is a list of KEK URIs, not of"):
            KeyRing.from_uri(f"file:{path}", keks=keks)

    def test_rings_without_wrapped_keys_need_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        providers.write_key_file(tmp_path / "keys", [KEY])
        monkeypatch.setenv("KEYS", KEY)
        for uri in (f"file:{tmp_path / 'keys'}", "env:KEYS"):
            assert KeyRing.from_uri(uri, keks=[]).active == KEY_ID

    def test_ring_with_another_active_key_keeps_the_list(self, path: Path, kek: str) -> None:
        ring = KeyRing.from_uri(f"file:{path}", keks=[kek]).with_active(KEY_ID)
        ring.reload()
        assert ring.keks == (kek,)
        assert KeyRing([KEY]).keks is None

    def test_commands_are_refused_too(self, path: Path) -> None:
        with pytest.raises(ConfigurationError):
            StoredRing.read(path).unwrap()
        assert isinstance(try_unwrap(StoredRing.read(path).file).failures[KEY_ID], ConfigurationError)


class TestStranger:
    """Someone edits the ring file and waits for the application to load it."""

    def refused(self, path: Path, kek: str) -> None:
        with pytest.raises(ConfigurationError, match="does not allow"):
            KeyRing.from_uri(f"file:{path}", keks=[kek])

    def reached(self, path: Path) -> None:
        """Load as if the application had allowed the stranger's KEK: the control."""
        named = json.loads(path.read_text())["keys"][0]["wrapped_by"]
        with pytest.raises(JWTColumnError):
            KeyRing.from_uri(f"file:{path}", keks=[named])

    @pytest.mark.cloud
    def test_token_of_vault_is_not_sent_elsewhere(
        self, path: Path, kek: str, listener: Listener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("VAULT_TOKEN", "hvs.secret")
        monkeypatch.delenv("VAULT_ADDR", raising=False)
        rewrite(path, f"vault-transit://127.0.0.1:{listener.port}/transit/keys/k?tls=off&timeout=5")
        self.refused(path, kek)
        assert listener.received == []
        self.reached(path)
        assert any(b"hvs.secret" in data for data in listener.received)

    @pytest.mark.cloud
    def test_file_that_the_stranger_names_is_not_read(
        self, path: Path, kek: str, listener: Listener, tmp_path: Path
    ) -> None:
        (tmp_path / "secret").write_text("any-file-of-this-host")
        secret = tmp_path / "secret"
        rewrite(
            path,
            f"vault-transit://127.0.0.1:{listener.port}/transit/keys/k?tls=off&timeout=5&auth=approle"
            f"&role_id_file={secret}&secret_id_file={secret}",
        )
        self.refused(path, kek)
        assert listener.received == []
        self.reached(path)
        assert listener.received

    def test_library_of_the_stranger_is_not_loaded(
        self, path: Path, kek: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also where the ring's own KEK is a file and a second entry names the module."""
        loaded: list[str] = []
        monkeypatch.setattr(
            "jwt_column.keys.providers.pkcs11_module.load", lambda _pkcs11, module: loaded.append(module)
        )
        file = json.loads(path.read_text())
        other = file["keys"][0] | {
            "id": "00000000",
            "state": "deactivated",
            "wrapped_by": "pkcs11:object=kek?module-path=/tmp/evil.so&timeout=5",
        }
        file["keys"].append(other)
        path.write_text(json.dumps(file))
        self.refused(path, kek)
        assert loaded == []

    def test_endpoint_is_part_of_the_comparison(self, path: Path) -> None:
        key = "gcp-kms:projects/p/locations/l/keyRings/r/cryptoKeys/k"
        rewrite(path, f"{key}?endpoint=evil.example")
        self.refused(path, key)

    def test_reload_is_refused_and_the_ring_goes_on(self, path: Path, kek: str, listener: Listener) -> None:
        ring = KeyRing.from_uri(f"file:{path}", keks=[kek])
        rewrite(path, f"vault-transit://127.0.0.1:{listener.port}/transit/keys/k?tls=off")
        with pytest.raises(ConfigurationError):
            ring.reload()
        assert ring.active == KEY_ID
        assert "does not allow" in (ring.status.error or "")
        assert listener.received == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("AWS-KMS:alias/a?region=x&timeout=5", "aws-kms:alias/a?timeout=5&region=x"),
        ("file:///etc/kek", "file:/etc/kek"),
        ("file:/etc/%6bek", "file:/etc/kek"),
        ("file:/a%2fb", "file:/a/b"),
        ("keyring:a%2fb/c", "keyring:a%2Fb/c"),
        (
            "pkcs11:object=kek;token=t?pin-source=env:P&module-path=/m",
            "pkcs11:token=t;object=kek?module-path=/m&pin-source=env:P",
        ),
    ],
)
def test_spellings_of_one_kek_are_equal(one: str, other: str) -> None:
    assert canonical_kek(one) == canonical_kek(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("file:/etc/kek", "file:/etc/kek2"),
        ("file:/etc/kek", "file:/etc/kek?x=1"),
        ("keyring:a%2Fb", "keyring:a/b"),
        ("vault-transit://h/transit/keys/k", "vault-transit://h/transit/keys/k?tls=off"),
        ("aws-kms:alias/a?region=x", "aws-kms:alias/a"),
        ("aws-kms:alias/a%26b", "aws-kms:alias/a&b"),
        ("file:/etc/kek", "file:/etc/KEK"),
    ],
)
def test_other_keks_are_not(one: str, other: str) -> None:
    assert canonical_kek(one) != canonical_kek(other)


def test_shards_take_the_list_along(path: Path, kek: str) -> None:
    """A worker loads the ring by its URI, and its environment may have no list."""
    ring = KeyRing.from_uri(f"file:{path}", keks=[kek])
    set_default_keyring(None)
    assert keyring_of_uri(str(ring.uri), ring.keks).active == KEY_ID
