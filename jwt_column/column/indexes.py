"""Indexes on fields of envelope headers: fingerprints, the expiry, the stamp.

    >>> from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
    >>> from jwt_column import JWT, EncryptedJWT, ExpiryIndex, FingerprintIndex
    >>> class Base(DeclarativeBase): ...
    >>> class Session(Base):
    ...     __tablename__ = "sessions"
    ...     __table_args__ = (
    ...         FingerprintIndex("ix_sessions_jti", "token", "jti", unique=True),
    ...         FingerprintIndex("ix_sessions_user", "user_id", "token", "jti"),
    ...     )
    ...     id: Mapped[int] = mapped_column(primary_key=True)
    ...     user_id: Mapped[int]
    ...     token: Mapped[JWT] = mapped_column(EncryptedJWT(fingerprints=["jti"], expose_expiry=True))
    >>> _ = ExpiryIndex("ix_sessions_expiry", Session.token)

PostgreSQL and SQLite index the very expression that a comparison becomes. MySQL and MariaDB index a generated column,
virtual and invisible, for each fingerprint in an index; one ``ALTER TABLE`` adds them together with the index, and
comparisons name them there. An index is on a position in the envelope, which moves when the column's ``fingerprints``
or ``expose_expiry`` change: it is then to be dropped and created again, which autogenerate notices.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Index
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex, DropIndex

from ..errors import ConfigurationError
from ..option_values import FLAG, TEXT
from .fingerprints import part_of
from .header_sql import DEFINITION, HeaderPart, HeaderSQL, generated_columns, indexed_parts
from .spec import WHOLE, names_of
from .types import EncryptedJWT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Table
    from sqlalchemy.sql.compiler import DDLCompiler

    from .spec import PreviousLayout


class _HeaderIndex(Index):
    """An index on parts of the stored values of one encrypted column."""

    def __init__(self, name: str, *columns: Any, unique: bool = False) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigurationError("an index on an encrypted column needs a name")
        super().__init__(name, *columns, unique=unique)

    def _set_parent(self, parent: Any, **kw: Any) -> None:
        super()._set_parent(parent, **kw)
        # Of a name SQLAlchemy has made a column by now.
        encrypted = [column for column in self.columns if _is_encrypted(column)]
        if len(encrypted) != 1:
            raise ConfigurationError(
                f"{self.name}: an index has one column of type EncryptedJWT, and {len(encrypted)} of "
                f"{', '.join(map(str, self.columns))} are"
            )
        (token,) = encrypted
        type_: Any = token.type
        parts = self._parts(HeaderSQL(token, type_), type_)
        # SQLAlchemy compiles these.
        expressions: Any = self.expressions
        expressions[:] = [one for column in self.columns for one in (parts if column is token else [column])]
        rows = parts[0].rows()
        if rows is not None:
            for dialect in ("postgresql", "sqlite"):
                self.dialect_kwargs[f"{dialect}_where"] = rows

    @abstractmethod
    def _parts(self, header: HeaderSQL, type_: EncryptedJWT) -> Sequence[HeaderPart]:
        """Return the parts of the stored values that the index is on."""


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
    """An index for equality: of the whole token, of a claim, or of several parts together.

    The parts are columns of the table in the order of the index, one of them encrypted. Behind the encrypted column
    stands its fingerprint, or a tuple of them; without any it is that of the whole token::

        FingerprintIndex("ix", "token", "jti")
        FingerprintIndex("ux", "token", ("iss", "jti"), unique=True)
        FingerprintIndex("ux", "user_id", "token", unique=True)
        FingerprintIndex("ux", "user_id", "token", "jti", unique=True)

    Unique, it refuses a second row with the same values in all parts. A row with a NULL among them does not count: a
    column that is NULL, no token, or a token without the claim. A token has another fingerprint under each key, so
    across a rotation nothing is refused until the rows are re-encrypted; and rows in the clear share their first
    characters, so encrypt them before the index is made.

    On a column with ``previous``, a unique index holds the rows of one layout only: at its position, a row of another
    layout has part of something else. Between layouts nothing is refused.

    Args:
        name: The index's name.
        column: A mapped attribute, a column, or the name of a column in ``__table_args__`` or ``Table(...)``.
        *others: Further columns likewise; and directly behind the encrypted one its fingerprint, unless *fingerprint*
            is given: ``"token"``, the name of a claim, or a tuple of them, as the column's ``fingerprints`` has them.
        fingerprint: The same by name: one fingerprint, or several in the order of the index. Then *others* are columns.
        unique: Whether it is a unique index.
        layout: An entry of the column's ``previous``, for an index on the rows of that layout; None for today's.

    Attributes:
        fingerprints: The names of its fingerprints in order; empty until it is part of a table.

    Raises:
        ConfigurationError: Not one of the columns is encrypted, or it does not store such a fingerprint, or *layout*
            is none of its ``previous``. For a name, this is raised when the table is made.
    """

    def __init__(
        self,
        name: str,
        column: Any,
        *others: Any,
        fingerprint: str | Sequence[str] | None = None,
        unique: bool = False,
        layout: PreviousLayout | None = None,
    ) -> None:
        TEXT.check(name=name)
        if len(others) > 1 and isinstance(others[1], bool):
            # Up to 0.2 it took (fingerprint, unique, layout) by position.
            others, (unique, *layouts) = others[:1], others[1:]
            layout = layouts[0] if layouts else layout
        FLAG.check(unique=unique)
        self.fingerprints: tuple[str, ...] = ()
        self._layout = layout
        self._fingerprint = fingerprint
        self._given = [_plain(column), *(one if _is_named(one) else _plain(one) for one in others)]
        first, *rest = self._given
        if fingerprint is None and _is_encrypted(first) and len(rest) == 1 and _is_named(rest[0]):
            # To be part of the table as soon as this column is.
            rest = []
        super().__init__(name, first, *(one for one in rest if isinstance(one, str | Column)), unique=unique)

    def _set_parent(self, parent: Any, **kw: Any) -> None:
        columns, self.fingerprints = self._told_apart(parent)
        # Of all that was given, what SQLAlchemy is to see.
        expressions: Any = self.expressions
        self._pending_colargs[:], expressions[:] = columns, columns
        super()._set_parent(parent, **kw)

    def _told_apart(self, table: Table) -> tuple[list[Any], tuple[str, ...]]:
        """Return the columns, of which names that the table does not have stay names, and the fingerprints."""
        columns: list[Any] = []
        fingerprint = self._fingerprint
        for one in self._given:
            if fingerprint is None and columns and _is_encrypted(columns[-1]) and _is_named(one):
                fingerprint = one
            elif isinstance(one, tuple | list):
                raise ConfigurationError(
                    f"{self.name}: several fingerprints stand behind the encrypted column, or in fingerprint="
                )
            else:
                columns.append(table.c.get(one, one) if isinstance(one, str) else one)
        if len(set(columns)) < len(columns):
            raise ConfigurationError(f"{self.name}: a column stands in an index once")
        return columns, fingerprint_names(WHOLE if fingerprint is None else fingerprint)

    def _parts(self, header: HeaderSQL, type_: EncryptedJWT) -> Sequence[HeaderPart]:
        spec = type_.spec if self._layout is None else type_.spec.previous_of(self._layout)
        missing = [name for name in self.fingerprints if name not in spec.fingerprints]
        if missing:
            raise ConfigurationError(
                f"{self.name}: the column stores no fingerprint {', '.join(map(repr, missing))}; declare "
                f"{type(type_).__name__}(fingerprints={[*spec.fingerprints, *missing]!r})"
            )
        is_one_of_many = self.unique and bool(type_.spec.previous)
        return [part_of(header, spec, name, for_layout=is_one_of_many) for name in self.fingerprints]


def _is_named(given: object) -> bool:
    """Return True for what can name fingerprints; a single name can be that of a column too."""
    return isinstance(given, str | tuple | list)


def fingerprint_names(fingerprint: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of an index's fingerprints, from one name or several.

    Raises:
        ConfigurationError: They are no names, or one is there twice.
    """
    names: object = [fingerprint] if isinstance(fingerprint, str) else fingerprint
    if isinstance(names, Sequence) and not names:
        names = None
    return names_of("the fingerprints of an index", names, "'token' or claims")


