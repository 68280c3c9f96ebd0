"""The options of an encrypted column as one value, checked in one place.

A new option is a field of :class:`ColumnSpec` and a keyword of :class:`ColumnKeywords`; :class:`EncryptedJWT` takes
and shows it without a further line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict, cast

from ..errors import ConfigurationError
from ..format.envelope import MAX_FINGERPRINTS, Layout
from ..option_values import FLAG, choice, number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..format.envelope import Storage
    from .types import EncryptedJWT

    #: An entry of ``previous``.
    PreviousLayout: TypeAlias = "Mapping[str, Any] | EncryptedJWT | ColumnSpec"


#: The default of ``max_length``, in characters.
DEFAULT_MAX_LENGTH: Final = 65_536

#: The name of the fingerprint of the whole token; any other name is that of a claim.
WHOLE: Final = "token"

_U16_MAX: Final = 2**16 - 1  # The context stands behind a length of two bytes (envelope-v1, "AAD").

_KINDS: Final = {
    "storage": choice("binary", "text"),
    "expose_expiry": FLAG,
    "plaintext": choice("refuse", "read", "write"),
    "undecryptable": choice("raise", "sealed"),
    "allow_opaque": FLAG,
    "allow_unsigned": FLAG,
    "max_length": number("a number of characters, at least 1", at_least=1, whole=True),
}


class ColumnKeywords(TypedDict, total=False):
    """The keywords of :class:`EncryptedJWT`."""

    context: str | None
    storage: Storage
    fingerprints: Sequence[str]
    expose_expiry: bool
    plaintext: Literal["refuse", "read", "write"]
    undecryptable: Literal["raise", "sealed"]
    allow_opaque: bool
    allow_unsigned: bool
    max_length: int
    bound_to: Sequence[str]
    previous: Sequence[PreviousLayout]


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """The options of an encrypted column. Immutable and hashable; holds no key and no ring.

    Attributes:
        context: Domain separation, authenticated with each envelope and not stored: an envelope opens in its own
            context only. None means ``table.column``. Not secret, not empty, at most 65,535 bytes of UTF-8. Pin it
            before renaming a table or a column that holds rows.
        storage: ``"binary"`` stores about 0.8 bytes for each character of a token, ``"text"`` about 1.1.
        fingerprints: Up to seven names, each ``"token"`` or a claim such as ``"jti"``. A keyed hash of each is stored,
            and rows are found by it. A reader of the database sees which rows have the same value.
        expose_expiry: Store ``exp`` readably, so that SQL finds expired tokens without keys.
        plaintext: How rows without an envelope are treated: ``"refuse"`` them when loaded; ``"read"`` them, and
            encrypt on write; ``"write"`` plaintext and read both. The steps of adopting a column, in reverse order.
        undecryptable: ``"raise"`` for a row that cannot be opened, or ``"sealed"``: load a :class:`SealedJWT`.
        allow_opaque: Take tokens that are no JWT, such as opaque refresh tokens.
        allow_unsigned: Take JWTs with ``alg: none``.
        max_length: Characters that a token may have.
        bound_to: Columns (or attributes) of the same table whose values are authenticated with each envelope: text,
            integers, UUIDs or bytes, known before the flush. An envelope copied into another row does not open
            there. Such a column is written through the ORM only; a bulk UPDATE of a column that it is bound to
            leaves tokens that do not open.
        previous: Other layouts that rows may have while the table is rewritten: each an ``EncryptedJWT(...)`` or a
            mapping such as ``{"fingerprints": ["jti"]}``, of which ``fingerprints`` and ``expose_expiry`` count.
            Look-ups find the rows of these layouts too; new rows do not get them.

    Raises:
        ConfigurationError: An option has a value that it cannot have.
    """

    context: str | None = None
    storage: Storage = "binary"
    fingerprints: Sequence[str] = ()
    expose_expiry: bool = False
    plaintext: Literal["refuse", "read", "write"] = "refuse"
    undecryptable: Literal["raise", "sealed"] = "raise"
    allow_opaque: bool = False
    allow_unsigned: bool = False
    max_length: int = DEFAULT_MAX_LENGTH
    bound_to: Sequence[str] = ()
    previous: Sequence[PreviousLayout] = ()

    def __post_init__(self) -> None:
        """Check every option, and make it immutable."""
        for name, kind in _KINDS.items():
            kind.check(**{name: getattr(self, name)})
        if self.context is not None:
            _check_context(self.context)
        fingerprints = names_of("fingerprints", self.fingerprints, "each 'token' or a claim such as 'jti'")
        if len(fingerprints) > MAX_FINGERPRINTS:
            raise ConfigurationError(f"an envelope holds at most {MAX_FINGERPRINTS} fingerprints")
        # The dataclass is frozen; this is its constructor.
        put = object.__setattr__
        put(self, "fingerprints", fingerprints)
        put(self, "bound_to", names_of("bound_to", self.bound_to, "each a column of the same table"))
        put(self, "previous", self._other_layouts())

    def _other_layouts(self) -> tuple[ColumnSpec, ...]:
        """Return the layouts of ``previous``, each once and as the options that make it, without today's."""
        found = {self.layout: self}
        for entry in _entries(self.previous):
            for name, default in (("storage", "binary"), ("context", None)):
                value, own = getattr(entry, name), getattr(self, name)
                if value not in (default, own):
                    raise ConfigurationError(
                        f"previous: no look-up with {name}={own!r} finds a row with {name}={value!r}; leave {name} "
                        "out, and write fingerprints and expose_expiry only"
                    )
            for spec in entry.layouts:
                names = found.setdefault(spec.layout, spec).fingerprints
                if names != spec.fingerprints:
                    raise ConfigurationError(
                        f"previous: envelopes with fingerprints={list(names)} and with {list(spec.fingerprints)} "
                        "cannot be told apart, because an envelope says how many it has and not which; add the new "
                        "fingerprint at the end and re-encrypt, then take the old one away"
                    )
        _, *others = found.values()
        return tuple(
            ColumnSpec(fingerprints=one.fingerprints, expose_expiry=one.expose_expiry) for one in others
        )

    @property
    def layouts(self) -> Sequence[ColumnSpec]:
        """The options of each layout that rows may have, today's first."""
        return (self, *cast("tuple[ColumnSpec, ...]", self.previous))

    def layouts_with(self, fingerprint: str) -> Sequence[ColumnSpec]:
        """Return those of :attr:`layouts` that have a fingerprint."""
        return [spec for spec in self.layouts if fingerprint in spec.fingerprints]

    def previous_of(self, entry: PreviousLayout) -> ColumnSpec:
        """Return the one of ``previous`` that has the layout of an entry.

        Raises:
            ConfigurationError: There is none.
        """
        (wanted,) = _entries([entry])
        for one in self.layouts:
            if (one.layout, one.fingerprints) == (wanted.layout, wanted.fingerprints):
                return one
        raise ConfigurationError(f"layout names {wanted.options()}, which is not among the column's previous")

    @property
    def layout(self) -> Layout:
        """The optional fields of the column's envelopes."""
        return Layout(self.expose_expiry, len(self.fingerprints))

    def in_context(self, context: str) -> ColumnSpec:
        """Return the same options for another context."""
        return replace(self, context=context)

    def options(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, lists as lists."""
        options = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                options[field.name] = (
                    [one.options() if isinstance(one, ColumnSpec) else one for one in value]
                    if isinstance(value, tuple)
                    else value
                )
        return options


def _entries(previous: Iterable[Any]) -> Iterator[ColumnSpec]:
    """Yield the options that each entry of ``previous`` names."""
    if isinstance(previous, str | Mapping | ColumnSpec) or not isinstance(previous, Iterable):
        raise ConfigurationError("previous is a list of layouts; put the one into brackets")
    keywords = {field.name for field in fields(ColumnSpec)}
    for entry in previous:
        spec = getattr(entry, "spec", entry)
        if isinstance(spec, Mapping) and spec.keys() <= keywords:
            spec = ColumnSpec(**spec)
        if not isinstance(spec, ColumnSpec):
            raise ConfigurationError(
                "previous lists layouts, each an EncryptedJWT(...) or a mapping with fingerprints and expose_expiry, "
                "as in previous=[{'fingerprints': ['jti']}]"
            )
        yield spec


def _check_context(context: object) -> None:
    data = utf8(context) if isinstance(context, str) else None
    if not data:
        raise ConfigurationError("a context is a text that is not empty, such as 'sessions.token'")
    if b"\0" in data:
        # It ends the context where a fingerprint key is derived (envelope-v1, "Keys").
        raise ConfigurationError(
            "a context holds no NUL character: two contexts could share a fingerprint key"
        )
    if len(data) > _U16_MAX:
        raise ConfigurationError(
            f"the context has {len(data)} bytes in UTF-8; at most {_U16_MAX} can be authenticated"
        )


def names_of(option: str, names: object, meaning: str) -> tuple[str, ...]:
    """Return the names that an option lists.

    Raises:
        ConfigurationError: It is no list of different names; *meaning* says in the message what each is.
    """
    if isinstance(names, str):
        raise ConfigurationError(f"{option} is a list of names; write [{names!r}]")
    checked = tuple(names) if isinstance(names, Iterable) else (names,)
    are_names = all(isinstance(name, str) and utf8(name) for name in checked)
    if not are_names or len(set(checked)) != len(checked):
        raise ConfigurationError(f"{option} are different names, {meaning}")
    return checked


def utf8(text: str) -> bytes | None:
    """Return the UTF-8 of a text, or None: a UnicodeEncodeError would carry the whole text along."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None
