"""``EncryptedJWT``: a SQLAlchemy column type whose values are JSON Web Tokens, encrypted at rest.

    >>> from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
    >>> from jwt_column import JWT, EncryptedJWT
    >>> class Base(DeclarativeBase): ...
    >>> class Session(Base):
    ...     __tablename__ = "sessions"
    ...     id: Mapped[int] = mapped_column(primary_key=True)
    ...     token: Mapped[JWT] = mapped_column(EncryptedJWT())

The type encrypts when a parameter is bound and decrypts when a row is loaded, in Core and ORM alike, sync and
async. It asks no key server while it does so: keys are unwrapped when their ring is loaded.
"""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from inspect import Parameter, Signature
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Column, LargeBinary, Text, event
from sqlalchemy.types import TypeDecorator

from ..errors import (
    ConfigurationError,
    DecryptionError,
    InvalidTokenError,
    JWTColumnError,
    KeyRingError,
    PlaintextFoundError,
)
from ..format import envelope
from ..format.shape import UNPRINTABLE, Kind
from ..format.token import JWT, given_expiry, unchecked_jwt
from ..frames import hides_locals
from ..keys.default import resolve_keyring
from ..keys.ring import KeyRing
from .cipher import TokenCipher
from .comparator import EncryptedComparator
from .sealed import SealedJWT
from .spec import ColumnSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Unpack

    from sqlalchemy import Dialect, Table
    from sqlalchemy.types import TypeEngine

    from .spec import ColumnKeywords

# Bytes that a BLOB or TEXT column of MySQL and MariaDB holds. Outside strict mode the server would cut the rest
# off.
_MYSQL: Final = ("mysql", "mariadb")
_MYSQL_MAX_BYTES: Final = 65_535

# Their drivers take bytes as they are; the objects that SQLAlchemy makes of these cost a fifth of the encryption.
_TAKES_BYTES: Final = ("sqlite", "postgresql")

_OPTIONS: Final = frozenset(field.name for field in fields(ColumnSpec))


