"""Tokens to envelopes and back for one column: what goes in, what comes out, what is refused and how."""

from __future__ import annotations

import hashlib
import hmac
import pickle
import uuid
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jwt_column import (
    JWT,
    AuthenticationError,
    ConfigurationError,
    DecryptionError,
    InvalidTokenError,
    JWTColumnError,
    KeyRing,
    MalformedEnvelopeError,
    UnknownKeyError,
    UnsupportedVersionError,
    decrypt_token,
    encrypt_token,
)
from jwt_column.column.binding import binding_of
from jwt_column.column.cipher import TokenCipher
from jwt_column.column.spec import ColumnSpec
from jwt_column.format import envelope
from jwt_column.format.claims import claim_input
from jwt_column.format.frame import pack
from jwt_column.format.shape import Kind
from jwt_column.keys.data_key import DataKey
from tests.support import independent_envelope as independent
from tests.support.tokens import ALGORITHMS, chain_of, compact, revealed_by, signed_token, tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jwt_column.format.envelope import Storage

KEY, OTHER_KEY = bytes(range(32)), bytes(range(32, 64))
RING = KeyRing([KEY])
CONTEXT = "sessions.token"
EXP = 1_700_000_000

HEADER = {"alg": "HS256", "typ": "JWT"}
CLAIMS = {"sub": "alice", "jti": "b2f6", "uid": 7, "exp": EXP}
TOKEN = compact(HEADER, CLAIMS, bytes(range(32)))
ENCRYPTED = compact({"alg": "dir", "enc": "A256GCM"}, b"", b"nonce", b"ciphertext", b"tag")
UNSIGNED = compact({"alg": "none"}, CLAIMS, b"")
OPAQUE = "oauth|3fa85f6457174562b3fc2c963f66afa6"

storages = pytest.mark.parametrize("storage", ["binary", "text"])


def opened(stored: bytes | str, key: bytes = KEY, context: str = CONTEXT) -> str:
    """Open with the independent reader."""
    return independent.open_(stored, key, context=context)


class TestRoundTrips:
    """What goes in comes out."""

    @storages
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_real_token_comes_back_as_a_jwt(self, algorithm: str, storage: Storage) -> None:
        value = signed_token(algorithm, sub="alice", exp=EXP)
        stored = encrypt_token(value, RING, context=CONTEXT, storage=storage)
        loaded = decrypt_token(stored, RING, context=CONTEXT)
        assert value == loaded == opened(stored)
        assert type(loaded) is JWT
        assert loaded.kind is Kind.SIGNED

    @given(
        value=tokens(),
        storage=st.sampled_from(["binary", "text"]),
        fingerprints=st.lists(st.sampled_from(["token", "jti", "sub", "nope"]), unique=True),
        expose_expiry=st.booleans(),
    )
    def test_every_token_comes_back_from_every_kind_of_column(
        self, value: str, storage: Storage, fingerprints: list[str], expose_expiry: bool
    ) -> None:
        stored = encrypt_token(
            value,
            RING,
            context=CONTEXT,
            fingerprints=fingerprints,
            expose_expiry=expose_expiry,
            storage=storage,
        )
        assert value == decrypt_token(stored, RING, context=CONTEXT) == opened(stored)

    def test_two_envelopes_of_one_token_differ(self) -> None:
        stored = [encrypt_token(TOKEN, RING, context=CONTEXT) for _ in range(2)]
        assert stored[0] != stored[1]

    @pytest.mark.parametrize(
        ("options", "length"),
        [({}, 46), ({"expose_expiry": True}, 52), ({"fingerprints": ["jti", "sub"]}, 78)],
    )
    def test_envelope_has_the_size_of_the_format(self, options: dict[str, Any], length: int) -> None:
        frame = 6 + sum(len(independent.decode_leniently(part) or b"") for part in TOKEN.split("."))
        assert length + frame == len(encrypt_token(TOKEN, RING, context=CONTEXT, **options))

    @pytest.mark.parametrize("convert", [bytearray, memoryview])
    def test_buffer_that_a_driver_gives_in_place_of_bytes_is_opened(
        self, convert: Callable[[bytes], Any]
    ) -> None:
        cipher = TokenCipher(ColumnSpec(context=CONTEXT))
        stored = cipher.encrypt(TOKEN, RING)
        assert isinstance(stored, bytes)
        assert cipher.decrypt(convert(stored), RING) == TOKEN

    def test_active_key_encrypts_and_every_key_decrypts(self) -> None:
        both = KeyRing([KEY, OTHER_KEY])
        rotated = both.with_active(both.key_ids[1])
        before, after = (encrypt_token(TOKEN, ring, context=CONTEXT) for ring in (both, rotated))
        assert [envelope.parse(stored).key_id for stored in (before, after)] == list(both.key_ids)
        assert [decrypt_token(stored, rotated, context=CONTEXT) for stored in (before, after)] == [TOKEN] * 2

    def test_jwt_instance_is_stored_like_its_text(self) -> None:
        assert opened(encrypt_token(JWT(TOKEN), RING, context=CONTEXT)) == TOKEN

    def test_stamp_is_what_the_envelopes_begin_with(self) -> None:
        cipher = TokenCipher(ColumnSpec(context=CONTEXT, fingerprints=["jti"], expose_expiry=True))
        stored = cipher.encrypt(TOKEN, RING)
        assert cipher.stamp(RING.active) == stored[:6] == b"\x01" + bytes.fromhex(RING.active) + b"\x03"


