"""msgspec: hooks for fields of type :class:`~jwt_column.JWT`, which msgspec neither decodes nor encodes by itself.

For example::

    login = msgspec.json.decode(body, type=Login, dec_hook=dec_hook)
    answer = msgspec.json.encode(login, enc_hook=enc_hook)  # b'{"token":"**********"}'

To send a token, declare the field as ``str`` and assign ``str(token)``.
"""

from __future__ import annotations

from typing import Any, Final

from ..format.token import JWT, is_redacted

__all__ = ["MASK", "dec_hook", "enc_hook"]

#: The text that stands for a token.
MASK: Final = "**********"


def dec_hook(type_: type[Any], value: Any) -> Any:
    """Return a decoded value as a token, for ``msgspec.json.decode(..., dec_hook=dec_hook)``.

    Raises:
        InvalidTokenError: Not a JWT. msgspec reports the message, which has no part of the value.
        NotImplementedError: The field has another type.
    """
    if issubclass(type_, JWT):
        return value if isinstance(value, type_) else type_(value)
    raise NotImplementedError(f"no token: {type_.__name__}")


def enc_hook(value: Any) -> Any:
    """Return a mask for a token, or a text of an EncryptedJSON, for ``msgspec.json.encode(..., enc_hook=enc_hook)``.

    Raises:
        NotImplementedError: A value of another type.
    """
    if is_redacted(value):
        return MASK
    raise NotImplementedError(f"no token: {type(value).__name__}")