def _is_encrypted(column: object) -> bool:
    return isinstance(getattr(column, "type", None), EncryptedJWT)


class ExpiryIndex(_HeaderIndex):
    """An index for ``expires_at``: comparisons, ORDER BY, and purges.

    Args:
        name: The index's name.
        column: A mapped attribute, a column, or the name of a column in ``__table_args__`` or ``Table(...)``.

    Raises:
        ConfigurationError: The column is not encrypted, or does not store the expiry.
    """

    def __init__(self, name: str, column: Any) -> None:
        super().__init__(name, _plain(column))

    def _parts(self, header: HeaderSQL, type_: EncryptedJWT) -> Sequence[HeaderPart]:
        if not type_.expose_expiry:
            raise ConfigurationError(
                f"{self.name}: the column does not store the expiry; declare "
                f"{type(type_).__name__}(expose_expiry=True)"
            )
        return [header.expires_at()]


class StaleIndex(_HeaderIndex):
    """An index on the stamp, for ``is_stale`` and the census.

    Args:
        name: The index's name.
        column: A mapped attribute, a column, or the name of a column in ``__table_args__`` or ``Table(...)``.

    Raises:
        ConfigurationError: The column is not encrypted.
    """

    def __init__(self, name: str, column: Any) -> None:
        super().__init__(name, _plain(column))

    def _parts(self, header: HeaderSQL, type_: EncryptedJWT) -> Sequence[HeaderPart]:  # noqa: ARG002
        return [header.stamp()]


