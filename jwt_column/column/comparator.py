"""The operators of ``Session.token`` in SQL.

Ciphertext answers whether it is there (``IS NULL``), and its header the questions that the column declares: equality by
``fingerprints``, the expiry with ``expose_expiry``, the key id always. Every other operator is refused when the
expression is built: under a random nonce ``==`` would match no row and ``!=`` every row, and nothing would say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Boolean, and_, case, types
from sqlalchemy.sql import coercions, operators, roles
from sqlalchemy.sql.elements import BindParameter, ClauseElement, ColumnElement, TypeCoerce
from sqlalchemy.sql.lambdas import PyWrapper

from ..errors import ConfigurationError, UnsupportedComparisonError
from ..frames import hides_locals
from ..option_values import TEXT
from .conditions import ClaimIsMissing, FingerprintCondition
from .fingerprints import Fingerprints, no_list, values_in
from .header_sql import HeaderSQL
from .spec import WHOLE

if TYPE_CHECKING:
    from datetime import datetime
    from typing import NoReturn

    from sqlalchemy.sql.operators import OperatorType

_EQUALITY = (operators.eq, operators.ne)
_LISTS = (operators.in_op, operators.not_in_op)
_MEMBERSHIP = (operators.contains_op, operators.not_contains_op, operators.any_op, operators.all_op)
_NULL_TESTS: dict[Any, OperatorType] = {
    operators.is_: operators.is_,
    operators.eq: operators.is_,
    operators.is_not: operators.is_not,
    operators.ne: operators.is_not,
}


class EncryptedComparator(types.TypeDecorator.Comparator[Any]):
    """Operators of an encrypted column."""

    __slots__ = ("_fingerprints",)
    # By name.
    _fingerprints: dict[str, Fingerprints]

    @hides_locals
    def operate(self, op: OperatorType, *other: Any, **kwargs: Any) -> ColumnElement[Any]:
        """Build ``IS [NOT] NULL``, or ``==``, ``!=``, ``in_`` or ``not_in`` of tokens by fingerprint; refuse the rest.

        The fingerprints are made when the statement is executed, also those of a ``bindparam()``.

        Raises:
            UnsupportedComparisonError: Any other operator; a value that is no text; equality without the
                fingerprint of the whole token.
        """
        if op in _NULL_TESTS and _is_null(other[0]):
            return super().operate(op, *other, **kwargs)
        given = _given(op, other, self.expr)
        if given is None and op in _EQUALITY:
            return self._compared_with(other[0], op)
        if given is None:
            raise _refusal(self.expr, op)
        return FingerprintCondition(self.expr, self._fingerprints_of(WHOLE), op, given)

    def _compared_with(self, other: Any, op: OperatorType) -> ColumnElement[Any]:
        """Return the comparison with another expression: answered where this one is a parameter of the other's type."""
        column = other.__clause_element__() if hasattr(other, "__clause_element__") else other
        if isinstance(self.expr, BindParameter) and getattr(column, "type", None) == self.expr.type:
            return op(column, self.expr)  # type: ignore[no-any-return]
        refusal = _refusal(self.expr, op)
        if not isinstance(other, ColumnElement):
            raise refusal
        return _Unanswerable(self.expr, other, op, refusal)

    @hides_locals
    def reverse_operate(self, op: OperatorType, *_: Any, **__: Any) -> ColumnElement[Any]:
        """Refuse every operator with the column on its right side."""
        raise _refusal(self.expr, op)

    @hides_locals
    def claim(self, name: str) -> Claim:
        """Return a claim of the token, to be compared by its fingerprint.

        Args:
            name: One of the column's ``fingerprints``, such as ``"jti"``.

        Raises:
            UnsupportedComparisonError: The column does not store this fingerprint.
        """
        TEXT.check(name=name)
        if name == WHOLE:
            raise UnsupportedComparisonError(
                f"the fingerprint {WHOLE!r} is that of the whole token; compare the column itself"
            )
        return Claim(self.expr, self._fingerprints_of(name))

    def _fingerprints_of(self, name: str) -> Fingerprints:
        try:
            made = self._fingerprints
        except AttributeError:
            made = self._fingerprints = {}
        found = made.get(name)
        # A column gets another type when it is put into a table.
        if found is None or found.type is not self.expr.type:
            found = made[name] = Fingerprints(self.expr.type, name, column=name_of(self.expr))
        return found

    @property
    def key_id(self) -> ColumnElement[str | None]:
        """The id of the key that the row is under, 8 lower-case hex digits; NULL where it is no envelope."""
        header = self._header
        return case((header.is_envelope(), header.key_id()))

    @property
    def is_stale(self) -> ColumnElement[bool]:
        """Whether the row is an envelope, but not as the column would write it today: another key or layout.

        Raises:
            KeyRingError: The ring, which says what the active key is, cannot be loaded.
            ConfigurationError: There is no ring, or the type belongs to no table and has no context.
        """
        return self.stale_under(*self._encrypted_type.ring().current_key_ids)

    def stale_under(self, *active: str) -> ColumnElement[bool]:
        """Return :attr:`is_stale` for a host without keys.

        Args:
            *active: The active key's id, 8 hex digits; of a ring with tenants, :attr:`KeyRing.current_key_ids`.

        Raises:
            KeyRingError: One of them is no key id.
            ConfigurationError: None was given, or the type belongs to no table and has no context.
        """
        if not active:
            raise ConfigurationError("stale_under() takes the id of the active key")
        header, cipher = self._header, self._encrypted_type.cipher()
        return and_(header.has_other_stamp(*map(cipher.stamp, active)), header.is_envelope())

    @property
    def is_plaintext(self) -> ColumnElement[bool]:
        """Whether the row can be a token in the clear."""
        return self._header.is_plaintext()

    @property
    def expires_at(self) -> ColumnElement[datetime | None]:
        """The token's ``exp``, for SELECT, WHERE and ORDER BY; NULL without one.

        A row that was written before the column had ``expose_expiry=True`` has none until it is re-encrypted.

        Raises:
            UnsupportedComparisonError: The column does not store it.
        """
        if not self._encrypted_type.expose_expiry:
            raise UnsupportedComparisonError(
                f"{name_of(self.expr)}: expires_at cannot be read from ciphertext; declare "
                f"{type(self._encrypted_type).__name__}(expose_expiry=True) and re-encrypt the rows",
                context=self._encrypted_type.context,
            )
        return self._header.expires_at()

    @property
    def _encrypted_type(self) -> Any:
        return self.expr.type

    @property
    def _header(self) -> HeaderSQL:
        return HeaderSQL(self.expr, self._encrypted_type)


