"""Columns of a model that are under a ring too, and that a command which removes a key was not given."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ...auditing.columns import AuditedColumn, columns_of
from ...errors import JWTColumnError
from ...keys.providers.file import path_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from sqlalchemy import Column

__all__ = ["forgotten_columns", "is_of"]


def forgotten_columns(path: Path, named: Collection[Column[Any]]) -> Iterator[AuditedColumn]:
    """Yield the columns of the same MetaData that are under the ring in a file, and are not among those named."""
    for metadata in {column.table.metadata for column in named}:
        for column in columns_of(metadata):
            if not any(column.column is one for one in named) and is_of(path, _uri_of(column)):
                yield column


def is_of(path: Path, uri: str | None) -> bool:
    """Return True if a URI is that of the ring in a file."""
    scheme, _, rest = (uri or "").partition(":")
    return scheme == "file" and path_of(rest).resolve() == path


def _uri_of(column: AuditedColumn) -> str | None:
    """Return the URI of a column's ring; None if it has none, or cannot be loaded here."""
    with suppress(JWTColumnError):
        return column.type_.ring().uri
    return None