class Column(NamedTuple):
    """How a column is declared."""

    storage: Storage
    fingerprints: tuple[str, ...] = ()
    expose_expiry: bool = False

    def stored(self, ring: KeyRing = RING, context: str = CONTEXT) -> bytes | str:
        """Return the envelope of the token."""
        return encrypt_token(TOKEN, ring, context=context, **self._asdict())


#: Both storage forms, with and without optional fields.
COLUMNS = [
    pytest.param(Column("binary"), id="binary"),
    pytest.param(Column("text"), id="text"),
    pytest.param(Column("binary", ("token", "jti"), expose_expiry=True), id="binary-expiry-fingerprints"),
    pytest.param(Column("text", ("token", "jti"), expose_expiry=True), id="text-expiry-fingerprints"),
]
columns = pytest.mark.parametrize("column", COLUMNS)


def flips(stored: bytes | str) -> Iterator[bytes | str]:
    """Yield a stored value with each of its bits flipped in turn."""
    data = bytearray(stored.encode() if isinstance(stored, str) else stored)
    for position in range(len(data)):
        for bit in range(8):
            data[position] ^= 1 << bit
            yield data.decode("latin-1") if isinstance(stored, str) else bytes(data)
            data[position] ^= 1 << bit


def judge(stored: bytes | str) -> tuple[type[DecryptionError | UnknownKeyError], str | None]:
    """Say with the independent reader which error a damaged envelope deserves, and the key id it names."""
    try:
        parsed = independent.parse(stored)
    except ValueError as error:
        if str(error) == "version":
            return UnsupportedVersionError, None
        stamp = stamp_of(stored)
        return MalformedEnvelopeError, stamp[1:5].hex() if len(stamp) == 6 else None
    key_ids = {independent.key_id(KEY)}
    return (AuthenticationError if parsed.key_id in key_ids else UnknownKeyError), parsed.key_id


def stamp_of(stored: bytes | str) -> bytes:
    """Return the first six bytes of a damaged envelope, as far as they can be read."""
    if isinstance(stored, bytes):
        return stored[:6]
    digits, dot, _ = stored[2:].partition(".")
    is_readable = stored.startswith("jc") and dot and not set(digits) - set("0123456789abcdef")
    return bytes.fromhex(digits[:12]) if is_readable and len(digits) % 2 == 0 else b""


def refusal(stored: bytes | str, ring: KeyRing = RING, context: str = CONTEXT) -> JWTColumnError:
    """Return the error that a stored value is refused with, after a look at what it says."""
    with pytest.raises(JWTColumnError) as caught:
        decrypt_token(stored, ring, context=context)
    error = caught.value
    assert context == error.context
    assert str(error).startswith(f"{context}: ")
    return error


def sealed_part(stored: bytes | str) -> bytes | str:
    """Return nonce, ciphertext and tag of an envelope in the form in which they are stored."""
    return stored.partition(".")[2] if isinstance(stored, str) else stored[envelope.split(stored) :]


