"""Public names for authors of providers, and for programs that write key files.

A provider reads a key ring (:class:`KeySource`) or wraps data keys (:class:`KeyWrapper`) for one URI scheme. Another
distribution registers its provider under the entry point group ``jwt_column.providers``.
"""

from __future__ import annotations

from .keys.ring_file.plain import write_key_file
from .keys.schemes import MODULE_OF_SCHEME, PROVIDER_GROUP, open_source, open_wrapper
from .keys.source import KeySource
from .keys.wrapping import AssociatedData, KeyWrapper, Rewrapper, WrappedKey

__all__ = [
    "MODULE_OF_SCHEME",
    "PROVIDER_GROUP",
    "AssociatedData",
    "KeySource",
    "KeyWrapper",
    "Rewrapper",
    "WrappedKey",
    "open_source",
    "open_wrapper",
    "write_key_file",
]
