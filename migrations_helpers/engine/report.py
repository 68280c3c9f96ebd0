"""The outcome of a run, in numbers that can be checked."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


#: Primary keys that a report lists at most; the counts beside them are always exact.
MAX_LISTED: Final = 10_000


@dataclass(slots=True)
class TokenReport:
    """The tokens of a whole table before a run and after it, with ``verify="tokens"``.

    Attributes:
        before: The digest of the table before the run, 64 hex digits: the sum modulo 2**256 of an HMAC-SHA256 of each
            row's key and token, under a random key that is gone with the run.
        after: The digest after the run; equal if every row holds the token that it held.
        rows_before: Rows with a value before the run.
        rows_after: Rows with a value after it.
        unchanged: Rows that hold the token that they held.
        superseded: Rows that hold another token, which the application wrote meanwhile.
        inserted: Rows that the application added, or gave their first token.
        removed: Rows that were deleted or set to NULL, by the application or with ``expired=`` by the run.
        misplaced: Primary keys of rows that hold a token which another row held before, and holds no longer; of rows
            for which the database stored another token than the run wrote. At most 10,000 are listed.
        misplaced_count: How many there are.
    """

    before: str = ""
    after: str = ""
    rows_before: int = 0
    rows_after: int = 0
    unchanged: int = 0
    superseded: int = 0
    inserted: int = 0
    removed: int = 0
    misplaced: list[Any] = field(default_factory=list)
    misplaced_count: int = 0

    @property
    def is_same(self) -> bool:
        """Whether every row holds the token that it held, and there are no others."""
        return bool(self.after) and self.before == self.after

    def add_misplaced(self, key: tuple[Any, ...]) -> None:
        """Count a row that holds another row's token, and list it while there is room."""
        self.misplaced_count += 1
        _list(self.misplaced, [_plain(key)])

    def add_schema(self, name: str, other: TokenReport) -> None:
        """Add the comparison of one schema; digests are added up as those of rows are."""
        _list(self.misplaced, [(name, key) for key in other.misplaced])
        _add(self, other, "rows_before", "rows_after", "unchanged", "superseded", "inserted", "removed")
        _add(self, other, "misplaced_count")
        self.before = hex_digest(int(self.before or "0", 16) + int(other.before or "0", 16))
        self.after = hex_digest(int(self.after or "0", 16) + int(other.after or "0", 16))


