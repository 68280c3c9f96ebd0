"""Findings about the server, and about what stands between it and the program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BINARY, VARBINARY, LargeBinary, func, literal, select
from sqlalchemy.exc import DBAPIError

from jwt_column.database.time_limits import all_rows
from jwt_column.database.writability import why_no_writes

from ..schemas import family_of
from .kinds import Fact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection

    from ..table import RunTable


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


def server_facts(
    connection: Connection, column: str, longest: int, limits: Mapping[str, str]
) -> Iterator[Fact]:
    """Yield the facts about the server of a column, of which a value has at most *longest* bytes.

    *limits* are the time-outs, from :func:`time_outs`.
    """
    refusal = why_no_writes(connection)
    if refusal is not None:
        yield Fact(refusal.code, f"{column} cannot be written: {refusal.reason}", refusal.cure)
    if family_of(connection) == "mysql":
        yield from _mysql_facts(connection, longest, is_read_only=refusal is not None)
    if _is_pooled(connection):
        yield Fact(
            "pooler",
            "a pooler or a proxy stands before the server: it knows the session by another number than the driver",
            "give its pool at least two servers and one for each further shard, and turn prepared statements off in "
            "the application",
        )
    if limits:
        shown = ", ".join(f"{name} = {value}" for name, value in limits.items())
        yield Fact(
            "time-outs",
            f"time-outs are set, which runs, audits and purges lift for themselves and other statements have: {shown}",
            "raise them for the role that runs key_usage() on a large table",
        )


def bytes_facts(connection: Connection, table: RunTable) -> Iterator[Fact]:
    """Yield the fact that the server of MySQL or MariaDB reads other bytes than the driver sends.

    mysqlclient sends bytes as a text of its character set. A server that was told of another one by a SET, which the
    driver knows nothing of, converts them: a value is destroyed, and no condition finds it.
    """
    columns = (table.value, *table.keys, *table.bound)
    has_bytes = any(isinstance(column.type, LargeBinary | BINARY | VARBINARY) for column in columns)
    if table.dialect != "mysql" or not has_bytes:
        return
    # Sent as the application's values are, whatever settings have which names.
    sent = bytes(range(256))
    read = connection.execute(select(func.hex(literal(sent, LargeBinary())))).scalar_one()
    if str(read).lower() != sent.hex():
        yield Fact(
            "bytes-altered",
            f"the server reads other bytes than this driver sends, so that every value written to {table.name} through "
            "this engine is destroyed: character_set_client or character_set_connection was set behind the driver",
            "remove the SET from the engine's connect event or init_command, and give charset=utf8mb4 in the URL "
            "instead",
        )


def time_outs(connection: Connection) -> dict[str, str]:
    """Return the time-outs of the session that are set, before any of them is lifted."""
    family = family_of(connection)
    names = ", ".join(f"'{name}'" for name in _TIME_OUTS.get(family, ()))
    if not names:
        return {}
    statement = f"SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ({names}) ORDER BY 1"  # noqa: S608
    if family == "mysql":
        statement = f"SHOW VARIABLES WHERE variable_name IN ({names})"
    with all_rows(connection):
        found = connection.exec_driver_sql(statement).all()
    unit = " ms" if family == "postgresql" else ""
    return {str(name): f"{value}{unit}" for name, value in found if float(value)}


def _mysql_facts(connection: Connection, longest: int, *, is_read_only: bool) -> Iterator[Fact]:
    packet = int(connection.exec_driver_sql("SELECT @@max_allowed_packet").scalar_one())
    if packet < 2 * longest:
        yield Fact(
            "packet-short",
            f"max_allowed_packet is {packet:,} bytes, and a statement with a value of {longest:,} may need twice that",
            "raise it on the server, or lower max_length of the column's type",
        )
    elif packet < _AMPLE_PACKET:
        yield Fact(
            "packet",
            f"max_allowed_packet is {packet:,} bytes, so the statements of a run are cut to half of that",
            "raise it if the run is too slow",
        )
    if not is_read_only and _replicates(connection):
        yield Fact(
            "replicates",
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
    elif family_of(connection) == "mysql":
        ask = "SELECT CONNECTION_ID()"
        told = getattr(driver, "connection_id", None) or getattr(driver, "thread_id", None)
    else:
        return False
    told = told() if callable(told) else told
    return isinstance(told, int) and told != connection.exec_driver_sql(ask).scalar_one()
