"""Admin pages that show no token: in lists, details, exports and forms of sqladmin and starlette-admin.

Neither of the two is imported before a class of this module is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import inspect
from sqlalchemy.exc import IntegrityError

from ..column.json_document import TokenDict, TokenList
from ..column.sealed import SealedJWT
from ..column.types import EncryptedJWT
from ..errors import ConfigurationError, InvalidTokenError
from ..format.token import JWT, is_redacted
from .msgspec import MASK

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MaskedTokens", "encrypted_columns", "masked", "token_field"]


def masked(value: Any) -> Any:
    """Return a mask for a token, or for the document of an :class:`~jwt_column.EncryptedJSON`; else the value.

    A formatter for any admin page or export. Of a list, set or dictionary with tokens in it, it returns a copy with
    masks.
    """
    if isinstance(value, SealedJWT | TokenDict | TokenList) or is_redacted(value):
        return MASK
    if isinstance(value, Mapping):
        shown: Any = {masked(name): masked(member) for name, member in value.items()}
        return shown if _differ([*shown, *shown.values()], [*value, *value.values()]) else value
    if isinstance(value, Sequence | AbstractSet) and not isinstance(
        value, str | bytes | bytearray | memoryview
    ):
        members = list(value)
        shown = [masked(member) for member in members]
        return shown if _differ(shown, members) else value
    return value


def _differ(shown: Sequence[Any], members: Sequence[Any]) -> bool:
    return len(shown) != len(members) or any(
        one is not other for one, other in zip(shown, members, strict=True)
    )


def encrypted_columns(model: type[Any]) -> dict[str, EncryptedJWT]:
    """Return the types of a mapped class's encrypted attributes, by the attribute's name."""
    types = {prop.key: prop.columns[0].type for prop in inspect(model).column_attrs}
    return {name: type_ for name, type_ in types.items() if isinstance(type_, EncryptedJWT)}


class MaskedTokens:
    """Masks every token of a sqladmin view, and asks for new ones as for passwords: an empty input keeps the old one.

    For example::

        class LoginAdmin(MaskedTokens, sqladmin.ModelView, model=Login):
            column_list = [Login.id, Login.token]

    Raises:
        ConfigurationError: The view searches, sorts or filters by an encrypted column.
    """

    model: Any
    form_args: Any
    form_overrides: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        from wtforms import PasswordField, validators

        names = encrypted_columns(self.model)
        self.form_overrides = {**dict.fromkeys(names, PasswordField), **self.form_overrides}
        given = self.form_args or {}
        # Without validators, sqladmin makes the field of a NOT NULL column required.
        optional = {
            name: {
                **given.get(name, {}),
                "validators": [validators.Optional(), *_validators(given.get(name, {}))],
            }
            for name in names
        }
        self.form_args = {**given, **optional}
        super().__init__(*args, **kwargs)
        for option, prop in self._conditions():
            if _is_encrypted(self.model, prop):
                name = prop if isinstance(prop, str) else prop.key
                raise ConfigurationError(
                    f"{option} of {type(self).__name__} names the encrypted {name}: ciphertext has no order and no "
                    "LIKE, and a filter would show tokens, or ask for one in the address of the page; leave it out"
                )

    def _conditions(self) -> Iterator[tuple[str, Any]]:
        """Yield each attribute that the view searches, sorts or filters by, with the option that names it."""
        view = cast("Any", self)
        for option in ("column_searchable_list", "column_sortable_list"):
            yield from ((option, prop) for prop in getattr(view, option, ()))
        yield from (("column_default_sort", prop) for prop, _ in view._get_default_sort())  # noqa: SLF001 - the view's
        for one in getattr(view, "column_filters", ()):
            if hasattr(one, "column"):
                yield "column_filters", one.column

    async def get_prop_value(self, obj: Any, prop: str) -> Any:
        """Return a value for a list, a detail page or an export."""
        return masked(await super().get_prop_value(obj, prop))  # type: ignore[misc]

    async def insert_model(self, request: Any, data: Mapping[str, Any]) -> Any:
        """Insert a row. Tokens are checked first.

        Raises:
            InvalidTokenError: A text that is no token, or no text where the column has to have one.
        """
        try:
            return await super().insert_model(request, self._checked(data))  # type: ignore[misc]
        except IntegrityError as error:
            missing = self._missing(data)
            if not missing:
                raise
            failure = InvalidTokenError(f"{missing} is empty: enter the token", reason="empty")
            failure.__cause__ = error
        raise failure

    async def update_model(self, request: Any, pk: str, data: Mapping[str, Any]) -> Any:
        """Update a row, as :meth:`insert_model` inserts one."""
        return await super().update_model(request, pk, self._checked(data))  # type: ignore[misc]

    async def _emit_audit(
        self, request: Any, action: str, pk: Any, changes: Mapping[str, Any] | None
    ) -> None:
        """Give an entry to sqladmin's audit log, which may write it as JSON: without tokens."""
        await super()._emit_audit(request, action, pk, masked(changes))  # type: ignore[misc]

    def _checked(self, data: Mapping[str, Any]) -> dict[str, Any]:
        types = encrypted_columns(self.model)
        given = {name: value for name, value in data.items() if value or name not in types}
        return {
            name: types[name].cipher().check(value) if name in types else value
            for name, value in given.items()
        }

    def _missing(self, data: Mapping[str, Any]) -> str:
        """Return the names of the encrypted attributes that a form left empty although a row needs them."""
        columns = inspect(self.model).columns
        names = (name for name in encrypted_columns(self.model) if name in data and not data[name])
        return " and ".join(name for name in names if not columns[name].nullable)


