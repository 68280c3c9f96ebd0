"""What another library has encrypted, by the name that a command line has for it, and where its key is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from migrations_helpers.formats import FernetReader, JWEReader, SQLAlchemyUtilsReader

from ..errors import ConfigurationError, KeyUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Format", "Padding", "make_reader"]

_ENV: Final = "env:"
_FILE: Final = "file:"


class Format(StrEnum):
    """The formats that can be read."""

    FERNET = "fernet"
    JWE = "jwe"
    AES = "sqlalchemy-utils-aes"
    AES_GCM = "sqlalchemy-utils-aes-gcm"
    UTILS_FERNET = "sqlalchemy-utils-fernet"


class Padding(StrEnum):
    """The paddings of SQLAlchemy-Utils' AesEngine."""

    NAIVE = "naive"
    PKCS5 = "pkcs5"
    ONE_AND_ZEROES = "oneandzeroes"
    ZEROES = "zeroes"


@dataclass(frozen=True)
class _KeyFile:
    """A file that holds the key of another library; it can travel to a shard, which reads it for itself."""

    path: str

    def __call__(self) -> str:
        """Return the file's text without the line end that editors put there."""
        failure: Exception | None = None
        try:
            text = Path(self.path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            failure = error
        if failure is not None:
            reason = failure.strerror if isinstance(failure, OSError) else "it is no text"
            raise KeyUnavailableError(f"--from-key: the file {self.path} cannot be read: {reason}")
        return text.removesuffix("\n").removesuffix("\r")


def make_reader(
    format_: Format | None, key: str | None, padding: Padding | None
) -> Callable[[object], str] | None:
    """Return what reads a format; None for tokens in the clear.

    Raises:
        ConfigurationError: The three do not go together, or the key is given itself.
    """
    if format_ is None:
        if key is not None or padding is not None:
            raise ConfigurationError(
                "--from-key and --from-padding go with --from, which names the other library"
            )
        return None
    if padding is not None and format_ is not Format.AES:
        raise ConfigurationError(f"--from-padding goes with --from {Format.AES}, which has one")
    source = _source(key)
    match format_:
        case Format.FERNET:
            return FernetReader(key_from=source)
        case Format.JWE:
            return JWEReader(key_from=source)
        case Format.AES:
            return SQLAlchemyUtilsReader(
                key_from=source, engine="AesEngine", padding=(padding or Padding.NAIVE).value
            )
        case Format.AES_GCM:
            return SQLAlchemyUtilsReader(key_from=source, engine="AesGcmEngine")
        case _:
            return SQLAlchemyUtilsReader(key_from=source, engine="FernetEngine")


def _source(key: str | None) -> str | _KeyFile:
    """Return where a reader finds its key."""
    if key is not None and key.startswith(_ENV) and key.removeprefix(_ENV).isidentifier():
        return key
    if key is not None and key.startswith(_FILE) and key != _FILE:
        return _KeyFile(str(Path(key.removeprefix(_FILE)).absolute()))
    # Not shown: it may be the key.
    raise ConfigurationError(
        "--from-key says where the other library's key is: env:NAME, an environment variable, or file:PATH"
    )