class TestDamage:
    """Nothing but the envelope that was written opens, and what refuses it says the right thing."""

    @columns
    def test_every_flipped_bit_is_refused_by_the_right_error(self, column: Column) -> None:
        stored = column.stored()
        seen = set()
        for damaged in flips(stored):
            error = refusal(damaged)
            assert judge(damaged) == (type(error), error.key_id)
            assert error.key_id is None or error.key_id in str(error)
            seen.add(type(error))
        # The control: the bits lead to all four errors, so the comparison above compared something.
        assert seen == {
            MalformedEnvelopeError,
            UnsupportedVersionError,
            UnknownKeyError,
            AuthenticationError,
        }

    @columns
    def test_every_truncation_is_refused_by_the_right_error(self, column: Column) -> None:
        stored = column.stored()
        for end in range(len(stored)):
            error = refusal(stored[:end])
            assert judge(stored[:end]) == (type(error), error.key_id)
            assert isinstance(error, DecryptionError)

    @columns
    def test_anything_after_the_end_is_refused(self, column: Column) -> None:
        stored = column.stored()
        for byte in range(256):
            damaged = f"{stored}{chr(byte)}" if isinstance(stored, str) else stored + bytes([byte])
            assert isinstance(refusal(damaged), AuthenticationError | MalformedEnvelopeError)

    @columns
    def test_envelope_of_another_column_does_not_authenticate(self, column: Column) -> None:
        error = refusal(column.stored(context="archive.token"))
        assert (AuthenticationError, RING.active) == (type(error), error.key_id)
        assert RING.active in str(error)

    @columns
    def test_envelope_of_a_key_that_was_removed_is_refused_by_its_key_id(self, column: Column) -> None:
        removed = KeyRing([OTHER_KEY])
        error = refusal(column.stored(removed))
        assert (UnknownKeyError, removed.active) == (type(error), error.key_id)
        assert removed.active in str(error)
        assert RING.active in str(error)

    @columns
    def test_envelope_sealed_by_another_key_under_this_key_id_does_not_authenticate(
        self, column: Column
    ) -> None:
        forged = column.stored(KeyRing([OTHER_KEY]))
        foreign, own = independent.key_id(OTHER_KEY), independent.key_id(KEY)
        if isinstance(forged, str):
            error = refusal(forged.replace(foreign, own, 1))
        else:
            error = refusal(forged.replace(bytes.fromhex(foreign), bytes.fromhex(own), 1))
        assert (AuthenticationError, own) == (type(error), error.key_id)

    @columns
    def test_envelope_of_another_row_does_not_open_where_row_values_are_bound(self, column: Column) -> None:
        cipher = TokenCipher(ColumnSpec(context=CONTEXT, **column._asdict()))
        stored = cipher.encrypt(TOKEN, RING, binding_of([("id", 1)]))
        assert cipher.decrypt(stored, RING, binding_of([("id", 1)])) == TOKEN
        for binding in (binding_of([("id", 2)]), b""):
            with pytest.raises(AuthenticationError) as caught:
                cipher.decrypt(stored, RING, binding)
            assert (CONTEXT, RING.active) == (caught.value.context, caught.value.key_id)

    @columns
    def test_the_envelope_itself_opens(self, column: Column) -> None:
        """The control of every test above."""
        assert decrypt_token(column.stored(), RING, context=CONTEXT) == TOKEN

    @columns
    def test_no_refusal_shows_eight_characters_of_token_key_or_ciphertext(self, column: Column) -> None:
        stored = column.stored()
        secrets = (TOKEN, KEY, sealed_part(stored))
        damaged = [*flips(stored), *(stored[:end] for end in range(len(stored))), stored * 2]
        for one in damaged:
            error = refusal(one)
            assert set() == revealed_by(error, *secrets)
            # A UnicodeError carries the whole of what it could not convert.
            assert not [cause for cause in chain_of(error) if isinstance(cause, UnicodeError)]
        moved = refusal(column.stored(context="archive.token"))
        assert set() == revealed_by(moved, TOKEN, KEY)

    def test_what_is_looked_for_in_refusals_would_be_found(self) -> None:
        """The control of the test above, for each form that a secret may take."""
        stored = Column("binary").stored()
        for shown in (TOKEN[20:40], KEY.hex(), repr(stored), sealed_part(Column("text").stored())):
            assert revealed_by(DecryptionError(f"{shown!r}"), TOKEN, KEY, str(shown))
        nested = DecryptionError("text")
        nested.__context__ = KeyError(KEY)
        assert revealed_by(nested, KEY)

    def test_unknown_version_with_its_dot_elsewhere_names_the_column_too(self) -> None:
        error = refusal("jc02" + "00" * 20 + "." + "A" * 80)
        assert type(error) is UnsupportedVersionError

    @pytest.mark.parametrize(
        ("place", "byte", "error"), [(0, 2, UnsupportedVersionError), (5, 0x10, MalformedEnvelopeError)]
    )
    def test_a_stamp_of_another_format_is_refused_behind_a_nonce_prefix_that_is_known(
        self, place: int, byte: int, error: type[DecryptionError]
    ) -> None:
        """A key holder sealed it, so it authenticates; a column that opened its neighbour must still look at it."""
        key = DataKey(KEY)

        def seal(header: bytes) -> bytes:
            stored = independent.seal_frame(pack(TOKEN), header, KEY, context=CONTEXT, nonce=bytes(24))
            assert isinstance(stored, bytes)
            return stored

        cipher = TokenCipher(ColumnSpec(context=CONTEXT))
        stamp = bytearray(cipher.stamp(key.id))
        assert cipher.decrypt(seal(bytes(stamp)), RING) == TOKEN
        stamp[place] = byte
        with pytest.raises(error):
            cipher.decrypt(seal(bytes(stamp)), RING)

    @pytest.mark.parametrize("frame", [b"", b"\x02", b"\x01\x00", b"\x00\xff", b"\x01\x03\x00\x09\x00\x00{}"])
    @storages
    def test_frame_of_no_known_kind_is_refused_after_it_authenticated(
        self, frame: bytes, storage: Storage
    ) -> None:
        header = independent.header_of("", KEY, context=CONTEXT)
        stored = independent.seal_frame(frame, header, KEY, context=CONTEXT, storage=storage, nonce=bytes(24))
        error = refusal(stored)
        assert isinstance(error, MalformedEnvelopeError)
        assert error.reason == "frame"
        assert error.key_id == RING.active

    @pytest.mark.parametrize("stored", [None, 5, 10**12, 1.5, ["jc"]])
    def test_stored_value_of_another_type_is_refused(self, stored: Any) -> None:
        error = refusal(stored)
        assert isinstance(error, DecryptionError)
        assert type(stored).__name__ in str(error)

    @pytest.mark.parametrize("stored", [None, 5, 10**12, 1.5])
    def test_cipher_of_a_column_refuses_what_no_driver_gives(self, stored: Any) -> None:
        """A number, which ``bytes()`` would turn into that many zeros."""
        with pytest.raises(DecryptionError) as caught:
            TokenCipher(ColumnSpec(context=CONTEXT)).decrypt(stored, RING)
        assert caught.value.context == CONTEXT


class Choice(StrEnum):
    """A text that is not what ``str()`` makes of it."""

    token = TOKEN
    encrypted = ENCRYPTED

    def __str__(self) -> str:
        return self.name


BINARY = Column("binary").stored()
ALREADY_ENCRYPTED = [
    pytest.param(Column("text").stored(), id="text form"),
    pytest.param(Column("text", ("jti",), expose_expiry=True).stored(), id="text form with fields"),
    pytest.param("jc02" + "00" * 5 + ".anything", id="text form of another version"),
    pytest.param(BINARY.decode("latin-1") if isinstance(BINARY, bytes) else "", id="binary form as text"),
    pytest.param("\x02 a newer version", id="binary form of another version as text"),
    pytest.param(
        f"\\x{BINARY.hex() if isinstance(BINARY, bytes) else ''}", id="binary form in a text column"
    ),
]


