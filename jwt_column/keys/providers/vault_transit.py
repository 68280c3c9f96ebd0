"""``vault-transit:...``: a key of Vault's or OpenBao's secrets engine transit wraps data keys, and never leaves it.

A wrapped key is the server's ciphertext, ``vault:v1:...``. Its ring and key id are bound to it:

* under a key that was made with ``derived=true`` as the context, from which the server derives the encryption key;
* under any other key (``?derived=false``) as associated data, which the server's ``rewrap`` does not take.

Each attempt opens connections of its own, so a fork shares none.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ...errors import ConfigurationError, JWTColumnError, KeyRingError, KeyUnavailableError
from .attempts import attempt_within
from .sdk import import_sdk
from .vault_login import log_in
from .vault_uri import SCHEME, KEKName, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..wrapping import AssociatedData, WrappedKey

Result = TypeVar("Result")

_KEY_LENGTH: Final = 32
#: Items of one request. The server refuses JSON of more than 1,000 strings, and an item has four.
_BATCH: Final = 100


def open_wrapper(rest: str) -> TransitWrapper:
    """Return the wrapper of a ``vault-transit:`` URI, given without its scheme. Nothing is sent yet."""
    name = parse(rest)
    return DerivedTransitWrapper(name, rest) if name.derived == "true" else TransitWrapper(name, rest)


class TransitWrapper:
    """A key of transit that was made without ``derived=true``."""

    #: The parameter of transit that binds a wrapped key.
    _binding = "associated_data"

    def __init__(self, name: KEKName, rest: str) -> None:
        self._name = name
        #: The URI. It holds no secret.
        self.uri: str = f"{SCHEME}:{rest}"
        self._token: str | None = None

    def wrap(self, key: bytes, associated_data: AssociatedData) -> bytes:
        """Return the data key under the newest version of the KEK: about 90 bytes."""
        body = {"plaintext": b64encode(key).decode(), self._binding: _encoded(associated_data)}
        return self._ask(
            lambda client: self._ciphertext(self._post(client, "encrypt", body).get("ciphertext"))
        )

    def unwrap(self, wrapped: Sequence[WrappedKey]) -> list[bytes]:
        """Return the data keys, with one request per hundred."""
        return self._ask(lambda client: [self._key(text) for text in self._batch(client, "decrypt", wrapped)])

    def _batch(self, client: Any, what: str, wrapped: Sequence[WrappedKey]) -> list[Any]:
        """Return the result of an operation for each wrapped key."""
        items = [
            {"ciphertext": self._text_of(one), self._binding: _encoded(one.associated_data)}
            for one in wrapped
        ]
        results: list[Any] = []
        for start in range(0, len(items), _BATCH):
            results += self._post_batch(client, what, items[start : start + _BATCH])
        for one, result in zip(wrapped, results, strict=True):
            if result.get("error"):
                raise self._refused(one.associated_data.key_id, str(result["error"]))
        return [result.get("plaintext" if what == "decrypt" else "ciphertext") for result in results]

    def _text_of(self, wrapped: WrappedKey) -> str:
        if not wrapped.ciphertext.startswith(b"vault:v") or not wrapped.ciphertext.isascii():
            raise self._refused(wrapped.associated_data.key_id, "")
        return wrapped.ciphertext.decode()

    def _refused(self, key_id: str, reason: str) -> JWTColumnError:
        """Translate the error of one wrapped key. The server's text only selects our message."""
        if "too old" in reason:
            return KeyUnavailableError(
                f"{self.uri}: key {key_id} is wrapped by a version of the KEK below its min_decryption_version; lower "
                "that version, rewrap, and raise it again",
                key_id=key_id,
            )
        return self._request_error(reason) or KeyRingError(
            f"{self.uri} does not unwrap key {key_id}: it was changed, or wrapped by another KEK or for another key "
            "ring or key id",
            key_id=key_id,
        )

    def _request_error(self, reason: str) -> JWTColumnError | None:
        """Translate an error that concerns the KEK, not one wrapped key; None if the text is unknown."""
        if "encryption key not found" in reason:
            return KeyUnavailableError(f"{self.uri}: there is no such key; create it, or correct the URI")
        if "key derivation" in reason:
            return ConfigurationError(
                f"{self.uri}: the key was made with derived=true; remove derived=false from the URI"
            )
        if "non-AEAD" in reason or "unsupported operation" in reason or "does not support" in reason:
            return ConfigurationError(
                f"{self.uri}: a key of this type cannot wrap data keys; create one of type aes256-gcm96"
            )
        return None

    @property
    def _hvac(self) -> Any:
        return import_sdk("hvac", "vault")

    def _ask(self, use: Callable[[Any], Result]) -> Result:
        """Log in and return the result of *use*, which is given an open client."""
        seconds = self._name.timeout

        def attempt(left: float) -> Result:
            try:
                # A request that hangs leaves time for a second attempt.
                with self._client(left / 2) as client:
                    return self._use(client, use)
            except JWTColumnError:
                raise
            except Exception as error:  # noqa: BLE001 - the text of a foreign error may show a key.
                failure = self._error_of(error)
            raise failure

        return attempt_within(seconds, attempt, late=f"{self.uri}: Vault did not answer within {seconds:g} s")

    def _use(self, client: Any, use: Callable[[Any], Result]) -> Result:
        had_token = self._token is not None
        if self._token is None:
            self._token = self._log_in(client)
        client.token = self._token
        try:
            return use(client)
        except self._hvac.exceptions.Forbidden:
            if not had_token:
                raise
        # Vault refuses an expired token and one without permission with the same words. A new token tells them apart.
        client.token = self._token = self._log_in(client)
        return use(client)

    def _log_in(self, client: Any) -> str:
        answers = self._hvac.exceptions
        client.token = ""
        try:
            return log_in(self._name, client)
        except (answers.InvalidRequest, answers.Forbidden, answers.InvalidPath) as error:
            reason = type(error).__name__
        raise KeyUnavailableError(
            f"{self.uri}: Vault refuses the login by AppRole ({reason}); check role id, secret id and auth_mount"
        )

    @contextmanager
    def _client(self, seconds: float) -> Iterator[Any]:
        """Open connections for one attempt."""
        name = self._name
        ca = name.ca or os.environ.get("VAULT_CACERT")
        if ca is not None and not Path(ca).is_file():
            raise ConfigurationError(f"{self.uri}: the file of trusted certificates {ca} does not exist")
        client = self._hvac.Client(
            url=name.address(),
            token="",  # Otherwise hvac would search for a token by itself.
            verify=ca or True,
            timeout=max(seconds, 0.001),
            namespace=name.namespace or os.environ.get("VAULT_NAMESPACE"),
        )
        try:
            yield client
        finally:
            client.adapter.close()

    def _error_of(self, error: Exception) -> JWTColumnError:
        """Translate an error of hvac or requests."""
        requests = import_sdk("requests", "vault").exceptions
        answers = self._hvac.exceptions
        name = type(error).__name__
        if isinstance(error, requests.SSLError):
            return KeyUnavailableError(
                f"{self.uri}: the server's certificate is not trusted here; name its CA by ca= or VAULT_CACERT"
            )
        if isinstance(error, requests.RequestException):
            return KeyUnavailableError(f"{self.uri}: Vault was not reached ({name})", retryable=True)
        if isinstance(error, answers.VaultDown):
            return KeyUnavailableError(f"{self.uri}: Vault is sealed, or has no active node", retryable=True)
        if isinstance(error, answers.Forbidden | answers.Unauthorized):
            return KeyUnavailableError(
                f"{self.uri}: Vault refuses this caller; the token has expired, or its policy lacks 'update' on "
                f"{self._name.mount}/encrypt/{self._name.key}, decrypt/ and rewrap/"
            )
        if isinstance(error, answers.InvalidPath):
            return KeyUnavailableError(
                f"{self.uri}: no secrets engine is mounted at {self._name.mount}; enable it, or correct the URI"
            )
        if isinstance(error, answers.InvalidRequest):
            return self._request_error(str(error)) or KeyUnavailableError(
                f"{self.uri}: Vault refuses the request; its log says why"
            )
        # The rest are errors of the server (429, 5xx, a standby's statuses), or responses of something else.
        return KeyUnavailableError(
            f"{self.uri}: Vault cannot answer now ({name})", retryable=isinstance(error, answers.VaultError)
        )

    def _post(self, client: Any, what: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the data of a response."""
        return self._data_of(
            client.adapter.post(f"/v1/{self._name.mount}/{what}/{self._name.key}", json=body)
        )

    def _post_batch(self, client: Any, what: str, items: list[dict[str, str]]) -> list[dict[str, Any]]:
        """Return the server's result for each item; a failed item has an ``error``."""
        try:
            data = self._post(client, what, {"batch_input": items})
        except self._hvac.exceptions.InvalidRequest as error:
            # If some items fail the status may be 400, and the response holds the results nevertheless.
            if not isinstance(error.json, dict) or error.json.get("data") is None:
                raise
            data = self._data_of(error.json)
        results = data.get("batch_results")
        if not isinstance(results, list) or len(results) != len(items):
            raise self._strange()
        if not all(isinstance(result, dict) for result in results):
            raise self._strange()
        return results

    def _ciphertext(self, text: Any) -> bytes:
        """Return a ciphertext as a key-ring file stores it."""
        if not isinstance(text, str) or not text.startswith("vault:v") or not text.isascii():
            raise self._strange()
        return text.encode()

    def _key(self, text: Any) -> bytes:
        """Return the data key of a response."""
        try:
            key = b64decode(text, validate=True)
        except (Base64Error, TypeError, ValueError):
            key = b""
        if len(key) != _KEY_LENGTH:
            raise self._strange()
        return key

    def _data_of(self, answer: Any) -> dict[str, Any]:
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, dict):
            raise self._strange()
        return data

    def _strange(self) -> KeyUnavailableError:
        return KeyUnavailableError(
            f"{self.uri}: the response is not one of Vault's or OpenBao's transit engine"
        )


