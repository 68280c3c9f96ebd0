"""The protocol of a key source: the object that a provider makes from the URI of a key ring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .data_key import DataKey

__all__ = ["KeySource"]


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
