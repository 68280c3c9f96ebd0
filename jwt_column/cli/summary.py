"""The summary of a run: rows by key before and after, figures, the verdict and the next steps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..database.printable import printable
from ..wording import counted
from .console import STATE_STYLES, indented, plain_table, state_order, verdict
from .verbosity import is_quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console, RenderableType

    from migrations_helpers import ReencryptionReport
    from migrations_helpers.engine.expired import ExpiredChoice
    from migrations_helpers.engine.report import TokenReport

    from .columns import ChosenColumn

    #: Rows by key id, or None, and state.
    Census = Mapping[tuple[str | None, str], int]

# Primary keys that a table shows; --json lists up to 10,000.
_MAX_KEYS: Final = 20

_EXPIRED: Final = {"skip": "left as they are", "null": "set to NULL", "delete": "deleted"}
_FOREIGN_STATES: Final = {"plaintext": "plaintext or JWE", "unreadable": "other format"}


@dataclass(frozen=True)
class Words:
    """The words of a command: its name, and the participle for its rows."""

    command: str
    done: str
    #: Whether it reads the ciphertext of another library.
    is_foreign: bool = False

    def state(self, state: str) -> str:
        """Return the name of a state of the census, which knows no other library's formats."""
        return _FOREIGN_STATES.get(state, state) if self.is_foreign else state


@dataclass(frozen=True)
class Summary:
    """The outcome of a run.

    Attributes:
        after: The census after the run; None after a dry run, which changes nothing.
        is_done: Whether no row is left. If one is, an error says so after the summary.
    """

    column: ChosenColumn
    report: ReencryptionReport
    before: Census
    after: Census | None
    is_done: bool
    expired: ExpiredChoice = "keep"

    @property
    def now(self) -> Census:
        """The newest census."""
        return self.before if self.after is None else self.after

    def rows_in(self, state: str) -> int:
        """Return how many rows there are now in a state."""
        return sum(rows for (_, found), rows in self.now.items() if found == state)


def print_summary(console: Console, summary: Summary, words: Words) -> None:
    """Print the summary of a run that was not cut short."""
    console.print(Text(printable(summary.column.name), "bold"))
    for block in _blocks(console, summary, words):
        console.print()
        for renderable in block:
            indented(console, renderable)


def _blocks(console: Console, summary: Summary, words: Words) -> Iterator[Sequence[RenderableType]]:
    """Yield the blocks of the summary; a blank line goes between them."""
    if summary.before or summary.after:
        yield [_census_table(summary, words)]
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(summary):
        facts.add_row(Text(name, "dim"), value)
    if facts.row_count:
        yield [facts]
    if summary.is_done:
        text = _verdict(summary, words)
        yield [Text(text, "bold") if summary.report.dry_run else verdict(console, text, ok=True)]
    steps = [] if is_quiet() else list(_next_steps(summary, words))
    if steps:
        yield steps


def listed_keys(keys: Sequence[object], count: int, most: int) -> str:
    """Return the first of these primary keys."""
    listed = ", ".join(map(repr, keys[:most]))
    return f"{listed}, ..." if count > most else listed


def _census_table(summary: Summary, words: Words) -> Table:
    """Return rows by key id and state, before and after."""
    after = summary.after
    table = plain_table("key id", "state", *([">rows"] if after is None else [">before", ">after"]))
    for key in sorted({*summary.before, *(after or ())}, key=state_order):
        key_id, state = key
        cells = [f"{census.get(key, 0):,}" for census in (summary.before, after) if census is not None]
        style = STATE_STYLES.get(state, "red")
        table.add_row(Text(key_id or "none", "cyan"), Text(words.state(state), style), *cells)
    return table


def _facts(summary: Summary) -> Iterator[tuple[str, Text]]:
    """Yield the figures that the census does not show and that are not zero."""
    report = summary.report
    if report.schemas or report.failures:
        all_of_them = len({*report.schemas, *report.failures})
        yield "schemas finished", Text(f"{all_of_them - len(report.failures):,} of {all_of_them:,}")
    for schema in report.failures:
        yield "not finished", Text(printable(schema), "bold red")
    for name, keys, count in (
        ("cannot be read", report.undecryptable, report.undecryptable_count),
        ("cannot be written", report.unwritable, report.unwritable_count),
    ):
        if count:
            listed = f" (primary keys {listed_keys(keys, count, _MAX_KEYS)})"
            yield name, Text.assemble((f"{count:,}", "bold red"), listed)
    reasons = Counter(reason for _, reason in report.refused)
    for reason, count in reasons.most_common():
        yield "refused by the database", Text.assemble((f"{count:,}", "bold red"), f" ({reason})")
    expired = ("to be " if report.dry_run else "") + _EXPIRED.get(summary.expired, "")
    recomputed = "to be rewritten" if report.dry_run else "rewritten"
    yield from _not_zero(
        ("under a key that was destroyed, left as they are", report.destroyed),
        (f"expired, {expired}", report.expired),
        (f"current, with other index fields than their token's, {recomputed}", report.recomputed),
        ("written by the application meanwhile", report.superseded),
        ("batches put off and done again", report.retries),
    )
    if report.tokens is not None and report.tokens.after:
        yield from _compared_tokens(report.tokens)
    if report.verified:
        yield "opened at the end", Text(f"{report.verified:,} of {sum(summary.now.values()):,}")


