"""Tokens to stored envelopes and back, for one column: where key ring, token and envelope meet.

Everything that is the same for every row of a column is worked out once, in :class:`TokenCipher`.
:func:`encrypt_token` and :func:`decrypt_token` are the same without a database.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from ..errors import (
    AuthenticationError,
    ConfigurationError,
    DecryptionError,
    InvalidTokenError,
    JWTColumnError,
    MalformedEnvelopeError,
)
from ..format import envelope
from ..format.aead import PREFIX_LENGTH
from ..format.base64url import decode_canonical
from ..format.token import (
    JWT,
    Kind,
    check_text,
    classify,
    expiry_of,
    is_frame,
    pack,
    pack_signed,
    read_claims,
    read_packed_claims,
    unpack,
)
from ..keys.default import resolve_keyring
from ..keys.ring import KeyRing, any_chosen
from ..keys.snapshot import parse_key_id
from . import access
from .spec import WHOLE, ColumnSpec, utf8

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..format.envelope import Storage
    from ..keys.data_key import DataKey
    from ..keys.snapshot import Keys

    BoundValue = str | int | UUID | bytes
    #: What opens an old envelope; what seals a new one, with its associated data and its header.
    _Succession = tuple[Callable[[Any], bytes], Callable[..., bytes], bytes, bytes]

__all__ = ["TokenCipher", "bind_values", "decrypt_token", "encrypt_token"]

_U16_MAX: Final = 2**16 - 1

_REFUSAL: Final = " does not take this value"

_STAMP_LENGTH: Final = envelope.STAMP_FIELD.length
_TEXT_STAMP: Final = slice(len(envelope.TEXT_PREFIX), len(envelope.TEXT_PREFIX) + 2 * _STAMP_LENGTH)

# How many bytes or characters the envelopes have in common that one process writes under one key, without
# optional fields: the stamp, and the prefix of the nonce behind it or behind the dot.
_COMMON_BYTES: Final = _STAMP_LENGTH + PREFIX_LENGTH
_COMMON_CHARACTERS: Final = _TEXT_STAMP.stop + len(".") + PREFIX_LENGTH * 4 // 3

# Each writing process adds one such beginning per 2**16 rows.
_CACHED_OPENERS: Final = 512

# What fits into any column of any database in either form. Longer tokens are bound one by one, and looked at.
_SHORT: Final = 32_768


def _sized(data: bytes, what: str) -> bytes:
    """Return data behind its length as u16."""
    if len(data) > _U16_MAX:
        raise ConfigurationError(
            f"{what} has {len(data)} bytes in UTF-8; at most {_U16_MAX} can be authenticated"
        )
    return len(data).to_bytes(2, "big") + data


def bind_values(values: Iterable[tuple[str, BoundValue]]) -> bytes:
    """Return the part of the associated data that ties an envelope to values of its row, in the order given.

    Raises:
        ConfigurationError: A value that is neither text, integer, UUID nor bytes: None among them.
    """
    parts = []
    for name, value in values:
        parts.append(_sized(name.encode(), "the bound column's name"))
        parts.append(_sized(_canonical(name, value), f"the bound column {name}"))
    return b"".join(parts)


def _canonical(name: str, value: object) -> bytes:
    """Return a bound value as it is authenticated."""
    match value:
        case str():
            return b"s" + value.encode()
        case int() if not isinstance(value, bool):
            return b"i%d" % value
        case UUID():
            return b"u" + value.bytes
        case bytes() | bytearray() | memoryview():
            return b"b" + bytes(value)
    raise ConfigurationError(
        f"the bound column {name} holds {type(value).__name__}; a token can be bound to text, integers, "
        "UUIDs and bytes that are known before the row is written"
    )


class TokenCipher:
    """Encrypts and decrypts the tokens of one column.

    Args:
        spec: The column's options, with a context.

    Raises:
        ConfigurationError: There is no context.
    """

    __slots__ = (
        "_aad_end",
        "_has_optional_fields",
        "_kinds",
        "_layout_byte",
        "_macs",
        "context",
        "expose_expiry",
        "fingerprints",
        "layout",
        "max_length",
        "spec",
        "storage",
    )

    def __init__(self, spec: ColumnSpec) -> None:
        if spec.context is None:
            raise ConfigurationError(
                "this EncryptedJWT belongs to no table, so its context is unknown: give it "
                "context='table.column'"
            )
        self.spec = spec
        self.context = spec.context
        self.fingerprints = spec.fingerprints
        self.expose_expiry = spec.expose_expiry
        self.storage = spec.storage
        self.max_length = spec.max_length
        self.layout = spec.layout
        self._layout_byte = self.layout.byte
        self._has_optional_fields = self.layout != envelope.Layout(has_expiry=False, fingerprints=0)
        self._aad_end = _sized(self.context.encode(), "the context")
        # The key of the last token, and for each fingerprint its name and an HMAC under that key, to be copied.
        self._macs: tuple[DataKey | None, Sequence[tuple[str, HMAC]]] = None, ()
        kinds = {Kind.SIGNED, Kind.ENCRYPTED}
        kinds |= {Kind.UNSIGNED} if spec.allow_unsigned else set()
        kinds |= {Kind.OPAQUE} if spec.allow_opaque else set()
        self._kinds = frozenset(kinds)

    def stamp(self, key_id: str) -> bytes:
        """Return the six bytes with which this column's envelopes under the key of this id begin."""
        return envelope.VERSION + parse_key_id(key_id) + self._layout_byte

    def check(self, value: object, *, keep_frame: bool = False) -> JWT:
        """Return a value as a JWT if the column takes it.

        Args:
            value: Anything.
            keep_frame: Whether the token is about to be bound, so that what was made of it here is kept for that.

        Raises:
            InvalidTokenError: It does not; the message names the column and what is wrong.
        """
        if type(value) is JWT and len(value) <= self.max_length and value.kind in self._kinds:
            return value
        frame = pack_signed(value) if isinstance(value, str) and len(value) <= self.max_length else None
        if frame is not None:
            # The frame proves the kind.
            return JWT._unchecked(cast("str", value), Kind.SIGNED, frame if keep_frame else None)  # noqa: SLF001
        if not isinstance(value, str):
            raise self._refuse("not a str", f"expected str, got {type(value).__name__}")
        if len(value) > self.max_length:
            raise self._refuse(
                "too long", f"it has {len(value)} characters, at most {self.max_length} are allowed"
            )
        if envelope.looks_like_envelope(value) or _looks_like_binary_envelope(value):
            raise self._refuse("already encrypted", "it is encrypted already; bind the token itself")
        try:
            kind = self._classify(value)
        except InvalidTokenError as error:
            raise self._located(error, _REFUSAL) from None
        if kind not in self._kinds:
            raise self._refuse(
                "unsigned",
                "its algorithm is none, so anybody can have made it; allow_unsigned=True on the column takes "
                "it",
            )
        return JWT._unchecked(value, kind)  # noqa: SLF001

    def _classify(self, value: str) -> Kind:
        """Classify a value; what is no JWT is opaque where the column takes that."""
        if Kind.OPAQUE in self._kinds:
            with suppress(InvalidTokenError):
                return classify(value)
            check_text(value)
            if utf8(value) is None:
                raise InvalidTokenError("not a token: it has no UTF-8 form", reason="not UTF-8")
            return Kind.OPAQUE
        return classify(value)

    def _refuse(self, reason: str, explanation: str) -> InvalidTokenError:
        return InvalidTokenError(
            f"{self.context}{_REFUSAL}: {explanation}", reason=reason, context=self.context
        )

    def encrypt(self, value: str, ring: KeyRing, binding: bytes = b"") -> bytes | str:
        """Return the envelope of a token under the ring's active key, in the column's storage form.

        Args:
            value: A ``str`` of a kind that the column takes.
            ring: Its active key encrypts, or the one that :meth:`KeyRing.using` has chosen.
            binding: What :func:`bind_values` made of the row, or empty.

        Raises:
            InvalidTokenError: The column does not take the value, or its ``exp`` or a claim that is to be
                fingerprinted has a form that the envelope does not hold.
        """
        signed = pack_signed(value) if isinstance(value, str) and len(value) <= self.max_length else None
        if signed is None:
            value = self.check(value)
        frame = signed or pack(value)
        key = ring.snapshot().active if any_chosen() is None else ring.encrypting_key()
        header = key.stamp_prefix + self._layout_byte
        if self._has_optional_fields:
            header += self._optional_fields(value, key, signed)
        stored = key.aead.seal(frame, header + self._aad_end + binding, header)
        return stored if self.storage == "binary" else envelope.to_text(stored, len(header))

    def _optional_fields(self, value: str, key: DataKey, signed: bytes | None = None) -> bytes:
        """Return expiry and fingerprints, as far as the layout has them.

        Args:
            value: The token.
            key: The key of its envelope.
            signed: What :func:`pack_signed` made of it, if anything: the payload lies there decoded.
        """
        claims = None
        if self.expose_expiry or self.fingerprints != (WHOLE,):
            if signed is not None:
                claims = read_packed_claims(signed)
            else:
                claims = read_claims(value if isinstance(value, JWT) else JWT._unchecked(value))  # noqa: SLF001
        parts = []
        try:
            if self.expose_expiry:
                expiry = expiry_of(claims)
                parts.append(envelope.NO_EXPIRY if expiry is None else expiry.to_bytes(6, "big"))
            last_key, macs = self._macs
            if key is not last_key:
                macs = [(name, _mac(key, self.context, name)) for name in self.fingerprints]
                self._macs = key, macs
            for name, mac in macs:
                data = value.encode() if name == WHOLE else claim_input(claims, name)
                parts.append(envelope.NO_FINGERPRINT if data is None else _finish(mac, data))
        except InvalidTokenError as error:
            raise self._located(error, _REFUSAL) from None
        return b"".join(parts)

    def decrypt(self, stored: bytes | str, ring: KeyRing, binding: bytes = b"") -> JWT:
        """Return the token of an envelope in either storage form.

        Raises:
            MalformedEnvelopeError: Not an envelope, or a damaged one.
            UnsupportedVersionError: A newer release wrote it.
            UnknownKeyError: The ring lacks its key.
            KeyUnavailableError: The ring lacks its key and could not be loaded again to look for it.
            AuthenticationError: Changed, or written for another context or other bound values.
        """
        try:
            data = stored if type(stored) is bytes else _to_bytes(stored)
            key = ring.snapshot().by_prefix[data[:5]]
            header_length = envelope.HEADER_LENGTHS[data[5]]
            header = data[:header_length]
            frame: bytes | None = key.aead.open(data, header + self._aad_end + binding, header_length)
        except (LookupError, InvalidTag, DecryptionError):
            frame = None
        # Outside the handler, so that no error carries the first bytes of a stored value as its context.
        if frame is None:
            frame = self._open_with_care(stored, ring, binding)
        token = unpack(frame)
        if token is None:
            raise self._unknown_frame(stored)
        if access.note is not None:
            access.note(self.context, envelope.key_id_bytes(stored))
        return str.__new__(JWT, token)

    def binder(
        self,
        keyring: KeyRing | str | None,
        careful: Callable[[Any], Any],
        to_driver: Callable[[Any], Any] | None,
    ) -> Callable[[Any], Any]:
        """Return *careful*, which binds one value, with a short cut for most of many values.

        A signed token of usual length whose header was seen before needs no check but being packed, and its
        envelope has header and associated data in common with all others under the key. Whatever is not such
        a token is for *careful*, and so is whatever fails: NULL, other types, other kinds of tokens.

        Args:
            keyring: As a column names it.
            careful: Encrypts by :meth:`encrypt`, or does what the column does instead.
            to_driver: What the database's driver wants done with what is stored, or None.
        """
        if self._has_optional_fields:
            return careful  # Header and associated data differ from row to row.
        given = keyring if isinstance(keyring, KeyRing) else None
        longest = min(self.max_length, _SHORT)
        is_text = self.storage == "text"
        # Replaced whole: another thread must not see one key beside another's header.
        common: tuple[DataKey | None, bytes, bytes] = None, b"", b""

        def bind(value: Any) -> Any:
            nonlocal common
            try:
                signed = pack_signed(value) if isinstance(value, str) and len(value) <= longest else None
                if signed is not None:
                    ring = given or resolve_keyring(keyring)
                    key = ring.snapshot().active if any_chosen() is None else ring.encrypting_key()
                    last_key, header, aad = common
                    if key is not last_key:
                        header = key.stamp_prefix + self._layout_byte
                        aad = header + self._aad_end
                        common = key, header, aad
                    sealed = key.aead.seal(signed, aad, header)
                    stored = envelope.to_text(sealed, len(header)) if is_text else sealed
                    return stored if to_driver is None else to_driver(stored)
            except Exception:  # noqa: BLE001 - it happens again below, and is reported there
                signed = None
            try:
                return careful(value)
            finally:
                value = None  # Error reporters show local variables.

        return bind

    def loader(self, keyring: KeyRing | str | None, careful: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return *careful*, which loads one stored value, with a short cut for most of many values.

        What a process writes under one key begins with the same bytes: the stamp, and the prefix of the nonce.
        Key, derived key and associated data follow from these, so they are found by them all at once. Whatever
        is not found, or does not open, is for *careful*: NULL, other layouts, keys to be loaded again, damage.

        Args:
            keyring: As a column names it.
            careful: Loads by :meth:`decrypt`, or does what the column does instead.
        """
        if self._has_optional_fields:
            return careful  # The associated data differs from row to row.
        form: Any = bytes
        beginning = slice(_COMMON_BYTES)
        if self.storage == "text":
            form, beginning = str, slice(_COMMON_CHARACTERS)
        given = keyring if isinstance(keyring, KeyRing) else None
        # Thrown away when the ring changes, so that no key outlives its place in the ring.
        known: tuple[Keys | None, dict[Any, Callable[[Any], bytes]]] = None, {}
        new = str.__new__

        def load(stored: Any) -> Any:
            if type(stored) is form:
                try:
                    keys, openers = known
                    if keys is (given or resolve_keyring(keyring)).snapshot():
                        token = unpack(openers[stored[beginning]](stored))
                        if token is not None:
                            if access.note is not None:
                                access.note(self.context, envelope.key_id_bytes(stored))
                            return new(JWT, token)
                except (LookupError, InvalidTag, ValueError, JWTColumnError):
                    pass
            return load_carefully(stored)

        def load_carefully(stored: Any) -> Any:
            nonlocal known
            loaded = careful(stored)
            if type(stored) is form and type(loaded) is JWT:
                keys = (given or resolve_keyring(keyring)).snapshot()
                if keys is not known[0] or len(known[1]) >= _CACHED_OPENERS:
                    known = keys, {}
                open_frame = self._opener(stored, keys)
                if open_frame is not None:
                    known[1][stored[beginning]] = open_frame
            return loaded

        return load

    def _opener(self, stored: Any, keys: Keys) -> Callable[[Any], bytes] | None:
        """Return what opens the envelopes that begin like this one; None where the beginning is not enough."""
        if not envelope.looks_like_envelope(stored):
            return None
        is_text = type(stored) is str
        stamp = bytes.fromhex(stored[_TEXT_STAMP]) if is_text else stored[:_STAMP_LENGTH]
        key = keys.by_prefix.get(stamp[:-1])
        if key is None or stamp[-1:] != self._layout_byte:
            return None
        aad = stamp + self._aad_end
        if not is_text:
            return key.aead.opener(stored[_STAMP_LENGTH:_COMMON_BYTES], aad, _COMMON_BYTES)
        # Canonical, or it would not have been opened carefully before.
        prefix = cast("bytes", decode_canonical(stored[_TEXT_STAMP.stop + 1 : _COMMON_CHARACTERS]))
        open_rest = key.aead.opener(prefix, aad)

        def open_text(stored: str) -> bytes:
            rest = decode_canonical(stored[_COMMON_CHARACTERS:])
            if rest is None:
                raise InvalidTag
            return open_rest(rest)

        return open_text

    def _open_with_care(self, stored: bytes | str, ring: KeyRing, binding: bytes) -> bytes:
        """Open what did not open at once: after a reload of the ring, or not at all, saying why."""
        try:
            data = _to_bytes(stored)
            header_length = envelope.split(data)
            key = ring.key(data[1:5])
        except JWTColumnError as error:
            raise self._located(error) from error.__cause__
        try:
            return key.aead.open(data, data[:header_length] + self._aad_end + binding, header_length)
        except InvalidTag:
            raise AuthenticationError(
                f"{self.context}: the envelope ({len(data)} bytes) does not authenticate under key {key.id}: "
                "it was changed, or written for another column or row",
                context=self.context,
                key_id=key.id,
            ) from None

    def resealer(self, ring: KeyRing) -> Callable[..., bytes | str]:
        """Return the function that puts a stored token into a new envelope, for the rows of a whole table.

        It takes a stored value and, for a column that binds row values, the binding; it returns the same token under
        the key that is active now, of the ring or of the row's tenant, with today's layout and storage form. The new
        envelope is opened and compared before it is returned: it is about to replace the only copy. The shape of the
        token is not checked again, because a column may have become stricter since it was stored, and base64url is
        left packed.

        The function raises what :meth:`decrypt` raises, and InvalidTokenError where the claims cannot be
        fingerprinted as the column now asks.
        """
        # Once: rows that are written while a table is re-encrypted must not end up under two keys.
        keys = ring.snapshot()
        layout_byte = self._layout_byte
        aad_end = self._aad_end
        header_lengths = envelope.HEADER_LENGTHS
        has_optional_fields, is_text = self._has_optional_fields, self.storage == "text"

        def reseal(stored: bytes | str, binding: bytes = b"") -> bytes | str:
            try:
                data = stored if type(stored) is bytes else _to_bytes(stored)
                old = ring.snapshot().by_prefix[data[:5]]
                length = header_lengths[data[5]]
                frame: bytes | None = old.aead.open(data, data[:length] + aad_end + binding, length)
            except (LookupError, InvalidTag, DecryptionError):
                frame = None
            if frame is None:
                frame = self._open_with_care(stored, ring, binding)
                old = ring.key(_to_bytes(stored)[1:5])
            if not is_frame(frame):
                raise self._unknown_frame(stored)
            key = keys.successor(old)
            header = key.stamp_prefix + layout_byte
            if has_optional_fields:
                header += self._optional_fields(cast("str", unpack(frame)), key)
            aad = header + aad_end + binding
            sealed = key.aead.seal(frame, aad)
            try:
                opened: bytes | None = key.aead.open(sealed, aad)
            except InvalidTag:
                opened = None
            if opened != frame:
                raise DecryptionError(
                    f"{self.context}: a new envelope under key {key.id} did not give its token back, and was not "
                    "used; this is a fault of the machine or of this package",
                    context=self.context,
                    key_id=key.id,
                )
            return envelope.to_text(header + sealed, len(header)) if is_text else header + sealed

        return reseal if has_optional_fields else self._quick_resealer(ring, keys, reseal)

    def _quick_resealer(
        self, ring: KeyRing, keys: Keys, careful: Callable[..., bytes | str]
    ) -> Callable[..., bytes | str]:
        """Return *careful*, which reseals one stored value, with a short cut for most of many values.

        As in :meth:`loader`: what a process wrote under one key begins with the same bytes, and all that is needed to
        open it follows from these. The same goes for the new envelope, which is opened as any stored one is. Whatever
        is not known yet, or is not as it should be, is for *careful*.
        """
        form: Any = bytes
        beginning = slice(_COMMON_BYTES)
        if self.storage == "text":
            form, beginning = str, slice(_COMMON_CHARACTERS)
        is_text = form is str
        # By how an old envelope begins, what opens it and seals its successor; by how that begins, what opens that.
        successions: dict[Any, _Succession] = {}
        openers: dict[Any, Callable[[Any], bytes]] = {}
        opened_by = keys

        def reseal(stored: Any, binding: bytes = b"") -> bytes | str:
            if type(stored) is form and not binding and ring.snapshot() is opened_by:
                try:
                    open_old, seal, aad, header = successions[stored[beginning]]
                    frame = open_old(stored)
                    if is_frame(frame):
                        new: Any = seal(frame, aad, header)
                        if is_text:
                            new = envelope.to_text(new, _STAMP_LENGTH)
                        # It is about to replace the only copy.
                        if openers[new[beginning]](new) == frame:
                            return new  # type: ignore[no-any-return]
                except (LookupError, InvalidTag, ValueError):
                    pass
            return reseal_carefully(stored, binding)

        def reseal_carefully(stored: Any, binding: bytes) -> bytes | str:
            nonlocal opened_by
            new = careful(stored, binding)
            if type(stored) is form and not binding:
                current = ring.snapshot()
                if current is not opened_by or len(successions) >= _CACHED_OPENERS:
                    # Thrown away when the ring changes, so that no key outlives its place in the ring.
                    successions.clear()
                    openers.clear()
                    opened_by = current
                open_old, open_new = self._opener(stored, current), self._opener(new, current)
                if open_old is not None and open_new is not None:
                    key = current.by_prefix[_to_bytes(new)[: _STAMP_LENGTH - 1]]
                    header = key.stamp_prefix + self._layout_byte
                    successions[stored[beginning]] = open_old, key.aead.seal, header + self._aad_end, header
                    openers[new[beginning]] = open_new
            return new

        return reseal

    def _unknown_frame(self, stored: bytes | str) -> MalformedEnvelopeError:
        return MalformedEnvelopeError(
            f"{self.context}: the envelope authenticates but holds no known frame; "
            "a program other than jwt-column wrote it",
            reason="frame",
            context=self.context,
            key_id=envelope.parse(stored).key_id,
        )

    def _located(self, error: JWTColumnError, verb: str = "") -> JWTColumnError:
        """Put the column's name in front of an error that the layers below could not place.

        The same error, not a new one: whose context the old one would be, frames and local variables and all.
        """
        error.args = (f"{self.context}{verb}: {error}",)
        error.context = self.context
        return error.with_traceback(None)


def _looks_like_binary_envelope(value: str) -> bool:
    """Say whether a text is what some driver or program made of a binary envelope's bytes."""
    return "\x00" < value[:1] < " " and not value[0].isspace()


def _to_bytes(stored: object) -> bytes:
    """Return the binary form of a stored value as ``bytes``; some drivers give other buffers.

    Raises:
        MalformedEnvelopeError: Not the text form; or a number, which ``bytes()`` would take for a length.
    """
    if isinstance(stored, str):
        return envelope.to_binary(stored)
    if isinstance(stored, bytes | bytearray | memoryview):
        return bytes(stored)
    raise MalformedEnvelopeError(f"an envelope is bytes or str, not {type(stored).__name__}", reason="type")


def claim_input(claims: dict[str, object] | None, name: str) -> bytes | None:
    """Return what is fingerprinted of a claim; None when the token does not have it.

    Raises:
        InvalidTokenError: The claim is neither text nor an integer.
    """
    if claims is None or name not in claims:
        return None
    return claim_value_input(name, claims[name])


def claim_value_input(name: str, value: object) -> bytes:
    """Return what is fingerprinted of a claim's value: ``s`` and UTF-8, or ``i`` and decimal digits.

    Raises:
        InvalidTokenError: The value is neither text nor an integer.
    """
    if isinstance(value, str):
        data = utf8(value)
        if data is None:
            raise InvalidTokenError(f"the claim {name} has no UTF-8 form", reason="claim")
        return b"s" + data
    if isinstance(value, int) and not isinstance(value, bool):
        # Python writes out no integer of more than 4300 digits.
        with suppress(ValueError):
            return b"i%d" % value
    raise InvalidTokenError(
        f"the claim {name} is neither text nor an integer, so it has no fingerprint", reason="claim"
    )


def fingerprint(key: DataKey, context: str, name: str, data: bytes) -> bytes:
    """Return the 16-byte fingerprint: HMAC-SHA256 under the key of context and name, truncated."""
    return _finish(_mac(key, context, name), data)


def _mac(key: DataKey, context: str, name: str) -> HMAC:
    """Return HMAC-SHA256 under the key of context and name: for many fingerprints, it is keyed once."""
    return HMAC(key.fingerprint_key(context, name), SHA256())


def _finish(mac: HMAC, data: bytes) -> bytes:
    """Return the fingerprint of some data."""
    # A copy costs a third of what hmac.digest() does, which looks its algorithm up at every call.
    mac = mac.copy()
    mac.update(data)
    return mac.finalize()[: envelope.FINGERPRINT_LENGTH]


def encrypt_token(
    token: str,
    ring: KeyRing,
    *,
    context: str,
    fingerprints: Sequence[str] = (),
    expose_expiry: bool = False,
    storage: Storage = "binary",
    allow_opaque: bool = False,
    allow_unsigned: bool = False,
) -> bytes | str:
    """Return a token as a column with these parameters would store it.

    Args:
        token: A compact JWS or JWE of at most 65,536 characters. Not verified.
        ring: Its active key encrypts.
        context: Domain separation; for a row of a table ``"table.column"``. Not secret.
        fingerprints: Names, in the column's order.
        expose_expiry: Whether the header holds ``exp``.
        storage: ``"binary"`` gives bytes, ``"text"`` gives ASCII.
        allow_opaque: Whether a token that is no JWT is taken.
        allow_unsigned: Whether ``alg: none`` is taken.

    Raises:
        InvalidTokenError: Not a token, or a claim that cannot be fingerprinted.
        ConfigurationError: A parameter that no column has.
    """
    spec = ColumnSpec(
        context=context,
        fingerprints=fingerprints,
        expose_expiry=expose_expiry,
        storage=storage,
        allow_opaque=allow_opaque,
        allow_unsigned=allow_unsigned,
    )
    return TokenCipher(spec).encrypt(token, ring)


def decrypt_token(stored: bytes | str, ring: KeyRing, *, context: str) -> JWT:
    """Return the token of a stored envelope, whichever storage form, fingerprints or expiry it has.

    Raises:
        DecryptionError: Malformed, of a newer version, or not authentic; see the subclasses.
        KeyRingError: Its key is not to be had.
    """
    return TokenCipher(ColumnSpec(context=context)).decrypt(stored, ring)
