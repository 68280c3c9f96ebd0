"""Declarations of an encrypted column that cannot work, refused when its table is made.

Equal tokens have different ciphertext, so a unique constraint, an index or a primary key over it means nothing; the
database cannot encrypt, so a default of its own would be stored in the clear; and a wrapper that loses the type, its
context or its processors would too. Each is refused with the recipe for the declaration that was meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Column, Index, PrimaryKeyConstraint, Table, event
from sqlalchemy.orm import Mapper
from sqlalchemy.schema import ColumnCollectionConstraint, Computed, DefaultClause, Identity
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import TextClause
from sqlalchemy.types import TypeDecorator

from ..errors import ConfigurationError
from .header_sql import indexed_parts
from .types import EncryptedJWT, is_encrypted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sqlalchemy import MetaData

# Under this name a MetaData keeps the problems of tables that were refused, and are not in it.
_INFO: Final = "jwt_column.declarations"

_OVERRIDABLE: Final = ("process_bind_param", "process_result_value", "process_literal_param")

_ENFORCE: Final = (
    "declare fingerprints=['token'] and FingerprintIndex(name, {columns}, 'token', unique=True), or the "
    "fingerprint of a claim such as 'jti'"
)
_PRIMARY_KEY: Final = (
    "an encrypted token cannot be the primary key, because equal tokens have different ciphertext",
    "add a surrogate key, and " + _ENFORCE,
)
_SEARCH: Final = (
    "declare FingerprintIndex(name, {columns}, 'token') to find tokens, ExpiryIndex for expires_at or StaleIndex for "
    "is_stale"
)
_COMPARING: Final = {
    "index": ("a plain index over ciphertext finds", _SEARCH),
    "unique_constraint": ("a unique constraint or index over ciphertext refuses", _ENFORCE),
    "exclude_constraint": ("an exclusion constraint over ciphertext refuses", _ENFORCE),
    "foreign_key_constraint": (
        "a foreign key of ciphertext matches",
        "refer to the surrogate key of the row that holds the token",
    ),
}


class Problem(NamedTuple):
    """A declaration that cannot work: it and the reason, in one sentence, and the declaration to write instead."""

    table: str
    column: str
    message: str
    recipe: str

    @property
    def name(self) -> str:
        """The column with its table."""
        return f"{self.table}.{self.column}"


def problems_of(metadata: MetaData) -> Iterator[Problem]:
    """Yield the problems of every table, and of tables that were refused when they were made."""
    for table in metadata.tables.values():
        for column in table.columns:
            yield from _of_column(column, table)
        parts: list[Any] = [*table.constraints, *table.indexes]
        for part in sorted(parts, key=lambda part: str(part.name)):
            yield from _of_key(part, table)
    refused: dict[str, Problem] = metadata.info.get(_INFO, {})
    yield from (problem for name, problem in refused.items() if name not in metadata.tables)


@event.listens_for(Column, "after_parent_attach")
def _check_column(column: Column[Any], table: Any) -> None:
    if isinstance(table, Table):
        _raise_first(_of_column(column, table), table)


@event.listens_for(PrimaryKeyConstraint, "after_parent_attach")
def _check_primary_key(part: PrimaryKeyConstraint, table: Any) -> None:
    if isinstance(table, Table):
        for column in part.columns:
            _raise_first(_of_column(column, table), table)


@event.listens_for(Index, "after_parent_attach")
@event.listens_for(ColumnCollectionConstraint, "after_parent_attach")
def _check_key(part: Any, table: Any) -> None:
    if isinstance(table, Table):
        _raise_first(_of_key(part, table), table)


@event.listens_for(Mapper, "after_mapper_constructed")
def _check_mapped_key(mapper: Mapper[Any], _class: type[Any]) -> None:
    """Refuse an encrypted column in ``__mapper_args__ = {"primary_key": [...]}``, which the table does not show."""
    for column in mapper.primary_key:
        if isinstance(column.type, EncryptedJWT):
            message, recipe = _PRIMARY_KEY[0], _PRIMARY_KEY[1].format(columns=repr(column.name))
            raise ConfigurationError(f"{column}: {message}; {recipe}", context=str(column))


def _raise_first(problems: Iterator[Problem], table: Table) -> None:
    for problem in problems:
        table.metadata.info.setdefault(_INFO, {})[table.fullname] = problem
        raise ConfigurationError(f"{problem.name}: {problem.message}; {problem.recipe}", context=problem.name)


def _of_column(column: Column[Any], table: Table) -> Iterator[Problem]:
    """Yield the problems of a column itself: its type, its defaults, its place in the primary key."""

    def problem(message: str, recipe: str) -> Problem:
        return Problem(table.fullname, column.name, message, recipe.format(columns=repr(column.name)))

    found = _of_type(column.type)
    if found is not None:
        yield problem(*found)
    if not isinstance(column.type, EncryptedJWT):
        return
    if column.primary_key:
        yield problem(*_PRIMARY_KEY)
    default = column.server_default
    if isinstance(default, Computed | Identity):
        yield problem("the database cannot encrypt what it computes", "compute the token in the application")
    elif isinstance(default, DefaultClause) and not _is_null(default.arg):
        yield problem(
            "server_default would be stored in the clear, because the database cannot encrypt",
            "write default=... with a Python value or function",
        )
    for name, generator in (("default", column.default), ("onupdate", column.onupdate)):
        if generator is not None and (generator.is_clause_element or generator.is_sequence):
            yield problem(
                f"{name} is a SQL expression, whose result the database cannot encrypt",
                f"write {name}=... with a Python value or function",
            )


def _is_null(default: Any) -> bool:
    return isinstance(default, TextClause) and default.text.strip().lower() == "null"


def _of_type(type_: Any) -> tuple[str, str] | None:
    """Return the problem of an encrypted type, or of a type that wraps one; None without a problem."""
    if isinstance(type_, EncryptedJWT):
        if _variants(type_):
            return (
                f"with_variant() puts another type in the place of {type(type_).__name__}, which stores tokens in the "
                "clear, or is searched by the wrong layout",
                "leave with_variant() out, and name the database's own type of bytes or text in a migration",
            )
        own = type(type_).__mro__[: type(type_).__mro__.index(EncryptedJWT)]
        overridden = next((name for name in _OVERRIDABLE if any(name in vars(one) for one in own)), None)
        if overridden is None:
            return None
        return (
            f"{type(type_).__name__} overrides {overridden}(), which an encrypted column does not call",
            "convert the value in the application, or in a property of the mapped class",
        )
    if any(isinstance(variant, EncryptedJWT) for variant in _variants(type_)):
        return (
            f"with_variant() of {type(type_).__name__} compares as {type(type_).__name__} does, which finds nothing in "
            "ciphertext, and stores tokens in the clear on other databases",
            "use EncryptedJWT itself on all databases",
        )
    if isinstance(getattr(type_, "item_type", None), EncryptedJWT):
        return (
            f"{type(type_).__name__} compares and appends elements as they are given, in the clear",
            "use EncryptedJWT itself, with one token in a row",
        )
    if isinstance(type_, TypeDecorator) and is_encrypted(type_) and type_.context is None:
        return (
            f"{type(type_).__name__} wraps an EncryptedJWT that has no context, because it is not the type of a column",
            "use EncryptedJWT itself, or give the wrapped type context='table.column'",
        )
    return None


def _variants(type_: Any) -> Collection[Any]:
    """Return the types that with_variant() has put in the place of a type."""
    variants: dict[str, Any] = getattr(
        type_, "_variant_mapping", {}
    )  # SQLAlchemy has no public name for them.
    return variants.values()


def _of_key(part: Any, table: Table) -> Iterator[Problem]:
    """Yield the problems of an index or a constraint that compares: ciphertext in it."""
    kind = "unique_constraint" if getattr(part, "unique", False) else str(part.__visit_name__)
    if kind not in _COMPARING or (isinstance(part, Index) and indexed_parts(part)):
        return
    compares, recipe = _COMPARING[kind]
    for expression in part.expressions if isinstance(part, Index) else part.columns:
        column = _encrypted_column(expression)
        if column is not None:
            # The token last: behind it stands its fingerprint.
            others = [one.name for one in part.columns if one is not column]
            yield Problem(
                table.fullname,
                column.name,
                f"{compares} nothing, because equal tokens have different ciphertext",
                recipe.format(columns=", ".join(map(repr, [*others, column.name]))),
            )


def _encrypted_column(expression: Any) -> Column[Any] | None:
    for element in visitors.iterate(expression):
        if isinstance(element, Column) and isinstance(element.type, EncryptedJWT):
            return element
    return None
