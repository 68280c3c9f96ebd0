"""What a token is, how it behaves as a value, and how it is packed."""

from __future__ import annotations

import copy
import json
import pickle
import pprint
import re
import reprlib
import string
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import hypothesis.strategies as st
import jwt
import jwt as pyjwt
import pytest
from hypothesis import example, given
from rich.pretty import pretty_repr

from jwt_column import JWT, ConfigurationError, InvalidTokenError
from jwt_column.format import base64url, frame, shape
from jwt_column.format.base64url import decode
from jwt_column.format.claims import expiry_of
from jwt_column.format.frame import is_frame, pack, unpack
from jwt_column.format.shape import Kind, pack_signed, shape_of
from jwt_column.format.token import redacted, unchecked_jwt
from tests.support import independent_envelope as independent
from tests.support.cases import in_one_test
from tests.support.tokens import (
    ALGORITHMS,
    compact,
    locals_shown_by,
    revealed_by,
    rfc_token,
    signed_token,
    signing_key,
    tokens,
    verification_key,
)

HEADER = {"alg": "HS256", "typ": "JWT"}
CLAIMS = {"sub": "alice", "exp": 1_700_000_000}
SIGNATURE = bytes(range(32))
TOKEN = compact(HEADER, CLAIMS, SIGNATURE)
ENCRYPTED = compact({"alg": "dir", "enc": "A256GCM"}, b"", b"nonce", b"ciphertext", b"tag")
UNSIGNED = compact({"alg": "none"}, CLAIMS, b"")

HEAD, BODY, TAIL = TOKEN.split(".")

#: Deeper than any parser of Python follows, in no more characters than a token may have.
DEEP = b'{"alg":"HS256","x":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
HUGE = b'{"alg":"HS256","n":' + b"9" * 5_000 + b"}"


class Choice(StrEnum):
    """A text that is not what ``str()`` makes of it."""

    token = TOKEN

    def __str__(self) -> str:
        return self.name


def header_row(name: str, header: object) -> Any:
    """Return a row of a token with this header, which is refused because of it."""
    return pytest.param(compact(header, CLAIMS, SIGNATURE), "header", id=f"header that {name}")