class Claim(operators.ColumnOperators):
    """A claim of an encrypted token, as far as fingerprints tell: equal or not, there or not."""

    def __init__(self, column: ColumnElement[Any], fingerprints: Fingerprints) -> None:
        self._column = column
        self._fingerprints = fingerprints

    @hides_locals
    def operate(self, op: OperatorType, *other: Any, **_: Any) -> ColumnElement[Any]:
        """Build ``==``, ``!=``, ``in_`` or ``not_in`` of ``str`` and ``int``, or ``is_(None)``; refuse the rest.

        ``is_(None)`` finds tokens without the claim. A row without a token is found by no comparison of a claim.

        Raises:
            UnsupportedComparisonError: Any other operator or value.
        """
        if op in _NULL_TESTS and _is_null(other[0]):
            return ClaimIsMissing(self._column, self._fingerprints.name, _NULL_TESTS[op])
        if op in _MEMBERSHIP:
            raise UnsupportedComparisonError(
                f"{name_of(self._column)}: the members of a claim that is a list have no fingerprints, so no row is "
                f"found by a member of {self._fingerprints.name!r}; write the members into a table or column of your "
                "own beside the token",
                context=self._fingerprints.type.context,
            )
        given = _given(op, other, self._column)
        if given is None:
            raise _refusal(self._column, op)
        return FingerprintCondition(self._column, self._fingerprints, op, given)

    def __clause_element__(self) -> NoReturn:
        """Refuse a claim as a result, an order or the right side of a comparison."""
        raise UnsupportedComparisonError(
            f"{name_of(self._column)}: a claim has no value in SQL, because the database has only its fingerprint; "
            "compare it, on the left side, with values of Python, or load the token and read unverified_claims",
            context=self._fingerprints.type.context,
        )

    @hides_locals
    def reverse_operate(self, op: OperatorType, *_: Any, **__: Any) -> NoReturn:
        """Refuse every operator with the claim on its right side."""
        raise _refusal(self._column, op)


def _given(
    op: OperatorType, other: tuple[Any, ...], column: ColumnElement[Any]
) -> list[Any] | BindParameter[Any] | None:
    """Return the values, or the parameter, that a column is compared with; None when that cannot be answered."""
    if op not in _EQUALITY and op not in _LISTS:
        return None
    value = other[0]
    if not isinstance(value, operators.Operators | ClauseElement):
        values = [value] if op in _EQUALITY else values_in(value)
        if op in _LISTS and values is not None:
            found = [(_parameter(one, column), one) for one in values]
            values = [one if parameter is None else parameter for parameter, one in found]
            # Another expression would have to be fingerprinted by the database, which has no key.
            if any(isinstance(one, ClauseElement) and not isinstance(one, BindParameter) for one in values):
                return None
        elif values is None:
            raise no_list(name_of(column), value)
        return values
    return _parameter(value, column)


def _parameter(value: object, column: ColumnElement[Any]) -> BindParameter[Any] | None:
    """Return the parameter that an expression consists of: its value comes when the statement is executed."""
    if isinstance(value, PyWrapper):
        # A variable of a lambda statement.
        value = coercions.expect(roles.BinaryElementRole, value, expr=column, operator=operators.eq)
    elif isinstance(value, TypeCoerce):
        value = value.typed_expression
    return value if isinstance(value, BindParameter) else None


def _refusal(column: ColumnElement[Any], op: OperatorType) -> UnsupportedComparisonError:
    name = getattr(op, "__name__", "this operator").removesuffix("_op")
    return UnsupportedComparisonError(
        f"{name_of(column)}: {name} cannot be answered from ciphertext; it can be compared for equality with values, "
        "by fingerprint, and asked .is_(None)",
        context=getattr(column.type, "context", None),
    )


def name_of(column: Any) -> str:
    """Return the name of a column for an error: its context, or the name that it has in the statement."""
    return getattr(column.type, "context", None) or str(column)


class _Unanswerable(ColumnElement[bool]):
    """``==`` between an encrypted column and a SQL expression, refused when it becomes SQL.

    SQLAlchemy itself compares columns so, when it looks for one in a list or a set, and asks for the truth value only.
    """

    inherit_cache = False
    type = Boolean()

    def __init__(
        self,
        left: ColumnElement[Any],
        right: ColumnElement[Any],
        operator: OperatorType,
        refusal: UnsupportedComparisonError,
    ) -> None:
        self._hashes = hash(left), hash(right)
        self._operator: Any = operator
        self._refusal = refusal

    def __bool__(self) -> bool:
        return bool(self._operator(*self._hashes))

    def _compiler_dispatch(self, visitor: Any, **kw: Any) -> NoReturn:  # noqa: ARG002 - SQLAlchemy's own names
        raise self._refusal


def _is_null(value: object) -> bool:
    return value is None or getattr(value, "__visit_name__", None) == "null"
