"""``aws-kms:`` against moto, which imitates AWS KMS over HTTP, and botocore's stubs for what moto does not imitate."""

from __future__ import annotations

import logging
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from jwt_column import (
    ConfigurationError,
    KeyRing,
    KeyRingError,
    KeyUnavailableError,
)
from jwt_column.keys.providers.aws_kms import AWSKMSWrapper
from jwt_column.providers import KeyWrapper, Rewrapper, WrappedKey, open_wrapper
from tests.support.command_line import invoke, keys_report
from tests.support.kms import (
    BOUND,
    KEY,
    OTHER_KEY,
    Cloud,
    EveryWrapper,
    Log,
    assert_extra_is_named,
    assert_may_be_retried,
    assert_uri_is_refused,
    certificates,
    closed_port,
    error_of,
    log,
    refusal_of,
    require,
    set_aws_account,
    wrapped_keys,
)
from tests.support.tokens import revealed_by

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from pathlib import Path

boto3 = require("boto3", "jwt-column[aws-kms]")
stub = require("botocore.stub", "jwt-column[aws-kms]")
exceptions = require("botocore.exceptions", "jwt-column[aws-kms]")
moto_server = require("moto.server", "moto[kms]", "flask", "flask-cors")

__all__ = ["certificates", "log"]

pytestmark = pytest.mark.cloud

REGION = "eu-central-1"
ACCOUNT = "123456789012"
UUID = "1234abcd-12ab-34cd-56ef-1234567890ab"
ARN = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{UUID}"


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The URL of moto."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    set_aws_account(monkeypatch)


