"""The clock of rings, moved by tests."""

from __future__ import annotations

import pytest

from jwt_column.keys import loader
from tests.support.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that limits the rate of reloads."""
    clock = Clock()
    monkeypatch.setattr(loader, "monotonic", clock)
    return clock
