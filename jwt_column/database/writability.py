"""Databases that take no writes: replicas, and those that are set to read only."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .time_limits import all_rows

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Refusal(NamedTuple):
    """Why a database takes no writes (``"replica"`` or ``"read-only"``), and what to do, in the imperative."""

    code: str
    reason: str
    cure: str


_PRIMARY = "connect to the primary"


def why_no_writes(connection: Connection) -> Refusal | None:
    """Return why a connection can write nothing, as far as the database says so before it is tried; else None."""
    name = connection.dialect.name
    if name == "postgresql":
        in_recovery, read_only = connection.exec_driver_sql(
            "SELECT pg_catalog.pg_is_in_recovery(), current_setting('transaction_read_only')"
        ).one()
        if in_recovery:
            return Refusal("replica", "the server is a replica, which takes no writes", _PRIMARY)
        if read_only == "on":
            cure = "set default_transaction_read_only to off for this role and database, or connect to the primary"
            return Refusal("read-only", "transactions are read-only", cure)
    elif name in ("mysql", "mariadb"):
        if _is_any_on(connection, "GLOBAL", "read_only", "super_read_only", "innodb_read_only"):
            return Refusal("replica", "the server has read_only set, as a replica has", _PRIMARY)
        if _is_any_on(connection, "SESSION", "tx_read_only", "transaction_read_only"):
            cure = "begin them with READ WRITE, or connect to the primary"
            return Refusal("read-only", "transactions are read-only", cure)
    elif name == "sqlite":
        query = connection.engine.url.query
        if query.get("mode") == "ro" or query.get("immutable") in ("1", "true"):
            return Refusal(
                "read-only", "its URL opens the file read-only", "take mode=ro or immutable=1 away"
            )
        if connection.exec_driver_sql("PRAGMA query_only").scalar():
            return Refusal("read-only", "the connection has PRAGMA query_only set", "take it back")
    return None


def _is_any_on(connection: Connection, scope: str, *names: str) -> bool:
    listed = ", ".join(f"'{name}'" for name in names)
    with all_rows(connection):
        found = connection.exec_driver_sql(f"SHOW {scope} VARIABLES WHERE variable_name IN ({listed})").all()
    return any(str(value).upper() in ("ON", "1") for _, value in found)
