"""Findings about the server, and about what stands between it and the program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.exc import DBAPIError

from jwt_column.database.writability import why_no_writes

from .kinds import finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from jwt_column.auditing import Finding

__all__ = ["server_findings", "time_outs"]

_TIME_OUTS: Final = {
    "postgresql": ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"),
    "mysql": (
        "max_statement_time",
        "max_execution_time",
        "idle_transaction_timeout",
        "idle_write_transaction_timeout",
    ),
}
# Below this, the statements of a run are smaller than they would be.
_AMPLE_PACKET: Final = 8 * 1024 * 1024


def server_findings(
    connection: Connection, name: str, longest: int, limits: dict[str, str]
) -> Iterator[Finding]:
    """Yield the findings about the server of a column.

    Args:
        connection: To the database.
        name: The column in the findings.
        longest: The most bytes that a value of the column may have.
        limits: The time-outs, from :func:`time_outs`.
    """
    refusal = why_no_writes(connection)
    if refusal is not None:
        yield finding(refusal.code, name, f"{name} cannot be written: {refusal.reason}", refusal.cure)
    if connection.dialect.name in ("mysql", "mariadb"):
        yield from _mysql_findings(connection, name, longest, is_read_only=refusal is not None)
    if _is_pooled(connection):
        yield finding(
            "pooler",
            name,
            "a pooler or a proxy stands before the server: it knows the session by another number than the driver",
            "give its pool at least two servers and one for each further shard, and turn prepared statements off in "
            "programs that purge or audit",
        )
    if limits:
        shown = ", ".join(f"{name} = {value}" for name, value in limits.items())
        yield finding(
            "time-outs",
            name,
            f"time-outs are set, which a run and an audit lift for themselves and other statements have: {shown}",
            "raise them for the role that runs key_usage() or purge_expired() on a large table",
        )


def time_outs(connection: Connection) -> dict[str, str]:
    """Return the time-outs of the session that are set, before any of them is lifted."""
    family = "mysql" if connection.dialect.name == "mariadb" else connection.dialect.name
    names = ", ".join(f"'{name}'" for name in _TIME_OUTS.get(family, ()))
    if not names:
        return {}
    statement = f"SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ({names}) ORDER BY 1"  # noqa: S608
    if family == "mysql":
        statement = f"SHOW VARIABLES WHERE variable_name IN ({names})"
    found = connection.exec_driver_sql(statement)
    unit = " ms" if family == "postgresql" else ""
    return {str(name): f"{value}{unit}" for name, value in found if float(value)}


def _mysql_findings(
    connection: Connection, name: str, longest: int, *, is_read_only: bool
) -> Iterator[Finding]:
    packet = int(connection.exec_driver_sql("SELECT @@max_allowed_packet").scalar_one())
    if packet < 2 * longest:
        yield finding(
            "packet-short",
            name,
            f"max_allowed_packet is {packet:,} bytes, and a statement with a value of {longest:,} may need twice that",
            "raise it on the server, or lower max_length of the column's type",
        )
    elif packet < _AMPLE_PACKET:
        yield finding(
            "packet",
            name,
            f"max_allowed_packet is {packet:,} bytes, so the statements of a run are cut to half of that",
            "raise it if the run is too slow",
        )
    if not is_read_only and _replicates(connection):
        yield finding(
            "replicates",
            name,
            "the server replicates from another one and takes writes: what a run writes here, the other server lacks",
            "run on the primary, unless both are primaries of each other",
        )


def _replicates(connection: Connection) -> bool:
    """Return True if a server says that it is a replica; one may be forbidden to ask."""
    dialect: Any = connection.dialect
    statement = "SHOW ALL SLAVES STATUS" if getattr(dialect, "is_mariadb", False) else "SHOW REPLICA STATUS"
    try:
        return connection.exec_driver_sql(statement).first() is not None
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return False


def _is_pooled(connection: Connection) -> bool:
    """Return True if the driver was told another number of its session than the server has for it."""
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "postgresql":
        number = getattr(getattr(driver, "info", None), "backend_pid", None)
        ask, told = "SELECT pg_catalog.pg_backend_pid()", number or getattr(driver, "get_server_pid", None)
    elif connection.dialect.name in ("mysql", "mariadb"):
        ask = "SELECT CONNECTION_ID()"
        told = getattr(driver, "connection_id", None) or getattr(driver, "thread_id", None)
    else:
        return False
    told = told() if callable(told) else told
    return isinstance(told, int) and told != connection.exec_driver_sql(ask).scalar_one()
