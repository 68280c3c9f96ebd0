"""Envelope header fields as SQL expressions, in either storage form on every database. They need no key.

A constant is written into a statement rather than given as a parameter: a database uses an index on an
expression for statements with the very same expression, and a parameter is another one.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal

from ..format import envelope
from .expiry import BINARY_EXPIRY, TEXT_EXPIRY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.types import TypeEngine

    from .types import EncryptedJWT

#: Compiler keyword: render a generated column's definition, not its name.
DEFINITION: Final = "jwt_column_definition"

# The longest name that MySQL and MariaDB take, in characters.
_LONGEST_NAME: Final = 64
# The layouts that have an expiry.
_WITH_EXPIRY: Final = tuple(bytes([layout]) for layout in sorted(envelope.HEADER_LENGTHS) if layout & 1)


class _Constant(ColumnElement[Any]):
    """Bytes or characters that are the same in every statement."""

    _traverse_internals = [("text", InternalTraversal.dp_string), ("type", InternalTraversal.dp_type)]  # noqa: RUF012

    def __init__(self, value: bytes | str) -> None:
        self.type = sa.LargeBinary() if isinstance(value, bytes) else sa.String()
        # Hex digits, or characters of our own that need no quoting.
        self.text = value.hex() if isinstance(value, bytes) else value


@compiles(_Constant)
def _compile_constant(element: _Constant, compiler: SQLCompiler, **_: Any) -> str:
    if not isinstance(element.type, sa.LargeBinary):
        return f"'{element.text}'"
    # An E-string is the same where standard_conforming_strings is off.
    return f"E'\\\\x{element.text}'::bytea" if compiler.dialect.name == "postgresql" else f"X'{element.text}'"


class HeaderPart(FunctionElement[Any]):
    """A function by which the database reads a part of the stored value, its first argument."""

    inherit_cache: bool = True
    #: The layout byte, in hex, of the envelopes to which an index on it is limited; empty for all envelopes.
    layout: str = ""
    #: The types of its value in the binary and in the text form.
    types: tuple[TypeEngine[Any], TypeEngine[Any]] = (sa.LargeBinary(), sa.String())
    _traverse_internals = [  # noqa: RUF012
        *FunctionElement._traverse_internals,  # noqa: SLF001 - SQLAlchemy's own name, by which it copies and caches
        ("is_text", InternalTraversal.dp_boolean),
        ("layout", InternalTraversal.dp_string),
    ]

    def __init__(self, *arguments: Any, is_text: bool) -> None:
        super().__init__(*arguments)
        self.is_text = is_text
        self.type: TypeEngine[Any] = self.types[is_text]

    @abstractmethod
    def to_sql(self, compiler: SQLCompiler, **kw: Any) -> str:
        """Return the function as SQL, for a database that has no generated column in its place."""

    @property
    def kind(self) -> str:
        """The purpose of an index on it: ``"fingerprint"``, ``"expiry"`` or ``"stale"``."""
        if isinstance(self, _Expiry):
            return "expiry"
        return "stale" if str(_arguments(self)[1]) == "1" else "fingerprint"

    @property
    def length(self) -> int:
        """Bytes or characters that it has at most."""
        return int(str(_arguments(self)[2]))

    def identity(self) -> tuple[str, ...]:
        """Return the identity of a part among those of a table: layout, column, kind, position and length."""
        stored, *position = _arguments(self)
        return (self.layout, stored.name, self.name, *map(str, position))

    def rows(self) -> ColumnElement[bool] | None:
        """Return the condition of the envelopes to which an index on it is limited; None for all."""
        if not self.layout:
            return None
        stored = _Stored(_arguments(self)[0], is_text=self.is_text)
        return stored.has_layout(bytes.fromhex(self.layout))

    def indexed(self) -> ColumnElement[Any]:
        """Return the value of a generated column for an index on it: NULL outside those envelopes."""
        rows = self.rows()
        return self if rows is None else sa.case((rows, self))


def _arguments(element: FunctionElement[Any]) -> Any:
    """Return the arguments, as an alias has made them.

    SQLAlchemy (2.0 and 2.1) remembers ``element.clauses`` across the annotated copies that the ORM makes of an element.
    """
    arguments: Any = element.clause_expr.element
    return arguments.clauses


class _Substring(HeaderPart):
    """A part of a stored value, from a position that is counted from 1, with a length."""

    inherit_cache = True
    name = "substr"

    def to_sql(self, compiler: SQLCompiler, **kw: Any) -> str:
        """Return a call of ``substr()``."""
        part = f"substr{compiler.process(self.clause_expr, **kw)}"
        # SQLite keeps a text in a BLOB column as text, which never equals a BLOB.
        type_ = "TEXT" if self.is_text else "BLOB"
        return f"CAST({part} AS {type_})" if compiler.dialect.name == "sqlite" else part


class _Claim(HeaderPart):
    """The fingerprint of a claim, from a position with a length; NULL where the token does not have the claim."""

    inherit_cache = True
    name = "claim"

    def to_sql(self, compiler: SQLCompiler, **kw: Any) -> str:
        """Return the part of the value, or NULL in place of the value that stands for none."""
        part = _Substring(*_arguments(self), is_text=self.is_text)
        missing = _Constant(envelope.NO_FINGERPRINT.hex() if self.is_text else envelope.NO_FINGERPRINT)
        return f"nullif({compiler.process(part, **kw)}, {compiler.process(missing, **kw)})"


class _Expiry(HeaderPart):
    """The expiry, or NULL where the value is no envelope that has one."""

    inherit_cache = True
    name = "expires_at"
    types = (BINARY_EXPIRY, TEXT_EXPIRY)

    @property
    def length(self) -> int:
        """The bytes of an expiry, or its hex digits."""
        return 2 * len(envelope.NO_EXPIRY) if self.is_text else len(envelope.NO_EXPIRY)

    def to_sql(self, compiler: SQLCompiler, **kw: Any) -> str:
        """Return a CASE for the values that begin like envelopes with an expiry."""
        stored = _Stored(_arguments(self)[0], is_text=self.is_text)
        expiry = stored.field(envelope.EXPIRY_FIELD)
        # Of a value with another layout, the bytes at this place are part of something else: any time could stand
        # there.
        has_expiry = sa.and_(
            stored.field(envelope.LAYOUT_FIELD).in_([stored.constant(layout) for layout in _WITH_EXPIRY]),
            stored.field(envelope.VERSION_FIELD) == stored.constant(envelope.VERSION),
            expiry != stored.constant(envelope.NO_EXPIRY),
        )
        # In brackets, which PostgreSQL wants around it in an index.
        return f"({compiler.process(sa.case((has_expiry, expiry)), **kw)})"


@compiles(HeaderPart)
def _compile_part(element: HeaderPart, compiler: SQLCompiler, **kw: Any) -> str:
    return places_of(element, compiler, **kw)[0]


def places_of(element: HeaderPart, compiler: SQLCompiler, **kw: Any) -> list[str]:
    """Return the SQL of a part: of MySQL and MariaDB, the generated columns that hold it, if the table has any.

    They all have the same value, each for another index. A condition that names them all lets the database choose.
    """
    source: Any = _arguments(element)[0]
    selectable = table = getattr(source, "table", None)
    while isinstance(table, sa.Alias):
        table = table.element
    generates = compiler.dialect.name in ("mysql", "mariadb") and not kw.get(DEFINITION)
    if not generates or not isinstance(table, sa.Table):
        return [element.to_sql(compiler, **kw)]
    holders: dict[tuple[str, ...], list[str]] = {}
    for index in sorted(table.indexes, key=lambda index: (len(index.expressions), str(index.name))):
        for part, name in zip(indexed_parts(index), generated_columns(str(index.name)), strict=False):
            holders.setdefault(part.identity(), []).append(name)
    _, *place = identity = element.identity()
    # In a look-up, the condition on the layout stands beside the part: an index of all envelopes serves as well.
    names = holders.get(identity) or holders.get(("", *place), [])
    generated: list[Any] = [sa.column(name, element.type) for name in names]
    for one in generated:
        one.table = selectable
    return [compiler.process(one, **kw) for one in generated] or [element.to_sql(compiler, **kw)]


def generated_columns(index: str) -> list[str]:
    """Return the names of generated columns, for databases without indexes on expressions.

    An index has as many of them, from the first on, as it has parts of an envelope.
    """
    endings = ["_value", *(f"_value_{number}" for number in range(2, envelope.MAX_FINGERPRINTS + 1))]
    return [index[: _LONGEST_NAME - len(ending)] + ending for ending in endings]


class _Hex(FunctionElement[str]):
    """Lower-case hex digits of a binary expression."""

    type = sa.String()
    inherit_cache = True
    name = "hex"


@compiles(_Hex)
def _compile_hex(element: _Hex, compiler: SQLCompiler, **kw: Any) -> str:
    (argument,) = _arguments(element)
    field = compiler.process(argument, **kw)
    return f"encode({field}, 'hex')" if compiler.dialect.name == "postgresql" else f"lower(hex({field}))"


class _ByteLength(FunctionElement[int]):
    """The length of a stored value in bytes, which PostgreSQL knows without reading it."""

    type = sa.Integer()
    inherit_cache = True
    name = "octet_length"


@compiles(_ByteLength)
def _compile_byte_length(element: _ByteLength, compiler: SQLCompiler, **kw: Any) -> str:
    (argument,) = _arguments(element)
    stored = compiler.process(argument, **kw)
    return (
        f"length(CAST({stored} AS BLOB))" if compiler.dialect.name == "sqlite" else f"octet_length({stored})"
    )


def has_value(stored: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition of a value that is neither NULL nor empty; an empty value stands for no token."""
    return sa.and_(stored.is_not(None), _ByteLength(stored) > sa.literal_column("0"))


