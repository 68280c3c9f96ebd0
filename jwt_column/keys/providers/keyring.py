"""``keyring:SERVICE/USER``: keys in the operating system's key store, through the package ``keyring``.

The Secret Service of a Linux desktop, the Keychain of macOS, the Credential Locker of Windows: for developers'
machines. The secret has the form of ``env:``, keys with commas between them, the first one active:
``jwt-column keys generate | keyring set SERVICE USER``. It needs the extra ``keyring``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from ...errors import ConfigurationError, KeyUnavailableError, MissingExtraError
from .env import keys_of, split
from .local import LocalWrapper

if TYPE_CHECKING:
    from ..data_key import DataKey
    from ..wrapping import KeyWrapper


def open_wrapper(rest: str) -> KeyWrapper:
    """Return the wrapper whose KEK is the first key of an entry."""
    return LocalWrapper(KeyringSource(rest))


class KeyringSource:
    """The keys in one entry of the operating system's key store."""

    def __init__(self, rest: str) -> None:
        service, _, user = rest.partition("/")
        self._service, self._user = unquote(service), unquote(user)
        if not self._service or not self._user or "/" in user:
            raise ConfigurationError(
                "keyring: is followed by a service and a user of the operating system's key store, as in "
                "keyring:jwt-column/app"
            )
        #: The URI. It holds no secret.
        self.name: str = f"keyring:{quote(self._service, safe='')}/{quote(self._user, safe='')}"

    def load(self) -> tuple[DataKey, ...]:
        """Return the keys, the active one first."""
        try:
            import keyring
            from keyring.errors import KeyringError, KeyringLocked
        except ModuleNotFoundError:
            raise MissingExtraError(
                'keyring: needs the package keyring; run: pip install "jwt-column[keyring]"'
            ) from None
        try:
            text = keyring.get_password(self._service, self._user)
        except KeyringError as error:
            # A locked store opens when its user logs in.
            reason, retryable = type(error).__name__, isinstance(error, KeyringLocked)
        else:
            parts = split(text or "")
            if parts:
                return keys_of(parts, self.name)
            reason, retryable = "it holds no key under this name", False
        raise KeyUnavailableError(
            f"the operating system's key store has no usable key for {self.name} ({reason}); 'jwt-column keys generate "
            "| keyring set SERVICE USER' stores one",
            retryable=retryable,
        )


open_source = KeyringSource
