"""Key rings.

A :class:`KeyRing` is a handle: programs pass it around, and key material does not leave it. One key is
*active* and encrypts; every key of the ring decrypts, looked up by the key id that each envelope carries.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from random import SystemRandom
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, final
from weakref import WeakSet, ref

from ..errors import (
    ConfigurationError,
    JWTColumnError,
    KeyRingError,
    KeyUnavailableError,
    UnknownKeyError,
)
from ..format.aead import KEY_LENGTH
from ..format.envelope import VERSION
from .data_key import DataKey, generate_key
from .schemes import open_source
from .snapshot import Keys, index_keys, parse_key_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = ["DataKey", "KeyRing", "KeySource", "RingStatus", "generate_key"]

#: Seconds between two reloads that unknown key ids cause: forged key ids must not turn into load on a KMS.
RELOAD_INTERVAL: Final = 10.0

# A fleet that was started at once does not ask its KMS at once for ever after.
_REFRESH_SPREAD: Final = (0.8, 1.2)
_uniform: Final = SystemRandom().uniform


class KeySource(Protocol):
    """Where a ring comes from, and can be loaded from again: what a provider makes of a URI."""

    @property
    def name(self) -> str:
        """How errors and ``repr`` call the source. Holds no secret."""

    def load(self) -> tuple[DataKey, ...]:
        """Return the keys, the active one first, and of each tenant its active one before its others.

        Raises:
            KeyRingError: What was found there is no key ring.
            KeyUnavailableError: It could not be reached.
        """


class _Resting(Keys):
    """The keys of a ring that is to be refreshed and that nobody has used yet: the first look starts the thread.

    Not sooner: a thread is lost when a server forks its workers, and what it holds at that moment stays locked.
    """

    _ring: KeyRing

    @classmethod
    def of(cls, keys: Keys, ring: KeyRing) -> _Resting:
        """Return keys that wake a ring."""
        resting = cls(*keys)
        resting._ring = ring
        return resting

    @property
    def active(self) -> DataKey:
        """The active key."""
        self._ring._wake(self)  # noqa: SLF001
        return self[0]

    @property
    def by_prefix(self) -> dict[bytes, DataKey]:
        """The keys by prefix."""
        self._ring._wake(self)  # noqa: SLF001
        return self[1]


class RingStatus(NamedTuple):
    """How a ring is doing, for metrics and health checks.

    Attributes:
        age: Seconds since its keys were loaded, or given.
        error: Why the latest attempt to load them again failed, without secrets; None where it worked.
        retryable: Whether that may get better without anyone's doing.
    """

    age: float
    error: str | None = None
    retryable: bool = False


#: The key ids that :meth:`KeyRing.using` has chosen in this thread or task, by ring; None nearly always.
_chosen: ContextVar[Mapping[object, bytes] | None] = ContextVar("jwt_column_chosen_keys", default=None)

#: Returns None where no ring is in use with a key of choice: for those who ask for every row.
any_chosen: Final = _chosen.get


@final
class KeyRing:
    """Data keys by key id, one of them active. A handle: not to be pickled; ``repr`` shows key ids only.

    Args:
        keys: 32-byte ``bytes`` or 43-character base64url text each. Secret, uniformly random.
        active: Key id of the key that encrypts; None means the first.

    Raises:
        KeyRingError: No key, a key of another form, one key twice, or an *active* that is none of them.

    >>> ring = KeyRing([bytes(range(32))])
    >>> ring.active
    'b01065a6'
    """

    __slots__ = (
        "__weakref__",
        "_failure",
        "_is_refreshing",
        "_loaded_at",
        "_lock",
        "_next_reload",
        "_pinned",
        "_refresh",
        "_source",
        "_swap",
        "current",
    )

    def __init__(self, keys: Iterable[bytes | str], *, active: str | None = None) -> None:
        if isinstance(keys, bytes | str):
            raise KeyRingError("a key ring takes a list of keys; put the one key into brackets")
        self._start(index_keys([DataKey(key) for key in keys], active), None, active)

    current: Keys

    def _start(
        self, keys: Keys, source: KeySource | None, pinned: str | None, refresh: float | None = None
    ) -> None:
        self._source = source
        self._pinned = pinned
        self._lock = threading.Lock()
        self._next_reload = 0.0
        self._loaded_at = monotonic()
        # Why the last reload failed, and whether the next one may not.
        self._failure: tuple[str, bool] | None = None
        self._refresh = refresh
        self._swap = threading.Lock()
        self._is_refreshing = False
        self._put(keys)
        _rings.add(self)

    def _put(self, keys: Keys) -> None:
        """Put new keys into the place of the old ones."""
        with self._swap:
            self.current = keys if self._refresh is None or self._is_refreshing else _Resting.of(keys, self)

    def _wake(self, resting: _Resting) -> None:
        """Start to refresh the ring, now that somebody uses it."""
        with self._swap:
            if self._refresh is not None and not self._is_refreshing:
                self._is_refreshing = True
                _start_refreshing(self, self._refresh)
            # Another thread may have been here before, or put new keys there.
            if self.current is resting:
                self.current = Keys(*resting)

    @classmethod
    def _of(
        cls,
        keys: Keys,
        source: KeySource | None,
        pinned: str | None = None,
        refresh: float | None = None,
    ) -> KeyRing:
        ring = cls.__new__(cls)
        ring._start(keys, source, pinned, refresh)  # noqa: SLF001
        return ring

    @classmethod
    def generate(cls) -> KeyRing:
        """Return a ring with one new random key, known to this process only: for tests and first steps."""
        return cls([os.urandom(KEY_LENGTH)])

    @classmethod
    def from_uri(cls, uri: str, *, refresh: float | None = None) -> KeyRing:
        """Return the ring that a URI names, e.g. ``file:/etc/app/ring.json`` or ``env:JWT_COLUMN_KEYS``.

        Args:
            uri: Where the keys are. May be kept in logs: a PIN or a token is never part of it.
            refresh: Load the keys again every so many seconds, give or take a fifth, in a daemon thread that begins
                with the first use of the ring and ends with the ring. What goes wrong is in :attr:`status`, and the
                ring goes on with the keys that it has. None: only when asked, or for an unknown key id.

        Raises:
            ConfigurationError: The URI has no scheme, or one that no provider knows; or *refresh* is not positive.
            KeyRingError: What lies there is no key ring.
            KeyUnavailableError: It cannot be reached or read.
        """
        if refresh is not None and not refresh > 0:
            raise ConfigurationError("refresh is a number of seconds, more than 0")
        source = open_source(uri)
        return cls._of(index_keys(_load(source), None), source, refresh=refresh)

    @property
    def active(self) -> str:
        """Key id of the key that encrypts, 8 lower-case hex digits; whatever :meth:`using` says here and now."""
        return self.current.active.id

    @property
    def tenants(self) -> Mapping[str, str]:
        """The key id of each tenant's active key, by tenant, for :meth:`using`. Only key-ring files have tenants."""
        return {tenant: key.id for tenant, key in self.current.tenants.items()}

    @property
    def current_key_ids(self) -> tuple[str, ...]:
        """The key ids whose rows are current, not stale: the active key's, and that of each tenant's active key."""
        active, _, tenants = self.current
        return (active.id, *(key.id for key in tenants.values()))

    @property
    def status(self) -> RingStatus:
        """How old the keys are and why they could not be loaded again, for metrics and health checks."""
        error, retryable = self._failure or (None, False)
        return RingStatus(monotonic() - self._loaded_at, error, retryable)

    @property
    def uri(self) -> str | None:
        """The URI that another process can load the ring from; None for a ring that was given its keys."""
        return None if self._source is None else self._source.name

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Every key id of the ring, the active one first."""
        return tuple(key.id for key in self.keys)

    @property
    def keys(self) -> tuple[DataKey, ...]:
        """Every key of the ring, the active one first."""
        # One look at it: another thread may reload the ring meanwhile.
        active, by_prefix, _ = self.current
        return (active, *(key for key in by_prefix.values() if key is not active))

    def key(self, key_id: bytes) -> DataKey:
        """Return the key with this id of 4 bytes, after one reload if the ring does not have it yet.

        Raises:
            UnknownKeyError: The ring does not hold it.
            KeyUnavailableError: The ring does not hold it and could not be loaded again to see.
        """
        key = self.current.by_prefix.get(VERSION + key_id)
        if key is None:
            self._reload_for(key_id)
            key = self.current.by_prefix.get(VERSION + key_id)
        if key is None:
            raise UnknownKeyError(
                f"the key ring has no key {key_id.hex()} (it has {', '.join(self.key_ids)}); "
                "add that key to the ring, or restore the row",
                key_id=key_id.hex(),
            )
        return key

    @contextmanager
    def using(self, key_id: str) -> Iterator[KeyRing]:
        """Encrypt under another key of the ring within a ``with`` block: one tenant's, for one unit of work.

        It holds for this thread or asyncio task and for what is awaited in it, not for threads that it starts; for
        every ring of this process that comes from the same URI; and for what is **flushed** within the block: a
        session that is committed after its end writes under the ring's active key. Reading, searching and the
        meaning of stale are the same inside and outside.

        Args:
            key_id: Of a key of the ring, such as ``ring.tenants["acme"]``.

        Raises:
            UnknownKeyError: The ring has no such key, also after it was loaded again; or, for a row that is written
                within the block, it has lost it since.
            KeyUnavailableError: The ring has no such key and could not be loaded again to look.
        """
        key = self.key(parse_key_id(key_id))
        token = _chosen.set({**(_chosen.get() or {}), self._identity: key.stamp_prefix})
        try:
            yield self
        finally:
            _chosen.reset(token)

    @property
    def _identity(self) -> object:
        """What tells this ring from others: where it comes from, or itself."""
        return self if self._source is None else self._source.name

    def encrypting_key(self) -> DataKey:
        """Return the key that encrypts here and now: that of :meth:`using`, else the active one.

        Raises:
            UnknownKeyError: The ring has lost the key that :meth:`using` chose.
        """
        current = self.current
        chosen = _chosen.get()
        prefix = None if chosen is None else chosen.get(self._identity)
        if prefix is None:
            return current.active
        key = current.by_prefix.get(prefix)
        if key is None:
            key_id = prefix[len(VERSION) :].hex()
            raise UnknownKeyError(
                f"the key ring no longer has the key {key_id}, which is in use here; nothing was encrypted",
                key_id=key_id,
            )
        return key

    def with_active(self, key_id: str) -> KeyRing:
        """Return a ring of the same keys in which this one encrypts.

        Raises:
            UnknownKeyError: The ring does not hold it.
            KeyRingError: It is the key of a tenant.
        """
        return self._of(index_keys(self.keys, key_id), self._source, key_id, self._refresh)

    def with_key(self, key: bytes | str) -> KeyRing:
        """Return a ring that has this key too. It decrypts; :meth:`with_active` makes it encrypt.

        No source has the keys of the new ring, so it cannot be loaded again.

        Raises:
            KeyRingError: Not a key, or the ring has it already.
        """
        return self._of(index_keys([*self.keys, DataKey(key)], None), None)

    def reload(self) -> None:
        """Load the keys again from where they came from; a ring that was given its keys stays as it is.

        The ring changes only when everything was loaded. Keys that vanished at the source are then gone.

        Raises:
            KeyRingError: What lies there is no key ring, or it lacks the key that :meth:`with_active` chose.
            KeyUnavailableError: It cannot be reached; the ring goes on with the keys that it has.
        """
        if self._source is not None:
            with self._lock:
                self._load_again(self._source)

    def _reload_for(self, key_id: bytes) -> None:
        """Reload because of an unknown key id: once in RELOAD_INTERVAL seconds, one thread at a time."""
        if self._source is None:
            return
        with self._lock:
            if VERSION + key_id in self.current.by_prefix:
                return
            if monotonic() >= self._next_reload:
                with suppress(JWTColumnError):
                    self._load_again(self._source)
            failure = self._failure
        # Also when this call did not try: that the ring lacks the key is not known before a reload works.
        if failure is not None:
            reason, retryable = failure
            raise KeyUnavailableError(
                f"the key ring has no key {key_id.hex()}, and could not be loaded again to look for it: "
                f"{reason}",
                retryable=retryable,
                key_id=key_id.hex(),
            )

    def _load_again(self, source: KeySource) -> None:
        try:
            self._put(index_keys(_load(source), self._pinned))
            self._loaded_at = monotonic()
            self._failure = None
        except JWTColumnError as error:
            self._failure = str(error), getattr(error, "retryable", False)
            raise
        finally:
            # From the end of a load: else the threads that waited for a slow one would each load in turn.
            self._next_reload = monotonic() + RELOAD_INTERVAL

    def _settle_after_fork(self) -> None:
        self._lock, self._swap = threading.Lock(), threading.Lock()
        self._is_refreshing = False
        self._put(Keys(*self.current))

    def __repr__(self) -> str:
        if not hasattr(self, "current"):
            # Its construction failed, and a traceback shows the local variable self.
            return "KeyRing()"
        source = "" if self._source is None else f", source={self._source.name!r}"
        key_ids = self.key_ids
        return f"KeyRing(active={key_ids[0]!r}, key_ids={list(key_ids)!r}{source})"

    def __copy__(self) -> KeyRing:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> KeyRing:
        return self

    def __reduce__(self) -> str:
        raise KeyRingError("a key ring cannot be pickled; load it from its URI where it is needed")


def _load(source: KeySource) -> tuple[DataKey, ...]:
    """Load the keys of a source. Its frames hold keys in local variables, which error reporters show."""
    try:
        return source.load()
    except JWTColumnError as error:
        failure = error.with_traceback(None)
    except Exception as error:  # noqa: BLE001 - what a provider of others raises may show a key
        failure = KeyRingError(f"the provider of {source.name} failed ({type(error).__name__})")
    failure.__context__ = None
    raise failure


def _start_refreshing(ring: KeyRing, seconds: float) -> None:
    """Load a ring again now and then, in a thread that ends with the ring."""
    stop = threading.Event()
    # Held by the thread, as nothing else may hold the ring.
    reference = ref(ring, lambda _: stop.set())
    threading.Thread(
        target=_refresh, args=(reference, stop.wait, seconds), name="jwt-column key ring", daemon=True
    ).start()


def _refresh(
    reference: Callable[[], KeyRing | None],
    wait: Callable[[float], bool],
    seconds: float,
    spread: Callable[[float, float], float] = _uniform,
) -> None:
    """Reload a ring after every wait, until it is gone."""
    while not wait(seconds * spread(*_REFRESH_SPREAD)):
        ring = reference()
        if ring is None:
            return
        # In its status, where it is looked for; the ring goes on with what it has.
        with suppress(JWTColumnError):
            ring.reload()
        del ring


_rings: WeakSet[KeyRing] = WeakSet()


def _settle_after_fork() -> None:
    """Give every ring a new lock and, at its next use, a new thread: those of the parent are not here.

    A lock that another thread held during the fork would never be released.
    """
    for ring in _rings:
        ring._settle_after_fork()  # noqa: SLF001


if hasattr(os, "register_at_fork"):  # pragma: no branch - absent on Windows only, where nothing forks
    os.register_at_fork(after_in_child=_settle_after_fork)
