"""Stale rows whose token has expired: re-encryption can skip, clear or delete them.

The header shows when a token expires, so SQL alone tells such rows, and no key is needed for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, get_args

from sqlalchemy import or_

from jwt_column.errors import ConfigurationError
from jwt_column.option_values import choice

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from jwt_column.column.header_sql import HeaderSQL
    from jwt_column.column.types import EncryptedJWT


ExpiredChoice = Literal["keep", "skip", "null", "delete"]

_CHOICES: Final = choice(*get_args(ExpiredChoice))


@dataclass(frozen=True, slots=True)
class Expired:
    """The treatment of stale rows whose token has expired when the run begins.

    Attributes:
        action: ``"skip"`` leaves them as they are, ``"null"`` sets the column to NULL, ``"delete"`` deletes the row.
        at: Tokens that expire at this time or earlier have expired. The same for all shards of a run.
    """

    action: Literal["skip", "null", "delete"]
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def removes(self) -> bool:
        """Whether such rows are cleared or deleted."""
        return self.action != "skip"

    def covers(self, stored: HeaderSQL) -> ColumnElement[bool]:
        """Return the SQL condition of expired rows; NULL, so not true, where the header has no expiry."""
        condition: ColumnElement[bool] = stored.expires_at() <= self.at
        return condition

    def spares(self, stored: HeaderSQL) -> ColumnElement[bool]:
        """Return the SQL condition of all other rows."""
        expires_at = stored.expires_at()
        return or_(expires_at.is_(None), expires_at > self.at)

    def check_column(self, name: str, *, is_nullable: bool) -> None:
        """Refuse a column that cannot be cleared."""
        if self.action == "null" and not is_nullable:
            raise ConfigurationError(
                f"{name} is NOT NULL, so expired='null' cannot clear it; make the column "
                "nullable first, or take expired='delete'. Nothing was done"
            )


def choose_expired(chosen: ExpiredChoice, type_: EncryptedJWT) -> Expired | None:
    """Return the treatment of expired rows; None for ``"keep"``, which treats them as any others.

    Raises:
        ConfigurationError: There is no such choice, or the column's header does not show the expiry.
    """
    _CHOICES.check(expired=chosen)
    if chosen == "keep":
        return None
    if not type_.expose_expiry:
        raise ConfigurationError(
            f"{type_.context}: expired={chosen!r} needs the expiry in the header, where SQL can read it; the column's "
            "type has no expose_expiry=True. Nothing was done",
            context=type_.context,
        )
    return Expired(chosen)
