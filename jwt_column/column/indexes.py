"""Indexes on fields of envelope headers: fingerprints, the expiry, the stamp.

    >>> from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
    >>> from jwt_column import JWT, EncryptedJWT, ExpiryIndex, FingerprintIndex
    >>> class Base(DeclarativeBase): ...
    >>> class Session(Base):
    ...     __tablename__ = "sessions"
    ...     __table_args__ = (FingerprintIndex("ix_sessions_jti", "token", "jti", unique=True),)
    ...     id: Mapped[int] = mapped_column(primary_key=True)
    ...     token: Mapped[JWT] = mapped_column(EncryptedJWT(fingerprints=["jti"], expose_expiry=True))
    >>> _ = ExpiryIndex("ix_sessions_expiry", Session.token)

PostgreSQL and SQLite index the very expression that a comparison becomes. MySQL and MariaDB index a generated column,
virtual and invisible, that one ``ALTER TABLE`` adds together with its index; comparisons name it there. An index is on
a position in the envelope, which moves when the column's ``fingerprints`` or ``expose_expiry`` change: it is then to be
dropped and created again, which autogenerate notices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Index
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex, DropIndex

from ..errors import ConfigurationError
from .fingerprints import part_of
from .header_sql import DEFINITION, HeaderSQL, generated_column, is_header_index
from .spec import WHOLE
from .types import EncryptedJWT

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.sql.compiler import DDLCompiler

__all__ = ["ExpiryIndex", "FingerprintIndex", "StaleIndex", "is_header_index"]


class _HeaderIndex(Index):
    """An index on a part of the stored values of one encrypted column."""

    def __init__(self, name: str, column: Any, *, unique: bool = False) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigurationError("an index on an encrypted column needs a name")
        super().__init__(name, _plain(column), unique=unique)

    def _set_parent(self, parent: Any, **kw: Any) -> None:
        super()._set_parent(parent, **kw)
        (column,) = self.columns
        if not isinstance(column.type, EncryptedJWT):
            raise ConfigurationError(f"{self.name}: {column} is not a column of type EncryptedJWT")
        part = self._part(HeaderSQL(column, column.type), column.type)
        # SQLAlchemy has made a column of a name by now, and compiles these expressions.
        expressions: Any = self.expressions
        expressions[:] = [part]

    def _part(self, header: HeaderSQL, type_: EncryptedJWT) -> ColumnElement[Any]:
        raise NotImplementedError


def _plain(column: Any) -> Any:
    """Return a table's own column for a mapped attribute; a name stays a name."""
    if isinstance(column, str | Column):
        return column
    found = getattr(getattr(column, "property", None), "columns", [getattr(column, "column", None)])[0]
    if not isinstance(found, Column):
        raise ConfigurationError(
            "an index is on a mapped attribute, a column, or the name of a column of its table"
        )
    return found


class FingerprintIndex(_HeaderIndex):
    """An index for equality: of the whole token, or of a claim.

    Unique, it refuses a second row with the same fingerprint. NULL and tokens without the claim do not count. A token
    has another fingerprint under each key, so across a rotation nothing is refused until the rows are re-encrypted; and
    rows in the clear share their first characters, so encrypt them before the index is made.

    Args:
        name: The index's name.
        column: A mapped attribute, a column, or the name of a column in ``__table_args__`` or ``Table(...)``.
        fingerprint: One of the column's ``fingerprints``: ``"token"`` or a claim.
        unique: Whether it is a unique index.

    Raises:
        ConfigurationError: The column is not encrypted, or does not store this fingerprint. For a name, this is raised
            when the table is made.
    """

    def __init__(self, name: str, column: Any, fingerprint: str = WHOLE, unique: bool = False) -> None:
        self.fingerprint = fingerprint
        super().__init__(name, column, unique=unique)

    def _part(self, header: HeaderSQL, type_: EncryptedJWT) -> ColumnElement[Any]:
        if self.fingerprint not in type_.fingerprints:
            declared = [*type_.fingerprints, self.fingerprint]
            raise ConfigurationError(
                f"{self.name}: the column stores no fingerprint {self.fingerprint!r}; declare "
                f"EncryptedJWT(fingerprints={declared!r})"
            )
        return part_of(header, type_, self.fingerprint)


class ExpiryIndex(_HeaderIndex):
    """An index for ``expires_at``: comparisons, ORDER BY, and purges.

    Args:
        name: The index's name.
        column: A mapped attribute, a column, or the name of a column in ``__table_args__`` or ``Table(...)``.

    Raises:
        ConfigurationError: The column is not encrypted, or does not store the expiry.
    """

    def __init__(self, name: str, column: Any) -> None:
        super().__init__(name, column)

    def _part(self, header: HeaderSQL, type_: EncryptedJWT) -> ColumnElement[Any]:
        if not type_.expose_expiry:
            raise ConfigurationError(
                f"{self.name}: the column does not store the expiry; declare EncryptedJWT(expose_expiry=True)"
            )
        return header.expires_at()


class StaleIndex(_HeaderIndex):
    """An index on the stamp, for ``is_stale`` and the census.

    Args:
        name: The index's name.
        column: A mapped attribute, a column, or the name of a column in ``__table_args__`` or ``Table(...)``.

    Raises:
        ConfigurationError: The column is not encrypted.
    """

    def __init__(self, name: str, column: Any) -> None:
        super().__init__(name, column)

    def _part(self, header: HeaderSQL, type_: EncryptedJWT) -> ColumnElement[Any]:  # noqa: ARG002
        return header.stamp()


@compiles(CreateIndex, "mysql", "mariadb")
def _create_index(element: CreateIndex, compiler: DDLCompiler, **kw: Any) -> str:
    index = element.element
    if not is_header_index(index):
        return compiler.visit_create_index(element, **kw)  # type: ignore[no-any-return, no-untyped-call]
    part: Any = index.expressions[0]
    preparer = compiler.preparer
    name, column = preparer.quote(str(index.name)), preparer.quote(generated_column(str(index.name)))
    definition = compiler.sql_compiler.process(
        part, include_table=False, literal_binds=True, **{DEFINITION: True}
    )
    kind = f"{'VARCHAR' if part.is_text else 'VARBINARY'}({part.length})"
    assert index.table is not None  # noqa: S101 - SQLAlchemy compiles no index without one
    return (
        f"ALTER TABLE {preparer.format_table(index.table)} "
        f"ADD COLUMN {column} {kind} GENERATED ALWAYS AS ({definition}) VIRTUAL INVISIBLE, "
        f"ADD {'UNIQUE ' if index.unique else ''}INDEX {name} ({column})"
    )


@compiles(DropIndex, "mysql", "mariadb")
def _drop_index(element: DropIndex, compiler: DDLCompiler, **kw: Any) -> str:
    index = element.element
    if not is_header_index(index):
        return compiler.visit_drop_index(element, **kw)  # type: ignore[no-any-return, no-untyped-call]
    preparer = compiler.preparer
    assert index.table is not None  # noqa: S101 - as above
    return (
        f"ALTER TABLE {preparer.format_table(index.table)} DROP INDEX {preparer.quote(str(index.name))}, "
        f"DROP COLUMN {preparer.quote(generated_column(str(index.name)))}"
    )
