"""``azure-keyvault:KEY``: a key of Azure Key Vault, or of a Managed HSM, wraps data keys and never leaves it.

Key Vault has RSA keys, and RSA-OAEP-256 takes no associated data. The plaintext is therefore the data key and the
SHA-256 of its associated data, 64 bytes together; unwrapping checks the second half. The AES keys of a Managed HSM
authenticate associated data themselves (``?algorithm=A256GCM``).

A wrapped key is one byte with the length of the KEK's version, the version in ASCII, and then either the RSA ciphertext
or a nonce of 12 bytes, 32 bytes of ciphertext and a tag of 16 bytes.

azure-identity finds credentials and proxies by itself.
"""

from __future__ import annotations

import hashlib
import re
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ...errors import ConfigurationError, KeyRingError, KeyUnavailableError
from ...format import base64url
from ...format.aead import KEY_LENGTH
from .cloud import CloudWrapper
from .parameters import split_parameters
from .sdk import import_sdk

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack

    from ...errors import JWTColumnError
    from ..wrapping import AssociatedData

_KEY: Final = re.compile(
    r"(?P<vault>https://[A-Za-z0-9.-]+(:[0-9]{1,5})?)/keys/(?P<name>[A-Za-z0-9-]{1,127})(/(?P<version>[A-Za-z0-9]{1,64}))?"
)
_VERSION: Final = re.compile(r"[A-Za-z0-9]{1,64}")

_RSA: Final = "RSA-OAEP-256"
_AES: Final = "A256GCM"
_NONCE_LENGTH: Final = 12
_TAG_LENGTH: Final = 16

#: Remedies by HTTP status.
_REMEDIES: Final[Mapping[int, str]] = {
    401: "the vault does not accept the credentials of this process",
    403: "give this caller the role 'Key Vault Crypto User' (on a Managed HSM 'Managed HSM Crypto User'), and check "
    "that the key is enabled and that the vault's firewall admits this machine",
    404: "there is no such key, or it is deleted; recover it while there is time",
}