@pytest.fixture
def kms(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of moto's KMS, which is also where wrappers find it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", moto)
    client = boto3.session.Session(region_name=REGION).client("kms")
    yield client
    client.close()


@pytest.fixture
def arn(kms: Any) -> str:
    """The ARN of a new symmetric key."""
    return str(kms.create_key()["KeyMetadata"]["Arn"])


@pytest.fixture
def wrapper(arn: str) -> KeyWrapper:
    return open_wrapper(f"aws-kms:{arn}")


class TestAgainstMoto(EveryWrapper):
    """The real SDK over HTTP."""

    def test_wrapper_can_rewrap(self, wrapper: KeyWrapper, kms: Any, arn: str) -> None:
        assert isinstance(wrapper, Rewrapper)
        before = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)
        kms.rotate_key_on_demand(KeyId=arn)
        (ciphertext,) = wrapper.rewrap([before])
        assert ciphertext != before.ciphertext
        assert wrapper.unwrap([WrappedKey(ciphertext, BOUND), before]) == [KEY, KEY]

    def test_moved_key_is_not_rewrapped(self, wrapper: KeyWrapper) -> None:
        assert isinstance(wrapper, Rewrapper)
        moved = WrappedKey(wrapper.wrap(KEY, BOUND), BOUND._replace(ring="other"))
        assert type(refusal_of(lambda: wrapper.rewrap([moved]))) is KeyRingError

    def test_key_is_bound_by_the_encryption_context(self, wrapper: KeyWrapper, kms: Any, arn: str) -> None:
        """Another program decrypts what this one wrapped, by AWS's own words."""
        context = {"jwt-column:ring": "sessions", "jwt-column:key-id": "0a1b2c3d"}
        ciphertext = wrapper.wrap(KEY, BOUND)
        answer = kms.decrypt(KeyId=arn, CiphertextBlob=ciphertext, EncryptionContext=context)
        assert answer["Plaintext"] == KEY
        with pytest.raises(exceptions.ClientError, match="InvalidCiphertext"):
            kms.decrypt(KeyId=arn, CiphertextBlob=ciphertext, EncryptionContext={})

    def test_key_of_another_kek_is_refused(self, wrapper: KeyWrapper, kms: Any) -> None:
        other = open_wrapper(f"aws-kms:{kms.create_key()['KeyMetadata']['Arn']}")
        wrapped = WrappedKey(other.wrap(KEY, BOUND), BOUND)
        assert other.unwrap([wrapped]) == [KEY]
        # AWS answers IncorrectKeyException here, and moto AccessDeniedException.
        refusal_of(lambda: wrapper.unwrap([wrapped]))

    @pytest.mark.parametrize(
        "form", ["{id}?region={region}", "alias/of-tests?region={region}&timeout=5", "{alias}"]
    )
    def test_key_is_named_by_id_or_alias_too(self, kms: Any, arn: str, form: str) -> None:
        kms.create_alias(AliasName="alias/of-tests", TargetKeyId=arn)
        alias = f"arn:aws:kms:{REGION}:{ACCOUNT}:alias/of-tests"
        uri = "aws-kms:" + form.format(id=arn.rpartition("/")[2], region=REGION, alias=alias)
        try:
            ciphertext = open_wrapper(uri).wrap(KEY, BOUND)
            assert open_wrapper(uri).uri == uri
            assert open_wrapper(f"aws-kms:{arn}").unwrap([WrappedKey(ciphertext, BOUND)]) == [KEY]
        finally:
            kms.delete_alias(AliasName="alias/of-tests")

    def test_region_is_botos_where_the_uri_has_none(
        self, kms: Any, arn: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wrapper = open_wrapper(f"aws-kms:{arn.rpartition('/')[2]}")
        error = error_of(lambda: wrapper.wrap(KEY, BOUND))
        assert type(error) is ConfigurationError
        assert "?region=" in str(error)
        monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
        assert wrapper.unwrap([WrappedKey(wrapper.wrap(KEY, BOUND), BOUND)]) == [KEY]

    def test_key_that_does_not_exist_is_named(self, kms: Any) -> None:
        error = assert_may_be_retried(
            lambda: open_wrapper(f"aws-kms:{ARN}").wrap(KEY, BOUND), retryable=False
        )
        assert "NotFoundException" in str(error)
        assert ARN in str(error)
        assert set() == revealed_by(error, KEY)

    def test_log_without_the_filter_shows_the_key(self, kms: Any, arn: str, log: Log) -> None:
        """The control: what the application asks by itself is logged as before, also after a call of ours."""
        wrapper = open_wrapper(f"aws-kms:{arn}")
        wrapper.wrap(KEY, BOUND)
        kms.decrypt(CiphertextBlob=kms.encrypt(KeyId=arn, Plaintext=OTHER_KEY)["CiphertextBlob"])
        assert log.shows(OTHER_KEY) == {"botocore.endpoint", "botocore.parsers"}
        log.assert_hides(KEY)


class TestCommandLine:
    """``jwt-column keys`` with a KEK in AWS KMS."""

    @pytest.fixture
    def path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        path = tmp_path / "sessions.json"
        monkeypatch.setenv("JWT_COLUMN_KEYRING", f"file:{path}")
        return path

    def test_newest_key_material_wraps_after_rewrap(self, path: Path, kms: Any, arn: str) -> None:
        keys_report("init", "--wrapped-by", f"aws-kms:{arn}")
        kms.rotate_key_on_demand(KeyId=arn)
        before = wrapped_keys(path)
        keys_report("rewrap")
        assert not before & wrapped_keys(path)
        assert KeyRing.from_uri(f"file:{path}").active == keys_report("list")["keys"][0]["id"]

    def test_ring_moves_to_another_kek(self, path: Path, kms: Any, arn: str) -> None:
        keys_report("init", "--wrapped-by", f"aws-kms:{arn}")
        before = KeyRing.from_uri(f"file:{path}").key_ids
        other = kms.create_key()["KeyMetadata"]["Arn"]
        keys_report("rewrap", "--wrapped-by", f"aws-kms:{other}")
        assert {key["wrapped_by"] for key in keys_report("list")["keys"]} == {f"aws-kms:{other}"}
        assert arn not in path.read_text()
        assert KeyRing.from_uri(f"file:{path}").key_ids == before

    def test_kms_that_is_gone_is_said_in_one_line_and_by_the_exit_code(
        self, path: Path, kms: Any, arn: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys_report("init", "--wrapped-by", f"aws-kms:{arn}")
        ring = KeyRing.from_uri(f"file:{path}")
        with closed_port() as port:
            monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", f"http://127.0.0.1:{port}")
            done = invoke("keys", "add")
            assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (3, "", 1)
            assert arn in done.stderr
            with pytest.raises(KeyUnavailableError):
                ring.reload()
        assert ring.key_ids == (ring.active,), "A ring that is loaded goes on working."


class Stubbed(AWSKMSWrapper):
    """A wrapper whose client gives prepared answers."""

    def __init__(self, *answers: tuple[str, Any], rest: str = ARN) -> None:
        super().__init__(rest)
        self._answers = list(answers)
        self.asked = 0

    def _open_client(self, stack: ExitStack) -> Any:
        client = super()._open_client(stack)
        stubber = stack.enter_context(stub.Stubber(client))
        operation, answer = self._answers[self.asked]
        self.asked += 1
        if isinstance(answer, dict):
            stubber.add_response(operation, answer)
        else:
            code, status = answer
            stubber.add_client_error(operation, code, "of the stub", http_status_code=status)
        return client


WRAPPED = [WrappedKey(b"wrapped", BOUND)]


class TestErrorsOfAWS:
    """The errors that the reference of KMS lists for Encrypt, Decrypt and ReEncrypt."""

    @pytest.mark.parametrize(
        "code",
        [
            "DisabledException",
            "KMSInvalidStateException",
            "AccessDeniedException",
            "NotFoundException",
            "ExpiredTokenException",
            "UnrecognizedClientException",
            "CloudHsmClusterInvalidConfigurationException",
        ],
    )
    def test_what_somebody_has_to_mend_is_not_retried(self, code: str) -> None:
        refusal = (code, 400)
        for wrapper, call in (
            (encrypting := Stubbed(("encrypt", refusal)), lambda: encrypting.wrap(KEY, BOUND)),
            (decrypting := Stubbed(("decrypt", refusal)), lambda: decrypting.unwrap(WRAPPED)),
            (re_encrypting := Stubbed(("re_encrypt", refusal)), lambda: re_encrypting.rewrap(WRAPPED)),
        ):
            error = assert_may_be_retried(call, retryable=False)
            assert code in str(error)
            assert ARN in str(error)
            assert wrapper.asked == 1

    @pytest.mark.parametrize(
        ("code", "status"),
        [
            ("ThrottlingException", 400),
            ("KMSInternalException", 500),
            ("KeyUnavailableException", 500),
            ("DependencyTimeoutException", 503),
            ("SomethingNew", 502),
        ],
    )
    def test_what_passes_is_tried_again(self, code: str, status: int) -> None:
        passing = (code, status)
        wrapper = Stubbed(("decrypt", passing), ("decrypt", {"Plaintext": KEY}))
        assert wrapper.unwrap(WRAPPED) == [KEY]

    def test_what_does_not_pass_ends(self) -> None:
        wrapper = Stubbed(*[("decrypt", ("ThrottlingException", 400))] * 4)
        error = assert_may_be_retried(lambda: wrapper.unwrap(WRAPPED), retryable=True)
        assert "ThrottlingException" in str(error)
        assert wrapper.asked == 4

    @pytest.mark.parametrize("code", ["IncorrectKeyException", "InvalidCiphertextException"])
    def test_what_is_wrapped_otherwise_is_no_key_of_the_ring(self, code: str) -> None:
        error = refusal_of(lambda: Stubbed(("decrypt", (code, 400))).unwrap(WRAPPED))
        assert type(error) is KeyRingError
        assert error.key_id == BOUND.key_id

    @pytest.mark.parametrize("code", ["InvalidKeyUsageException", "ValidationException"])
    def test_key_that_is_no_kek_is_a_matter_of_configuration(self, code: str) -> None:
        error = error_of(lambda: Stubbed(("encrypt", (code, 400))).wrap(KEY, BOUND))
        assert type(error) is ConfigurationError
        assert code in str(error)
        assert set() == revealed_by(error, KEY)


class TestOutOfReach:
    """No AWS to talk to."""

    def test_server_that_is_gone_may_come_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with closed_port() as port:
            monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", f"http://127.0.0.1:{port}")
            error = assert_may_be_retried(lambda: AWSKMSWrapper(ARN).unwrap(WRAPPED), retryable=True)
        assert "EndpointConnectionError" in str(error)

    def test_server_that_hangs_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", f"http://127.0.0.1:{server.getsockname()[1]}")
            wrapper = AWSKMSWrapper(f"{ARN}?timeout=0.5")
            assert_may_be_retried(lambda: wrapper.unwrap(WRAPPED), retryable=True)

    def test_server_that_nobody_vouches_for_is_not_trusted(
        self, certificates: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = Cloud(certificates[1])
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", f"https://127.0.0.1:{server.port}")
        try:
            error = assert_may_be_retried(lambda: AWSKMSWrapper(ARN).unwrap(WRAPPED), retryable=False)
            assert "AWS_CA_BUNDLE" in str(error)
            assert server.requests == []
        finally:
            server.close()

    def test_credentials_that_are_missing_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        error = assert_may_be_retried(lambda: AWSKMSWrapper(ARN).unwrap(WRAPPED), retryable=False)
        assert "credentials" in str(error)

    def test_credentials_that_are_half_there_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        error = assert_may_be_retried(lambda: AWSKMSWrapper(ARN).unwrap(WRAPPED), retryable=False)
        assert "PartialCredentialsError" in str(error)

    def test_profile_that_is_missing_is_a_matter_of_configuration(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        error = error_of(lambda: AWSKMSWrapper(ARN).unwrap(WRAPPED))
        assert type(error) is ConfigurationError
        assert "AWS_PROFILE" in str(error)


class TestURI:
    """What may stand behind ``aws-kms:``."""

    @pytest.mark.parametrize(
        "rest",
        [
            ARN,
            f"{ARN}?timeout=2.5",
            f"{ARN}?region={REGION}",
            f"arn:aws-us-gov:kms:us-gov-west-1:{ACCOUNT}:alias/app/jwt",
            f"arn:aws:kms:{REGION}:{ACCOUNT}:key/mrk-1234abcd12ab34cd56ef1234567890ab",
            UUID,
            "alias/jwt?region=eu-central-1&timeout=300",
        ],
    )
    def test_uri_is_kept_and_nothing_is_reached(self, rest: str) -> None:
        with closed_port():
            assert open_wrapper(f"aws-kms:{rest}").uri == f"aws-kms:{rest}"

    @pytest.mark.parametrize(
        "rest",
        [
            "",
            "?region=eu-central-1",
            "//" + ARN,
            f"{ARN}/more",
            f"{ARN}\n",
            "arn:aws:s3:::bucket/key",
            f"arn:aws:kms:{REGION}:{ACCOUNT}:grant/x",
            "alias/",
            "a key",
            "secret-pin-4711!",
            f"{ARN}?region=us-east-1",
            f"{ARN}?region=",
            f"{ARN}?",
            f"{ARN}?timeout=0",
            f"{ARN}?timeout=-1",
            f"{ARN}?timeout=nan",
            f"{ARN}?timeout=inf",
            f"{ARN}?timeout=301",
            f"{ARN}?timeout=soon",
            f"{ARN}?timeout=1&timeout=2",
            f"{ARN}?password=secret-pin-4711!",
            f"{ARN}?secret-pin-4711!",
            f"{UUID}?region=eu central",
        ],
    )
    def test_anything_else_is_refused_and_not_shown(self, rest: str) -> None:
        assert_uri_is_refused(f"aws-kms:{rest}")

    def test_missing_extra_is_named_with_its_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "boto3.session", None)
        assert_extra_is_named(f"aws-kms:{ARN}", WRAPPED, "aws-kms")
