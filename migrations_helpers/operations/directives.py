"""The Alembic operations on rows, as data; :mod:`.implementations` carries them out.

.. code-block:: python

    import migrations_helpers  # registers the operations

    def upgrade() -> None:
        op.reencrypt_jwt_column("sessions", "token", type_=EncryptedJWT(fingerprints=["jti"]))

All take the same arguments: the table, the column, ``type_`` (the column's type as the model has it; None means
``EncryptedJWT()``), ``schema``, and the options of :func:`migrations_helpers.reencrypt`. The keys come from the type's
key ring, never from the migration. All raise ``CommandError`` in ``--sql`` mode: a script has neither keys nor rows.

The work runs outside the migration's transaction, inside ``autocommit_block()``, batch by batch: a run that is stopped
leaves the revision unapplied, and the next ``alembic upgrade`` goes on where it was. Give it a revision of its own, and
``transaction_per_migration=True`` in ``env.py``, because an autocommit block commits the work of the run before it.
"""

from __future__ import annotations

from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, cast

from alembic.autogenerate import renderers
from alembic.operations import MigrateOperation, Operations

from ..engine.reencryption import in_column
from ..engine.reflection import Subject
from ..engine.rendering import import_of, render_type

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext

    from jwt_column.column.types import EncryptedJWT

_Op = TypeVar("_Op", bound="type[Directive]")


class Directive(MigrateOperation):
    """An operation that is a method of ``op``, by its name and with the parameters of its constructor.

    Each argument is kept as the attribute of that name.
    """

    name: ClassVar[str]
    #: The name of the operation that undoes this one.
    undone_by: ClassVar[str]
    schema: str | None

    @classmethod
    def invoke(cls, operations: Operations, *arguments: Any, **options: Any) -> Any:
        """Carry the operation out: the body of the method."""
        return operations.invoke(cls(*arguments, **options))

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional arguments, and the keyword arguments that are not the default."""
        parameters = signature(type(self)).parameters.values()
        positional = [
            getattr(self, one.name) for one in parameters if one.kind is Parameter.POSITIONAL_OR_KEYWORD
        ]
        keywords = {one.name: one.default for one in parameters if one.kind is Parameter.KEYWORD_ONLY}
        given = {name: getattr(self, name) for name in keywords}
        return positional, {name: value for name, value in given.items() if value != keywords[name]}

    def reverse(self) -> Directive:
        """Return the operation that undoes this one."""
        positional, keywords = self.arguments()
        return _REGISTERED[self.undone_by](*positional, **keywords)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the line of ``alembic check``."""
        return (self.name, self.schema, *self.arguments()[0])


_REGISTERED: Final[dict[str, type[Directive]]] = {}


def register(operation: _Op) -> _Op:
    """Make an operation a method of ``op``, with the documentation of its class."""
    _REGISTERED[operation.name] = operation
    Operations.register_operation(operation.name, "invoke")(operation)
    method: Any = getattr(Operations, operation.name)
    method.__doc__, method.__signature__ = (
        operation.__doc__,
        signature(operation.__init__).replace(return_annotation=Signature.empty),
    )
    return operation


@renderers.dispatch_for(Directive)
def _render(context: AutogenContext, operation: Directive) -> str:
    """Return an operation as a line of a revision, which imports what it names. The key ring is never in it."""
    context.imports.add("import migrations_helpers")
    positional, keywords = operation.arguments()
    shown = {name: repr(value) for name, value in keywords.items()}
    if "type_" in keywords:
        context.imports.add(import_of(keywords["type_"]))
        if isinstance(operation, ColumnOp):
            shown["type_"] = render_type(keywords["type_"])
    arguments = [*map(repr, positional), *(f"{name}={value}" for name, value in shown.items())]
    prefix = context.opts.get("alembic_module_prefix") or "op."
    return f"{prefix}{operation.name}({', '.join(arguments)})"


class ColumnOp(Directive):
    """An operation on the rows of one encrypted column."""

    #: Options that this operation has and its reverse has not.
    own_options: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        table: str,
        column: str,
        *,
        type_: EncryptedJWT | None = None,
        schema: str | None = None,
        **options: Any,
    ) -> None:
        self.table = table
        self.column = column
        self.type_: EncryptedJWT = in_column(type_, table, column, schema)
        self.schema = schema
        self.options = options

    @property
    def subject(self) -> Subject:
        """The column, as the engine takes it."""
        return Subject(self.table, self.column, self.type_, self.schema)

    def reverse(self) -> ColumnOp:
        """Return the operation that undoes this one, with the options that both have."""
        reverse = cast("ColumnOp", super().reverse())
        reverse.options = {
            name: value for name, value in self.options.items() if name not in self.own_options
        }
        return reverse


@register
class ReencryptColumnOp(ColumnOp):
    """Re-encrypt every stale row of a column under its active key; return a :class:`ReencryptionReport`.

    Raises:
        ConfigurationError: Rows have a fingerprint or an expiry that ``type_`` does not make, and ``drop`` does not
            name it.
        ReencryptionError: Rows are left that are stale or cannot be read. The revision stays unapplied; rows that
            were rewritten stay rewritten, and the next run goes on from there.
    """

    name = "reencrypt_jwt_column"
    # Both keys decrypt, so to go back means the key that is active then.
    undone_by = "reencrypt_jwt_column"
    # A downgrade loses no row, even if the upgrade deletes expired ones.
    own_options: ClassVar[frozenset[str]] = frozenset({"expired", "drop"})


@register
class EncryptColumnOp(ColumnOp):
    """Encrypt every row of a column that is no envelope yet, in place; return a :class:`ReencryptionReport`.

    The column has the type in the database that its storage form needs. ``decrypt_with`` reads a stored value of
    another library and returns the token, as a :class:`~migrations_helpers.FernetReader`,
    :class:`~migrations_helpers.SQLAlchemyUtilsReader` or :class:`~migrations_helpers.JWEReader` does; None reads
    plaintext.

    Raises:
        ReencryptionError: Rows are left that are no envelopes; or the column is too short for envelopes, or of
            the other storage form, and nothing was done.
        KeyUnavailableError: The key of the other library cannot be had.
    """

    name = "encrypt_jwt_column"
    undone_by = "decrypt_jwt_column"
    own_options: ClassVar[frozenset[str]] = frozenset({"decrypt_with"})


@register
class DecryptColumnOp(ColumnOp):
    """Decrypt every envelope of a column, in place; return a :class:`ReencryptionReport`.

    The tokens are live credentials in the clear afterwards.

    Raises:
        ReencryptionError: Envelopes are left, because they cannot be read.
    """

    name = "decrypt_jwt_column"
    undone_by = "encrypt_jwt_column"


@register
class EnsureCurrentOp(ColumnOp):
    """Raise while a row of the column is stale or plaintext, so that later revisions wait for it; reads only.

    Its one option is ``schemas``.

    Raises:
        ReencryptionError: Rows are stale or plaintext; the message says how many.
    """

    name = undone_by = "ensure_jwt_column_current"
