"""``jwt-column rotate``: a new key into use and the old one out of the ring, as one command that can be stopped."""

# No "from __future__ import annotations": Typer reads the annotations of commands when it builds them.

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text
from sqlalchemy import Column, Engine
from sqlalchemy.exc import DBAPIError

from migrations_helpers.engine.conversions import Reencryption
from migrations_helpers.engine.progress import line_progress
from migrations_helpers.engine.reencryption import convert_column
from migrations_helpers.engine.run import Options, require_complete

from ..auditing.columns import AuditedColumn, columns_of
from ..database.driver_errors import error_name
from ..errors import ConfigurationError, JWTColumnError, ReencryptionError
from ..keys.providers.file import uri_of
from .columns import choose_targets
from .console import DatabaseError, counted, make_console, mark, print_json
from .databases import connect, read_url, with_engine
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
from .keys.forgotten import forgotten_columns, is_of
from .keys.removing import KeyInUseError, held_keys, removal
from .keys.rings import PlainFile, now, open_ring, ring_path
from .options import (
    ColumnOptions,
    DatabasesOption,
    FileOption,
    JsonOption,
    ModelTargets,
    given_databases,
    option,
)
from .rotation import Rotation, rotation_of
from .signals import stoppable
from .verbosity import is_quiet

if TYPE_CHECKING:
    from migrations_helpers import ReencryptionReport

    from ..keys.ring import DataKey
    from ..keys.ring_file.store import StoredRing
    from .columns import Targets

__all__ = ["rotate"]

_rotation_option = partial(option, rich_help_panel="The rotation")


@dataclass(frozen=True)
class RotationOptions:
    """The options of a rotation."""

    yes: Annotated[
        bool, _rotation_option("--yes", help="Do not ask before the first change; needed without a terminal.")
    ] = False
    wait: Annotated[
        float | None,
        _rotation_option(
            "--wait",
            metavar="SECONDS",
            min=0,
            help="Seconds after a change of the file until every process has loaded it. Needed where no database has "
            "the table of a fleet; with one, this is waited in addition.",
        ),
    ] = None
    settle: Annotated[
        float,
        _rotation_option(
            "--settle",
            metavar="SECONDS",
            min=0,
            help="Seconds between the last write under the old key and the last count of its rows, for transactions "
            "that are not committed yet. Make it as long as the longest transaction that writes a token.",
            show_default=True,
        ),
    ] = 10
    ship: Annotated[
        str | None,
        _rotation_option(
            "--ship",
            metavar="COMMAND",
            help="A command for the shell that brings the file to every host, run after each change of the file. It "
            "must end with 0.",
        ),
    ] = None
    older_than: Annotated[
        int,
        _rotation_option(
            "--older-than",
            metavar="DAYS",
            min=0,
            help="Begin a rotation only if the active key has been active for more days. One that has begun goes on.",
        ),
    ] = 0
    keep: Annotated[
        bool, _rotation_option("--keep", help="Leave the old key in the ring, decrypting only, for backups.")
    ] = False
    to: Annotated[
        str | None,
        _rotation_option(
            "--to", metavar="KEY_ID", help="Make this key of the ring active, in place of a new one."
        ),
    ] = None
    tenant: Annotated[
        str | None, _rotation_option("--tenant", metavar="NAME", help="Rotate the keys of one tenant.")
    ] = None
    no_previous: Annotated[
        bool,
        _rotation_option(
            "--no-previous", help="Do not keep the file's version before, which holds the old key."
        ),
    ] = False
    as_json: JsonOption = False


