"""The state of a ring in one process, as it is reported to a fleet and to metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["RingReport"]


class RingReport(NamedTuple):
    """The state of a ring in one process. Holds no secret.

    Attributes:
        host: Name of the host.
        pid: Process id.
        revision: The revision of the key-ring file that is loaded; 0 for a ring without revisions.
        key_ids: Every key id of the ring, the active one first.
        encrypting: The key ids that encrypt: the active one, then each tenant's.
        age: Seconds since the keys were loaded, or given.
        unconfirmed: Seconds since a load, or a look at the unchanged file, showed that the keys are the source's.
        active_since: Time at which the active key became active; only a key-ring file has it.
        missing_key_ids: As in :attr:`KeyRing.status`.
        error: As in :attr:`KeyRing.status`.
        interval: Seconds until the next report at the latest.
    """

    host: str
    pid: int
    revision: int
    key_ids: tuple[str, ...]
    encrypting: tuple[str, ...]
    age: float
    unconfirmed: float
    active_since: datetime | None
    missing_key_ids: tuple[str, ...]
    error: str | None
    interval: float
