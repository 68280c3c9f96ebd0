"""Alembic's plugin entry point (1.18 and later): the operations are there without ``import migrations_helpers``.

Alembic loads this module while it is imported itself, half-way through. So nothing of the operations is imported before
one of them is called. Autogenerate still needs ``import migrations_helpers`` in ``env.py``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["setup"]

_OPERATIONS: Final = (
    "reencrypt_jwt_column",
    "encrypt_jwt_column",
    "decrypt_jwt_column",
    "ensure_jwt_column_current",
    "create_jwt_index",
    "drop_jwt_index",
    "create_jwt_fleet_table",
    "drop_jwt_fleet_table",
)


def setup(plugin: Any) -> None:  # noqa: ARG001 - the operations register themselves
    """Give ``op`` a stand-in for each operation that is not registered yet."""
    operations = import_module("alembic.operations").Operations
    for name in _OPERATIONS:
        if not hasattr(operations, name):
            setattr(operations, name, _stand_in(name))


def _stand_in(name: str) -> Callable[..., Any]:
    """Return a method that registers all operations, in the place of the stand-ins, and calls the one of this name."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        import_module("migrations_helpers")
        return getattr(self, name)(*args, **kwargs)

    call.__name__ = name
    return call


class _Plugin(ModuleType):
    """This module, as a collection of itself: Alembic before 1.20.1 iterates over the entry point."""

    def __iter__(self) -> Iterator[ModuleType]:
        yield self


sys.modules[__name__].__class__ = _Plugin
