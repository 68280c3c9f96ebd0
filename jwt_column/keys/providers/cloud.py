"""The base class of cloud KMS wrappers: one key per call, several calls in parallel, errors translated to ours."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from ...errors import ConfigurationError, JWTColumnError, KeyRingError, KeyUnavailableError
from ..wrapping import WrappedKey
from .attempts import attempt_within
from .parameters import seconds_of
from .sdk import unlogged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..wrapping import AssociatedData

#: Parallel calls. An SDK keeps ten connections open, and a thousand keys at 10 ms each take 1.3 s this way.
_LANES: Final = 8

Answer = TypeVar("Answer")


class CloudWrapper(ABC):
    """A KEK behind an SDK without types that takes one data key per call; *rest* is its URI without the scheme."""

    #: The URI's scheme, which is also the name of the extra.
    scheme: ClassVar[str]
    #: The name of the system in errors.
    system: ClassVar[str]
    #: The loggers to which the SDK writes requests and responses.
    loggers: ClassVar[tuple[str, ...]]

    def __init__(self, rest: str, parameters: dict[str, str]) -> None:
        #: The URI of the KEK. It holds no secret.
        self.uri: str = f"{self.scheme}:{rest}"
        self._timeout = seconds_of(parameters)
        #: Time limit of one request, in seconds: a request that hangs leaves time for a second attempt.
        self._patience = self._timeout / 2

    def wrap(self, key: bytes, associated_data: AssociatedData) -> bytes:
        """Return the data key under the KEK."""
        return self._each(self._encrypt, [(key, associated_data)])[0]

    def unwrap(self, wrapped: Sequence[WrappedKey]) -> list[bytes]:
        """Return the data keys, by one call each."""
        return self._each(self._decrypt, wrapped)

    @abstractmethod
    def _encrypt(self, client: Any, key: bytes, associated_data: AssociatedData) -> bytes:
        """Wrap one data key."""

    @abstractmethod
    def _decrypt(self, client: Any, ciphertext: bytes, associated_data: AssociatedData) -> bytes:
        """Unwrap one data key."""

    @abstractmethod
    def _open_client(self, stack: ExitStack) -> Any:
        """Make a client for one attempt, and have *stack* close it.

        A cached client would share its connections with forked children.
        """

    @abstractmethod
    def _error_of(self, error: Exception, key_id: str | None) -> JWTColumnError:
        """Translate an error of the SDK in a call with the wrapped key *key_id*, or without any."""

    def _not_wrapped(self, key_id: str, answer: str, otherwise: str) -> KeyRingError:
        return KeyRingError(
            f"{self.uri}: {self.system} answers that this KEK did not wrap key {key_id} for this key ring ({answer}); "
            f"the key-ring file was changed, or {otherwise}",
            key_id=key_id,
        )

    def _not_symmetric(self, answer: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self.uri}: {self.system} answers that this is not a symmetric encryption key ({answer})"
        )

    def _unreached(self, name: str) -> KeyUnavailableError:
        return KeyUnavailableError(f"{self.uri}: {self.system} was not reached ({name})", retryable=True)

    def _untrusted(self, variable: str) -> KeyUnavailableError:
        return KeyUnavailableError(
            f"{self.uri}: the certificate of {self.system} is not trusted here; check {variable} and proxies"
        )

    def _busy(self, answer: str) -> KeyUnavailableError:
        return KeyUnavailableError(f"{self.uri}: {self.system} cannot answer now ({answer})", retryable=True)

    def _refused(self, answer: str, remedy: str | None) -> KeyUnavailableError:
        remedy = remedy or "not retryable; check the key's policy and state"
        return KeyUnavailableError(f"{self.uri}: {self.system} refuses ({answer}): {remedy}")

    def _each(
        self,
        operation: Callable[[Any, bytes, AssociatedData], bytes],
        items: Sequence[tuple[bytes, AssociatedData]],
    ) -> list[bytes]:
        """Return the result of an operation, one call, for each key or wrapped key with its associated data.

        A retry (:func:`attempt_within`) repeats only the items without a result.
        """
        done: dict[int, bytes] = {}

        def attempt(left: float) -> None:
            deadline = time.monotonic() + left
            with ExitStack() as stack:
                client = self._ask(lambda: self._open_client(stack), None)

                def one(number: int) -> None:
                    if time.monotonic() >= deadline:
                        raise KeyUnavailableError(self._late, retryable=True)
                    item = items[number]
                    key_id = item.associated_data.key_id if isinstance(item, WrappedKey) else None
                    done[number] = self._ask(lambda: operation(client, *item), key_id)

                _in_lanes(one, [number for number in range(len(items)) if number not in done])

        attempt_within(self._timeout, attempt, late=self._late)
        return [done[number] for number in range(len(items))]

    @property
    def _late(self) -> str:
        return f"{self.uri}: {self.system} did not answer within {self._timeout:g} s"

    def _ask(self, call: Callable[[], Answer], key_id: str | None) -> Answer:
        """Return the result of an SDK call. Errors are translated, and hold no frame of the SDK."""
        try:
            with unlogged(*self.loggers):
                return call()
        except JWTColumnError:
            raise
        except Exception as error:  # noqa: BLE001 - the text of a foreign error may show a key.
            failure = self._error_of(error, key_id)
        raise failure


def _in_lanes(work: Callable[[int], None], numbers: Sequence[int]) -> None:
    """Call *work* for each number, several at a time. Stop at the first failure and raise it."""
    waiting = iter(numbers)
    lock = threading.Lock()
    failures: list[Exception] = []

    def lane() -> None:
        while not failures:
            with lock:
                number = next(waiting, None)
            if number is None:
                return
            try:
                work(number)
            except Exception as error:  # noqa: BLE001 - it is raised below.
                failures.append(error)

    # This thread is the first lane.
    others = [
        threading.Thread(target=lane, name="jwt-column-keys", daemon=True)
        for _ in range(min(_LANES, len(numbers)) - 1)
    ]
    for thread in others:
        thread.start()
    lane()
    for thread in others:
        thread.join()
    if failures:
        raise failures[0]
