"""Readiness of an application: the key ring loads, and the database has the columns as they are declared.

It reads no row, so it can run at every start of a process. :func:`audit` examines the rows.
"""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Connection, Engine

from ..database.clock import CLOCKS, database_time
from ..errors import ConfigurationError, KeyRingError, KeyUnavailableError
from ..keys.keks import KEKRefusedError, check_allowed
from ..keys.process import is_uwsgi_without_threads
from ..option_values import instance
from ..wording import counted
from .columns import columns_of
from .declaration import declaration_findings, schema_findings, sharing_findings
from .kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..keys.ring import KeyRing
    from ..keys.ring_file.format import KeyEntry
    from .columns import AuditedColumn
    from .report import Finding

#: The days after which an active key counts as old.
MAX_KEY_AGE: Final = 90

# Seconds by which the clocks of the process and of the database may differ.
_MAX_DRIFT: Final = 60.0


class Check(NamedTuple):
    """One thing that was checked, a ring, a column or the clock: the result if nothing is wrong, else the findings."""

    subject: str
    text: str
    findings: Sequence[Finding] = ()


def check_ready(metadata: Any, engine: Engine | Connection) -> list[Finding]:
    """Return the reasons why an application is not ready; an empty list if it is.

    Checks that each key ring loads, that its KEKs are allowed, that its refresh works under this server and its active
    key is not older than 90 days, that the database has each encrypted column and declared index as the models do, that
    no column still reads or writes plaintext, and that the clocks of process and database agree. Reads no row.

    Args:
        metadata: The models' ``MetaData``, or any other target of :func:`audit`.
        engine: The database.

    Raises:
        ConfigurationError: *metadata* holds no encrypted column.
    """
    instance("an Engine or a Connection", Engine, Connection).check(engine=engine)
    with engine.connect() if isinstance(engine, Engine) else nullcontext(engine) as connection:
        checks = list(checks_of(connection, columns_of(metadata)))
    return [finding for check in checks for finding in check.findings if finding.severity.rank > 0]


def checks_of(connection: Connection, columns: Sequence[AuditedColumn]) -> Iterator[Check]:
    """Yield every check: rings, columns, clock."""
    for name, column in {_ring_name(column): column for column in columns}.items():
        yield from _ring_checks(name, column)
    shared: dict[str, list[Finding]] = {}
    for finding in sharing_findings(columns):
        shared.setdefault(finding.column, []).append(finding)
    for column in columns:
        findings = [
            *declaration_findings(column),
            *schema_findings(connection, column),
            *shared.get(column.name, ()),
        ]
        yield Check(column.name, "in the database as it is declared", findings)
    # SQLite runs in this process.
    if connection.dialect.name in CLOCKS and connection.dialect.name != "sqlite":
        yield _clock_check(database_time(connection))


def _ring_name(column: AuditedColumn) -> str:
    ring = column.type_.keyring
    # Not the URI of a key server, which may hold a password.
    return "the default ring" if ring is None else f"the ring of {column.name}"


def _ring_checks(name: str, column: AuditedColumn) -> Iterator[Check]:
    """Yield the checks of a ring: it loads, it goes on loading, and what its file says of KEKs and ages."""
    try:
        ring = column.type_.ring()
        active = ring.active
    except KEKRefusedError as error:
        yield Check(name, "", [KINDS["kek-not-allowed"].found(name, f"The key ring is refused: {error}.")])
        return
    except (ConfigurationError, KeyRingError) as error:
        kind = "ring-unreachable" if isinstance(error, KeyUnavailableError) else "ring-not-loaded"
        yield Check(name, "", [KINDS[kind].found(name, f"The key ring cannot be loaded: {error}.")])
        return
    text = f"it loads with {counted(len(ring.key_ids), 'key')}, active key {active}"
    yield Check(name, text, list(_refresh_findings(name, ring)))
    yield from _file_checks(name, ring)


def _refresh_findings(name: str, ring: KeyRing) -> Iterator[Finding]:
    error = ring.status.error
    if error is not None:
        yield KINDS["ring-failing"].found(name, f"The last load of the key ring failed: {error}.")
    if ring.refresh_interval is not None and is_uwsgi_without_threads():
        message = "The ring has refresh=, and this uWSGI runs no thread of Python between requests."
        yield KINDS["refresh-without-threads"].found(name, message)


def _file_checks(name: str, ring: KeyRing) -> Iterator[Check]:
    """Yield the checks of a key-ring file; no other ring has KEKs and ages."""
    # Here, because a ring in the environment needs no file.
    from ..keys.providers.file import path_of
    from ..keys.ring_file.store import StoredRing

    scheme, _, path = (ring.uri or "").partition(":")
    if scheme != "file":
        return
    try:
        entries = StoredRing.read(path_of(path)).file.keys
    except KeyRingError:
        return  # A file of plain keys.
    keks = list(dict.fromkeys(entry.wrapped_by for entry in entries))
    found = []
    try:
        check_allowed(keks, ring.keks)
    except KEKRefusedError as error:
        # The ring was loaded before the file or the configuration changed.
        found = [KINDS["kek-not-allowed"].found(name, f"The next load will be refused: {error}.")]
    yield Check(name, f"allowed to be wrapped by {', '.join(keks)}", found)
    yield _age_check(name, entries)


def _age_check(name: str, entries: Sequence[KeyEntry]) -> Check:
    from ..keys.ring_file.format import KeyState

    findings, days = [], 0
    for entry in entries:
        age = datetime.now(UTC) - (entry.activated or datetime.now(UTC))
        if entry.state is KeyState.ACTIVE:
            days = max(days, age.days)
            if age > timedelta(days=MAX_KEY_AGE):
                message = f"Key {entry.id} has been active for {age.days} days."
                findings.append(KINDS["key-old"].found(name, message))
        elif entry.state is KeyState.COMPROMISED:
            message = f"Key {entry.id} is compromised and still in the ring."
            findings.append(KINDS["key-compromised"].found(name, message))
    return Check(name, f"active for {counted(days, 'day')}, of {MAX_KEY_AGE} at most", findings)


def _clock_check(time: float) -> Check:
    drift = time - datetime.now(UTC).timestamp()
    findings = []
    if abs(drift) > _MAX_DRIFT:
        message = f"The database's clock differs by {abs(drift):,.0f} seconds from that of this process."
        findings = [KINDS["clock-differs"].found("the clock", message)]
    return Check("the clock", "process and database agree", findings)
