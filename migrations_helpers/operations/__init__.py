"""The Alembic operations; importing this package registers them."""

from __future__ import annotations

from . import autogenerate, implementations

__all__: list[str] = []

# Importing them registers effects, rendering and comparison.
del autogenerate, implementations
