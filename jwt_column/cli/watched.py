"""One column under ``jwt-column audit --watch``: its last censuses, its rate, and the time left."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Final

from ..auditing.declaration import configuration_of
from ..database.printable import printable
from ..errors import ConfigurationError, KeyUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..auditing.columns import AuditedColumn

    Key = tuple[str | None, str]

__all__ = ["BEHIND", "WatchedColumn"]

# Censuses that a rate is computed from: enough to even batches out, few enough to show a change.
_LOOKS: Final = 15

# States of rows that a rotation or an adoption has still to rewrite.
BEHIND: Final = ("stale", "plaintext")


class WatchedColumn:
    """One column, and its last censuses."""

    def __init__(self, column: AuditedColumn, active: Sequence[str]) -> None:
        self.column = column
        #: Key ids that count as active ones; empty where none is known.
        self.active: tuple[str, ...] = tuple(active)
        #: Key ids whose rows nobody will re-encrypt.
        self.destroyed: tuple[str, ...] = ()
        self.configuration: dict[str, str] = configuration_of(column, None)
        if not active:
            try:
                ring = column.type_.ring()
            except (ConfigurationError, KeyUnavailableError):
                pass  # Every envelope is then of an unknown state.
            else:
                self.active, self.destroyed = tuple(ring.current_key_ids), ring.destroyed_key_ids
                self.configuration = configuration_of(column, ring)
        self._looks: deque[tuple[float, Counter[Key]]] = deque(maxlen=_LOOKS)

    @property
    def name(self) -> str:
        """The column's name for display."""
        return printable(self.column.name)

    @property
    def rows(self) -> Counter[Key]:
        """Rows per key id and state, at the last look."""
        return self._looks[-1][1]

    def add(self, moment: float, rows: Counter[Key]) -> None:
        """Take the census of a moment, in seconds of any clock."""
        self._looks.append((moment, rows))

    def rate(self, *keys: Key) -> float:
        """Return the recent growth of these, in rows per second."""
        (then, before), (now, rows) = self._looks[0], self._looks[-1]
        change = sum(rows[key] - before[key] for key in keys)
        return change / (now - then) if now > then else 0.0

    @property
    def speed(self) -> float:
        """The rows that become current, in rows per second."""
        return max(0.0, self.rate(*(key for key in self.rows if key[1] not in BEHIND)))

    @property
    def is_done(self) -> bool:
        """Whether every row is current."""
        return all(state in ("current", "destroyed") for _, state in self.rows)

    def left(self) -> tuple[int, float | None]:
        """Return the rows that are behind, and the seconds until none is; None while their number stays."""
        behind = [key for _, rows in self._looks for key in rows if key[1] in BEHIND]
        keys = set(behind)
        rows = sum(self.rows[key] for key in keys)
        rate = self.rate(*keys)
        return rows, rows / -rate if rows and rate < 0 else None
