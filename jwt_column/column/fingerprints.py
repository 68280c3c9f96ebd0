"""Fingerprints of one name in one column: of the values that are looked for, under each key of the ring.

A row is found under whichever key it was written, because a value is fingerprinted under each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import null
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import ClauseElement

from ..errors import JWTColumnError, UnsupportedComparisonError
from ..format.claims import claim_input, parse_object
from ..format.frame import pack
from .header_sql import HeaderSQL
from .index_fields import fingerprint_of
from .spec import WHOLE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.sql.elements import ColumnElement

    from ..keys.data_key import DataKey
    from .cipher import TokenCipher
    from .header_sql import HeaderPart
    from .spec import ColumnSpec

# Iterable, and each a value or an expression.
_NO_LISTS: Final = (str, bytes, bytearray, memoryview, Mapping, operators.Operators, ClauseElement)


def values_in(given: object) -> list[Any] | None:
    """Return the values of an iterable, or None for a single value or an expression."""
    return list(given) if isinstance(given, Iterable) and not isinstance(given, _NO_LISTS) else None


def no_list(context: str, value: object) -> UnsupportedComparisonError:
    """Return the error for a single value where a list is compared."""
    return UnsupportedComparisonError(
        f"{context}: in_() takes a list of values, not one {type(value).__name__}",
        context=context,
    )


class Fingerprints:
    """The fingerprints of one name, ``"token"`` or a claim, in one encrypted column.

    *column* is the name of the column for an error, if its type has no context.

    Raises:
        UnsupportedComparisonError: The column does not store this fingerprint.
        ConfigurationError: The type belongs to no table and has no context.
    """

    __slots__ = ("_cipher", "_is_single", "_is_text", "_is_whole", "_specs", "name", "type")

    def __init__(self, type_: Any, name: str, *, column: str = "a column") -> None:
        context = type_.context
        whose = "the whole token" if name == WHOLE else f"the claim {name!r}"
        if name not in type_.fingerprints:
            declaration = f"{type(type_).__name__}(fingerprints={[*type_.fingerprints, name]!r})"
            raise UnsupportedComparisonError(
                f"{context or column}: equality cannot be answered from ciphertext without a "
                f"fingerprint of {whose}; declare {declaration} and re-encrypt the rows",
                context=context,
            )
        if type_.plaintext == "write":
            raise UnsupportedComparisonError(
                f"{context}: with plaintext='write' rows hold tokens in the clear, which no fingerprint and no "
                "ciphertext can find; compare sqlalchemy.type_coerce(column, Text or LargeBinary) instead",
                context=context,
            )
        self._cipher: TokenCipher = type_.cipher()
        self._specs: Sequence[ColumnSpec] = type_.spec.layouts_with(name)
        self._is_single = len(type_.spec.layouts) == 1
        self._is_text = type_.storage == "text"
        self._is_whole = name == WHOLE
        self.type: Any = type_
        self.name: str = name

    def search_keys(self) -> tuple[DataKey, ...]:
        """Return the keys under which rows are looked for.

        Raises:
            KeyRingError: The ring cannot be loaded.
        """
        return self.type.ring().keys_for_search()  # type: ignore[no-any-return]

    def sought(self, values: Iterable[object]) -> Sought:
        """Return values to look for, checked; None among them is NULL, which no row equals.

        Raises:
            UnsupportedComparisonError: A value that no row can have: neither ``str`` nor, of a claim, ``int``.
        """
        return Sought(self, [None if value is None else self._input_of(value) for value in values])

    def sought_later(self, value: object, *, is_list: bool) -> Sought:
        """Return the value of a parameter, or its list of values, as :meth:`sought`."""
        if not is_list:
            return self.sought([value])
        values = values_in(value)
        if values is None:
            raise no_list(self._cipher.context, value)
        return self.sought(values)

    def of(self, inputs: Iterable[bytes | None], key: DataKey) -> list[bytes | None]:
        """Return fingerprints under a key, from the bytes that they are made from."""
        mac = key.fingerprint_mac(self._cipher.context, self.name)
        return [None if data is None else fingerprint_of(mac, data) for data in inputs]

    def stored(self, found: Sequence[bytes | None], *, prefix: bool) -> Sequence[bytes | str | None]:
        """Return fingerprints, or with *prefix* stamps, in the column's storage form."""
        if not self._is_text:
            return found
        header = self._header(None)
        return [None if one is None else header.form(one, prefix=prefix) for one in found]

    def constants(self, found: Iterable[bytes | None], *, prefix: bool = False) -> list[ColumnElement[Any]]:
        """Return the same as SQL that is written out."""
        header = self._header(None)
        return [null() if one is None else header.constant(one, prefix=prefix) for one in found]

    def stamps(self, keys: Iterable[DataKey]) -> list[bytes]:
        """Return the stamps of the rows whose fingerprint can be compared."""
        stamp = self._cipher.stamp
        return [stamp(key.id, spec.layout.byte) for key in keys for spec in self._specs]

    def places(self, column: Any) -> list[tuple[HeaderPart, ColumnElement[bool] | None]]:
        """Return the places of the fingerprint in a column, each with the condition of the rows that have it there.

        The condition is None if the column has rows of one layout only.
        """
        header = self._header(column)
        return [
            (
                part_of(header, spec, self.name, for_layout=not self._is_single),
                None if self._is_single else header.has_layout(spec.layout.byte),
            )
            for spec in self._specs
        ]

    def stamp(self, column: Any) -> ColumnElement[Any]:
        """Return the place of the stamp in the rows of a column."""
        return self._header(column).stamp()

    def has_layout(self, column: Any) -> list[ColumnElement[bool]]:
        """Return the conditions of the rows that have the fingerprint, under any key, one for each layout."""
        return [self._header(column).has_layout(spec.layout.byte) for spec in self._specs]

    def is_among(self, token: object, inputs: Sequence[bytes | None]) -> bool | None:
        """Return whether a loaded token has one of the values of a :class:`Sought`; None if unknown, as in SQL."""
        if self._is_whole:
            data = self._cipher.whole_input(token)
        else:
            claims = token if isinstance(token, Mapping) else self._claims_of(token)
            data = None if claims is None else claim_input(claims.get(self.name))
        if data is None:
            return None
        return data in inputs or (None if None in inputs else False)

    def _claims_of(self, token: object) -> dict[str, Any] | None:
        payload = self._cipher.payload_of(pack(token)) if isinstance(token, str) else None
        return None if payload is None else parse_object(payload)

    def _header(self, column: Any) -> HeaderSQL:
        return HeaderSQL(column, self.type)

    def _input_of(self, value: object) -> bytes:
        """Return the bytes that the fingerprint of a value is made from."""
        data = self._cipher.whole_input(value) if self._is_whole else claim_input(value)
        if data is None:
            kinds = self._cipher.compared_with if self._is_whole else "a str or an int that has a UTF-8 form"
            context = self._cipher.context
            raise UnsupportedComparisonError(
                f"{context}: what is compared with ciphertext is {kinds}, not this {type(value).__name__}",
                context=context,
            )
        return data


