"""JSON objects as values: :class:`TokenDict`, the dictionary of an OAuth token response, and its cipher.

Below the column type a document is a text, so re-encryption, adoption and the audit treat it as any token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.ext.mutable import MutableDict, MutableList
from sqlalchemy.sql.elements import Null

from ..errors import InvalidTokenError, MalformedEnvelopeError
from ..format import envelope
from ..format.claims import parse_object
from ..format.shape import Kind
from ..format.token import JWT, redacted, unchecked_jwt
from ..wording import counted
from .cipher import TokenCipher
from .sealed import SealedJWT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from ..keys.ring import KeyRing

# Levels of objects and lists in a document. Python's own limit depends on the stack of the moment, so that a process
# could write a document that another one cannot load.
_MAX_DEPTH: Final = 100
_TOO_DEEP: Final = "it has more"
_NO_OBJECT: Final = f"it is no JSON object of at most {_MAX_DEPTH} levels: {{}}"
# The frame of a compact JSON object begins so.
_OBJECT: Final = b"\x00{"


class _Part:
    """A container of a document: a change of it is a change of the document."""

    #: The container that it is a member of; None for the document itself.
    owner: TokenDict | TokenList | None = None

    def changed(self) -> None:
        """Note a change, and take over containers that came with it."""
        self.adopt()
        if self.owner is None:
            super().changed()  # type: ignore[misc]
        else:
            self.owner.changed()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(redacted, {counted(len(self), 'member')})"  # type: ignore[arg-type]

    __str__ = __repr__

    def adopt(self) -> None:
        """Replace plain members at any depth: texts by redacted ones, lists and dictionaries by tracked copies."""
        waiting: list[Any] = [self]
        while waiting:
            owner = waiting.pop()
            is_dict = isinstance(owner, dict)
            setter = dict.__setitem__ if is_dict else list.__setitem__
            places: set[int] = set()
            for place, member in owner.items() if is_dict else enumerate(owner):
                kept = _adopted(member, owner, id(member) in places)
                places.add(id(member))
                if kept is not member:
                    setter(owner, place, kept)
                    if isinstance(kept, _Part):
                        waiting.append(kept)


class TokenDict(_Part, MutableDict[str, Any]):
    """The value of an encrypted JSON column: a ``dict`` whose changes are saved and whose ``repr`` shows no value.

    Its texts are ``str`` with a redacted ``repr``, too. Lists and dictionaries within it report their changes, as
    copies of those that were assigned.
    """

    #: The binding of the row that it is on its way into.
    _binding: bytes | None = None

    @classmethod
    def coerce(cls, key: str, value: Any) -> Any:
        """Return an assigned value, or a default, as a TokenDict of its own. ``null()`` is None.

        The column has checked it before, unless a mapped subclass inherits the column: there this comes first.
        """
        if value is None or isinstance(value, Null):
            return None
        if isinstance(value, SealedJWT):
            return value
        text, fault = _compact(value)
        value = None  # Error reporters show local variables.
        if fault:
            raise InvalidTokenError(
                f"{key} does not take this value: {_NO_OBJECT.format(fault)}", reason="not JSON"
            )
        return _document_of(text)

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Return a member, which is the default if there was none. Not the default itself, which is copied."""
        super().setdefault(name, default)
        return self[name]

    def __ior__(self, other: Any) -> Self:  # type: ignore[override,misc]
        self.update(other)
        return self

    def take_binding(self) -> bytes | None:
        """Return the binding the first time, None after that."""
        binding, self._binding = self._binding, None
        return binding


class TokenList(_Part, MutableList[Any]):
    """A list within a :class:`TokenDict`."""


def _adopted(member: Any, owner: TokenDict | TokenList, is_again: bool) -> Any:
    """Return a member as its container keeps it; one that the container has already in another place, as a copy."""
    if type(member) is str:
        return redacted(member)
    if not isinstance(member, dict | list) or (getattr(member, "owner", None) is owner and not is_again):
        return member
    kept = TokenDict(member) if isinstance(member, dict) else TokenList(member)
    kept.owner = owner
    return kept


