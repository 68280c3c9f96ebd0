"""Equality by fingerprint: the fingerprints of a compared value, and the condition that finds them.

A row is found under whichever key of the ring it was written, because the value is fingerprinted under each of them.
A statement holds these fingerprints, in parameters, logs and errors, and never the value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Boolean, and_, not_, or_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.visitors import InternalTraversal

from ..errors import UnsupportedComparisonError
from ..format.claims import claim_input
from .header_sql import HeaderSQL
from .index_fields import fingerprint
from .spec import WHOLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import FromClause
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.sql.operators import OperatorType

    from ..keys.ring import KeyRing
    from .cipher import TokenCipher
    from .header_sql import HeaderPart
    from .spec import ColumnSpec

__all__ = ["FingerprintCondition", "Fingerprints", "part_of"]


class Fingerprints:
    """The fingerprints of one name in one encrypted column.

    Args:
        column: The column.
        type_: Its type, an ``EncryptedJWT``.
        name: ``"token"`` or a claim.

    Raises:
        UnsupportedComparisonError: The column does not store this fingerprint.
        ConfigurationError: The type belongs to no table and has no context.
    """

    def __init__(self, column: ColumnElement[Any], type_: Any, name: str) -> None:
        context = type_.context
        what = "the whole token" if name == WHOLE else f"the claim {name!r}"
        if name not in type_.fingerprints:
            declared = [*type_.fingerprints, name]
            raise UnsupportedComparisonError(
                f"{context or 'an encrypted column'}: equality cannot be answered from ciphertext without a "
                f"fingerprint of {what}; declare EncryptedJWT(fingerprints={declared!r}) and re-encrypt the rows",
                context=context,
            )
        if type_.plaintext == "write":
            raise UnsupportedComparisonError(
                f"{context}: with plaintext='write' rows hold tokens in the clear, which no fingerprint and no "
                "ciphertext can find; compare sqlalchemy.type_coerce(column, Text or LargeBinary) instead",
                context=context,
            )
        self._cipher: TokenCipher = type_.cipher()
        self.type = type_
        self._name = name
        self._header = HeaderSQL(column, type_)
        specs = type_.spec.layouts_with(name)
        self._layouts = [spec.layout.byte for spec in specs]
        self._is_single = len(type_.spec.layouts) == 1
        self._parts = [part_of(self._header, spec, name, for_layout=not self._is_single) for spec in specs]
        self._in_layouts = [self._header.has_layout(layout) for layout in self._layouts]

    def among(self, values: Iterable[object]) -> FingerprintCondition:
        """Return the condition of rows that have one of these values; None is NULL, which no row equals.

        Raises:
            UnsupportedComparisonError: A value that no row can have: neither ``str`` nor, of a claim, ``int``.
            KeyRingError: The ring cannot be loaded.
        """
        inputs = [None if value is None else self._input_of(value) for value in values]
        ring: KeyRing = self.type.ring()
        # Once: another thread may reload the ring meanwhile.
        keys = ring.keys_for_search()
        found: list[bytes | None] = []
        for data in inputs:
            if data is None:
                found.append(None)
            else:
                found += [fingerprint(key, self._cipher.context, self._name, data) for key in keys]
        stamps = [self._cipher.stamp(key.id, layout) for layout in self._layouts for key in keys]

        def known() -> ColumnElement[bool]:
            # Negated, a row must be one whose fingerprint can be compared: of another layout or under a key that the
            # ring lacks, it could be that very token.
            return self._header.has_stamp(*stamps)

        return FingerprintCondition(self._among(found), known)

    def missing(self) -> FingerprintCondition:
        """Return the condition of tokens that do not have the claim. It needs no key."""
        places = zip(self._parts, self._in_layouts, strict=True)
        missing = (and_(part.is_(None), in_layout) for part, in_layout in places)
        return FingerprintCondition(or_(*missing), lambda: or_(*self._in_layouts))

    def _among(self, fingerprints: list[bytes | None]) -> ColumnElement[bool]:
        is_text = self.type.storage == "text"
        stored = [one.hex() if is_text and one is not None else one for one in fingerprints]
        if self._is_single:
            return _is_one_of(self._parts[0], stored)
        # An index for the rows of one layout is used where its condition stands in the statement.
        places = zip(self._in_layouts, self._parts, strict=True)
        return or_(*(and_(in_layout, _is_one_of(part, stored)) for in_layout, part in places))

    def _input_of(self, value: object) -> bytes:
        """Return the input of the fingerprint of a value."""
        data = self._cipher.whole_input(value) if self._name == WHOLE else claim_input(value)
        if data is not None:
            return data
        kinds = "a str" if self._name == WHOLE else "a str or an int"
        kind = type(value).__name__
        value = None
        raise UnsupportedComparisonError(
            f"{self._cipher.context}: what is compared with ciphertext is {kinds} that has a UTF-8 form, not this "
            f"{kind}",
            context=self._cipher.context,
        )


def _is_one_of(part: ColumnElement[Any], stored: Sequence[bytes | str | None]) -> ColumnElement[bool]:
    if len(stored) == 1 and stored[0] is not None:
        # SQLAlchemy takes longer over a list of one.
        return part == stored[0]
    return part.in_(stored)


def part_of(header: HeaderSQL, spec: ColumnSpec, name: str, *, for_layout: bool = False) -> HeaderPart:
    """Return the place of a fingerprint in envelopes with the options of *spec*.

    Args:
        header: The envelopes.
        spec: Names the fingerprint.
        name: ``"token"`` or a claim.
        for_layout: Whether an index on it holds the envelopes of this layout only.
    """
    field = spec.layout.fingerprint_field(spec.fingerprints.index(name))
    part = header.fingerprint(field) if name == WHOLE else header.claim_fingerprint(field)
    if for_layout:
        part.layout = spec.layout.byte.hex()
    return part


class FingerprintCondition(ColumnElement[bool]):
    """A condition on fingerprints, and the rows that its negation leaves out.

    Args:
        found: The condition.
        known: Returns which rows have a fingerprint that can be compared at all. To SQL the others are NULL: they are
            found neither by the condition nor by its negation.
    """

    _traverse_internals = [  # noqa: RUF012 - SQLAlchemy's own name, by which it copies and caches
        ("found", InternalTraversal.dp_clauseelement),
        ("known", InternalTraversal.dp_clauseelement),
    ]
    type: Boolean = Boolean()
    known: ColumnElement[bool] | None = None

    def __init__(self, found: ColumnElement[bool], known: Callable[[], ColumnElement[bool]]) -> None:
        self.found = found
        # Asked for when it is needed: most conditions are never negated, and each is built for one statement.
        self._make_known = known

    def _negate(self) -> FingerprintCondition:
        negation = FingerprintCondition(self.found, self._make_known)
        if self.known is None:
            negation.known = self._make_known()
        return negation

    def self_group(self, against: OperatorType | None = None) -> FingerprintCondition:  # noqa: ARG002
        """Return the condition itself: it comes in brackets, and ``= 1`` after them would hide it from an index."""
        return self

    @property
    def _from_objects(self) -> list[FromClause]:
        return self.found._from_objects  # noqa: SLF001

    def condition(self) -> ColumnElement[bool]:
        """Return the same in the words that SQLAlchemy has."""
        return self.found if self.known is None else and_(not_(self.found), self.known)


@compiles(FingerprintCondition)
def _compile_condition(element: FingerprintCondition, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({compiler.process(element.condition(), **kw)})"
