"""``aws-kms:KEY``: a symmetric key of AWS KMS wraps data keys, and never leaves it.

The wrapped key is bound to its ring and key id by the encryption context, which CloudTrail logs and key policies can
ask for. Credentials, proxies and endpoints are boto3's own affair.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Protocol

from ...errors import ConfigurationError, KeyRingError, KeyUnavailableError
from .cloud import CloudWrapper
from .parameters import split_parameters
from .sdk import import_sdk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack

    from ...errors import JWTColumnError
    from ..wrapping import AssociatedData, WrappedKey

__all__ = ["AWSKMSWrapper", "open_wrapper"]

_ALGORITHM: Final = "SYMMETRIC_DEFAULT"

_ARN: Final = re.compile(
    r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):[0-9]{12}:(key/[A-Za-z0-9-]+|alias/[A-Za-z0-9/_-]+)"
)
_KEY_ID: Final = re.compile(r"[A-Za-z0-9-]+|alias/[A-Za-z0-9/_-]+")
_REGION: Final = re.compile(r"[a-z0-9-]+")

#: Error codes of KMS and of AWS in general after which the same call may work.
_PASSING: Final = frozenset(
    {
        "DependencyTimeoutException",
        "InternalFailure",
        "KMSInternalException",
        "KeyUnavailableException",
        "LimitExceededException",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
#: Error codes that say that the key which was named is no key for this.
_WRONG_KEY: Final = frozenset({"InvalidArnException", "InvalidKeyUsageException", "ValidationException"})
#: Error codes of Decrypt and ReEncrypt about the wrapped key itself.
_WRONG_CIPHERTEXT: Final = frozenset({"IncorrectKeyException", "InvalidCiphertextException"})
#: What to do about the others.
_REMEDIES: Final[Mapping[str, str]] = {
    "AccessDeniedException": "allow this caller kms:Encrypt and kms:Decrypt for the key",
    "DisabledException": "the key is disabled; enable it",
    "ExpiredTokenException": "the credentials have expired; renew them",
    "KMSInvalidStateException": "the key is pending deletion, or its key store is not connected; cancel the deletion "
    "while there is time",
    "NotFoundException": "there is no such key or alias in this account and region",
    "UnrecognizedClientException": "the credentials are none that AWS knows",
}


class _Client(Protocol):
    """What is used of boto3's client of KMS, which has no types."""

    def encrypt(self, **parameters: Any) -> dict[str, Any]: ...
    def decrypt(self, **parameters: Any) -> dict[str, Any]: ...
    def re_encrypt(self, **parameters: Any) -> dict[str, Any]: ...
    def close(self) -> None: ...


def open_wrapper(rest: str) -> AWSKMSWrapper:
    """Return the wrapper of what follows ``aws-kms:``. Nothing is reached yet.

    Raises:
        ConfigurationError: It names no key.
    """
    return AWSKMSWrapper(rest)


class AWSKMSWrapper(CloudWrapper[_Client]):
    """One symmetric key of AWS KMS.

    Args:
        rest: The ARN of a key or alias, or a key id or ``alias/NAME`` with ``?region=`` behind it; without a region
            it is boto3's. ``timeout=`` is how many seconds a call may take, retries included.
    """

    scheme = "aws-kms"
    system = "AWS KMS"
    # They write bodies at DEBUG.
    loggers = ("botocore.endpoint", "botocore.parsers")

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
        self._session: Any = None

    def wrap(self, key: bytes, associated_data: AssociatedData) -> bytes:
        """Return the data key under the KEK, by Encrypt."""
        return self._each(self._encrypt, [(key, associated_data)])[0]

    def unwrap(self, wrapped: Sequence[WrappedKey]) -> list[bytes]:
        """Return the data keys, by one Decrypt each."""
        return self._each(self._decrypt, wrapped)

    def rewrap(self, wrapped: Sequence[WrappedKey]) -> list[bytes]:
        """Return the keys under the newest key material of the KEK, by one ReEncrypt each."""
        return self._each(self._re_encrypt, wrapped)

    def _encrypt(self, client: _Client, key: bytes, associated_data: AssociatedData) -> bytes:
        answer = client.encrypt(
            KeyId=self._key,
            Plaintext=key,
            EncryptionContext=associated_data.to_mapping(),
            EncryptionAlgorithm=_ALGORITHM,
        )
        return bytes(answer["CiphertextBlob"])

    def _decrypt(self, client: _Client, ciphertext: bytes, associated_data: AssociatedData) -> bytes:
        answer = client.decrypt(
            # Without it KMS takes the key that the ciphertext names, also one of somebody else.
            KeyId=self._key,
            CiphertextBlob=ciphertext,
            EncryptionContext=associated_data.to_mapping(),
            EncryptionAlgorithm=_ALGORITHM,
        )
        return bytes(answer["Plaintext"])

    def _re_encrypt(self, client: _Client, ciphertext: bytes, associated_data: AssociatedData) -> bytes:
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

    def _open_client(self, stack: ExitStack) -> _Client:
        if self._session is None:
            # It holds credentials and no connections, and takes longer to make than the rest of a call.
            self._session = import_sdk("boto3.session", self.scheme).Session(region_name=self._region)
        config = import_sdk("botocore.config", self.scheme).Config(
            connect_timeout=self._patience,
            read_timeout=self._patience,
            # The attempts are ours, and boto3's would multiply them.
            retries={"total_max_attempts": 1, "mode": "standard"},
        )
        client: _Client = self._session.client("kms", config=config)
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
            exceptions.NoRegionError,
            exceptions.InvalidRegionError,
            exceptions.ProfileNotFound,
            exceptions.ConfigNotFound,
            exceptions.ConfigParseError,
        )
        if isinstance(error, misconfigured):
            return ConfigurationError(
                f"{self.uri}: boto3 is set up wrongly ({name}); put the key's ARN, or ?region=, into the URI, and "
                "look at AWS_PROFILE and the configuration file of AWS"
            )
        if isinstance(error, exceptions.SSLError):
            return KeyUnavailableError(
                f"{self.uri}: the certificate of AWS KMS is not trusted here; look at AWS_CA_BUNDLE and at proxies"
            )
        unreached = (
            exceptions.ConnectionError,
            exceptions.HTTPClientError,
            exceptions.CredentialRetrievalError,
            exceptions.MetadataRetrievalError,
        )
        if isinstance(error, unreached):
            return KeyUnavailableError(f"{self.uri}: AWS KMS was not reached ({name})", retryable=True)
        return KeyUnavailableError(f"{self.uri}: boto3 could not ask AWS KMS ({name})")

    def _refusal(self, response: Any, key_id: str | None) -> JWTColumnError:
        """Return our error for an answer of KMS that is one."""
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _WRONG_CIPHERTEXT:
            return KeyRingError(
                f"{self.uri}: AWS KMS says that this KEK did not wrap key {key_id} for this key ring ({code}); the "
                "key-ring file was changed, or an alias leads to another KEK than it did",
                key_id=key_id,
            )
        if code in _WRONG_KEY:
            return ConfigurationError(
                f"{self.uri}: AWS KMS says that this is not the name of a symmetric encryption key ({code})"
            )
        if code in _PASSING or status >= 500:
            return KeyUnavailableError(f"{self.uri}: AWS KMS cannot answer now ({code})", retryable=True)
        remedy = _REMEDIES.get(code, "somebody has to act before a retry helps")
        return KeyUnavailableError(f"{self.uri}: AWS KMS refuses ({code}): {remedy}")
