"""Key rings.

A :class:`KeyRing` is a handle: programs pass it around, and key material does not leave it. One key is
*active* and encrypts; every key of the ring decrypts, looked up by the key id that each envelope carries.

A ring has three parts: the snapshot of its keys, which is replaced as a whole; the loader that makes a new snapshot
from the ring's source; and, if asked for, the refresher that reloads the ring at intervals.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

from ..errors import ConfigurationError, JWTColumnError, KeyRingError, KeyUnavailableError, UnknownKeyError
from ..format.aead import KEY_LENGTH
from ..format.envelope import VERSION
from ..frames import hides_locals
from ..option_values import number, texts_of
from .choice import any_chosen, choose, chosen_for
from .data_key import DataKey, generate_key
from .loader import Loader
from .missing import encrypted_columns, stored_key_ids
from .process import PerProcess, may_report, on_event_loop
from .refresh import WATCH, Interval, Refresher, check_interval
from .schemes import open_source
from .snapshot import Keys, index_keys, parse_key_id
from .source import WatchedSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Engine

__all__ = ["DataKey", "KeyRing", "RingReport", "RingStatus", "any_chosen", "generate_key"]

# Seconds between two queries for the key ids of rows by a ring that is watched.
_SEARCH_INTERVAL: Final = 60.0

# Seconds between two reports of a ring that is watched.
_REPORT_INTERVAL: Final = 10.0

# Seconds that a refresh waits for a report.
_REPORT_PATIENCE: Final = 5.0

_log = logging.getLogger("jwt_column.keys")


class RingStatus(NamedTuple):
    """The state of a ring, for metrics and health checks.

    Attributes:
        age: Seconds since its keys were loaded, or given.
        error: The reason why the last load failed, or that a refresh is overdue; None if all is well. No secrets.
        retryable: True if the next load may work without a change of keys, permissions or configuration.
        missing_key_ids: Key ids of rows that the ring lacks, as of the last look of :meth:`KeyRing.is_ready` or of the
            refresh after it.
    """

    age: float
    error: str | None = None
    retryable: bool = False
    missing_key_ids: tuple[str, ...] = ()


class RingReport(NamedTuple):
    """The state of a ring in one process. Holds no secret.

    Attributes:
        revision: The revision of the key-ring file that is loaded; 0 for a ring without revisions.
        key_ids: Every key id of the ring, the active one first.
        encrypting: The key ids that encrypt: the active one, then each tenant's.
        age: Seconds since the keys were loaded, or given.
        unconfirmed: Seconds since a load, or a look at the unchanged file, showed that the keys are the source's.
        active_since: Time at which the active key became active; only a key-ring file has it.
        missing_key_ids: As in :attr:`KeyRing.status`.
        error: As in :attr:`KeyRing.status`.
        interval: Seconds until the next report at the latest.
    """

    host: str
    pid: int
    revision: int
    key_ids: tuple[str, ...]
    encrypting: tuple[str, ...]
    age: float
    unconfirmed: float
    active_since: datetime | None
    missing_key_ids: tuple[str, ...]
    error: str | None
    interval: float


@final
class KeyRing:
    """Data keys by key id, one of them active. A handle: not to be pickled; ``repr`` shows key ids only.

    Args:
        keys: 32-byte ``bytes`` or 43-character base64url text each. Secret, uniformly random.
        active: Key id of the key that encrypts; None means the first.

    Raises:
        KeyRingError: No key, a malformed key, one key twice, or an *active* that is not among the keys.

    >>> ring = KeyRing([bytes(range(32))])
    >>> ring.active
    'b01065a6'
    """

    # Read for every row, which slots make a fiftieth faster.
    __slots__ = (
        "__weakref__", "_keys", "_loader", "_missing", "_next_report", "_next_search", "_refresher", "_report_lock",
        "_report_to", "_reported", "_watched",
    )  # fmt: skip

    @hides_locals
    def __init__(self, keys: Iterable[bytes | str], *, active: str | None = None) -> None:
        if isinstance(keys, bytes | str) or not isinstance(keys, Iterable):
            raise KeyRingError("a key ring takes a list of keys; put the one key into brackets")
        self._assemble(index_keys([DataKey(key) for key in keys], active), Loader())

    def _assemble(
        self,
        keys: Keys,
        loader: Loader,
        refresh: Interval | None = None,
        report_to: Callable[[KeyRing], object] | None = None,
    ) -> KeyRing:
        self._keys = keys
        self._loader = loader
        self._missing: tuple[str, ...] = ()
        #: The engine and the columns whose key ids each refresh reads.
        self._watched: tuple[Engine, tuple[Any, ...]] | None = None
        self._next_search = self._next_report = 0.0
        self._report_to = report_to
        self._report_lock = PerProcess(threading.Lock)
        #: The process and the keys of the last report.
        self._reported: tuple[int, Keys] | None = None
        self._refresher = None if refresh is None else Refresher(self, refresh)
        return self

    @classmethod
    def generate(cls) -> KeyRing:
        """Return a ring with one new random key, known to this process only: for tests and first steps."""
        return cls([os.urandom(KEY_LENGTH)])

    @classmethod
    @hides_locals
    def from_uri(
        cls,
        uri: str,
        *,
        refresh: Interval | None = None,
        keks: Iterable[str] | None = None,
        wait: float = 0,
        report_to: Callable[[KeyRing], object] | None = None,
    ) -> KeyRing:
        """Return the ring that a URI names, e.g. ``file:/etc/app/ring.json`` or ``env:JWT_COLUMN_KEYS``.

        Args:
            uri: The place of the keys. May appear in logs: a PIN or a token is never part of it.
            refresh: Seconds between two reloads of the ring, give or take a fifth, in a daemon thread. It starts with
                the first use of the ring in a process and ends with the ring. A failed reload shows in
                :attr:`status`, and the ring keeps its keys. ``"watch"``: look at the ring's file each second, and load
                it, which asks its KMS, only when it has changed; a load that failed is repeated every 10 seconds.
                None: reload on request and for an unknown key id only.
            keks: The URIs of the KEKs that a key-ring file may name, compared with every parameter. None: those of
                the environment variable ``JWT_COLUMN_KEKS``. Rings without wrapped keys need none.
            wait: Seconds to go on trying while the system that holds the keys or their KEK is away, for a start beside
                it. Errors that a retry does not mend are raised at once.
            report_to: Called with the ring in the refresh thread of each process: when the thread starts, when the keys
                have changed, and with each refresh, every 10 seconds with ``"watch"``. A
                :class:`~jwt_column.fleet.Fleet` writes a row that ``jwt-column keys`` reads. It needs *refresh*.

        Raises:
            ConfigurationError: The URI has no scheme or an unknown one, *refresh* or *wait* is not a number of seconds,
                there is nothing to watch, *report_to* has no refresh to call it, or the ring names a KEK that is not
                allowed; it was then not read, called or loaded.
            KeyRingError: The URI leads to something that is not a valid key ring.
            KeyUnavailableError: The keys could not be reached or read, also not within *wait*.
        """
        if refresh is not None:
            check_interval(refresh)
        number("a number of seconds, 0 or more").check(wait=wait)
        if report_to is not None and (refresh is None or not callable(report_to)):
            raise ConfigurationError(
                "report_to is called with the ring by its refresh; give it a callable such as a Fleet(engine), and "
                "refresh= too"
            )
        source = open_source(uri, None if keks is None else texts_of("keks", keks, "KEK URIs"))
        if refresh == WATCH and not isinstance(source, WatchedSource):
            raise ConfigurationError(
                f'refresh="{WATCH}" looks at a file, and {source.name} is none; give refresh= a number of seconds'
            )
        loader = Loader(source)
        keys = loader.begin(wait)
        return cls._assemble(cls.__new__(cls), keys, loader, refresh, report_to if may_report() else None)

    def snapshot(self) -> Keys:
        """Return the keys that the ring holds now. Take one snapshot per decision: a reload replaces it."""
        if self._refresher is not None:
            self._refresher.keep_running()
        return self._keys

    @property
    def active(self) -> str:
        """Key id of the active key, 8 lower-case hex digits. :meth:`using` does not change it."""
        return self.snapshot().active.id

    @property
    def tenants(self) -> Mapping[str, str]:
        """The key id of each tenant's active key, by tenant, for :meth:`using`. Only key-ring files have tenants."""
        return {tenant: key.id for tenant, key in self.snapshot().tenants.items()}

    @property
    def current_key_ids(self) -> tuple[str, ...]:
        """The key ids whose rows are not stale: those of the active key and of each tenant's active key."""
        return self.snapshot().encrypting

    @property
    def status(self) -> RingStatus:
        """The age of the keys and the error of the last load, for metrics and health checks."""
        # A health check counts as a use: it restarts a refresh that a fork has ended.
        self.snapshot()
        loader, refresher = self._loader, self._refresher
        error, retryable = loader.failure or (None, False)
        if error is None and refresher is not None and loader.unconfirmed > refresher.patience:
            error, retryable = f"the refresh is overdue; its interval is {refresher.seconds:g} s", True
        return RingStatus(loader.age, error, retryable, self._missing)

    def report(self, keys: Keys | None = None) -> RingReport:
        """Return the state of the ring in this process, for metrics and fleets.

        Args:
            keys: A snapshot of the ring; None takes one.
        """
        keys = keys or self.snapshot()
        return RingReport(
            platform.node(),
            os.getpid(),
            self._loader.revision,
            tuple(key.id for key in keys.in_order()),
            keys.encrypting,
            self._loader.age,
            self._loader.unconfirmed,
            self._loader.activated.get(keys.active.id),
            self._missing,
            self.status.error,
            self._report_interval(),
        )

    def acknowledge(self) -> None:
        """Report the state of the ring in this process now, to the ``report_to`` of :meth:`from_uri`.

        For a process in which no refresh thread runs. What *report_to* raises is raised.
        """
        if self._report_to is not None:
            self._reported = os.getpid(), self._keys
            self._next_report = monotonic() + self._report_interval()
            self._report_to(self)

    def _report_interval(self) -> float:
        refresher = self._refresher
        if refresher is None or refresher.interval == WATCH:
            return _REPORT_INTERVAL
        return 1.2 * refresher.seconds

    def report_when_due(self) -> None:
        """Report the state of the ring if it has changed or is due. Called by the refresh thread; logs what fails."""
        if self._report_to is None:
            return
        is_new = self._reported != (os.getpid(), self._keys)
        # The ticks of a watch are spread, too.
        lock = self._report_lock.get()
        if (is_new or monotonic() >= self._next_report - 1.0) and lock.acquire(blocking=False):
            # In a thread of its own: a database that hangs must not stop the refresh. The next report waits for it.
            thread = threading.Thread(target=self._report, args=[lock], name="jwt-column report", daemon=True)
            thread.start()
            thread.join(_REPORT_PATIENCE)

    def _report(self, lock: threading.Lock) -> None:
        """Report the state of the ring, and release the lock that the caller holds."""
        try:
            self.acknowledge()
        except Exception as error:  # noqa: BLE001 - the text of a foreign error may show anything
            _log.warning("the state of the key ring could not be reported (%s)", type(error).__name__)
        finally:
            lock.release()

    def is_ready(self, engine: Engine, columns: Iterable[Any]) -> bool:
        """Return True if the last load worked and the ring has the key of every row of these columns.

        A missing key causes a reload, at the rate of unknown key ids. With ``refresh=`` each refresh looks again, so
        that :attr:`status` stays up to date. It blocks; under asyncio, call it by ``asyncio.to_thread()``.

        Args:
            engine: A synchronous engine of a role that sees all rows.
            columns: Mapped attributes or Core columns of type ``EncryptedJWT``. A ``StaleIndex`` makes it cheap.

        Raises:
            ConfigurationError: The engine is asynchronous, or one of *columns* is no encrypted column.
            sqlalchemy.exc.SQLAlchemyError: The database could not be asked.
        """
        self._watched = engine, encrypted_columns(columns)
        self._look_for_missing_keys()
        status = self.status
        return status.error is None and not status.missing_key_ids

    def refresh(self) -> None:
        """Reload the ring, and look for rows under keys that it lacks. Called by the refresh thread.

        With ``refresh="watch"`` it does so only if the file has changed, and looks for such rows once a minute.
        """
        watches = self._refresher is not None and self._refresher.interval == WATCH
        try:
            if not watches or self._loader.look():
                self.reload()
        finally:
            self.report_when_due()
            if not watches or monotonic() >= self._next_search:
                self._look_for_missing_keys()

    def _look_for_missing_keys(self) -> None:
        if self._watched is None:
            return
        self._next_search = monotonic() + _SEARCH_INTERVAL
        stored = stored_key_ids(*self._watched)
        for key_id in sorted(stored.difference(self.key_ids)):
            with suppress(KeyRingError):
                self.key(parse_key_id(key_id))
        self._missing = tuple(sorted(stored.difference(self.key_ids, self.destroyed_key_ids)))

    @property
    def refresh_interval(self) -> Interval | None:
        """The *refresh* that :meth:`from_uri` was given; None for a ring that is loaded on request only."""
        return None if self._refresher is None else self._refresher.interval

    @property
    def uri(self) -> str | None:
        """The URI that another process can load the ring from; None for a ring that was made from given keys."""
        source = self._loader.source
        return None if source is None else source.name

    @property
    def keks(self) -> Sequence[str] | None:
        """The KEK URIs that :meth:`from_uri` was given, for another process that loads the ring; None for none."""
        source = self._loader.source
        return source.keks if isinstance(source, WatchedSource) else None

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Every key id of the ring, the active one first."""
        return tuple(key.id for key in self.keys)

    @property
    def destroyed_key_ids(self) -> tuple[str, ...]:
        """The ids of keys that were destroyed on purpose, as the key-ring file says. The ring does not have them."""
        return tuple(self._loader.destroyed)

    @property
    def keys(self) -> tuple[DataKey, ...]:
        """Every key of the ring, the active one first."""
        return self.snapshot().in_order()

    def keys_for_search(self) -> tuple[DataKey, ...]:
        """Return every key of the ring, after a reload if it comes from a local file that has changed.

        Reading a row under a new key shows that the key is missing; a search by fingerprint only finds nothing. So a
        search looks at the time stamp of the ring's file, once a second. It never waits for a KMS: a changed file
        whose keys need one is loaded in the background, for later searches.
        """
        loader = self._loader
        if loader.has_changed():
            if loader.is_local():
                with suppress(JWTColumnError):
                    self.reload()
            elif loader.lock.acquire(blocking=False):
                self._load_in_background()
        return self.keys

    def key(self, key_id: bytes) -> DataKey:
        """Return the key with this id of 4 bytes, after one reload if the ring does not have it yet.

        Raises:
            UnknownKeyError: The ring does not hold it.
            KeyUnavailableError: The ring does not hold it, and could not be reloaded to look for it.
        """
        prefix = VERSION + key_id
        key = self.snapshot().by_prefix.get(prefix)
        if key is None and key_id.hex() not in self._loader.destroyed:
            self._learn(prefix)
            key = self._keys.by_prefix.get(prefix)
        if key is not None:
            return key
        name = key_id.hex()
        destroyed = self._loader.destroyed.get(name)
        if destroyed is not None:
            reason = (
                f"key {name} was destroyed on {destroyed:%Y-%m-%d}, so nothing under it can be read any more"
            )
        else:
            held = ", ".join(self.key_ids)
            reason = f"the key ring has no key {name} (it has {held}); add that key to the ring, or restore the row"
        raise UnknownKeyError(reason, key_id=name)

    @contextmanager
    def using(self, key_id: str) -> Iterator[KeyRing]:
        """Encrypt under another key of the ring within a ``with`` block: one tenant's, for one unit of work.

        The choice holds for this thread or asyncio task and for the coroutines that it awaits, not for threads that
        it starts. It holds for every ring of this process that comes from the same URI. It decides when a session
        is **flushed**: one that is committed after the block writes under the ring's active key. Reading, searching
        and the meaning of stale are the same inside and outside.

        Args:
            key_id: Id of a key of the ring, such as ``ring.tenants["acme"]``.

        Raises:
            UnknownKeyError: The ring has no such key, not even after a reload; or it has lost the key when a row is
                written within the block.
            KeyUnavailableError: The ring has no such key and could not be reloaded to look for it.
        """
        key = self.key(parse_key_id(key_id))
        with choose(self._identity, key.stamp_prefix):
            yield self

    @property
    def _identity(self) -> object:
        """The ring's identity for :meth:`using`: its URI, or the object itself."""
        return self.uri or self

    def encrypting_key(self) -> DataKey:
        """Return the key that encrypts here and now: that of :meth:`using`, else the active one.

        Raises:
            UnknownKeyError: The ring has lost the key that :meth:`using` chose.
        """
        keys = self.snapshot()
        prefix = chosen_for(self._identity)
        if prefix is None:
            return keys.active
        key = keys.by_prefix.get(prefix)
        if key is None:
            key_id = prefix[len(VERSION) :].hex()
            raise UnknownKeyError(
                f"the key ring no longer has the key {key_id}, which is in use here; nothing was encrypted",
                key_id=key_id,
            )
        return key

    @hides_locals
    def with_active(self, key_id: str) -> KeyRing:
        """Return a ring of the same keys in which this one encrypts.

        Raises:
            UnknownKeyError: The ring does not hold it.
            KeyRingError: It is the key of a tenant.
        """
        keys, loader = index_keys(self.keys, key_id), self._loader.with_active(key_id)
        ring = KeyRing.__new__(KeyRing)
        return KeyRing._assemble(ring, keys, loader, self.refresh_interval, self._report_to)

    @hides_locals
    def with_key(self, key: bytes | str) -> KeyRing:
        """Return a ring that also has this key. It decrypts; :meth:`with_active` makes it encrypt.

        No source has all keys of the new ring, so it cannot be reloaded.

        Raises:
            KeyRingError: The key is malformed, or the ring has it already.
        """
        keys = index_keys([*self.keys, DataKey(key)], None)
        return KeyRing._assemble(KeyRing.__new__(KeyRing), keys, Loader())

    @hides_locals
    def reload(self) -> None:
        """Load the keys again from the ring's source; a ring that was made from given keys stays as it is.

        The ring changes only after everything was loaded. Keys that the source no longer has are then gone.

        Raises:
            KeyRingError: The source holds no valid key ring, it has none of the ring's keys, it is an older revision of
                the file than was loaded before, or it lacks the key that :meth:`with_active` chose.
            KeyUnavailableError: The source cannot be reached. After any error the ring keeps its keys.
        """
        if self._loader.source is not None:
            with self._loader.lock:
                self._keys = self._loader.load(self._keys)

    def _learn(self, prefix: bytes) -> None:
        """Reload because of an unknown key id: once in RELOAD_INTERVAL seconds, and without waiting for another load.

        A load from a KMS may take its whole time-out. So the threads that come meanwhile get an error at once, and on a
        running event loop, which would stand still, the load is left to a thread.

        Raises:
            KeyUnavailableError: It is not known whether the source has the key.
        """
        loader = self._loader
        if loader.source is None:
            return
        being_loaded = self._unknown_yet(prefix, "it is being loaded", retryable=True)
        if loader.may_load():
            if loader.is_local():
                with loader.lock:
                    self._load_for(prefix)
            elif not loader.lock.acquire(blocking=False):
                raise being_loaded
            elif on_event_loop():
                # The thread releases the lock.
                self._load_in_background()
                raise being_loaded
            else:
                try:
                    self._load_for(prefix)
                finally:
                    loader.lock.release()
        elif loader.lock.locked() and prefix not in self._keys.by_prefix:
            raise being_loaded

        # Also if this call did not load: a key is known to be unknown only after a load that worked.
        failure = loader.failure
        if failure is not None and prefix not in self._keys.by_prefix:
            reason, retryable = failure
            reason = f"it could not be loaded again to look for it: {reason}"
            raise self._unknown_yet(prefix, reason, retryable=retryable)

    def _load_for(self, prefix: bytes) -> None:
        """Load the ring again if another thread has not done so meanwhile. The caller holds the lock."""
        if prefix not in self._keys.by_prefix and self._loader.may_load():
            with suppress(JWTColumnError):
                self._keys = self._loader.load(self._keys)

    def _load_in_background(self) -> None:
        """Load the ring again in a thread, which releases the lock that the caller holds."""
        lock = self._loader.lock

        def load() -> None:
            try:
                with suppress(JWTColumnError):
                    self._keys = self._loader.load(self._keys)
            finally:
                lock.release()

        threading.Thread(target=load, name="jwt-column keys", daemon=True).start()

    @staticmethod
    def _unknown_yet(prefix: bytes, reason: str, *, retryable: bool) -> KeyUnavailableError:
        key_id = prefix[len(VERSION) :].hex()
        return KeyUnavailableError(
            f"the key ring has no key {key_id}, and {reason}", retryable=retryable, key_id=key_id
        )

    def __repr__(self) -> str:
        if not hasattr(self, "_refresher"):
            # A traceback shows the variable self of a construction that failed.
            return "KeyRing()"
        source = "" if self.uri is None else f", source={self.uri!r}"
        key_ids = [key.id for key in self._keys.in_order()]
        return f"KeyRing(active={key_ids[0]!r}, key_ids={key_ids!r}{source})"

    def __copy__(self) -> KeyRing:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> KeyRing:
        return self

    def __reduce__(self) -> str:
        raise KeyRingError("a key ring cannot be pickled; load it from its URI where it is needed")
