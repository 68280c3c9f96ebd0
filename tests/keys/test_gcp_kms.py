"""``gcp-kms:`` by Google's own SDK, against a server of ours that answers as Cloud KMS's reference says.

Google has no emulator, and no test here reaches Google.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from jwt_column import ConfigurationError, KeyUnavailableError
from jwt_column.providers import KeyWrapper, Rewrapper, WrappedKey, open_wrapper
from tests.support.kms import (
    BOUND,
    KEY,
    Cloud,
    EveryWrapper,
    Log,
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
    from pathlib import Path

kms_v1 = require("google.cloud.kms_v1", "jwt-column[gcp-kms]")
google_crc32c = require("google_crc32c", "jwt-column[gcp-kms]")

__all__ = ["certificates", "cloud", "log"]

pytestmark = pytest.mark.cloud

NAME = "projects/tests/locations/europe-west3/keyRings/ring/cryptoKeys/kek"
UNIVERSE = "universe.test"
WRAPPED = [WrappedKey(b"wrapped", BOUND)]


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def checksum(data: bytes) -> str:
    """Return a checksum as JSON has it: an int64 is a text there."""
    return str(google_crc32c.value(data))


def refusal(status: int, name: str, message: str = "") -> RefusalError:
    return RefusalError(status, {"error": {"code": status, "status": name, "message": message or name}})


class CloudKMS:
    """Encrypts and decrypts with the versions of one key, as the REST reference of Cloud KMS says.

    Attributes:
        versions: The key material of each version, the primary one last; None for one that is disabled.
        spoil: Changes an answer on its way.
    """

    def __init__(self) -> None:
        self.versions: list[bytes | None] = [os.urandom(32)]
        self.spoil: dict[str, Any] = {}

    def __call__(self, request: Request) -> dict[str, Any]:
        match = re.fullmatch(r"/v1/(?P<name>[^:]+):(?P<method>encrypt|decrypt)(\?.*)?", request.path)
        assert match, request.path
        assert request.method == "POST"
        assert request.headers["authorization"].startswith("Bearer ey")
        if match["name"] != NAME:
            raise refusal(404, "NOT_FOUND")
        body = dict(request.body)
        assert body.pop("name", NAME) == NAME
        data = {}
        for member in ("plaintext", "ciphertext", "additionalAuthenticatedData"):
            if member in body:
                data[member] = base64.b64decode(body.pop(member))
                if checksum(data[member]) != str(body.pop(f"{member}Crc32c")):
                    raise refusal(400, "INVALID_ARGUMENT", "The checksum does not match.")
        assert body == {}
        answer = self._encrypt(**data) if match["method"] == "encrypt" else self._decrypt(**data)
        return answer | self.spoil

    def _encrypt(self, plaintext: bytes, additionalAuthenticatedData: bytes) -> dict[str, Any]:  # noqa: N803
        key = self.versions[-1]
        if key is None:
            raise refusal(400, "FAILED_PRECONDITION", f"{NAME} is not enabled, current state is: DISABLED.")
        nonce = os.urandom(12)
        version = bytes([len(self.versions) - 1])
        ciphertext = version + nonce + AESGCM(key).encrypt(nonce, plaintext, additionalAuthenticatedData)
        return {
            "name": f"{NAME}/cryptoKeyVersions/{len(self.versions)}",
            "ciphertext": encoded(ciphertext),
            "ciphertextCrc32c": checksum(ciphertext),
            "verifiedPlaintextCrc32c": True,
            "verifiedAdditionalAuthenticatedDataCrc32c": True,
            "protectionLevel": "HSM",
        }

    def _decrypt(self, ciphertext: bytes, additionalAuthenticatedData: bytes) -> dict[str, Any]:  # noqa: N803
        try:
            key = self.versions[ciphertext[0]]
            if key is None:
                raise refusal(400, "FAILED_PRECONDITION", "The version is not enabled.")
            plaintext = AESGCM(key).decrypt(ciphertext[1:13], ciphertext[13:], additionalAuthenticatedData)
        except (IndexError, InvalidTag, ValueError):
            text = "Decryption failed: the ciphertext is invalid."
            raise refusal(400, "INVALID_ARGUMENT", text) from None
        primary = ciphertext[0] == len(self.versions) - 1
        return {
            "plaintext": encoded(plaintext),
            "plaintextCrc32c": checksum(plaintext),
            "usedPrimary": primary,
        }


@pytest.fixture(scope="module")
def service_account(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as Google gives it to service accounts; the SDK signs its own tokens with it."""
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("google") / "service-account.json"
    content = {
        "type": "service_account",
        "project_id": "tests",
        "private_key_id": "1",
        "private_key": pem.decode(),
        "client_email": "tests@tests.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": "https://127.0.0.1:9/token",
        # Of a universe that is not Google's own, google-auth asks Google nothing beside.
        "universe_domain": UNIVERSE,
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(autouse=True)
def account(service_account: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials that lead nowhere, and nothing of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith(("GOOGLE_", "CLOUDSDK_", "GCE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(service_account))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("GOOGLE_CLOUD_UNIVERSE_DOMAIN", UNIVERSE)
    monkeypatch.setenv("NO_GCE_CHECK", "true")


@pytest.fixture
def google(cloud: Cloud) -> CloudKMS:
    """What answers behind ``cloud``."""
    answering = CloudKMS()
    cloud.answer = answering
    return answering


@pytest.fixture
def wrapper(cloud: Cloud, google: CloudKMS) -> KeyWrapper:
    return open_wrapper(f"gcp-kms:{NAME}?endpoint=127.0.0.1:{cloud.port}")


class TestAgainstAServer(EveryWrapper):
    """The real SDK over HTTPS."""

    def test_what_an_old_version_wrapped_unwraps(self, wrapper: KeyWrapper, google: CloudKMS) -> None:
        before = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
        google.versions.append(os.urandom(32))
        after = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
        assert wrapper.unwrap([before, after]) == [KEY, KEY]
        # Cloud KMS has no call that would do it by itself.
        assert not isinstance(wrapper, Rewrapper)

    def test_version_that_is_disabled_is_named(self, wrapper: KeyWrapper, google: CloudKMS) -> None:
        wrapped = [WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)]
        google.versions[0] = None
        for call in (lambda: wrapper.wrap(KEY, BOUND), lambda: wrapper.unwrap(wrapped)):
            error = assert_may_be_retried(call, retryable=False)
            assert "disabled" in str(error)
            assert NAME in str(error)

    @pytest.mark.parametrize(
        "spoilt",
        [
            {"ciphertext": encoded(b"something else")},
            {"ciphertextCrc32c": "1"},
            {"ciphertextCrc32c": None},
            {"verifiedPlaintextCrc32c": False},
            {"verifiedAdditionalAuthenticatedDataCrc32c": False},
            {"name": NAME.replace("kek", "other") + "/cryptoKeyVersions/1"},
        ],
        ids=lambda spoilt: next(iter(spoilt)),
    )
    def test_damage_on_the_way_is_seen_when_a_key_is_wrapped(
        self, wrapper: KeyWrapper, google: CloudKMS, spoilt: dict[str, Any]
    ) -> None:
        assert wrapper.wrap(KEY, BOUND)
        google.spoil = spoilt
        error = assert_may_be_retried(lambda: wrapper.wrap(KEY, BOUND), retryable=True)
        assert "checksum" in str(error)
        assert set() == revealed_by(error, KEY)

    @pytest.mark.parametrize(
        "spoilt",
        [{"plaintext": encoded(bytes(32))}, {"plaintextCrc32c": "1"}, {"plaintextCrc32c": None}],
        ids=["plaintext", "checksum", "no checksum"],
    )
    def test_damage_on_the_way_is_seen_when_a_key_is_unwrapped(
        self, wrapper: KeyWrapper, google: CloudKMS, spoilt: dict[str, Any]
    ) -> None:
        wrapped = [WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)]
        assert wrapper.unwrap(wrapped) == [KEY]
        google.spoil = spoilt
        error = assert_may_be_retried(lambda: wrapper.unwrap(wrapped), retryable=True)
        assert set() == revealed_by(error, KEY)

    def test_key_is_bound_by_additional_authenticated_data(self, wrapper: KeyWrapper, cloud: Cloud) -> None:
        wrapper.wrap(KEY, BOUND)
        bound = base64.b64decode(cloud.requests[-1].body["additionalAuthenticatedData"])
        assert bound == b"jwt-column/key-ring/v1\x00sessions\x000a1b2c3d"

    @pytest.mark.parametrize(
        ("status", "name"),
        [(401, "UNAUTHENTICATED"), (403, "PERMISSION_DENIED"), (404, "NOT_FOUND"), (418, "TEAPOT")],
    )
    def test_what_somebody_has_to_mend_is_not_retried(
        self, wrapper: KeyWrapper, cloud: Cloud, status: int, name: str
    ) -> None:
        for call in (lambda: wrapper.wrap(KEY, BOUND), lambda: wrapper.unwrap(WRAPPED)):
            cloud.faults = [refusal(status, name, "secret-pin-4711!")] * 4
            error = assert_may_be_retried(call, retryable=False)
            assert f"{status} {name}" in str(error)
            assert set() == revealed_by(error, KEY, "secret-pin-4711!")

    @pytest.mark.parametrize(
        ("status", "name"),
        [(429, "RESOURCE_EXHAUSTED"), (500, "INTERNAL"), (503, "UNAVAILABLE"), (409, "ABORTED")],
    )
    def test_what_passes_is_tried_again(
        self, wrapper: KeyWrapper, cloud: Cloud, status: int, name: str
    ) -> None:
        cloud.faults = [refusal(status, name)]
        wrapped = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
        cloud.faults = [refusal(status, name)]
        assert wrapper.unwrap([wrapped]) == [KEY]
        assert len(cloud.requests) == 4

    def test_what_does_not_pass_ends(self, wrapper: KeyWrapper, cloud: Cloud) -> None:
        cloud.faults = [refusal(503, "UNAVAILABLE")] * 9
        error = assert_may_be_retried(lambda: wrapper.unwrap(WRAPPED), retryable=True)
        assert "503 UNAVAILABLE" in str(error)
        assert len(cloud.requests) == 4

    @pytest.mark.parametrize(
        "body", [b"<html>secret-pin-4711!</html>", [], {"error": {"status": "secret-pin-4711!"}}]
    )
    def test_proxy_that_answers_in_its_stead_is_not_quoted(
        self, wrapper: KeyWrapper, cloud: Cloud, body: Any
    ) -> None:
        cloud.faults = [RefusalError(407, body)]
        error = assert_may_be_retried(lambda: wrapper.unwrap(WRAPPED), retryable=False)
        assert "407" in str(error)
        assert set() == revealed_by(error, "secret-pin-4711!")

    def test_answer_that_is_none_is_an_error_of_ours(self, wrapper: KeyWrapper, cloud: Cloud) -> None:
        cloud.answer = lambda request: b"\xff"
        assert isinstance(refusal_of(lambda: wrapper.unwrap(WRAPPED)), KeyUnavailableError)

    def test_key_that_does_not_encrypt_is_a_matter_of_configuration(
        self, wrapper: KeyWrapper, cloud: Cloud
    ) -> None:
        cloud.faults = [refusal(400, "INVALID_ARGUMENT")]
        error = error_of(lambda: wrapper.wrap(KEY, BOUND))
        assert type(error) is ConfigurationError
        assert set() == revealed_by(error, KEY)

    def test_log_without_the_filter_shows_the_key(self, cloud: Cloud, google: CloudKMS, log: Log) -> None:
        """The control: what the application asks by itself is logged as before."""
        options = {"api_endpoint": f"127.0.0.1:{cloud.port}"}
        client = kms_v1.KeyManagementServiceClient(transport="rest", client_options=options)
        request = {
            "name": NAME,
            "plaintext": KEY,
            "plaintext_crc32c": google_crc32c.value(KEY),
            "additional_authenticated_data": b"",
        }
        cloud.answer = lambda request: {}
        client.encrypt(request=request)
        client.transport.close()
        assert log.shows(KEY) == {"google.cloud.kms_v1.services.key_management_service.transports.rest"}


class TestOutOfReach:
    """No Google to talk to."""

    def test_server_that_is_gone_may_come_back(self) -> None:
        with closed_port() as port:
            wrapper = open_wrapper(f"gcp-kms:{NAME}?endpoint=127.0.0.1:{port}")
            assert_may_be_retried(lambda: wrapper.unwrap(WRAPPED), retryable=True)

    def test_server_that_hangs_is_left(self, cloud: Cloud, google: CloudKMS) -> None:
        cloud.faults = [None] * 9
        wrapper = open_wrapper(f"gcp-kms:{NAME}?endpoint=127.0.0.1:{cloud.port}&timeout=0.5")
        assert_may_be_retried(lambda: wrapper.unwrap(WRAPPED), retryable=True)

    def test_server_that_hangs_once_is_asked_again(self, cloud: Cloud, google: CloudKMS) -> None:
        cloud.faults = [None]
        wrapper = open_wrapper(f"gcp-kms:{NAME}?endpoint=127.0.0.1:{cloud.port}&timeout=6")
        assert wrapper.wrap(KEY, BOUND)

    def test_server_that_nobody_vouches_for_is_not_trusted(
        self, wrapper: KeyWrapper, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        error = assert_may_be_retried(lambda: wrapper.unwrap(WRAPPED), retryable=False)
        assert "REQUESTS_CA_BUNDLE" in str(error)
        assert cloud.requests == []

    def test_credentials_that_are_missing_are_named(
        self, wrapper: KeyWrapper, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
        error = assert_may_be_retried(lambda: wrapper.unwrap(WRAPPED), retryable=False)
        assert "GOOGLE_APPLICATION_CREDENTIALS" in str(error)


class TestURI:
    """What may stand behind ``gcp-kms:``."""

    @pytest.mark.parametrize(
        "rest",
        [
            NAME,
            NAME.replace("tests", "example.com:tests"),
            f"{NAME}?timeout=2.5&endpoint=cloudkms.europe-west3.rep.googleapis.com",
        ],
    )
    def test_uri_is_kept_and_nothing_is_reached(self, rest: str) -> None:
        assert open_wrapper(f"gcp-kms:{rest}").uri == f"gcp-kms:{rest}"

    @pytest.mark.parametrize(
        "rest",
        [
            "",
            "/" + NAME,
            f"{NAME}/cryptoKeyVersions/1",
            f"{NAME}\n",
            NAME.replace("kek", "../kek"),
            f"{NAME}:encrypt",
            "secret-pin-4711!",
            f"{NAME}?endpoint=https://example.com",
            f"{NAME}?endpoint=secret-pin-4711!",
            f"{NAME}?endpoint=example.com/path",
            f"{NAME}?timeout=0",
            f"{NAME}?region=europe-west3",
        ],
    )
    def test_anything_else_is_refused_and_not_shown(self, rest: str) -> None:
        assert_uri_is_refused(f"gcp-kms:{rest}")

    def test_missing_extra_is_named_with_its_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "google.cloud.kms_v1", None)
        assert_extra_is_named(f"gcp-kms:{NAME}", WRAPPED, "gcp-kms")
