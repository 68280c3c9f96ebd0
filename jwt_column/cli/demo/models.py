"""The two tables of the demo: one with an encrypted column, and its twin without.

The demo prints the source of :class:`Session`, so the code that is shown is the code that runs.
"""

# No "from __future__ import annotations": SQLAlchemy reads the annotations of mapped attributes.

from sqlalchemy import Text
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from ... import JWT, EncryptedJWT

__all__ = ["Base", "PlainBase", "PlainSession", "Session"]


class Base(MappedAsDataclass, DeclarativeBase):
    """The encrypted table's registry."""


class PlainBase(MappedAsDataclass, DeclarativeBase):
    """A registry of its own, because its table has the same name."""


class Session(Base):
    """One signed-in user."""

    __tablename__ = "sessions"
    id: Mapped[int] = mapped_column(primary_key=True)
    user: Mapped[str]
    token: Mapped[JWT] = mapped_column(EncryptedJWT(allow_unsigned=True))


class PlainSession(PlainBase):
    """The control: the same row with the token readable, in a file of its own."""

    __tablename__ = "sessions"
    id: Mapped[int] = mapped_column(primary_key=True)
    user: Mapped[str]
    token: Mapped[str] = mapped_column(Text)
