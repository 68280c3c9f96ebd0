"""Findings before a run: each would stop it, falsify it or make it slow.

Every run examines its column first, and so does :func:`preflight`, which reports and does nothing else.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError

from jwt_column.auditing.columns import columns_of
from jwt_column.database.error_sentences import explained
from jwt_column.database.reading import connected, rolled_back
from jwt_column.errors import JWTColumnError, ReencryptionError

from ..conversions import Adoption, Reencryption
from ..reflection import Subject
from .examination import Examination, examine
from .kinds import Fact, finding
from .server import time_outs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection, Engine

    from jwt_column.auditing import Finding
    from jwt_column.column.types import EncryptedJWT

    from ..conversions import Conversion

__all__ = ["Examination", "Subject", "examine", "preflight", "preflight_column"]


def preflight(bind: Engine | Connection, target: Any) -> list[Finding]:
    """Return what would stop a run, an audit or a census on this database for this role, or make it wrong or slow.

    Looks at the server (a replica, a pooler, time-outs, the packet), the role and its rights, the table (its kind, its
    parts, triggers, rules, row-level security, versioning, replication identity, indexes), the column (generated, of
    the wrong type, too short) and the disk. Nothing is written, and no row is locked. Every run does the same first.

    Args:
        bind: An engine, or a connection. With an ``AsyncEngine``:
            ``await connection.run_sync(lambda connection: preflight(connection, Session.token))``.
        target: A mapped attribute, a column, a table, a mapped class; a ``MetaData`` for all its encrypted columns; or
            a list of these.

    Returns:
        A finding for each fact, the gravest first; empty if nothing was found. A critical one stops a run. Of the
        others, a warning makes it slow or its result less than it seems, and the rest is good to know.

    Raises:
        ConfigurationError: The target holds no encrypted column.
        ReencryptionError: The database cannot be reached.
    """
    columns = columns_of(target)
    findings: list[Finding] = []
    try:
        with connected(bind, "preflight") as connection:
            for column in columns:
                subject = Subject(column.table.name, column.column.name, column.type_, column.table.schema)
                findings += preflight_column(connection, subject, _conversions(column.type_))
    except (SQLAlchemyError, OSError) as error:
        raise ReencryptionError(
            f"the database cannot be reached ({explained(error)}); nothing was done", reason="database"
        ) from None
    return sorted(findings, key=lambda one: (-one.severity.rank, one.column, one.code))


def preflight_column(
    connection: Connection, subject: Subject, conversions: Sequence[Callable[..., Conversion]]
) -> list[Finding]:
    """Return the findings of one column, and undo all that looking for them took."""
    translations: Any = connection.get_execution_options().get("schema_translate_map")
    try:
        was_in_transaction = connection.in_transaction()
        # Before any of them is lifted.
        limits = time_outs(connection)
        if not was_in_transaction:
            connection.rollback()
        with rolled_back(connection):
            found = subject.found_by(connection)
            # The name that was found is no name to be translated again.
            connection.execution_options(schema_translate_map=None)
            try:
                return examine(connection, found, conversions, limits).findings
            finally:
                connection.execution_options(schema_translate_map=translations)
    except SQLAlchemyError as error:
        if connection.invalidated:
            raise
        fact = Fact("refused", f"the database refused ({explained(error)})", "mend that, and look again")
        return [finding(subject.name, fact)]


def _conversions(type_: EncryptedJWT) -> Sequence[Callable[..., Conversion]]:
    """Return the conversions that a run may do; none where the keys cannot be had."""
    with suppress(JWTColumnError):
        type_.ring()
        return (Reencryption,) if type_.bound_to else (Reencryption, Adoption)
    return ()