class EncryptedJWT(TypeDecorator[JWT]):
    """A column of JSON Web Tokens, each encrypted with XAES-256-GCM and authenticated with its column.

    Takes ``str``, gives :class:`JWT`; NULL stays NULL. In the database the column is BLOB/BYTEA or TEXT, so a
    migration names it ``sa.LargeBinary()`` or ``sa.Text()``.

    .. warning::
        The database cannot encrypt. A statement that would store the result of a SQL expression, or copy envelopes into
        another context, where they do not open, is refused before it is sent; see :mod:`jwt_column.column.statements`.
        The rows of a UNION are read in the context of its first column. Give the columns one ``context`` to copy
        between them.

    Args:
        keyring: A :class:`KeyRing`, the URI of one, or None for the default ring, looked up at first use.
        **options: The fields of :class:`~jwt_column.column.spec.ColumnSpec`, which describes them: ``storage``,
            ``context``, ``fingerprints``, ``expose_expiry``, ``plaintext``, ``undecryptable``, ``allow_opaque``,
            ``allow_unsigned``, ``max_length`` and ``bound_to``. Each is an attribute of the type too.

    Raises:
        ConfigurationError: A parameter has a value that it cannot have.
    """

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = LargeBinary
    cache_ok: bool = True
    comparator_factory = EncryptedComparator

    #: The character that plaintext begins with.
    plaintext_begins = "e"
    #: The remedy for a stored value that is neither an envelope nor what the column takes.
    unreadable_hint = "a token that is no JWT needs allow_opaque=True on the column"
    #: The options of the column.
    spec: ColumnSpec = ColumnSpec()

    @hides_locals
    def __init__(self, keyring: KeyRing | str | None = None, **options: Unpack[ColumnKeywords]) -> None:
        super().__init__()
        if not isinstance(keyring, KeyRing | str | None):
            raise ConfigurationError(
                f"keyring is a KeyRing, a URI or None, not {type(keyring).__name__}: put a key into a ring"
            )
        for name in options.keys() - _OPTIONS:
            similar = "".join(f"; did you mean {one}?" for one in get_close_matches(name, _OPTIONS, n=1))
            raise TypeError(f"{type(self).__name__} has no option {name}{similar}")
        self.keyring = keyring
        self.spec = ColumnSpec(**options)
        #: Whether the context follows the column's name, because none was given.
        self.context_is_default: bool = self.spec.context is None
        if self.spec.storage == "text":
            self.impl = self.impl_instance = Text()

    @property
    def _static_cache_key(self) -> tuple[Any, ...]:
        # SQLAlchemy collects positional parameters only, and without the others two types that encrypt
        # differently would share a compiled statement: the second value would be sealed for the first column.
        return (type(self), self.keyring, self.spec)

    @property
    def python_type(self) -> type[Any]:
        """The Python type of a loaded value."""
        return JWT

    def __repr__(self) -> str:
        # Never the key ring: its URI may hold the password of a key server.
        shown = (f"{name}={value!r}" for name, value in self.spec.options().items())
        return f"{type(self).__name__}({', '.join(shown)})"

    def cipher(self) -> TokenCipher:
        """Return the cipher of this column's tokens.

        Raises:
            ConfigurationError: The type belongs to no column of a table and no ``context`` was given.
        """
        return TokenCipher(self.spec)

    def ring(self) -> KeyRing:
        """Return the column's key ring, loading it if need be."""
        return resolve_keyring(self.keyring)

    def compare_values(self, x: Any, y: Any) -> bool:
        """Return True if an assigned value is that of the row: the same token and, if it is exposed, expiry."""
        expiry = given_expiry(x) if self.expose_expiry else None
        return bool(x == y) and (expiry is None or expiry == given_expiry(y))

    def _set_parent(self, parent: Any, outer: bool = False, **kw: Any) -> None:
        super()._set_parent(parent, outer=outer, **kw)
        if isinstance(parent, Column) and self.context_is_default:
            event.listen(parent, "after_parent_attach", _give_context)

    def in_context(self, context: str) -> EncryptedJWT:
        """Return this type for another column; its context stays a default: a renamed copy gets its own."""
        copied = self.copy()
        copied.spec = self.spec.in_context(context)
        return copied

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        """Return the function that encrypts a parameter. Overridden whole, because it runs for every row."""
        to_driver = None if dialect.name in _TAKES_BYTES else self.impl_instance.bind_processor(dialect)
        store = self._store_function(dialect)

        def process(value: Any) -> Any:
            if value is None:
                return None
            try:
                stored = store(value)
            except JWTColumnError as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - SQLAlchemy would print the row's plaintext parameters
                failure = JWTColumnError(
                    f"{self.context}: the token could not be encrypted ({type(error).__name__})",
                    context=self.context,
                )
            else:
                return stored if to_driver is None else to_driver(stored)
            # Frames of the layers below hold the token in their local variables, which error reporters show.
            value = None
            raise failure.with_traceback(None) from None

        return process

    def _store_function(self, dialect: Dialect) -> Callable[[Any], bytes | str]:
        """Return the function that turns a token into its stored form."""
        cipher = self.cipher()
        encrypt = cipher.encrypt
        keyring = self.keyring
        given = keyring if isinstance(keyring, KeyRing) else None
        bound_to = self.spec.bound_to

        def store(value: Any) -> bytes | str:
            if type(value) is SealedJWT:
                return value.stored_as(cipher.storage, cipher.context)
            return encrypt(value, given or resolve_keyring(keyring))

        def store_bound(value: Any) -> bytes | str:
            # A BoundJWT or a TokenDict of the unit of work.
            take = getattr(value, "take_binding", None)
            binding = None if take is None else take()
            if binding is None:
                raise ConfigurationError(
                    f"{cipher.context} is bound to {', '.join(bound_to)} of its row, which a Core or bulk "
                    "statement does not name; write it through the ORM, by session.add() or an assignment",
                    context=cipher.context,
                )
            return encrypt(value, given or resolve_keyring(keyring), binding)

        def store_plaintext(value: Any) -> bytes | str:
            if type(value) is SealedJWT:
                return value.stored_as(cipher.storage, cipher.context)
            token = str(cipher.check(value))
            return token if cipher.storage == "text" else token.encode()

        if self.plaintext == "write":
            chosen = store_plaintext
        else:
            chosen = store_bound if bound_to else store
        return _limited(chosen, cipher.context, dialect.name) if dialect.name in _MYSQL else chosen

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:  # noqa: ARG002
        """Return the function that decrypts a stored value."""
        cipher = self.cipher()
        decrypt = cipher.load
        keyring = self.keyring
        given = keyring if isinstance(keyring, KeyRing) else None

        def process(value: Any) -> Any:
            if value is None:
                return None
            if type(value) is not bytes and type(value) is not str:
                value = _bytes_or_text(value)
            if not value:
                # A column that is NOT NULL DEFAULT '' has this for "no token".
                return None
            try:
                return decrypt(value, given or resolve_keyring(keyring))
            except (DecryptionError, KeyRingError) as error:
                failure = error
            loaded = self._load_otherwise(value, failure, cipher)
            if isinstance(loaded, JWTColumnError):
                value = None  # It may be a token, and error reporters show local variables.
                raise loaded.with_traceback(None) from None
            return loaded

        return self._keep_closed(process, cipher) if self.bound_to else process

    def _keep_closed(self, process: Callable[[Any], Any], cipher: TokenCipher) -> Callable[[Any], Any]:
        """Leave envelopes closed, for the ORM to open them when it knows their row."""
        names = ", ".join(f"{name}=..." for name in self.bound_to)
        reason = ConfigurationError(
            f"{cipher.context} is bound to its row, which a bare value does not name: reveal({names})",
            context=cipher.context,
        )

        def process_bound(value: Any) -> Any:
            if value is not None and type(value) is not bytes and type(value) is not str:
                value = _bytes_or_text(value)
            if value is None or not envelope.looks_like_envelope(value):
                return process(value)
            return SealedJWT(value, cipher, self.ring, reason, bound_to=self.bound_to, binding=None)

        return process_bound

    def _load_otherwise(
        self, value: bytes | str, failure: JWTColumnError, cipher: TokenCipher
    ) -> JWT | SealedJWT | JWTColumnError:
        """Return the replacement of a value that does not decrypt, or the error to raise."""
        token = None if envelope.looks_like_envelope(value) else self._read_plaintext(value, cipher)
        if token is not None and self.plaintext != "refuse":
            return cipher.value_of(token)  # type: ignore[no-any-return]
        if token is not None:
            failure = PlaintextFoundError(
                f"{cipher.context}: a readable token ({len(token)} characters) where an envelope is "
                "required; encrypt the column with op.encrypt_jwt_column, or read it with plaintext='read'",
                context=cipher.context,
            )
        elif not self.allow_opaque and getattr(failure, "reason", "") == "not an envelope":
            failure.args = (f"{failure}; {self.unreadable_hint}",)
        return failure if self.undecryptable == "raise" else SealedJWT(value, cipher, self.ring, failure)

    @staticmethod
    def _read_plaintext(value: bytes | str, cipher: TokenCipher) -> JWT | None:
        """Return a stored value as the token that it is in the clear, or None."""
        try:
            text = value if isinstance(value, str) else value.decode()
            return cipher.check(text)
        except UnicodeDecodeError:
            return None
        except InvalidTokenError as error:
            # Rows of an earlier release load; only a new value is refused.
            return unchecked_jwt(text, Kind.OPAQUE) if error.reason == UNPRINTABLE else None

    @hides_locals
    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Return the stored form of one token; :meth:`bind_processor` is the same for many."""
        return self.bind_processor(dialect)(value)

    @hides_locals
    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Return the token of one stored value; :meth:`result_processor` is the same for many."""
        return self.result_processor(dialect, None)(value)

    def literal_processor(self, dialect: Dialect) -> Callable[[Any], str]:
        """Return the function that renders a value into SQL text: as ciphertext, never as plaintext.

        A value that cannot be rendered so becomes a comment, which no database parses as a value: SQLAlchemy would
        turn an exception into one that prints the value.
        """
        store = self._store_function(dialect)

        def process(value: Any) -> str:
            if self.plaintext == "write":
                return self._refused_literal("plaintext")
            try:
                stored = store(value)
            except Exception as error:  # noqa: BLE001 - see above
                return self._refused_literal(getattr(error, "reason", "") or type(error).__name__)
            if isinstance(stored, str):
                return f"'{stored}'"
            if dialect.name == "postgresql":
                return f"decode('{stored.hex()}', 'hex')"
            return f"X'{stored.hex()}'"

        return process

    def _refused_literal(self, reason: str) -> str:
        return f"/* jwt-column: the value for {self.context} was refused ({reason}) */"

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:  # noqa: ARG002
        """Give the other side of an expression this type."""
        return self


