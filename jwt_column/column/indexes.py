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
from .header_sql import DEFINITION, HeaderSQL, generated_column, indexed_part
from .spec import WHOLE
from .types import EncryptedJWT

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import DDLCompiler

    from .header_sql import HeaderPart
    from .spec import PreviousLayout

__all__ = [
    "AddGeneratedColumn",
    "AddGeneratedIndex",
    "DropGeneratedColumn",
    "DropGeneratedIndex",
    "ExpiryIndex",
    "FingerprintIndex",
    "StaleIndex",
]


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
        rows = part.rows()
        if rows is not None:
            for dialect in ("postgresql", "sqlite"):
                self.dialect_kwargs[f"{dialect}_where"] = rows

    def _part(self, header: HeaderSQL, type_: EncryptedJWT) -> HeaderPart:
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

    On a column with ``previous``, a unique index holds the rows of one layout only: at its position, a row of another
    layout has part of something else. Between layouts nothing is refused.

    Args:
        name: The index's name.
        column: A mapped attribute, a column, or the name of a column in ``__table_args__`` or ``Table(...)``.
        fingerprint: One of the column's ``fingerprints``: ``"token"`` or a claim.
        unique: Whether it is a unique index.
        layout: An entry of the column's ``previous``, for an index on the rows of that layout; None for today's.

    Raises:
        ConfigurationError: The column is not encrypted, or does not store this fingerprint, or *layout* is none of its
            ``previous``. For a name, this is raised when the table is made.
    """

    def __init__(
        self,
        name: str,
        column: Any,
        fingerprint: str = WHOLE,
        unique: bool = False,
        layout: PreviousLayout | None = None,
    ) -> None:
        if not isinstance(fingerprint, str):
            raise ConfigurationError(
                f"{name}: an index is on one fingerprint, 'token' or the name of a claim, not on several or on another "
                "column too; for a finer rule keep a column of your own beside the token"
            )
        self.fingerprint = fingerprint
        self._layout = layout
        super().__init__(name, column, unique=unique)

    def _part(self, header: HeaderSQL, type_: EncryptedJWT) -> HeaderPart:
        spec = type_.spec if self._layout is None else type_.spec.previous_of(self._layout)
        if self.fingerprint not in spec.fingerprints:
            declared = [*spec.fingerprints, self.fingerprint]
            raise ConfigurationError(
                f"{self.name}: the column stores no fingerprint {self.fingerprint!r}; declare "
                f"{type(type_).__name__}(fingerprints={declared!r})"
            )
        is_one_of_many = self.unique and bool(type_.spec.previous)
        return part_of(header, spec, self.fingerprint, for_layout=is_one_of_many)


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

    def _part(self, header: HeaderSQL, type_: EncryptedJWT) -> HeaderPart:
        if not type_.expose_expiry:
            raise ConfigurationError(
                f"{self.name}: the column does not store the expiry; declare "
                f"{type(type_).__name__}(expose_expiry=True)"
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

    def _part(self, header: HeaderSQL, type_: EncryptedJWT) -> HeaderPart:  # noqa: ARG002
        return header.stamp()


class AddGeneratedColumn(CreateIndex):
    """The first half of an index of MySQL and MariaDB: its column, which no row needs to be written for."""


class AddGeneratedIndex(CreateIndex):
    """The second half: the index, which the server builds while the table is written."""


class DropGeneratedIndex(DropIndex):
    """The second half goes."""


class DropGeneratedColumn(DropIndex):
    """The first half goes."""


@compiles(CreateIndex, "mysql", "mariadb")
def _create_index(element: CreateIndex, compiler: DDLCompiler, **kw: Any) -> str:
    index = element.element
    if indexed_part(index) is None:
        return compiler.visit_create_index(element, **kw)  # type: ignore[no-any-return, no-untyped-call]
    return _alter(index, compiler, _added_column(index, compiler), _added_index(index, compiler))


@compiles(AddGeneratedColumn, "mysql", "mariadb")
def _add_column(element: CreateIndex, compiler: DDLCompiler, **_: Any) -> str:
    return _alter(element.element, compiler, _added_column(element.element, compiler))


@compiles(AddGeneratedIndex, "mysql", "mariadb")
def _add_index(element: CreateIndex, compiler: DDLCompiler, **_: Any) -> str:
    return _alter(element.element, compiler, _added_index(element.element, compiler))


def _alter(index: Index, compiler: DDLCompiler, *changes: str) -> str:
    assert index.table is not None  # noqa: S101 - SQLAlchemy compiles no index without one
    return f"ALTER TABLE {compiler.preparer.format_table(index.table)} {', '.join(changes)}"


def _names(index: Index, compiler: DDLCompiler) -> tuple[str, str]:
    """Return the quoted names of an index and of its generated column."""
    name = str(index.name)
    return compiler.preparer.quote(name), compiler.preparer.quote(generated_column(name))


def _added_column(index: Index, compiler: DDLCompiler) -> str:
    part: Any = index.expressions[0]
    _, column = _names(index, compiler)
    definition = compiler.sql_compiler.process(
        part.indexed(), include_table=False, literal_binds=True, **{DEFINITION: True}
    )
    kind = f"{'VARCHAR' if part.is_text else 'VARBINARY'}({part.length})"
    return f"ADD COLUMN {column} {kind} GENERATED ALWAYS AS ({definition}) VIRTUAL INVISIBLE"


def _added_index(index: Index, compiler: DDLCompiler) -> str:
    name, column = _names(index, compiler)
    return f"ADD {'UNIQUE ' if index.unique else ''}INDEX {name} ({column})"


@compiles(DropIndex, "mysql", "mariadb")
def _drop_index(element: DropIndex, compiler: DDLCompiler, **kw: Any) -> str:
    index = element.element
    if indexed_part(index) is None:
        return compiler.visit_drop_index(element, **kw)  # type: ignore[no-any-return, no-untyped-call]
    name, column = _names(index, compiler)
    return _alter(index, compiler, f"DROP INDEX {name}", f"DROP COLUMN {column}")


@compiles(DropGeneratedIndex, "mysql", "mariadb")
def _drop_half(element: DropIndex, compiler: DDLCompiler, **__: Any) -> str:
    name, _ = _names(element.element, compiler)
    return _alter(element.element, compiler, f"DROP INDEX {name}")


@compiles(DropGeneratedColumn, "mysql", "mariadb")
def _drop_column(element: DropIndex, compiler: DDLCompiler, **__: Any) -> str:
    _, column = _names(element.element, compiler)
    return _alter(element.element, compiler, f"DROP COLUMN {column}")