def indexed_parts(index: sa.Index) -> list[HeaderPart]:
    """Return the parts of an envelope in an index of :mod:`.indexes`, or in a copy that ``to_metadata`` made of it.

    The list is empty for any other index.
    """
    parts = [part for part in index.expressions if isinstance(part, HeaderPart)]
    others = [part for part in index.expressions if not isinstance(part, HeaderPart)]
    is_ours = len(index.expressions) == 1 or all(part.kind == "fingerprint" for part in parts)
    return parts if is_ours and all(isinstance(one, sa.Column) for one in others) else []


def is_header_sql(element: object) -> bool:
    """Return True for a function of this module: it reads the header, which is in the clear."""
    return isinstance(element, HeaderPart | _Hex | _ByteLength)


class _Stored:
    """Parts of stored values, or of an expression that holds their first bytes, in either storage form."""

    def __init__(self, value: Any, *, is_text: bool) -> None:
        # Not type_coerce(column), which SQLAlchemy does not follow into every alias either; see _arguments.
        self._stored: ColumnElement[Any] = value
        self._text = is_text

    def form(self, value: bytes, *, prefix: bool = False) -> bytes | str:
        """Return header bytes in the storage form; with *prefix* and in the text form, with ``jc`` before them."""
        return (envelope.TEXT_PREFIX if prefix else "") + value.hex() if self._text else value

    def constant(self, value: bytes, *, prefix: bool = False) -> ColumnElement[Any]:
        """Return :meth:`form` for bytes that are the same in every statement."""
        return _Constant(self.form(value, prefix=prefix))

    def part(self, start: int, length: int) -> HeaderPart:
        """Return bytes or characters, counted from 1."""
        return _Substring(
            self._stored, sa.literal_column(str(start)), sa.literal_column(str(length)), is_text=self._text
        )

    def field(self, field: envelope.Field, *, from_start: bool = False) -> HeaderPart:
        """Return a header field: bytes, or lower-case hex digits, *from_start* with the ``jc`` of the text form."""
        if not self._text:
            return self.part(field.offset + 1, field.length)
        skipped = 0 if from_start else len(envelope.TEXT_PREFIX)
        length = 2 * field.length + len(envelope.TEXT_PREFIX) - skipped
        return self.part(2 * field.offset + skipped + 1, length)

    def has_version(self) -> ColumnElement[bool]:
        """Return the condition of values that begin like an envelope of this version."""
        version = self.constant(envelope.VERSION, prefix=True)
        return self.field(envelope.VERSION_FIELD, from_start=True) == version

    def has_layout(self, layout: bytes) -> ColumnElement[bool]:
        """Return the condition of values that begin like an envelope of this version and layout, under any key."""
        return sa.and_(
            self.has_version(),
            self.field(envelope.LAYOUT_FIELD) == self.constant(layout),
        )

    def has_layout_among(self, layouts: Sequence[bytes]) -> ColumnElement[bool]:
        """Return the condition of values that begin like an envelope of this version and one of these layouts."""
        layout, constants = self.field(envelope.LAYOUT_FIELD), [self.constant(one) for one in layouts]
        # A list of many costs as much as the other conditions of a run together. No range in the text form, whose order
        # depends on the collation.
        is_range = not self._text and layouts[-1][0] - layouts[0][0] == len(layouts) - 1
        return sa.and_(
            self.has_version(),
            layout.between(constants[0], constants[-1]) if is_range else layout.in_(constants),
        )


