"""Tokens to stored envelopes and back, for one column: where key ring, token and envelope meet.

There is one way in and one way out. In: a token is checked and packed into a frame, and the frame is sealed. Out: an
envelope is opened, which gives the frame, and the frame is unpacked. Re-encryption opens, seals, and opens again to
compare. :func:`encrypt_token` and :func:`decrypt_token` are the same without a database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidTag

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
from ..format.claims import parse_object
from ..format.envelope import EXPIRY_FIELD, EXPIRY_LENGTH, NO_EXPIRY, STAMP_FIELD
from ..format.frame import begins_as_jws, is_frame, pack, unpack, unpack_jws
from ..format.shape import Kind, Shape, check_characters, check_text, pack_signed, payload_of, shape_of
from ..format.token import JWT, given_expiry, take_frame, unchecked_jwt
from ..frames import hides_locals
from ..keys.ring import KeyRing, any_chosen
from ..keys.snapshot import parse_key_id
from .binding import BoundJWT, sized
from .index_fields import IndexFields
from .spec import WHOLE, ColumnSpec, utf8

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..format.envelope import Storage
    from ..keys.data_key import DataKey
    from ..keys.snapshot import Keys

    _Open = Callable[[bytes, int, bytes], bytes]


# Each writing process adds one prefix per 2**16 rows.
_CACHED_OPENERS: Final = 512

_STAMP_LENGTH: Final = STAMP_FIELD.length

_as_jwt: Final = str.__new__

_REFUSAL: Final = " does not take this value"

#: The reason of a refusal to re-encrypt what the other column type wrote.
OTHER_TYPE: Final = "other type"

# Reasons for which an opaque token is refused by a column of JWTs.
_NO_JWT: Final = ("segments", "header", "not base64url", "no signature")

# The hook of the access trail: called once per decrypted token, with its context and the 4 bytes of its key id.
_on_decryption: Callable[[str, bytes], None] | None = None


def report_decryptions(hook: Callable[[str, bytes], None] | None) -> None:
    """Call *hook* for each token that is decrypted, with the context and the 4 bytes of the key id; None: no longer."""
    global _on_decryption
    _on_decryption = hook


class TokenCipher:
    """Encrypts and decrypts the tokens of one column.

    Raises:
        ConfigurationError: Its options have no context.
    """

    # Read for every row, which slots make a fiftieth faster.
    __slots__ = (
        "_aad_end", "_exposes_expiry", "_fields", "_header_length", "_is_text", "_kinds", "_layout_byte",
        "_max_length", "_openers", "_prefix_end", "_stamped", "context", "layout", "spec", "storage",
    )  # fmt: skip

    #: The claim that is the expiry.
    expiry_name = "exp"
    #: The kind of value that a whole value is compared with, for an error.
    compared_with = "a str that has a UTF-8 form"

    @staticmethod
    def payload_of(frame: bytes) -> bytes | None:
        """Return the claims of a frame as JSON; None for a token without readable claims."""
        return payload_of(frame)

    def is_of_another_type(self, token: str) -> bool:
        """Return True for a JSON object, whose members this type cannot read."""
        is_taken = self.spec.allow_opaque and not set(self.spec.fingerprints) - {WHOLE}
        return token[:1] == "{" and not is_taken and parse_object(token.encode()) is not None

    @staticmethod
    def bound(value: JWT, binding: bytes) -> Any:
        """Return a loaded or checked value together with the binding of its row."""
        return BoundJWT.of(value, binding)

    def __init__(self, spec: ColumnSpec) -> None:
        if spec.context is None:
            raise ConfigurationError(
                "this EncryptedJWT belongs to no table, so its context is unknown: give it "
                "context='table.column'"
            )
        self.spec: ColumnSpec = spec
        self.context: str = spec.context
        self.storage = spec.storage
        self.layout: envelope.Layout = spec.layout
        self._exposes_expiry = spec.expose_expiry
        self._is_text = spec.storage == "text"
        self._max_length = spec.max_length
        self._layout_byte = self.layout.byte
        self._header_length = self.layout.header_length
        self._prefix_end = self._header_length + PREFIX_LENGTH
        self._fields = (
            IndexFields(spec, self.expiry_name) if self._header_length > STAMP_FIELD.length else None
        )
        # By stamp and nonce prefix, which the envelopes of one process have in common: their opener and key, and their
        # associated data if they have no index fields. The whole is replaced, because another thread must not see the
        # openers of another snapshot of the ring.
        self._openers: tuple[Keys | None, dict[bytes, tuple[_Open, DataKey, bytes]]] = None, {}
        self._aad_end = sized(self.context.encode(), "the context")
        # Of the last key: the stamp, and the associated data of an envelope without index fields and binding.
        # Replaced whole, as the openers are.
        self._stamped: tuple[DataKey | None, bytes, bytes] = None, b"", b""
        # No set: it would ask each member for its hash, in Python, and the first is nearly always the right one.
        kinds = [Kind.SIGNED, Kind.ENCRYPTED]
        kinds += [Kind.UNSIGNED] if spec.allow_unsigned else []
        kinds += [Kind.OPAQUE] if spec.allow_opaque else []
        self._kinds = tuple(kinds)

    def stamp(self, key_id: str, layout: bytes | None = None) -> bytes:
        """Return the six bytes with which envelopes under the key of this id begin, of today's or another layout."""
        return envelope.VERSION + parse_key_id(key_id) + (layout or self._layout_byte)

    def encrypt(self, value: str, ring: KeyRing, binding: bytes = b"") -> bytes | str:
        """Return the envelope of a token under the ring's active key, in the column's storage form.

        Args:
            value: A ``str`` of a kind that the column takes.
            ring: Its active key encrypts, or the one that :meth:`KeyRing.using` has chosen.
            binding: The result of :func:`binding_of` for the row, or empty.

        Raises:
            InvalidTokenError: The column does not take the value.
        """
        packed = self._kept(value) if type(value) is JWT else None
        if packed is None:
            packed = pack_signed(value, self._max_length)
        if packed is None:
            value = _revealed(value)
            _, frame, payload = self._admit(value)
        else:
            frame, payload = packed
        expiry = None
        if payload is None and self._exposes_expiry:
            given = given_expiry(value)
            expiry = None if given is None else given.to_bytes(EXPIRY_LENGTH, "big")
        key = ring.snapshot().active if any_chosen() is None else ring.encrypting_key()
        return self.seal(frame, payload, value, expiry, key, binding)

    def check(self, value: object, *, keep_frame: bool = False) -> JWT:
        """Return a value as a JWT if the column takes it; with its frame, if it is about to be encrypted.

        Raises:
            InvalidTokenError: It does not; the message names the column and the fault.
        """
        if type(value) is JWT and len(value) <= self._max_length and value.kind in self._kinds:
            return value
        packed = pack_signed(value, self._max_length)
        if packed is not None:
            return unchecked_jwt(value, Kind.SIGNED, packed[0] if keep_frame else None)  # type: ignore[arg-type]
        value = _revealed(value)
        kind, frame, _ = self._admit(value)
        return unchecked_jwt(value, kind, frame if keep_frame else None, given_expiry(value))  # type: ignore[arg-type]

    def whole_input(self, value: object) -> bytes | None:
        """Return the bytes that the fingerprint of a whole token is made from; None for a value that is none."""
        return utf8(value) if isinstance(value, str) else None

    def _kept(self, token: JWT) -> tuple[bytes, bytes | None] | None:
        """Return frame and payload of a token whose frame was kept, if the column takes it; else None.

        Without index fields the payload is not looked for.
        """
        frame = take_frame(token)
        if frame is None or len(token) > self._max_length or token.kind not in self._kinds:
            return None
        return frame, None if self._fields is None else payload_of(frame)

    def _admit(self, value: Any) -> Shape:
        """Return the shape of a value, if the column takes it."""
        if not isinstance(value, str):
            raise self._refuse("not a str", f"expected str, got {type(value).__name__}")
        self._check_length(value)
        refusal = None

        try:
            shape = shape_of(value)
        except InvalidTokenError as error:
            refusal = error.with_traceback(None)
        if refusal is not None:
            shape = self._admit_opaque(value, refusal)
        if shape.kind not in self._kinds:
            raise self._refuse(
                "unsigned",
                "its algorithm is none, so that anyone can have made it; allow_unsigned=True on the column "
                "takes it",
            )
        return shape

    def _admit_opaque(self, value: str, refusal: InvalidTokenError) -> Shape:
        """Return the shape of a value that is no JWT, if the column takes it as an opaque token."""
        if envelope.looks_like_envelope(value) or envelope.looks_like_binary_as_text(value):
            raise self._refuse("already encrypted", "it is encrypted already; bind the token itself")
        if Kind.OPAQUE not in self._kinds:
            if refusal.reason in _NO_JWT:
                takes = (
                    "an EncryptedJSON takes JSON objects"
                    if value.lstrip()[:1] == "{"
                    else "allow_opaque=True on the column takes tokens that are no JWT"
                )
                refusal.args = (f"{refusal}; {takes}",)
            raise self._located(refusal, _REFUSAL)
        if utf8(value) is None:
            raise self._refuse("not UTF-8", "it has no UTF-8 form")
        try:
            check_text(value)
            # A JWT was checked when it was made, or an earlier release stored it.
            if not isinstance(value, JWT):
                check_characters(value)
        except InvalidTokenError as error:
            raise self._located(error, _REFUSAL) from None
        return Shape(Kind.OPAQUE, pack(value))

    def seal(
        self,
        frame: bytes,
        payload: bytes | None,
        token: str | None,
        expiry: bytes | None,
        key: DataKey,
        binding: bytes,
    ) -> bytes | str:
        """Return the envelope of a frame under a key, in the column's storage form.

        The arguments are those of :meth:`IndexFields.of`, and the result of :func:`binding_of` for the row, or empty.
        """
        last_key, header, aad = self._stamped
        if key is not last_key:
            header = key.stamp_prefix + self._layout_byte
            aad = header + self._aad_end
            self._stamped = key, header, aad
        if self._fields is not None:
            header += self._fields.of(payload, frame, key, token, expiry)
            aad = header + self._aad_end
        if binding:
            aad += binding
        if self._is_text:
            return envelope.as_text(header, key.aead.seal(frame, aad))
        return key.aead.seal(frame, aad, header)

    def decrypt(self, stored: bytes | str, ring: KeyRing, binding: bytes = b"") -> JWT:
        """Return the token of an envelope in either storage form.

        Raises:
            MalformedEnvelopeError: Not an envelope, or a damaged one.
            UnsupportedVersionError: A newer release wrote it.
            UnknownKeyError: The ring lacks its key.
            KeyUnavailableError: The ring lacks its key and could not be loaded again to look for it.
            AuthenticationError: Changed, or written for another context or other bound values.
        """
        frame, key = self._open(stored, ring, binding)
        token, expiry = unpack_jws(frame), None
        if token is None:
            token = unpack(frame)
            if token is None:
                raise self._unknown_frame(key)
            if self._exposes_expiry and not begins_as_jws(frame):
                expiry = _given_expiry(stored)
        if _on_decryption is not None:
            _on_decryption(self.context, key.id_bytes)
        return _as_jwt(JWT, token) if expiry is None else unchecked_jwt(token, expiry=expiry)

    #: Return the value that a column loads, as :meth:`decrypt`.
    load: Callable[..., Any] = decrypt

    @staticmethod
    def value_of(token: JWT) -> Any:
        """Return the value that a column loads for a decrypted or checked token."""
        return token

    @staticmethod
    def tokens_in(token: JWT) -> Iterable[JWT]:
        """Return the tokens that a decrypted token holds: itself."""
        return (token,)

    def _open(self, stored: bytes | str, ring: KeyRing, binding: bytes) -> tuple[bytes, DataKey]:
        """Return the frame of a stored envelope, and its key."""
        try:
            data = stored if type(stored) is bytes else _to_bytes(stored)
            keys, openers = self._openers
            if keys is ring.snapshot():
                prefix_end = self._prefix_end
                if self._fields is None:
                    open_next, key, aad = openers[data[:prefix_end]]
                else:
                    length = self._header_length
                    open_next, key, _ = openers[data[:_STAMP_LENGTH] + data[length:prefix_end]]
                    aad = data[:length] + self._aad_end
                return open_next(data, prefix_end, aad + binding if binding else aad), key
        except (LookupError, InvalidTag, ValueError, JWTColumnError):
            pass
        # Outside the handler, so that no error carries the first bytes of a stored value as its context.
        return self._open_first(stored, ring, binding)

    def _open_first(self, stored: bytes | str, ring: KeyRing, binding: bytes) -> tuple[bytes, DataKey]:
        """Open an envelope of a beginning that was not seen yet, of another layout, or a damaged one."""
        try:
            data = _to_bytes(stored)
            length = envelope.split(data)
            key = ring.key(data[1:5])
        except JWTColumnError as error:
            raise self._located(error) from error.__cause__
        try:
            frame = key.aead.open(data, data[:length] + self._aad_end + binding, length)
        except InvalidTag:
            raise AuthenticationError(
                f"{self.context}: the envelope ({len(data)} bytes) does not authenticate under key {key.id}: "
                "it was changed, or written for another column or row",
                context=self.context,
                key_id=key.id,
            ) from None
        if length == self._header_length:
            current = ring.snapshot()
            keys, openers = self._openers
            if keys is not current or len(openers) >= _CACHED_OPENERS:
                # Replaced when the ring changes, so that no key outlives its place in the ring.
                openers = {}
                self._openers = current, openers
            if current.by_prefix.get(key.stamp_prefix) is key:
                stamp, prefix = data[:_STAMP_LENGTH], data[length : self._prefix_end]
                openers[stamp + prefix] = key.aead.opener(prefix), key, stamp + self._aad_end
        return frame, key

    def unindexed(self, token: JWT) -> tuple[Sequence[str], bool]:
        """Return the result of :meth:`IndexFields.unindexed` for a token that was opened."""
        return ((), False) if self._fields is None else self._fields.unindexed(self.payload_of(pack(token)))

    def has_other_fields(self, stored: bytes | str, token: JWT, ring: KeyRing) -> bool:
        """Return True if the header of an envelope that was opened shows other index fields than its token has.

        An envelope of another layout is stale, and not compared.
        """
        data = _to_bytes(stored)
        if self._fields is None or data[5:6] != self._layout_byte:
            return False
        frame = pack(token)
        payload, key = self.payload_of(frame), ring.key(data[1:5])
        fields = self._fields.of(payload, frame, key, token, _expiry_field(stored))
        return data[STAMP_FIELD.length : envelope.split(data)] != fields

    def resealer(self, ring: KeyRing) -> Callable[..., bytes | str]:
        """Return the function that puts a stored token into a new envelope, for the rows of a whole table.

        It takes a stored value and, for a column that binds row values, the binding; it returns the same token under
        the key that is active now, of the ring or of the row's tenant, with today's layout, storage form and index
        fields, worked out anew. The expiry of a token without readable claims is carried over. The new envelope is
        opened and compared before it is returned, because it replaces the only copy. The shape of the token is not
        checked again, because a column may have become stricter since it was stored, and base64url is left packed.

        The function raises the errors of :meth:`decrypt`.
        """
        # Once: rows that are written while a table is re-encrypted must not end up under two keys.
        keys = ring.snapshot()

        def reseal(stored: bytes | str, binding: bytes = b"") -> bytes | str:
            frame, old = self._open(stored, ring, binding)
            if not is_frame(frame):
                raise self._unknown_frame(old)
            key = keys.successor(old)
            # Without index fields neither is looked for.
            payload, expiry = (
                (None, None) if self._fields is None else (self.payload_of(frame), _expiry_field(stored))
            )
            if payload is None and self._fields is not None and self.is_of_another_type(unpack(frame) or ""):
                self._refuse_lost_members(stored)
            new = self.seal(frame, payload, None, expiry, key, binding)
            data = new if type(new) is bytes else _to_bytes(new)
            length = self._header_length
            try:
                opened: bytes | None = key.aead.open(data, data[:length] + self._aad_end + binding, length)
            except InvalidTag:
                opened = None
            if opened != frame:
                raise DecryptionError(
                    f"{self.context}: a new envelope under key {key.id} did not give its token back, and was not "
                    "used; this is a fault of the machine or of this package",
                    context=self.context,
                    key_id=key.id,
                )
            return new

        return reseal

    def _refuse_lost_members(self, stored: bytes | str) -> None:
        """Refuse an envelope whose fingerprints of members or claims this type could not make again."""
        names = (*self.spec.fingerprints, *(None,) * envelope.MAX_FINGERPRINTS)
        found = envelope.parse(_to_bytes(stored)).fingerprints
        if any(
            name != WHOLE and value != envelope.NO_FINGERPRINT
            for name, value in zip(names, found, strict=False)
        ):
            raise self._refuse(
                OTHER_TYPE,
                "another type wrote it, EncryptedJWT or EncryptedJSON, and this one would drop its fingerprints",
            )

    def _check_length(self, text: str) -> None:
        if len(text) > self._max_length:
            size = f"it has {len(text)} characters, at most {self._max_length} are allowed"
            raise self._refuse("too long", size)

    def _refuse(self, reason: str, explanation: str) -> InvalidTokenError:
        return InvalidTokenError(
            f"{self.context}{_REFUSAL}: {explanation}", reason=reason, context=self.context
        )

    def _unknown_frame(self, key: DataKey) -> MalformedEnvelopeError:
        return MalformedEnvelopeError(
            f"{self.context}: the envelope authenticates but holds no known frame; "
            "a program other than jwt-column wrote it",
            reason="frame",
            context=self.context,
            key_id=key.id,
        )

    def _located(self, error: JWTColumnError, verb: str = "") -> JWTColumnError:
        """Put the column's name in front of an error that the layers below could not place.

        The same error, not a new one: whose context the old one would be, frames and local variables and all.
        """
        error.args = (f"{self.context}{verb}: {error}",)
        error.context = self.context
        return error.with_traceback(None)


