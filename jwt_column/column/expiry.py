"""The expiry that an envelope header shows, as a SQL type: a time in Python, six bytes or twelve hex digits stored.

Big-endian bytes, and their hex digits, have the order of the times that they stand for. So the database compares and
sorts the stored values, and converts nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import LargeBinary, String
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BindParameter, ColumnElement, Null
from sqlalchemy.types import NullType, TypeDecorator

from ..errors import UnsupportedComparisonError
from ..format.envelope import EXPIRY_LENGTH, NO_EXPIRY

if TYPE_CHECKING:
    from sqlalchemy import Dialect
    from sqlalchemy.sql.operators import OperatorType
    from sqlalchemy.types import TypeEngine

    from ..format.envelope import Storage

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)

# They mean of the stored form what they mean of a time; the equalities, with NULL.
_ANSWERED: Final = (
    operators.asc_op, operators.desc_op, operators.nulls_first_op, operators.nulls_last_op, operators.distinct_op,
    operators.is_, operators.is_not, operators.eq, operators.ne,
)  # fmt: skip
_LISTS: Final = (operators.in_op, operators.not_in_op)
_RANGES: Final = (operators.between_op, operators.not_between_op)
_COMPARISONS: Final = (operators.eq, operators.ne, operators.lt, operators.le, operators.gt, operators.ge)


class _ExpiryComparator(TypeDecorator.Comparator[datetime]):
    """The operators of an expiry."""

    __slots__ = ()

    def operate(self, op: OperatorType, *other: Any, **kwargs: Any) -> ColumnElement[Any]:
        """Compare with a timezone-aware ``datetime``, or order.

        Raises:
            UnsupportedComparisonError: Arithmetic, a naive ``datetime`` or anything that is no time.
        """
        if op in _COMPARISONS and other[0] is not None:
            return super().operate(
                op, _comparable(other[0], round_up=op in (operators.lt, operators.ge)), **kwargs
            )
        if op in _LISTS and isinstance(other[0], list | tuple | set | frozenset):
            return super().operate(op, [_comparable(value) for value in other[0]], **kwargs)
        if op in _RANGES and len(other) == 2:
            return super().operate(op, _comparable(other[0], round_up=True), _comparable(other[1]), **kwargs)
        if op in _ANSWERED:
            return super().operate(op, *other, **kwargs)
        raise _refusal(
            f"{getattr(op, '__name__', 'this operator').removesuffix('_op')} is not asked of a time; calculate the "
            "time that it is compared with in Python"
        )

    def reverse_operate(self, op: OperatorType, *_: Any, **__: Any) -> ColumnElement[Any]:
        """Refuse every operator with the expiry on its right side; comparisons come with it on their left."""
        raise _refusal(f"{getattr(op, '__name__', 'this operator')} is not asked of a time")


def _comparable(value: Any, *, round_up: bool = False) -> Any:
    """Return the value that an expiry is compared with, rounded up if asked: ``exp`` is in whole seconds.

    Raises:
        UnsupportedComparisonError: Not a timezone-aware ``datetime``, and not an expression that holds an expiry.
    """
    if isinstance(value, ColumnElement):
        is_open = isinstance(value, BindParameter) and isinstance(value.type, NullType)
        if is_open or isinstance(value, Null) or isinstance(value.type, ExpiryTime):
            return value
        raise _refusal(
            f"it is compared with a datetime such as datetime.now(UTC), not with an expression of type {value.type}"
        )
    if isinstance(value, operators.Operators):
        raise _refusal("it is compared with a datetime, not with another column")
    if value is None:
        return None
    _check(value)
    if round_up and value.microsecond:
        value = value.replace(microsecond=0)
        return value if value > datetime.max.replace(tzinfo=value.tzinfo) - _SECOND else value + _SECOND
    return value


def _check(value: object) -> None:
    if not isinstance(value, datetime):
        raise _refusal(f"it is compared with a datetime, not with {type(value).__name__}")
    if value.utcoffset() is None:
        raise _refusal("it is compared with a datetime that knows its time zone, such as datetime.now(UTC)")


def _refusal(explanation: str) -> UnsupportedComparisonError:
    return UnsupportedComparisonError(f"expires_at: {explanation}")


class ExpiryTime(TypeDecorator[datetime]):
    """``exp`` as an envelope header holds it: six big-endian bytes, or their hex digits.

    Takes timezone-aware times, of which it drops fractions of seconds; a time before 1970 becomes 1970. Gives times
    in UTC; one past the year 9999 is given as its end, as :attr:`JWT.expires_at` does.

    Args:
        storage: ``"binary"`` or ``"text"``, as the column's.
    """

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = LargeBinary
    cache_ok: bool = True
    comparator_factory = _ExpiryComparator

    def __init__(self, storage: Storage) -> None:
        super().__init__()
        self.storage = storage
        if storage == "text":
            self.impl = self.impl_instance = String(2 * EXPIRY_LENGTH)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> bytes | str | None:  # noqa: ARG002
        """Return a time as it is stored.

        Raises:
            UnsupportedComparisonError: Not a timezone-aware ``datetime``.
        """
        if value is None:
            return None
        _check(value)
        stored = max((value - _EPOCH) // _SECOND, 0).to_bytes(EXPIRY_LENGTH, "big")
        return stored.hex() if self.storage == "text" else stored

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return a stored time; None for NULL and for a value that is no expiry."""
        if value is None:
            return None
        try:
            stored = bytes.fromhex(value) if self.storage == "text" else bytes(value)
        except ValueError:
            return None
        if len(stored) != EXPIRY_LENGTH or stored == NO_EXPIRY:
            return None
        try:
            return _EPOCH + timedelta(seconds=int.from_bytes(stored, "big"))
        except OverflowError:
            return datetime.max.replace(tzinfo=UTC)


BINARY_EXPIRY: Final = ExpiryTime("binary")
TEXT_EXPIRY: Final = ExpiryTime("text")