class AddGeneratedColumns(CreateIndex):
    """The first half of an index of MySQL and MariaDB: its columns, which no row needs to be written for."""


class AddGeneratedIndex(CreateIndex):
    """The second half: the index, which the server builds while the table is written."""


class DropGeneratedIndex(DropIndex):
    """The second half goes."""


class DropGeneratedColumns(DropIndex):
    """The first half goes: the index's generated columns, by their names in the database."""

    def __init__(self, index: Index, columns: Sequence[str]) -> None:
        super().__init__(index)
        self.columns = columns


@compiles(CreateIndex, "mysql", "mariadb")
def _create_index(element: CreateIndex, compiler: DDLCompiler, **kw: Any) -> str:
    index = element.element
    if not indexed_parts(index):
        return compiler.visit_create_index(element, **kw)  # type: ignore[no-any-return, no-untyped-call]
    changes: list[str] = []
    if not isinstance(element, AddGeneratedIndex):
        changes += _added_columns(index, compiler)
    if not isinstance(element, AddGeneratedColumns):
        changes.append(_added_index(index, compiler))
    return _alter(index, compiler, *changes)


def _alter(index: Index, compiler: DDLCompiler, *changes: str) -> str:
    assert index.table is not None  # noqa: S101 - SQLAlchemy compiles no index without one
    return f"ALTER TABLE {compiler.preparer.format_table(index.table)} {', '.join(changes)}"


def _name(index: Index, compiler: DDLCompiler) -> str:
    return compiler.preparer.quote(str(index.name))


def _generated(index: Index, compiler: DDLCompiler) -> Iterator[tuple[HeaderPart, str]]:
    """Yield the parts of an envelope in an index, each with the quoted name of its generated column."""
    for part, name in zip(indexed_parts(index), generated_columns(str(index.name)), strict=False):
        yield part, compiler.preparer.quote(name)


def _added_columns(index: Index, compiler: DDLCompiler) -> Iterator[str]:
    for part, name in _generated(index, compiler):
        definition = compiler.sql_compiler.process(
            part.indexed(), include_table=False, literal_binds=True, **{DEFINITION: True}
        )
        kind = f"{'VARCHAR' if part.is_text else 'VARBINARY'}({part.length})"
        yield f"ADD COLUMN {name} {kind} GENERATED ALWAYS AS ({definition}) VIRTUAL INVISIBLE"


def _added_index(index: Index, compiler: DDLCompiler) -> str:
    generated = (name for _, name in _generated(index, compiler))
    expressions: Sequence[Any] = index.expressions
    columns = [
        next(generated) if isinstance(part, HeaderPart) else compiler.preparer.format_column(part)
        for part in expressions
    ]
    unique = "UNIQUE " if index.unique else ""
    return f"ADD {unique}INDEX {_name(index, compiler)} ({', '.join(columns)})"


@compiles(DropIndex, "mysql", "mariadb")
def _drop_index(element: DropIndex, compiler: DDLCompiler, **kw: Any) -> str:
    index = element.element
    if not indexed_parts(index):
        return compiler.visit_drop_index(element, **kw)  # type: ignore[no-any-return, no-untyped-call]
    columns = []
    if not isinstance(element, DropGeneratedIndex):
        columns = [f"DROP COLUMN {name}" for _, name in _generated(index, compiler)]
    return _alter(index, compiler, f"DROP INDEX {_name(index, compiler)}", *columns)


@compiles(DropGeneratedColumns, "mysql", "mariadb")
def _drop_columns(element: DropGeneratedColumns, compiler: DDLCompiler, **__: Any) -> str:
    columns = (f"DROP COLUMN {compiler.preparer.quote(name)}" for name in element.columns)
    return _alter(element.element, compiler, *columns)
