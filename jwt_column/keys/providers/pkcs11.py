"""``pkcs11:...``: an AES-256 key of an HSM wraps data keys, and never leaves it (RFC 7512 URIs, python-pkcs11).

Each call opens a session of its own, so none can be lost, or shared by a fork. If the application is logged in to the
token already, that login is used and left as it is.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ...errors import ConfigurationError, KeyUnavailableError
from . import pkcs11_module as _pkcs11_module
from . import pkcs11_uri as _pkcs11_uri
from .attempts import attempt_within
from .pin import read_pin
from .pkcs11_kek import IV_LENGTH, find
from .sdk import import_sdk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..wrapping import AssociatedData, WrappedKey
    from .pkcs11_kek import KEK

Result = TypeVar("Result")

#: Module and PIN source for a URI that names none. The URI can then be the same on every host.
MODULE_VARIABLE: Final = "JWT_COLUMN_PKCS11_MODULE"
PIN_SOURCE_VARIABLE: Final = "JWT_COLUMN_PKCS11_PIN_SOURCE"

#: Errors about the PIN. Another attempt with the same PIN would lock the token.
_OF_THE_PIN: Final = frozenset(
    {"PinExpired", "PinIncorrect", "PinInvalid", "PinLenRange", "PinLocked", "UserPinNotInitialized"}
)

#: Refused logins: module, serial number of the token, PIN. This process does not repeat them.
_refused: Final[set[tuple[str, bytes, str]]] = set()


class PKCS11Wrapper:
    """One AES-256 key of a PKCS#11 token.

    Args:
        rest: The URI without its scheme: ``token=``, ``manufacturer=``, ``model=``, ``serial=`` and ``slot-id=`` name
            the token, ``object=`` and ``id=`` the key; ``module-path=``, ``pin-source=`` and ``timeout=`` may follow
            a ``?``.
    """

    def __init__(self, rest: str) -> None:
        self._name = _pkcs11_uri.parse(rest)
        #: The URI. It holds no PIN.
        self.uri: str = f"pkcs11:{rest}"

    def wrap(self, key: bytes, associated_data: AssociatedData) -> bytes:
        """Return the data key under the KEK: 61 bytes by AES-GCM, or 73 bytes by AES key wrap."""
        return self._wrap(key, associated_data, os.urandom(IV_LENGTH))

    def _wrap(self, key: bytes, associated_data: AssociatedData, iv: bytes) -> bytes:
        return self._with_kek(lambda kek: kek.wrap(key, associated_data, iv))

    def unwrap(self, wrapped: Sequence[WrappedKey]) -> list[bytes]:
        """Return the data keys of 32 bytes each, in order, by one login."""
        return self._with_kek(lambda kek: [kek.unwrap(one) for one in wrapped])

    def _with_kek(self, use: Callable[[KEK], Result]) -> Result:
        """Open the KEK and return the result of *use*."""
        seconds = self._name.timeout
        late = f"{self.uri}: the PKCS#11 module did not answer within {seconds:g} s"

        def attempt(left: float) -> Result:
            with _pkcs11_module.turn(left, late):
                return self._use(use)

        return attempt_within(seconds, attempt, late=late)

    def _use(self, use: Callable[[KEK], Result]) -> Result:
        pkcs11 = import_sdk("pkcs11", "pkcs11")
        path = self._module_path()
        try:
            token = self._token(pkcs11, self._load(pkcs11, path))
            with self._kek(pkcs11, token, path) as kek:
                return use(kek)
        except pkcs11.PKCS11Error as error:
            failure = KeyUnavailableError(
                f"{self.uri}: the PKCS#11 module or its token fails ({_named(error)})", retryable=True
            )
        _pkcs11_module.initialize_again(path)
        raise failure

    def _module_path(self) -> str:
        """Return the path of the module. The environment decides before any key-ring file."""
        given, named = os.environ.get(MODULE_VARIABLE), self._name.module_path
        if given and named not in (None, given):
            raise ConfigurationError(
                f"{self.uri}: module-path= differs from {MODULE_VARIABLE}; no module was loaded; correct one of them"
            )
        path = given or named
        if not path:
            raise ConfigurationError(
                f"{self.uri}: no PKCS#11 module is named; set {MODULE_VARIABLE}, or add module-path= behind the ?"
            )
        return path

    def _load(self, pkcs11: Any, path: str) -> Any:
        try:
            return _pkcs11_module.load(pkcs11, path)
        except pkcs11.PKCS11Error as error:
            reason = str(error) or _named(error)
        raise ConfigurationError(f"{self.uri}: the PKCS#11 module {path} cannot be used: {reason}")

    def _token(self, pkcs11: Any, library: Any) -> Any:
        """Return the one token that the URI names."""
        found = []
        for slot in library.get_slots(token_present=True):
            try:
                token = slot.get_token()
            except (pkcs11.TokenNotPresent, pkcs11.TokenNotRecognised):
                continue
            if self._name.matches(token):
                found.append(token)
        if not found:
            _pkcs11_module.initialize_again(library.so)
            raise KeyUnavailableError(
                f"{self.uri}: there is no such token now; 'pkcs11-tool --module {library.so} --list-token-slots' lists "
                "the tokens",
                retryable=True,
            )
        if len(found) > 1:
            raise ConfigurationError(f"{self.uri}: {len(found)} tokens match; add serial= or slot-id=")
        return found[0]

    @contextmanager
    def _kek(self, pkcs11: Any, token: Any, path: str) -> Iterator[KEK]:
        """Open a session that sees the KEK."""
        # A login holds for the whole process. A KEK that is visible without our login means that the application is
        # logged in: another login would fail, and our logout would end the application's.
        for login in (False, True):
            with _closed(pkcs11, self._open(pkcs11, token, path, login=login)) as session:
                kek = find(pkcs11, session, self._name.label, self._name.id, self.uri)
                if kek is not None:
                    yield kek
                    return
        raise self._no_such_key(path)

    def _open(self, pkcs11: Any, token: Any, path: str, *, login: bool) -> Any:
        if not login:
            return token.open()
        pin = self._pin()
        attempted = (path, token.serial, pin)
        if attempted in _refused:
            raise self._refusal("the token refused the same PIN before, and this process does not repeat it")
        if pkcs11.TokenFlag.USER_PIN_FINAL_TRY in token.flags:
            raise self._refusal(
                "one more wrong PIN would lock the token, so none was sent; log in by hand first"
            )
        try:
            return token.open(user_pin=pin)
        except pkcs11.UserAlreadyLoggedIn:
            raise self._no_such_key(path) from None
        except pkcs11.PKCS11Error as error:
            if _named(error) not in _OF_THE_PIN:
                raise
            reason = _named(error)
        _refused.add(attempted)
        raise self._refusal(f"the token refused the PIN ({reason})")

    def _pin(self) -> str:
        source = self._name.pin_source or os.environ.get(PIN_SOURCE_VARIABLE)
        if not source:
            raise ConfigurationError(
                f"{self.uri}: no PIN source; add pin-source=file:/PATH or pin-source=env:NAME behind the ?, or set "
                f"{PIN_SOURCE_VARIABLE}"
            )
        return read_pin(_pkcs11_uri.pin_source(source))

    def _refusal(self, reason: str) -> KeyUnavailableError:
        return KeyUnavailableError(f"{self.uri}: no login to the token: {reason}")

    def _no_such_key(self, path: str) -> KeyUnavailableError:
        return KeyUnavailableError(
            f"{self.uri}: the token has no such private AES key; 'pkcs11-tool --module {path} --login --list-objects "
            "--type secrkey' lists its keys"
        )


@contextmanager
def _closed(pkcs11: Any, session: Any) -> Iterator[Any]:
    """Close a session, which also ends its login. A session that was lost needs no closing."""
    try:
        yield session
    finally:
        with suppress(pkcs11.PKCS11Error):
            session.close()


def _named(error: Exception) -> str:
    """Return the name of a PKCS#11 error, or its text if the binding has no class for it."""
    return type(error).__name__ if type(error).__name__ != "PKCS11Error" else str(error)


open_wrapper = PKCS11Wrapper
