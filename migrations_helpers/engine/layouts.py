"""A run never drops a fingerprint or an expiry that rows have, unless it is told to.

The layout byte of an envelope tells how many fingerprints it has, and not which. Their names are found by making the
fingerprints of a row's token anew, under every name that it can have.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from jwt_column.column.json_type import EncryptedJSON
from jwt_column.column.spec import WHOLE, ColumnSpec, names_of
from jwt_column.column.types import EncryptedJWT
from jwt_column.errors import ConfigurationError, JWTColumnError
from jwt_column.format import envelope
from jwt_column.format.claims import parse_object
from jwt_column.format.frame import pack

from .rendering import render_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import ColumnElement

    from jwt_column.column.header_sql import HeaderSQL
    from jwt_column.format.token import JWT


#: The name under which ``drop`` lets the expiry go.
EXPIRY: Final = "expiry"


@dataclass(frozen=True, slots=True)
class Allowed:
    """The index fields that rows may have without losing one: those of the type, and those that the caller drops.

    Raises:
        ConfigurationError: The caller drops a field that the type makes.
    """

    type_: EncryptedJWT
    drop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the names."""
        made = {*self.type_.fingerprints, *([EXPIRY] if self.type_.expose_expiry else ())}
        for name in self.drop:
            if name in made:
                raise ConfigurationError(f"drop names {name!r}, and the column's type makes it")

    @property
    def expiry(self) -> bool:
        """Whether rows may have an expiry."""
        return self.type_.expose_expiry or EXPIRY in self.drop

    @property
    def fingerprints(self) -> frozenset[str]:
        """The names of fingerprints that rows may have."""
        return frozenset(self.type_.fingerprints) | (frozenset(self.drop) - {EXPIRY})

    def covers(self, layout: envelope.Layout) -> bool:
        """Return True if rows of a layout lose nothing, as far as the numbers tell."""
        return layout.fingerprints <= len(self.fingerprints) and (self.expiry or not layout.has_expiry)


def check_drop(names: object) -> tuple[str, ...]:
    """Return the names of fields that may go; raises as :func:`names_of`."""
    return names_of("drop", names, f"each a fingerprint such as 'jti', or {EXPIRY!r}")


def holds_more(header: HeaderSQL, allowed: Allowed) -> ColumnElement[bool] | None:
    """Return the SQL condition of envelopes that hold more than is allowed; None if no envelope can."""
    more = [
        bytes([byte])
        for byte in sorted(envelope.HEADER_LENGTHS)
        if not allowed.covers(envelope.Layout(bool(byte & 1), byte >> 1))
    ]
    return header.has_layout_among(more) if more else None


@dataclass
class FoundFields:
    """The index fields that sampled rows have."""

    type_: EncryptedJWT
    #: Opens an envelope.
    open: Callable[..., JWT]
    _has_expiry: bool = False
    _names: list[str | None] = field(default_factory=list)
    _rows: int = 0
    _is_other_type: bool = False

    def add(self, stored: bytes | str, bound: Sequence[Any]) -> None:
        """Take the fields of one row into account."""
        try:
            parsed = envelope.parse(stored)
        except JWTColumnError:
            return
        self._rows += 1
        self._has_expiry = self._has_expiry or parsed.layout.has_expiry
        missing = parsed.layout.fingerprints - len(self._names)
        self._names += [None] * missing
        unnamed = [place for place in range(parsed.layout.fingerprints) if self._names[place] is None]
        if not unnamed:
            return
        try:
            token = self.open(stored, *bound)
            self._see_other_type(token)
            names = self._names_by_fingerprint(token, parsed.key_id)
        except JWTColumnError:
            # Without its key a row keeps its fingerprints' names to itself.
            return
        for place in unnamed:
            self._names[place] = names.get(bytes(parsed.fingerprints[place]))

    def _see_other_type(self, token: JWT) -> None:
        """Take the type that wrote a value, if this one cannot read its members."""
        if self.type_.cipher().is_of_another_type(token):
            other = EncryptedJWT if isinstance(self.type_, EncryptedJSON) else EncryptedJSON
            made = other(self.type_.keyring, **self.type_.spec.options())
            made.context_is_default = self.type_.context_is_default
            self.type_, self._is_other_type = made, True

    def _names_by_fingerprint(self, token: JWT, key_id: str) -> dict[bytes, str]:
        """Return the names that a token's fingerprints can have under a key, by fingerprint."""
        payload = self.type_.cipher().payload_of(pack(token))
        claims = None if payload is None else parse_object(payload)
        ring = self.type_.ring().with_active(key_id)
        found = {}
        for name in dict.fromkeys([*self.type_.fingerprints, WHOLE, *(claims or ())]):
            spec = ColumnSpec(
                context=self.type_.context,
                fingerprints=(name,),
                allow_opaque=True,
                allow_unsigned=True,
                max_length=max(len(token), 1),
            )
            cipher = type(self.type_.cipher())(spec)
            (fingerprint,) = envelope.parse(cipher.encrypt(token, ring)).fingerprints
            if bytes(fingerprint) != envelope.NO_FINGERPRINT:
                found[bytes(fingerprint)] = name
        return found

    def lost(self, allowed: Allowed) -> list[str]:
        """Return the fields of the rows that are not allowed, in words."""
        named = [name for name in self._names if name is not None]
        if self._is_other_type and set(named) - {WHOLE}:
            return [f"fingerprints that an {type(self.type_).__name__} made"]
        lost = [f"the fingerprint {name!r}" for name in named if name not in allowed.fingerprints]
        if not lost and len(self._names) > len(allowed.fingerprints):
            lost.append(f"{len(self._names)} fingerprints and not {len(allowed.fingerprints)}")
        if self._has_expiry and not allowed.expiry:
            lost.append("a readable expiry")
        return lost

    def absent(self, names: Iterable[str]) -> list[str]:
        """Return those of some names that no row has; empty as long as that is unknown."""
        if not self._rows or None in self._names:
            return []
        found = {*self._names, *([EXPIRY] if self._has_expiry else ())}
        return [name for name in names if name not in found]

    def rendered(self) -> str:
        """Return the column's type as it is written to keep every field."""
        spec = self.type_.spec
        named = [name for name in self._names if name is not None]
        names = tuple(dict.fromkeys((*named, *spec.fingerprints)))
        exposed = spec.expose_expiry or self._has_expiry
        # A run looks nothing up, and with other fingerprints the older layouts may be impossible.
        complete = replace(spec, fingerprints=names, expose_expiry=exposed, previous=())
        return render_type(self.type_, complete)