REFUSED = [
    pytest.param(b"eyJ", "not a str", id="bytes"),
    pytest.param(bytearray(b"eyJ"), "not a str", id="bytearray"),
    pytest.param(None, "not a str", id="None"),
    pytest.param(1, "not a str", id="int"),
    pytest.param({"alg": "HS256"}, "not a str", id="dict"),
    pytest.param(TOKEN.encode(), "not a str", id="a token as bytes"),
    pytest.param([TOKEN], "not a str", id="a token in a list"),
    pytest.param("", "empty", id="empty"),
    pytest.param(" " + TOKEN, "white space", id="space before"),
    pytest.param(TOKEN + "\n", "white space", id="newline after"),
    pytest.param("\u00a0" + TOKEN, "white space", id="no-break space before"),
    pytest.param(" ", "white space", id="nothing but a space"),
    pytest.param("Bearer " + TOKEN, "bearer", id="Bearer"),
    pytest.param("bearer " + TOKEN, "bearer", id="bearer"),
    pytest.param("JWT " + TOKEN, "bearer", id="JWT"),
    pytest.param("dpop " + TOKEN, "bearer", id="DPoP"),
    pytest.param("Token " + TOKEN, "bearer", id="Token"),
    pytest.param("oauth " + TOKEN, "bearer", id="OAuth"),
    pytest.param("Bearer\t" + TOKEN, "bearer", id="Bearer and a tab"),
    pytest.param("Bearer\u00a0" + TOKEN, "bearer", id="Bearer and a no-break space"),
    pytest.param("Bearer%20" + TOKEN, "bearer", id="Bearer in a URL"),
    pytest.param("Bearer+" + TOKEN, "bearer", id="Bearer in a form"),
    pytest.param(f'"{TOKEN}"', "quotes", id="quotes"),
    pytest.param(f"\u201c{TOKEN}\u201d", "quotes", id="quotes of a text processor"),
    pytest.param(f"`{TOKEN}`", "quotes", id="backticks"),
    pytest.param("**********", "mask", id="the mask of a response"),
    pytest.param("*", "mask", id="one asterisk"),
    pytest.param(TOKEN + "\ufeff", "white space", id="byte order mark behind"),
    pytest.param("\u200b" + TOKEN, "white space", id="zero-width space before"),
    pytest.param(f"'{TOKEN}", "quotes", id="one quote"),
    pytest.param("\ufeff" + TOKEN, "white space", id="byte order mark"),
    pytest.param("BEARER " + TOKEN, "bearer", id="BEARER"),
    pytest.param(HEAD, "segments", id="1 segment"),
    pytest.param(f"{HEAD}.{BODY}", "segments", id="2 segments"),
    pytest.param(f"{TOKEN}.{TAIL}", "segments", id="4 segments"),
    pytest.param(f"{TOKEN}.", "segments", id="dot after"),
    pytest.param(f".{TOKEN}", "segments", id="dot before"),
    pytest.param(f"{ENCRYPTED}.{TAIL}", "segments", id="6 segments"),
    pytest.param(f"{TOKEN}.{TAIL}.{TAIL}", "segments", id="5 segments without enc"),
    pytest.param(".".join(ENCRYPTED.split(".")[:3]), "segments", id="3 segments with enc"),
    pytest.param("..", "header", id="dots alone"),
    pytest.param(f"{HEAD}=.{BODY}.{TAIL}", "header", id="padded header"),
    pytest.param(f"{HEAD}.{BODY}=.{TAIL}", "not base64url", id="padded payload"),
    pytest.param(f"{HEAD}.{BODY}.{TAIL}=", "not base64url", id="padded signature"),
    pytest.param(f"{HEAD}.ab+d.{TAIL}", "not base64url", id="plus of the standard alphabet"),
    pytest.param(f"{HEAD}.{BODY}.ab/d", "not base64url", id="slash of the standard alphabet"),
    pytest.param(f"{HEAD}.ABCDE.{TAIL}", "not base64url", id="length of no base64"),
    pytest.param(f"{HEAD}.ab d.{TAIL}", "not base64url", id="space within"),
    pytest.param(f"{HEAD}.ab\nd.{TAIL}", "not base64url", id="newline within"),
    pytest.param(f"{HEAD}.ab\0d.{TAIL}", "not base64url", id="zero character within"),
    pytest.param(f"{HEAD}.ab\u00e9d.{TAIL}", "not base64url", id="letter outside ASCII"),
    pytest.param(f"{HEAD}.ab\ud800d.{TAIL}", "not base64url", id="half a surrogate pair in the payload"),
    pytest.param(f"\udfff{HEAD}.{BODY}.{TAIL}", "header", id="half a surrogate pair in the header"),
    header_row("is empty", b""),
    header_row("is no JSON", b"{alg: HS256}"),
    header_row("is cut off", b'{"alg":"HS256"'),
    header_row("is followed by something", b'{"alg":"HS256"}{}'),
    header_row("is not UTF-8", b'{"alg":"HS256","x":"\xff"}'),
    header_row("is UTF-16", '{"alg":"HS256"}'.encode("utf-16-be")),
    header_row("begins with a byte order mark", b'\xef\xbb\xbf{"alg":"HS256"}'),
    header_row("begins with white space", b' {"alg":"HS256"}'),
    header_row("begins with a newline", b'\n{"alg":"HS256"}'),
    header_row("is a list", ["alg"]),
    header_row("is a text", "alg"),
    header_row("is null", None),
    header_row("has no alg", {"typ": "JWT"}),
    header_row("has nothing", {}),
    header_row("has a null for alg", {"alg": None}),
    header_row("has a number for alg", {"alg": 256}),
    header_row("has a list for alg", {"alg": ["HS256"]}),
    header_row("holds NaN", b'{"alg":"HS256","x":NaN}'),
    header_row("holds Infinity", b'{"alg":"HS256","x":-Infinity}'),
    header_row("is nested too deeply", DEEP),
    pytest.param(compact(HEADER, CLAIMS, b""), "no signature", id="empty signature"),
    pytest.param(f"{HEAD}..", "no signature", id="empty payload and signature"),
]

ACCEPTED = [
    pytest.param(TOKEN, Kind.SIGNED, id="JWS"),
    pytest.param(ENCRYPTED, Kind.ENCRYPTED, id="JWE"),
    pytest.param(compact({"alg": "none", "enc": "x"}, b"", b"", b"", b""), Kind.ENCRYPTED, id="empty JWE"),
    pytest.param(UNSIGNED, Kind.UNSIGNED, id="unsigned"),
    pytest.param(compact({"alg": "none"}, CLAIMS, SIGNATURE), Kind.UNSIGNED, id="unsigned, with a signature"),
    pytest.param(compact(b'{"alg":"\\u006eone"}', CLAIMS, b"x"), Kind.UNSIGNED, id="unsigned, by an escape"),
    pytest.param(f"{HEAD}..{TAIL}", Kind.SIGNED, id="detached payload"),
    pytest.param(compact(HEADER, b"no JSON", SIGNATURE), Kind.SIGNED, id="payload that is no JSON"),
    pytest.param(compact(HEADER, DEEP, SIGNATURE), Kind.SIGNED, id="payload that is nested too deeply"),
    pytest.param(compact(HUGE, CLAIMS, SIGNATURE), Kind.SIGNED, id="header with a huge integer"),
    pytest.param(
        compact(b'{"alg":"HS256"} \n', CLAIMS, b"x"), Kind.SIGNED, id="white space after the header"
    ),
    pytest.param(compact(b'{"alg":"\\ud800"}', CLAIMS, b"x"), Kind.SIGNED, id="half a surrogate pair as alg"),
    pytest.param(f"{HEAD}.{BODY}.QR", Kind.SIGNED, id="stray low bits"),
    pytest.param(Choice.token, Kind.SIGNED, id="member of an enumeration"),
    *(
        pytest.param(compact({"alg": spelling}, CLAIMS, b""), Kind.UNSIGNED, id=f"alg {spelling}")
        for spelling in ("none", "None", "NONE", "nOnE", "NonE")
    ),
    *(pytest.param(signed_token(algorithm), Kind.SIGNED, id=algorithm) for algorithm in ALGORITHMS),
    pytest.param(rfc_token("A.1 HS256"), Kind.SIGNED, id="RFC 7515 A.1"),
    pytest.param(rfc_token("A.4 ES512, payload that is not JSON"), Kind.SIGNED, id="RFC 7515 A.4"),
    pytest.param(rfc_token("A.5 unsecured"), Kind.UNSIGNED, id="RFC 7515 A.5"),
    pytest.param(rfc_token("A.1 encrypted JWT"), Kind.ENCRYPTED, id="RFC 7519 A.1"),
    pytest.param(rfc_token("A.2 nested JWT"), Kind.ENCRYPTED, id="RFC 7519 A.2"),
]


