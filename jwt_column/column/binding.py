"""Binding: values of a row, authenticated with its envelope (envelope-v1, "AAD")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from uuid import UUID

from ..errors import AuthenticationError, ConfigurationError
from ..format.token import JWT, given_expiry, unchecked_jwt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    BoundValue = str | int | UUID | bytes

_Opened = TypeVar("_Opened")

_U16_MAX: Final = 2**16 - 1


def sized(data: bytes, subject: str) -> bytes:
    """Return data behind its length as u16.

    Raises:
        ConfigurationError: More than 65,535 bytes; *subject* names them in the message.
    """
    if len(data) > _U16_MAX:
        raise ConfigurationError(
            f"{subject} has {len(data)} bytes in UTF-8; at most {_U16_MAX} can be authenticated"
        )
    return len(data).to_bytes(2, "big") + data


def binding_of(values: Iterable[tuple[str, BoundValue]]) -> bytes:
    """Return the part of the associated data that ties an envelope to values of its row, in the order given.

    Raises:
        ConfigurationError: A value that is neither text, integer, UUID nor bytes: None among them.
    """
    parts = []
    for name, value in values:
        parts.append(sized(name.encode(), "the bound column's name"))
        parts.append(sized(_canonical(name, value), f"the bound column {name}"))
    return b"".join(parts)


def _canonical(name: str, value: object) -> bytes:
    """Return a bound value as it is authenticated."""
    match value:
        case str():
            return b"s" + value.encode()
        case int() if not isinstance(value, bool):
            return b"i%d" % value
        case UUID():
            return b"u" + value.bytes
        case bytes() | bytearray() | memoryview():
            return b"b" + bytes(value)
    raise ConfigurationError(
        f"the bound column {name} holds {type(value).__name__}; a token can be bound to text, integers, "
        "UUIDs and bytes that are known before the row is written"
    )


def open_bound(action: Callable[[bytes], _Opened], names: Sequence[str], values: Sequence[Any]) -> _Opened:
    """Open an envelope by *action*, given the binding to these values of its row, as the database returned them.

    A UUID comes back as text from a database without such a type. An envelope authenticates under the right binding
    only, so the second attempt cannot open a wrong one.

    Raises:
        AuthenticationError: The envelope is bound to other values.
    """
    try:
        return action(binding_of(zip(names, values, strict=True)))
    except AuthenticationError:
        as_uuids = [_as_uuid(value) for value in values]
        if as_uuids == list(values):
            raise
    return action(binding_of(zip(names, as_uuids, strict=True)))


def _as_uuid(value: Any) -> Any:
    try:
        return UUID(value) if isinstance(value, str) else value
    except ValueError:
        return value


class BoundJWT(JWT):
    """A token on its way into one row. The type takes the binding when it encrypts, so it serves for that row only."""

    __slots__ = ("_binding",)
    _binding: bytes | None

    @classmethod
    def of(cls, token: JWT, binding: bytes) -> BoundJWT:
        """Return a token together with the binding of its row."""
        bound = cast("BoundJWT", unchecked_jwt(token, token.kind, expiry=given_expiry(token), cls=cls))
        bound._binding = binding  # noqa: SLF001 - of the object made here
        return bound

    def take_binding(self) -> bytes | None:
        """Return the binding the first time, None after that."""
        binding, self._binding = self._binding, None
        return binding
