"""Helpers for the tests of an application: a throw-away key ring, a fake KEK, and a check of the stored bytes.

pytest finds the fixtures ``jwt_column_keyring`` and ``jwt_column_fake_kek`` by itself. Other test runners call the
context managers of this module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .assertions import assert_encrypted
    from .kek import FakeKEK, fake_kek
    from .throwaway import throwaway_keyring

__all__ = ["FakeKEK", "assert_encrypted", "fake_kek", "throwaway_keyring"]

# Imported when first used: pytest imports this package for its plugin, in the runs of other projects too.
_MODULES: Final = {
    "FakeKEK": "kek",
    "assert_encrypted": "assertions",
    "fake_kek": "kek",
    "throwaway_keyring": "throwaway",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
        return value
