"""The Alembic operations: what a migration says is data here, what it does is registered apart.

.. code-block:: python

    import migrations_helpers  # registers the operations

    def upgrade() -> None:
        op.reencrypt_jwt_column("sessions", "token")

The work runs outside the migration's transaction, inside ``autocommit_block()``, batch by batch: a run that is stopped
leaves the revision unapplied, and the next ``alembic upgrade`` goes on where it was. Give it a revision of its own, and
``transaction_per_migration=True`` in ``env.py``, because an autocommit block commits what the run did before it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from alembic.operations import MigrateOperation, Operations
from alembic.util import CommandError
from sqlalchemy import not_

from jwt_column.census import current_stamps
from jwt_column.errors import ConfigurationError, ReencryptionError

from ..engine.conversions import Adoption, Reencryption, Removal
from ..engine.expired import choose_expired
from ..engine.progress import report_progress
from ..engine.reencryption import convert_column, in_column
from ..engine.run import Options, check_options
from ..engine.table import find_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from jwt_column.column.types import EncryptedJWT

    from ..engine.conversions import Conversion
    from ..engine.expired import Expired
    from ..engine.report import ReencryptionReport

__all__ = ["DecryptColumnOp", "EncryptColumnOp", "EnsureCurrentOp", "ReencryptColumnOp"]


class ColumnOp(MigrateOperation):
    """An operation on the rows of one encrypted column."""

    name: ClassVar[str]

    def __init__(
        self,
        table: str,
        column: str,
        *,
        type_: EncryptedJWT | None = None,
        schema: str | None = None,
        **options: Any,
    ) -> None:
        self.table = table
        self.column = column
        self.type_ = in_column(type_, table, column)
        self.schema = schema
        self.options = options

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return what ``alembic check`` shows."""
        return (self.name, self.schema, self.table, self.column)

    def _same(self, operation: type[ColumnOp]) -> ColumnOp:
        return operation(self.table, self.column, type_=self.type_, schema=self.schema, **self.options)


@Operations.register_operation("reencrypt_jwt_column")
class ReencryptColumnOp(ColumnOp):
    """Stale rows become current ones."""

    name = "reencrypt_jwt_column"

    @classmethod
    def reencrypt_jwt_column(
        cls,
        operations: Operations,
        table: str,
        column: str,
        *,
        type_: EncryptedJWT | None = None,
        schema: str | None = None,
        **options: Any,
    ) -> ReencryptionReport:
        """Re-encrypt every stale row of a column under its active key, or make an end of those that have expired.

        Args:
            operations: Given by Alembic.
            table: The table's name.
            column: The encrypted column's name.
            type_: The column's type as the model has it; None means ``EncryptedJWT()``. The keys come from its key
                ring, never from the migration.
            schema: The table's schema.
            **options: As :func:`migrations_helpers.reencrypt` takes them.

        Raises:
            ReencryptionError: Rows are left that are stale or cannot be read. The revision stays unapplied; rows that
                were rewritten stay rewritten, and the next run goes on from there.
            CommandError: In ``--sql`` mode: a script cannot re-encrypt.
        """
        report: ReencryptionReport = operations.invoke(
            cls(table, column, type_=type_, schema=schema, **options)
        )
        return report

    def reverse(self) -> ColumnOp:
        """Return the operation itself: both keys decrypt, so going back means the key that is active then.

        Whatever the upgrade does with expired rows, a downgrade loses none.
        """
        options = {name: value for name, value in self.options.items() if name != "expired"}
        return ReencryptColumnOp(self.table, self.column, type_=self.type_, schema=self.schema, **options)


@Operations.register_operation("encrypt_jwt_column")
class EncryptColumnOp(ColumnOp):
    """Plaintext, or what another library wrote, becomes envelopes."""

    name = "encrypt_jwt_column"

    @classmethod
    def encrypt_jwt_column(
        cls,
        operations: Operations,
        table: str,
        column: str,
        *,
        type_: EncryptedJWT | None = None,
        schema: str | None = None,
        decrypt_with: Callable[[Any], str] | None = None,
        **options: Any,
    ) -> ReencryptionReport:
        """Encrypt every row of a column that is no envelope yet, in place.

        Args:
            operations: Given by Alembic.
            table: The table's name.
            column: The column's name; it has the type in the database that its storage form needs.
            type_: The column's type as the model will have it; None means ``EncryptedJWT()``.
            schema: The table's schema.
            decrypt_with: Reads a stored value of another library and returns the token, as a
                :class:`~migrations_helpers.FernetReader`, :class:`~migrations_helpers.SQLAlchemyUtilsReader` or
                :class:`~migrations_helpers.JWEReader` does; None reads plaintext.
            **options: As :func:`migrations_helpers.reencrypt` takes them.

        Raises:
            ReencryptionError: Rows are left that are no envelopes; or the column is too short for envelopes, or of
                the other storage form, and nothing was done.
            KeyUnavailableError: The key of the other library cannot be had.
            CommandError: In ``--sql`` mode.
        """
        report: ReencryptionReport = operations.invoke(
            cls(table, column, type_=type_, schema=schema, decrypt_with=decrypt_with, **options)
        )
        return report

    def reverse(self) -> ColumnOp:
        """Return the operation that makes plaintext of envelopes."""
        options = {name: value for name, value in self.options.items() if name != "decrypt_with"}
        return DecryptColumnOp(self.table, self.column, type_=self.type_, schema=self.schema, **options)