def rotate(
    *,
    file: FileOption = None,
    databases: DatabasesOption = None,
    models: ModelTargets = None,
    columns: ColumnOptions,
    fleet: PatientFleetOptions,
    rotation: RotationOptions,
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
    targets = choose_targets(columns, models or ())
    work = _Work(lambda: open_ring(file), urls, targets, fleet, rotation)
    with stoppable("stopped: the same command goes on from there"):
        try:
            work.run()
        except BaseException:
            if rotation.as_json and work.steps:
                print_json(work.to_dict(is_done=False))
            raise
    if rotation.as_json:
        print_json(work.to_dict(is_done=True))


class _Work:
    """One run of the command.

    Attributes:
        steps: The steps that were done.
    """

    def __init__(
        self,
        read: "Callable[[], StoredRing | PlainFile]",
        urls: list[str],
        targets: "Targets",
        fleet: FleetOptions,
        options: RotationOptions,
    ) -> None:
        self._read = read
        self._urls = urls
        self._targets = targets
        self._fleet = fleet
        self._options = options
        self._has_asked = False
        self.steps: list[dict[str, Any]] = []

    def run(self) -> None:
        """Do the steps that are left, by the ring's file and the rows."""
        options = self._options
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
        ring = self._read()
        return ring, rotation_of(ring, self._options.tenant, self._options.to)

    def _is_under_way(self, state: Rotation) -> bool:
        """Return True if the key before still has to be retired."""
        return state.replaced is not None and (not self._options.keep or self._rows_under(state.replaced) > 0)

    def _activate(self, ring: "StoredRing | PlainFile", active: str, key_id: str) -> None:
        self._ask(f"Key {key_id} takes the place of {active}")
        self._refuse_endless_wait(ring)
        self._ship()
        activate_key(ring, key_id, lambda keys: self._wait(keys, key_everywhere(key_id), f"has key {key_id}"))
        self._tell("activate", f"Key {key_id} is active.", key=key_id)

    def _retire(self, ring: "StoredRing | PlainFile", active: str, old: str) -> None:
        """Re-encrypt the rows under the old key, and remove it."""
        options = self._options
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
        path = self._read().path.resolve()
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
        if self._options.keep:
            return
        for forgotten in forgotten_columns(path, named):
            raise ConfigurationError(
                f"{forgotten.name} is under the ring {path} (--file) too, and this command would remove a key that its "
                "rows need; name all columns of the model, as in --model app.models:Base, or keep the key (--keep). "
                "Nothing was changed"
            )

    def _columns(self, engine: Engine) -> tuple[AuditedColumn, ...]:
        with connect(engine) as connection:
            return columns_of(list(self._targets(connection)))

    def _in_databases(self, work: Callable[[Engine], None]) -> None:
        for url in self._urls:
            with_engine(read_url(url), work)

    def _refuse_endless_wait(self, ring: "StoredRing | PlainFile") -> None:
        """Refuse a rotation of which nothing tells that every process has loaded the file."""
        if self._options.wait is not None:
            return
        # With no need, and no time: only to know whether there is a table.
        none_behind = Need(lambda _: [], ("", ""))
        options = FleetOptions(0, 0, self._fleet.fleet_table, self._fleet.no_fleet)
        if self._fleet.no_fleet or not self._has_table(options, none_behind, ring):
            raise ConfigurationError(
                "nothing tells when every process has loaded the file; create the table of a fleet "
                "(op.create_jwt_fleet_table), or give --wait SECONDS: the time to ship the file and to load it"
            )

    def _has_table(self, options: FleetOptions, need: Need, ring: "StoredRing | PlainFile") -> bool:
        try:
            return await_fleet(self._urls, options, lambda: held_keys(ring), need) is not None
        except ConfigurationError:
            return False

    def _wait(self, keys: "Callable[[], Iterable[DataKey]]", need: Need, text: str) -> None:
        self._note(f"Waiting until every process {text} ...")
        processes = await_fleet(self._urls, self._fleet, keys, need)
        if self._options.wait is not None:
            time.sleep(self._options.wait)
        said = f"1 live process {text}" if processes == 1 else f"{processes} live processes, and each {text}"
        if processes is None:
            said = f"Waited for {self._options.wait:g} s"
        self._tell("wait", f"{said}.", processes=processes, seconds=self._options.wait)

    def _ship(self) -> None:
        command = self._options.ship
        if command is None:
            return
        # Its output is no result of this command.
        output = sys.stderr.fileno() if _has_descriptor() else subprocess.DEVNULL
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
        show = (lambda _: None) if is_quiet() else partial(typer.echo, err=True)
        try:
            report = convert_column(
                engine,
                column.table.name,
                column.column.name,
                column.type_,
                Reencryption,
                Options(progress=line_progress(show)),
                schema=column.table.schema,
            )
            return require_complete(report)
        except ReencryptionError as error:
            failure = DatabaseError(str(error)) if error.reason == "database" else error
        except DBAPIError as error:
            failure = DatabaseError(f"{column.name}: the database refused ({error_name(error)})")
        raise failure

    def _rows_under(self, key_id: str, history: Counter[str | None] | None = None) -> int:
        rows: Counter[str] = Counter()

        def count(engine: Engine) -> None:
            with connect(engine) as connection:
                for column in self._columns(engine):
                    count_column(connection, column.column, rows, Counter() if history is None else history)

        self._in_databases(count)
        return rows[key_id]

    def _is_young(self, state: Rotation) -> bool:
        days = self._options.older_than
        if days == 0:
            return False
        if state.active_since is None:
            raise ConfigurationError("a file of plain keys does not tell the age of its keys (--older-than)")
        return now() - state.active_since <= timedelta(days=days)

    def _ask(self, plan: str) -> None:
        """Show the plan before the first change, and ask."""
        if self._has_asked or self._options.yes:
            return
        if not typer.confirm(f"{plan}. Go on?", err=True):
            raise ConfigurationError("nothing was changed")
        self._has_asked = True

    def _note(self, text: str) -> None:
        if not is_quiet():
            console = make_console(stderr=True)
            console.print(Text(text, "dim"), soft_wrap=not console.is_terminal)

    def _tell(self, step: str, text: str, **members: Any) -> None:
        """Remember a step that was done, and print it."""
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.steps.append({"step": step, "at": at} | members)
        if not self._options.as_json:
            console = make_console()
            console.print(Text.assemble(mark(console, ok=True), " ", text), soft_wrap=True)

    def to_dict(self, *, is_done: bool) -> dict[str, Any]:
        """Return the run as the command's ``--json`` has it."""
        ring = self._read()
        active = rotation_of(ring, self._options.tenant, self._options.to).active
        return {"file": str(ring.path), "active": active, "done": is_done, "steps": self.steps}


class ShippingError(JWTColumnError):
    """The command that brings the file to every host has failed."""


def _has_descriptor() -> bool:
    try:
        sys.stderr.fileno()
    except (OSError, ValueError):
        return False
    return True
