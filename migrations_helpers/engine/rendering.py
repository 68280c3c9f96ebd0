"""A column's type as a line of a migration: every option that is not its default, and never the key ring."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jwt_column.column.spec import ColumnSpec
    from jwt_column.column.types import EncryptedJWT

# Its modules are private; its classes are imported from the package itself.
_PACKAGE = "jwt_column"


def render_type(type_: EncryptedJWT, spec: ColumnSpec | None = None) -> str:
    """Return the constructor's call, as ``EncryptedJWT(...)``, for a type, or with other options for one like it."""
    options = (spec or type_.spec).options()
    if type_.context_is_default:
        options.pop("context", None)
    return f"{type(type_).__name__}({', '.join(f'{name}={value!r}' for name, value in options.items())})"


def import_of(type_: EncryptedJWT) -> str:
    """Return the import statement of a type's class, which may be the application's own."""
    class_ = type(type_)
    package = class_.__module__.partition(".")[0]
    return f"from {package if package == _PACKAGE else class_.__module__} import {class_.__name__}"
