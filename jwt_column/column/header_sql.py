"""Envelope header fields as SQL expressions, in either storage form on every database. They need no key.

A constant is written into a statement rather than given as a parameter: a database uses an index on an
expression for statements with the very same expression, and a parameter is another one.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import (
    Alias,
    Integer,
    LargeBinary,
    String,
    Table,
    and_,
    case,
    column,
    func,
    literal,
    literal_column,
    not_,
    or_,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal

from ..format.envelope import (
    HEADER_LENGTHS,
    KEY_ID_FIELD,
    LAYOUT_FIELD,
    NO_EXPIRY,
    NO_FINGERPRINT,
    STAMP_FIELD,
    TEXT_PREFIX,
    VERSION,
    VERSION_FIELD,
    Field,
)
from .expiry import BINARY_EXPIRY, TEXT_EXPIRY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Index
    from sqlalchemy.sql.compiler import SQLCompiler

    from ..format.envelope import Storage

__all__ = [
    "DEFINITION",
    "HeaderPart",
    "HeaderSQL",
    "HeaderType",
    "generated_column",
    "has_value",
    "indexed_part",
    "is_header_sql",
]

#: Compiler keyword: render a generated column's definition, not its name.
DEFINITION: Final = "jwt_column_definition"

_EXPIRY_FIELD: Final = Field(STAMP_FIELD.length, len(NO_EXPIRY))
# MySQL and MariaDB take names of 64 characters, with the ending that is added.
_LONGEST_NAME: Final = 58
# The layouts that have an expiry.
_WITH_EXPIRY: Final = tuple(bytes([layout]) for layout in sorted(HEADER_LENGTHS) if layout & 1)


class HeaderType(Protocol):
    """The options of a type that an expression needs."""

    storage: Storage
    allow_opaque: bool
    plaintext_begins: str


class _Constant(ColumnElement[Any]):
    """Bytes or characters that are the same in every statement."""

    _traverse_internals = [("text", InternalTraversal.dp_string), ("type", InternalTraversal.dp_type)]  # noqa: RUF012

    def __init__(self, value: bytes | str) -> None:
        self.type = LargeBinary() if isinstance(value, bytes) else String()
        # Hex digits, or characters of our own that need no quoting.
        self.text = value.hex() if isinstance(value, bytes) else value


@compiles(_Constant)
def _compile_constant(element: _Constant, _compiler: SQLCompiler, **_: Any) -> str:
    return f"X'{element.text}'" if isinstance(element.type, LargeBinary) else f"'{element.text}'"


@compiles(_Constant, "postgresql")
def _compile_constant_postgresql(element: _Constant, _compiler: SQLCompiler, **_: Any) -> str:
    return f"'\\x{element.text}'::bytea" if isinstance(element.type, LargeBinary) else f"'{element.text}'"


class HeaderPart(FunctionElement[Any]):
    """A function by which the database reads a part of the stored value, its first argument."""

    inherit_cache: bool = True

    #: Whether it is of the text form.
    is_text = False
    #: The layout byte, in hex, of the envelopes to which an index on it is limited; empty for all envelopes.
    layout: str = ""
    _traverse_internals = [  # noqa: RUF012
        *FunctionElement._traverse_internals,  # noqa: SLF001 - SQLAlchemy's own name, by which it copies and caches
        ("layout", InternalTraversal.dp_string),
    ]

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
        return _has_layout(_arguments(self)[0], bytes.fromhex(self.layout), is_text=self.is_text)

    def indexed(self) -> ColumnElement[Any]:
        """Return the value of a generated column for an index on it: NULL outside those envelopes."""
        rows = self.rows()
        return self if rows is None else case((rows, self))


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


class _Bytes(_Substring):
    """A part of the binary form."""

    type = LargeBinary()
    inherit_cache = True


class _Characters(_Substring):
    """A part of the text form."""

    type = String()
    is_text = True
    inherit_cache = True


class _Claim(HeaderPart):
    """The fingerprint of a claim, from a position with a length; NULL where the token does not have the claim."""

    inherit_cache = True
    name = "claim"


class _BinaryClaim(_Claim):
    """Sixteen bytes of the binary form."""

    type = LargeBinary()
    inherit_cache = True


class _TextClaim(_Claim):
    """Thirty-two hex digits of the text form."""

    type = String()
    is_text = True
    inherit_cache = True


class _Expiry(HeaderPart):
    """The expiry, or NULL where the value is no envelope that has one."""

    inherit_cache = True
    name = "expires_at"


class _BinaryExpiry(_Expiry):
    """The six bytes of the binary form."""

    type = BINARY_EXPIRY
    length = len(NO_EXPIRY)
    inherit_cache = True


class _TextExpiry(_Expiry):
    """The twelve hex digits of the text form."""

    type = TEXT_EXPIRY
    is_text = True
    length = 2 * len(NO_EXPIRY)
    inherit_cache = True


@compiles(_Substring)
def _compile_substring(element: _Substring, compiler: SQLCompiler, **kw: Any) -> str:
    return f"substr{compiler.process(element.clause_expr, **kw)}"


@compiles(_Substring, "sqlite")
def _compile_substring_sqlite(element: _Substring, compiler: SQLCompiler, **kw: Any) -> str:
    # SQLite keeps a text in a BLOB column as text, which never equals a BLOB.
    type_ = "BLOB" if isinstance(element, _Bytes) else "TEXT"
    return f"CAST({_compile_substring(element, compiler, **kw)} AS {type_})"


@compiles(_Substring, "mysql", "mariadb")
def _compile_substring_mysql(element: _Substring, compiler: SQLCompiler, **kw: Any) -> str:
    return _compile_generated(element, compiler, **kw) or _compile_substring(element, compiler, **kw)


@compiles(_Claim)
def _compile_claim(element: _Claim, compiler: SQLCompiler, **kw: Any) -> str:
    is_text = element.is_text
    part = (_Characters if is_text else _Bytes)(*_arguments(element))
    missing = _Constant(NO_FINGERPRINT.hex() if is_text else NO_FINGERPRINT)
    return f"nullif({compiler.process(part, **kw)}, {compiler.process(missing, **kw)})"


@compiles(_Claim, "mysql", "mariadb")
def _compile_claim_mysql(element: _Claim, compiler: SQLCompiler, **kw: Any) -> str:
    return _compile_generated(element, compiler, **kw) or _compile_claim(element, compiler, **kw)


@compiles(_Expiry)
def _compile_expiry(element: _Expiry, compiler: SQLCompiler, **kw: Any) -> str:
    (stored,) = _arguments(element)
    is_text = element.is_text

    def part(field: Field) -> ColumnElement[Any]:
        return _take(stored, field, is_text=is_text)

    def constant(value: bytes) -> _Constant:
        return _Constant(value.hex() if is_text else value)

    # Of a value with another layout, the bytes at this place are part of something else: any time could stand there.
    has_expiry = and_(
        part(LAYOUT_FIELD).in_([constant(layout) for layout in _WITH_EXPIRY]),
        part(VERSION_FIELD) == constant(VERSION),
        part(_EXPIRY_FIELD) != constant(NO_EXPIRY),
    )
    # In brackets, which PostgreSQL wants around it in an index.
    return f"({compiler.process(case((has_expiry, part(_EXPIRY_FIELD))), **kw)})"


@compiles(_Expiry, "mysql", "mariadb")
def _compile_expiry_mysql(element: _Expiry, compiler: SQLCompiler, **kw: Any) -> str:
    return _compile_generated(element, compiler, **kw) or _compile_expiry(element, compiler, **kw)


def _compile_generated(element: HeaderPart, compiler: SQLCompiler, **kw: Any) -> str | None:
    """Return the name of the generated column that holds a part, or None if the table has none."""
    if kw.get(DEFINITION):
        return None
    source: Any = _arguments(element)[0]
    selectable = table = getattr(source, "table", None)
    while isinstance(table, Alias):
        table = table.element
    if not isinstance(table, Table):
        return None
    indexes = {part.identity(): index for index in table.indexes if (part := indexed_part(index)) is not None}
    _, *place = identity = element.identity()
    # In a look-up, the condition on the layout stands beside the part: an index of all envelopes serves as well.
    index = indexes.get(identity) or indexes.get(("", *place))
    if index is None:
        return None
    generated: Any = column(generated_column(str(index.name)), element.type)
    generated.table = selectable
    return compiler.process(generated, **kw)


def generated_column(index: str) -> str:
    """Return the name of the generated column of an index, for databases without indexes on expressions."""
    return f"{index[:_LONGEST_NAME]}_value"


class _Hex(FunctionElement[str]):
    """Lower-case hex digits of a binary expression."""

    type = String()
    inherit_cache = True
    name = "hex"


@compiles(_Hex)
def _compile_hex(element: _Hex, compiler: SQLCompiler, **kw: Any) -> str:
    return f"lower(hex{compiler.process(element.clause_expr, **kw)})"


@compiles(_Hex, "postgresql")
def _compile_hex_postgresql(element: _Hex, compiler: SQLCompiler, **kw: Any) -> str:
    (field,) = _arguments(element)
    return f"encode({compiler.process(field, **kw)}, 'hex')"


class _ByteLength(FunctionElement[int]):
    """The length of a stored value in bytes, which PostgreSQL knows without reading it."""

    type = Integer()
    inherit_cache = True
    name = "octet_length"


@compiles(_ByteLength)
def _compile_byte_length(element: _ByteLength, compiler: SQLCompiler, **kw: Any) -> str:
    return f"octet_length{compiler.process(element.clause_expr, **kw)}"


@compiles(_ByteLength, "sqlite")
def _compile_byte_length_sqlite(element: _ByteLength, compiler: SQLCompiler, **kw: Any) -> str:
    (stored,) = _arguments(element)
    return f"length(CAST({compiler.process(stored, **kw)} AS BLOB))"


def has_value(stored: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition of a value that is neither NULL nor empty; an empty value stands for no token."""
    return and_(stored.is_not(None), _ByteLength(stored) > literal_column("0"))


