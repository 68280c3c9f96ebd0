"""Stored values to fields and back: known answers, both forms, and every way of being no envelope."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from jwt_column import DecryptionError, MalformedEnvelopeError, UnsupportedVersionError
from jwt_column.format import base64url, envelope
from jwt_column.format.envelope import Field, Layout
from tests.support import independent_envelope as independent
from tests.support.cases import in_one_test

if TYPE_CHECKING:
    from collections.abc import Callable

KEY_ID = bytes.fromhex("2d5f44dd")
EXPIRY = (1_700_000_000).to_bytes(6, "big")
FIRST, SECOND = bytes(range(16)), bytes(range(16, 32))
BODY = bytes(range(100, 100 + 24 + 16))

BARE = b"\x01" + KEY_ID + b"\x00" + BODY
FULL = b"\x01" + KEY_ID + b"\x05" + EXPIRY + FIRST + SECOND + BODY
TEXT = f"jc{FULL[:44].hex()}.{base64url.encode(BODY)}"

#: The first eight bytes of the body in every spelling that a message might have.
BODY_SHOWN = (BODY[:8].hex(), base64url.encode(BODY)[:8], BODY[:8].decode("latin-1"))

layouts = st.builds(Layout, st.booleans(), st.integers(0, 7))


@st.composite
def envelopes(draw: st.DrawFn) -> bytes:
    """Any binary envelope."""
    layout = draw(layouts)
    length = layout.header_length - 6
    fields = draw(st.binary(min_size=length, max_size=length))
    body = draw(st.binary(min_size=40, max_size=120))
    return b"\x01" + draw(st.binary(min_size=4, max_size=4)) + layout.byte + fields + body


class TestLayout:
    """The layout byte and what follows from it."""

    @pytest.mark.parametrize(
        ("layout", "byte", "length"),
        [
            (Layout(has_expiry=False, fingerprints=0), b"\x00", 6),
            (Layout(has_expiry=True, fingerprints=0), b"\x01", 12),
            (Layout(has_expiry=False, fingerprints=1), b"\x02", 22),
            (Layout(has_expiry=True, fingerprints=2), b"\x05", 44),
            (Layout(has_expiry=True, fingerprints=7), b"\x0f", 124),
        ],
    )
    def test_layout_has_its_byte_and_its_length(self, layout: Layout, byte: bytes, length: int) -> None:
        assert (byte, length) == (layout.byte, layout.header_length)

    def test_sixteen_layouts_are_known_and_none_has_a_reserved_bit(self) -> None:
        assert set(range(16)) == set(envelope.HEADER_LENGTHS)

    def test_fields_lie_one_after_the_other(self) -> None:
        layout = Layout(has_expiry=True, fingerprints=2)
        assert [layout.fingerprint_field(index) for index in range(2)] == [Field(12, 16), Field(28, 16)]

    def test_fingerprints_follow_the_stamp_where_there_is_no_expiry(self) -> None:
        layout = Layout(has_expiry=False, fingerprints=2)
        assert [layout.fingerprint_field(index) for index in range(2)] == [Field(6, 16), Field(22, 16)]

    def test_fixed_fields_are_those_of_the_format(self) -> None:
        expected = (Field(0, 1), Field(1, 4), Field(5, 1), Field(0, 6), Field(6, 6))
        assert expected == (
            envelope.VERSION_FIELD,
            envelope.KEY_ID_FIELD,
            envelope.LAYOUT_FIELD,
            envelope.STAMP_FIELD,
            envelope.EXPIRY_FIELD,
        )


class TestParse:
    """Stored values to fields."""

    @pytest.mark.parametrize("stored", [FULL, TEXT], ids=["binary", "text"])
    def test_fields_are_read_from_both_forms(self, stored: bytes | str) -> None:
        parsed = envelope.parse(stored)
        assert parsed.key_id == "2d5f44dd"
        assert parsed.layout == Layout(has_expiry=True, fingerprints=2)
        assert parsed.expiry == 1_700_000_000
        assert parsed.fingerprints == [FIRST, SECOND]
        assert FULL[:44] == parsed.header
        assert parsed.sealed == BODY

    def test_envelope_without_optional_fields_has_none(self) -> None:
        parsed = envelope.parse(BARE)
        assert (parsed.expiry, parsed.fingerprints) == (None, [])
        assert BARE[:6] == parsed.header

    @pytest.mark.parametrize(
        ("field", "expected"), [(b"\xff" * 6, None), (b"\xff" * 5 + b"\xfe", 2**48 - 2), (bytes(6), 0)]
    )
    def test_expiry_of_all_ones_is_no_expiry(self, field: bytes, expected: int | None) -> None:
        assert expected == envelope.parse(b"\x01" + KEY_ID + b"\x01" + field + BODY).expiry

    @given(stored=envelopes())
    def test_fields_are_those_that_the_independent_reader_finds(self, stored: bytes) -> None:
        expected, parsed = independent.parse(stored), envelope.parse(stored)
        assert expected.header == parsed.header
        assert expected.key_id == parsed.key_id
        assert expected.nonce + expected.sealed == parsed.sealed
        assert list(expected.fingerprints) == list(parsed.fingerprints)

    @given(stored=envelopes())
    def test_both_forms_hold_the_same_bytes(self, stored: bytes) -> None:
        text = envelope.to_text(stored, envelope.split(stored))
        assert independent.to_text(stored) == text
        assert stored == envelope.to_binary(text)
        assert envelope.parse(stored) == envelope.parse(text)

    @given(stored=envelopes())
    def test_field_of_the_text_form_lies_at_twice_its_offset_and_two(self, stored: bytes) -> None:
        text = envelope.to_text(stored, envelope.split(stored))
        layout = envelope.parse(stored).layout
        fields = [envelope.STAMP_FIELD, *(layout.fingerprint_field(n) for n in range(layout.fingerprints))]
        for offset, length in fields:
            assert stored[offset : offset + length].hex() == text[2 + 2 * offset :][: 2 * length]


def without_last(stored: bytes, count: int = 1) -> bytes:
    """Cut bytes off the end."""
    return stored[:-count]


def text_of(header: str, body: str) -> str:
    """Return a text with the prefix and the dot of an envelope."""
    return f"jc{header}.{body}"


HEX, ENCODED = FULL[:44].hex(), base64url.encode(BODY)

MALFORMED = [
    pytest.param(b"", "empty", None, id="nothing"),
    pytest.param(b"eyJhbGciOiJIUzI1NiJ9.e30.AA", "not an envelope", None, id="plaintext token"),
    pytest.param(b"jc01", "not an envelope", None, id="text form in bytes"),
    pytest.param(b"\x01", "truncated", None, id="version alone"),
    pytest.param(FULL[:5], "truncated", None, id="no layout"),
    pytest.param(FULL[:6], "truncated", "2d5f44dd", id="stamp alone"),
    pytest.param(FULL[:20], "truncated", "2d5f44dd", id="ends within a fingerprint"),
    pytest.param(FULL[:44], "truncated", "2d5f44dd", id="header alone"),
    pytest.param(FULL[:60], "truncated", "2d5f44dd", id="ends within the nonce"),
    pytest.param(FULL[:68], "truncated", "2d5f44dd", id="no sealed bytes"),
    pytest.param(without_last(FULL), "truncated", "2d5f44dd", id="one byte short of a tag"),
    pytest.param(FULL[:5] + b"\x0f" + FULL[6:], "truncated", "2d5f44dd", id="layout of a longer header"),
    *(
        pytest.param(
            FULL[:5] + bytes([5 | 1 << bit]) + FULL[6:], "reserved layout bit", "2d5f44dd", id=f"bit {bit}"
        )
        for bit in (4, 5, 6, 7)
    ),
    pytest.param("", "not an envelope", None, id="no text"),
    pytest.param("eyJhbGciOiJIUzI1NiJ9.e30.AA", "not an envelope", None, id="plaintext token as text"),
    pytest.param("j", "not an envelope", None, id="half a prefix"),
    pytest.param("JC" + TEXT[2:], "not an envelope", None, id="prefix in upper case"),
    pytest.param(" " + TEXT, "not an envelope", None, id="space before the prefix"),
    pytest.param("jc", "header is not hex", None, id="prefix alone"),
    pytest.param(f"jc{HEX}{ENCODED}", "header is not hex", None, id="no dot"),
    pytest.param(text_of(HEX.upper(), ENCODED), "header is not hex", None, id="upper-case hex"),
    pytest.param(text_of(HEX[:-1], ENCODED), "header is not hex", None, id="odd number of digits"),
    pytest.param(text_of(HEX[:-1] + "g", ENCODED), "header is not hex", None, id="no hex digit"),
    pytest.param(text_of(HEX + "\n", ENCODED), "header is not hex", None, id="newline after the hex"),
    pytest.param(text_of("0\uff11" + HEX[2:], ENCODED), "header is not hex", None, id="fullwidth digit"),
    pytest.param(text_of("", ENCODED), "header is not hex", None, id="no header"),
    pytest.param(text_of("", ""), "header is not hex", None, id="prefix and dot"),
    pytest.param(text_of("01", ENCODED), "truncated", None, id="version and a body"),
    pytest.param(text_of(HEX[:10], ENCODED), "truncated", None, id="no layout in the text"),
    pytest.param(text_of(HEX, ""), "truncated", "2d5f44dd", id="no body"),
    pytest.param(text_of(HEX, ENCODED[:40]), "truncated", "2d5f44dd", id="half a body"),
    pytest.param(text_of(HEX, ENCODED + "="), "not base64url", "2d5f44dd", id="padding"),
    pytest.param(text_of(HEX, ENCODED + "\n"), "not base64url", "2d5f44dd", id="newline after the body"),
    pytest.param(text_of(HEX, ENCODED + "."), "not base64url", "2d5f44dd", id="second dot"),
    pytest.param(text_of(HEX, "+" + ENCODED[1:]), "not base64url", "2d5f44dd", id="standard alphabet"),
    pytest.param(text_of(HEX, ENCODED[:-1] + "9"), "not base64url", "2d5f44dd", id="stray low bits"),
    pytest.param(text_of(HEX, ENCODED[:-1] + "\ud800"), "not base64url", "2d5f44dd", id="half a surrogate"),
    pytest.param(text_of(HEX + "00", ENCODED), "dot", "2d5f44dd", id="dot too late"),
    pytest.param(
        text_of(HEX[:-2], base64url.encode(FULL[43:])), "dot", "2d5f44dd", id="dot one byte too early"
    ),
]

OTHER_VERSIONS = [
    *(
        pytest.param(bytes([version]) + FULL[1:], id=f"version {version}")
        for version in (0x00, 0x02, 0x0A, 0x1F, 0x20, 0x65, 0x7F, 0x80, 0xFF)
    ),
    pytest.param(b"\x02", id="another version and nothing else"),
    pytest.param(text_of("02" + HEX[2:], ENCODED), id="another version as text"),
    pytest.param(text_of("02" + HEX[2:-2], ENCODED), id="another version with another header"),
    pytest.param(text_of("02", ENCODED + "="), id="another version with another body"),
]

malformed = pytest.mark.parametrize(("stored", "reason", "key_id"), MALFORMED)


class TestRefusals:
    """What is no envelope is refused, and the refusal says which rule it breaks."""

    @malformed
    def test_value_is_refused_for_its_reason(
        self, stored: bytes | str, reason: str, key_id: str | None
    ) -> None:
        with pytest.raises(MalformedEnvelopeError) as caught:
            envelope.parse(stored)
        assert reason == caught.value.reason

    def test_refusal_of_a_truncated_value_has_its_length_in_bytes(self) -> None:
        for stored in (FULL[:60], text_of(HEX, base64url.encode(FULL[44:60]))):
            with pytest.raises(MalformedEnvelopeError, match=r"\(60 bytes"):
                envelope.parse(stored)

    @malformed
    def test_refusal_names_the_key_where_it_can_be_read(
        self, stored: bytes | str, reason: str, key_id: str | None
    ) -> None:
        with pytest.raises(MalformedEnvelopeError) as caught:
            envelope.parse(stored)
        assert key_id == caught.value.key_id
        assert key_id is None or key_id in str(caught.value)

    @malformed
    def test_refusal_shows_no_sealed_byte(self, stored: bytes | str, reason: str, key_id: str | None) -> None:
        with pytest.raises(MalformedEnvelopeError) as caught:
            envelope.parse(stored)
        assert not [shown for shown in BODY_SHOWN if shown in str(caught.value)]

    @pytest.mark.parametrize(
        "stored",
        [f"\\x{FULL.hex()}", TEXT.encode()],
        ids=["bytes in a text column", "text in a column of bytes"],
    )
    def test_envelope_in_a_column_of_the_other_form_names_the_mismatch(self, stored: bytes | str) -> None:
        """PostgreSQL writes bytes into a text column as hex digits."""
        with pytest.raises(MalformedEnvelopeError, match="storage='text'") as caught:
            envelope.parse(stored)
        assert caught.value.reason == "not an envelope"
        assert FULL[6:].hex()[:20] not in str(caught.value)

    @pytest.mark.parametrize("stored", OTHER_VERSIONS)
    def test_other_version_is_told_from_damage(self, stored: bytes | str) -> None:
        with pytest.raises(UnsupportedVersionError):
            envelope.parse(stored)

    @in_one_test("length", range(len(FULL)))
    def test_every_truncation_is_refused_in_both_forms(self, length: int) -> None:
        with pytest.raises(MalformedEnvelopeError):
            envelope.parse(FULL[:length])
        with pytest.raises(MalformedEnvelopeError):
            envelope.parse(text_of(FULL[:length][:44].hex(), base64url.encode(FULL[:length][44:])))

    @pytest.mark.parametrize("take_apart", [envelope.split, envelope.parse])
    def test_the_whole_envelopes_are_not_refused(self, take_apart: Callable[[bytes], object]) -> None:
        """The control: what the refused values were made from."""
        assert take_apart(FULL)
        assert take_apart(BARE)

    @given(stored=st.binary(max_size=90) | st.binary(max_size=90).map(b"\x01".__add__))
    @example(stored=b"\x01" * 46)
    def test_bytes_are_read_or_refused_as_by_the_independent_reader(self, stored: bytes) -> None:
        try:
            expected = independent.parse(stored).header
        except ValueError:
            with pytest.raises(DecryptionError):
                envelope.parse(stored)
        else:
            assert expected == envelope.parse(stored).header

    @given(
        header=st.text(alphabet="0123456789abcdefAg ", max_size=20) | st.binary(max_size=20).map(bytes.hex),
        body=st.text(alphabet="AQgw-_=+/. ", max_size=80) | st.binary(max_size=80).map(base64url.encode),
    )
    def test_text_is_read_or_refused_as_by_the_independent_reader(self, header: str, body: str) -> None:
        text = f"jc{header}.{body}"
        try:
            expected = independent.to_binary(text)
            independent.parse(expected)
        except ValueError:
            with pytest.raises(DecryptionError):
                envelope.parse(text)
        else:
            assert expected == envelope.to_binary(text)


class TestLooks:
    """What claims to be an envelope, of any version and however damaged."""

    @pytest.mark.parametrize(
        ("stored", "expected"),
        [
            (FULL, True),
            (TEXT, True),
            (FULL[:1], True),
            (b"\x02" + FULL[1:], True),
            (b"\x1f", True),
            (TEXT[:15], False),
            (f"jc{'02' * 6}.", True),
            (b"", False),
            ("", False),
            (b"\x00" + FULL[1:], False),
            (b" ", False),
            (b"eyJhbGciOiJIUzI1NiJ9.e30.AA", False),
            ("eyJhbGciOiJIUzI1NiJ9.e30.AA", False),
            ("jc", False),
            ("jc.", False),
            (f"jc{HEX}", False),
            (f"jc{HEX.upper()}.", False),
            (f"jc{HEX[:10]}.", False),
            (f" {TEXT}", False),
        ],
    )
    def test_value_claims_to_be_an_envelope_or_not(self, stored: bytes | str, expected: bool) -> None:
        assert expected is envelope.looks_like_envelope(stored)

    @given(stored=envelopes())
    def test_every_envelope_claims_to_be_one(self, stored: bytes) -> None:
        assert envelope.looks_like_envelope(stored)
        assert envelope.looks_like_envelope(envelope.to_text(stored, envelope.split(stored)))


def test_stamps_of_texts_are_kept_up_to_a_limit() -> None:
    envelope._stamps.clear()
    for number in range(envelope._CACHED_STAMPS + 5):
        binary = b"\x01" + number.to_bytes(4, "big") + b"\x00" + BODY
        assert envelope.to_binary(envelope.as_text(binary[:6], BODY)) == binary
        kept = len(envelope._stamps)
        assert kept == number + 1 if number < envelope._CACHED_STAMPS else kept <= 5
