"""Columns that replace the plaintext ones of a framework's token tables. None of the frameworks is imported.

A mixin stands before the framework's own in the class statement, so that its columns win. Those for tokens that a
request brings add the :class:`~jwt_column.FingerprintIndex` of the look-up, unless the class has one for the column.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.orm import Mapped, mapped_column

from ..column.indexes import FingerprintIndex
from ..column.json_type import EncryptedJSON
from ..column.spec import WHOLE
from ..column.types import EncryptedJWT
from ..errors import InvalidTokenError
from ..format.token import JWT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Mapper

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


class OAuth2TokenMixin:
    """Access and refresh token of an Authlib provider's token table.

    For example::

        from authlib.integrations import sqla_oauth2

        class Token(OAuth2TokenMixin, sqla_oauth2.OAuth2TokenMixin, Base):
            id: Mapped[int] = mapped_column(primary_key=True)
    """

    access_token: Mapped[JWT] = mapped_column(_searchable())
    refresh_token: Mapped[JWT | None] = mapped_column(_searchable())


# Not by __table_args__, which a class with some of its own would replace: the tokens would no longer be unique, and
# nothing would say so.
@event.listens_for(AccessTokenMixin, "instrument_class", propagate=True)
def _index_token(mapper: Mapper[Any], _class: type[Any]) -> None:
    _index(mapper, "token", unique=True)


@event.listens_for(OAuth2TokenMixin, "instrument_class", propagate=True)
def _index_tokens(mapper: Mapper[Any], _class: type[Any]) -> None:
    _index(mapper, "access_token", unique=True)
    _index(mapper, "refresh_token", unique=False)


def _index(mapper: Mapper[Any], name: str, *, unique: bool) -> None:
    """Add the index for look-ups of a column's whole token to the table, unless it has one."""
    table: Any = mapper.local_table
    column = table.c.get(name)
    # None for a class that inherits it from another table; another type where the class has a column of its own.
    if column is None or WHOLE not in getattr(column.type, "fingerprints", ()):
        return
    indexes = (
        one for one in table.indexes if isinstance(one, FingerprintIndex) and one.fingerprints == (WHOLE,)
    )
    if not any(index.columns.contains_column(column) for index in indexes):
        FingerprintIndex(f"{'ux' if unique else 'ix'}_{table.name}_{name}", column, unique=unique)


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
        """Take a provider's token response. A response without a refresh token keeps the one that is there.

        Raises:
            InvalidTokenError: The response has no access token, as that of an error, or a member that is none; the row
                stays as it was.
        """
        if not token.get("access_token"):
            raise InvalidTokenError(
                "the response has no access_token; a provider answers so to a refused request", reason="empty"
            )
        access_token = JWT.opaque(token["access_token"])
        refresh_token = JWT.opaque(token["refresh_token"]) if token.get("refresh_token") else None
        expires_at = _expiry_of(token)
        self.token_type = token.get("token_type")
        self.access_token = access_token
        self.refresh_token = refresh_token or self.refresh_token
        self.expires_at = expires_at


def _expiry_of(token: Mapping[str, Any]) -> int | None:
    """Return the expiry of a token response, in seconds since 1970."""
    for name, start in (("expires_at", 0.0), ("expires_in", time.time())):
        if token.get(name) is not None:
            try:
                return int(start + float(token[name]))
            except (TypeError, ValueError, OverflowError):
                pass
            raise InvalidTokenError(f"{name} of the response is not a number of seconds", reason="exp")
    return None


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
