"""Vendors' SDKs: imported when a call needs them, and kept from writing data keys into logs."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from ...errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["import_sdk", "unlogged"]

_in_a_call: Final[ContextVar[bool]] = ContextVar("jwt_column_in_a_call", default=False)


def import_sdk(module: str, extra: str) -> Any:
    """Return a module of an SDK.

    Raises:
        MissingExtraError: The extra that brings it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        reason = f"{type(error).__name__}, {error.name}"
    raise MissingExtraError(f'{extra}: needs its extra ({reason}); run: pip install "jwt-column[{extra}]"')


def _is_not_ours(_record: logging.LogRecord) -> bool:
    """Drop what is logged while a call of ours runs; calls of the application are logged as ever."""
    return not _in_a_call.get()


@contextmanager
def unlogged(*names: str) -> Iterator[None]:
    """Let these loggers say nothing about what is called inside, in this thread.

    At level DEBUG some SDKs write the bodies of requests and responses, and in those stands the data key.

    Args:
        names: Full names of the loggers that do. A filter does not reach a logger's children.
    """
    for name in names:
        # A filter is there once, however often it is added.
        logging.getLogger(name).addFilter(_is_not_ours)
    token = _in_a_call.set(True)
    try:
        yield
    finally:
        _in_a_call.reset(token)