@Operations.register_operation("decrypt_jwt_column")
class DecryptColumnOp(ColumnOp):
    """Envelopes become plaintext, for leaving this package."""

    name = "decrypt_jwt_column"

    @classmethod
    def decrypt_jwt_column(
        cls,
        operations: Operations,
        table: str,
        column: str,
        *,
        type_: EncryptedJWT | None = None,
        schema: str | None = None,
        **options: Any,
    ) -> ReencryptionReport:
        """Decrypt every envelope of a column, in place: the tokens are live credentials in the clear afterwards.

        Args:
            operations: Given by Alembic.
            table: The table's name.
            column: The encrypted column's name.
            type_: The column's type as the model had it; None means ``EncryptedJWT()``.
            schema: The table's schema.
            **options: As :func:`migrations_helpers.reencrypt` takes them.

        Raises:
            ReencryptionError: Envelopes are left, because they cannot be read.
            CommandError: In ``--sql`` mode.
        """
        report: ReencryptionReport = operations.invoke(
            cls(table, column, type_=type_, schema=schema, **options)
        )
        return report

    def reverse(self) -> ColumnOp:
        """Return the operation that encrypts the plaintext again."""
        return self._same(EncryptColumnOp)


@Operations.register_operation("ensure_jwt_column_current")
class EnsureCurrentOp(ColumnOp):
    """A gate: later revisions run only when no row is behind."""

    name = "ensure_jwt_column_current"

    @classmethod
    def ensure_jwt_column_current(
        cls,
        operations: Operations,
        table: str,
        column: str,
        *,
        type_: EncryptedJWT | None = None,
        schema: str | None = None,
    ) -> None:
        """Raise while a row of the column is stale or in the clear; reads, never writes.

        Args:
            operations: Given by Alembic.
            table: The table's name.
            column: The encrypted column's name.
            type_: The column's type as the model has it; None means ``EncryptedJWT()``.
            schema: The table's schema.

        Raises:
            ReencryptionError: Rows are behind; the message says how many.
            CommandError: In ``--sql`` mode.
        """
        operations.invoke(cls(table, column, type_=type_, schema=schema))

    def reverse(self) -> ColumnOp:
        """Return the operation itself: it changes nothing."""
        return self._same(EnsureCurrentOp)


@Operations.implementation_for(ReencryptColumnOp)
def _reencrypt(operations: Operations, operation: ReencryptColumnOp) -> ReencryptionReport:
    options = dict(operation.options)
    expired = choose_expired(options.pop("expired", "keep"), operation.type_)
    return _convert(operations, operation, Reencryption, options, expired)


@Operations.implementation_for(EncryptColumnOp)
def _encrypt(operations: Operations, operation: EncryptColumnOp) -> ReencryptionReport:
    options = dict(operation.options)
    decrypt_with = options.pop("decrypt_with", None)
    return _convert(operations, operation, partial(Adoption, decrypt_with=decrypt_with), options)


@Operations.implementation_for(DecryptColumnOp)
def _decrypt(operations: Operations, operation: DecryptColumnOp) -> ReencryptionReport:
    return _convert(operations, operation, Removal, operation.options)


def _convert(
    operations: Operations,
    operation: ColumnOp,
    make_conversion: Callable[..., Conversion],
    options: dict[str, Any],
    expired: Expired | None = None,
) -> ReencryptionReport:
    """Run a conversion on Alembic's own connection, which has the search path and the role of the migration."""
    _refuse_offline(operations, operation)
    checked = check_options(dict(options))
    if checked.get("dry_run"):
        raise ConfigurationError(
            f"op.{operation.name} takes no dry run: the revision would count as applied. Call "
            "migrations_helpers.reencrypt(..., dry_run=True), or run 'jwt-column reencrypt --dry-run'"
        )
    with report_progress(operation.table, operation.column, checked.pop("progress", None)) as progress:
        given = Options(progress=progress, **checked)
        with operations.get_context().autocommit_block():
            return convert_column(
                operations.get_bind(),
                operation.table,
                operation.column,
                operation.type_,
                make_conversion,
                given,
                schema=operation.schema,
                expired=expired,
            )


@Operations.implementation_for(EnsureCurrentOp)
def _ensure_current(operations: Operations, operation: EnsureCurrentOp) -> None:
    _refuse_offline(operations, operation)
    connection = operations.get_bind()
    type_ = operation.type_
    target = find_target(connection, operation.table, operation.column, type_, schema=operation.schema)
    if connection.execute(target.any_row()).first() is None:
        return
    behind = connection.execute(
        target.count(not_(target.header.has_stamp(*current_stamps(type_))))
    ).scalar_one()
    if behind:
        raise ReencryptionError(
            f"{target.name}.{operation.column}: {behind} rows are stale or in the clear; run "
            f'op.reencrypt_jwt_column("{operation.table}", "{operation.column}") (or op.encrypt_jwt_column for '
            "plaintext) first",
            reason="rows",
            context=type_.context,
        )


def _refuse_offline(operations: Operations, operation: ColumnOp) -> None:
    if operations.get_context().as_sql:
        raise CommandError(
            f"op.{operation.name} cannot be written into a SQL script: it needs keys and rows. Run this revision "
            "online, or run 'jwt-column reencrypt' and stamp it"
        )
