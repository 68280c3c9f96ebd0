"""The exception tree.

Every class mixes in :class:`sqlalchemy.exc.DontWrapMixin`. SQLAlchemy wraps any other exception that is
raised while it binds a parameter into a ``StatementError`` whose text prints the raw parameters of the whole
row, which for this package means the plaintext token.

No message holds a byte of a token, a key or a ciphertext. What a program may want to act on is an attribute.
"""

from __future__ import annotations

from sqlalchemy.exc import DontWrapMixin

__all__ = [
    "AuditError",
    "AuthenticationError",
    "ConfigurationError",
    "DecryptionError",
    "InvalidTokenError",
    "JWTColumnError",
    "KeyRingError",
    "KeyUnavailableError",
    "MalformedEnvelopeError",
    "MissingExtraError",
    "PlaintextFoundError",
    "ReencryptionError",
    "UnknownKeyError",
    "UnsupportedComparisonError",
    "UnsupportedVersionError",
]


class JWTColumnError(DontWrapMixin, Exception):
    """Base of every error that this package raises.

    Attributes:
        context: The column's context (``"table.column"`` unless set otherwise), or None where no column is
            involved.
        key_id: The key id involved, 8 lower-case hex digits, or None.
    """

    context: str | None = None
    key_id: str | None = None

    def __init__(
        self,
        message: str,
        *,
        context: str | None = None,
        key_id: str | None = None,
        reason: str | None = None,
        retryable: bool | None = None,
        report: object | None = None,
    ) -> None:
        super().__init__(message)
        # Each None stays as the class has it. The last three are attributes of some subclasses.
        given = {
            "context": context,
            "key_id": key_id,
            "reason": reason,
            "retryable": retryable,
            "report": report,
        }
        vars(self).update({name: value for name, value in given.items() if value is not None})


class ConfigurationError(JWTColumnError):
    """The column, the key ring or a command is set up wrongly; a retry does not help."""


class MissingExtraError(ConfigurationError):
    """An optional dependency is not installed; the message gives the ``pip install`` command."""


class InvalidTokenError(JWTColumnError, ValueError):
    """The value is not a token that the column accepts; nothing was encrypted or stored.

    Also a ``ValueError``, as validators and forms expect it.

    Attributes:
        reason: What is wrong, without any part of the value.
    """

    reason: str = ""


class KeyRingError(JWTColumnError):
    """A key or a key ring is malformed, or an operation on the ring is refused."""


class UnknownKeyError(KeyRingError):
    """The key ring holds no key with this ``key_id``, also after it was loaded again."""


class KeyUnavailableError(KeyRingError):
    """Keys could not be obtained from where they are kept.

    Attributes:
        retryable: True where the same call may succeed later (a server that is down), False where an
            operator has to act first (a wrong PIN, a file that does not exist).
    """

    retryable: bool = False


class DecryptionError(JWTColumnError):
    """A stored value could not be turned back into a token."""


class MalformedEnvelopeError(DecryptionError):
    """The stored value is not an envelope: truncated, overwritten, or of another program.

    Attributes:
        reason: Which rule of the format it breaks. The rules depend on nothing secret.
    """

    reason: str = ""


class UnsupportedVersionError(DecryptionError):
    """The envelope has a version that this release does not read; a newer release wrote it."""


class AuthenticationError(DecryptionError):
    """The envelope does not authenticate under its key.

    The bytes were changed, or the envelope was written for another column (another context) or another row
    (other bound values). Which of them it was cannot be told, and is not said.
    """


class PlaintextFoundError(JWTColumnError):
    """A readable token stands where an envelope is required (``plaintext="refuse"``)."""


class UnsupportedComparisonError(JWTColumnError):
    """The SQL expression cannot be answered from ciphertext; raised when the expression is built."""


class ReencryptionError(JWTColumnError):
    """A re-encryption could not start, or left rows that are not current.

    Attributes:
        reason: ``"refused"``: nothing was done, because there is no such table or column, it cannot be worked on, or
            another run is at work on it. ``"database"``: the database refused a batch, also of a purge, or was lost;
            a new run goes on from there. ``"ring"``: the key ring of a shard's worker writes under another key than the
            run. ``"table"``: a shard's worker is connected to another table of the same name. ``"rows"``: everything
            was done that could be, and rows are left. ``"tokens"``: rows hold another row's token at the end.
            ``"schemas"``: some of several schemas were not finished; the report names them.
        report: The report of the run up to its end, or None when it did not start.
    """

    reason: str = "refused"
    report: object | None = None


class AuditError(JWTColumnError):
    """An audit has found what must not be there; or the database ended it, or a search for plaintext.

    Attributes:
        report: The :class:`jwt_column.AuditReport`, with every finding; None if it was not finished.
    """

    report: object | None = None


# Not in __all__, which lists the tree above.
class CiphertextWarning(UserWarning):
    """A statement works on ciphertext, so that its answer says nothing, or it sends a token in the clear."""
