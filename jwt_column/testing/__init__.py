"""Helpers for the tests of an application: a throw-away key ring, a fake KEK, and a check of the stored bytes.

pytest finds the fixtures ``jwt_column_keyring`` and ``jwt_column_fake_kek`` by itself. Other test runners call the
context managers of this module.
"""

from __future__ import annotations

from .assertions import assert_encrypted
from .fake_kek import FakeKEK, fake_kek
from .throwaway import throwaway_keyring

__all__ = ["FakeKEK", "assert_encrypted", "fake_kek", "throwaway_keyring"]
