"""Annotations that show type checkers the operators of an encrypted attribute.

    >>> from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
    >>> from jwt_column import JWT, EncryptedJWT, MappedToken, token_column
    >>> class Base(DeclarativeBase): ...
    >>> class Login(Base):
    ...     __tablename__ = "logins"
    ...     id: Mapped[int] = mapped_column(primary_key=True)
    ...     token: MappedToken[JWT] = token_column(EncryptedJWT(fingerprints=["jti"]))

With ``Mapped[JWT]`` everything works as well, but a checker refuses ``login.token = "eyJ..."`` and accepts every name
after ``Login.token.``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy.orm import Mapped, mapped_column

if TYPE_CHECKING:
    from datetime import datetime
    from typing import overload

    from sqlalchemy import ColumnElement
    from sqlalchemy.sql.elements import SQLCoreOperations

__all__ = ["MappedToken", "token_column"]

_T = TypeVar("_T")

if TYPE_CHECKING:

    class TokenAttribute(SQLCoreOperations[_T]):
        """An encrypted attribute of a class, in SQL."""

        @property
        def key_id(self) -> ColumnElement[str | None]: ...
        @property
        def is_stale(self) -> ColumnElement[bool]: ...
        @property
        def is_plaintext(self) -> ColumnElement[bool]: ...
        @property
        def expires_at(self) -> ColumnElement[datetime | None]: ...
        def stale_under(self, *active: str) -> ColumnElement[bool]: ...
        def claim(self, name: str) -> SQLCoreOperations[str | int | None]: ...

    class MappedToken(Generic[_T]):
        """The annotation of an encrypted attribute: a token or None on an instance, SQL on the class."""

        @overload
        def __get__(self, instance: None, owner: Any) -> TokenAttribute[_T]: ...
        @overload
        def __get__(self, instance: object, owner: Any) -> _T: ...
        def __get__(self, instance: object, owner: Any) -> Any: ...
        def __set__(self, instance: Any, value: _T | str) -> None: ...

else:

    class MappedToken(Mapped[_T]):
        """The annotation of an encrypted attribute, in place of ``Mapped``, for type checkers.

        ``MappedToken[JWT]`` or ``MappedToken[JWT | None]``. An instance takes a ``str`` and gives a JWT; on the class,
        ``claim()``, ``key_id``, ``is_stale``, ``is_plaintext``, ``expires_at`` and the operators are known, and any
        other name is an error.
        """

        __slots__ = ()


def token_column(*args: Any, **kwargs: Any) -> Any:
    """Return ``mapped_column(...)`` for an attribute that is annotated with :class:`MappedToken`.

    A checker does not know that a ``MappedColumn`` is one, so this function promises it nothing.
    """
    return mapped_column(*args, **kwargs)
