"""The ring of the host on which migrations run."""

from __future__ import annotations

import pytest

from jwt_column import set_default_keyring
from tests.support.workload import after


@pytest.fixture
def host_ring() -> None:
    """Make the ring after the rotation the default one."""
    set_default_keyring(after())