class TestTaking:
    """What a column takes."""

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (None, "not a str"),
            (TOKEN.encode(), "not a str"),
            (7, "not a str"),
            ({"token": TOKEN}, "not a str"),
            ("", "empty"),
            (f"{TOKEN}\n", "white space"),
            (f"\t{TOKEN}", "white space"),
            (f"\n{TOKEN}", "white space"),
            (f"Bearer {TOKEN}", "bearer"),
            (TOKEN.rpartition(".")[0], "segments"),
            (compact({"typ": "JWT"}, CLAIMS, b"x"), "header"),
            (TOKEN + "=", "not base64url"),
            (TOKEN + "\ud800", "not base64url"),
            (compact(HEADER, CLAIMS, b""), "no signature"),
            (UNSIGNED, "unsigned"),
            (OPAQUE, "segments"),
            (TOKEN * 600, "too long"),
            (BINARY, "not a str"),
        ],
        ids=[
            "None",
            "token as bytes",
            "int",
            "dict",
            "empty",
            "newline after",
            "tab before",
            "newline before",
            "bearer",
            "2 segments",
            "no alg",
            "padding",
            "half a surrogate pair",
            "no signature",
            "unsigned",
            "opaque",
            "too long",
            "envelope",
        ],
    )
    def test_value_is_refused_for_its_reason_and_shown_nowhere(self, value: Any, reason: str) -> None:
        with pytest.raises(InvalidTokenError) as caught:
            encrypt_token(value, RING, context=CONTEXT)
        error = caught.value
        assert (reason, CONTEXT) == (error.reason, error.context)
        assert str(error).startswith(f"{CONTEXT} does not take this value: ")
        assert set() == revealed_by(error, TOKEN, KEY, OPAQUE)
        assert [error] == chain_of(error)

    def test_unsigned_and_opaque_tokens_need_their_allowance(self) -> None:
        for value, option in ((UNSIGNED, "allow_unsigned"), (OPAQUE, "allow_opaque")):
            options: dict[str, Any] = {option: True}
            assert value == opened(encrypt_token(value, RING, context=CONTEXT, **options))
            other: dict[str, Any] = {"allow_unsigned": True, "allow_opaque": True, option: False}
            with pytest.raises(InvalidTokenError):
                encrypt_token(value, RING, context=CONTEXT, **other)

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            ("", "empty"),
            (f"{OPAQUE} ", "white space"),
            (f"Bearer {OPAQUE}", "bearer"),
            (f"{OPAQUE}\udcff", "not UTF-8"),
            (OPAQUE.encode(), "not a str"),
            (UNSIGNED, "unsigned"),
        ],
        ids=["empty", "white space", "bearer", "half a surrogate pair", "bytes", "unsigned"],
    )
    def test_column_of_opaque_tokens_still_refuses_what_is_none(self, value: Any, reason: str) -> None:
        with pytest.raises(InvalidTokenError) as caught:
            encrypt_token(value, RING, context=CONTEXT, allow_opaque=True)
        assert reason == caught.value.reason
        assert set() == revealed_by(caught.value, OPAQUE)
        assert [caught.value] == chain_of(caught.value)

    @pytest.mark.parametrize("value", ALREADY_ENCRYPTED)
    @pytest.mark.parametrize("allow_opaque", [False, True])
    def test_what_is_encrypted_already_is_refused(self, value: str, allow_opaque: bool) -> None:
        with pytest.raises(InvalidTokenError) as caught:
            encrypt_token(value, RING, context=CONTEXT, allow_opaque=allow_opaque)
        assert caught.value.reason == "already encrypted"
        assert set() == revealed_by(caught.value, value[14:])

    @pytest.mark.parametrize("value", ["jc", "jc.", "jcole", "jc-0102030405.x", "~", "\\x0102030405060g"])
    def test_opaque_token_that_only_resembles_an_envelope_is_taken(self, value: str) -> None:
        """The control of the test above."""
        assert value == opened(encrypt_token(value, RING, context=CONTEXT, allow_opaque=True))

    def test_length_is_limited_to_the_character(self) -> None:
        for value in (TOKEN, JWT(TOKEN)):
            assert TokenCipher(ColumnSpec(context=CONTEXT, max_length=len(TOKEN))).encrypt(value, RING)
            with pytest.raises(InvalidTokenError) as caught:
                TokenCipher(ColumnSpec(context=CONTEXT, max_length=len(TOKEN) - 1)).encrypt(value, RING)
            assert caught.value.reason == "too long"

    def test_token_of_65_536_characters_is_the_longest_by_default(self) -> None:
        longest = TOKEN + "A" * (65_536 - len(TOKEN))
        assert longest == opened(encrypt_token(longest, RING, context=CONTEXT))
        with pytest.raises(InvalidTokenError):
            encrypt_token(longest + "A", RING, context=CONTEXT)

    def test_check_gives_a_jwt_and_leaves_one_as_it_is(self) -> None:
        cipher = TokenCipher(ColumnSpec(context=CONTEXT, allow_opaque=True, allow_unsigned=True))
        for value, kind in (
            (TOKEN, Kind.SIGNED),
            (ENCRYPTED, Kind.ENCRYPTED),
            (UNSIGNED, Kind.UNSIGNED),
            (OPAQUE, Kind.OPAQUE),
        ):
            checked = cipher.check(value)
            assert (JWT, kind, value) == (type(checked), checked.kind, checked)
            assert checked is cipher.check(checked)

    def test_token_that_a_laxer_column_took_is_checked_again(self) -> None:
        lax = TokenCipher(ColumnSpec(context="lax.token", allow_opaque=True, allow_unsigned=True))
        for value in (UNSIGNED, OPAQUE):
            with pytest.raises(InvalidTokenError):
                TokenCipher(ColumnSpec(context=CONTEXT)).check(lax.check(value))

    def test_token_that_another_column_has_checked_and_packed_is_checked_again_when_it_is_encrypted(
        self,
    ) -> None:
        lax = TokenCipher(ColumnSpec(context=CONTEXT, allow_opaque=True, allow_unsigned=True))
        strict = TokenCipher(ColumnSpec(context=CONTEXT, max_length=len(TOKEN)))
        for value in (UNSIGNED, OPAQUE, signed_token(sub="x" * len(TOKEN))):
            token = lax.check(value, keep_frame=True)
            with pytest.raises(InvalidTokenError):
                strict.encrypt(token, RING)
            # The control: the column that has checked it takes it.
            assert opened(lax.encrypt(lax.check(value, keep_frame=True), RING)) == value
        assert opened(strict.encrypt(lax.check(TOKEN, keep_frame=True), RING)) == TOKEN

    @pytest.mark.parametrize("member", list(Choice))
    def test_member_of_an_enumeration_is_stored_as_its_characters(self, member: Choice) -> None:
        assert member.value == opened(encrypt_token(member, RING, context=CONTEXT))
        assert member.value == str(TokenCipher(ColumnSpec(context=CONTEXT)).check(member))

    def test_signed_token_with_a_header_that_was_never_seen_is_stored_packed(self) -> None:
        value = compact({"alg": "HS256", "kid": "of this test alone"}, CLAIMS, b"x")
        stored = encrypt_token(value, RING, context=CONTEXT)
        assert len(stored) < len(value) + 46
        assert value == opened(stored)

    @storages
    def test_frame_that_the_check_made_serves_one_binding_and_is_not_held_longer(
        self, storage: Storage
    ) -> None:
        cipher = TokenCipher(ColumnSpec(context=CONTEXT, storage=storage))
        cipher.check(TOKEN)  # Its header is known from now on.
        token = cipher.check(TOKEN, keep_frame=True)
        assert getattr(token, "_frame", None) == pack(TOKEN)
        assert opened(cipher.encrypt(token, RING)) == TOKEN
        assert getattr(token, "_frame", None) is None
        assert opened(cipher.encrypt(token, RING)) == TOKEN

    def test_token_that_is_only_checked_holds_its_characters_once(self) -> None:
        cipher = TokenCipher(ColumnSpec(context=CONTEXT))
        assert not any(hasattr(cipher.check(TOKEN), "_frame") for _ in range(2))

    def test_frame_stays_behind_when_a_token_is_pickled(self) -> None:
        cipher = TokenCipher(ColumnSpec(context=CONTEXT))
        cipher.check(TOKEN)
        copied = pickle.loads(pickle.dumps(cipher.check(TOKEN, keep_frame=True)))
        assert (copied, hasattr(copied, "_frame")) == (TOKEN, False)


