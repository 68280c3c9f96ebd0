"""The CPU time that a database server of this machine spends on the connections of an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = ["ServerClock"]

# Which thread of the system serves a connection, and what it is called.
_THREADS: Final = {
    "postgresql": ("SELECT pg_backend_pid()", "postgres"),
    "mariadb": ("SELECT tid FROM information_schema.processlist WHERE id = CONNECTION_ID()", "mariadbd"),
}


class ServerClock:
    """A clock of the CPU seconds that the server has spent on the connections that an engine opens from now on.

    What other processes of the server do for them is not counted: parallel workers, those that write the log and the
    pages.
    """

    def __init__(self, engine: Engine) -> None:
        self._threads: dict[Any, Path] = {}
        # Of connections that are closed: their threads may have ended.
        self._past = 0.0
        self._is_readable = engine.dialect.name in _THREADS
        if self._is_readable:
            self._question, self._name = _THREADS[engine.dialect.name]
            event.listen(engine, "connect", self._on_connect)
            event.listen(engine, "close", self._on_close)

    def read(self) -> float | None:
        """Return the seconds, or None where they cannot be read."""
        if not self._is_readable:
            return None
        return self._past + sum(map(_seconds, self._threads.values()))

    def _on_connect(self, connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(self._question)
        thread = Path("/proc", str(cursor.fetchone()[0]))
        cursor.close()
        connection.rollback()
        # Of a server elsewhere, or in a container, the number is somebody else's here, or nobody's.
        if (thread / "schedstat").exists() and (thread / "comm").read_text().strip() == self._name:
            self._threads[record] = thread
        else:
            self._is_readable = False

    def _on_close(self, connection: Any, record: Any) -> None:
        thread = self._threads.pop(record, None)
        if thread:
            self._past += _seconds(thread)


def _seconds(thread: Path) -> float:
    return int((thread / "schedstat").read_text().split()[0]) / 1e9