class HeaderSQL(_Stored):
    """Expressions over the stored form of one encrypted column, or an expression that holds its first bytes."""

    def __init__(self, column: Any, type_: EncryptedJWT) -> None:
        super().__init__(column, is_text=type_.storage == "text")
        self._allow_opaque = type_.allow_opaque and type_.plaintext_begins == "e"
        self._begins = type_.plaintext_begins

    def parameter(self, value: bytes, *, prefix: bool = False) -> ColumnElement[Any]:
        """Return :meth:`form` as a parameter."""
        return sa.literal(self.form(value, prefix=prefix), sa.String() if self._text else sa.LargeBinary())

    def stamp(self) -> HeaderPart:
        """Return the stamp, with ``jc`` before it in the text form."""
        return self.field(envelope.STAMP_FIELD, from_start=True)

    def key_id(self) -> ColumnElement[str]:
        """Return the key id, 8 lower-case hex digits; meaningless where :meth:`is_envelope` does not hold."""
        field = self.field(envelope.KEY_ID_FIELD)
        return field if self._text else _Hex(field)

    def nonce(self) -> ColumnElement[Any]:
        """Return the nonce as stored, 24 bytes or their 32 characters; meaningless where the value is no envelope."""
        layout = self.field(envelope.LAYOUT_FIELD)
        places = (
            (layout == self.constant(bytes([byte])), self._after_header(length))
            for byte, length in envelope.HEADER_LENGTHS.items()
        )
        return sa.case(*places)

    def _after_header(self, length: int) -> ColumnElement[Any]:
        if self._text:
            # Behind the dot; 24 bytes are 32 characters of base64url exactly.
            return self.part(len(envelope.TEXT_PREFIX) + 2 * length + 2, 32)
        return self.part(length + 1, 24)

    def claim_fingerprint(self, field: envelope.Field) -> HeaderPart:
        """Return the fingerprint of a claim; NULL where the token does not have the claim."""
        return _Claim(*_arguments(self.field(field)), is_text=self._text)

    def expires_at(self) -> HeaderPart:
        """Return the expiry as stored, in the order of time; NULL where there is none."""
        return _Expiry(self._stored, is_text=self._text)

    def expiry_digits(self) -> ColumnElement[str]:
        """Return the expiry as 12 lower-case hex digits; meaningless where :meth:`expires_at` is NULL."""
        expiry = self.expires_at()
        return expiry if self._text else _Hex(expiry)

    def has_stamp(self, *stamps: bytes) -> ColumnElement[bool]:
        """Return the condition of values that begin with this stamp, or one of these."""
        literals = [self.parameter(stamp, prefix=True) for stamp in stamps]
        return self.stamp() == literals[0] if len(literals) == 1 else self.stamp().in_(literals)

    def has_other_stamp(self, *stamps: bytes) -> ColumnElement[bool]:
        """Return the condition of values that begin otherwise, as ranges: only MariaDB uses an index for ``<>``."""
        bounds = [self.parameter(stamp, prefix=True) for stamp in sorted(stamps)]
        between = (
            sa.and_(self.stamp() > low, self.stamp() < high) for low, high in itertools.pairwise(bounds)
        )
        return sa.or_(self.stamp() < bounds[0], *between, self.stamp() > bounds[-1])

    def is_under(self, *key_ids: str) -> ColumnElement[bool]:
        """Return the condition of envelopes under one of these keys."""
        return sa.and_(self.is_envelope(), self.key_id().in_(key_ids))

    def has_value(self) -> ColumnElement[bool]:
        """Return the condition of a value that is neither NULL nor empty; an empty value stands for no token."""
        return has_value(self._stored)

    def is_envelope(self) -> ColumnElement[bool]:
        """Return the condition of values that begin like an envelope of this version, with a whole stamp."""
        stamp = envelope.STAMP_FIELD.length
        length = 2 * stamp + len(envelope.TEXT_PREFIX) if self._text else stamp

        return sa.and_(
            self.has_version(),
            sa.func.length(self.stamp()) == sa.literal_column(str(length)),
        )

    def is_plaintext(self) -> ColumnElement[bool]:
        """Return the condition of values that can be a token in the clear.

        A compact JWT begins with ``e``, a JSON object with ``{``; where the column takes opaque tokens, any text can
        be one that is no envelope.
        """
        first = self.part(1, 1)
        if not self._allow_opaque:
            return first == _Constant(self._begins if self._text else self._begins.encode())
        if self._text:
            # By its length: MariaDB pads texts to compare them, and takes a space for nothing.
            return sa.and_(_ByteLength(first) > sa.literal_column("0"), sa.not_(self.is_envelope()))
        # No order of characters is asked for in the text form, because that depends on the collation.
        return first >= _Constant(b" ")
