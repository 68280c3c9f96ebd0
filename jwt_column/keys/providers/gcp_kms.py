"""``gcp-kms:KEY``: a symmetric key of Google Cloud KMS wraps data keys, and never leaves it.

Additional authenticated data binds a wrapped key to its ring and key id. Requests and responses carry checksums, as
Google's guidelines for data integrity require. google-auth finds credentials and proxies by itself.

The transport is REST, not gRPC, whose threads do not survive ``fork``: rings are loaded before and after it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ...errors import ConfigurationError, KeyUnavailableError
from .cloud import CloudWrapper
from .parameters import split_parameters
from .sdk import import_sdk

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack

    from ...errors import JWTColumnError
    from ..wrapping import AssociatedData

_NAME: Final = re.compile(
    r"projects/[A-Za-z0-9:._-]+/locations/[a-z0-9-]+/keyRings/[A-Za-z0-9_-]+/cryptoKeys/[A-Za-z0-9_-]+"
)
_ENDPOINT: Final = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?")

#: Remedies by HTTP status.
_REMEDIES: Final[Mapping[int, str]] = {
    401: "Google does not accept the credentials of this process",
    403: "give this caller the role roles/cloudkms.cryptoKeyEncrypterDecrypter on the key, and check that the API of "
    "Cloud KMS is enabled",
    404: "there is no such key",
}


class GCPKMSWrapper(CloudWrapper):
    """One symmetric key of Google Cloud KMS.

    Args:
        rest: The resource name of a key, without a version: Cloud KMS wraps with the primary version and finds the one
            that unwraps by itself. ``endpoint=`` is the host of a regional or private endpoint, ``timeout=`` limits
            a call, in seconds, retries included.
    """

    scheme = "gcp-kms"
    system = "Cloud KMS"
    # At DEBUG they log bodies; google-auth only those that are given as bytes.
    loggers: ClassVar[tuple[str, ...]] = (
        "google.auth.transport.requests",
        "google.cloud.kms_v1.services.key_management_service.transports.rest",
    )

    def __init__(self, rest: str) -> None:
        name, parameters = split_parameters(rest, self.scheme, "endpoint", "timeout")
        super().__init__(rest, parameters)
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                "gcp-kms: is followed by the resource name of a key, without a version, as in "
                "gcp-kms:projects/my-project/locations/europe-west3/keyRings/my-ring/cryptoKeys/jwt-column"
            )
        endpoint = parameters.get("endpoint")
        if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):
            raise ConfigurationError(
                "endpoint= is a host, as in cloudkms.europe-west3.rep.googleapis.com; it is reached by HTTPS"
            )
        self._name = name
        self._options = {} if endpoint is None else {"api_endpoint": endpoint}

    def _encrypt(self, client: Any, key: bytes, associated_data: AssociatedData) -> bytes:
        request = self._request(associated_data, plaintext=key)
        answer = client.encrypt(request=request, retry=None, timeout=self._patience)
        ciphertext = bytes(answer.ciphertext)
        self._check_transport(
            answer.name.startswith(f"{self._name}/cryptoKeyVersions/")
            and answer.verified_plaintext_crc32c
            and answer.verified_additional_authenticated_data_crc32c
            and answer.ciphertext_crc32c == self._checksum(ciphertext)
        )
        return ciphertext

    def _decrypt(self, client: Any, ciphertext: bytes, associated_data: AssociatedData) -> bytes:
        request = self._request(associated_data, ciphertext=ciphertext)
        answer = client.decrypt(request=request, retry=None, timeout=self._patience)
        key = bytes(answer.plaintext)
        self._check_transport(answer.plaintext_crc32c == self._checksum(key))
        return key

    def _request(self, associated_data: AssociatedData, **parts: bytes) -> dict[str, Any]:
        """Return a request of these parts and the associated data, each with its checksum."""
        parts["additional_authenticated_data"] = associated_data.to_bytes()
        checksums = {f"{name}_crc32c": self._checksum(data) for name, data in parts.items()}
        return {"name": self._name, **parts, **checksums}

    def _checksum(self, data: bytes) -> int:
        """Return the CRC-32C (RFC 3720) of some bytes."""
        return int(import_sdk("google_crc32c", self.scheme).value(data))

    def _check_transport(self, intact: bool) -> None:
        """Raise if a checksum of the request or of the response is wrong."""
        if not intact:
            raise KeyUnavailableError(
                f"{self.uri}: the checksum of a request or response of Cloud KMS is wrong; it was damaged on its way",
                retryable=True,
            )

    def _open_client(self, stack: ExitStack) -> Any:
        kms = import_sdk("google.cloud.kms_v1", self.scheme)
        client = kms.KeyManagementServiceClient(transport="rest", client_options=self._options)
        stack.callback(client.transport.close)
        return client

    def _error_of(self, error: Exception, key_id: str | None) -> JWTColumnError:
        answers = import_sdk("google.api_core.exceptions", self.scheme)
        if isinstance(error, answers.GoogleAPICallError):
            return self._refusal(error, key_id)
        name = type(error).__name__
        credentials = import_sdk("google.auth.exceptions", self.scheme)
        if isinstance(error, credentials.DefaultCredentialsError):
            return KeyUnavailableError(
                f"{self.uri}: google-auth finds no credentials; attach a service account to this machine or workload, "
                "or set GOOGLE_APPLICATION_CREDENTIALS to a file with credentials"
            )
        transport = import_sdk("requests.exceptions", self.scheme)
        if isinstance(error, transport.SSLError):
            return self._untrusted("REQUESTS_CA_BUNDLE")
        unreached = (transport.ConnectionError, transport.Timeout, credentials.TransportError)
        if isinstance(error, unreached) or getattr(error, "retryable", False):
            return self._unreached(name)
        return KeyUnavailableError(f"{self.uri}: google-cloud-kms could not call Cloud KMS ({name})")

    def _refusal(self, error: Any, key_id: str | None) -> JWTColumnError:
        """Translate an error response of Cloud KMS."""
        code, status = int(error.code or 0), _status_of(error.response)
        answer = f"{code} {status}".strip()
        if status == "FAILED_PRECONDITION":
            return KeyUnavailableError(
                f"{self.uri}: Cloud KMS refuses ({answer}): the version of the key that is needed is disabled or "
                "destroyed; enable it, or restore it while there is time"
            )
        if code == 400 and key_id is not None:
            return self._not_wrapped(key_id, answer, "the KEK is not a symmetric key")
        if code == 400:
            return self._not_symmetric(answer)
        if code in (408, 409, 429) or code >= 500:
            return self._busy(answer)
        return self._refused(answer, _REMEDIES.get(code))


open_wrapper = GCPKMSWrapper


def _status_of(response: Any) -> str:
    """Return the name of the error, as in ``PERMISSION_DENIED``: HTTP status 400 alone has several meanings."""
    try:
        status = response.json()["error"]["status"]
    except (AttributeError, KeyError, TypeError, ValueError):
        return ""
    # The name goes into a message; other text, as of a proxy, does not.
    return status if isinstance(status, str) and re.fullmatch(r"[A-Z_]{1,40}", status) else ""
