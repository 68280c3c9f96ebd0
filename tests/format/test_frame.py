"""Short cuts for the common frame: they know every token of three segments, also one without a signature."""

from __future__ import annotations

from jwt_column.format.frame import begins_as_jws, is_frame, jws_ends, pack, unpack
from tests.support.tokens import signed_token


def test_ends_of_header_and_payload_are_known_without_a_signature_too() -> None:
    signed = signed_token(sub="alice")
    header, payload, _ = signed.split(".")
    for token in (signed, f"{header}.{payload}."):
        frame = pack(token)
        assert frame is not None
        ends = jws_ends(frame)
        assert ends is not None
        assert begins_as_jws(frame)
        assert b'"sub"' in frame[ends[0] : ends[1]]
        assert (ends[1] == len(frame)) is token.endswith(".")


def test_a_frame_that_ends_early_is_none() -> None:
    frame = pack(signed_token(sub="alice"))
    assert frame is not None
    ends = jws_ends(frame)
    assert ends is not None
    for length in range(ends[1]):
        assert jws_ends(frame[:length]) is None
        assert not is_frame(frame[:length])
    # The control: what follows is the signature, of any length.
    assert is_frame(frame[: ends[1]])
    assert unpack(frame) is not None