def derived(key: bytes, info: bytes) -> bytes:
    """Derive a key by RFC 5869, written out: no salt, one block."""
    return hmac.digest(hmac.digest(bytes(32), key, "sha256"), info + b"\x01", "sha256")


def stored_fingerprints(value: str, *names: str, ring: KeyRing = RING, context: str = CONTEXT) -> list[bytes]:
    """Return the fingerprints that are stored of a token."""
    stored = encrypt_token(
        value, ring, context=context, fingerprints=names, allow_opaque=True, allow_unsigned=True
    )
    return list(envelope.parse(stored).fingerprints)


class TestFingerprints:
    """Keyed hashes by which rows are found."""

    def test_fingerprint_is_the_hmac_of_the_format(self) -> None:
        info = b"jwt-column/v1/fingerprint\x00sessions.token\x00"
        expected = [
            hmac.new(derived(KEY, info + name), data, hashlib.sha256).digest()[:16]
            for name, data in ((b"token", TOKEN.encode()), (b"jti", b"sb2f6"), (b"uid", b"i7"))
        ]
        assert expected == stored_fingerprints(TOKEN, "token", "jti", "uid")

    def test_fingerprints_stand_in_the_order_of_the_column(self) -> None:
        assert stored_fingerprints(TOKEN, "uid", "jti") == stored_fingerprints(TOKEN, "jti", "uid")[::-1]

    @pytest.mark.parametrize("value", [TOKEN, ENCRYPTED, OPAQUE, compact(HEADER, b"no JSON", b"x")])
    def test_claim_that_is_not_there_has_sixteen_zeros(self, value: str) -> None:
        assert stored_fingerprints(value, "nope") == [bytes(16)]

    @pytest.mark.parametrize("value", [TOKEN, ENCRYPTED, OPAQUE, UNSIGNED])
    def test_every_token_has_a_fingerprint_of_its_own(self, value: str) -> None:
        assert [independent.fingerprint(KEY, CONTEXT, "token", value)] == stored_fingerprints(value, "token")

    def test_text_and_integer_of_the_same_digits_differ(self) -> None:
        first, second = (stored_fingerprints(compact(HEADER, {"uid": uid}, b"x"), "uid") for uid in (7, "7"))
        assert first != second

    def test_key_context_and_name_each_change_the_fingerprint(self) -> None:
        claims = compact(HEADER, {"a": "same", "b": "same"}, b"x")
        found = [
            *stored_fingerprints(claims, "a", "b"),
            *stored_fingerprints(claims, "a", ring=KeyRing([OTHER_KEY])),
            *stored_fingerprints(claims, "a", context="archive.token"),
        ]
        assert len(set(found)) == 4
        assert found[:1] == stored_fingerprints(compact(HEADER, {"a": "same"}, b"y"), "a")

    @pytest.mark.parametrize(
        "claim",
        [b"true", b"null", b"1.5", b"[]", b"{}", b"1e400", b"9" * 5_000, b'"\\ud800"', b'"secret-\\udfff"'],
        ids=lambda claim: claim[:12].decode(),
    )
    def test_claim_that_has_no_fingerprint_counts_as_absent(self, claim: bytes) -> None:
        """An index aid never decides whether a token is stored."""
        value = compact(HEADER, b'{"uid":' + claim + b',"jti":"7"}', b"x")
        absent, present = stored_fingerprints(value, "uid", "jti")
        assert bytes(16) == absent
        # The control: a claim beside it is found all the same.
        assert present == independent.fingerprint(KEY, CONTEXT, "jti", compact(HEADER, {"jti": "7"}, b"x"))

    @pytest.mark.parametrize(
        "value",
        [True, None, 1.5, b"x", [], "\ud800", 10**5_000],
        ids=["bool", "None", "float", "bytes", "list", "half a surrogate pair", "5001 digits"],
    )
    def test_value_that_no_claim_could_be_has_no_input(self, value: object) -> None:
        assert claim_input(value) is None

    @pytest.mark.parametrize(
        ("value", "expected"), [("", b"s"), ("\u00e9", b"s\xc3\xa9"), (0, b"i0"), (-12, b"i-12")]
    )
    def test_value_to_search_for_has_the_input_of_the_format(self, value: object, expected: bytes) -> None:
        assert expected == claim_input(value)


