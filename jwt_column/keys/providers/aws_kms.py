"""``aws-kms:KEY``: a symmetric key of AWS KMS wraps data keys, and never leaves it.

The encryption context binds a wrapped key to its ring and key id. CloudTrail logs it, and key policies can require
it. boto3 finds credentials, proxies and endpoints by itself.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ...errors import ConfigurationError, KeyUnavailableError
from ..process import PerProcess
from .cloud import CloudWrapper
from .parameters import split_parameters
from .sdk import import_sdk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack

    from ...errors import JWTColumnError
    from ..wrapping import AssociatedData, WrappedKey

_ALGORITHM: Final = "SYMMETRIC_DEFAULT"

_ARN: Final = re.compile(
    r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):[0-9]{12}:(key/[A-Za-z0-9-]+|alias/[A-Za-z0-9/_-]+)"
)
_KEY_ID: Final = re.compile(r"[A-Za-z0-9-]+|alias/[A-Za-z0-9/_-]+")
_REGION: Final = re.compile(r"[a-z0-9-]+")

#: Transient error codes, of KMS and of AWS in general.
_PASSING: Final = (
    "DependencyTimeoutException", "InternalFailure", "KMSInternalException", "KeyUnavailableException",
    "LimitExceededException", "RequestLimitExceeded", "RequestTimeout", "ServiceUnavailable", "Throttling",
    "ThrottlingException", "TooManyRequestsException",
)  # fmt: skip

#: Error codes for a KEK that is not a symmetric encryption key.
_WRONG_KEY: Final = frozenset({"InvalidArnException", "InvalidKeyUsageException", "ValidationException"})
#: Error codes of Decrypt and ReEncrypt about the wrapped key itself.
_WRONG_CIPHERTEXT: Final = frozenset({"IncorrectKeyException", "InvalidCiphertextException"})
#: Remedies for the other error codes.
_REMEDIES: Final[Mapping[str, str]] = {
    "AccessDeniedException": "allow this caller kms:Encrypt and kms:Decrypt for the key",
    "DisabledException": "the key is disabled; enable it",
    "ExpiredTokenException": "the credentials have expired; renew them",
    "KMSInvalidStateException": "the key is pending deletion, or its key store is not connected; cancel the deletion "
    "while there is time",
    "NotFoundException": "there is no such key or alias in this account and region",
    "UnrecognizedClientException": "AWS does not know these credentials",
}


class AWSKMSWrapper(CloudWrapper):
    """One symmetric key of AWS KMS.

    Args:
        rest: The ARN of a key or alias, or a key id or ``alias/NAME``. ``region=`` is the region of the latter, by
            default boto3's. ``timeout=`` limits a call, in seconds, retries included.
    """

    scheme = "aws-kms"
    system = "AWS KMS"
    # At DEBUG they log bodies.
    loggers: ClassVar[tuple[str, ...]] = ("botocore.endpoint", "botocore.parsers")

    def __init__(self, rest: str) -> None:
        key, parameters = split_parameters(rest, self.scheme, "region", "timeout")
        super().__init__(rest, parameters)
        arn = _ARN.fullmatch(key)
        region = parameters.get("region")
        if arn is None and not _KEY_ID.fullmatch(key):
            raise ConfigurationError(
                "aws-kms: is followed by the ARN of a key, as in aws-kms:arn:aws:kms:eu-central-1:123456789012:key/"
                "1234abcd-12ab-34cd-56ef-1234567890ab, by the ARN of an alias, or by a key id or alias/NAME and its "
                "?region="
            )
        if region is not None and not _REGION.fullmatch(region):
            raise ConfigurationError("region= is the name of an AWS region, as in eu-central-1")
        if arn is not None and region not in (None, arn["region"]):
            raise ConfigurationError("the ARN names another region than region= does; leave region= out")
        self._key = key
        self._region = region if arn is None else arn["region"]
        self._session: PerProcess[Any] = PerProcess(self._open_session)

    def rewrap(self, wrapped: Sequence[WrappedKey]) -> list[bytes]:
        """Return the keys under the newest key material of the KEK, by one ReEncrypt each."""
        return self._each(self._re_encrypt, wrapped)

    def _encrypt(self, client: Any, key: bytes, associated_data: AssociatedData) -> bytes:
        answer = client.encrypt(
            KeyId=self._key,
            Plaintext=key,
            EncryptionContext=associated_data.to_mapping(),
            EncryptionAlgorithm=_ALGORITHM,
        )
        return bytes(answer["CiphertextBlob"])

    def _decrypt(self, client: Any, ciphertext: bytes, associated_data: AssociatedData) -> bytes:
        answer = client.decrypt(
            # Without it KMS takes any key that the ciphertext names, also one of another account.
            KeyId=self._key,
            CiphertextBlob=ciphertext,
            EncryptionContext=associated_data.to_mapping(),
            EncryptionAlgorithm=_ALGORITHM,
        )
        return bytes(answer["Plaintext"])

    def _re_encrypt(self, client: Any, ciphertext: bytes, associated_data: AssociatedData) -> bytes:
        context = associated_data.to_mapping()
        answer = client.re_encrypt(
            CiphertextBlob=ciphertext,
            SourceKeyId=self._key,
            SourceEncryptionContext=context,
            SourceEncryptionAlgorithm=_ALGORITHM,
            DestinationKeyId=self._key,
            DestinationEncryptionContext=context,
            DestinationEncryptionAlgorithm=_ALGORITHM,
        )
        return bytes(answer["CiphertextBlob"])

    def _open_session(self) -> Any:
        # Kept for later calls: it takes longer to make than a call. It holds credentials, locks and no connections.
        return import_sdk("boto3.session", self.scheme).Session(region_name=self._region)

    def _open_client(self, stack: ExitStack) -> Any:
        config = import_sdk("botocore.config", self.scheme).Config(
            connect_timeout=self._patience,
            read_timeout=self._patience,
            # attempt_within() retries; boto3's retries would multiply that.
            retries={"total_max_attempts": 1, "mode": "standard"},
        )
        client = self._session.get().client("kms", config=config)
        stack.callback(client.close)
        return client

    def _error_of(self, error: Exception, key_id: str | None) -> JWTColumnError:
        exceptions = import_sdk("botocore.exceptions", self.scheme)
        if isinstance(error, exceptions.ClientError):
            return self._refusal(getattr(error, "response", {}), key_id)
        name = type(error).__name__
        if isinstance(error, exceptions.NoCredentialsError):
            return KeyUnavailableError(
                f"{self.uri}: boto3 finds no AWS credentials; give this process a role, a profile or access keys"
            )
        misconfigured = (
            exceptions.NoRegionError, exceptions.InvalidRegionError, exceptions.ProfileNotFound,
            exceptions.ConfigNotFound, exceptions.ConfigParseError,
        )  # fmt: skip

        if isinstance(error, misconfigured):
            return ConfigurationError(
                f"{self.uri}: boto3 is misconfigured ({name}); put the key's ARN, or ?region=, into the URI, and check "
                "AWS_PROFILE and the configuration file of AWS"
            )
        if isinstance(error, exceptions.SSLError):
            return self._untrusted("AWS_CA_BUNDLE")
        unreached = (
            exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.CredentialRetrievalError,
            exceptions.MetadataRetrievalError,
        )  # fmt: skip

        if isinstance(error, unreached):
            return self._unreached(name)
        return KeyUnavailableError(f"{self.uri}: boto3 could not call AWS KMS ({name})")

    def _refusal(self, response: Any, key_id: str | None) -> JWTColumnError:
        """Translate an error response of KMS."""
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _WRONG_CIPHERTEXT and key_id is not None:
            return self._not_wrapped(key_id, code, "the alias now leads to another KEK")
        if code in _WRONG_KEY:
            return self._not_symmetric(code)
        if code in _PASSING or status >= 500:
            return self._busy(code)
        return self._refused(code, _REMEDIES.get(code))


open_wrapper = AWSKMSWrapper