class Sought:
    """The values that a statement looks for, in place of a parameter's value.

    Its ``repr`` differs from value to value and shows a fingerprint: caches outside the process make keys of it. A
    pickle holds fingerprints, of the keys that the ring has by then, and no value. The inputs are the bytes from which
    fingerprints are made; None stands for NULL.
    """

    __slots__ = ("_fingerprints", "_inputs")

    def __init__(self, fingerprints: Fingerprints, inputs: Sequence[bytes | None]) -> None:
        self._fingerprints = fingerprints
        self._inputs = inputs

    def under(self, keys: Iterable[DataKey]) -> list[bytes | None]:
        """Return the fingerprints of every value under every key; None for NULL."""
        of, inputs = self._fingerprints.of, self._inputs
        found: list[bytes | None] = []
        for key in keys:
            found += of(inputs, key)
        return found

    def is_in(self, token: object) -> bool | None:
        """Return whether a loaded token has one of the values; None if that is unknown, as in SQL."""
        return self._fingerprints.is_among(token, self._inputs)

    def __repr__(self) -> str:
        try:
            active = self._fingerprints.search_keys()[0]
        except JWTColumnError:
            return f"Sought(redacted, {id(self):#x})"
        shown = ["NULL" if one is None else one.hex() for one in self._fingerprints.of(self._inputs, active)]
        return f"Sought({', '.join(shown)})"

    def __copy__(self) -> Sought:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Sought:
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        of, context = self._fingerprints.of, self._fingerprints.type.context
        return _Pickled, (
            context,
            {key.id: of(self._inputs, key) for key in self._fingerprints.search_keys()},
        )


class _Pickled:
    """The values of a pickled statement: their fingerprints under each key that the ring had, by key id."""

    __slots__ = ("_context", "_fingerprints")

    def __init__(self, context: str, fingerprints: dict[str, list[bytes | None]]) -> None:
        self._context = context
        self._fingerprints = fingerprints

    def under(self, keys: Iterable[DataKey]) -> list[bytes | None]:
        """Return the fingerprints under every key.

        Raises:
            UnsupportedComparisonError: The ring has a key that it did not have when the statement was pickled: rows
                under it would not be found.
        """
        found: list[bytes | None] = []
        for key in keys:
            made = self._fingerprints.get(key.id)
            if made is None:
                raise UnsupportedComparisonError(
                    f"{self._context}: this statement was pickled before the key ring had the key {key.id}, under "
                    "which it would find no row; build the statement again",
                    context=self._context,
                )
            found += made
        return found

    def is_in(self, token: object) -> bool | None:  # noqa: ARG002
        """Return None: a fingerprint does not tell its value."""
        return None

    def __repr__(self) -> str:
        return f"Sought({next(iter(self._fingerprints.values()))!r})"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _Pickled, (self._context, self._fingerprints)


def part_of(header: HeaderSQL, spec: ColumnSpec, name: str, *, for_layout: bool = False) -> HeaderPart:
    """Return the place of a fingerprint in envelopes with the options of *spec*.

    With *for_layout*, an index on it holds the envelopes of this layout only.
    """
    field = spec.layout.fingerprint_field(spec.fingerprints.index(name))
    part = header.field(field) if name == WHOLE else header.claim_fingerprint(field)
    if for_layout:
        part.layout = spec.layout.byte.hex()
    return part
