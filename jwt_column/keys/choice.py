"""The keys that :meth:`KeyRing.using` chose in this thread or asyncio task."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Stamp prefixes of the chosen keys by ring; None, which is the rule, outside of every block.
_chosen: ContextVar[Mapping[object, bytes] | None] = ContextVar("jwt_column_chosen_keys", default=None)

#: Returns None outside of every block: the quick test for code that runs per row.
any_chosen: Final = _chosen.get


@contextmanager
def choose(ring: object, prefix: bytes) -> Iterator[None]:
    """Choose a key of a ring within a ``with`` block, by the first five bytes of its envelopes."""
    token = _chosen.set({**(_chosen.get() or {}), ring: prefix})
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen_for(ring: object) -> bytes | None:
    """Return the prefix that was chosen for a ring, or None."""
    chosen = _chosen.get()
    return None if chosen is None else chosen.get(ring)
