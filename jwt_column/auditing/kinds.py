"""Every kind of finding: its stable code, its severity, and the action that it asks for.

docs/reference/audit.md has the same list for readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..wording import counted
from .report import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["KINDS", "Kind"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of finding.

    Attributes:
        code: A stable name, which scripts compare.
        severity: Whether an audit with it can be ok.
        action: One sentence in the imperative.
        rows: The message of a finding about opened rows: for one row, and for several.
    """

    code: str
    severity: Severity
    action: str
    rows: tuple[str, str] = ("", "")

    def message(self, count: int) -> str:
        """Return the first part of the message about this many rows."""
        return counted(count, "row", self.rows)

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
                "rows-hidden",
                critical,
                "Audit as a role that row-level security does not apply to.",
            ),
            Kind("declaration", critical, "Declare the column as the message says."),
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
                "Give the type this context before the table or the column is renamed.",
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
            # Of an application that starts.
            Kind("ring-not-loaded", critical, "Mend the key ring: 'jwt-column keys check' checks each key."),
            Kind(
                "ring-unreachable",
                critical,
                "Make the system that holds the keys reachable, and check again.",
            ),
            Kind(
                "kek-not-allowed",
                critical,
                "If it is your KEK, add it to JWT_COLUMN_KEKS or keks=; else find out who changed the file.",
            ),
            Kind(
                "ring-failing",
                warning,
                "Mend the cause before the next restart: this process goes on with the keys that it has loaded.",
            ),
            Kind(
                "refresh-without-threads",
                warning,
                "Start uWSGI with --enable-threads, or call ring.reload() yourself and leave refresh= out.",
            ),
            Kind("key-old", warning, "Rotate: jwt-column keys add."),
            Kind("key-compromised", critical, "Re-encrypt its rows, and remove it: jwt-column keys remove."),
            Kind("clock-differs", warning, "Synchronize the clocks: expiry is compared with both."),
            # Of the rows, by SQL alone.
            Kind(
                "retired-key",
                critical,
                "Keep the key in the ring, re-encrypt the rows (jwt-column reencrypt), and audit again.",
            ),
            Kind("stale", warning, "Re-encrypt them: jwt-column reencrypt, or op.reencrypt_jwt_column()."),
            Kind(
                "not-searchable",
                warning,
                "Re-encrypt them with the type of the model: a look-up or a revocation passes over them until then.",
            ),
            Kind("plaintext", critical, "Encrypt them: jwt-column encrypt, or op.encrypt_jwt_column()."),
            Kind(
                "unreadable",
                critical,
                "Find out which program wrote them: tokens that are no JWT need allow_opaque=True on the column, and "
                "values of another library jwt-column encrypt --from; else restore them from a backup.",
            ),
            Kind(
                "unknown-key",
                critical,
                "Add the key to the ring, decrypt only; where it is lost, clear the rows; where it was destroyed on "
                "purpose, say so: jwt-column keys remove --destroyed.",
            ),
            Kind(
                "destroyed-key",
                info,
                "Remove the rows when nothing else in them is needed: jwt-column purge --key.",
            ),
            Kind(
                "nonce-repeated",
                critical,
                "Revoke these tokens: a reader of the database can decrypt them without a key; upgrade the writers, "
                "make another key active, and re-encrypt every row under this key.",
            ),
            Kind(
                "history-kept",
                warning,
                "Delete the history of the table (DELETE HISTORY FROM) before a key leaves the ring or plaintext "
                "counts as gone: a re-encryption does not reach old versions of rows.",
            ),
            Kind("expired", info, "Delete them: jwt-column purge, or purge_expired()."),
            # Of the rows, opened.
            Kind(
                "changed-meanwhile",
                info,
                "Audit again, beside no purge and no import, if counts and findings about tokens must agree.",
            ),
            Kind(
                "undecryptable",
                critical,
                "If the table or the column was renamed, give EncryptedJWT the old name as context=, which a deep "
                "audit with --try-context OLD (try_contexts=) proves; else find the program that changed the rows, "
                "and restore them from a backup.",
                rows=(
                    "was changed, or written in another context than",
                    "were changed, or written in another context than",
                ),
            ),
            Kind(
                "no-row-opens",
                critical,
                "Look for a rename of the table or the column, and leave the rows as they are: a deep audit with "
                "--try-context OLD (try_contexts=) proves it, and context=OLD on EncryptedJWT opens them.",
                rows=(
                    "holds an envelope, the only one, and it does not open in the context",
                    "hold envelopes, and none of them opens in the context",
                ),
            ),
            Kind(
                "other-context",
                critical,
                "Give the type this context=: the table or the column was renamed, and the rows are whole.",
                rows=("opens in another context", "open in another context"),
            ),
            Kind(
                "moved",
                critical,
                "If a table or a column was renamed, give EncryptedJWT the old name as context=; else find out who "
                "copied them, clear them, and let their users log in again.",
                rows=("holds an envelope of another column", "hold envelopes of another column"),
            ),
            Kind(
                "unbound",
                warning,
                "Load and save these rows through the ORM, which binds them to their values.",
                rows=("is not bound to its row", "are not bound to their rows"),
            ),
            Kind(
                "alg-none",
                critical,
                "Clear them, because anybody can have made them, and find out which program stored them.",
                rows=("holds an unsigned token", "hold unsigned tokens"),
            ),
            Kind(
                "alg-not-allowed",
                warning,
                "Find out who issues them; replace them, or add the algorithm to the allowed ones.",
                rows=(
                    "holds a token whose alg is not an allowed one",
                    "hold tokens whose alg is not an allowed one",
                ),
            ),
            Kind(
                "exp-missing",
                warning,
                "Have the issuer give its tokens an exp, and replace these.",
                rows=("holds a token without exp", "hold tokens without exp"),
            ),
            Kind(
                "exp-invalid",
                warning,
                "Have the issuer write exp as a number of seconds, not as text or in milliseconds, and replace these: "
                "no search finds them expired, and no purge removes them.",
                rows=(
                    "holds a token whose exp is not a time in seconds",
                    "hold tokens whose exp is not a time in seconds",
                ),
            ),
            Kind(
                "claim-not-indexed",
                warning,
                "Have the issuer write the claim as text or as an integer, and replace these: a search or a revocation "
                "by it does not find them, and a unique index passes over them.",
                rows=(
                    "has a claim that cannot be fingerprinted",
                    "have a claim that cannot be fingerprinted",
                ),
            ),
            Kind(
                "other-type",
                warning,
                "Audit the column with the type that wrote it, EncryptedJSON for JSON objects (--type json): tokens in "
                "these values were not examined.",
                rows=(
                    "holds a value of the other type, a JSON object or a token",
                    "hold values of the other type, JSON objects or tokens",
                ),
            ),
            Kind(
                "index-differs",
                warning,
                "Re-encrypt the column with recompute=True (--recompute), or under another key, once every process has "
                "today's release and type: searches and purges go by the stored fields.",
                rows=(
                    "shows another fingerprint or expiry than its token has",
                    "show other fingerprints or another expiry than their tokens have",
                ),
            ),
            Kind(
                "lifetime",
                warning,
                "Have the issuer give shorter lifetimes, and replace these.",
                rows=(
                    "holds a token that lives longer than allowed",
                    "hold tokens that live longer than allowed",
                ),
            ),
            Kind(
                "duplicate-token",
                warning,
                "Find out why a token is stored twice; a session has one of its own.",
                rows=("repeats the token of an earlier row", "repeat the token of an earlier row"),
            ),
            Kind(
                "duplicate-jti",
                warning,
                "Have the issuer give every token a jti of its own: revocation by jti would hit another one.",
                rows=(
                    "holds another token with the jti of an earlier row",
                    "hold other tokens with the jti of an earlier row",
                ),
            ),
            Kind(
                "header-jku",
                warning,
                "Make sure that no verifier fetches keys from where a token says; replace the tokens.",
                rows=("says where to fetch the key (jku)", "say where to fetch the key (jku)"),
            ),
            Kind(
                "header-x5u",
                warning,
                "Make sure that no verifier fetches certificates from where a token says; replace the tokens.",
                rows=(
                    "says where to fetch the certificate (x5u)",
                    "say where to fetch the certificate (x5u)",
                ),
            ),
            Kind(
                "header-jwk",
                warning,
                "Make sure that no verifier takes its key from the token itself; replace the tokens.",
                rows=("brings its own key (jwk)", "bring their own keys (jwk)"),
            ),
            Kind(
                "header-x5c",
                info,
                "Make sure that every verifier checks the certificates against roots of its own.",
                rows=("brings its own certificates (x5c)", "bring their own certificates (x5c)"),
            ),
            Kind(
                "header-crit",
                info,
                "Make sure that every verifier refuses tokens with critical extensions that it does not know.",
                rows=("has critical extensions (crit)", "have critical extensions (crit)"),
            ),
            Kind(
                "header-kid",
                warning,
                "Make sure that no verifier uses kid in a path, a query or a command; replace the tokens.",
                rows=(
                    "has a kid with characters of paths, queries or commands",
                    "have a kid with characters of paths, queries or commands",
                ),
            ),
            Kind(
                "compromised-kid",
                critical,
                "Revoke these tokens and clear the rows: anyone with the signing key can make more of them.",
                rows=(
                    "holds a token signed with a compromised key",
                    "hold tokens signed with a compromised key",
                ),
            ),
        )
    }


#: Every kind by its code.
KINDS: Final = _kinds()
