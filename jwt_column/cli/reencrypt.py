"""``jwt-column reencrypt`` and ``jwt-column encrypt``: every row of a column under the active key, without Alembic."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

from dataclasses import fields, replace
from functools import partial
from typing import Any, Final, Literal

from sqlalchemy import text

from migrations_helpers.engine.conversions import Adoption, Reencryption

from .columns import choose_column
from .conversion import Run, convert
from .declaring import flag, option_group, value, values
from .formats import SourceOptions
from .options import DATABASE, JSON, MODEL, ColumnOptions, split_names
from .summary import Words

_RUN: Final = "The run"


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


@option_group(_RUN)
class WorkOptions:
    """The options of a run but its pace."""

    preflight: bool = flag(
        "--preflight",
        "Look at server, role, table, column and disk, show what would stop a run, make it wrong or slow, and do "
        "nothing else. Ends with 2 if a run would be refused.",
    )
    dry_run: bool = flag(
        "--dry-run",
        "Do everything but write: read and convert every row that needs work, and count. --shards, --verify and "
        "--verify-tokens then have no effect.",
    )
    verify: bool = flag("--verify", "Open every row of the table at the end.")
    verify_tokens: bool = flag(
        "--verify-tokens",
        "Compare a keyed digest of every token before and after the run, in place of --verify: opens every row of "
        "the table twice, and finds tokens that ended up in another row.",
    )
    shards: int = value(
        "--shards N",
        "Cut the table into this number of parts and work on them at once, each in a process of its own.",
        default=1,
        min=1,
        max=64,
    )
    batch_size: int = value(
        "--batch-size ROWS",
        "Rows of the first batch. Later ones adapt, to take 0.1 seconds each.",
        default=500,
        min=1,
    )
    key_columns: str | None = value(
        "--key-columns NAMES",
        "A unique key without NULLs to page by in place of the primary key: names, with commas between them.",
    )
    preserve: str | None = value(
        "--preserve NAMES",
        "Columns that the database updates by itself and must not; those of MySQL are found without it.",
    )
    on_row_error: Literal["list", "fail"] = value(
        "--on-row-error",
        "A row that the database refuses: list it and go on, or let the run fail.",
        default="list",
    )
    wait: float = value(
        "--wait SECONDS",
        "Wait so long for another run over this column, on another host for example, instead of failing. When it has "
        "ended well, nothing is left to do.",
        default=0.0,
        min=0,
    )
    schemas: str | None = value(
        "--schemas NAMES",
        "Schemas with the same table, one for each tenant: names, with commas between them. One that fails does not "
        "stop the others.",
    )
    schemas_query: str | None = value(
        "--schemas-query SQL",
        "A query whose first column has the names of the schemas, in place of --schemas.",
    )
    as_json: bool = JSON


@option_group()
class RunOptions(PaceOptions, WorkOptions):
    """The options of a run. Those of the last base come first in the help text."""


def reencrypt(
    *,
    database: str | None = DATABASE,
    model: str | None = MODEL,
    column: ColumnOptions,
    expired: Literal["keep", "skip", "null", "delete"] = value(
        "--expired",
        "Stale rows whose token has expired: keep them and re-encrypt them as any others, skip them, set the column "
        "to null, or delete the row. All but keep need a column whose expiry is exposed, and no key.",
        default="keep",
        panel=_RUN,
    ),
    drop: str | None = value(
        "--drop NAMES",
        "Fingerprints, or expiry, that rows have and the column's type does not make, and that may go: names, with "
        "commas between them. Without it a run that would drop one is refused.",
        panel=_RUN,
    ),
    recompute: bool = flag(
        "--recompute",
        "Open current rows too, work out their fingerprints and expiry anew, and rewrite those that differ.",
        panel=_RUN,
    ),
    run: RunOptions,
) -> None:
    """Re-encrypt a column; see :mod:`jwt_column.cli.app` for the help text."""
    words = Words("reencrypt", "re-encrypted")
    dropped = split_names(drop)
    conversion = partial(Reencryption, drop=dropped)
    chosen = replace(choose_column(column, model), drop=dropped)
    convert(database, Run(chosen, run, conversion, words, expired, recompute))


def encrypt(
    *,
    database: str | None = DATABASE,
    model: str | None = MODEL,
    source: SourceOptions,
    column: ColumnOptions,
    run: RunOptions,
) -> None:
    """Encrypt a column; see :mod:`jwt_column.cli.app` for the help text."""
    reader = source.reader()
    words = Words("encrypt", "encrypted", is_foreign=reader is not None)
    conversion = partial(Adoption, decrypt_with=reader)
    convert(database, Run(choose_column(column, model), run, conversion, words))
