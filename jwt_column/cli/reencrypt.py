"""``jwt-column reencrypt`` and ``jwt-column encrypt``: every row of a column under the active key, without Alembic."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Literal

from migrations_helpers.engine.conversions import Adoption, Reencryption

from .columns import choose_column
from .conversion import convert, split_names
from .formats import SourceOptions
from .options import ColumnOptions, DatabaseOption, JsonOption, ModelColumn, option
from .summary import Words

__all__ = ["encrypt", "reencrypt"]

_run_option = partial(option, rich_help_panel="The run")
_pace_option = partial(option, rich_help_panel="The pace of the run")


@dataclass(frozen=True)
class RunOptions:
    """The options of a run."""

    preflight: Annotated[
        bool,
        _run_option(
            "--preflight",
            help="Look at server, role, table, column and disk, show what would stop a run, make it wrong or slow, and "
            "do nothing else. Ends with 2 if a run would be refused.",
        ),
    ] = False
    dry_run: Annotated[
        bool,
        _run_option(
            "--dry-run",
            help="Do everything but write: read and convert every row that needs work, and count. --shards, "
            "--verify and --verify-tokens then have no effect.",
        ),
    ] = False
    verify: Annotated[bool, _run_option("--verify", help="Open every row of the table at the end.")] = False
    verify_tokens: Annotated[
        bool,
        _run_option(
            "--verify-tokens",
            help="Compare a keyed digest of every token before and after the run, in place of --verify: opens every "
            "row of the table twice, and finds tokens that ended up in another row.",
        ),
    ] = False
    shards: Annotated[
        int,
        _run_option(
            "--shards",
            metavar="N",
            min=1,
            max=64,
            help="Cut the table into this number of parts and work on them at once, each in a process of its own.",
            show_default=True,
        ),
    ] = 1
    batch_size: Annotated[
        int,
        _run_option(
            "--batch-size",
            metavar="ROWS",
            min=1,
            help="Rows of the first batch. Later ones adapt, to take 0.1 seconds each.",
            show_default=True,
        ),
    ] = 500
    nice: Annotated[
        float | None,
        _run_option(
            "--nice",
            metavar="FACTOR",
            min=0,
            help="Sleep this times a batch's duration after it. Without it 1 on SQLite, where the application waits "
            "while a batch is written, and 0 elsewhere.",
        ),
    ] = None
    key_columns: Annotated[
        str | None,
        _run_option(
            "--key-columns",
            metavar="NAMES",
            help="A unique key without NULLs to page by in place of the primary key: names, with commas between them.",
        ),
    ] = None
    preserve: Annotated[
        str | None,
        _run_option(
            "--preserve",
            metavar="NAMES",
            help="Columns that the database updates by itself and must not; those of MySQL are found without it.",
        ),
    ] = None
    on_row_error: Annotated[
        Literal["list", "fail"],
        _run_option(
            "--on-row-error",
            help="A row that the database refuses: list it and go on, or let the run fail.",
            show_default=True,
        ),
    ] = "list"
    wait: Annotated[
        float,
        _run_option(
            "--wait",
            metavar="SECONDS",
            min=0,
            help="Wait so long for another run over this column, on another host for example, instead of failing. "
            "When it has ended well, nothing is left to do.",
            show_default=True,
        ),
    ] = 0.0
    schemas: Annotated[
        str | None,
        _run_option(
            "--schemas",
            metavar="NAMES",
            help="Schemas with the same table, one for each tenant: names, with commas between them. One that fails "
            "does not stop the others.",
        ),
    ] = None
    schemas_query: Annotated[
        str | None,
        _run_option(
            "--schemas-query",
            metavar="SQL",
            help="A query whose first column has the names of the schemas, in place of --schemas.",
        ),
    ] = None
    until: Annotated[
        str | None,
        _pace_option(
            "--until",
            metavar="TIME",
            help="Stop then: a time of the day, as 05:00, or a date and a time. What is left, another run does.",
        ),
    ] = None
    window: Annotated[
        str | None,
        _pace_option(
            "--window",
            metavar="HH:MM-HH:MM",
            help="Work in these hours only, as 22:00-05:00, in local time, and wait in between.",
        ),
    ] = None
    max_replica_lag: Annotated[
        float | None,
        _pace_option(
            "--max-replica-lag",
            metavar="SECONDS",
            min=0,
            help="Wait while a replica is further behind than this.",
        ),
    ] = None
    replicas: Annotated[
        list[str],
        _pace_option(
            "--replica",
            metavar="URL",
            help="A replica to ask for its lag; once for each. MySQL and MariaDB need it. PostgreSQL's primary knows "
            "its replicas, if the role has pg_monitor.",
        ),
    ] = field(default_factory=list)
    throttle_query: Annotated[
        str | None,
        _pace_option(
            "--throttle-query",
            metavar="SQL",
            help="A query that is sent after each batch and returns seconds to sleep; with --max-latency, the latency "
            "of the application.",
        ),
    ] = None
    max_latency: Annotated[
        float | None,
        _pace_option(
            "--max-latency",
            metavar="SECONDS",
            min=0,
            help="Slow down while --throttle-query returns more than this.",
        ),
    ] = None
    as_json: JsonOption = False


def reencrypt(
    *,
    database: DatabaseOption = None,
    model: ModelColumn = None,
    column: ColumnOptions,
    expired: Annotated[
        Literal["keep", "skip", "null", "delete"],
        _run_option(
            "--expired",
            help="Stale rows whose token has expired: keep them and re-encrypt them as any others, skip them, set the "
            "column to null, or delete the row. All but keep need a column whose expiry is exposed, and no key.",
            show_default=True,
        ),
    ] = "keep",
    drop: Annotated[
        str | None,
        _run_option(
            "--drop",
            metavar="NAMES",
            help="Fingerprints, or expiry, that rows have and the column's type does not make, and that may go: names, "
            "with commas between them. Without it a run that would drop one is refused.",
        ),
    ] = None,
    recompute: Annotated[
        bool,
        _run_option(
            "--recompute",
            help="Open current rows too, work out their fingerprints and expiry anew, and rewrite those that differ.",
        ),
    ] = False,
    run: RunOptions,
) -> None:
    """Re-encrypt a column; see :mod:`jwt_column.cli.app` for the help text."""
    words = Words("reencrypt", "re-encrypted")
    dropped = split_names(drop)
    conversion = partial(Reencryption, drop=dropped)
    chosen = replace(choose_column(column, model), drop=dropped)
    convert(database, chosen, run, conversion, words, expired=expired, recompute=recompute)


def encrypt(
    *,
    database: DatabaseOption = None,
    model: ModelColumn = None,
    source: SourceOptions,
    column: ColumnOptions,
    run: RunOptions,
) -> None:
    """Encrypt a column; see :mod:`jwt_column.cli.app` for the help text."""
    reader = source.reader()
    words = Words("encrypt", "encrypted", is_foreign=reader is not None)
    convert(database, choose_column(column, model), run, partial(Adoption, decrypt_with=reader), words)