def exactly(value: str) -> bytes:
    """Return the characters of a text, whatever its class says about them."""
    return str.encode(value, "utf-8", "surrogatepass")


class TestShape:
    """What is a token, by its shape."""

    @pytest.mark.parametrize(("value", "kind"), ACCEPTED)
    def test_token_is_classified(self, value: str, kind: Kind) -> None:
        assert kind is shape_of(value).kind

    @pytest.mark.parametrize(("value", "kind"), ACCEPTED)
    def test_jwt_takes_all_but_the_unsigned_and_keeps_every_character(self, value: str, kind: Kind) -> None:
        if kind is Kind.UNSIGNED:
            with pytest.raises(InvalidTokenError) as caught:
                JWT(value)
            assert caught.value.reason == "unsigned"
        else:
            assert kind is JWT(value).kind
            assert exactly(value) == exactly(JWT(value))

    @pytest.mark.parametrize(("value", "reason"), REFUSED)
    def test_value_is_refused_for_its_reason(self, value: Any, reason: str) -> None:
        with pytest.raises(InvalidTokenError) as caught:
            JWT(value)
        assert reason == caught.value.reason

    @pytest.mark.parametrize(("value", "reason"), REFUSED)
    def test_refusal_shows_nothing_of_the_value(self, value: Any, reason: str) -> None:
        with pytest.raises(InvalidTokenError) as caught:
            JWT(value)
        assert set() == revealed_by(caught.value, *([value] if isinstance(value, str | bytes) else []))

    def test_second_look_at_a_header_gives_the_verdict_of_the_first(self) -> None:
        for _ in range(2):
            assert Kind.SIGNED is shape_of(compact({"alg": "A", "n": 1}, CLAIMS, b"x")).kind
            assert Kind.UNSIGNED is shape_of(compact({"alg": "none", "n": 1}, CLAIMS, b"x")).kind
            with pytest.raises(InvalidTokenError):
                shape_of(compact({"alg": 1, "n": 1}, CLAIMS, b"x"))

    def test_more_headers_than_are_remembered_are_still_told_apart(self) -> None:
        many = [
            compact({"alg": "none" if n % 3 == 0 else "HS256", "n": n}, CLAIMS, b"x") for n in range(2_500)
        ]
        for _ in range(2):
            assert [n for n in range(2_500) if n % 3 == 0] == [
                n for n, value in enumerate(many) if shape_of(value).kind is Kind.UNSIGNED
            ]
        assert many == [unpack(pack(value)) for value in many]
        assert len(shape._kinds) <= 1024
        assert len(frame._header_texts) <= 1024
        assert len(shape._packed_headers) <= 1024

    def test_long_header_is_not_remembered(self) -> None:
        """Else a thousand of them, each of its own, would fill the memory."""
        value = compact({"alg": "HS256", "x5c": "A" * 10_000}, CLAIMS, b"x")
        assert Kind.SIGNED is shape_of(value).kind
        assert value == unpack(pack(value))
        longest = max(map(len, (*shape._kinds, *shape._packed_headers, *frame._header_texts)))
        assert longest <= 4096

    @given(value=st.text(max_size=60) | st.text(alphabet=string.ascii_letters + ".-_=", max_size=60))
    def test_any_text_is_refused_or_classified(self, value: str) -> None:
        try:
            result: object = shape_of(value).kind
        except InvalidTokenError as error:
            result = error.reason
        assert result

    @given(header=st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers(), max_size=4))
    def test_header_is_taken_if_and_only_if_its_alg_is_a_text(self, header: dict[str, Any]) -> None:
        value = compact(header, CLAIMS, SIGNATURE)
        if isinstance(header.get("alg"), str) and "enc" not in header:
            assert header == JWT(value).unverified_header
        else:
            with pytest.raises(InvalidTokenError):
                JWT(value)

    @given(value=tokens())
    def test_every_signed_token_is_one(self, value: str) -> None:
        assert Kind.SIGNED is shape_of(value).kind