class DerivedTransitWrapper(TransitWrapper):
    """A key of transit that was made with ``derived=true``; the server can rewrap keys under it."""

    _binding = "context"

    def __init__(self, name: KEKName, rest: str) -> None:
        super().__init__(name, rest)
        self._is_known_to_derive = False

    def wrap(self, key: bytes, associated_data: AssociatedData) -> bytes:
        """Return the data key under the newest version of the KEK: about 90 bytes."""
        wrapped = super().wrap(key, associated_data)
        if not self._is_known_to_derive:
            self._ask(self._check_derivation)
            self._is_known_to_derive = True
        return wrapped

    def rewrap(self, wrapped: Sequence[WrappedKey]) -> list[bytes]:
        """Return the keys under the newest version of the KEK; no data key leaves the server."""
        return self._ask(
            lambda client: [self._ciphertext(text) for text in self._batch(client, "rewrap", wrapped)]
        )

    def _check_derivation(self, client: Any) -> None:
        """Refuse a key that does not derive: it would ignore the context and bind nothing."""
        try:
            self._post(client, "encrypt", {"plaintext": b64encode(bytes(_KEY_LENGTH)).decode()})
        except self._hvac.exceptions.InvalidRequest:
            return
        raise ConfigurationError(
            f"{self.uri}: the key was not made with derived=true, so nothing would bind a wrapped key to its ring; "
            "create one that is, or add derived=false behind the ? to bind by associated data"
        )


def _encoded(associated_data: AssociatedData) -> str:
    return b64encode(associated_data.to_bytes()).decode()
