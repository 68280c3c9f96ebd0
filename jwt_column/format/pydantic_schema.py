"""The schema by which pydantic validates and serializes a :class:`JWT`. pydantic is imported when it asks for it.

Two properties need care. A validation error of pydantic carries the rejected input, in its text and in ``errors()``;
and a response model sends every field that it has.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final, NoReturn

from ..errors import InvalidTokenError

if TYPE_CHECKING:
    from pydantic import SerializationInfo, ValidatorFunctionWrapHandler
    from pydantic_core import CoreSchema, SchemaSerializer

_MASK: Final = "**********"  # As pydantic's SecretStr is shown.

#: The JSON schema of a token, in requests and responses.
JSON_SCHEMA: Final[dict[str, Any]] = {"type": "string", "format": "jwt", "examples": ["<redacted>"]}


class _Refused(str):
    """A text that stands for a refused value: pydantic reports it as the input of the error."""

    __slots__ = ("error",)
    error: InvalidTokenError


def core_schema_of(jwt: type[str]) -> CoreSchema:
    """Return the core schema of the token class *jwt*.

    Validation takes a token, a ``str``, and the ``SecretStr`` that ``model_dump()`` gives. It has two steps: the first
    replaces a value that it refuses, the second raises, so that the error never sees the value. pydantic shows the
    name of the first in the places of errors of a union.

    Serialization gives a ``SecretStr`` in Python mode and a mask in JSON mode. A field that is to give the token
    declares it: ``Annotated[JWT, PlainSerializer(str)]``.
    """
    from pydantic import SecretStr
    from pydantic_core import PydanticCustomError, core_schema

    def token(value: Any, refuse: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, jwt):
            return value
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        try:
            return jwt(value)
        except InvalidTokenError as error:
            size = f", {len(value)} characters" if isinstance(value, str) else ""
            refused = _Refused(f"<redacted{size}>")
            refused.error = error
            return refuse(refused)

    def raise_error(value: _Refused) -> NoReturn:
        error = value.error
        explanation = {"explanation": str(error), "reason": error.reason}
        raise PydanticCustomError("jwt", "Input should be a JSON Web Token: {explanation}", explanation)

    def hide(value: Any, info: SerializationInfo) -> Any:
        if info.mode == "json":
            return _MASK
        return SecretStr(str(value)) if isinstance(value, str) else value

    return core_schema.no_info_wrap_validator_function(
        token,
        core_schema.no_info_plain_validator_function(raise_error),
        serialization=core_schema.plain_serializer_function_ser_schema(hide, info_arg=True),
    )


@cache
def serializer_of(jwt: type[str]) -> SchemaSerializer:
    """Return what serializes a token of the class *jwt* that pydantic meets where no field declares it.

    pydantic would take it for the ``str`` that it is.

    Raises:
        ImportError: There is no pydantic.
    """
    from pydantic_core import SchemaSerializer

    return SchemaSerializer(core_schema_of(jwt))
