"""msgspec, marshmallow, attrs, orjson and PyYAML: which of them take a token, and which give it."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.frameworks
msgspec = pytest.importorskip("msgspec", reason="needs the extra test-frameworks")
attrs = pytest.importorskip("attrs", reason="needs the extra test-frameworks")
marshmallow = pytest.importorskip("marshmallow", reason="needs the extra test-frameworks")
orjson = pytest.importorskip("orjson", reason="needs the extra test-frameworks")
yaml = pytest.importorskip("yaml", reason="needs the extra test-frameworks")

from jwt_column import JWT, EncryptedJSON, InvalidTokenError  # noqa: E402
from jwt_column.frameworks.msgspec import dec_hook, enc_hook  # noqa: E402
from tests.frameworks.tokens import TOKEN, shows  # noqa: E402


class Login(msgspec.Struct):
    token: JWT
    other: JWT | None = None


def test_msgspec_takes_and_masks_a_token_with_the_hooks_only() -> None:
    sent = json.dumps({"token": TOKEN}).encode()
    login = msgspec.json.decode(sent, type=Login, dec_hook=dec_hook)
    assert (type(login.token), login.token) == (JWT, TOKEN)
    assert msgspec.json.encode(login, enc_hook=enc_hook) == b'{"token":"**********","other":null}'
    for action in (lambda: msgspec.json.decode(sent, type=Login), lambda: msgspec.json.encode(login)):
        with pytest.raises((msgspec.ValidationError, TypeError)) as caught:
            action()
        assert not shows(str(caught.value))


def test_msgspec_masks_the_texts_of_a_document() -> None:
    document = (
        EncryptedJSON(context="a")
        .cipher()
        .value_of(json.dumps({"a": "secret", "b": ["secret", TOKEN], "c": 1}))
    )
    assert json.loads(msgspec.json.encode(document, enc_hook=enc_hook)) == {
        "a": "**********", "b": ["**********", "**********"], "c": 1,
    }  # fmt: skip


def test_msgspec_reports_a_refused_text_without_it() -> None:
    with pytest.raises(msgspec.ValidationError, match="not a compact JWT") as caught:
        msgspec.convert({"token": TOKEN + "."}, Login, dec_hook=dec_hook)
    assert not shows(str(caught.value))
    for action in (lambda: dec_hook(int, 1), lambda: enc_hook(1)):
        with pytest.raises(NotImplementedError):
            action()


def test_attrs_converts_and_marshmallow_reports() -> None:
    @attrs.define
    class Session:
        token: JWT = attrs.field(converter=JWT)

    assert not shows(repr(Session(TOKEN)))
    with pytest.raises(InvalidTokenError):
        Session(TOKEN + ".")

    class Schema(marshmallow.Schema):
        token = marshmallow.fields.String(required=True, load_only=True)

        @marshmallow.post_load
        def make(self, data: dict[str, str], **_: object) -> dict[str, JWT]:
            return {"token": JWT(data["token"])}

    assert type(Schema().load({"token": TOKEN})["token"]) is JWT
    assert Schema().dump({"token": JWT(TOKEN)}) == {}


def test_a_token_is_a_str_for_json_and_for_yaml_nothing() -> None:
    token = JWT(TOKEN)
    assert json.loads(orjson.dumps([token])) == json.loads(json.dumps([token])) == [TOKEN]
    with pytest.raises(TypeError, match="JWT"):
        orjson.dumps(token, option=orjson.OPT_PASSTHROUGH_SUBCLASS)
    with pytest.raises(yaml.representer.RepresenterError) as caught:
        yaml.safe_dump({"token": token})
    assert not shows(str(caught.value))