class TestExpiry:
    """The readable ``exp``."""

    @pytest.mark.parametrize(
        ("claims", "field"),
        [
            ({"exp": 0}, bytes(6)),
            ({"exp": EXP}, EXP.to_bytes(6, "big")),
            ({"exp": EXP + 0.9}, EXP.to_bytes(6, "big")),
            ({"exp": 2**48 - 2}, b"\xff\xff\xff\xff\xff\xfe"),
            ({}, b"\xff" * 6),
            (b"no JSON", b"\xff" * 6),
        ],
    )
    def test_expiry_is_stored_in_whole_seconds(self, claims: object, field: bytes) -> None:
        value = compact(HEADER, claims, b"x")
        stored = encrypt_token(value, RING, context=CONTEXT, expose_expiry=True)
        assert field == stored[6:12]

    @pytest.mark.parametrize("value", [ENCRYPTED, OPAQUE])
    def test_token_without_readable_claims_has_no_expiry(self, value: str) -> None:
        stored = encrypt_token(value, RING, context=CONTEXT, expose_expiry=True, allow_opaque=True)
        assert envelope.parse(stored).expiry is None

    @pytest.mark.parametrize("exp", [-1, 2**48 - 1, "1", True, None, [], 1e300])
    def test_exp_that_no_envelope_holds_counts_as_absent(self, exp: object) -> None:
        value = compact(HEADER, {"exp": exp}, b"x")
        stored = encrypt_token(value, RING, context=CONTEXT, expose_expiry=True)
        assert stored[6:12] == b"\xff" * 6
        assert value == decrypt_token(stored, RING, context=CONTEXT)


class Forgetful:
    """A cipher that does not give back what it sealed, as broken memory would make it."""

    def __init__(self, aead: Any, damage: Callable[[bytes], bytes]) -> None:
        self.aead = aead
        self.damage = damage
        self.sealed: list[bytes] = []

    def seal(self, data: bytes, aad: bytes, before: bytes = b"") -> bytes:
        """Seal, and remember."""
        sealed: bytes = self.aead.seal(data, aad)
        self.sealed.append(sealed)
        return before + sealed

    def open(self, sealed: bytes, aad: bytes, start: int = 0) -> bytes:
        """Open, and get it wrong where it was sealed here."""
        opened: bytes = self.aead.open(sealed, aad, start)
        return self.damage(opened) if sealed[start:] in self.sealed else opened

    def opener(self, prefix: bytes) -> Callable[[bytes, int, bytes], bytes]:
        """Return the opener of rows that this cipher did not seal."""
        opener: Callable[[bytes, int, bytes], bytes] = self.aead.opener(prefix)
        return opener


def associated_data(context: str) -> bytes:
    """Return what follows the header in the associated data of a column's envelopes."""
    return len(context.encode()).to_bytes(2, "big") + context.encode()


def header_of_old_key() -> bytes:
    """Return the header of an envelope without optional fields, by the independent implementation."""
    return independent.header_of("", KEY, context=CONTEXT)


def damaged(stored: bytes | str) -> bytes | str:
    """Return an envelope with another byte or character amid its ciphertext."""
    if isinstance(stored, str):
        return stored[:100] + ("A" if stored[100] != "A" else "B") + stored[101:]
    return stored[:100] + bytes([stored[100] ^ 1]) + stored[101:]


def independent_of_the_writer(storage: Storage) -> bytes | str:
    """Return the envelope of the token from a process of its own: its nonces begin otherwise."""
    return encrypt_token(TOKEN, KeyRing([KEY]), context=CONTEXT, storage=storage)


def tag_fails(_frame: bytes) -> bytes:
    """Fail as a damaged tag does."""
    return RING.snapshot().active.aead.open(bytes(40), b"")


