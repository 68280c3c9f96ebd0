"""Claims at the edges of what an envelope can index."""

from __future__ import annotations

import json

import pytest

from jwt_column.format.claims import MAX_EXPIRY, claim_input, expiry_of, parse_object


@pytest.mark.parametrize("behind", [b" \n", b'{"jti": "2"}', b" 1", b"}", b"\x00"])
def test_a_payload_with_more_than_an_object_has_no_claims(behind: bytes) -> None:
    payload = b'{"jti": "1"}' + behind
    if behind.strip():
        assert parse_object(payload) is None
        with pytest.raises(json.JSONDecodeError):
            json.loads(payload)
    else:
        assert parse_object(payload) == json.loads(payload) == {"jti": "1"}


@pytest.mark.parametrize(
    ("exp", "expected"),
    [
        (MAX_EXPIRY, MAX_EXPIRY),
        (MAX_EXPIRY + 1, None),
        (MAX_EXPIRY + 0.5, MAX_EXPIRY),
        (float(MAX_EXPIRY + 1), None),
        (-0.5, None),
    ],
)
def test_the_last_expiry_is_one_below_the_field_that_means_none(exp: float, expected: int | None) -> None:
    assert expiry_of({"exp": exp}) == expected


@pytest.mark.parametrize("sign", [1, -1])
def test_an_integer_has_a_fingerprint_up_to_4300_digits(sign: int) -> None:
    longest = sign * (10**4300 - 1)
    assert claim_input(longest) == b"i" + str(longest).encode()
    assert claim_input(longest + sign) is None
