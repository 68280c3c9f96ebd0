"""Where a key ring comes from and who wraps its keys: one private module per URI scheme, one table of schemes.

A URI names a source or a wrapper; it is asked when the ring is loaded, never while a row is bound or loaded.
"""

from __future__ import annotations

from .. import keyring
from ._file import write_key_file
from ._schemes import MODULE_OF_SCHEME, PROVIDER_GROUP, open_source, open_wrapper
from ._wrapping import AssociatedData, KeyWrapper, Rewrapper, WrappedKey

__all__ = [
    "MODULE_OF_SCHEME",
    "PROVIDER_GROUP",
    "AssociatedData",
    "KeyWrapper",
    "Rewrapper",
    "WrappedKey",
    "open_source",
    "open_wrapper",
    "write_key_file",
]

keyring.open_source = open_source
