"""The base class of cloud KMS wrappers: one key per call, several calls in parallel, errors translated to ours."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar, Final, Generic, TypeVar

from ...errors import JWTColumnError, KeyUnavailableError
from ..wrapping import WrappedKey
from .attempts import attempt_within
from .parameters import seconds_of
from .sdk import unlogged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..wrapping import AssociatedData

__all__ = ["CloudWrapper"]

#: Parallel calls. An SDK keeps ten connections open, and a thousand keys at 10 ms each take 1.3 s this way.
_LANES: Final = 8

Client = TypeVar("Client")
Answer = TypeVar("Answer")


class CloudWrapper(ABC, Generic[Client]):
    """A KEK behind an SDK that takes one data key per call.

    Args:
        rest: The URI without its scheme and colon.
        parameters: The parameters of the URI.
    """

    #: The URI's scheme, which is also the name of the extra.
    scheme: ClassVar[str]
    #: The name of the system in errors.
    system: ClassVar[str]
    #: The loggers to which the SDK writes requests and responses.
    loggers: ClassVar[tuple[str, ...]]

    def __init__(self, rest: str, parameters: dict[str, str]) -> None:
        self._rest = rest
        self._timeout = seconds_of(parameters)
        #: Time limit of one request, in seconds: a request that hangs leaves time for a second attempt.
        self._patience = self._timeout / 2

    @property
    def uri(self) -> str:
        """The URI of the KEK. It holds no secret."""
        return f"{self.scheme}:{self._rest}"

    @abstractmethod
    def _open_client(self, stack: ExitStack) -> Client:
        """Make a client for one attempt. A cached client would share its connections with forked children.

        Args:
            stack: For the clean-up after the attempt.
        """

    @abstractmethod
    def _error_of(self, error: Exception, key_id: str | None) -> JWTColumnError:
        """Translate an error of the SDK.

        Args:
            error: The exception that the SDK raised.
            key_id: Key id of the wrapped key of the call; None if the call had none.
        """

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
        operation: Callable[[Client, bytes, AssociatedData], bytes],
        items: Sequence[tuple[bytes, AssociatedData]],
    ) -> list[bytes]:
        """Return the results of an operation for each item, in order.

        A retry (:func:`attempt_within`) repeats only the items without a result.

        Args:
            operation: One call of the system, with a key or wrapped key and its associated data.
            items: Wrapped keys, or keys, each with its associated data.
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