def _validators(form_args: Mapping[str, Any]) -> Sequence[Any]:
    return form_args.get("validators") or ()


def _is_encrypted(model: type[Any], prop: Any) -> bool:
    """Return True for an attribute, or the path to one through relationships, that is encrypted."""
    if not isinstance(prop, str):
        model, prop = getattr(prop, "class_", model), prop.key
    *path, name = prop.split(".")
    for part in path:
        relationship = inspect(model).relationships.get(part)
        if relationship is None:
            return False
        model = relationship.mapper.class_
    return name in encrypted_columns(model)


def token_field(attribute: Any, **options: Any) -> Any:
    """Return a starlette-admin field that shows a mask, for ``fields`` of a view.

    It is in no form and no import, and cannot be searched, filtered or sorted. ``read_only=False`` lets a token be
    entered when a row is made, and with ``exclude_from_import=False`` imports have it too. A text that is no token is
    an error in the form.

    Args:
        attribute: The attribute, or its name.
        **options: Further arguments of ``starlette_admin.fields.StringField``.

    Raises:
        ConfigurationError: ``read_only=False`` together with ``exclude_from_edit=False``: a form would save the mask.
    """
    from starlette_admin.fields import StringField

    options = {"read_only": True, "exclude_from_edit": True, "input_type": "password", **options}
    # An import that updates rows sets what its file does not have to None.
    if hasattr(StringField, "exclude_from_import"):
        options = {"exclude_from_import": True, **options}
    if options["read_only"]:
        # Before 1.0 starlette-admin saves what the form of a read-only field sends: the mask.
        options["exclude_from_create"] = options["exclude_from_edit"] = True
    elif not options["exclude_from_edit"]:
        raise ConfigurationError(
            "a token field with exclude_from_edit=False would save its mask as the token, or nothing; leave "
            "exclude_from_edit out, and replace a token by a row of its own or an action of the view"
        )

    class TokenField(StringField):  # type: ignore[misc]
        # The view sets both for each field, to True unless it lists its own.
        searchable = property(lambda _: False, lambda *_: None)
        orderable = property(lambda _: False, lambda *_: None)

        async def serialize_value(self, *_: Any) -> str:
            return MASK

        # Neither calls the method of the library, which logs the raw value.
        async def parse_form_data(self, _request: Any, form_data: Any, *_: Any) -> Any:
            return _entered(form_data.get(self.id))

        async def parse_import_value(self, _request: Any, value: Any) -> Any:
            return _entered(value)

        async def validate(self, request: Any, value: Any, form_values: Any) -> None:
            await super().validate(request, value, form_values)
            model = _model_with(self, request) if isinstance(attribute, str) else attribute.class_
            column = None if model is None else inspect(model).columns.get(self.name)
            if column is None:
                return
            if value is not None:
                column.type.cipher().check(value)
            elif not column.nullable and column.default is None and column.server_default is None:
                raise ValueError("enter the token, which every row has to have")

    return TokenField(attribute if isinstance(attribute, str) else attribute.key, **options)


def _model_with(field: Any, request: Any) -> Any:
    """Return the mapped class of the view that has a field; None if the request does not tell."""
    admin = getattr(request.scope.get("endpoint"), "__self__", None)
    for view in getattr(admin, "_model_views", ()):
        if view.key == request.path_params.get("key"):
            for one in (view, *getattr(view, "_inline_instances", ())):
                if any(known is field for known in one.fields):
                    return getattr(one, "model", None)
    return None


class _EnteredToken(JWT):
    """A text from a form, not checked yet. A form that is shown again because of an error has an empty input."""

    __slots__ = ()

    def __html__(self) -> str:
        return ""


def _entered(value: Any) -> Any:
    return str.__new__(_EnteredToken, value) if isinstance(value, str) and value else None