@dataclass(slots=True)
class ReencryptionReport:
    """The outcome of one run over one column, or its state while it runs.

    Attributes:
        table: The table, with its schema if one was given.
        column: The column.
        key_id: The key that the run writes under, 8 hex digits; None for a run that writes plaintext.
        dry_run: Whether nothing was written.
        total: Rows that needed work when the run began, by SQL.
        scanned: Rows looked at: those that were current already, and those read.
        reencrypted: Rows rewritten. In a dry run, rows that would be.
        already_current: Rows that needed no work when the run began.
        superseded: Rows that needed work when the run began and that the application replaced or deleted before
            the run came to them.
        expired: Stale rows whose token had expired: cleared or deleted, or with ``expired="skip"`` left as they are.
            In a dry run, rows that would be. 0 with ``"keep"``, which treats them as any others.
        undecryptable: Primary keys of rows that could not be read, left as they were; at most 10,000 are listed.
            A key of one column is its value, of several a tuple.
        undecryptable_count: How many there are.
        unwritable: Primary keys of rows that could be read and not be written, left as they were, listed likewise: the
            new value is too long for the column, or the column's type does not take the token.
        unwritable_count: How many there are.
        refused: Of those, the rows that the database refused: primary key, and the name of its error. At most 10,000.
        recomputed: Rows that were current and got the index fields of their token, with ``recompute=True``.
        plaintext: Rows in the clear at the end, or where the run is; re-encryption leaves them alone.
        destroyed: Rows under a key that the ring's file marks as destroyed, when the run began; they are left as they
            are, and need no work.
        remaining: Rows that need work at the end, by SQL; 0 after a run that finished.
        by_key_id: Rows rewritten, per key id that they were under before; ``plaintext`` where they were in the clear,
            and ``foreign`` where another library had encrypted them.
        retries: Batches done again after a lock, a deadlock or a lost connection.
        passes: How often the run went over the table.
        verified: Rows opened again at the end, with ``verify="decrypt"`` or ``"tokens"``.
        tokens: The comparison of every token before and after, with ``verify="tokens"``; else None.
        seconds: Wall-clock time.
        keeps_history: Whether the table is system-versioned (MariaDB): its history keeps the old values under their
            keys, which no run rewrites.
        seconds_left: Seconds that the rest will take, by the rows of the last minute; None if that is not known.
        waiting: The reason for which the run waits: ``"paused"``, ``"window"``, ``"replicas"``, ``"throttle"`` or None.
        finished: Whether the run came to its end; the counts say which rows it left.
        reason: Why rows are left that another run can do: ``"until"``, the time was over; ``"locks"``, the application
            held locks on them; ``"writers"``, processes went on writing under another key or layout. Else None.
        schemas: The report of each schema, with ``schemas=``. The counts of this report are then their sums, and the
            primary keys that it lists are pairs of schema and key.
        failures: Why schemas were not finished, by their names.
    """

    table: str
    column: str
    key_id: str | None = None
    dry_run: bool = False
    total: int = 0
    scanned: int = 0
    reencrypted: int = 0
    already_current: int = 0
    superseded: int = 0
    expired: int = 0
    undecryptable: list[Any] = field(default_factory=list)
    undecryptable_count: int = 0
    unwritable: list[Any] = field(default_factory=list)
    unwritable_count: int = 0
    refused: list[tuple[Any, str]] = field(default_factory=list)
    recomputed: int = 0
    plaintext: int = 0
    destroyed: int = 0
    remaining: int = 0
    by_key_id: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    passes: int = 0
    verified: int = 0
    tokens: TokenReport | None = None
    seconds: float = 0.0
    keeps_history: bool = False
    seconds_left: float | None = None
    waiting: str | None = None
    finished: bool = False
    reason: str | None = None
    schemas: dict[str, ReencryptionReport] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def rows_per_second(self) -> float:
        """Rows rewritten in a second of the run's time."""
        return self.reencrypted / self.seconds if self.seconds else 0.0

    @property
    def left(self) -> int:
        """Rows that were left as they were because they could not be read or not be written."""
        return self.undecryptable_count + self.unwritable_count

    @property
    def done(self) -> int:
        """Rows that the run has dealt with."""
        return self.reencrypted + self.expired + self.left

    @property
    def is_complete(self) -> bool:
        """Whether the run came to its end, left no row, and found no token in another row than before."""
        is_damaged = self.tokens is not None and self.tokens.misplaced_count
        is_all = not (self.remaining or self.left or self.failures or self.reason)
        return self.finished and is_all and not is_damaged

    def add_undecryptable(self, key: tuple[Any, ...]) -> None:
        """Count a row that could not be read, and list it while there is room."""
        self.undecryptable_count += 1
        _list(self.undecryptable, [_plain(key)])

    def add_unwritable(self, key: tuple[Any, ...]) -> None:
        """Count a row that was read and could not be written, and list it while there is room."""
        self.unwritable_count += 1
        _list(self.unwritable, [_plain(key)])

    def add_refused(self, key: tuple[Any, ...], reason: str) -> None:
        """Count a row that the database refused, and list it with the reason while there is room."""
        self.add_unwritable(key)
        _list(self.refused, [(_plain(key), reason)])

    def assume_remaining(self) -> None:
        """Take all rows that were not rewritten as remaining: an upper bound, where they were not counted since."""
        self.remaining = max(0, self.total - self.reencrypted - self.expired)

    def forget_left(self) -> None:
        """Forget the rows that were left: a new pass finds them again, if they are still there."""
        self.undecryptable.clear()
        self.unwritable.clear()
        self.refused.clear()
        self.undecryptable_count = self.unwritable_count = 0

    def absorb(self, other: ReencryptionReport) -> None:
        """Add the report of one shard."""
        _add(self, other, "reencrypted", "expired", "undecryptable_count", "unwritable_count")
        _add(self, other, "retries", "verified")
        for name in ("undecryptable", "unwritable", "refused"):
            _list(getattr(self, name), getattr(other, name))
        self.passes = max(self.passes, other.passes)
        self.add_origins(other.by_key_id)

    def add_origins(self, rows: Mapping[str, int]) -> None:
        """Count rewritten rows by what they were before."""
        self.by_key_id = dict(Counter(self.by_key_id) + Counter(rows))

    def add_schema(self, name: str, other: ReencryptionReport) -> None:
        """Add the report of one schema."""
        self.schemas[name] = other
        named: dict[str, Any] = {
            "undecryptable": [(name, key) for key in other.undecryptable],
            "unwritable": [(name, key) for key in other.unwritable],
            "refused": [((name, key), reason) for key, reason in other.refused],
        }
        self.absorb(replace(other, **named))
        self.key_id = self.key_id or other.key_id
        self.reason = self.reason or other.reason
        _add(self, other, "total", "scanned", "already_current", "superseded")
        _add(self, other, "recomputed", "plaintext", "destroyed", "remaining")
        self.keeps_history = self.keeps_history or other.keeps_history
        if other.tokens is not None:
            self.tokens = self.tokens or TokenReport()
            self.tokens.add_schema(name, other.tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data for JSON; primary keys that JSON lacks become text."""
        data = asdict(self)
        for name in ("undecryptable", "unwritable"):
            data[name] = [_for_json(key) for key in getattr(self, name)]
        data["refused"] = [[_for_json(key), reason] for key, reason in self.refused]
        data["schemas"] = {name: report.to_dict() for name, report in self.schemas.items()}
        if self.tokens is not None:
            data["tokens"]["misplaced"] = [_for_json(key) for key in self.tokens.misplaced]
        return data | {"rows_per_second": round(self.rows_per_second, 1)}


def hex_digest(total: int) -> str:
    """Return a sum of digests as 64 hex digits."""
    return f"{total % (1 << 256):064x}"


def _plain(key: tuple[Any, ...]) -> Any:
    return key[0] if len(key) == 1 else key


def _for_json(key: Any) -> int | str:
    return key if isinstance(key, int | str) else str(key)


def _add(report: Any, other: Any, *counts: str) -> None:
    for name in counts:
        setattr(report, name, getattr(report, name) + getattr(other, name))


def _list(keys: list[Any], more: list[Any]) -> None:
    """Add keys to a list while there is room."""
    keys += more[: max(0, MAX_LISTED - len(keys))]
