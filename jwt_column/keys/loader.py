"""Loading the keys of a ring from its source, and the record of how the last attempt went."""

from __future__ import annotations

import sys
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from ..errors import JWTColumnError, KeyRingError
from .process import PerProcess
from .snapshot import index_keys
from .source import WatchedSource

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from .data_key import DataKey
    from .snapshot import Keys
    from .source import KeySource

#: Seconds between two looks at the time stamp of a local file.
LOOK_INTERVAL: Final = 1.0

#: Seconds between two loads for unknown key ids. Without a limit, forged key ids would put load on a KMS.
RELOAD_INTERVAL: Final = 10.0


class Loader:
    """Loads the keys of one ring. Its active key has the id *active*, or is the source's first.

    Attributes:
        source: The place of the keys; None for a ring that was made from given keys.
        failure: The message of the error with which the last load failed, which holds no secret, and whether the next
            load may work without a change of keys, permissions or configuration; None if it worked.
        loaded_at: Monotonic time of the last load that worked.
        confirmed_at: Monotonic time of that load, or of a later look that found the file unchanged.
        revision: The revision of the key-ring file that is loaded; 0 for a ring without revisions.
        activated: The times at which keys became active, by key id, if the source has them.
        destroyed: The times at which keys of the source were destroyed, by key id.
    """

    def __init__(self, source: KeySource | None = None, active: str | None = None) -> None:
        self.source: KeySource | None = source
        self._active = active
        self._lock = PerProcess(threading.Lock)
        self._next_load = 0.0
        self._next_look = 0.0
        self._stamp = self._stamp_now()
        self.revision: int = 0
        self.activated: Mapping[str, datetime] = {}
        self.destroyed: Mapping[str, datetime] = {}
        self.failure: tuple[str, bool] | None = None
        self.loaded_at: float = monotonic()
        self.confirmed_at: float = self.loaded_at

    def begin(self, wait: float = 0) -> Keys:
        """Return the first snapshot of the source's keys. Errors as of :meth:`load`.

        Args:
            wait: Seconds to repeat a load whose error is retryable.
        """
        source = self._source()
        if wait > 0:
            # Here, because a ring that does not wait needs no threads.
            from .providers.attempts import attempt_within

            late = f"{source.name} could not be loaded within {wait:g} seconds (wait=)"
            loaded = attempt_within(wait, lambda _: _load_source(source), late=late, attempts=sys.maxsize)
        else:
            loaded = _load_source(source)
        keys = index_keys(loaded, self._active)
        self._accept()
        return keys

    def _source(self) -> KeySource:
        if self.source is None:
            raise KeyRingError("a key ring that was made from given keys has no source to load them from")
        return self.source

    def with_active(self, key_id: str) -> Loader:
        """Return a loader of the same source whose snapshots have this active key."""
        loader = Loader(self.source, key_id)
        loader.revision, loader.activated, loader.destroyed = self.revision, self.activated, self.destroyed
        return loader

    @property
    def lock(self) -> threading.Lock:
        """The lock to hold while calling :meth:`load` and while replacing the ring's snapshot."""
        return self._lock.get()

    @property
    def age(self) -> float:
        """Seconds since the last load that worked, or since the ring was made."""
        return monotonic() - self.loaded_at

    @property
    def unconfirmed(self) -> float:
        """Seconds since it was last seen that the keys are those of the source."""
        return monotonic() - self.confirmed_at

    def is_local(self) -> bool:
        """Return True if a load needs no other system, so that it cannot hang."""
        return isinstance(self.source, WatchedSource) and self.source.is_local()

    def may_load(self) -> bool:
        """Return True if an unknown key id may cause a load now."""
        return monotonic() >= self._next_load

    def has_changed(self) -> bool:
        """Return True if the source is a local file that changed since the last load. Looks once in LOOK_INTERVAL."""
        return monotonic() >= self._next_look and self.look()

    def look(self) -> bool:
        """Return True if the source is a local file that changed since the last load, or whose last load failed.

        After a failure it is True once in RELOAD_INTERVAL only, unless the file changes.
        """
        now = monotonic()
        self._next_look = now + LOOK_INTERVAL
        if not isinstance(self.source, WatchedSource):
            return False
        if self._stamp_now() != self._stamp:
            return True
        if self.failure is not None:
            return self.may_load()
        self.confirmed_at = now
        return False

    def _stamp_now(self) -> Any:
        return self.source.stamp() if isinstance(self.source, WatchedSource) else None

    def _check_continuity(self, current: Keys, keys: Keys) -> None:
        """Refuse another ring, and an older version of this one, in the place of the ring that is loaded."""
        name = self._source().name
        if keys.by_prefix.keys().isdisjoint(current.by_prefix):
            held = ", ".join(key.id for key in current.in_order())
            raise KeyRingError(
                f"{name} now holds none of the keys that are loaded ({held}), so it may be another ring; the loaded "
                "keys stay in use. Put the ring back, or restart this process to take the new one"
            )
        revision = getattr(self.source, "revision", 0)
        if 0 < revision < self.revision:
            raise KeyRingError(
                f"{name} is revision {revision} of the ring, and revision {self.revision} was loaded before; the "
                "loaded keys stay in use. Put the newest revision back, or restart this process to take the older one"
            )

    def _accept(self) -> None:
        """Note the revision and the times of the ring that was loaded; those of one that was refused do not count."""
        self.revision = getattr(self.source, "revision", 0)
        self.activated = getattr(self.source, "activated", {})
        self.destroyed = getattr(self.source, "destroyed", {})

    def load(self, current: Keys) -> Keys:
        """Return a new snapshot of the source's keys.

        Args:
            current: The keys that are loaded. A ring without any of them is not the next version of this one.

        Raises:
            KeyRingError: The source holds no valid key ring, it has none of the current keys, it is an older revision
                than one that was loaded, or it lacks the active key that was asked for.
            KeyUnavailableError: The source could not be reached.
        """
        source = self._source()
        # Before the load: a change during it must not be missed.
        self._stamp = self._stamp_now()
        try:
            keys = index_keys(_load_source(source), self._active)
            self._check_continuity(current, keys)
            self._accept()
        except JWTColumnError as error:
            self.failure = str(error), getattr(error, "retryable", False)
            raise
        else:
            self.loaded_at = self.confirmed_at = monotonic()
            self.failure = None
        finally:
            # Counted from the end of a load: threads that waited for a slow one must not load again in turn.
            self._next_load = monotonic() + RELOAD_INTERVAL
        return keys


def _load_source(source: KeySource) -> tuple[DataKey, ...]:
    """Load the keys of a source. Errors lose their frames, whose local variables hold keys."""
    try:
        return source.load()
    except JWTColumnError as error:
        failure = error.with_traceback(None)
    except Exception as error:  # noqa: BLE001 - the text of a foreign error may show a key
        failure = KeyRingError(f"the provider of {source.name} failed ({type(error).__name__})")
    failure.__context__ = None
    raise failure