class TestBase64url:
    """The strict decoder below the shape check."""

    texts = st.text(alphabet="AQgwBEz09-_+/=. \n\u00e9", max_size=9) | st.text(max_size=9)

    @given(data=st.binary(max_size=100))
    def test_bytes_come_back(self, data: bytes) -> None:
        assert (
            data
            == base64url.decode(base64url.encode(data))
            == base64url.decode_canonical(base64url.encode(data))
        )

    @given(text=texts)
    @example(text="")
    @example(text="A")
    @example(text="QR")
    @example(text="QQ=")
    def test_both_decoders_say_what_the_independent_ones_say(self, text: str) -> None:
        assert independent.decode_leniently(text) == base64url.decode(text)
        try:
            expected = independent.decode_canonically(text)
        except ValueError:
            expected = None
        assert expected == base64url.decode_canonical(text)


class TestValue:
    """A token as a value of the program."""

    def test_repr_shows_the_length_alone(self) -> None:
        assert f"JWT(redacted, {len(TOKEN)} characters)" == repr(JWT(TOKEN))

    def test_text_is_the_token(self) -> None:
        value = JWT(TOKEN)
        assert [str(value), f"{value}", "%s" % value, "".join([value])] == [TOKEN] * 4  # noqa: UP031
        assert type(str(value)) is str

    def test_representation_in_a_format_is_redacted(self) -> None:
        value = JWT(TOKEN)
        for shown in (f"{value!r}", f"{value=}", "%r" % value, repr([value]), repr({"t": value})):  # noqa: UP031
            assert TOKEN[:8] not in shown
            assert "redacted" in shown

    def test_texts_within_a_json_value_are_redacted_and_keep_their_values(self) -> None:
        claims: dict[str, Any] = {
            "aud": ["a-long-audience", {"deep": ["deeper"]}, 1, None],
            "inner": TOKEN,
            "pair": "a.b.c.d",
        }
        shown = redacted(claims)
        assert shown == claims
        assert "audience" not in repr(shown)
        assert "deeper" not in repr(shown)
        assert type(shown["inner"]) is JWT
        assert type(shown["pair"]) is not JWT
        assert isinstance(shown["aud"], list)

    @pytest.mark.parametrize(
        "cut", [slice(0, 20), slice(None, None, -1), slice(5, None), 0, slice(2), slice(0, 0)], ids=str
    )
    def test_slice_has_the_characters_and_a_redacted_repr(self, cut: Any) -> None:
        piece = JWT(TOKEN)[cut]
        assert TOKEN[cut] == piece
        assert f"<redacted, {len(piece)} characters>" == repr(piece)
        assert "redacted" in repr(piece[:1])

    @pytest.mark.parametrize("width", [10, 30, 60, 10_000])
    def test_tools_that_shorten_a_text_before_they_show_it_show_none_of_it(self, width: int) -> None:
        shortener = reprlib.Repr()
        shortener.maxstring = shortener.maxother = width
        for value, is_redacted in ((TOKEN, False), (JWT(TOKEN), True)):
            shown = [
                pretty_repr({"token": value}, max_string=width),
                shortener.repr(value),
                pprint.pformat([value], width=width),
            ]
            # The control: of a plain text, each of the three shows the beginning.
            assert [is_redacted] * 3 == [TOKEN[:2] not in text for text in shown]

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize("value", [TOKEN, ENCRYPTED, UNSIGNED, "an opaque token"])
    def test_pickle_keeps_token_class_and_kind(self, value: str, protocol: int) -> None:
        """Also of what a column took that allows more than a JWT made by hand may be."""
        before = unchecked_jwt(value)
        after = pickle.loads(pickle.dumps(before, protocol))
        assert value == after
        assert type(after) is JWT
        assert before.kind is after.kind

    def test_copies_are_the_token_itself(self) -> None:
        value = JWT(TOKEN)
        assert value is copy.copy(value)
        assert value is copy.deepcopy(value)
        assert value is copy.deepcopy([value])[0]

    def test_token_is_equal_to_its_text_and_hashes_like_it(self) -> None:
        assert JWT(TOKEN) == TOKEN
        assert hash(TOKEN) == hash(JWT(TOKEN))
        assert {TOKEN: 1}[JWT(TOKEN)] == 1
        assert JWT(TOKEN) != JWT(ENCRYPTED)

    def test_json_takes_it_as_a_text(self) -> None:
        assert json.dumps([TOKEN]) == json.dumps([JWT(TOKEN)])

    def test_subclass_makes_its_own_instances(self) -> None:
        class Special(JWT):
            """A subclass."""

        assert type(Special(TOKEN)) is Special

    @pytest.mark.parametrize(
        ("value", "kind"),
        [(TOKEN, Kind.SIGNED), (ENCRYPTED, Kind.ENCRYPTED), (UNSIGNED, Kind.UNSIGNED), ("x.y", Kind.OPAQUE)],
    )
    def test_token_that_was_not_checked_finds_its_kind_when_asked(self, value: str, kind: Kind) -> None:
        unchecked = unchecked_jwt(value)
        assert [kind, kind] == [unchecked.kind, unchecked.kind]


