"""Readable tokens in text and bytes: wherever they stand, and nothing that only looks like one."""

from __future__ import annotations

import base64
import json
import random
import textwrap
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jwt_column.format.readable import MARKS, has_token, without_tokens
from tests.support.tokens import compact, rfc_token, signed_token, tokens

TOKEN = signed_token(sub="alice")


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        f"Bearer {TOKEN}",
        f"  {TOKEN}\n",
        f"GET / HTTP/1.1\r\nAuthorization: bearer {TOKEN}\r\nHost: x",
        f"postgres://user:{TOKEN}@host/database",
        f"The token is {TOKEN}. The next sentence.",
        f'{{"access_token": "{TOKEN}", "expires_in": 3600}}',
        json.dumps({"a": [{"b": f"line\n{TOKEN}"}]}),
        json.dumps(f'{{"nested": "{TOKEN}"}}'),
        f"?token={TOKEN}&x=1",
        f"sid_{TOKEN}",
        f"one.two.three.{TOKEN}",
        f"eyJhbGciOiJub25lIn0.eyJ {TOKEN}",
        TOKEN.replace(".", ".", 1) * 2,
        compact(b'{ "alg": "HS256" }', {"a": 1}, b"s"),
        compact(b'{\n  "alg": "HS256"\n}', {"a": 1}, b"s"),
        compact(b'{\t"alg": "HS256"}', {"a": 1}, b"s"),
        compact(b'{\r\n"alg": "HS256"}', {"a": 1}, b"s"),
        compact({"alg": "none"}, {"sub": "x"}, b""),
        compact({"alg": "dir", "enc": "A256GCM"}, b"", b"iv", b"text", b"tag"),
        rfc_token("A.1 HS256"),
        # Padded, as load balancers of AWS sign them.
        ".".join(segment + "=" * (-len(segment) % 4) for segment in TOKEN.split(".")),
        # Encoded once more.
        quote(TOKEN, safe="").replace(".", "%2E"),
        quote(f"https://x/?t={TOKEN}".replace(".", "%2e"), safe=""),
        base64.b64encode(TOKEN.encode()).decode(),
        base64.urlsafe_b64encode(f"Bearer {TOKEN}".encode()).decode().rstrip("="),
        f"token: {base64.encodebytes(TOKEN.encode()).decode()}",
        base64.b64encode(compact(b'{\n  "alg": "HS256"\n}', {"a": 1}, b"s").encode()).decode(),
        # Wrapped over lines.
        "\r\n".join(textwrap.wrap(TOKEN, 76)),
        "\n    ".join(textwrap.wrap(TOKEN, 40)),
        "=\n".join(textwrap.wrap(TOKEN, 50)),
        json.dumps({"token": "\n".join(textwrap.wrap(TOKEN, 64))}),
        # With more around it.
        f"{TOKEN}~WyJzYWx0IiwgIm5hbWUiLCAiQWxpY2UiXQ~",
        f"ghs_12345_{TOKEN}",
        # Opaque tokens of GitHub, Google and Slack.
        f"x-access-token:ghs_{'a1B2' * 9}@github.com",
        f"gho_{'a1B2' * 9}",
        f"github_pat_{'a1B2_' * 10}",
        f'{{"access_token":"ya29.{"a0-_" * 10}"}}',
        f"xoxb-{'123456789012-' * 3}abc",
        f"refresh_token=1//0{'gA-_' * 12}",
    ],
)
def test_a_token_is_found_wherever_it_stands(text: str) -> None:
    assert has_token(text)
    for data in (text.encode(), bytearray(text.encode()), memoryview(b"\x00\xff" + text.encode() + b"\xfe")):
        assert has_token(data)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "eyJ",
        "eyJ.eyJ.eyJ",
        "They say: eyJ... is how a token begins.",
        TOKEN.rpartition(".")[0].rpartition(".")[0],
        TOKEN.rpartition(".")[0],  # no signature, not even an empty one
        base64.urlsafe_b64encode(b'{"data": 1, "next": "abc"}').decode() + ".e30.c2ln",  # no alg
        base64.urlsafe_b64encode(b'{"alg": 5}').decode().rstrip("=") + ".e30.c2ln",
        base64.urlsafe_b64encode(b'["alg"]').decode().rstrip("=") + ".e30.c2ln",
        compact({"alg": "HS256"}, b"", b"signature"),  # detached: there is no payload to use
        compact({"alg": "dir", "enc": "A256GCM"}, b"", b"iv"),  # cut off
        compact({"alg": "dir", "enc": "A256GCM"}, b"", b"iv", b"", b"tag"),
        compact({"alg": "HS256", "pad": "x" * 20_000}, {"a": 1}, b"s"),  # longer than any header
        "http://10.0.0.1//" + "a" * 40,
        "xoxb- and gho_ and ya29. are prefixes",
        f"laugho_{'a1B2' * 9}",
        base64.b64encode(b"eyJust text, and no token at all.and.more").decode(),
        "%2E".join(["eyJ"] * 3),
        "eyJ" * 9 + TOKEN,  # deep within other base64
        None,
        5,
        3.5,
        {"token": TOKEN},
    ],
)
def test_what_is_none_is_not_found(value: Any) -> None:
    assert not has_token(value)


@given(tokens(), st.text(max_size=20), st.text(max_size=20))
def test_every_token_is_found_between_other_text(token: str, before: str, after: str) -> None:
    assert has_token(f"{before} {token} {after}")


@given(st.binary(max_size=300))
def test_random_base64url_is_never_a_token(data: bytes) -> None:
    text = base64.urlsafe_b64encode(data).decode().rstrip("=")
    assert not has_token(f"eyJ{text}.{text}.{text}")
    assert not has_token(data)


@pytest.mark.parametrize(
    "text",
    [
        "eyJ" * 300_000,
        "eyJ." * 250_000,
        "a." * 500_000,
        "." * 1_000_000,
        "eyJhbGci" * 100_000 + "." + "x.y",
        ".".join(["eyJ" * 5_000] * 60),
    ],
    ids=lambda text: text[:8],
)
def test_a_megabyte_of_anything_takes_no_time(text: str) -> None:
    """Quadratic work would take minutes, and hang the suite."""
    assert not has_token(text)
    assert has_token(f"{text} {TOKEN}")


def test_the_beginnings_are_those_of_json_objects() -> None:
    """What a database looks for is in every token whose header segment is accepted here."""
    chooser = random.Random(1)
    for space in ("", " ", "\n", "\t", "\r", " \n", "\r\n\t"):
        text = f'{{{space}"alg": "HS256", "n": {chooser.random()}}}'
        assert base64.urlsafe_b64encode(text.encode()).decode().startswith(MARKS[:5])


@pytest.mark.parametrize(
    "value",
    [
        base64.b64encode(f"user:{TOKEN}".encode()).decode(),
        base64.b64encode(base64.b64encode(TOKEN.encode())).decode(),
        "".join(f"\\u{ord(character):04x}" for character in TOKEN),
        TOKEN.encode("utf-16-le"),
        " ".join(textwrap.wrap(TOKEN, 30)),
    ],
)
def test_encodings_that_the_page_names_are_not_found(value: Any) -> None:
    """docs/reference/audit.md lists them."""
    assert not has_token(value)


def test_keys_that_hold_tokens_are_not_shown() -> None:
    assert without_tokens([1, "a", b"\xff"]) == (1, "a", b"\xff")
    assert without_tokens([1, f"Bearer {TOKEN}"]) is None
    assert without_tokens([TOKEN.encode()]) is None
