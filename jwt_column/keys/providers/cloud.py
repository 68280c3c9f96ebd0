"""What the wrappers of the clouds share: one key to a call, several calls at a time, and no error but ours."""

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

#: Calls at a time. An SDK keeps ten connections open, and a thousand keys at 10 ms each take 1.3 s this way.
_LANES: Final = 8

Client = TypeVar("Client")
Answer = TypeVar("Answer")


class CloudWrapper(ABC, Generic[Client]):
    """A KEK that an SDK reaches, and that takes one data key to a call.

    Args:
        rest: The URI without its scheme and colon.
        parameters: What stands behind its question mark.
    """

    #: The URI's scheme, which is the extra's name too.
    scheme: ClassVar[str]
    #: What errors call the system.
    system: ClassVar[str]
    #: The loggers to which the SDK writes requests or responses.
    loggers: ClassVar[tuple[str, ...]]

    def __init__(self, rest: str, parameters: dict[str, str]) -> None:
        self._rest = rest
        self._timeout = seconds_of(parameters)
        #: Seconds that the SDK may wait for the system once: one that hangs leaves time for a second attempt.
        self._patience = self._timeout / 2

    @property
    def uri(self) -> str:
        """The URI of the KEK. It holds no secret."""
        return f"{self.scheme}:{self._rest}"

    @abstractmethod
    def _open_client(self, stack: ExitStack) -> Client:
        """Make a client for one attempt: one that is kept would share its connections with forked children.

        Args:
            stack: Closes what is put on it after the attempt.
        """

    @abstractmethod
    def _error_of(self, error: Exception, key_id: str | None) -> JWTColumnError:
        """Return our error for one of the SDK's.

        Args:
            error: What the SDK raised.
            key_id: The wrapped key that was asked about; None where there was none.
        """

    def _each(
        self,
        operation: Callable[[Client, bytes, AssociatedData], bytes],
        items: Sequence[tuple[bytes, AssociatedData]],
    ) -> list[bytes]:
        """Return what an operation gives for each item, in order.

        An attempt that failed is repeated as :func:`attempt_within` says, for those items that are still missing.

        Args:
            operation: One call of the system, with a key or wrapped key and what it is bound to.
            items: Wrapped keys, or keys with what each is to be bound to.
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
        """Return what a call of the SDK gives. Its errors are ours, and hold nothing of its frames."""
        try:
            with unlogged(*self.loggers):
                return call()
        except JWTColumnError:
            raise
        except Exception as error:  # noqa: BLE001 - nobody above may see a foreign error.
            failure = self._error_of(error, key_id)
        raise failure


def _in_lanes(work: Callable[[int], None], numbers: Sequence[int]) -> None:
    """Do work for each number, several at a time, up to the first failure, which is raised."""
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
