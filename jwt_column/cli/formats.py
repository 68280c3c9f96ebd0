"""The formats of other libraries that ``jwt-column encrypt`` reads, by name, and where their keys are."""

# No "from __future__ import annotations": Typer reads the annotations of options when it builds a command.

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from migrations_helpers.formats import FernetReader, JWEReader, SQLAlchemyUtilsReader

from ..errors import ConfigurationError, KeyUnavailableError
from .options import option

__all__ = ["SourceOptions"]

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

_format_option = partial(option, rich_help_panel="The source")


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


@dataclass(frozen=True)
class SourceOptions:
    """The options of the values that are there: tokens in the clear, or the ciphertext of another library."""

    from_: Annotated[
        _Format | None,
        _format_option(
            "--from",
            metavar="FORMAT",
            help=f"The other library's format: {', '.join(get_args(_Format))}. Without it, tokens in the clear.",
        ),
    ] = None
    from_key: Annotated[
        str | None,
        _format_option(
            "--from-key",
            metavar="URI",
            help="Where that library's key is: env:NAME or file:PATH. Never the key itself.",
        ),
    ] = None
    from_padding: Annotated[
        _Padding | None,
        _format_option(
            "--from-padding",
            metavar="NAME",
            help=f"The padding of {_AES}: {', '.join(get_args(_Padding))}. Without it naive, that library's default.",
        ),
    ] = None

    def reader(self) -> Callable[[object], str] | None:
        """Return the reader of the other library's format; None for tokens in the clear.

        Raises:
            ConfigurationError: The options do not go together, or the key itself is given.
        """
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


def _source(key: str | None) -> str | _KeyFile:
    """Return the place of a reader's key."""
    if key is not None and key.startswith(_ENV) and key.removeprefix(_ENV).isidentifier():
        return key
    if key is not None and key.startswith(_FILE) and key != _FILE:
        return _KeyFile(str(Path(key.removeprefix(_FILE)).absolute()))
    # Not shown: it may be the key.
    raise ConfigurationError(
        "--from-key says where the other library's key is: env:NAME, an environment variable, or file:PATH"
    )