class TestReseal:
    """The same token in a new envelope."""

    both = KeyRing([OTHER_KEY, KEY])

    @columns
    @storages
    def test_token_moves_to_the_active_key_the_layout_and_the_form_of_the_column(
        self, column: Column, storage: Storage
    ) -> None:
        cipher = TokenCipher(
            ColumnSpec(context=CONTEXT, storage=storage, fingerprints=["sub"], expose_expiry=True)
        )
        resealed = cipher.resealer(self.both)(column.stored())
        assert opened(resealed, OTHER_KEY) == TOKEN
        expected = independent.header_of(
            TOKEN, OTHER_KEY, context=CONTEXT, fingerprints=["sub"], expose_expiry=True
        )
        assert expected == independent.parse(resealed).header
        assert isinstance(resealed, str) == (storage == "text")

    def test_token_that_the_column_would_no_longer_take_is_resealed(self) -> None:
        stored = encrypt_token(OPAQUE, RING, context=CONTEXT, allow_opaque=True)
        assert (
            opened(TokenCipher(ColumnSpec(context=CONTEXT)).resealer(self.both)(stored), OTHER_KEY) == OPAQUE
        )

    def test_bound_row_values_stay_bound(self) -> None:
        cipher, binding = TokenCipher(ColumnSpec(context=CONTEXT)), binding_of([("id", 1)])
        stored = cipher.encrypt(TOKEN, RING, binding)
        assert cipher.decrypt(cipher.resealer(self.both)(stored, binding), self.both, binding) == TOKEN
        with pytest.raises(AuthenticationError):
            cipher.resealer(self.both)(stored)

    def test_envelope_that_does_not_open_is_not_resealed(self) -> None:
        with pytest.raises(AuthenticationError):
            TokenCipher(ColumnSpec(context="archive.token")).resealer(self.both)(Column("binary").stored())
        header = independent.header_of("", KEY, context=CONTEXT)
        stored = independent.seal_frame(b"\x02", header, KEY, context=CONTEXT, nonce=bytes(24))
        with pytest.raises(MalformedEnvelopeError):
            TokenCipher(ColumnSpec(context=CONTEXT)).resealer(self.both)(stored)

    def test_token_whose_claim_cannot_be_fingerprinted_leaves_the_old_key_too(self) -> None:
        stored = encrypt_token(compact(HEADER, {"uid": 1.5}, b"x"), RING, context=CONTEXT)
        cipher = TokenCipher(ColumnSpec(context=CONTEXT, fingerprints=["uid"]))
        assert [bytes(16)] == envelope.parse(cipher.resealer(self.both)(stored)).fingerprints

    @pytest.mark.parametrize("value", [ENCRYPTED, OPAQUE])
    def test_expiry_of_a_token_without_claims_is_carried_over(self, value: str) -> None:
        cipher = TokenCipher(ColumnSpec(context=CONTEXT, expose_expiry=True, allow_opaque=True))
        key, frame = self.both.key(DataKey(KEY).id_bytes), pack(value)
        header = key.stamp_prefix + cipher.layout.byte + (EXP + 7).to_bytes(6, "big")
        stored = header + key.aead.seal(frame, header + associated_data(CONTEXT))
        resealed = cipher.resealer(self.both)(stored)
        assert (envelope.parse(resealed).expiry, envelope.parse(resealed).key_id) == (
            EXP + 7,
            self.both.active,
        )
        # The control: the expiry of a JWT follows its claims, whatever the old header says.
        stored = header + key.aead.seal(pack(UNSIGNED), header + associated_data(CONTEXT))
        assert envelope.parse(cipher.resealer(self.both)(stored)).expiry == EXP

    @pytest.mark.parametrize("damage", [lambda frame: frame[:-1], tag_fails], ids=["other frame", "tag"])
    def test_new_envelope_that_does_not_give_its_token_back_is_not_used(
        self, damage: Callable[[bytes], bytes]
    ) -> None:
        ring = KeyRing([KEY])
        key: Any = ring.snapshot().active
        key.aead = Forgetful(key.aead, damage)
        stored = Column("binary").stored()
        with pytest.raises(DecryptionError, match="did not give its token back") as caught:
            TokenCipher(ColumnSpec(context=CONTEXT)).resealer(ring)(stored)
        assert (CONTEXT, ring.active) == (caught.value.context, caught.value.key_id)
        assert set() == revealed_by(caught.value, TOKEN, KEY)
        # The control: the same cipher opens what it did not seal, and works where nothing is damaged.
        key.aead.damage = bytes
        assert opened(TokenCipher(ColumnSpec(context=CONTEXT)).resealer(ring)(stored)) == TOKEN

    @storages
    @pytest.mark.parametrize("damage", [lambda frame: frame[:-1], tag_fails], ids=["other frame", "tag"])
    def test_nor_is_it_where_the_rows_before_it_were_good(
        self, damage: Callable[[bytes], bytes], storage: Storage
    ) -> None:
        ring = KeyRing([KEY])
        key: Any = ring.snapshot().active
        key.aead = Forgetful(key.aead, bytes)
        column = Column(storage)
        reseal = TokenCipher(ColumnSpec(context=CONTEXT, storage=storage)).resealer(ring)
        for _ in range(3):
            assert opened(reseal(column.stored())) == TOKEN
        key.aead.damage = damage
        with pytest.raises(DecryptionError, match="did not give its token back"):
            reseal(column.stored())
        key.aead.damage = bytes
        assert opened(reseal(column.stored())) == TOKEN

    @storages
    def test_a_row_among_many_is_looked_at_as_the_first_one_is(self, storage: Storage) -> None:
        """The short cut for rows of one writer takes nothing that the long way does not take."""
        column, ring = Column(storage), KeyRing([OTHER_KEY, KEY])
        reseal = TokenCipher(ColumnSpec(context=CONTEXT, storage=storage)).resealer(ring)
        header = independent.header_of(TOKEN, OTHER_KEY, context=CONTEXT)
        for number in range(4):
            resealed = reseal(column.stored())
            assert (opened(resealed, OTHER_KEY), independent.parse(resealed).header) == (TOKEN, header)
            assert isinstance(resealed, str) == (storage == "text")
            # Of another writer, another layout, another form; opaque; current already.
            others = [
                independent_of_the_writer(storage),
                Column(storage, ("token",)).stored(),
                Column("text" if storage == "binary" else "binary").stored(),
                column.stored(ring),
            ]
            for stored in others:
                assert opened(reseal(stored), OTHER_KEY) == TOKEN
            for bad in (damaged(column.stored()), column.stored(context="another.column")):
                with pytest.raises(AuthenticationError):
                    reseal(bad)
            # It begins as the rows before it do, which are known by that.
            good = column.stored()
            begin = (envelope.to_binary(good) if isinstance(good, str) else good)[6:18]
            nonce = begin + bytes(11) + bytes([number])
            unknown = independent.seal_frame(
                b"\x02", header_of_old_key(), KEY, context=CONTEXT, storage=storage, nonce=nonce
            )
            with pytest.raises(MalformedEnvelopeError):
                reseal(unknown)

    def test_a_key_that_leaves_the_ring_opens_no_more_rows(self) -> None:
        ring = KeyRing([OTHER_KEY, KEY])
        reseal = TokenCipher(ColumnSpec(context=CONTEXT)).resealer(ring)
        for _ in range(3):
            reseal(Column("binary").stored())
        ring._keys = KeyRing([OTHER_KEY]).snapshot()
        with pytest.raises(UnknownKeyError):
            reseal(Column("binary").stored())
        ring._keys = KeyRing([OTHER_KEY, KEY]).snapshot()
        assert opened(reseal(Column("binary").stored()), OTHER_KEY) == TOKEN


