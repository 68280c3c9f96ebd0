"""Columns that replace the plaintext ones of a framework's token tables. None of the frameworks is imported.

A mixin stands before the framework's own in the class statement, so that its columns win. Each adds the unique
:class:`~jwt_column.FingerprintIndex` that look-ups need; a class with ``__table_args__`` of its own repeats it there.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Mapped, declared_attr, mapped_column

from ..column.indexes import FingerprintIndex
from ..column.json_type import EncryptedJSON
from ..column.types import EncryptedJWT
from ..format.token import JWT

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "AccessTokenMixin",
    "ClientTokenMixin",
    "OAuth2TokenMixin",
    "OAuthConsumerTokenMixin",
    "SocialUserMixin",
]


def _searchable() -> EncryptedJWT:
    """Return the type of a token that is looked up whole and need not be a JWT."""
    return EncryptedJWT(fingerprints=["token"], allow_opaque=True)


class AccessTokenMixin:
    """The token of a fastapi-users access-token table, beside a primary key that is not the token.

    For example::

        class AccessToken(AccessTokenMixin, SQLAlchemyBaseAccessTokenTableUUID, Base): ...
    """

    id: Mapped[int] = mapped_column(primary_key=True, sort_order=-1)
    token: Mapped[JWT] = mapped_column(_searchable())

    @declared_attr.directive
    def __table_args__(cls) -> tuple[Any, ...]:  # noqa: N805
        return (FingerprintIndex(f"ux_{cls.__tablename__}_token", "token", unique=True),)  # type: ignore[attr-defined]


class OAuth2TokenMixin:
    """Access and refresh token of an Authlib provider's token table.

    For example::

        from authlib.integrations import sqla_oauth2

        class Token(OAuth2TokenMixin, sqla_oauth2.OAuth2TokenMixin, Base):
            id: Mapped[int] = mapped_column(primary_key=True)
    """

    access_token: Mapped[JWT] = mapped_column(_searchable())
    refresh_token: Mapped[JWT | None] = mapped_column(_searchable())

    @declared_attr.directive
    def __table_args__(cls) -> tuple[Any, ...]:  # noqa: N805
        name: str = cls.__tablename__  # type: ignore[attr-defined]
        return (
            FingerprintIndex(f"ux_{name}_access_token", "access_token", unique=True),
            FingerprintIndex(f"ix_{name}_refresh_token", "refresh_token"),
        )


class ClientTokenMixin:
    """A provider's tokens in the table of an Authlib client: what ``fetch_token`` reads and ``update_token`` writes."""

    token_type: Mapped[str | None]
    access_token: Mapped[JWT] = mapped_column(_searchable())
    refresh_token: Mapped[JWT | None] = mapped_column(_searchable())
    expires_at: Mapped[int | None]

    def to_token(self) -> dict[str, Any]:
        """Return the token as Authlib's clients take it. The tokens are plain texts: they go into a request."""
        return {
            "token_type": self.token_type,
            "access_token": str(self.access_token),
            "refresh_token": None if self.refresh_token is None else str(self.refresh_token),
            "expires_at": self.expires_at,
        }

    def update_token(self, token: Mapping[str, Any]) -> None:
        """Take a provider's token response. A response without a refresh token keeps the one that is there."""
        expires_at = token.get("expires_at")
        if expires_at is None and token.get("expires_in") is not None:
            expires_at = int(time.time()) + int(token["expires_in"])
        self.token_type = token.get("token_type")
        self.access_token = JWT.opaque(token["access_token"])
        self.refresh_token = (
            JWT.opaque(token["refresh_token"]) if token.get("refresh_token") else self.refresh_token
        )
        self.expires_at = None if expires_at is None else int(expires_at)


class OAuthConsumerTokenMixin:
    """The token response in the storage table of Flask-Dance.

    For example::

        class OAuth(OAuthConsumerTokenMixin, OAuthConsumerMixin, db.Model): ...
    """

    token: Mapped[dict[str, Any]] = mapped_column(EncryptedJSON(expose_expiry=True))


class SocialUserMixin:
    """The ``extra_data`` of python-social-auth, where a backend keeps its access and refresh tokens.

    For example::

        class UserSocialAuth(SocialUserMixin, SQLAlchemyUserMixin, Base): ...
    """

    extra_data: Mapped[dict[str, Any] | None] = mapped_column(EncryptedJSON())
