"""Litestar: requests and responses with fields of type :class:`~jwt_column.JWT`, in DTOs, structures and models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..format.pydantic_schema import JSON_SCHEMA
from ..format.token import JWT, RedactedText
from .msgspec import dec_hook, enc_hook

if TYPE_CHECKING:
    from litestar.config.app import AppConfig

__all__ = ["accept_tokens"]


def accept_tokens(app_config: AppConfig) -> AppConfig:
    """Accept tokens in requests, by their shape, mask them in responses, and describe them in the OpenAPI document.

    ``Litestar(..., on_app_init=[accept_tokens])``. The texts within an :class:`~jwt_column.EncryptedJSON` are masked
    too. A handler that is to send a token or such a text returns ``str(token)``.
    """
    app_config.type_decoders = [*(app_config.type_decoders or ()), (_is_token, dec_hook)]
    app_config.type_encoders = {**(app_config.type_encoders or {}), JWT: enc_hook, RedactedText: enc_hook}
    # In place: Litestar goes on through this very list, to which other plugins add too.
    app_config.plugins.append(_openapi_plugin())
    return app_config


def _is_token(type_: object) -> bool:
    return isinstance(type_, type) and issubclass(type_, JWT)


def _openapi_plugin() -> Any:
    from litestar.openapi.spec import OpenAPIType, Schema
    from litestar.plugins import OpenAPISchemaPlugin

    class TokenSchema(OpenAPISchemaPlugin):
        def is_plugin_supported_field(self, field_definition: Any) -> bool:
            return bool(field_definition.is_subclass_of(JWT))

        def to_openapi_schema(self, field_definition: Any, schema_creator: Any) -> Any:  # noqa: ARG002
            return Schema(
                type=OpenAPIType.STRING, format=JSON_SCHEMA["format"], examples=JSON_SCHEMA["examples"]
            )

    return TokenSchema()
