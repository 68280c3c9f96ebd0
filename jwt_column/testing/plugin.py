"""The pytest plugin. An entry point loads it in every run, so it imports the helpers when a fixture is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..keys.ring import KeyRing
    from .kek import FakeKEK

__all__ = ["jwt_column_fake_kek", "jwt_column_keyring"]


@pytest.fixture
def jwt_column_keyring() -> Iterator[KeyRing]:
    """The default key ring of the test: one random key."""
    from .throwaway import throwaway_keyring

    with throwaway_keyring() as ring:
        yield ring


@pytest.fixture
def jwt_column_fake_kek() -> Iterator[FakeKEK]:
    """A KEK under the scheme ``fake-kek:`` of this process."""
    from .kek import fake_kek

    with fake_kek() as kek:
        yield kek