def _not_zero(*counts: tuple[str, int]) -> Iterator[tuple[str, Text]]:
    return ((name, Text(f"{rows:,}")) for name, rows in counts if rows)


def _compared_tokens(tokens: TokenReport) -> Iterator[tuple[str, Text]]:
    """Yield the rows of which ``--verify-tokens`` knows more than that they hold their token."""
    yield "hold the token that they held", Text(f"{tokens.unchanged:,} of {tokens.rows_before:,}")
    yield from _not_zero(
        ("hold another token, of the application's", tokens.superseded),
        ("added by the application", tokens.inserted),
        ("deleted or set to NULL", tokens.removed),
    )
    if tokens.misplaced_count:
        listed = f" (primary keys {listed_keys(tokens.misplaced, tokens.misplaced_count, _MAX_KEYS)})"
        yield "hold another row's token", Text.assemble((f"{tokens.misplaced_count:,}", "bold red"), listed)


def _verdict(summary: Summary, words: Words) -> str:
    report = summary.report
    if not summary.before and not report.reencrypted:
        return "Nothing to do: the column holds no value."
    under = f"under key {report.key_id}"
    if report.dry_run:
        return f"Dry run: {counted(report.reencrypted, 'row')} would be {words.done} {under}. Nothing was written."
    if not report.reencrypted:
        nothing, no = (
            ("Nothing else", "no other") if report.expired or report.recomputed else ("Nothing", "no")
        )
        return f"{nothing} to do: {no} row was waiting to be {words.done} {under}."
    return (
        f"{counted(report.reencrypted, 'row')} {words.done} {under} in {report.seconds:.1f} s, "
        f"{report.rows_per_second:,.0f} rows/s."
    )


def _next_steps(summary: Summary, words: Words) -> Iterator[RenderableType]:
    """Yield the next steps."""
    column, report, ring = summary.column, summary.report, summary.column.type_.ring()
    stale = {
        key_id: rows
        for (key_id, state), rows in summary.now.items()
        if key_id is not None and state == "stale" and rows
    }
    if report.dry_run and report.reencrypted and not report.left:
        yield Text("The same command without --dry-run writes.")
    for key_id, rows in stale.items():
        if key_id not in ring.key_ids:
            yield Text.assemble(f"{_count(rows)} under ", (key_id, "cyan"), ", a key that the ring lacks.")
    if words.command == "encrypt":
        if report.undecryptable_count and not words.is_foreign:
            yield Text("--from reads the ciphertext of another library.")
        if stale:
            yield Text(f"{_count(sum(stale.values()))} under another key or of another layout:")
            yield _command(f"jwt-column reencrypt {column.arguments}")
        if report.reencrypted and not report.dry_run:
            places = "the table's history, backups, logs" if report.keeps_history else "backups, logs"
            yield Text(f"The plaintext is still in {places} and free pages, until they are gone.")
        return
    in_the_clear = summary.rows_in("plaintext")
    if in_the_clear:
        yield Text(f"{_count(in_the_clear)} in the clear, which a re-encryption leaves alone:")
        yield _command(f"jwt-column encrypt {column.arguments}")
    needed = {*ring.current_key_ids, *stale}
    idle = [key_id for key_id in ring.key_ids if key_id not in needed]
    if report.keeps_history:
        yield Text(
            "The table is system-versioned: its history keeps the old values under their keys, until it is deleted."
        )
    elif idle and summary.after and summary.is_done:
        yield Text.assemble(
            f"No row here needs {'the key' if len(idle) == 1 else 'the keys'} ",
            (", ".join(idle), "cyan"),
            " any more. When the same holds for every column of the ring, and it is no new key that is to become "
            "active, it can leave the ring; old backups still need it.",
        )


def _count(rows: int) -> str:
    return counted(rows, "row", ("is", "are"))


def _command(line: str) -> RenderableType:
    return Padding(Text(line, "bold"), (0, 0, 0, 2))
