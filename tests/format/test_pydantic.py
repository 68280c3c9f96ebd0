"""``JWT`` as the type of a pydantic field: validated by its shape, masked when serialized, never in an error."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, PlainSerializer, TypeAdapter, ValidationError

from jwt_column import JWT, EncryptedJWT, KeyRing
from jwt_column.format.pydantic_schema import serializer_of
from tests.support.models import mapped
from tests.support.tokens import compact, signed_token

TOKEN = signed_token(sub="alice")
REFUSED = compact({"alg": "HS256", "kid": "refused-for-its-shape"}, {"sub": "alice"})


class Login(BaseModel):
    token: JWT
    other: JWT | None = None


class Sent(BaseModel):
    token: Annotated[JWT, PlainSerializer(lambda token: str(token))]


def test_a_text_becomes_a_token_and_a_token_stays_itself() -> None:
    token = JWT(TOKEN)
    assert type(Login(token=TOKEN).token) is JWT  # type: ignore[arg-type]
    assert Login(token=token).token is token
    assert type(Login.model_validate_json(json.dumps({"token": TOKEN})).token) is JWT
    assert TypeAdapter(list[JWT]).validate_python([TOKEN], strict=True) == [TOKEN]


@pytest.mark.parametrize("value", [REFUSED, f"Bearer {TOKEN}", {"nested": TOKEN}, [TOKEN], 1], ids=type)
def test_an_error_shows_nothing_of_what_it_refused(value: Any) -> None:
    for data in ({"token": value}, {"token": TOKEN, "other": value}):
        with pytest.raises(ValidationError) as caught:
            Login.model_validate(data)
        error = caught.value
        shown = f"{error} {error!r} {error.errors()} {error.json()}"
        assert "Input should be a JSON Web Token" in shown
        assert not any(part in shown for text in (REFUSED, TOKEN) for part in text.split("."))
        (details,) = error.errors()
        assert (details["type"], type(details["ctx"]["reason"])) == ("jwt", str)


def test_the_error_of_a_union_names_its_member() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(JWT | int).validate_python(REFUSED)
    assert [detail["loc"] for detail in caught.value.errors()] == [("function-wrap[token()]",), ("int",)]


def test_control_a_validator_that_raises_shows_what_it_refused() -> None:
    from pydantic import AfterValidator

    adapter = TypeAdapter(Annotated[str, AfterValidator(JWT)])
    with pytest.raises(ValidationError) as caught:
        adapter.validate_python(REFUSED)
    assert caught.value.errors()[0]["input"] == REFUSED


def test_a_model_gives_no_token_unless_its_field_is_declared_to() -> None:
    login = Login(token=JWT(TOKEN))
    assert login.model_dump_json() == '{"token":"**********","other":null}'
    assert login.model_dump(mode="json")["token"] == "**********"
    assert TOKEN not in f"{login!r} {login.model_dump()}"
    with pytest.raises(TypeError, match="not JSON serializable"):
        json.dumps(login.model_dump())
    sent = Sent(token=JWT(TOKEN))
    assert (sent.model_dump(), json.loads(sent.model_dump_json())) == ({"token": TOKEN}, {"token": TOKEN})


def test_a_token_is_masked_where_no_field_declares_it() -> None:
    class Answer(BaseModel):
        content: Any
        names: dict[str, Any] = {}

    token, opaque = JWT(TOKEN), JWT.opaque("opaque-secret")
    answer = Answer(content=[token, {"a": opaque}], names={"token": token})
    sent = answer.model_dump_json()
    assert json.loads(sent) == {
        "content": ["**********", {"a": "**********"}],
        "names": {"token": "**********"},
    }
    assert Answer(content=TOKEN).model_dump_json() == f'{{"content":"{TOKEN}","names":{{}}}}', "control"
    login = Login(token=token)
    assert login.model_dump_json(serialize_as_any=True) == login.model_dump_json()
    assert login.model_dump(mode="json", serialize_as_any=True)["token"] == "**********"
    assert TypeAdapter(Any).dump_json(token) == b'"**********"'
    assert Login(**login.model_dump(serialize_as_any=True)).token == TOKEN
    assert JWT(TOKEN).__pydantic_serializer__ is token.__pydantic_serializer__


def test_without_pydantic_a_token_has_no_serializer(monkeypatch: pytest.MonkeyPatch) -> None:
    serializer_of.cache_clear()
    monkeypatch.setitem(sys.modules, "pydantic_core", None)
    assert not hasattr(JWT(TOKEN), "__pydantic_serializer__")


def test_what_a_model_dumps_makes_models_and_rows() -> None:
    type_ = EncryptedJWT(KeyRing.generate(), context="c", fingerprints=["token"])
    dumped = Login(token=JWT(TOKEN)).model_dump()
    assert Login(**dumped).token == TOKEN
    row = mapped(token=type_)(token=dumped["token"])
    assert (type(row.token), row.token) == (JWT, TOKEN)
    assert (
        type_.cipher().decrypt(type_.cipher().encrypt(dumped["token"], type_.ring()), type_.ring()) == TOKEN
    )


def test_a_model_reads_the_attributes_of_a_row() -> None:
    class FromRow(Login):
        model_config = ConfigDict(from_attributes=True)

    class Row:
        token = JWT.opaque("no JWT, and the column took it")
        other = None

    assert FromRow.model_validate(Row()).token == Row.token


def test_the_json_schema_is_that_of_a_text_without_an_example_token() -> None:
    for mode in ("validation", "serialization"):
        schema = Login.model_json_schema(mode=mode)["properties"]["token"]
        assert schema == {"title": "Token", "type": "string", "format": "jwt", "examples": ["<redacted>"]}


def test_pydantic_is_not_imported_until_it_asks() -> None:
    program = (
        "import sys, jwt_column; assert 'pydantic' not in sys.modules and 'pydantic_core' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