def is_encrypted(type_: Any) -> bool:
    """Return True for an encrypted type, and for a ``TypeDecorator`` around one, which shows its options too."""
    while isinstance(type_, TypeDecorator) and not isinstance(type_, EncryptedJWT):
        type_ = type_.impl_instance
    return isinstance(type_, EncryptedJWT)


# The type shows its options as attributes, and each keyword with its default.
for _option in fields(ColumnSpec):
    setattr(EncryptedJWT, _option.name, property(attrgetter(f"spec.{_option.name}")))
EncryptedJWT.__signature__ = Signature(  # type: ignore[attr-defined]
    [
        Parameter("keyring", Parameter.POSITIONAL_OR_KEYWORD, default=None),
        *(
            Parameter(option.name, Parameter.KEYWORD_ONLY, default=option.default)
            for option in fields(ColumnSpec)
        ),
    ]
)


def _bytes_or_text(value: Any) -> bytes | str:
    """Return a value of another type as bytes or text: a driver's buffer, or a number in an SQLite column."""
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else str(value)


def _limited(
    store: Callable[[Any], bytes | str], context: str, database: str
) -> Callable[[Any], bytes | str]:
    """Refuse a value that a column of MySQL or MariaDB does not hold."""

    def store_limited(value: Any) -> bytes | str:
        stored = store(value)
        size = len(stored if isinstance(stored, bytes) else stored.encode())
        if size > _MYSQL_MAX_BYTES:
            raise InvalidTokenError(
                f"{context} does not take this value: it would need {size} bytes, and a BLOB or TEXT column "
                f"of {database} holds {_MYSQL_MAX_BYTES}",
                reason="too long",
                context=context,
            )
        return stored

    return store_limited


def _give_context(column: Column[Any], table: Table) -> None:
    """Give a column a type of its own, in its own context; one type instance may serve several columns."""
    type_ = column.type
    if isinstance(type_, EncryptedJWT) and type_.context_is_default:
        column.type = type_.in_context(f"{table.name}.{column.name}")