def _compact(value: object) -> tuple[str, str]:
    """Return the compact JSON text of a mapping or of a JSON text, and what is wrong with it, if anything."""
    if isinstance(value, str):
        is_sealed = envelope.looks_like_envelope(value)
        value = None if is_sealed else parse_object(value.encode("utf-8", "surrogatepass"))
        if value is None:
            return "", "the text holds something else"
    if not isinstance(value, Mapping):
        return "", f"a {type(value).__name__} is neither a mapping nor the text of one"
    try:
        text = json.dumps(dict(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()
    except TypeError as error:
        return "", str(error)  # Of json, which names types only.
    except ValueError:
        return (
            "",
            "NaN, Infinity, 4,300 digits, half a surrogate pair and an object within itself have no JSON form",
        )
    except RecursionError:
        return "", _TOO_DEEP
    return text, _fault_inside(value)


def _fault_inside(document: Any) -> str:
    """Return what is wrong with the levels of a document, although it has a JSON text; or an empty text."""
    level, depth = [document], 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            return _TOO_DEEP
        if not all(isinstance(name, str) for one in level if isinstance(one, Mapping) for name in one):
            return "the name of a member is not text"
        members = (member for one in level for member in (one.values() if isinstance(one, Mapping) else one))
        level = [member for member in members if isinstance(member, Mapping | list | tuple)]
    return ""


def _document_of(text: str) -> TokenDict | None:
    """Return the dictionary of a JSON text; None if it is no object."""
    parsed = parse_object(text.encode("utf-8", "surrogatepass"))
    if parsed is None:
        return None
    document = TokenDict(parsed)
    document.adopt()
    return document


class JSONCipher(TokenCipher):
    """Encrypts and decrypts the documents of one column (envelope-v1, "JSON columns")."""

    expiry_name = "expires_at"
    compared_with = "a JSON object, as a mapping or its text"

    def encrypt(self, value: Any, ring: KeyRing, binding: bytes = b"") -> bytes | str:
        """Return the envelope of a document, a mapping or its JSON text, as :meth:`TokenCipher.encrypt`."""
        document = self.check(value)
        data = document.encode()
        return self.seal(b"\x00" + data, data, document, None, ring.encrypting_key(), binding)

    def check(self, value: object, *, keep_frame: bool = False) -> JWT:  # noqa: ARG002
        """Return the compact JSON text of a mapping, or of a JSON text, if the column takes it.

        Raises:
            InvalidTokenError: It does not; the message names the column and the fault.
        """
        text, fault = _compact(value)
        if fault:
            raise self._refuse("not JSON", _NO_OBJECT.format(fault))
        self._check_length(text)

        return unchecked_jwt(text, Kind.OPAQUE)

    def load(self, stored: bytes | str, ring: KeyRing, binding: bytes = b"") -> TokenDict:
        """Return the dictionary of an envelope; raises as :meth:`TokenCipher.decrypt`."""
        return self.value_of(self.decrypt(stored, ring, binding))

    def value_of(self, text: str) -> TokenDict:  # type: ignore[override]
        """Return a decrypted or checked text as a dictionary.

        Raises:
            MalformedEnvelopeError: The text is no JSON object.
        """
        document = _document_of(text)
        if document is None:
            raise MalformedEnvelopeError(
                f"{self.context}: the envelope authenticates but holds no JSON object; another type wrote it",
                reason="not JSON",
                context=self.context,
            )
        return document

    @staticmethod
    def bound(value: TokenDict, binding: bytes) -> TokenDict:  # type: ignore[override]
        """Return a document together with the binding of its row. The object itself: the row keeps track of it."""
        value._binding = binding  # noqa: SLF001 - of the class above
        return value

    @staticmethod
    def tokens_in(token: JWT) -> Iterator[JWT]:
        """Yield the JWTs among the members of a decrypted document, nested ones too."""
        waiting: list[Any] = [redacted(parse_object(token.encode("utf-8", "surrogatepass")))]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                waiting += value.values()
            elif isinstance(value, list):
                waiting += value
            elif isinstance(value, JWT) and value.kind is not Kind.OPAQUE:
                yield value

    def whole_input(self, value: object) -> bytes | None:
        """Return the bytes that the fingerprint of a whole document is made from."""
        try:
            return self.check(value).encode()
        except InvalidTokenError:
            return None

    @staticmethod
    def payload_of(frame: bytes) -> bytes | None:
        """Return the JSON of a frame; None for the frame of a token."""
        return frame[1:] if frame[:2] == _OBJECT else None

    def is_of_another_type(self, token: str) -> bool:
        """Return True for a token."""
        return token[:1] != "{"
