"""The Alembic operations; importing this package registers them."""

from __future__ import annotations

from . import autogenerate, batch, implementations

__all__: list[str] = []

# Importing them registers effects, rendering, comparison, and what keeps indexes.
del autogenerate, batch, implementations
