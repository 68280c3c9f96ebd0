"""The fleet of a ring: which processes have loaded what, and whether a change of the ring would leave one behind."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer
from rich.text import Text
from sqlalchemy import Engine, MetaData

from ...errors import ConfigurationError, JWTColumnError
from ...fleet import (
    FLEET_TABLE,
    FleetProcess,
    encrypting_under,
    fleet_table,
    has_table,
    read_processes,
    without_key,
)
from ...keys.ring import DataKey
from ...keys.ring_file.format import KeyState
from ..console import DatabaseError, ExitCode, indented, make_console, mark, plain_table, print_json
from ..databases import connect, read_url, with_engine
from ..declaring import flag, option_group, value
from ..options import DATABASE_VARIABLE, DATABASES, FILE, JSON, given_databases
from .rings import open_ring

# Seconds between two looks at the table.
_PAUSE = 1.0


_FLEET = "The fleet"


class FleetError(JWTColumnError):
    """A process of the fleet does not have what it needs for a change of the ring, or too few report."""


class Need(NamedTuple):
    """A condition that every live process must meet before a change of the ring.

    Attributes:
        blockers: Returns the processes that a change would leave behind.
        lack: What they do, after their number, in the singular and in the plural.
    """

    blockers: Callable[[Iterable[FleetProcess]], list[FleetProcess]]
    lack: tuple[str, str]


def key_everywhere(key_id: str) -> Need:
    """Return the need of an activation: every process can read rows under the key."""
    return Need(
        lambda processes: without_key(processes, key_id), (f"lacks key {key_id}", f"lack key {key_id}")
    )


def nothing_written_under(key_ids: Sequence[str]) -> Need:
    """Return the need of a removal: no process writes rows under the keys."""
    lack = f"may write under key {' or '.join(key_ids)}"
    return Need(lambda processes: encrypting_under(processes, key_ids), (lack, lack))


EXPECT: Any = value(
    "--expect N",
    "The number of processes that must report, at least: one that is silent is not seen. Without it, 1.",
    panel=_FLEET,
    min=0,
)
TABLE: Any = value(
    "--fleet-table NAME",
    "The table of the fleet, with its schema if that is not the default one. Without it, jwt_column_fleet.",
    panel=_FLEET,
)


@option_group(_FLEET)
class FleetOptions:
    """The options of a command that asks the fleet before it changes a ring."""

    expect: int | None = EXPECT
    timeout: float = value(
        "--timeout SECONDS",
        "Seconds to wait until every live process has what it needs. Without it, the command refuses at once.",
        default=0,
        min=0,
    )
    fleet_table: str | None = TABLE
    no_fleet: bool = flag("--no-fleet", "Do not ask the fleet, also if the database has its table.")


@option_group(_FLEET)
class PatientFleetOptions(FleetOptions):
    """The options of a command that waits for the fleet."""

    timeout: float = value(
        "--timeout SECONDS",
        "Seconds to wait at each step until every live process has what it needs.",
        default=600,
        min=0,
    )


def await_fleet(
    databases: Sequence[str],
    options: FleetOptions,
    keys: Callable[[], Iterable[DataKey]],
    need: Need,
) -> int | None:
    """Wait until no live process of the fleet is left behind, and return their number.

    None if no database has the table, or the fleet is not to be asked. *keys* returns the keys of the ring, which
    authenticate the rows; it is called if there is a table.
    """
    if options.no_fleet:
        return None
    held: list[DataKey] = []
    deadline = time.monotonic() + options.timeout
    while True:
        try:
            processes = _read(databases, options.fleet_table, held, keys)
        except DatabaseError as error:
            error.args = (f"{error}. It was asked for the table of the fleet; --no-fleet does without",)
            raise
        if processes is None:
            if options.expect is not None or options.fleet_table is not None:
                raise ConfigurationError(
                    "no given database (--database) has the table of the fleet; op.create_jwt_fleet_table() creates "
                    "it. Without a fleet, leave --expect and --fleet-table out"
                )
            return None
        problem = _problem(processes, options.expect, need)
        if problem is None:
            return sum(one.is_live for one in processes)
        if time.monotonic() + _PAUSE > deadline:
            raise FleetError(
                f"{problem}; nothing was changed. Bring the file to every host and give --timeout SECONDS to wait, or "
                "give --no-fleet if these processes do not matter"
            )
        time.sleep(_PAUSE)


def _read(
    databases: Sequence[str],
    table: str | None,
    held: list[DataKey],
    keys: Callable[[], Iterable[DataKey]],
) -> list[FleetProcess] | None:
    """Return the processes of all databases that have the table; None if none has."""
    schema, _, name = (table or FLEET_TABLE).rpartition(".")
    found = fleet_table(MetaData(), name=name, schema=schema or None)
    processes: list[FleetProcess] = []
    has_any = False

    def read(engine: Engine) -> None:
        nonlocal has_any
        with connect(engine) as connection:
            if has_table(connection, found):
                has_any = True
                # Once, because a KMS may have to unwrap them.
                held.extend([] if held else keys())
                processes.extend(read_processes(connection, found, held))

    for url in databases:
        with_engine(read_url(url), read)
    return processes if has_any else None


def _problem(processes: Sequence[FleetProcess], expect: int | None, need: Need) -> str | None:
    """Return the reason why a change has to wait, or None."""
    live = [one for one in processes if one.is_live]
    behind = need.blockers(live)
    if behind:
        said = need.lack[len(behind) > 1]
        listed = "; ".join(map(_described, behind[:5]))
        more = f"; and {len(behind) - 5} more" if len(behind) > 5 else ""
        return f"{len(behind)} of {_counted(len(live))} {said}: {listed}{more}"
    needed = 1 if expect is None else expect
    if len(live) < needed:
        return (
            f"{_counted(len(live))} {'reports' if len(live) == 1 else 'report'}, and {needed} must (--expect). "
            "Processes report if their ring has report_to=Fleet(engine)"
        )
    return None


def _counted(number: int) -> str:
    return f"{number:,} live process{'' if number == 1 else 'es'}"


def _described(process: FleetProcess) -> str:
    """Return a process for an error. Its texts come from the database; the console writes control characters out."""
    text = f"{process.host} pid {process.pid}, reported {process.seen} s ago"
    if not process.is_authentic:
        return f"{text}, by a row that the keys of this ring do not authenticate"
    text += f": revision {process.revision}, " if process.revision else ": "
    text += f"writes under {', '.join(process.encrypting)}, has {', '.join(process.key_ids)}"
    return text if process.error is None else f"{text}, last load failed ({process.error})"


def fleet(
    *,
    file: Path | None = FILE,
    databases: list[str] = DATABASES,
    expect: int | None = EXPECT,
    fleet_table: str | None = TABLE,
    as_json: bool = JSON,
) -> None:
    """List a fleet; see :mod:`jwt_column.cli.keys` for the help text."""
    ring = open_ring(file)
    urls = given_databases(databases)
    if not urls:
        raise ConfigurationError(f"no database: give --database, or set {DATABASE_VARIABLE}")
    processes = _read(urls, fleet_table, [], lambda: ring.unwrap().values())
    if processes is None:
        raise ConfigurationError(
            "no given database (--database) has the table of the fleet; op.create_jwt_fleet_table() creates it"
        )
    ids = {key.id for key in ring.file.keys}
    current = {key.id for key in ring.file.keys if key.state is KeyState.ACTIVE}
    shown = [_to_json(one, ids, current) for one in processes]
    live = [one for one in shown if one["live"]]
    is_ok = all(one["up_to_date"] for one in live) and len(live) >= (1 if expect is None else expect)
    if as_json:
        print_json({"ok": is_ok, "live": len(live), "expected": expect, "processes": shown})
    else:
        _show(shown, expect, is_ok=is_ok)
    if not is_ok:
        raise typer.Exit(ExitCode.FAILURE)


def _to_json(process: FleetProcess, ids: set[str], current: set[str]) -> dict[str, Any]:
    """Return a process as the command's ``--json`` has it."""
    is_current = process.is_authentic and ids == set(process.key_ids)
    return {
        "host": process.host,
        "pid": process.pid,
        "revision": process.revision,
        "encrypting": list(process.encrypting),
        "keys": list(process.key_ids),
        "loaded_seconds_ago": process.age + process.seen,
        "reported_seconds_ago": process.seen,
        "error": process.error,
        "live": process.is_live,
        "authentic": process.is_authentic,
        "up_to_date": is_current and set(process.encrypting) == current,
    }


def _show(shown: Sequence[dict[str, Any]], expect: int | None, *, is_ok: bool) -> None:
    console = make_console()
    table = plain_table("host", ">pid", ">revision", "key id", ">keys", ">loaded", ">reported", "state")
    for one in shown:
        state = "ended or silent"
        if not one["authentic"]:
            state = "not authentic"
        elif one["live"]:
            state = "up to date" if one["up_to_date"] else "behind"
        style = {"up to date": "green", "not authentic": "bold red", "behind": "yellow"}.get(state, "dim")
        table.add_row(
            Text(one["host"]),
            str(one["pid"]),
            str(one["revision"] or ""),
            Text(", ".join(one["encrypting"]), "cyan"),
            str(len(one["keys"])),
            f"{one['loaded_seconds_ago']:,} s",
            f"{one['reported_seconds_ago']:,} s",
            Text(state, style),
        )
    if shown:
        indented(console, table)
        console.print()
    live = sum(one["live"] for one in shown)
    expected = "" if expect is None else f", {expect} expected"
    indented(console, Text.assemble(mark(console, ok=is_ok), f" {_counted(live)}{expected}."))
