"""The key ids of stored rows, which show the keys that a ring lacks before a row is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Engine, select

from ..errors import ConfigurationError


def encrypted_columns(columns: Any) -> tuple[Any, ...]:
    """Return one encrypted column, or several, as a tuple; refuse anything else."""
    if hasattr(columns, "key_id"):
        return (columns,)
    given = tuple(columns) if isinstance(columns, Iterable) else (columns,)
    if not all(hasattr(column, "key_id") for column in given):
        raise ConfigurationError("is_ready() takes a list of encrypted columns, such as [Session.token]")
    return given


def stored_key_ids(engine: Engine, columns: Iterable[Any]) -> set[str]:
    """Return the key ids of the rows of encrypted columns. It reads the first bytes of each row, or a ``StaleIndex``.

    Raises:
        ConfigurationError: The engine is asynchronous: the query runs in the thread of the refresh, without a loop.
    """
    if not isinstance(engine, Engine):
        raise ConfigurationError(
            "the key ids of rows are read on a synchronous engine; give one to is_ready()"
        )
    with engine.connect() as connection:
        return {
            key_id
            for column in columns
            for (key_id,) in connection.execute(select(column.key_id).distinct())
            if key_id is not None
        }