def with_exp(exp: object) -> JWT:
    """Return a token with this ``exp``; bytes stand in it as they are."""
    payload = b'{"exp":' + exp + b"}" if isinstance(exp, bytes) else {"exp": exp}
    return JWT(compact(HEADER, payload, SIGNATURE))


class TestContent:
    """What can be read from a token without a key."""

    def test_header_is_read(self) -> None:
        assert JWT(TOKEN).unverified_header == HEADER
        assert JWT(ENCRYPTED).unverified_header == {"alg": "dir", "enc": "A256GCM"}

    def test_header_is_a_new_object_at_each_access(self) -> None:
        value = JWT(TOKEN)
        value.unverified_header["alg"] = "none"
        assert value.unverified_header == HEADER

    def test_header_with_a_huge_integer_is_read(self) -> None:
        header = JWT(compact(HUGE, CLAIMS, SIGNATURE)).unverified_header
        assert header == {"alg": "HS256", "n": float("inf")}

    def test_opaque_token_has_no_header(self) -> None:
        with pytest.raises(InvalidTokenError) as caught:
            _ = unchecked_jwt("opaque").unverified_header
        assert caught.value.reason == "opaque"

    def test_claims_are_read(self) -> None:
        assert JWT(TOKEN).unverified_claims == CLAIMS
        assert unchecked_jwt(UNSIGNED).unverified_claims == CLAIMS

    @pytest.mark.parametrize(
        "value",
        [
            ENCRYPTED,
            "opaque",
            f"{HEAD}..{TAIL}",
            compact(HEADER, b"no JSON", SIGNATURE),
            compact(HEADER, ["sub"], SIGNATURE),
            compact(HEADER, b"\xff", SIGNATURE),
            compact(HEADER, DEEP, SIGNATURE),
        ],
        ids=["JWE", "opaque", "detached", "no JSON", "list", "no UTF-8", "deep"],
    )
    def test_payload_that_cannot_be_read_has_no_claims_and_no_expiry(self, value: str) -> None:
        unreadable = unchecked_jwt(value)
        with pytest.raises(InvalidTokenError) as caught:
            _ = unreadable.unverified_claims
        assert caught.value.reason == "no readable claims"
        assert unreadable.expires_at is None
        assert not unreadable.is_expired()

    @pytest.mark.parametrize(
        ("exp", "expected"),
        [
            (0, datetime(1970, 1, 1, tzinfo=UTC)),
            (1_300_819_380, datetime(2011, 3, 22, 18, 43, tzinfo=UTC)),
            (1_300_819_380.9, datetime(2011, 3, 22, 18, 43, tzinfo=UTC)),
            (b"13e8", datetime(2011, 3, 13, 7, 6, 40, tzinfo=UTC)),
            (253_402_300_799, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
            (253_402_300_800, datetime.max.replace(tzinfo=UTC)),
            (2**48 - 2, datetime.max.replace(tzinfo=UTC)),
            (2**48 - 1.5, datetime.max.replace(tzinfo=UTC)),
        ],
    )
    def test_expiry_is_read_in_whole_seconds(self, exp: object, expected: datetime) -> None:
        assert expected == with_exp(exp).expires_at

    def test_token_without_exp_has_no_expiry(self) -> None:
        value = JWT(compact(HEADER, {"sub": "alice"}, SIGNATURE))
        assert value.expires_at is None
        assert not value.is_expired()

    @pytest.mark.parametrize(
        "payload",
        [
            b'{"sub":"alice","x":NaN}',
            b'\xef\xbb\xbf{"sub":"alice"}',
            '{"sub":"alice"}'.encode("utf-16"),
            '{"sub":"alice"}'.encode("utf-16-be"),
            '{"sub":"alice"}'.encode("utf-32-le"),
            b' {"sub":"alice"}\r\n',
            b'{"sub":"bob","sub":"alice"}',
            b'{"sub":"alice","x":1e400}',
            b'{"sub":"alice","x":"\xed\xa0\x80"}',
        ],
        ids=["NaN", "BOM", "UTF-16", "UTF-16-BE", "UTF-32-LE", "space", "twice", "infinity", "surrogate"],
    )
    def test_payload_is_read_as_pyjwt_reads_it(self, payload: bytes) -> None:
        value = compact(HEADER, payload, SIGNATURE)
        peer = pyjwt.decode(value, options={"verify_signature": False})
        assert "alice" == peer["sub"] == JWT(value).unverified_claims["sub"]
        assert repr(peer) == repr(JWT(value).unverified_claims)

    def test_integer_that_python_does_not_read_leaves_the_other_claims(self) -> None:
        value = JWT(compact(HEADER, b'{"n":' + b"9" * 5_000 + b',"exp":5,"sub":"alice"}', SIGNATURE))
        assert (value.unverified_claims["sub"], value.unverified_claims["n"]) == ("alice", float("inf"))
        assert value.is_expired()
        # The control: PyJWT does not read such a payload at all.
        with pytest.raises(pyjwt.DecodeError):
            pyjwt.decode(value, options={"verify_signature": False})

    @pytest.mark.parametrize(
        "exp",
        [
            -1,
            -0.5,
            2**48 - 1,
            2**64,
            b"9" * 5_000,
            b"-" + b"9" * 5_000,
            b"1e400",
            b"NaN",
            True,
            None,
            "1",
            [1],
            {},
        ],
        ids=lambda exp: repr(exp)[:20],
    )
    def test_exp_that_no_envelope_holds_counts_as_absent(self, exp: object) -> None:
        assert with_exp(exp).expires_at is None

    @pytest.mark.parametrize(
        "exp",
        [
            -1,
            0,
            5,
            5.5,
            "5",
            " 5 ",
            True,
            2**48,
            2**64,
            b"1e300",
            None,
            "soon",
            "5.5",
            [1],
            {},
            b"1e400",
            b"NaN",
        ],
        ids=lambda exp: repr(exp)[:20],
    )
    def test_token_expires_when_pyjwt_says_so(self, exp: object) -> None:
        value = with_exp(exp)
        try:
            pyjwt.decode(value, options={"verify_signature": False, "verify_exp": True})
        except pyjwt.ExpiredSignatureError:
            assert value.is_expired()
        except (pyjwt.PyJWTError, TypeError, ValueError, OverflowError):
            with pytest.raises(InvalidTokenError) as caught:
                value.is_expired()
            assert caught.value.reason == "exp"
        else:
            assert not value.is_expired()

    @given(exp=st.integers(0, 2**48 - 2) | st.floats(0, 2**48 - 2))
    def test_expiry_is_rounded_down(self, exp: float) -> None:
        seconds = expiry_of({"exp": exp})
        assert seconds is not None
        assert 0 <= exp - seconds < 1

    def test_token_expires_at_its_second_and_not_before(self) -> None:
        value = with_exp(1_700_000_000)
        moment = datetime.fromtimestamp(1_700_000_000, UTC)
        assert not value.is_expired(at=moment - timedelta(microseconds=1))
        assert value.is_expired(at=moment)
        assert not value.is_expired(at=moment, leeway=1)
        assert value.is_expired(at=moment + timedelta(seconds=1), leeway=1)

    def test_clock_of_the_machine_is_asked_where_no_time_is_given(self) -> None:
        assert with_exp(1).is_expired()
        assert not with_exp(253_402_300_799).is_expired()

    @pytest.mark.parametrize("exp", [253_402_300_799, 2**48 - 2])
    def test_leeway_past_the_last_moment_of_python_is_no_error(self, exp: int) -> None:
        assert not with_exp(exp).is_expired(leeway=3_600)


class TestVerify:
    """Verification by PyJWT."""

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_claims_of_a_good_token_are_returned(self, algorithm: str) -> None:
        value = JWT(signed_token(algorithm, sub="alice"))
        assert value.verify(verification_key(algorithm), [algorithm]) == {"sub": "alice"}

    @pytest.mark.parametrize(
        ("algorithms", "says"),
        [
            ("RS256", "list of algorithms, such as .*; put the one text into brackets"),
            (None, "list of algorithms, such as .*, not of NoneType"),
            ([], "algorithms is empty: name those that the issuer signs with"),
            (["none"], 'algorithms has "none", with which anyone can sign'),
            (["RS256", "NONE"], 'algorithms has "none"'),
        ],
    )
    def test_algorithms_are_a_list_without_none(self, algorithms: Any, says: str) -> None:
        token = JWT(signed_token("RS256"))
        with pytest.raises(ConfigurationError, match=says):
            token.verify(verification_key("RS256"), algorithms)
        assert token.verify(verification_key("RS256"), ("RS256",)) is not None  # the control

    @pytest.mark.parametrize(
        ("failure", "value", "arguments"),
        [
            (jwt.InvalidSignatureError, signed_token("RS256", sub="a")[:-40] + "A" * 40, {}),
            (jwt.ExpiredSignatureError, signed_token("RS256", exp=1), {}),
            (jwt.InvalidAlgorithmError, signed_token("RS256"), {"algorithms": ["ES256"]}),
            (jwt.MissingRequiredClaimError, signed_token("RS256"), {"issuer": "https://issuer.example"}),
            (jwt.InvalidAudienceError, signed_token("RS256", aud="a"), {"audience": "b"}),
            (jwt.DecodeError, ENCRYPTED, {}),
            (jwt.DecodeError, "opaque", {}),
            (jwt.DecodeError, compact(b"no JSON", b"no JSON", b"x"), {}),
            (jwt.DecodeError, compact({"alg": "RS256"}, b"no JSON", b"x") + "x", {}),
            (jwt.PyJWTError, signed_token("HS256", sub="a"), {"algorithms": ["HS256"], "key": b""}),
            (Exception, signed_token("RS256", sub="a"), {"key": object()}),
        ],
        ids=[
            "signature",
            "expired",
            "algorithm",
            "issuer",
            "audience",
            "JWE",
            "opaque",
            "header",
            "base64",
            "empty key",
            "no key at all",
        ],
    )
    def test_failure_is_raised_and_no_frame_below_the_caller_shows_the_token(
        self, failure: type[Exception], value: str, arguments: dict[str, Any]
    ) -> None:
        arguments = {"key": verification_key("RS256"), "algorithms": ["RS256"], **arguments}
        with pytest.raises(failure) as caught:
            unchecked_jwt(value).verify(**arguments)
        shown = locals_shown_by(caught.value)
        # As words: a segment such as "e30" also occurs within the addresses that a repr prints.
        assert not set(value.split(".")).difference([""]).intersection(re.split(r"[^\w-]+", shown))
        assert set() == revealed_by(caught.value, value)

    def test_pyjwt_itself_shows_the_token_in_its_frames(self) -> None:
        """The control: what is looked for is found where nothing hides it."""
        value = signed_token("RS256", exp=1)
        with pytest.raises(jwt.ExpiredSignatureError) as caught:
            jwt.decode(value, verification_key("RS256"), ["RS256"])
        assert value in locals_shown_by(caught.value)

    def test_error_that_the_caller_is_handling_stays_in_the_context(self) -> None:
        def verify_beside_another_error() -> None:
            try:
                int("x")
            except ValueError:
                JWT(signed_token(exp=1)).verify(signing_key("HS256"), ["HS256"])

        with pytest.raises(jwt.ExpiredSignatureError) as caught:
            verify_beside_another_error()
        assert isinstance(caught.value.__context__, ValueError)

    def test_options_reach_pyjwt(self) -> None:
        value = JWT(signed_token(exp=1, aud="api"))
        claims = value.verify(signing_key("HS256"), ["HS256"], audience="api", options={"verify_exp": False})
        assert claims == {"exp": 1, "aud": "api"}


#: Tokens and their frames, written out by hand from the format's page.
FRAMES = [
    pytest.param("e30.e30.AA", b"\x01\x03\x00\x02\x00\x02{}{}\x00", id="JWS"),
    pytest.param("e30..AA..AQI", b"\x01\x05\x00\x02\x00\x00\x00\x01\x00\x00{}\x00\x01\x02", id="JWE"),
    pytest.param("", b"\x01\x01", id="empty"),
    pytest.param("AA", b"\x01\x01\x00", id="1 segment"),
    pytest.param(".", b"\x01\x02\x00\x00", id="2 empty segments"),
    pytest.param("." * 254, b"\x01\xff" + bytes(508), id="255 segments"),
    pytest.param("." * 255, b"\x00" + b"." * 255, id="256 segments"),
    pytest.param("AB.AA", b"\x00AB.AA", id="stray low bits"),
    pytest.param("AA=.AA", b"\x00AA=.AA", id="padding"),
    pytest.param("A+.AA", b"\x00A+.AA", id="standard alphabet"),
    pytest.param("A.AA", b"\x00A.AA", id="length of no base64"),
    pytest.param("opaque \u00e9", b"\x00opaque \xc3\xa9", id="text"),
]


class TestPacking:
    """Tokens to frames and back."""

    @pytest.mark.parametrize(("value", "frame"), FRAMES)
    def test_token_has_the_frame_of_the_format(self, value: str, frame: bytes) -> None:
        assert frame == pack(value)

    @pytest.mark.parametrize(("value", "frame"), FRAMES)
    def test_frame_gives_its_token(self, value: str, frame: bytes) -> None:
        assert value == unpack(frame)

    def test_segment_but_the_last_may_have_65_535_bytes(self) -> None:
        for length, first in ((65_535, b"\x01"), (65_536, b"\x00")):
            value = compact(bytes(length), b"", b"x")
            assert first == pack(value)[:1]
            assert value == unpack(pack(value))

    def test_last_segment_may_have_any_length(self) -> None:
        value = compact(HEADER, CLAIMS, bytes(100_000))
        assert pack(value).startswith(b"\x01\x03")
        assert value == unpack(pack(value))

    @in_one_test("count", range(1, 256))
    def test_every_number_of_segments_is_packed_and_comes_back(self, count: int) -> None:
        value = ".".join(base64url.encode(bytes([number % 256]) * (number % 5)) for number in range(count))
        assert bytes([1, count]) == pack(value)[:2]
        assert value == unpack(pack(value))

    @given(value=tokens() | st.text(max_size=60) | st.text(alphabet="AQgw.-_=", max_size=60))
    def test_every_text_comes_back_to_the_letter(self, value: str) -> None:
        assert value == unpack(pack(value))

    @given(value=tokens() | st.text(max_size=60) | st.text(alphabet="AQgw.-_=", max_size=60))
    def test_frame_is_that_of_the_independent_writer(self, value: str) -> None:
        assert independent.frame_of(value) == pack(value)

    @pytest.mark.parametrize(
        "frame",
        [
            b"",
            b"\x02",
            b"\xff{}",
            b"\x00\xff",
            b"\x01",
            b"\x01\x00",
            b"\x01\x00\x00\x00\x00\x00",
            b"\x01\x02\x00",
            b"\x01\x03\x00\x00\x00",
            b"\x01\x03\x00\x02\x00\x00{",
            b"\x01\x03\x00\x01\x00\x02{}",
            b"\x01\x04\x00\x00\x00\x00\x00",
            b"\x01\x05\x00\x01\x00\x01\x00\x01\x00\x01{}",
        ],
        ids=bytes.hex,
    )
    def test_what_is_no_frame_gives_nothing(self, frame: bytes) -> None:
        assert unpack(frame) is None
        assert not is_frame(frame)

    @pytest.mark.parametrize(("value", "frame"), FRAMES)
    def test_frame_is_known_as_one_without_being_taken_apart(self, value: str, frame: bytes) -> None:
        assert is_frame(frame)

    @given(frame=st.binary(max_size=30) | st.binary(max_size=30).map(b"\x01\x03".__add__))
    def test_frame_that_gives_a_token_is_one_of_a_kind_or_an_unpacked_one(self, frame: bytes) -> None:
        """A packed frame and its token determine each other, so nothing can hide in one."""
        value = unpack(frame)
        if value is not None and frame[0] == 1:
            assert frame == pack(value)
        assert (value is not None) is is_frame(frame)

    @given(value=tokens())
    def test_short_cut_packs_a_known_signed_token_like_the_long_way(self, value: str) -> None:
        shape_of(value)
        assert (pack(value), decode(value.split(".")[1])) == pack_signed(value)

    @pytest.mark.parametrize(
        "value",
        [
            compact({"alg": "HS256", "kid": "seen by no other test"}, CLAIMS, SIGNATURE),
            ENCRYPTED,
            UNSIGNED,
            compact({"alg": "none"}, CLAIMS, SIGNATURE),
            f"{HEAD}.{BODY}",
            f"{HEAD}.{BODY}.",
            f"{HEAD}.{BODY}.QR",
            f"{HEAD}.QR.{TAIL}",
            f"{HEAD}.{BODY}.{TAIL}.",
            f"{HEAD}.{BODY}.{TAIL}.{TAIL}.{TAIL}",
            f"{HEAD}.{BODY}.{TAIL}=",
            f"{HEAD}.{BODY}.{TAIL}\n",
            f" {TOKEN}",
            compact(HEADER, bytes(65_536), SIGNATURE),
            "",
        ],
        ids=[
            "header not seen before",
            "JWE",
            "unsigned",
            "unsigned, with a signature",
            "2 segments",
            "no signature",
            "signature not canonical",
            "payload not canonical",
            "4 segments",
            "5 segments",
            "padding",
            "newline",
            "space",
            "payload too long for its field",
            "empty",
        ],
    )
    def test_short_cut_leaves_everything_else_to_the_long_way(self, value: str) -> None:
        JWT(TOKEN)
        assert pack_signed(value) is None

    @given(value=st.data())
    def test_short_cut_takes_nothing_that_the_shape_check_refuses(self, value: st.DataObject) -> None:
        shape_of(TOKEN)
        changed = list(TOKEN)
        for _ in range(value.draw(st.integers(1, 3))):
            position = value.draw(st.integers(0, len(changed) - 1))
            changed[position : position + 1] = value.draw(st.text(alphabet="AQ.=+ \n\u00e9", max_size=2))
        text = "".join(changed)
        if pack_signed(text) is not None:
            assert Kind.SIGNED is shape_of(text).kind


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python 3.12 counts the parser's depth by itself.")
def test_header_that_is_too_deep_where_it_is_read_is_refused_like_any_other() -> None:
    """A header that the parser follows near the top of the stack may be too deep for it further down."""
    value = JWT(compact(b'{"alg":"HS256","x":' + b"[" * 300 + b"]" * 300 + b"}", CLAIMS, SIGNATURE))
    assert "x" in value.unverified_header

    def read_at(depth: int) -> dict[str, Any]:
        return value.unverified_header if depth == 0 else read_at(depth - 1)

    with pytest.raises(InvalidTokenError):
        read_at(sys.getrecursionlimit() - 250)


def test_a_refusal_names_the_padding() -> None:
    header, payload, signature = TOKEN.split(".")
    with pytest.raises(InvalidTokenError, match="padded with '='"):
        JWT(f"{header}.{payload}.{signature}=")
