"""Where a decrypted token is noted, when somebody wants to know: the cipher's side of the access trail."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["note"]

#: Called for each token that is decrypted, with the context of its column and the 4 bytes of its key id. None:
#: nobody wants to know. :mod:`jwt_column.access_trail` sets it.
note: Callable[[str, bytes], None] | None = None
