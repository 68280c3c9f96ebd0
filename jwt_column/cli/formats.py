"""The formats of other libraries that ``jwt-column encrypt`` reads, by name, and where their keys are."""

# No "from __future__ import annotations": Typer reads the annotations of options when it builds a command.

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Literal, get_args

from migrations_helpers.formats import FernetReader, JWEReader, SQLAlchemyUtilsReader

from ..errors import ConfigurationError, KeyUnavailableError
from .declaring import option_group, value

_ENV: Final = "env:"
_FILE: Final = "file:"

# The one format with a padding.
_AES: Final = "sqlalchemy-utils-aes"
_Padding = Literal["naive", "pkcs5", "oneandzeroes", "zeroes"]
_Format = Literal[
    "fernet", "jwe", "sqlalchemy-utils-aes", "sqlalchemy-utils-aes-gcm", "sqlalchemy-utils-fernet"
]

_READERS: Final[dict[str, Callable[..., Callable[[object], str]]]] = {
    "fernet": FernetReader,
    "jwe": JWEReader,
    _AES: partial(SQLAlchemyUtilsReader, engine="AesEngine"),
    "sqlalchemy-utils-aes-gcm": partial(SQLAlchemyUtilsReader, engine="AesGcmEngine"),
    "sqlalchemy-utils-fernet": partial(SQLAlchemyUtilsReader, engine="FernetEngine"),
}


def _key_in(path: Path) -> str:
    """Return the text of a key's file without the line end that editors put there."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
    else:
        return text.removesuffix("\n").removesuffix("\r")
    raise KeyUnavailableError(f"--from-key: the file {path} cannot be read: {reason}")


@option_group("The source")
class SourceOptions:
    """The options of the values that are there: tokens in the clear, or the ciphertext of another library."""

    from_: _Format | None = value(
        "--from FORMAT",
        f"The other library's format: {', '.join(get_args(_Format))}. Without it, tokens in the clear.",
    )
    from_key: str | None = value(
        "--from-key URI", "Where that library's key is: env:NAME or file:PATH. Never the key itself."
    )
    from_padding: _Padding | None = value(
        "--from-padding NAME",
        f"The padding of {_AES}: {', '.join(get_args(_Padding))}. Without it naive, that library's default.",
    )

    def reader(self) -> Callable[[object], str] | None:
        """Return the reader of the other library's format; None for tokens in the clear."""
        if self.from_ is None:
            if self.from_key is not None or self.from_padding is not None:
                raise ConfigurationError(
                    "--from-key and --from-padding go with --from, which names the other library"
                )
            return None
        if self.from_padding is not None and self.from_ != _AES:
            raise ConfigurationError(f"--from-padding goes with --from {_AES}, which has one")
        padding = {"padding": self.from_padding or "naive"} if self.from_ == _AES else {}
        return _READERS[self.from_](key_from=_source(self.from_key), **padding)


def _source(key: str | None) -> str | Callable[[], str]:
    """Return the place of a reader's key; it can travel to a shard, which reads the key for itself."""
    if key is not None and key.startswith(_ENV) and key.removeprefix(_ENV).isidentifier():
        return key
    if key is not None and key.startswith(_FILE) and key != _FILE:
        return partial(_key_in, Path(key.removeprefix(_FILE)).absolute())
    # Not shown: it may be the key.
    raise ConfigurationError(
        "--from-key says where the other library's key is: env:NAME, an environment variable, or file:PATH"
    )