def indexed_part(index: Index) -> HeaderPart | None:
    """Return the part of an index of :mod:`.indexes`, or of a copy that ``to_metadata`` made of it; else None."""
    part, *others = index.expressions or (None,)
    return part if isinstance(part, HeaderPart) and not others else None


def is_header_sql(element: object) -> bool:
    """Return True for a function of this module: it reads the header, which is in the clear."""
    return isinstance(element, HeaderPart | _Hex | _ByteLength)


def _substring(stored: Any, start: int, length: int, *, is_text: bool) -> HeaderPart:
    """Return bytes or characters of a stored value, counted from 1."""
    kind = _Characters if is_text else _Bytes
    return kind(stored, literal_column(str(start)), literal_column(str(length)))


def _take(stored: Any, field: Field, *, is_text: bool, from_start: bool = False) -> HeaderPart:
    """Return a header field: bytes, or lower-case hex digits, on request with the ``jc`` before the first field."""
    if not is_text:
        return _substring(stored, field.offset + 1, field.length, is_text=False)
    skipped = 0 if from_start else len(TEXT_PREFIX)
    length = 2 * field.length + len(TEXT_PREFIX) - skipped
    return _substring(stored, 2 * field.offset + skipped + 1, length, is_text=True)


def _has_layout(stored: Any, layout: bytes, *, is_text: bool) -> ColumnElement[bool]:
    """Return the condition of values that begin like an envelope of this version and layout, under any key."""

    def constant(value: bytes, prefix: str = "") -> _Constant:
        return _Constant(prefix + value.hex() if is_text else value)

    return and_(
        _take(stored, VERSION_FIELD, is_text=is_text, from_start=True) == constant(VERSION, TEXT_PREFIX),
        _take(stored, LAYOUT_FIELD, is_text=is_text) == constant(layout),
    )


