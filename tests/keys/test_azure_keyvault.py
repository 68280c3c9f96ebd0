"""``azure-keyvault:`` by Microsoft's own SDKs, against a server of ours that answers as Key Vault's reference says.

Microsoft has no emulator of keys, and no test here reaches Microsoft.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from jwt_column import ConfigurationError, KeyRingError
from jwt_column.format import base64url
from jwt_column.providers import KeyWrapper, Rewrapper, WrappedKey, open_wrapper
from tests.support.kms import (
    BOUND,
    KEY,
    Cloud,
    EveryWrapper,
    RefusalError,
    Request,
    assert_extra_is_named,
    assert_may_be_retried,
    assert_uri_is_refused,
    certificates,
    closed_port,
    cloud,
    error_of,
    log,
    refusal_of,
    require,
)
from tests.support.tokens import revealed_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

require("azure.keyvault.keys", "jwt-column[azure-keyvault]")
require("azure.identity", "jwt-column[azure-keyvault]")

__all__ = ["certificates", "cloud", "log"]

pytestmark = pytest.mark.cloud

VERSION = "0123456789abcdef0123456789abcdef"
NEXT_VERSION = "fedcba9876543210fedcba9876543210"
VAULT = "https://tests.vault.azure.net/keys/kek"
WRAPPED = [WrappedKey(bytes([32]) + VERSION.encode() + bytes(256), BOUND)]
TOKEN = "token-of-the-managed-identity"

OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


def refusal(status: int, code: str, inner: str = "") -> RefusalError:
    error = {"code": code, "message": f"{code} of the tests", "innererror": {"code": inner or code}}
    return RefusalError(status, {"error": error})


@pytest.fixture(scope="session")
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


class KeyVault:
    """One RSA key of a vault and one AES key of a Managed HSM, as the REST reference of Key Vault says.

    Attributes:
        versions: The versions of the keys, the newest last.
        may_get: Whether the caller may ask for a key and not only use it.
    """

    def __init__(self, port: int, private_key: rsa.RSAPrivateKey) -> None:
        self.versions = [VERSION]
        self.may_get = True
        self._port = port
        self._rsa = private_key
        self._aes: dict[str, AESGCM] = {}

    def __call__(self, request: Request) -> dict[str, Any]:
        url = urlsplit(request.path)
        assert parse_qs(url.query)["api-version"]
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            # The first request carries no body and no token, and is told where a token is to be had. The SDK wants
            # the vault to be in the domain of the resource, as my-vault.vault.azure.net is in vault.azure.net, and
            # 127.0.0.1 is in 0.0.1 to it.
            assert request.body is None
            challenge = (
                f'Bearer authorization="https://127.0.0.1/tenant", resource="https://0.0.1:{self._port}"'
            )
            raise RefusalError(401, {}, {"WWW-Authenticate": challenge})
        match = re.fullmatch(r"/keys/kek/(?P<version>[^/]*)(/(?P<operation>[a-z]+))?", url.path)
        if match is None:
            raise refusal(404, "KeyNotFound")
        if request.method == "GET":
            return self._get()
        if match["version"] not in self.versions:
            raise refusal(404, "KeyNotFound")
        body = dict(request.body)
        algorithm = body.pop("alg")
        parts = {name: self._bytes_of(value) for name, value in body.items()}
        operation = getattr(self, f"_{match['operation']}_{algorithm.replace('-', '_')}")
        answer = {"kid": self._identifier(match["version"])}
        return answer | {
            name: base64url.encode(part) for name, part in operation(match["version"], **parts).items()
        }

    def _identifier(self, version: str) -> str:
        return f"https://127.0.0.1:{self._port}/keys/kek/{version}"

    @staticmethod
    def _bytes_of(text: str) -> bytes:
        data = base64url.decode(text)
        assert data is not None, "The reference has base64url without padding."
        return data

    def _get(self) -> dict[str, Any]:
        if not self.may_get:
            raise refusal(403, "Forbidden", "ForbiddenByRbac")
        numbers = self._rsa.public_key().public_numbers()
        key = {
            "kid": self._identifier(self.versions[-1]),
            "kty": "RSA",
            "key_ops": ["wrapKey", "unwrapKey"],
            "n": base64url.encode(numbers.n.to_bytes(256, "big")),
            "e": "AQAB",
        }
        return {"key": key, "attributes": {"enabled": True, "created": 1, "updated": 1}}

    def _wrapkey_RSA_OAEP_256(self, version: str, value: bytes) -> dict[str, bytes]:  # noqa: N802
        return {"value": self._rsa.public_key().encrypt(value, OAEP)}

    def _unwrapkey_RSA_OAEP_256(self, version: str, value: bytes) -> dict[str, bytes]:  # noqa: N802
        try:
            return {"value": self._rsa.decrypt(value, OAEP)}
        except ValueError:
            raise refusal(400, "BadParameter") from None

    def _encrypt_A256GCM(self, version: str, value: bytes, aad: bytes) -> dict[str, bytes]:  # noqa: N802
        key = self._aes.setdefault(version, AESGCM(os.urandom(32)))
        nonce = os.urandom(12)
        sealed = key.encrypt(nonce, value, aad)
        return {"value": sealed[:-16], "tag": sealed[-16:], "iv": nonce, "aad": aad}

    def _decrypt_A256GCM(  # noqa: N802
        self, version: str, value: bytes, iv: bytes, tag: bytes, aad: bytes
    ) -> dict[str, bytes]:
        try:
            return {"value": self._aes[version].decrypt(iv, value + tag, aad)}
        except InvalidTag:
            raise refusal(400, "BadParameter") from None


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """What gives tokens to a managed identity of App Service."""
    for name in [name for name in os.environ if name.startswith(("AZURE_", "IDENTITY_", "MSI_"))]:
        monkeypatch.delenv(name)
    server = Cloud(None)
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://127.0.0.1:{server.port}/msi/token")
    monkeypatch.setenv("IDENTITY_HEADER", "header-of-the-tests")
    # Of all the ways of DefaultAzureCredential this one alone, or it would look for an Azure around this machine.
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")

    def give_token(request: Request) -> dict[str, Any]:
        assert request.headers["x-identity-header"] == "header-of-the-tests"
        return {
            "access_token": TOKEN,
            "expires_on": "4102444800",
            "resource": "https://0.0.1",
            "token_type": "Bearer",
        }

    server.answer = give_token
    yield server
    server.close()
    for error in server.errors:
        raise error


@pytest.fixture
def vault(cloud: Cloud, identity: Cloud, private_key: rsa.RSAPrivateKey) -> KeyVault:
    """What answers behind ``cloud``."""
    answering = KeyVault(cloud.port, private_key)
    cloud.answer = answering
    return answering


@pytest.fixture
def key(cloud: Cloud, vault: KeyVault) -> str:
    """The key's URI without a version."""
    return f"azure-keyvault:https://127.0.0.1:{cloud.port}/keys/kek"


