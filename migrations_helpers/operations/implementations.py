"""The effects of the operations on rows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from alembic.operations import Operations
from alembic.util import CommandError
from sqlalchemy import not_
from sqlalchemy.exc import SQLAlchemyError

from jwt_column.census import current_stamps
from jwt_column.column.header_sql import HeaderSQL
from jwt_column.database.error_sentences import explained
from jwt_column.database.reading import rolled_back
from jwt_column.errors import ConfigurationError, ReencryptionError
from jwt_column.wording import counted

from ..engine.conversions import Adoption, Decryption, Reencryption, find_lost_fields
from ..engine.endings import require_complete
from ..engine.expired import choose_expired
from ..engine.layouts import check_drop
from ..engine.options import Options, check_options
from ..engine.preflight import Subject, examine
from ..engine.progress import report_progress
from ..engine.reencryption import convert_column
from ..engine.rendering import render_type
from ..engine.report import ReencryptionReport
from ..engine.tenants import check_schemas, schema_names
from .directives import DecryptColumnOp, EncryptColumnOp, EnsureCurrentOp, ReencryptColumnOp
from .transactions import outside_transaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from ..engine.conversions import Conversion
    from ..engine.expired import Expired
    from ..engine.table import RunTable
    from .directives import ColumnOp


@Operations.implementation_for(ReencryptColumnOp)
def _reencrypt(operations: Operations, operation: ReencryptColumnOp) -> ReencryptionReport:
    options = dict(operation.options)
    expired = choose_expired(options.pop("expired", "keep"), operation.type_)
    conversion = partial(Reencryption, drop=check_drop(options.pop("drop", ())))
    return _convert(operations, operation, conversion, options, expired)


@Operations.implementation_for(EncryptColumnOp)
def _encrypt(operations: Operations, operation: EncryptColumnOp) -> ReencryptionReport:
    options = dict(operation.options)
    decrypt_with = options.pop("decrypt_with", None)
    return _convert(operations, operation, partial(Adoption, decrypt_with=decrypt_with), options)


@Operations.implementation_for(DecryptColumnOp)
def _decrypt(operations: Operations, operation: DecryptColumnOp) -> ReencryptionReport:
    return _convert(operations, operation, Decryption, operation.options)


def _convert(
    operations: Operations,
    operation: ColumnOp,
    make_conversion: Callable[..., Conversion],
    options: dict[str, Any],
    expired: Expired | None = None,
) -> ReencryptionReport:
    """Run a conversion on Alembic's own connection, which has the search path and the role of the migration."""
    _refuse_offline(operations, operation)
    given = Options(**check_options(dict(options)))
    if given.dry_run:
        raise ConfigurationError(
            f"op.{operation.name} takes no dry run: the revision would count as applied. Call "
            "migrations_helpers.reencrypt(..., dry_run=True), or run 'jwt-column reencrypt --dry-run'"
        )
    with report_progress(operation.table, operation.column, given.progress) as progress:
        given = replace(given, progress=progress, expired=expired)
        with outside_transaction(operations) as is_outside:
            if not is_outside:
                return _in_transaction_of_others(operations, operation)
            report = convert_column(operations.get_bind(), operation.subject, make_conversion, given)
    # Applied, the revision would be done for good.
    return require_complete(report)


def _in_transaction_of_others(operations: Operations, operation: ColumnOp) -> ReencryptionReport:
    """Return the report of an empty table, for which no batch is committed.

    Raises:
        ConfigurationError: There are rows.
    """
    connection = operations.get_bind()
    each = _in_each(connection, operation.subject, operation.options.get("schemas"))
    tables = [_find_table(connection, one) for one in each]
    if not any(connection.execute(table.any_row()).first() for table in tables):
        name = tables[0].name if len(tables) == 1 else operation.table
        return ReencryptionReport(table=name, column=operation.column, finished=True)
    raise ConfigurationError(
        f"op.{operation.name} commits its batches one by one, and the connection that env.py gives Alembic is in a "
        "transaction or a savepoint already. Give it engine.connect() instead of engine.begin() (also in "
        "config.attributes['connection']), execute nothing on it before context.configure(), and set "
        "transaction_per_migration=True"
    )


def _find_table(connection: Connection, subject: Subject, *, writes: bool = True) -> RunTable:
    return examine(connection, subject.found_by(connection)).fit_table(writes=writes)


@Operations.implementation_for(EnsureCurrentOp)
def _ensure_current(operations: Operations, operation: EnsureCurrentOp) -> None:
    _refuse_offline(operations, operation)
    options = dict(operation.options)
    schemas = options.pop("schemas", None)
    if options:
        raise ConfigurationError(f"op.{operation.name} has no option {', '.join(sorted(options))}")
    connection = operations.get_bind()
    try:
        with rolled_back(connection):
            _refuse_behind_each(connection, operation.subject, schemas)
    except SQLAlchemyError as error:
        raise ReencryptionError(
            f"op.{operation.name}: the database refused ({explained(error)})",
            reason="database",
            context=operation.type_.context,
        ) from None


def _refuse_behind_each(connection: Connection, subject: Subject, schemas: Any) -> None:
    problems = []
    for one in _in_each(connection, subject, schemas):
        try:
            _refuse_behind(connection, one)
        except ReencryptionError as error:
            if schemas is None:
                raise
            problems.append(f"{one.schema}: {error}")
    if problems:
        raise ReencryptionError(
            f"{len(problems)} schemas are behind. {'; '.join(problems[:5])}{'; ...' if len(problems) > 5 else ''}",
            reason="schemas",
            context=subject.type_.context,
        )


def _in_each(connection: Connection, subject: Subject, schemas: Any) -> list[Subject]:
    """Return the column in each of some schemas, or itself if there are none."""
    if schemas is None:
        return [subject]
    if subject.schema is not None:
        raise ConfigurationError("schema is one schema and schemas are several; give one of the two")
    check_schemas(schemas)
    return [subject.in_schema(name) for name in schema_names(connection, schemas)]


def _refuse_behind(connection: Connection, subject: Subject) -> None:
    """Raise while a row of one table is stale or in the clear, or rows that this role cannot see may be."""
    type_, table = subject.type_, _find_table(connection, subject, writes=False)
    if connection.execute(table.any_row()).first() is None:
        return
    header, destroyed = HeaderSQL(table.value, type_), type_.ring().destroyed_key_ids
    is_behind = [not_(header.has_stamp(*current_stamps(type_)))]
    # Rows of keys that were destroyed on purpose are behind nothing.
    is_behind += [not_(header.is_under(*destroyed))] if destroyed else []
    behind = connection.execute(table.count(*is_behind)).scalar_one()
    if not behind:
        return
    rows = f"{counted(behind, 'row', ('is', 'are'))} stale or in the clear"
    conversion = Reencryption(type_, table.value)
    lost = find_lost_fields(connection.execute, table, conversion)
    if lost is not None:
        problem = f"{rows}. {lost} in this operation and in op.reencrypt_jwt_column"
    else:
        problem = (
            f"{table.name}.{subject.column}: {rows}; run "
            f'op.reencrypt_jwt_column("{subject.table}", "{subject.column}", type_={render_type(type_)}) '
            "(or op.encrypt_jwt_column for plaintext) first"
        )
    raise ReencryptionError(problem, reason="rows", context=type_.context)


def _refuse_offline(operations: Operations, operation: ColumnOp) -> None:
    if operations.get_context().as_sql:
        raise CommandError(
            f"op.{operation.name} cannot be written into a SQL script: it needs keys and rows. Run this revision "
            "online, or run 'jwt-column reencrypt' and stamp it"
        )
