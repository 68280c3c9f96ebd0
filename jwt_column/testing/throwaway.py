"""A key ring that lasts for one test."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..keys.default import explicit_default, set_default_keyring
from ..keys.ring import KeyRing, generate_key
from ..option_values import number

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["throwaway_keyring"]


@contextmanager
def throwaway_keyring(keys: int = 1) -> Iterator[KeyRing]:
    """Make a ring of random keys the default key ring, and put back the former default on exit.

    Args:
        keys: Number of keys. The first one is active.
    """
    number("a number of keys, at least 1", at_least=1, whole=True).check(keys=keys)
    former = explicit_default()
    ring = KeyRing([generate_key() for _ in range(keys)])
    set_default_keyring(ring)
    try:
        yield ring
    finally:
        set_default_keyring(former)