@pytest.fixture(params=["/" + VERSION, "", "?algorithm=A256GCM"], ids=["RSA", "RSA, any version", "AES"])
def wrapper(request: pytest.FixtureRequest, key: str) -> KeyWrapper:
    return open_wrapper(key + request.param)


class TestAgainstAServer(EveryWrapper):
    """The real SDK over HTTPS, for each kind of key."""

    def test_what_an_old_version_wrapped_unwraps(self, key: str, vault: KeyVault) -> None:
        for algorithm in ("RSA-OAEP-256", "A256GCM"):
            vault.versions = [VERSION]
            wrapper = open_wrapper(f"{key}?algorithm={algorithm}")
            before = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
            vault.versions.append(NEXT_VERSION)
            after = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
            assert VERSION.encode() in before.ciphertext
            assert NEXT_VERSION.encode() in after.ciphertext
            assert wrapper.unwrap([before, after]) == [KEY, KEY]
            # Key Vault has no call that would do it by itself.
            assert not isinstance(wrapper, Rewrapper)

    def test_kek_of_one_version_unwraps_nothing_of_another(self, key: str, vault: KeyVault) -> None:
        vault.versions.append(NEXT_VERSION)
        wrapped = [WrappedKey(open_wrapper(f"{key}/{NEXT_VERSION}").wrap(KEY, BOUND), BOUND)]
        assert open_wrapper(key).unwrap(wrapped) == [KEY]
        assert type(refusal_of(lambda: open_wrapper(f"{key}/{VERSION}").unwrap(wrapped))) is KeyRingError

    @pytest.mark.parametrize("version", [b"..", b"../../../secrets/x", b"", b"a" * 65, b"\xff"])
    def test_version_is_not_taken_from_a_changed_file(self, key: str, cloud: Cloud, version: bytes) -> None:
        wrapped = [WrappedKey(bytes([len(version)]) + version + bytes(256), BOUND)]
        refusal_of(lambda: open_wrapper(key).unwrap(wrapped))
        assert cloud.requests == []

    def test_bytes_are_as_specified(self, key: str, private_key: rsa.RSAPrivateKey) -> None:
        """What other programs need to know, taken apart by hand."""
        wrapped = open_wrapper(key).wrap(KEY, BOUND)
        assert (wrapped[0], wrapped[1:33], len(wrapped)) == (32, VERSION.encode(), 33 + 256)
        content = private_key.decrypt(wrapped[33:], OAEP)
        digest = hashes.Hash(hashes.SHA256())
        digest.update(b"jwt-column/key-ring/v1\x00sessions\x000a1b2c3d")
        assert content == KEY + digest.finalize()
        assert len(open_wrapper(f"{key}?algorithm=A256GCM").wrap(KEY, BOUND)) == 33 + 12 + 32 + 16

    @pytest.mark.parametrize("content", [KEY, KEY + bytes(32), KEY[:16], b""])
    def test_anything_else_under_the_public_key_is_refused(
        self, key: str, private_key: rsa.RSAPrivateKey, content: bytes
    ) -> None:
        """Whoever has the public key can encrypt under it."""
        payload = private_key.public_key().encrypt(content, OAEP)
        wrapped = [WrappedKey(bytes([32]) + VERSION.encode() + payload, BOUND)]
        error = refusal_of(lambda: open_wrapper(key).unwrap(wrapped))
        assert type(error) is KeyRingError
        assert set() == revealed_by(error, KEY)

    def test_key_is_used_without_the_permission_to_ask_for_it(
        self, key: str, vault: KeyVault, cloud: Cloud
    ) -> None:
        vault.may_get = False
        pinned = open_wrapper(f"{key}/{VERSION}")
        wrapped = [WrappedKey(pinned.wrap(KEY, BOUND), BOUND)]
        before = len(cloud.requests)
        assert open_wrapper(key).unwrap(wrapped * 3) == [KEY] * 3
        assert len(cloud.requests) - before <= 3 + 3, (
            "Three answers, and at most as many demands for a token."
        )
        error = assert_may_be_retried(lambda: open_wrapper(key).wrap(KEY, BOUND), retryable=False)
        assert "403" in str(error)

    @pytest.mark.parametrize(
        ("status", "code"), [(401, "Unauthorized"), (403, "Forbidden"), (404, "KeyNotFound"), (418, "Teapot")]
    )
    def test_what_somebody_has_to_mend_is_not_retried(
        self, wrapper: KeyWrapper, cloud: Cloud, status: int, code: str
    ) -> None:
        wrapped = [WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)]
        calls: list[Callable[[], object]] = [
            lambda: wrapper.wrap(KEY, BOUND),
            lambda: wrapper.unwrap(wrapped),
        ]
        for call in calls:
            cloud.faults = [refusal(status, code)] * 4
            error = assert_may_be_retried(call, retryable=False)
            assert f"({status})" in str(error)
            assert set() == revealed_by(error, KEY, TOKEN)

    @pytest.mark.parametrize(
        ("status", "code"),
        [(429, "Throttled"), (500, "InternalError"), (503, "ServiceUnavailable"), (409, "Conflict")],
    )
    def test_what_passes_is_tried_again(self, key: str, cloud: Cloud, status: int, code: str) -> None:
        wrapper = open_wrapper(key)
        cloud.faults = [refusal(status, code)]
        wrapped = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
        cloud.faults = [refusal(status, code)]
        assert wrapper.unwrap([wrapped]) == [KEY]

    def test_what_does_not_pass_ends(self, key: str, cloud: Cloud) -> None:
        cloud.faults = [refusal(503, "ServiceUnavailable")] * 9
        error = assert_may_be_retried(lambda: open_wrapper(key).unwrap(WRAPPED), retryable=True)
        assert "(503)" in str(error)
        assert len(cloud.requests) == 4

    def test_key_that_does_not_wrap_is_a_matter_of_configuration(self, key: str, cloud: Cloud) -> None:
        cloud.faults = [refusal(400, "BadParameter")]
        error = error_of(lambda: open_wrapper(key).wrap(KEY, BOUND))
        assert type(error) is ConfigurationError
        assert set() == revealed_by(error, KEY)

    @pytest.mark.parametrize("answer", [{}, {"value": "+/"}, b"\xff", []])
    def test_answer_that_is_none_is_an_error_of_ours(self, key: str, cloud: Cloud, answer: Any) -> None:
        cloud.answer = lambda request: answer
        assert_may_be_retried(lambda: open_wrapper(key).unwrap(WRAPPED), retryable=False)

    def test_vault_that_asks_for_a_token_of_another_is_given_none(
        self, key: str, cloud: Cloud, identity: Cloud
    ) -> None:
        challenge = 'Bearer authorization="https://127.0.0.1/tenant", resource="https://vault.azure.net"'
        cloud.faults = [RefusalError(401, {}, {"WWW-Authenticate": challenge})] * 4
        assert_may_be_retried(lambda: open_wrapper(key).unwrap(WRAPPED), retryable=False)
        assert identity.requests == []


