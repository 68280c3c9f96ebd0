"""The CPU time that a database server of this machine spends on one connection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

__all__ = ["server_clock"]

# Which thread of the system serves this connection, and what it is called.
_THREADS: Final = {
    "postgresql": ("SELECT pg_backend_pid()", "postgres"),
    "mariadb": ("SELECT tid FROM information_schema.processlist WHERE id = CONNECTION_ID()", "mariadbd"),
}


def server_clock(bind: Engine | Connection) -> Callable[[], float] | None:
    """Return a clock of the CPU seconds that the server has spent on a connection, or None where it cannot be read.

    Of an engine it is the connection that its pool has at hand. What other processes of the server do for it is not
    counted: parallel workers, those that write the log and the pages.
    """
    if isinstance(bind, Engine):
        with bind.connect() as connection:
            return server_clock(connection)
    if bind.dialect.name not in _THREADS:
        return None
    question, name = _THREADS[bind.dialect.name]
    thread = Path("/proc", str(bind.exec_driver_sql(question).scalar_one()))
    bind.rollback()
    statistics = thread / "schedstat"
    # Of a server elsewhere, or in a container, the number is somebody else's here, or nobody's.
    if not statistics.exists() or (thread / "comm").read_text().strip() != name:
        return None
    return lambda: int(statistics.read_text().split()[0]) / 1e9