class AzureKeyVaultWrapper(CloudWrapper):
    """One key of Azure Key Vault, or of a Managed HSM.

    Args:
        rest: The key's identifier. With a version, only that version wraps and unwraps; without, the newest version
            wraps, and each key is unwrapped by the version that wrapped it. ``algorithm=`` is ``RSA-OAEP-256``, the
            default, or ``A256GCM``; ``timeout=`` limits a call, in seconds, retries included.
    """

    scheme = "azure-keyvault"
    system = "Key Vault"
    # The SDK logs bodies on request only (logging_enable).
    loggers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, rest: str) -> None:
        key, parameters = split_parameters(rest, self.scheme, "algorithm", "timeout")
        super().__init__(rest, parameters)
        match = _KEY.fullmatch(key)
        if match is None:
            raise ConfigurationError(
                "azure-keyvault: is followed by the identifier of a key, as in "
                "azure-keyvault:https://my-vault.vault.azure.net/keys/jwt-column"
            )
        self._algorithm = parameters.get("algorithm", _RSA)
        if self._algorithm not in (_RSA, _AES):
            raise ConfigurationError(f"algorithm= is {_RSA}, or {_AES} for an AES key of a Managed HSM")
        self._vault, self._name, self._version = match["vault"], match["name"], match["version"]

    def _encrypt(self, client: Any, key: bytes, associated_data: AssociatedData) -> bytes:
        # A wrapped key must name the version that unwraps it; without one in the URI, the newest wraps.
        version = self._version or str(client.get_key(self._name).properties.version)
        bound = associated_data.to_bytes()
        if self._algorithm == _RSA:
            digest = hashlib.sha256(bound).digest()
            payload = self._post(client, version, "wrapkey", value=key + digest)["value"]
        else:
            # The HSM chooses the nonce.
            answer = self._post(client, version, "encrypt", value=key, aad=bound)
            payload = answer["iv"] + answer["value"] + answer["tag"]
        return bytes([len(version)]) + version.encode() + payload

    def _decrypt(self, client: Any, ciphertext: bytes, associated_data: AssociatedData) -> bytes:
        version, payload = self._unpack(ciphertext, associated_data)
        bound = associated_data.to_bytes()
        if self._algorithm == _RSA:
            content = self._post(client, version, "unwrapkey", value=payload)["value"]
            # The digest is no secret. The comparison also checks the length.
            if not compare_digest(content[KEY_LENGTH:], hashlib.sha256(bound).digest()):
                raise self._not_wrapped_here(associated_data)
            return content[:KEY_LENGTH]
        if len(payload) != _NONCE_LENGTH + KEY_LENGTH + _TAG_LENGTH:
            raise self._not_wrapped_here(associated_data)
        iv, key, tag = payload[:_NONCE_LENGTH], payload[_NONCE_LENGTH:-_TAG_LENGTH], payload[-_TAG_LENGTH:]
        return self._post(client, version, "decrypt", value=key, iv=iv, tag=tag, aad=bound)["value"]

    def _post(self, client: Any, version: str, operation: str, **parts: bytes) -> dict[str, bytes]:
        """Return the parts of the response to one operation with the key.

        It uses the client's own pipeline. CryptographyClient would fetch the key first, which costs a second call and
        needs another permission.
        """
        request = import_sdk("azure.core.rest", self.scheme).HttpRequest(
            "POST",
            f"{self._vault}/keys/{self._name}/{version}/{operation}",
            json={"alg": self._algorithm, **{name: base64url.encode(part) for name, part in parts.items()}},
        )
        response = client.send_request(request)
        response.raise_for_status()
        answer = response.json()
        return {
            name: _bytes_of(answer[name]) for name in ("value", "iv", "tag") if answer.get(name) is not None
        }

    def _unpack(self, ciphertext: bytes, associated_data: AssociatedData) -> tuple[str, bytes]:
        """Return the parts of a wrapped key: the version of the KEK, and the payload."""
        end = 1 + ciphertext[0] if ciphertext else 1
        version = ciphertext[1:end].decode("latin-1")
        # The version becomes part of a path; and if the URI names one, no other may unwrap.
        if not _VERSION.fullmatch(version) or self._version not in (None, version):
            raise self._not_wrapped_here(associated_data)
        return version, ciphertext[end:]

    def _not_wrapped_here(self, associated_data: AssociatedData) -> KeyRingError:
        key_id = associated_data.key_id
        return KeyRingError(
            f"{self.uri}: this KEK did not wrap key {key_id} for this key ring; the key-ring file was changed",
            key_id=key_id,
        )

    def _open_client(self, stack: ExitStack) -> Any:
        credential = import_sdk("azure.identity", self.scheme).DefaultAzureCredential()
        stack.callback(credential.close)
        client = import_sdk("azure.keyvault.keys", self.scheme).KeyClient(
            self._vault,
            credential,
            connection_timeout=self._patience,
            read_timeout=self._patience,
            # attempt_within() retries; the pipeline's retries would multiply that.
            retry_total=0,
            logging_enable=False,
        )
        stack.callback(client.close)
        return client

    def _error_of(self, error: Exception, key_id: str | None) -> JWTColumnError:
        answers = import_sdk("azure.core.exceptions", self.scheme)
        name = type(error).__name__
        status = getattr(error, "status_code", None)
        if isinstance(error, answers.HttpResponseError) and status is not None:
            return self._refusal(status, key_id)
        if isinstance(error, answers.ClientAuthenticationError):
            return KeyUnavailableError(
                f"{self.uri}: azure-identity finds no credentials that work ({name}); give this machine or workload a "
                "managed identity, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and a secret or certificate"
            )
        inner = getattr(error, "inner_exception", None)
        if isinstance(inner, import_sdk("requests.exceptions", self.scheme).SSLError):
            return self._untrusted("REQUESTS_CA_BUNDLE")
        if isinstance(error, answers.ServiceRequestError | answers.ServiceResponseError):
            return self._unreached(name)
        return KeyUnavailableError(f"{self.uri}: azure-keyvault-keys could not call Key Vault ({name})")

    def _refusal(self, status: int, key_id: str | None) -> JWTColumnError:
        """Translate an error response."""
        if status == 400 and key_id is not None:
            return self._not_wrapped(key_id, "400", "the KEK is not a key for this algorithm")
        if status == 400:
            return ConfigurationError(
                f"{self.uri}: Key Vault cannot wrap with this key by {self._algorithm} (400); check its type and its "
                "permitted operations"
            )
        if status in (408, 409, 429) or status >= 500:
            return self._busy(str(status))
        return self._refused(str(status), _REMEDIES.get(status))


open_wrapper = AzureKeyVaultWrapper


def _bytes_of(text: str) -> bytes:
    """Decode base64url."""
    data = base64url.decode(text)
    if data is None:
        raise ValueError("the answer is not in base64url")
    return data