def _revealed(value: Any) -> Any:
    """Return the text of a pydantic ``SecretStr``, which ``model_dump()`` gives; any other value as it is."""
    reveal = None if isinstance(value, str) else getattr(value, "get_secret_value", None)
    return value if reveal is None else reveal()


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


def _expiry_field(stored: bytes | str) -> bytes | None:
    """Return the expiry field of an envelope that was opened; None if its layout has none."""
    data = _to_bytes(stored)
    return data[EXPIRY_FIELD.offset : EXPIRY_FIELD.offset + EXPIRY_LENGTH] if data[5] & 1 else None


def _given_expiry(stored: bytes | str) -> int | None:
    """Return the expiry of an envelope that was opened, in seconds since 1970; None without one."""
    field = _expiry_field(stored)
    return None if field is None or field == NO_EXPIRY else int.from_bytes(field, "big")


@hides_locals
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
    """Return a token as a column with these options would store it.

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
        InvalidTokenError: Not a token that such a column takes.
        ConfigurationError: A parameter that no column has.
    """
    _require_ring(ring)
    spec = ColumnSpec(
        context=context,
        fingerprints=fingerprints,
        expose_expiry=expose_expiry,
        storage=storage,
        allow_opaque=allow_opaque,
        allow_unsigned=allow_unsigned,
    )
    return TokenCipher(spec).encrypt(token, ring)


@hides_locals
def decrypt_token(stored: bytes | str, ring: KeyRing, *, context: str) -> JWT:
    """Return the token of a stored envelope, whichever storage form, fingerprints or expiry it has.

    Raises:
        DecryptionError: Malformed, of a newer version, or not authentic; see the subclasses.
        KeyRingError: The ring lacks its key.
    """
    _require_ring(ring)
    return TokenCipher(ColumnSpec(context=context)).decrypt(stored, ring)


def _require_ring(ring: object) -> None:
    if not isinstance(ring, KeyRing):
        raise ConfigurationError(
            f"ring is a KeyRing, not {type(ring).__name__}: KeyRing([key]), or KeyRing.from_uri(uri)"
        )
