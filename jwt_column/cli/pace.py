"""The options of the pace of a re-encryption, for every command that does one."""

# No "from __future__ import annotations": Typer reads the annotations of options when it builds a command.

from dataclasses import fields
from typing import Any

from sqlalchemy import text

from .declaring import option_group, value, values

__all__ = ["PaceOptions"]


@option_group("The pace of the run")
class PaceOptions:
    """How fast a run goes, and when."""

    nice: float | None = value(
        "--nice FACTOR",
        "Sleep this times a batch's duration after it. Without it 1 on SQLite, where the application waits while a "
        "batch is written, and 0 elsewhere.",
        min=0,
    )
    until: str | None = value(
        "--until TIME",
        "Stop then: a time of the day, as 05:00, or a date and a time. What is left, another run does.",
    )
    window: str | None = value(
        "--window HH:MM-HH:MM",
        "Work in these hours only, as 22:00-05:00, in local time, and wait in between.",
    )
    max_replica_lag: float | None = value(
        "--max-replica-lag SECONDS", "Wait while a replica is further behind than this.", min=0
    )
    replicas: list[str] = values(
        "--replica URL",
        "A replica to ask for its lag; once for each. MySQL and MariaDB need it. PostgreSQL's primary knows its "
        "replicas, if the role has pg_monitor.",
    )
    throttle_query: str | None = value(
        "--throttle-query SQL",
        "A query that is sent after each batch and returns seconds to sleep; with --max-latency, the latency of the "
        "application.",
    )
    max_latency: float | None = value(
        "--max-latency SECONDS", "Slow down while --throttle-query returns more than this.", min=0
    )

    @property
    def of_engine(self) -> dict[str, Any]:
        """The same as keywords of the engine's options."""
        given = {one.name: getattr(self, one.name) for one in fields(PaceOptions)}
        query = given.pop("throttle_query")
        return given | {"throttle": None if query is None else text(query)}
