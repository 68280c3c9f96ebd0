"""Loading the keys of a ring from its source, and the record of how the last attempt went."""

from __future__ import annotations

import sys
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import JWTColumnError, KeyRingError
from .process import PerProcess
from .snapshot import index_keys
from .source import WatchedSource, WrappedSource

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from .data_key import DataKey
    from .snapshot import Keys
    from .source import KeySource

__all__ = ["LOOK_INTERVAL", "RELOAD_INTERVAL", "Failure", "Loader"]

#: Seconds between two looks at the time stamp of a local file.
LOOK_INTERVAL: Final = 1.0

#: Seconds between two loads for unknown key ids. Without a limit, forged key ids would put load on a KMS.
RELOAD_INTERVAL: Final = 10.0


class Failure(NamedTuple):
    """The reason why the last load failed.

    Attributes:
        reason: The error's message, which holds no secret.
        retryable: True if the next load may work without a change of keys, permissions or configuration.
    """

    reason: str
    retryable: bool


class Loader:
    """Loads the keys of one ring.

    Args:
        source: The place of the keys; None for a ring that was made from given keys.
        active: Key id of the active key; None for the source's first key.

    Attributes:
        source: As given.
        failure: The reason why the last load failed; None if it worked.
        loaded_at: Monotonic time of the last load that worked.
        confirmed_at: Monotonic time of that load, or of a later look that found the file unchanged.
    """

    __slots__ = (
        "_activated",
        "_active",
        "_destroyed",
        "_lock",
        "_next_load",
        "_next_look",
        "_revision",
        "_stamp",
        "confirmed_at",
        "failure",
        "loaded_at",
        "source",
    )

    def __init__(self, source: KeySource | None = None, active: str | None = None) -> None:
        self.source: KeySource | None = source
        self._active = active
        self._lock = PerProcess(threading.Lock)
        self._next_load = 0.0
        self._next_look = 0.0
        self._stamp = self._stamp_now()
        self._revision = 0
        self._activated: Mapping[str, datetime] = {}
        self._destroyed: Mapping[str, datetime] = {}
        self.failure: Failure | None = None
        self.loaded_at: float = monotonic()
        self.confirmed_at: float = self.loaded_at

    def begin(self, wait: float = 0) -> Keys:
        """Return the first snapshot of the source's keys. Errors as of :meth:`load`.

        Args:
            wait: Seconds to repeat a load whose error is retryable.
        """
        if self.source is None:
            raise KeyRingError("a key ring that was made from given keys has no source to load them from")
        source = self.source
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

    def with_active(self, key_id: str) -> Loader:
        """Return a loader of the same source whose snapshots have this active key."""
        loader = Loader(self.source, key_id)
        loader._revision, loader._activated = self._revision, self._activated
        loader._destroyed = self._destroyed
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
    def revision(self) -> int:
        """The revision of the key-ring file that is loaded; 0 for a ring without revisions."""
        return self._revision

    def active_since(self, key_id: str) -> datetime | None:
        """Return the time at which a key became active, if the source has it."""
        return self._activated.get(key_id)

    @property
    def destroyed(self) -> Mapping[str, datetime]:
        """The times at which keys of the source were destroyed, by key id."""
        return self._destroyed

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
        name = "" if self.source is None else self.source.name
        if keys.by_prefix.keys().isdisjoint(current.by_prefix):
            held = ", ".join(key.id for key in current.in_order())
            raise KeyRingError(
                f"{name} now holds none of the keys that are loaded ({held}), so it may be another ring; the loaded "
                "keys stay in use. Put the ring back, or restart this process to take the new one"
            )
        revision = self._revision_now()
        if 0 < revision < self._revision:
            raise KeyRingError(
                f"{name} is revision {revision} of the ring, and revision {self._revision} was loaded before; the "
                "loaded keys stay in use. Put the newest revision back, or restart this process to take the older one"
            )

    def _accept(self) -> None:
        """Note the revision and the times of the ring that was loaded; those of one that was refused do not count."""
        self._revision = self._revision_now()
        self._activated = getattr(self.source, "activated", {})
        self._destroyed = getattr(self.source, "destroyed", {})

    def _revision_now(self) -> int:
        return self.source.revision if isinstance(self.source, WrappedSource) else 0

    def load(self, current: Keys) -> Keys:
        """Return a new snapshot of the source's keys.

        Args:
            current: The keys that are loaded. A ring without any of them is not the next version of this one.

        Raises:
            KeyRingError: The source holds no valid key ring, it has none of the current keys, it is an older revision
                than one that was loaded, or it lacks the active key that was asked for.
            KeyUnavailableError: The source could not be reached.
        """
        if self.source is None:
            raise KeyRingError("a key ring that was made from given keys has no source to load them from")
        # Before the load: a change during it must not be missed.
        self._stamp = self._stamp_now()
        try:
            keys = index_keys(_load_source(self.source), self._active)
            self._check_continuity(current, keys)
            self._accept()
        except JWTColumnError as error:
            self.failure = Failure(str(error), getattr(error, "retryable", False))
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
