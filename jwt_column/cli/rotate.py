"""``jwt-column rotate``: a new key into use and the old one out of the ring, as one command that can be stopped."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text
from sqlalchemy import Column, Engine

from migrations_helpers.engine.conversions import Reencryption
from migrations_helpers.engine.endings import require_complete
from migrations_helpers.engine.options import Options
from migrations_helpers.engine.reencryption import convert_column
from migrations_helpers.engine.reflection import Subject

from ..auditing.columns import AuditedColumn, columns_of
from ..errors import ConfigurationError, JWTColumnError
from ..keys.providers.file import uri_of
from ..wording import counted
from .columns import Targets, choose_targets
from .console import make_console, mark, print_json
from .databases import connect, read_url, refusals, with_engine
from .declaring import flag, option_group, value
from .keys.changing import activate_key, add_key
from .keys.counting import count_column
from .keys.fleets import (
    FleetOptions,
    Need,
    PatientFleetOptions,
    await_fleet,
    key_everywhere,
    nothing_written_under,
)
from .keys.removing import KeyInUseError, forgotten_columns, held_keys, is_of, removal
from .keys.rings import PlainFile, now, open_ring, ring_path
from .options import DATABASES, FILE, JSON, MODELS, ColumnOptions, given_databases
from .progress import run_progress
from .reencrypt import PaceOptions
from .rotation import Rotation, rotation_of
from .signals import stoppable
from .verbosity import is_quiet

if TYPE_CHECKING:
    from migrations_helpers import ReencryptionReport

    from ..keys.ring import DataKey
    from ..keys.ring_file.store import StoredRing


@option_group("The rotation")
class RotationOptions:
    """The options of a rotation."""

    yes: bool = flag("--yes", "Do not ask before the first change; needed without a terminal.")
    wait: float | None = value(
        "--wait SECONDS",
        "Seconds after a change of the file until every process has loaded it. Needed where no database has the "
        "table of a fleet; with one, this is waited in addition.",
        min=0,
    )
    settle: float = value(
        "--settle SECONDS",
        "Seconds between the last write under the old key and the last count of its rows, for transactions that are "
        "not committed yet. Make it as long as the longest transaction that writes a token.",
        default=10,
        min=0,
    )
    ship: str | None = value(
        "--ship COMMAND",
        "A command for the shell that brings the file to every host, run after each change of the file. It must end "
        "with 0.",
    )
    older_than: int = value(
        "--older-than DAYS",
        "Begin a rotation only if the active key has been active for more days. One that has begun goes on.",
        default=0,
        min=0,
    )
    keep: bool = flag("--keep", "Leave the old key in the ring, decrypting only, for backups.")
    to: str | None = value("--to KEY_ID", "Make this key of the ring active, in place of a new one.")
    tenant: str | None = value("--tenant NAME", "Rotate the keys of one tenant.")
    no_previous: bool = flag(
        "--no-previous", "Do not keep the file's version before, which holds the old key."
    )
    as_json: bool = JSON


def rotate(
    *,
    file: Path | None = FILE,
    databases: list[str] = DATABASES,
    models: list[str] = MODELS,
    columns: ColumnOptions,
    fleet: PatientFleetOptions,
    rotation: RotationOptions,
    pace: PaceOptions,
) -> None:
    """Rotate a key; see :mod:`jwt_column.cli.app` for the help text."""
    urls = given_databases(databases)
    if not urls:
        raise ConfigurationError(
            "no database: give --database for every database whose rows are under the ring"
        )
    if not rotation.yes and (rotation.as_json or not (sys.stdin.isatty() and sys.stderr.isatty())):
        raise ConfigurationError("a rotation asks before its first change; give --yes without a terminal")
    if columns.table and not columns.keyring:
        columns = replace(columns, keyring=uri_of(ring_path(file)))
    targets = choose_targets(columns, models)
    work = _Work(lambda: open_ring(file), urls, targets, fleet, rotation, Options(**pace.of_engine))
    with stoppable("stopped: the same command goes on from there"):
        try:
            work.run()
        except BaseException:
            if rotation.as_json and work.steps:
                print_json(work.to_dict(is_done=False))
            raise
    if rotation.as_json:
        print_json(work.to_dict(is_done=True))


@dataclass
class _Work:
    """One run of the command."""

    read: "Callable[[], StoredRing | PlainFile]"
    urls: list[str]
    targets: Targets
    fleet: FleetOptions
    options: RotationOptions
    # Made once: a time of the day is the next one from the start of the command.
    run_options: Options
    has_asked: bool = False
    steps: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> None:
        """Do the steps that are left, by the ring's file and the rows."""
        options = self.options
        self._check_columns()
        ring, state = self._look()
        if state.new is None and not self._is_under_way(state):
            if options.to is not None or self._is_young(state):
                # The run before may have been stopped between the last change and its shipping.
                self._ship()
                self._tell("nothing", f"Nothing to do: key {state.active} is active.", key=state.active)
                return
            self._ask(f"A new key takes the place of {state.active}")
            self._refuse_endless_wait(ring)
            _, key = add_key(ring, tenant=options.tenant)
            self._tell("add", f"Added key {key.id}, which decrypts only.", key=key.id)
            ring, state = self._look()
        if state.new is not None:
            self._activate(ring, state.active, state.new)
            ring, state = self._look()
        if state.replaced is not None:
            self._retire(ring, state.active, state.replaced)

    def _look(self) -> "tuple[StoredRing | PlainFile, Rotation]":
        ring = self.read()
        return ring, rotation_of(ring, self.options.tenant, self.options.to)

    def _is_under_way(self, state: Rotation) -> bool:
        """Return True if the key before still has to be retired."""
        return state.replaced is not None and (not self.options.keep or self._rows_under(state.replaced) > 0)

    def _activate(self, ring: "StoredRing | PlainFile", active: str, key_id: str) -> None:
        self._ask(f"Key {key_id} takes the place of {active}")
        self._refuse_endless_wait(ring)
        self._ship()
        activate_key(ring, key_id, lambda keys: self._wait(keys, key_everywhere(key_id), f"has key {key_id}"))
        self._tell("activate", f"Key {key_id} is active.", key=key_id)

    def _retire(self, ring: "StoredRing | PlainFile", active: str, old: str) -> None:
        """Re-encrypt the rows under the old key, and remove it."""
        options = self.options
        self._ask(
            f"Rows under {old} are re-encrypted under {active}"
            + ("" if options.keep else f", and {old} is removed")
        )
        self._refuse_endless_wait(ring)
        self._ship()
        self._wait(
            lambda: held_keys(ring), nothing_written_under([old]), f"writes under another key than {old}"
        )
        settled = time.monotonic() + options.settle
        self._reencrypt(active)
        time.sleep(max(0.0, settled - time.monotonic()))
        if self._rows_under(old):
            self._reencrypt(active)
        history: Counter[str | None] = Counter()
        left = self._rows_under(old, history)
        if left or (history[old] and not options.keep):
            what = counted(left, "row") if left else counted(history[old], "old value") + " of the history"
            raise KeyInUseError(
                f"{what} still under key {old}; it was not removed. Run the command again, after a look at the "
                "processes and rows ('jwt-column keys fleet', 'jwt-column audit')"
            )
        self._tell("gate", f"No row is under key {old}.", key=old, rows=0)
        if options.keep:
            return
        removal(ring, [old], force=False, keep_previous=not options.no_previous)()
        self._tell("remove", f"Removed key {old}.", key=old)
        self._ship()

    def _check_columns(self) -> None:
        """Refuse columns whose ring is another one, and a choice of the model's columns, before anything is changed."""
        path = self.read().path.resolve()
        named: list[Column[Any]] = []

        def check(engine: Engine) -> None:
            for column in self._columns(engine):
                named.append(column.column)
                uri = column.type_.ring().uri
                if not is_of(path, uri):
                    raise ConfigurationError(
                        f"{column.name} is encrypted under {uri or 'keys that the program gives'}, and not under the "
                        f"ring {path} (--file); name the columns of this ring"
                    )

        self._in_databases(check)
        if self.options.keep:
            return
        for forgotten in forgotten_columns(path, named):
            raise ConfigurationError(
                f"{forgotten.name} is under the ring {path} (--file) too, and this command would remove a key that its "
                "rows need; name all columns of the model, as in --model app.models:Base, or keep the key (--keep). "
                "Nothing was changed"
            )

    def _columns(self, engine: Engine) -> tuple[AuditedColumn, ...]:
        with connect(engine) as connection:
            return columns_of(list(self.targets(connection)))

    def _in_databases(self, work: Callable[[Engine], None]) -> None:
        for url in self.urls:
            with_engine(read_url(url), work)

    def _refuse_endless_wait(self, ring: "StoredRing | PlainFile") -> None:
        """Refuse a rotation of which nothing tells that every process has loaded the file."""
        if self.options.wait is not None:
            return
        # With no need, and no time: only to know whether there is a table.
        none_behind = Need(lambda _: [], ("", ""))
        options = FleetOptions(0, 0, self.fleet.fleet_table, self.fleet.no_fleet)
        if self.fleet.no_fleet or not self._has_table(options, none_behind, ring):
            raise ConfigurationError(
                "nothing tells when every process has loaded the file; create the table of a fleet "
                "(op.create_jwt_fleet_table), or give --wait SECONDS: the time to ship the file and to load it"
            )

    def _has_table(self, options: FleetOptions, need: Need, ring: "StoredRing | PlainFile") -> bool:
        try:
            return await_fleet(self.urls, options, lambda: held_keys(ring), need) is not None
        except ConfigurationError:
            return False

    def _wait(self, keys: "Callable[[], Iterable[DataKey]]", need: Need, text: str) -> None:
        self._note(f"Waiting until every process {text} ...")
        processes = await_fleet(self.urls, self.fleet, keys, need)
        if self.options.wait is not None:
            time.sleep(self.options.wait)
        said = f"1 live process {text}" if processes == 1 else f"{processes} live processes, and each {text}"
        if processes is None:
            said = f"Waited for {self.options.wait:g} s"
        self._tell("wait", f"{said}.", processes=processes, seconds=self.options.wait)

    def _ship(self) -> None:
        command = self.options.ship
        if command is None:
            return
        # Its output is no result of this command.
        output = subprocess.DEVNULL
        with suppress(OSError, ValueError):
            output = sys.stderr.fileno()
        done = subprocess.run(command, shell=True, stdout=output, check=False)  # noqa: S602 - the operator's
        if done.returncode != 0:
            raise ShippingError(
                f"the command of --ship ended with {done.returncode}; the same command goes on from there"
            )
        self._tell("ship", "Shipped the file.")

    def _reencrypt(self, active: str) -> None:
        def work(engine: Engine) -> None:
            for column in self._columns(engine):
                ring = column.type_.ring()
                ring.reload()
                if active not in ring.current_key_ids:
                    raise ConfigurationError(
                        f"{column.name}: its ring writes under {ring.active}, and not under {active}; it was loaded "
                        "with an active key of its own"
                    )
                report = self._convert(engine, column)
                rows = counted(report.reencrypted, "row")
                self._tell(
                    "reencrypt",
                    f"{column.name}: {rows} re-encrypted.",
                    column=column.name,
                    report=report.to_dict(),
                )

        self._in_databases(work)

    def _convert(self, engine: Engine, column: AuditedColumn) -> "ReencryptionReport":
        with run_progress(column.name) as progress, refusals(column.name):
            report = convert_column(
                engine,
                Subject(column.table.name, column.column.name, column.type_, column.table.schema),
                Reencryption,
                replace(self.run_options, progress=progress),
            )
            return require_complete(report)

    def _rows_under(self, key_id: str, history: Counter[str | None] | None = None) -> int:
        rows: Counter[str] = Counter()

        def count(engine: Engine) -> None:
            with connect(engine) as connection:
                for column in self._columns(engine):
                    count_column(connection, column.column, rows, Counter() if history is None else history)

        self._in_databases(count)
        return rows[key_id]

    def _is_young(self, state: Rotation) -> bool:
        days = self.options.older_than
        if days == 0:
            return False
        if state.active_since is None:
            raise ConfigurationError("a file of plain keys does not tell the age of its keys (--older-than)")
        return now() - state.active_since <= timedelta(days=days)

    def _ask(self, plan: str) -> None:
        """Show the plan before the first change, and ask."""
        if self.has_asked or self.options.yes:
            return
        if not typer.confirm(f"{plan}. Go on?", err=True):
            raise ConfigurationError("nothing was changed")
        self.has_asked = True

    def _note(self, text: str) -> None:
        if not is_quiet():
            console = make_console(stderr=True)
            console.print(Text(text, "dim"), soft_wrap=not console.is_terminal)

    def _tell(self, step: str, text: str, **members: Any) -> None:
        """Remember a step that was done, and print it."""
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.steps.append({"step": step, "at": at} | members)
        if not self.options.as_json:
            console = make_console()
            console.print(Text.assemble(mark(console, ok=True), " ", text), soft_wrap=True)

    def to_dict(self, *, is_done: bool) -> dict[str, Any]:
        """Return the run as the command's ``--json`` has it."""
        ring = self.read()
        active = rotation_of(ring, self.options.tenant, self.options.to).active
        return {"file": str(ring.path), "active": active, "done": is_done, "steps": self.steps}


class ShippingError(JWTColumnError):
    """The command that brings the file to every host has failed."""
