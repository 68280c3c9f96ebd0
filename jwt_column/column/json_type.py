"""``EncryptedJSON``: a column of JSON objects, such as OAuth token responses, encrypted as tokens are.

>>> from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
>>> from jwt_column import EncryptedJSON
>>> class Base(DeclarativeBase): ...
>>> class OAuthToken(Base):
...     __tablename__ = "oauth_tokens"
...     id: Mapped[int] = mapped_column(primary_key=True)
...     token: Mapped[dict] = mapped_column(EncryptedJSON(fingerprints=["access_token"], expose_expiry=True))
"""

from __future__ import annotations

import json
from typing import Any

from .json_document import JSONCipher, TokenDict
from .types import EncryptedJWT


class EncryptedJSON(EncryptedJWT):
    """A column of JSON objects, each encrypted as a whole.

    Takes any mapping that has a JSON form, gives a :class:`TokenDict`: a dictionary whose changes are saved and whose
    ``repr`` shows nothing. NULL stays NULL. The database has BLOB/BYTEA or TEXT, as for :class:`EncryptedJWT`.

    ``fingerprints`` name members of the object, ``"token"`` all of it; ``.claim("access_token") == "..."`` finds rows.
    ``expose_expiry`` stores the member ``expires_at``, seconds since 1970.

    Args:
        keyring: As of :class:`EncryptedJWT`.
        **options: As of :class:`EncryptedJWT`. ``allow_opaque`` and ``allow_unsigned`` have no effect: any member may
            be a token of any kind.

    Raises:
        ConfigurationError: A parameter has a value that it cannot have.
    """

    cache_ok: bool = True
    plaintext_begins = "{"
    unreadable_hint = "a column of JSON objects reads no other JSON, null neither, and no bare tokens"

    @property
    def python_type(self) -> type[Any]:
        """The class of a loaded value."""
        return TokenDict

    def compare_values(self, x: Any, y: Any) -> bool:
        """Return True for documents of one JSON text: ``1`` is not ``true``, and the order of members counts."""
        if not isinstance(x, dict) or not isinstance(y, dict):
            return x is y
        return x == y and json.dumps(x, default=id) == json.dumps(y, default=id)

    def cipher(self) -> JSONCipher:
        """Return the cipher of this column's documents.

        Raises:
            ConfigurationError: The type belongs to no column of a table and no ``context`` was given.
        """
        return JSONCipher(self.spec)