class TestOutOfReach:
    """No Azure to talk to."""

    def test_server_that_is_gone_may_come_back(self, identity: Cloud) -> None:
        with closed_port() as port:
            wrapper = open_wrapper(f"azure-keyvault:https://127.0.0.1:{port}/keys/kek")
            assert_may_be_retried(lambda: wrapper.unwrap(WRAPPED), retryable=True)

    def test_server_that_hangs_is_left(self, key: str, cloud: Cloud) -> None:
        cloud.faults = [None] * 9
        assert_may_be_retried(lambda: open_wrapper(f"{key}?timeout=0.5").unwrap(WRAPPED), retryable=True)

    def test_server_that_hangs_once_is_asked_again(self, key: str, cloud: Cloud) -> None:
        cloud.faults = [None]
        assert open_wrapper(f"{key}?timeout=6").wrap(KEY, BOUND)

    def test_server_that_nobody_vouches_for_is_not_trusted(
        self, key: str, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        error = assert_may_be_retried(lambda: open_wrapper(key).unwrap(WRAPPED), retryable=False)
        assert "REQUESTS_CA_BUNDLE" in str(error)
        assert cloud.requests == []

    def test_credentials_that_are_missing_are_named(self, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
        error = assert_may_be_retried(lambda: open_wrapper(key).unwrap(WRAPPED), retryable=False)
        assert "AZURE_CLIENT_ID" in str(error)


class TestURI:
    """What may stand behind ``azure-keyvault:``."""

    @pytest.mark.parametrize(
        "rest",
        [
            VAULT,
            f"{VAULT}/{VERSION}?timeout=2.5",
            f"{VAULT}?algorithm=RSA-OAEP-256",
            "https://tests.managedhsm.azure.net/keys/kek?algorithm=A256GCM",
        ],
    )
    def test_uri_is_kept_and_nothing_is_reached(self, rest: str) -> None:
        assert open_wrapper(f"azure-keyvault:{rest}").uri == f"azure-keyvault:{rest}"

    @pytest.mark.parametrize(
        "rest",
        [
            "",
            VAULT.replace("https", "http"),
            VAULT.removeprefix("https:"),
            VAULT.replace("keys", "secrets"),
            VAULT + "/",
            f"{VAULT}/{VERSION}/wrapkey",
            f"{VAULT}\n",
            VAULT.replace("tests", "user:secret-pin-4711!@tests"),
            "secret-pin-4711!",
            f"{VAULT}?algorithm=RSA1_5",
            f"{VAULT}?algorithm=secret-pin-4711!",
            f"{VAULT}?timeout=0",
            f"{VAULT}?version={VERSION}",
        ],
    )
    def test_anything_else_is_refused_and_not_shown(self, rest: str) -> None:
        assert_uri_is_refused(f"azure-keyvault:{rest}")

    @pytest.mark.parametrize("module", ["azure.identity", "azure.keyvault.keys"])
    def test_missing_extra_is_named_with_its_command(
        self, monkeypatch: pytest.MonkeyPatch, module: str
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        assert_extra_is_named(f"azure-keyvault:{VAULT}", WRAPPED, "azure-keyvault")