class HeaderSQL:
    """Expressions over the stored form of one encrypted column.

    Args:
        column: The encrypted column, or an expression that holds its first bytes.
        type_: The column's type: its storage form, and whether its plaintext may be opaque.
    """

    def __init__(self, column: Any, type_: HeaderType) -> None:
        self._text = type_.storage == "text"
        self._allow_opaque = type_.allow_opaque and type_.plaintext_begins == "e"
        self._begins = type_.plaintext_begins
        # Not type_coerce(column), which SQLAlchemy does not follow into every alias either; see _arguments.
        self._stored: ColumnElement[Any] = column

    def parameter(self, value: bytes, *, prefix: bool = False) -> ColumnElement[Any]:
        """Return header bytes as a parameter in the column's storage form."""
        if self._text:
            return literal((TEXT_PREFIX if prefix else "") + value.hex(), String())
        return literal(value, LargeBinary())

    def constant(self, value: bytes, *, prefix: bool = False) -> ColumnElement[Any]:
        """Return header bytes that are the same in every statement, in the column's storage form."""
        return _Constant((TEXT_PREFIX if prefix else "") + value.hex() if self._text else value)

    def field(self, field: Field, *, from_start: bool = False) -> HeaderPart:
        """Return a header field in the column's storage form: bytes, or lower-case hex digits.

        Args:
            field: Its place.
            from_start: Whether the ``jc`` of the text form before the field is taken too.
        """
        return _take(self._stored, field, is_text=self._text, from_start=from_start)

    def _part(self, start: int, length: int) -> ColumnElement[Any]:
        """Return bytes or characters of the stored value, counted from 1."""
        return _substring(self._stored, start, length, is_text=self._text)

    def stamp(self) -> HeaderPart:
        """Return the stamp, with ``jc`` before it in the text form."""
        return self.field(STAMP_FIELD, from_start=True)

    def key_id(self) -> ColumnElement[str]:
        """Return the key id, 8 lower-case hex digits; meaningless where :meth:`is_envelope` does not hold."""
        field = self.field(KEY_ID_FIELD)
        return field if self._text else _Hex(field)

    def nonce(self) -> ColumnElement[Any]:
        """Return the nonce as stored, 24 bytes or their 32 characters; meaningless where the value is no envelope."""
        layout = self.field(LAYOUT_FIELD)
        places = (
            (layout == self.constant(bytes([byte])), self._after_header(length))
            for byte, length in HEADER_LENGTHS.items()
        )
        return case(*places)

    def _after_header(self, length: int) -> ColumnElement[Any]:
        if self._text:
            # Behind the dot; 24 bytes are 32 characters of base64url exactly.
            return self._part(len(TEXT_PREFIX) + 2 * length + 2, 32)
        return self._part(length + 1, 24)

    def fingerprint(self, field: Field) -> HeaderPart:
        """Return the fingerprint of the whole token, which every envelope with this field has."""
        return self.field(field)

    def claim_fingerprint(self, field: Field) -> HeaderPart:
        """Return the fingerprint of a claim; NULL where the token does not have the claim."""
        part = self.field(field)
        return (_TextClaim if self._text else _BinaryClaim)(*_arguments(part))

    def expires_at(self) -> HeaderPart:
        """Return the expiry as stored, in the order of time; NULL where there is none."""
        return (_TextExpiry if self._text else _BinaryExpiry)(self._stored)

    def expiry_digits(self) -> ColumnElement[str]:
        """Return the expiry as 12 lower-case hex digits; meaningless where :meth:`expires_at` is NULL."""
        expiry = self.expires_at()
        return expiry if self._text else _Hex(expiry)

    def beginnings(self, stamps: Iterable[bytes]) -> list[bytes | str]:
        """Return stamps in the column's storage form, with ``jc`` before each in the text form."""
        return [TEXT_PREFIX + stamp.hex() if self._text else stamp for stamp in stamps]

    def has_stamp(self, *stamps: bytes) -> ColumnElement[bool]:
        """Return the condition of values that begin with this stamp, or one of these."""
        literals = [self.parameter(stamp, prefix=True) for stamp in stamps]
        return self.stamp() == literals[0] if len(literals) == 1 else self.stamp().in_(literals)

    def has_other_stamp(self, *stamps: bytes) -> ColumnElement[bool]:
        """Return the condition of values that begin otherwise, as ranges: only MariaDB uses an index for ``<>``."""
        bounds = [self.parameter(stamp, prefix=True) for stamp in sorted(stamps)]
        between = (and_(self.stamp() > low, self.stamp() < high) for low, high in itertools.pairwise(bounds))
        return or_(self.stamp() < bounds[0], *between, self.stamp() > bounds[-1])

    def is_under(self, *key_ids: str) -> ColumnElement[bool]:
        """Return the condition of envelopes under one of these keys."""
        return and_(self.is_envelope(), self.key_id().in_(key_ids))

    def has_layout(self, layout: bytes) -> ColumnElement[bool]:
        """Return the condition of values that begin like an envelope of this version and layout, under any key."""
        return _has_layout(self._stored, layout, is_text=self._text)

    def has_value(self) -> ColumnElement[bool]:
        """Return the condition of a value that is neither NULL nor empty; an empty value stands for no token."""
        return has_value(self._stored)

    def is_envelope(self) -> ColumnElement[bool]:
        """Return the condition of values that begin like an envelope of this version, with a whole stamp."""
        length = 2 * STAMP_FIELD.length + len(TEXT_PREFIX) if self._text else STAMP_FIELD.length
        return and_(
            self.field(VERSION_FIELD, from_start=True) == self.constant(VERSION, prefix=True),
            func.length(self.stamp()) == literal_column(str(length)),
        )

    def is_plaintext(self) -> ColumnElement[bool]:
        """Return the condition of values that can be a token in the clear.

        A compact JWT begins with ``e``, a JSON object with ``{``; where the column takes opaque tokens, any text can
        be one that is no envelope.
        """
        first = self._part(1, 1)
        if not self._allow_opaque:
            return first == _Constant(self._begins if self._text else self._begins.encode())
        if self._text:
            return and_(first != _Constant(""), not_(self.is_envelope()))
        # No order of characters is asked for in the text form, because that depends on the collation.
        return first >= _Constant(b" ")
