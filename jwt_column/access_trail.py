"""The public names of the access trail; :mod:`jwt_column.column.access_trail` describes it."""

from __future__ import annotations

from .column.access_trail import TAG_OPTION, Access, logging_sink, opentelemetry_sink, set_access_sink

__all__ = ["TAG_OPTION", "Access", "logging_sink", "opentelemetry_sink", "set_access_sink"]
