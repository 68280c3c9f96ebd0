"""Re-encryption of existing rows, and its Alembic operations; importing this package registers them.

The operations are ``op.reencrypt_jwt_column``, ``op.encrypt_jwt_column``, ``op.decrypt_jwt_column`` and
``op.ensure_jwt_column_current``, for indexes ``op.create_jwt_index`` and ``op.drop_jwt_index``, and for the table of a
:class:`~jwt_column.fleet.Fleet` ``op.create_jwt_fleet_table`` and ``op.drop_jwt_fleet_table``.
:func:`reencrypt` is the engine without Alembic. :class:`FernetReader`,
:class:`SQLAlchemyUtilsReader` and :class:`JWEReader` read the ciphertext of other libraries.
"""

from __future__ import annotations

from . import operations as _operations
from .engine.preflight import preflight
from .engine.reencryption import reencrypt
from .engine.report import ReencryptionReport, TokenReport
from .formats import FernetReader, JWEReader, SQLAlchemyUtilsReader
from .operations.directives import DecryptColumnOp, EncryptColumnOp, EnsureCurrentOp, ReencryptColumnOp
from .operations.fleet import CreateFleetTableOp, DropFleetTableOp
from .operations.indexes import CreateIndexOp, DropIndexOp

__all__ = [
    "CreateFleetTableOp",
    "CreateIndexOp",
    "DecryptColumnOp",
    "DropFleetTableOp",
    "DropIndexOp",
    "EncryptColumnOp",
    "EnsureCurrentOp",
    "FernetReader",
    "JWEReader",
    "ReencryptColumnOp",
    "ReencryptionReport",
    "SQLAlchemyUtilsReader",
    "TokenReport",
    "preflight",
    "reencrypt",
]

# Importing it registers the operations.
del _operations
