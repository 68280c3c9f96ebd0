"""Why a run ended as it did, in words: the errors of a run, and the verdict over its report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jwt_column.database.error_sentences import explained
from jwt_column.errors import ReencryptionError
from jwt_column.wording import counted

if TYPE_CHECKING:
    from .report import ReencryptionReport


_WHY_LEFT: Final = {
    "locks": "because the application holds locks on them",
    "writers": "because processes of the application go on writing under another key or layout",
}


def database_failure(report: ReencryptionReport, error: Exception) -> ReencryptionError:
    """Return the error that ends a run: the database's own may show a statement's parameters."""
    report.assume_remaining()
    where, reason = f"{report.table}.{report.column}", explained(error)
    if not report.scanned and not report.total:
        text = f"{where}: the database refused before the first batch ({reason}); nothing was done"
    else:
        text = (
            f"{where}: the database refused a batch ({reason}); {rewritten(report)} before, and "
            "a new run goes on from there"
        )
    return ReencryptionError(text, reason="database", report=report)


def require_complete(report: ReencryptionReport) -> ReencryptionReport:
    """Return the report of a run on whose end the next step relies.

    Raises:
        ReencryptionError: Rows are left, if only because the application held locks on them.
    """
    if not report.is_complete:
        raise ReencryptionError(explain(report), reason="rows", report=report)
    return report


def explain(report: ReencryptionReport, protected: int = 0) -> str:
    """Explain in a few words why a run did not finish."""
    where = f"{report.table}.{report.column}"
    done = rewritten(report)
    tokens = report.tokens
    if tokens is not None and tokens.misplaced_count:
        return (
            f"{where}: {counted(tokens.misplaced_count, 'row', ('holds', 'hold'))} a token that another row held when "
            "the run began "
            f"({listed(tokens.misplaced, tokens.misplaced_count)}); {done}. Look for triggers and programs that move "
            "tokens between rows, and restore these rows from a backup"
        )
    if report.undecryptable_count:
        also = f"; {_unwritable(report)}" if report.unwritable_count else ""
        verbs = ("cannot be read and was left as it is", "cannot be read and were left as they are")
        return (
            f"{where}: {counted(report.undecryptable_count, 'row', verbs)} "
            f"({listed(report.undecryptable, report.undecryptable_count)}){also}; {done}. Rows "
            "of a renamed table or column need its old name as context (--context), tokens that are no JWT need "
            "allow_opaque (--allow-opaque), JSON objects an EncryptedJSON (--type json), others a key that the ring "
            "lacks; give these, or restore the rows, and run again"
        )
    if report.unwritable_count:
        return (
            f"{where}: {_unwritable(report)}; {done}. Change the column, its constraints and triggers, or those rows, "
            "and run again"
        )
    if protected:
        return (
            f"{where}: {counted(protected, 'row', ('was', 'were'))} written during the run with fingerprints or an "
            f"expiry that its type_ does not make, by another release of the application; {done}. "
            "Run again with the type of that release"
        )
    if report.failures:
        return f"{where}: schemas were not finished: {', '.join(report.failures)}"
    left = counted(report.remaining, "row", ("still needs", "still need"))
    if report.reason == "until":
        return f"{where}: {left} work, and until= (--until) is over; {done}. Run again"
    why = _WHY_LEFT.get(
        report.reason or "", "because the application holds locks on them or writes the old way"
    )
    passes = "1 pass" if report.passes == 1 else f"{report.passes} passes"
    return f"{where}: {left} work after {passes}, {why}; {done}. Run again"


def rewritten(report: ReencryptionReport) -> str:
    """Return how many rows were rewritten, with the verb."""
    return f"{counted(report.reencrypted, 'row', ('was', 'were'))} rewritten"


def _unwritable(report: ReencryptionReport) -> str:
    if report.refused and len(report.refused) == len(report.unwritable):
        reasons = ", ".join(dict.fromkeys(reason for _, reason in report.refused))
        verbs = (
            "was refused by the database and left as it was",
            "were refused by the database and left as they were",
        )
        return (
            f"{counted(report.unwritable_count, 'row', verbs)} "
            f"({listed(report.unwritable, report.unwritable_count)}: {reasons})"
        )
    verbs = (
        "can be read, but does not fit the column or its type, and was left as it is",
        "can be read, but do not fit the column or its type, and were left as they are",
    )
    return (
        f"{counted(report.unwritable_count, 'row', verbs)} "
        f"({listed(report.unwritable, report.unwritable_count)})"
    )


def listed(keys: list[Any], count: int) -> str:
    """Return the first primary keys of rows that were left."""
    return f"primary keys {', '.join(map(repr, keys[:5]))}{', ...' if count > 5 else ''}"