class TestBinding:
    """Row values in the associated data."""

    def test_values_have_the_form_of_the_format(self) -> None:
        identifier = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
        bound = binding_of([("a", "\u00e9"), ("b", -7), ("c", identifier), ("d", b"\x00\xff")])
        assert bound == (
            b"\x00\x01a\x00\x03s\xc3\xa9"
            b"\x00\x01b\x00\x03i-7"
            b"\x00\x01c\x00\x11u" + identifier.bytes + b"\x00\x01d\x00\x03b\x00\xff"
        )

    def test_nothing_bound_is_nothing(self) -> None:
        assert binding_of([]) == b""

    @pytest.mark.parametrize("convert", [bytearray, memoryview])
    def test_buffers_of_drivers_are_bytes(self, convert: Callable[[bytes], Any]) -> None:
        assert binding_of([("a", b"x")]) == binding_of([("a", convert(b"x"))])

    @pytest.mark.parametrize(
        "value", [None, True, 1.5, object(), ["x"]], ids=lambda value: type(value).__name__
    )
    def test_value_of_another_type_is_refused_by_its_column(self, value: Any) -> None:
        with pytest.raises(ConfigurationError, match=f"tenant holds {type(value).__name__}"):
            binding_of([("tenant", value)])

    def test_value_may_have_65_535_bytes_with_its_letter(self) -> None:
        assert binding_of([("a", "x" * 65_534)])
        with pytest.raises(ConfigurationError, match="column a has 65536 bytes"):
            binding_of([("a", "x" * 65_535)])
        with pytest.raises(ConfigurationError, match="name has 65536 bytes"):
            binding_of([("x" * 65_536, 1)])

    @given(
        left=st.lists(
            st.tuples(st.text(max_size=3), st.text(max_size=3) | st.integers() | st.binary()), max_size=3
        ),
        right=st.lists(
            st.tuples(st.text(max_size=3), st.text(max_size=3) | st.integers() | st.binary()), max_size=3
        ),
    )
    def test_different_rows_are_bound_differently(self, left: list[Any], right: list[Any]) -> None:
        assert (left == right) == (binding_of(left) == binding_of(right))


class TestConfiguration:
    """What no column can be."""

    @pytest.mark.parametrize("context", ["", None, 5, b"sessions.token", "\ud800"], ids=ascii)
    def test_context_is_a_text_that_is_not_empty(self, context: Any) -> None:
        with pytest.raises(ConfigurationError):
            TokenCipher(ColumnSpec(context=context))

    def test_context_may_have_65_535_bytes(self) -> None:
        longest = "\u00e9" * 32_767 + "x"
        assert opened(encrypt_token(TOKEN, RING, context=longest), context=longest) == TOKEN
        with pytest.raises(ConfigurationError, match="65536 bytes"):
            TokenCipher(ColumnSpec(context=longest + "x"))

    @pytest.mark.parametrize(
        "names",
        ["jti", ["jti", "jti"], [""], [5], [["jti"]], [None], ["\ud800"], [f"c{n}" for n in range(8)]],
        ids=["text", "twice", "empty", "number", "list", "None", "half a surrogate pair", "eight"],
    )
    def test_fingerprints_are_up_to_seven_different_names(self, names: Any) -> None:
        with pytest.raises(ConfigurationError):
            TokenCipher(ColumnSpec(context=CONTEXT, fingerprints=names))

    def test_seven_fingerprints_are_possible(self) -> None:
        names = [f"c{n}" for n in range(7)]
        assert stored_fingerprints(TOKEN, *names) == [bytes(16)] * 7

    @pytest.mark.parametrize("storage", ["", "Binary", "blob", None, b"text"])
    def test_storage_is_binary_or_text(self, storage: Any) -> None:
        with pytest.raises(ConfigurationError):
            TokenCipher(ColumnSpec(context=CONTEXT, storage=storage))

    def test_key_shows_its_id_alone(self) -> None:
        assert repr(DataKey(KEY)) == f"DataKey({independent.key_id(KEY)})"
