"""Every kind of finding: its stable code, its severity, and the action that it asks for.

docs/reference/audit.md has the same list for readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..wording import counted
from .report import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of finding; scripts compare its code.

    If it is about opened rows, ``rows`` is the message for one row, and for several.
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


# The actions that the kinds ask for, by severity.
_CRITICAL: Final = {
    # Of the column as it is declared and as the database has it.
    "refused": "Give the database account that audits the right to read the table, and audit again.",
    "rows-hidden": "Audit as a role that row-level security does not apply to.",
    "declaration": "Declare the column as the message says.",
    "column-missing": "Run the migration that creates it, or audit the database that has it.",
    "column-type": "Migrate the column to the type that its storage form needs.",
    # Of an application that starts.
    "ring-not-loaded": "Mend the key ring: 'jwt-column keys check' checks each key.",
    "ring-unreachable": "Make the system that holds the keys reachable, and check again.",
    "kek-not-allowed": "If it is your KEK, add it to JWT_COLUMN_KEKS or keks=; else find out who changed the file.",
    "key-compromised": "Re-encrypt its rows, and remove it: jwt-column keys remove.",
    # Of the rows, by SQL alone.
    "retired-key": "Keep the key in the ring, re-encrypt the rows (jwt-column reencrypt), and audit again.",
    "plaintext": "Encrypt them: jwt-column encrypt, or op.encrypt_jwt_column().",
    "unreadable": "Find out which program wrote them: tokens that are no JWT need allow_opaque=True on the "
    "column, and values of another library jwt-column encrypt --from; else restore them from a backup.",
    "unknown-key": "Add the key to the ring, decrypt only; where it is lost, clear the rows; where it was "
    "destroyed on purpose, say so: jwt-column keys remove --destroyed.",
    "nonce-repeated": "Revoke these tokens: a reader of the database can decrypt them without a key; upgrade "
    "the writers, make another key active, and re-encrypt every row under this key.",
    # Of the rows, opened.
    "undecryptable": "If the table or the column was renamed, give EncryptedJWT the old name as context=, "
    "which a deep audit with --try-context OLD (try_contexts=) proves; else find the program that changed "
    "the rows, and restore them from a backup.",
    "no-row-opens": "Look for a rename of the table or the column, and leave the rows as they are: a deep "
    "audit with --try-context OLD (try_contexts=) proves it, and context=OLD on EncryptedJWT opens them.",
    "other-context": "Give the type this context=: the table or the column was renamed, and the rows are whole.",
    "moved": "If a table or a column was renamed, give EncryptedJWT the old name as context=; else find out "
    "who copied them, clear them, and let their users log in again.",
    "alg-none": "Clear them, because anybody can have made them, and find out which program stored them.",
    "compromised-kid": "Revoke these tokens and clear the rows: anyone with the signing key can make more of them.",
}
_WARNING: Final = {
    # Of the column as it is declared and as the database has it.
    "column-short": "Widen the column of the database, or give EncryptedJWT a max_length that fits into it.",
    "plaintext-mode": "Take the next step of the adoption ladder, until the column has plaintext='refuse'.",
    "index-missing": "Create it: op.create_jwt_index(), or alembic revision --autogenerate.",
    "index-outdated": "Drop it and create it again: alembic revision --autogenerate writes both.",
    "active-unknown": "Name the active key (active=, --active), or audit where the key ring can be loaded.",
    # Of an application that starts.
    "ring-failing": "Mend the cause before the next restart: this process goes on with the keys that it has loaded.",
    "refresh-without-threads": "Start uWSGI with --enable-threads, or call ring.reload() yourself and leave "
    "refresh= out.",
    "key-old": "Rotate: jwt-column keys add.",
    "clock-differs": "Synchronize the clocks: expiry is compared with both.",
    # Of the rows, by SQL alone.
    "stale": "Re-encrypt them: jwt-column reencrypt, or op.reencrypt_jwt_column().",
    "not-searchable": "Re-encrypt them with the type of the model: a look-up or a revocation passes over "
    "them until then.",
    "history-kept": "Delete the history of the table (DELETE HISTORY FROM) before a key leaves the ring or "
    "plaintext counts as gone: a re-encryption does not reach old versions of rows.",
    # Of the rows, opened.
    "unbound": "Load and save these rows through the ORM, which binds them to their values.",
    "alg-not-allowed": "Find out who issues them; replace them, or add the algorithm to the allowed ones.",
    "exp-missing": "Have the issuer give its tokens an exp, and replace these.",
    "exp-invalid": "Have exp, or expires_at in a document, written as a number of seconds, not as text or in "
    "milliseconds, and replace these: no search finds them expired, and no purge removes them.",
    "claim-not-indexed": "Have the claim or member written as text or as an integer, and replace these: a "
    "search or a revocation by it does not find them, and a unique index passes over them.",
    "other-type": "Audit the column with the type that wrote it, EncryptedJSON for JSON objects (--type "
    "json): tokens in these values were not examined.",
    "index-differs": "Re-encrypt the column with recompute=True (--recompute), or under another key, once "
    "every process has today's release and type: searches and purges go by the stored fields.",
    "lifetime": "Have the issuer give shorter lifetimes, and replace these.",
    "duplicate-token": "Find out why a token is stored twice; a session has one of its own.",
    "duplicate-jti": "Have the issuer give every token a jti of its own: revocation by jti would hit another one.",
    "header-jku": "Make sure that no verifier fetches keys from where a token says; replace the tokens.",
    "header-x5u": "Make sure that no verifier fetches certificates from where a token says; replace the tokens.",
    "header-jwk": "Make sure that no verifier takes its key from the token itself; replace the tokens.",
    "header-kid": "Make sure that no verifier uses kid in a path, a query or a command; replace the tokens.",
}
_INFO: Final = {
    # Of the column as it is declared and as the database has it.
    "unsigned-allowed": "Take allow_unsigned=True away unless something needs tokens that anybody can have made.",
    "context-default": "Give the type this context before the table or the column is renamed.",
    "context-shared": "Give each column a context of its own where their tokens must not be exchanged, and re-encrypt.",
    "fingerprint-unindexed": "Declare a FingerprintIndex if rows are looked up by it and the table is not small.",
    "expiry-unindexed": "Declare an ExpiryIndex if rows are found or purged by it and the table is not small.",
    # Of the rows, by SQL alone.
    "destroyed-key": "Remove the rows when nothing else in them is needed: jwt-column purge --key.",
    "expired": "Delete them: jwt-column purge, or purge_expired().",
    # Of the rows, opened.
    "changed-meanwhile": "Audit again, beside no purge and no import, if counts and findings about tokens must agree.",
    "header-x5c": "Make sure that every verifier checks the certificates against roots of its own.",
    "header-crit": "Make sure that every verifier refuses tokens with critical extensions that it does not know.",
}

#: The message of a finding about opened rows: for one row, and for several.
_ROWS: Final = {
    "undecryptable": (
        "was changed, or written in another context than",
        "were changed, or written in another context than",
    ),
    "no-row-opens": (
        "holds an envelope, the only one, and it does not open in the context",
        "hold envelopes, and none of them opens in the context",
    ),
    "other-context": ("opens in another context", "open in another context"),
    "moved": ("holds an envelope of another column", "hold envelopes of another column"),
    "unbound": ("is not bound to its row", "are not bound to their rows"),
    "alg-none": ("holds an unsigned token", "hold unsigned tokens"),
    "alg-not-allowed": (
        "holds a token whose alg is not an allowed one",
        "hold tokens whose alg is not an allowed one",
    ),
    "exp-missing": ("holds a token without exp", "hold tokens without exp"),
    "exp-invalid": (
        "holds a token whose exp, or a document whose expires_at, is not a time in seconds",
        "hold tokens whose exp, or documents whose expires_at, is not a time in seconds",
    ),
    "claim-not-indexed": (
        "has a claim or member that cannot be fingerprinted",
        "have a claim or member that cannot be fingerprinted",
    ),
    "other-type": (
        "holds a value of the other type, a JSON object or a token",
        "hold values of the other type, JSON objects or tokens",
    ),
    "index-differs": (
        "shows another fingerprint or expiry than its token has",
        "show other fingerprints or another expiry than their tokens have",
    ),
    "lifetime": ("holds a token that lives longer than allowed", "hold tokens that live longer than allowed"),
    "duplicate-token": ("repeats the token of an earlier row", "repeat the token of an earlier row"),
    "duplicate-jti": (
        "holds another token with the jti of an earlier row",
        "hold other tokens with the jti of an earlier row",
    ),
    "header-jku": ("says where to fetch the key (jku)", "say where to fetch the key (jku)"),
    "header-x5u": ("says where to fetch the certificate (x5u)", "say where to fetch the certificate (x5u)"),
    "header-jwk": ("brings its own key (jwk)", "bring their own keys (jwk)"),
    "header-x5c": ("brings its own certificates (x5c)", "bring their own certificates (x5c)"),
    "header-crit": ("has critical extensions (crit)", "have critical extensions (crit)"),
    "header-kid": (
        "has a kid with characters of paths, queries or commands",
        "have a kid with characters of paths, queries or commands",
    ),
    "compromised-kid": (
        "holds a token signed with a compromised key",
        "hold tokens signed with a compromised key",
    ),
}

#: Every kind by its code.
KINDS: Final = {
    code: Kind(code, severity, action, _ROWS.get(code, ("", "")))
    for severity, actions in zip(Severity, (_INFO, _WARNING, _CRITICAL), strict=True)
    for code, action in actions.items()
}
