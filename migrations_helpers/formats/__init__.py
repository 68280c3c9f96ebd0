"""Readers of the ciphertext of other libraries, for ``op.encrypt_jwt_column(..., decrypt_with=...)``.

.. code-block:: python

    op.encrypt_jwt_column(
        "sessions",
        "token",
        type_=EncryptedJWT(storage="text"),
        decrypt_with=FernetReader(key_from="env:OLD_FERNET_KEYS"),
    )

A reader takes a stored value and returns the token. It holds the old library's key, which has no place in a revision:
give ``key_from``, the name of an environment variable (``"env:NAME"``) or a function without arguments, such as
``Path("/run/secrets/old_key").read_text``. Such a reader can travel to the worker of a shard, which fetches the key for
itself. A key that is given itself, by ``key``, stays in its process: the reader refuses to be pickled.

Rows that hold a compact JWT in the clear are adopted as they are, unless ``plaintext="refuse"``; envelopes
are never shown to a reader. What a reader cannot read, it refuses whole: the row is listed by its primary key, and left
as it is.
"""

from __future__ import annotations

from .fernet import FernetReader
from .jwe import JWEReader
from .sqlalchemy_utils import SQLAlchemyUtilsReader

__all__ = ["FernetReader", "JWEReader", "SQLAlchemyUtilsReader"]
