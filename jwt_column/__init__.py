"""JSON Web Tokens encrypted at rest, in a SQLAlchemy column.

>>> from sqlalchemy import create_engine
>>> from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
>>> from jwt_column import JWT, EncryptedJWT, KeyRing, set_default_keyring
>>> set_default_keyring(KeyRing.generate())  # an application names a file or a key server instead
>>> class Base(DeclarativeBase): ...
>>> class Login(Base):
...     __tablename__ = "logins"
...     id: Mapped[int] = mapped_column(primary_key=True)
...     token: Mapped[JWT] = mapped_column(EncryptedJWT())
>>> engine = create_engine("sqlite://")
>>> Base.metadata.create_all(engine)
>>> with Session(engine) as session:
...     session.add(Login(token="eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"))
...     session.commit()
...     session.get_one(Login, 1).token
JWT(redacted, 54 characters)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

__version__ = "0.2.0"

if TYPE_CHECKING:
    from migrations_helpers.engine.preflight import preflight

    from .auditing import AuditReport, Finding, Severity, audit, check_declarations, check_ready
    from .census import key_usage
    from .column.annotations import MappedToken, token_column
    from .column.cipher import decrypt_token, encrypt_token
    from .column.indexes import ExpiryIndex, FingerprintIndex, StaleIndex
    from .column.json_type import EncryptedJSON
    from .column.orm import redact_errors
    from .column.sealed import SealedJWT
    from .column.types import EncryptedJWT
    from .errors import (
        AuditError,
        AuthenticationError,
        ConfigurationError,
        DecryptionError,
        InvalidTokenError,
        JWTColumnError,
        KeyRingError,
        KeyUnavailableError,
        MalformedEnvelopeError,
        MissingExtraError,
        PlaintextFoundError,
        ReencryptionError,
        UnknownKeyError,
        UnsupportedComparisonError,
        UnsupportedVersionError,
    )
    from .format.token import JWT
    from .keys.default import set_default_keyring
    from .keys.ring import KeyRing, generate_key
    from .purge import purge_expired
    from .scanning import ScanReport, find_plaintext_tokens

__all__ = [
    "JWT",
    "AuditError",
    "AuditReport",
    "AuthenticationError",
    "ConfigurationError",
    "DecryptionError",
    "EncryptedJSON",
    "EncryptedJWT",
    "ExpiryIndex",
    "Finding",
    "FingerprintIndex",
    "InvalidTokenError",
    "JWTColumnError",
    "KeyRing",
    "KeyRingError",
    "KeyUnavailableError",
    "MalformedEnvelopeError",
    "MappedToken",
    "MissingExtraError",
    "PlaintextFoundError",
    "ReencryptionError",
    "ScanReport",
    "SealedJWT",
    "Severity",
    "StaleIndex",
    "UnknownKeyError",
    "UnsupportedComparisonError",
    "UnsupportedVersionError",
    "audit",
    "check_declarations",
    "check_ready",
    "decrypt_token",
    "encrypt_token",
    "find_plaintext_tokens",
    "generate_key",
    "key_usage",
    "preflight",
    "purge_expired",
    "redact_errors",
    "set_default_keyring",
    "token_column",
]

#: The names of each module but ``.errors``, which has all others. A module is imported when one of its names is first
#: used, and SQLAlchemy with it.
_NAMES: Final = {
    ".auditing": ("AuditReport", "Finding", "Severity", "audit", "check_declarations", "check_ready"),
    ".census": ("key_usage",),
    ".column.annotations": ("MappedToken", "token_column"),
    ".column.cipher": ("decrypt_token", "encrypt_token"),
    ".column.indexes": ("ExpiryIndex", "FingerprintIndex", "StaleIndex"),
    ".column.json_type": ("EncryptedJSON",),
    ".column.orm": ("redact_errors",),
    ".column.sealed": ("SealedJWT",),
    ".column.types": ("EncryptedJWT",),
    ".format.token": ("JWT",),
    ".keys.default": ("set_default_keyring",),
    ".keys.ring": ("KeyRing", "generate_key"),
    ".purge": ("purge_expired",),
    ".scanning": ("ScanReport", "find_plaintext_tokens"),
    "migrations_helpers.engine.preflight": ("preflight",),
}
_MODULES: Final = {name: module for module, names in _NAMES.items() for name in names}


# A type checker would take a module with __getattr__ for one that has every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(_MODULES.get(name, ".errors"), __name__)
        value = globals()[name] = getattr(module, name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
