"""Alembic's plugin entry point (1.18 and later): all is there without ``import migrations_helpers``.

Alembic loads this module while it is imported itself, half-way through. So nothing of the operations is imported before
one of them is called, or before autogenerate compares the tables of an application with encrypted columns.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


# Alembic runs the comparisons of the plugins below this name, unless "autogenerate_plugins" says otherwise.
_COMPARISON: Final = "alembic.autogenerate.jwt_column"
_OURS: Final = "migrations_helpers.operations.autogenerate"

# Comparisons that began before the module above was imported, so that its own registration comes too late for them.
_begun: Final[WeakSet[Any]] = WeakSet()
_registered: Final[set[str]] = set()


def setup(plugin: Any) -> None:
    """Give ``op`` a stand-in for each operation that is not registered yet, and autogenerate its comparison."""
    operations = import_module("alembic.operations").Operations
    for name in _OPERATIONS:
        if not hasattr(operations, name):
            setattr(operations, name, _stand_in(name))
    if _COMPARISON not in _registered:
        _registered.add(_COMPARISON)
        comparison, priority = type(plugin)(_COMPARISON), import_module("alembic.util").DispatchPriority
        comparison.add_autogenerate_comparator(_begin, "schema", priority=priority.FIRST)
        comparison.add_autogenerate_comparator(_end, "schema", priority=priority.LAST)


def _begin(context: Any, upgrade_ops: Any, schemas: Any) -> None:
    """Take part in a comparison that ``import migrations_helpers`` did not register for."""
    if _OURS not in sys.modules and "jwt_column.column.types" in sys.modules:
        _begun.add(context)
        import_module(_OURS).leave_indexes_to_us(context, upgrade_ops, schemas)


def _end(context: Any, upgrade_ops: Any, schemas: Any) -> None:
    if context in _begun:
        import_module(_OURS).complete(context, upgrade_ops, schemas)


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
