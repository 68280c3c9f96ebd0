"""Short cuts for the common frame: they know every token of three segments, also one without a signature."""

from __future__ import annotations

from jwt_column import JWT
from jwt_column.format import frame, shape
from jwt_column.format.frame import (
    CACHED_HEADERS,
    begins_as_jws,
    is_frame,
    jws_ends,
    pack,
    unpack,
    unpack_jws,
)
from tests.support.tokens import compact, signed_token


def packed(token: str) -> bytes:
    """Return the frame of a token, which can be packed."""
    made = pack(token)
    assert made is not None
    return made


def ends_of(made: bytes) -> tuple[int, int]:
    """Return the ends of header and payload of a frame of three segments."""
    ends = jws_ends(made)
    assert ends is not None
    return ends


def test_ends_of_header_and_payload_are_known_without_a_signature_too() -> None:
    signed = signed_token(sub="alice")
    header, payload, _ = signed.split(".")
    for token in (signed, f"{header}.{payload}."):
        made = packed(token)
        start, end = ends_of(made)
        assert begins_as_jws(made)
        assert b'"sub"' in made[start:end]
        assert (end == len(made)) is token.endswith(".")


def test_a_frame_that_ends_early_is_none() -> None:
    made = packed(signed_token(sub="alice"))
    _, end = ends_of(made)
    for length in range(end):
        assert jws_ends(made[:length]) is None
        assert not is_frame(made[:length])
    # The control: what follows is the signature, of any length.
    assert is_frame(made[:end])


def test_a_known_header_is_not_encoded_again() -> None:
    made = packed(signed_token(sub="alice"))
    assert unpack(made) == signed_token(sub="alice")
    known = made[6 : ends_of(made)[0]]
    before = frame._header_texts[known]
    frame._header_texts[known] = "known"
    try:
        token = unpack(made)
    finally:
        frame._header_texts[known] = before
    assert token == f"known.{signed_token(sub='alice').partition('.')[2]}"


def test_only_a_token_that_begins_as_a_jws_is_unpacked_by_the_short_cut() -> None:
    jws = compact({"alg": "HS256"}, b'{"sub": "alice"}', b"signature")
    others = (compact(b"no JSON", b"b", b"c"), compact({"enc": "A256GCM"}, b"b", b"c", b"d", b"e"), "opaque")
    for _ in range(2):  # The second time the header of a JWS is known.
        for token in (jws, *others):
            assert unpack(pack(token)) == token
    assert unpack_jws(pack(jws)) == jws
    assert [unpack_jws(pack(token)) for token in others] == [None, None, None]
    assert not any(begins_as_jws(pack(token)) for token in others)
    # Four segments, of which the third would be longer than the frame.
    assert unpack_jws(b"\x01\x04" + pack(jws)[2:]) is None


def test_payload_of_a_frame_is_that_of_a_signed_or_unsigned_token() -> None:
    payload = b'{"sub": "alice"}'
    tokens = {
        compact({"alg": "HS256"}, payload, b"signature"): payload,
        compact({"alg": "none"}, payload, b""): payload,
        # Signed by its header, and without a signature.
        compact({"alg": "HS256"}, payload, b""): None,
        compact({"alg": "dir", "enc": "A256GCM"}, payload, b"iv", b"text", b"tag"): None,
        compact(b"no JSON", payload, b"signature"): None,
    }
    for _ in range(2):  # The second time the kind of the header is known.
        for token, expected in tokens.items():
            assert shape.payload_of(packed(token)) == expected, token
        shape._kinds.pop(b'{"alg": "HS256"}', None)
    assert shape.payload_of(b"\x00opaque") is None


def test_headers_of_values_are_kept_up_to_a_limit() -> None:
    shape._packed_headers.clear()
    shape._kinds.clear()
    for number in range(CACHED_HEADERS + 5):
        token = compact({"alg": "HS256", "kid": number}, {"sub": "alice"}, b"signature")
        JWT(token)
        assert token.partition(".")[0] in shape._packed_headers
        for kept in (len(shape._packed_headers), len(shape._kinds)):
            assert kept == number + 1 if number < CACHED_HEADERS else kept <= 5


def test_headers_are_kept_up_to_a_limit() -> None:
    frame._header_texts.clear()
    for number in range(CACHED_HEADERS + 5):
        made = packed(compact({"alg": "HS256", "kid": number}, {"sub": "alice"}, b"signature"))
        assert unpack(made) is not None
        # The next token with this header finds it.
        assert made[6 : ends_of(made)[0]] in frame._header_texts
        kept = len(frame._header_texts)
        assert kept == number + 1 if number < CACHED_HEADERS else kept <= 5
