"""Every kind of thing that an audit can find: its stable code, how much it matters, what to do about it.

docs/reference/audit.md has the same list for readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .report import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["KINDS", "Kind"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of finding.

    Attributes:
        code: What scripts compare; never changed.
        severity: How much it matters.
        action: What to do about it, in one sentence.
    """

    code: str
    severity: Severity
    action: str

    def found(
        self, column: str, message: str, count: int = 0, primary_keys: Sequence[tuple[Any, ...]] = ()
    ) -> Finding:
        """Return a finding of this kind."""
        return Finding(
            self.code, self.severity, column, message, count, tuple(map(tuple, primary_keys)), self.action
        )


def _kinds() -> Mapping[str, Kind]:
    info, warning, critical = Severity
    return {
        kind.code: kind
        for kind in (
            # Of the column as it is declared and as the database has it.
            Kind(
                "refused",
                critical,
                "Give the database account that audits the right to read the table, and audit again.",
            ),
            Kind(
                "column-missing",
                critical,
                "Run the migration that creates it, or audit the database that has it.",
            ),
            Kind("column-type", critical, "Migrate the column to the type that its storage form needs."),
            Kind(
                "column-short",
                warning,
                "Widen the column of the database, or give EncryptedJWT a max_length that fits into it.",
            ),
            Kind(
                "plaintext-mode",
                warning,
                "Take the next step of the adoption ladder, until the column has plaintext='refuse'.",
            ),
            Kind(
                "unsigned-allowed",
                info,
                "Take allow_unsigned=True away unless something needs tokens that anybody can have made.",
            ),
            Kind(
                "context-default",
                info,
                "Give EncryptedJWT this context before the table or the column is renamed.",
            ),
            Kind(
                "context-shared",
                info,
                "Give each column a context of its own where their tokens must not be exchanged, and re-encrypt.",
            ),
            Kind(
                "index-missing",
                warning,
                "Create it: op.create_jwt_index(), or alembic revision --autogenerate.",
            ),
            Kind(
                "index-outdated",
                warning,
                "Drop it and create it again: alembic revision --autogenerate writes both.",
            ),
            Kind(
                "fingerprint-unindexed",
                info,
                "Declare a FingerprintIndex if rows are looked up by it and the table is not small.",
            ),
            Kind(
                "expiry-unindexed",
                info,
                "Declare an ExpiryIndex if rows are found or purged by it and the table is not small.",
            ),
            Kind(
                "active-unknown",
                warning,
                "Name the active key (active=, --active), or audit where the key ring can be loaded.",
            ),
            # Of the rows, by SQL alone.
            Kind(
                "retired-key",
                critical,
                "Keep the key in the ring, re-encrypt the rows (jwt-column reencrypt), and audit again.",
            ),
            Kind("stale", warning, "Re-encrypt them: jwt-column reencrypt, or op.reencrypt_jwt_column()."),
            Kind("plaintext", critical, "Encrypt them: jwt-column encrypt, or op.encrypt_jwt_column()."),
            Kind(
                "unreadable",
                critical,
                "Find out which program wrote them; restore them from a backup, encrypt them with --from, or "
                "clear them.",
            ),
            Kind(
                "unknown-key",
                critical,
                "Add the key to the ring, decrypt only; where it is lost, clear the rows.",
            ),
            Kind("expired", info, "Delete them: jwt-column purge, or purge_expired()."),
            # Of the rows, opened.
            Kind(
                "undecryptable",
                critical,
                "Find out what changed them; restore them from a backup, or clear them.",
            ),
            Kind(
                "moved",
                critical,
                "Find out who copied them; clear them, and let their users log in again.",
            ),
            Kind(
                "unbound",
                warning,
                "Load and save these rows through the ORM, which binds them to their values.",
            ),
            Kind(
                "alg-none",
                critical,
                "Clear them, because anybody can have made them, and find out which program stored them.",
            ),
            Kind(
                "alg-not-allowed",
                warning,
                "Find out who issues them; replace them, or add the algorithm to the allowed ones.",
            ),
            Kind("exp-missing", warning, "Have the issuer give its tokens an exp, and replace these."),
            Kind(
                "exp-invalid", warning, "Have the issuer write exp as a number of seconds, and replace these."
            ),
            Kind("lifetime", warning, "Have the issuer give shorter lifetimes, and replace these."),
            Kind(
                "duplicate-token",
                warning,
                "Find out why a token is stored twice; a session has one of its own.",
            ),
            Kind(
                "duplicate-jti",
                warning,
                "Have the issuer give every token a jti of its own: revocation by jti would hit another one.",
            ),
            Kind(
                "header-jku",
                warning,
                "Make sure that no verifier fetches keys from where a token says; replace the tokens.",
            ),
            Kind(
                "header-x5u",
                warning,
                "Make sure that no verifier fetches certificates from where a token says; replace the tokens.",
            ),
            Kind(
                "header-jwk",
                warning,
                "Make sure that no verifier takes its key from the token itself; replace the tokens.",
            ),
            Kind(
                "header-x5c",
                info,
                "Make sure that every verifier checks the certificates against roots of its own.",
            ),
            Kind(
                "header-crit",
                info,
                "Make sure that every verifier refuses tokens with critical extensions that it does not know.",
            ),
            Kind(
                "header-kid",
                warning,
                "Make sure that no verifier uses kid in a path, a query or a command; replace the tokens.",
            ),
            Kind(
                "compromised-kid",
                critical,
                "Revoke these tokens and clear the rows: whoever has the signing key can make more of them.",
            ),
        )
    }


#: Every kind by its code.
KINDS: Final = _kinds()
