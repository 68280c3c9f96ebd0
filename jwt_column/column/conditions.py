"""Conditions on fingerprints: elements of a statement that become SQL, and fingerprints, as late as possible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Boolean, and_, or_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BindParameter, ClauseList, ColumnElement
from sqlalchemy.sql.visitors import InternalTraversal

from .fingerprints import Fingerprints, Sought
from .header_sql import places_of
from .late_values import late_parameter, place_of_stamps, place_of_values

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import FromClause
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.sql.operators import OperatorType

    from .header_sql import HeaderPart

_NEGATION: Final[dict[Any, OperatorType]] = {
    operators.eq: operators.ne,
    operators.ne: operators.eq,
    operators.in_op: operators.not_in_op,
    operators.not_in_op: operators.in_op,
    operators.is_: operators.is_not,
    operators.is_not: operators.is_,
}
_NEGATIVE: Final = (operators.ne, operators.not_in_op, operators.is_not)
_LISTS: Final = (operators.in_op, operators.not_in_op)


class _Condition(ColumnElement[bool]):
    """A condition on one fingerprint of an encrypted column.

    Its negation leaves out the rows whose fingerprint cannot be compared: of another layout, or under a key that the
    ring lacks, a row could have that very value. To SQL they are NULL.
    """

    type: Boolean = Boolean()
    _traverse_internals = [  # noqa: RUF012 - SQLAlchemy's own name, by which it copies and caches
        ("left", InternalTraversal.dp_clauseelement),
        ("fingerprint", InternalTraversal.dp_string),
        ("comparison", InternalTraversal.dp_operator),
    ]

    def __init__(self, left: ColumnElement[Any], name: str, comparison: OperatorType) -> None:
        self.left = left
        # Not "name": SQLAlchemy would take it for that of a column.
        self.fingerprint = name
        self.comparison = comparison
        # By this a statement over an attribute is one of the ORM.
        self._propagate_attrs = left._propagate_attrs  # noqa: SLF001

    @property
    def is_negative(self) -> bool:
        """Whether it is ``!=``, ``NOT IN`` or ``IS NOT``."""
        return self.comparison in _NEGATIVE

    def fingerprints(self) -> Fingerprints:
        """Return the fingerprints that are compared."""
        return Fingerprints(self.left.type, self.fingerprint)

    def _negate(self) -> Any:
        # No clone: SQLAlchemy takes a clone for the same expression.
        negated = type(self).__new__(type(self))
        kept = (name for name, _ in self._traverse_internals)
        negated.__dict__.update({name: self.__dict__[name] for name in (*kept, "_propagate_attrs")})
        negated.comparison = _NEGATION[self.comparison]
        return negated

    def self_group(self, against: OperatorType | None = None) -> Any:  # noqa: ARG002
        """Return the condition itself: it comes in brackets, and ``= 1`` after them would hide it from an index."""
        return self

    @property
    def _from_objects(self) -> list[FromClause]:
        return self.left._from_objects  # noqa: SLF001


class FingerprintCondition(_Condition):
    """``==``, ``!=``, ``IN`` or ``NOT IN`` by fingerprint.

    What is given is a list of values, a parameter whose value comes when the statement is executed, or a list that has
    such parameters among its values.
    """

    # So that the ORM evaluates it in Python, for ``synchronize_session="evaluate"``.
    __visit_name__ = "binary"
    _traverse_internals = [*_Condition._traverse_internals, ("right", InternalTraversal.dp_clauseelement)]  # noqa: RUF012, SLF001

    def __init__(
        self, left: ColumnElement[Any], fingerprints: Fingerprints, comparison: OperatorType, given: Any
    ) -> None:
        super().__init__(left, fingerprints.name, comparison)
        self.right: Any
        if isinstance(given, list) and any(isinstance(one, BindParameter) for one in given):
            parameters = [one if isinstance(one, BindParameter) else [one] for one in given]
            self.right = ClauseList(*(late_parameter(fingerprints, one) for one in parameters))
        else:
            self.right = late_parameter(fingerprints, given, is_list=comparison in _LISTS)

    def parameters(self) -> tuple[Iterable[Any], bool]:
        """Return the parameters, and whether the only one takes a list."""
        if isinstance(self.right, ClauseList):
            return self.right.clauses, False
        return (self.right,), self.comparison in _LISTS

    @property
    def operator(self) -> OperatorType:
        """The operator by which the ORM evaluates the condition for a loaded object, if it knows the value."""
        is_known = isinstance(self.right, BindParameter) and isinstance(self.right.value, Sought)
        return operators.custom_op("IN", python_impl=self._evaluate if is_known else None)

    def _evaluate(self, token: object, sought: Sought) -> bool | None:
        answer = sought.is_in(token)
        return (not answer) if self.is_negative and answer is not None else answer


class ClaimIsMissing(_Condition):
    """``IS NULL`` of a claim: a token without it. Needs no key."""

    inherit_cache: bool = True


@compiles(FingerprintCondition)
def _compile_condition(element: FingerprintCondition, compiler: SQLCompiler, **kw: Any) -> str:
    fingerprints = element.fingerprints()
    parameters, is_list = element.parameters()
    values = [
        place_of_values(compiler, fingerprints, parameter, is_list=is_list, **kw) for parameter in parameters
    ]

    def found(part: HeaderPart, in_layout: ColumnElement[bool] | None) -> str:
        places = places_of(part, compiler, **kw)
        among = " OR ".join(" AND ".join(f"{place} IN {one}" for place in places) for one in values)
        # An index for the rows of one layout is used where its condition stands in the statement.
        return among if in_layout is None else f"{compiler.process(in_layout, **kw)} AND ({among})"

    anywhere = " OR ".join(found(*place) for place in fingerprints.places(element.left))
    if not element.is_negative:
        return f"({anywhere})"
    stamp = compiler.process(fingerprints.stamp(element.left), **kw)
    return f"(NOT ({anywhere}) AND {stamp} IN {place_of_stamps(compiler, fingerprints, **kw)})"


@compiles(ClaimIsMissing)
def _compile_missing(element: ClaimIsMissing, compiler: SQLCompiler, **kw: Any) -> str:
    fingerprints = element.fingerprints()
    places = zip(fingerprints.places(element.left), fingerprints.has_layout(element.left), strict=True)
    conditions = (
        and_(part.is_not(None) if element.is_negative else part.is_(None), in_layout)
        for (part, _), in_layout in places
    )
    return f"({compiler.process(or_(*conditions), **kw)})"
