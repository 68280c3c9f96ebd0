"""Vendors' SDKs: imported when a call needs them, with their debug logs of data keys suppressed."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from ...errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator

_in_a_call: Final[ContextVar[bool]] = ContextVar("jwt_column_in_a_call", default=False)


def import_sdk(module: str, extra: str) -> Any:
    """Return a module of an SDK."""
    try:
        return import_module(module)
    except ImportError as error:
        reason = f"{type(error).__name__}, {error.name}"
    raise MissingExtraError(f'{extra}: needs its extra ({reason}); run: pip install "jwt-column[{extra}]"')


def _is_not_ours(_record: logging.LogRecord) -> bool:
    """Drop records logged within :func:`unlogged`; the application's own calls are still logged."""
    return not _in_a_call.get()


@contextmanager
def unlogged(*names: str) -> Iterator[None]:
    """Silence these loggers for the calls of a ``with`` block, in this thread.

    At level DEBUG some SDKs log the bodies of requests and responses, which hold the data key.

    Args:
        names: Full names of the loggers. A filter does not reach a logger's children.
    """
    for name in names:
        # Adding a filter twice has no effect.
        logging.getLogger(name).addFilter(_is_not_ours)
    token = _in_a_call.set(True)
    try:
        yield
    finally:
        _in_a_call.reset(token)
