"""Admin pages that show no token: in lists, details, exports and forms of sqladmin and starlette-admin.

Neither of the two is imported before a class of this module is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect

from ..column.sealed import SealedJWT
from ..column.types import EncryptedJWT
from ..format.token import JWT
from .msgspec import MASK

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MaskedTokens", "encrypted_columns", "masked", "token_field"]


def masked(value: Any) -> Any:
    """Return a mask for a token; any other value as it is. A formatter for any admin page or export."""
    return MASK if isinstance(value, JWT | SealedJWT) else value


def encrypted_columns(model: type[Any]) -> dict[str, EncryptedJWT]:
    """Return the types of a mapped class's encrypted attributes, by the attribute's name."""
    types = {prop.key: prop.columns[0].type for prop in inspect(model).column_attrs}
    return {name: type_ for name, type_ in types.items() if isinstance(type_, EncryptedJWT)}


class MaskedTokens:
    """Masks every token of a sqladmin view, and asks for new ones as for passwords: an empty input keeps the old one.

    For example::

        class LoginAdmin(MaskedTokens, sqladmin.ModelView, model=Login):
            column_list = [Login.id, Login.token]
    """

    model: Any
    form_args: Any
    form_overrides: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        from wtforms import PasswordField, validators

        names = encrypted_columns(self.model)
        self.form_overrides = {**dict.fromkeys(names, PasswordField), **self.form_overrides}
        optional = {name: {"validators": [validators.Optional()]} for name in names}
        self.form_args = {**optional, **(self.form_args or {})}
        super().__init__(*args, **kwargs)

    async def get_prop_value(self, obj: Any, prop: str) -> Any:
        """Return a value for a list, a detail page or an export."""
        return masked(await super().get_prop_value(obj, prop))  # type: ignore[misc]

    async def insert_model(self, request: Any, data: Mapping[str, Any]) -> Any:
        """Insert a row; tokens are checked first, and sqladmin's audit log gets them with a redacted ``repr``."""
        return await super().insert_model(request, self._checked(data))  # type: ignore[misc]

    async def update_model(self, request: Any, pk: str, data: Mapping[str, Any]) -> Any:
        """Update a row, as :meth:`insert_model` inserts one."""
        return await super().update_model(request, pk, self._checked(data))  # type: ignore[misc]

    def _checked(self, data: Mapping[str, Any]) -> dict[str, Any]:
        types = encrypted_columns(self.model)
        given = {name: value for name, value in data.items() if value or name not in types}
        return {
            name: types[name].cipher().check(value) if name in types else value
            for name, value in given.items()
        }


def token_field(name: str, **options: Any) -> Any:
    """Return a starlette-admin field that shows a mask, for ``fields`` of a view.

    It cannot be edited, searched or sorted. To let a token be entered once, give ``read_only=False`` and
    ``exclude_from_edit=True``.

    Args:
        name: The attribute.
        **options: Further arguments of ``starlette_admin.fields.StringField``.
    """
    from starlette_admin.fields import StringField

    class TokenField(StringField):  # type: ignore[misc]
        async def serialize_value(self, *_: Any) -> str:
            return MASK

    return TokenField(name, **{"read_only": True, "searchable": False, "orderable": False, **options})
