"""``audit()``: runs every check in turn and makes one report of their findings."""

from __future__ import annotations

import getpass
import os
import platform
import socket
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import __version__ as sqlalchemy_version
from sqlalchemy.exc import DBAPIError

from ..database.error_sentences import explained
from ..database.reading import audited, rolled_back
from ..database.row_security import hidden_rows
from ..database.server import public_url, server_of
from ..errors import ConfigurationError, KeyUnavailableError
from ..keys.ring import KeyRing
from ..keys.snapshot import parse_key_id
from ..option_values import FLAG, FUNCTION, TEXT, Kind, number, texts_of
from .columns import columns_of
from .counting import count_rows, row_findings
from .declaration import configuration_of, declaration_findings, schema_findings, sharing_findings
from .examination import AuditProgress, Examination
from .report import AuditReport, ColumnAudit
from .rows import Opener, Origin, check_bound
from .tokens import TokenChecks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from sqlalchemy import Connection, Engine

    from .columns import AuditedColumn
    from .report import Finding

_ROWS: Final = number("a number of rows, at least 1, or None for all", at_least=1, whole=True)
_LIFETIME: Final = Kind(
    "a timedelta such as timedelta(hours=1)",
    lambda value: isinstance(value, timedelta) and value > timedelta(0),
)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of an audit; :func:`audit` describes each.

    Raises:
        ConfigurationError: A value that an option cannot have.
        KeyRingError: A malformed key id.
    """

    deep: bool = False
    active: str | Collection[str] | None = None
    retired: Collection[str] = ()
    allowed_algorithms: Collection[str] | None = None
    max_lifetime: timedelta | None = None
    compromised_kids: Collection[str] = ()
    try_contexts: Collection[str] = ()
    sample: int | None = None
    operator: str | None = None
    progress: Callable[[AuditProgress], None] | None = None

    def __post_init__(self) -> None:
        FLAG.check(deep=self.deep)
        TEXT.or_none.check(operator=self.operator)
        FUNCTION.or_none.check(progress=self.progress)
        _ROWS.or_none.check(sample=self.sample)
        _LIFETIME.or_none.check(max_lifetime=self.max_lifetime)
        for name in ("retired", "allowed_algorithms", "compromised_kids", "try_contexts"):
            given = getattr(self, name)
            if given is not None:
                # A dataclass that is frozen is set by the way around.
                object.__setattr__(self, name, texts_of(name, given, "texts"))
        if self.active is not None and not self.active_ids:
            raise ConfigurationError("active is a key id or a list of them, which is not empty")
        for key_id in (*self.retired, *self.active_ids):
            parse_key_id(key_id)
        if not self.deep:
            only_deep = ("allowed_algorithms", "max_lifetime", "compromised_kids", "try_contexts", "sample")
            given = [name for name in only_deep if getattr(self, name)]
            if given:
                raise ConfigurationError(
                    f"{given[0]} needs opened tokens, and a shallow audit opens none; ask for a deep audit"
                )

    @property
    def active_ids(self) -> tuple[str, ...]:
        """The key ids that the caller declares active."""
        if self.active is None or isinstance(self.active, str):
            return () if not self.active else (self.active,)
        return texts_of("active", self.active, "key ids")

    def shown(self) -> dict[str, str]:
        """Return the options other than the defaults, as text for the report."""
        shown = {
            "active": ", ".join(self.active_ids),
            "retired": ", ".join(self.retired),
            "allowed_algorithms": ", ".join(sorted(self.allowed_algorithms or ())),
            "max_lifetime": None if self.max_lifetime is None else str(self.max_lifetime),
            "compromised_kids": None if not self.compromised_kids else f"{len(self.compromised_kids)} given",
            "try_contexts": ", ".join(self.try_contexts),
            "sample": None if self.sample is None else f"{self.sample:,} rows of each column",
        }
        return {name: text for name, text in shown.items() if text}


def audit(
    bind: Engine | Connection,
    target: Any,
    *,
    deep: bool = False,
    active: str | Collection[str] | None = None,
    retired: Collection[str] = (),
    allowed_algorithms: Collection[str] | None = None,
    max_lifetime: timedelta | None = None,
    compromised_kids: Collection[str] = (),
    try_contexts: Collection[str] = (),
    sample: int | None = None,
    operator: str | None = None,
    progress: Callable[[AuditProgress], None] | None = None,
) -> AuditReport:
    """Report on the state of the encrypted columns of a database.

    A shallow audit asks the database and needs no key. A deep one opens every row too, in batches of 500 by primary
    key, each in a short transaction, and in memory that does not grow with the table; tokens seen twice are found by
    keyed hashes in a temporary file. Nothing is written, and no signature is verified. One bad row, one missing table
    and one table that may not be read become findings, and the others are audited.

    Args:
        bind: An engine or a connection. With an ``AsyncEngine``:
            ``await connection.run_sync(lambda connection: audit(connection, Session.token))``.
        target: A mapped attribute, a column, a table, a mapped class; a ``MetaData`` for all its encrypted columns; or
            a list of these.
        deep: Whether rows are opened, which takes the keys. The following is for a deep audit, but for the next two.
        active: Key id that counts as the active one, on a host without keys; several for rings with tenants. None takes
            it from each column's ring; with one, a shallow audit loads no ring.
        retired: Key ids that no row may be under: proof that their keys can leave the ring.
        allowed_algorithms: The values of ``alg`` that tokens may have; None allows all but ``none``.
        max_lifetime: The longest time from ``iat`` (else ``nbf``, else now) to ``exp``.
        compromised_kids: Values of the tokens' ``kid`` (RFC 7515 section 4.1.4, not a key id of the ring) whose
            signing keys others have.
        try_contexts: Contexts that a column may have had before its table or itself was renamed: the proof that rows
            which do not authenticate need ``context=`` and no repair.
        sample: Rows of each column to open, evenly spread; None opens all. Tokens are then found twice only within
            the sample.
        operator: The person or job that audits, for the report; None takes user and host of this process.
        progress: Called after each batch.

    Returns:
        The report. ``ok`` says whether anything in it is a warning or worse.

    Raises:
        ConfigurationError: The target holds no encrypted column, or a parameter has a value that it cannot have.
        KeyRingError: A deep audit cannot load a key ring; or a key id is malformed.
    """
    options = Options(
        deep=deep,
        active=active,
        retired=retired,
        allowed_algorithms=allowed_algorithms,
        max_lifetime=max_lifetime,
        compromised_kids=compromised_kids,
        try_contexts=try_contexts,
        sample=sample,
        operator=operator,
        progress=progress,
    )
    return audit_at(datetime.now(UTC), bind, target, options)


def audit_at(now: datetime, bind: Engine | Connection, target: Any, options: Options) -> AuditReport:
    """Run :func:`audit` as of a time."""
    started = time.monotonic()
    columns = columns_of(target)
    rings = [_ring_of(column, options) for column in columns]
    runs = [_ColumnRun(column, ring, options, now) for column, ring in zip(columns, rings, strict=True)]
    origins: dict[str, Origin] = {}
    for run in runs:
        if options.deep and run.ring is not None:
            # The first column of a context stands for all of them.
            origin = Origin(run.column.name, run.column.type_.cipher(), run.ring)
            origins.setdefault(origin.cipher.context, origin)
    with audited(bind, "audit") as connection:
        server = server_of(connection)
        for number, run in enumerate(runs, 1):
            run.run(connection, origins.values(), number, len(runs))
        url = public_url(connection.engine.url)
    findings = [*sharing_findings(columns), *(finding for run in runs for finding in run.findings)]
    active = {run.active for run in runs}
    return AuditReport(
        created=datetime.now(UTC),
        database=url,
        deep=options.deep,
        active_key=active.pop() if len(active) == 1 else None,
        seconds=round(time.monotonic() - started, 3),
        columns=tuple(run.result for run in runs),
        findings=tuple(sorted(findings, key=lambda one: (-one.severity.rank, one.column, one.code))),
        options=options.shown(),
        server=server,
        operator=_this_process() if options.operator is None else options.operator,
        versions=_versions(),
    )


def _this_process() -> str:
    """Return user and host of this process; a container may have no name for its user."""
    try:
        user = getpass.getuser()
    except (ImportError, KeyError, OSError):
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return f"{user}@{socket.gethostname()}"


def _versions() -> dict[str, str]:
    from .. import __version__  # Here, because the package imports this module.

    return {"jwt-column": __version__, "SQLAlchemy": sqlalchemy_version, "Python": platform.python_version()}


def _ring_of(column: AuditedColumn, options: Options) -> KeyRing | str:
    """Return a column's key ring; or the reason why there is none, in an audit that needs none.

    Raises:
        ConfigurationError: A deep audit needs the ring, and none is configured.
        KeyUnavailableError: A deep audit needs the ring, and it cannot be reached.
        KeyRingError: The ring is malformed, or its file has wrong permissions; in any audit.
    """
    if options.deep:
        check_bound(column)
        return column.type_.ring()
    if options.active is not None:
        return "it was not asked for"
    try:
        return column.type_.ring()
    except (ConfigurationError, KeyUnavailableError) as error:
        return str(error)


class _ColumnRun:
    """The audit of one column, with its key ring or the reason why there is none."""

    def __init__(self, column: AuditedColumn, ring: KeyRing | str, options: Options, now: datetime) -> None:
        self.column = column
        self.ring = ring if isinstance(ring, KeyRing) else None
        self._why_no_ring = ring if isinstance(ring, str) else ""
        self._options = options
        self._now = now

        #: Key ids under which rows are current, the active key of the ring first; empty if not known.
        self._current = options.active_ids
        if not self._current and self.ring is not None:
            self._current = self.ring.current_key_ids
        self.findings: list[Finding] = []
        configuration = configuration_of(column, self.ring)
        #: The counts of the column.
        self.result = ColumnAudit(
            column.name, column.context, configuration, active_key=self.active, examined=0,
            rows=0, nulls=0, keys=(), expired=None, expiry=(),
        )  # fmt: skip

    @property
    def active(self) -> str | None:
        """The key id that counts as the active one; None if none is known."""
        return self._current[0] if self._current else None

    def run(self, connection: Connection, origins: Iterable[Origin], number: int, columns: int) -> None:
        """Audit the column, which is the *number*-th of all *columns*.

        A refusal of the database becomes a finding; a lost connection ends the audit.
        """
        self.findings += declaration_findings(self.column)
        if self.active is None:
            message = f"Whether rows are stale is not known: {self._why_no_ring}."
            self._find("active-unknown", message)

        try:
            with rolled_back(connection, at_one_moment=True):
                is_counted = self._ask(connection)
            if self._options.deep and is_counted:
                self._examine(connection, origins, number, columns)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            # The message of the database may hold values of a row.
            self._find("refused", f"The database refused ({explained(error)}).")

    def _find(self, code: str, message: str) -> None:
        self.findings.append(self.column.finding(code, message))

    def _ask(self, connection: Connection) -> bool:
        """Ask the database, by SQL alone; return True if it has counted the rows."""
        schema = schema_findings(connection, self.column)
        self.findings += schema
        codes = {finding.code for finding in schema}
        if "column-missing" in codes:
            return False

        hidden = hidden_rows(connection, self.column.table)
        if hidden is not None:
            self._find("rows-hidden", f"No row was counted: {hidden}.")
            return False

        column = self.column.without_indexes() if "index-missing" in codes else self.column
        destroyed = () if self.ring is None else self.ring.destroyed_key_ids
        self.result = count_rows(connection, column, self._current, self._now, destroyed, self.result)
        active, retired = self._current, self._options.retired
        self.findings += row_findings(
            connection, column, self.result, active=active, ring=self.ring, retired=retired, now=self._now
        )

        return True

    def _examine(self, connection: Connection, origins: Iterable[Origin], number: int, columns: int) -> None:
        """Open the rows."""
        assert self.ring is not None  # noqa: S101 - a deep audit has every ring
        options = self._options
        demands = (options.allowed_algorithms, options.max_lifetime, options.compromised_kids)
        rows = self.result.rows - self.result.nulls

        to_examine = rows if options.sample is None else min(rows, options.sample)

        def progress(examined: int) -> None:
            if options.progress is not None:
                # Rows may have come meanwhile.
                total = max(to_examine, examined)
                options.progress(AuditProgress(self.column.name, number, columns, examined, total))

        examination = Examination(
            self.column,
            Opener(self.column, self.ring, origins, options.try_contexts),
            TokenChecks(self._now, *demands),
            progress,
        )
        try:
            examination.run(connection, rows, options.sample)
        finally:
            self.result = replace(self.result, examined=examination.examined)
            self.findings += examination.findings()
        if examination.examined != to_examine:
            self._find(
                "changed-meanwhile",
                f"Rows came or went during the audit: {rows:,} were counted and {examination.examined:,} opened, so "
                "counts and findings about tokens are of different moments.",
            )
