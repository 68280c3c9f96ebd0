"""The protocol of a key source: the object that a provider makes from the URI of a key ring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from .data_key import DataKey


class KeySource(Protocol):
    """The place of a ring's keys. It can be loaded any number of times."""

    @property
    def name(self) -> str:
        """The source's name in errors and in ``repr``. Holds no secret."""

    def load(self) -> tuple[DataKey, ...]:
        """Return the keys: the active one first, and each tenant's active key before its other keys.

        Raises:
            KeyRingError: The source was read and holds no valid key ring.
            KeyUnavailableError: The source could not be reached.
        """


@runtime_checkable
class WatchedSource(KeySource, Protocol):
    """A source that is a file, which shows cheaply if it has changed, and whose keys may be wrapped.

    Attributes:
        keks: The KEK URIs that the application allows; None for those of ``JWT_COLUMN_KEKS``.
        revision: The revision that was loaded last; 0 for a file without revisions.
        activated: The times at which its keys became active, by key id.
        destroyed: The times at which keys of it were marked as destroyed, by key id.
    """

    keks: Sequence[str] | None
    revision: int
    activated: Mapping[str, datetime]
    destroyed: Mapping[str, datetime]

    def stamp(self) -> object:
        """Return a value that differs after a change. Reads no keys."""

    def is_local(self) -> bool:
        """Return True if :meth:`KeySource.load` needs no other system. May read the source, not the keys."""
