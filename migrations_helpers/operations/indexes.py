"""``op.create_jwt_index`` and ``op.drop_jwt_index``."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from alembic.operations import Operations
from sqlalchemy import Column, Index, MetaData, Table, inspect, text
from sqlalchemy.exc import DBAPIError, IdentifierError, IntegrityError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement

from jwt_column.column.header_sql import generated_columns, indexed_parts
from jwt_column.column.indexes import (
    AddGeneratedColumns,
    AddGeneratedIndex,
    DropGeneratedColumns,
    DropGeneratedIndex,
    ExpiryIndex,
    FingerprintIndex,
    StaleIndex,
    fingerprint_names,
)
from jwt_column.column.spec import WHOLE
from jwt_column.database.catalogue import IS_NAMED
from jwt_column.database.error_sentences import explained, is_setup_problem
from jwt_column.database.reading import is_autocommit
from jwt_column.database.time_limits import lifted_and_restored
from jwt_column.errors import ConfigurationError, ReencryptionError
from jwt_column.option_values import FLAG, TEXT, choice, texts_of

from ..engine.reencryption import in_column
from .directives import Directive, register
from .transactions import outside_transaction

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.sql.compiler import DDLCompiler

    from jwt_column.column.spec import PreviousLayout
    from jwt_column.column.types import EncryptedJWT


_KINDS: Final = ("fingerprint", "expiry", "stale")

# Here a single statement for column and index would copy the table, while writers wait.
_TWO_STEPS: Final = ("mysql", "mariadb")

_INVALID: Final = text(
    "SELECT 1 FROM pg_catalog.pg_class t JOIN pg_catalog.pg_index i ON i.indexrelid = t.oid "  # noqa: S608
    f"WHERE {IS_NAMED} AND NOT i.indisvalid"
)


class _IndexOp(Directive):
    """An operation on an index of an encrypted column, and of others beside it perhaps."""

    def __init__(
        self,
        index: str,
        table: str,
        column: str,
        *,
        kind: str = "fingerprint",
        fingerprint: str | Sequence[str] = WHOLE,
        columns: Sequence[str] | None = None,
        unique: bool = False,
        layout: PreviousLayout | None = None,
        type_: EncryptedJWT | None = None,
        schema: str | None = None,
        postgresql_concurrently: bool = False,
    ) -> None:
        choice(*_KINDS).check(kind=kind)
        TEXT.check(index=index)
        FLAG.check(unique=unique, postgresql_concurrently=postgresql_concurrently)
        self.index = index
        self.table = table
        self.column = column
        self.kind = kind
        self.fingerprints: tuple[str, ...] = fingerprint_names(fingerprint)
        self.columns: list[str] = [column] if columns is None else [*texts_of("columns", columns, "names")]
        if self.columns.count(column) != 1:
            raise ConfigurationError(
                f"{index}: columns lists the columns of the index in order, with {column!r} among them once"
            )
        self.unique = unique
        self.type_: EncryptedJWT = in_column(type_, table, column, schema)
        self.layout: dict[str, Any] | None = (
            None if layout is None else self.type_.spec.previous_of(layout).options()
        )
        self.schema = schema
        self.postgresql_concurrently = postgresql_concurrently

    @property
    def fingerprint(self) -> str | list[str]:
        """The fingerprint of the index, or the list of them."""
        return self.fingerprints[0] if len(self.fingerprints) == 1 else [*self.fingerprints]

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments, without columns and a type that are the default of this column."""
        positional, keywords = super().arguments()
        if self.columns == [self.column]:
            del keywords["columns"]
        if repr(self.type_) == repr(in_column(None, self.table, self.column)):
            del keywords["type_"]
        return positional, keywords

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the line of ``alembic check``."""
        return (self.name, self.schema, self.table, self.index)

    def to_table(self) -> Table:
        """Return a table with the columns of the index and no other one."""
        columns: list[Column[Any]] = [
            Column(name, self.type_ if name == self.column else None) for name in self.columns
        ]
        return Table(self.table, MetaData(), *columns, schema=self.schema)

    def to_index(self) -> Index:
        """Return the index."""
        table = self.to_table()
        if self.kind == "fingerprint":
            return FingerprintIndex(
                self.index, *table.columns,
                fingerprint=self.fingerprints, unique=self.unique, layout=self.layout,
            )  # fmt: skip
        return (ExpiryIndex if self.kind == "expiry" else StaleIndex)(self.index, *table.columns)


@register
class CreateIndexOp(_IndexOp):
    """Create an index on an encrypted column.

    MySQL and MariaDB add a generated column at once, and build the index on it while the table is written. PostgreSQL
    analyzes the table, because it has no statistics of a new index on expressions.

    Args:
        index: The index's name.
        table: The table's name.
        column: The encrypted column's name.
        kind: ``"fingerprint"``, ``"expiry"`` or ``"stale"``.
        fingerprint: With ``"fingerprint"``: ``"token"``, or a claim, or a list of them for an index on all of these.
        columns: With ``"fingerprint"``: the columns of the index in order, the encrypted one among them; None means
            that one alone.
        unique: With ``"fingerprint"``: whether the index is unique.
        layout: With ``"fingerprint"``: an entry of the type's ``previous``, for the rows of that layout.
        type_: The column's type as the model has it, because its ``fingerprints`` and ``expose_expiry`` say where
            in an envelope the index looks; None means ``EncryptedJWT()``.
        schema: The table's schema.
        postgresql_concurrently: Let PostgreSQL build the index without a lock that writers wait for. It runs outside
            the migration's transaction, which is committed first. What a build that failed has left is dropped.

    Raises:
        ConfigurationError: The type does not store that fingerprint, or no expiry; or *columns* lacks the encrypted
            one.
    """

    name = "create_jwt_index"
    undone_by = "drop_jwt_index"


@register
class DropIndexOp(_IndexOp):
    """Drop an index that ``create_jwt_index`` or the model has made, with its generated column if there is one.

    The parameters are those of ``create_jwt_index``. Index, table, column and schema are enough, but for a program that
    reverses the operation, and on MySQL and MariaDB for a script (``--sql``) if there are several fingerprints.
    ``postgresql_concurrently`` lets PostgreSQL drop the index without a lock that others wait for, outside the
    migration's transaction, which is committed first.
    """

    name = "drop_jwt_index"
    undone_by = "create_jwt_index"


@Operations.implementation_for(CreateIndexOp)
def _create(operations: Operations, operation: CreateIndexOp) -> None:
    index = operation.to_index()
    impl: Any = operations.impl
    with _working(operations, operation, index) as is_concurrent:
        if is_concurrent:
            _drop_invalid(operations, index)
        if impl.dialect.name not in _TWO_STEPS:
            impl.create_index(index)
            if impl.dialect.name == "postgresql":
                impl.execute(_Analyze(index))
            return
        impl.execute(AddGeneratedColumns(index))
        try:
            impl.execute(AddGeneratedIndex(index))
        except DBAPIError:
            columns = generated_columns(operation.index)[: len(indexed_parts(index))]
            impl.execute(DropGeneratedColumns(index, columns))
            raise


class _Analyze(ExecutableDDLElement):
    """PostgreSQL has no statistics of a new index on expressions.

    For want of them, it looks for a few expired rows along the primary key, in all rows of the table.
    """

    def __init__(self, index: Index) -> None:
        self.table: Any = index.table


@compiles(_Analyze)
def _compile_analyze(element: _Analyze, compiler: DDLCompiler, **_: Any) -> str:
    return f"ANALYZE (SKIP_LOCKED) {compiler.preparer.format_table(element.table)}"


@Operations.implementation_for(DropIndexOp)
def _drop(operations: Operations, operation: DropIndexOp) -> None:
    # The stamp needs nothing of the type, so a model that has dropped the fingerprint can drop its index.
    index = StaleIndex(operation.index, operation.to_table().c[operation.column])
    impl: Any = operations.impl
    with _working(operations, operation, index):
        if impl.dialect.name in _TWO_STEPS:
            impl.execute(DropGeneratedIndex(index))
            impl.execute(DropGeneratedColumns(index, _generated_columns(operations, operation)))
        else:
            impl.drop_index(index)


@contextmanager
def _working(operations: Operations, operation: _IndexOp, index: Index) -> Iterator[bool]:
    """Work on an index in the block: outside the migration's transaction if PostgreSQL is to work concurrently.

    Yields whether it is. Time-outs of statements are lifted, and what the database refuses is explained: its own errors
    show the fingerprint that two rows share.

    Raises:
        ConfigurationError: Two rows share it, or the set-up is wrong; or another program has begun a transaction on
            Alembic's connection.
        ReencryptionError: The database refused for another reason, or the connection was lost.
    """
    is_sql = operations.get_context().as_sql
    is_concurrent = operation.postgresql_concurrently and operations.impl.dialect.name == "postgresql"
    name = f"op.{operation.name}({operation.index!r}, {operation.table!r}, {operation.column!r})"
    with ExitStack() as stack:
        if is_concurrent:
            index.dialect_kwargs["postgresql_concurrently"] = True
            has_none = not is_sql and is_autocommit(operations.get_bind())
            if not (has_none or stack.enter_context(outside_transaction(operations))):
                raise ConfigurationError(
                    f"op.{operation.name}: PostgreSQL does not work concurrently in a transaction, and the connection "
                    "that env.py gives Alembic is in one already, or in a savepoint. Give it engine.connect() instead "
                    "of engine.begin(), or leave postgresql_concurrently out"
                )
        try:
            with nullcontext() if is_sql else lifted_and_restored(operations.get_bind()):
                yield is_concurrent
        except IntegrityError:
            others = [name for name in operation.columns if name != operation.column]
            shared = " and ".join([*others, *operation.fingerprints])
            raise ConfigurationError(
                f"{name}: rows have the same {shared}, so the index cannot be unique; delete all but one of them, or "
                "leave unique=True out"
            ) from None
        except IdentifierError:
            raise ConfigurationError(f"{name}: the name is too long for the database; shorten it") from None
        except DBAPIError as error:
            message = f"{name}: the database refused ({explained(error)})"
            if is_setup_problem(error):
                raise ConfigurationError(message) from None
            raise ReencryptionError(message, reason="database") from None


def _generated_columns(operations: Operations, operation: DropIndexOp) -> list[str]:
    """Return the generated columns of an index: those that are there, because another number may be declared by now."""
    names = generated_columns(operation.index)
    if operations.get_context().as_sql:
        return names[: len(operation.fingerprints)]
    found = inspect(operations.get_bind()).get_columns(operation.table, schema=operation.schema)
    existing = {one["name"] for one in found}
    return [name for name in names if name in existing]


def _drop_invalid(operations: Operations, index: Index) -> None:
    """Drop the index of this name that a concurrent build has left when it failed; nothing uses it."""
    if operations.get_context().as_sql:
        return
    assert index.table is not None  # noqa: S101 - it was put into one
    named = {"name": index.name, "schema": index.table.schema}
    if operations.get_bind().execute(_INVALID, named).first() is not None:
        operations.impl.drop_index(index)
