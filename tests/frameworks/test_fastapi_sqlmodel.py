"""FastAPI and SQLModel: one base class for table, request and response."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - SQLModel reads it
from typing import TYPE_CHECKING, Annotated, Any

import pytest

pytestmark = pytest.mark.frameworks
fastapi = pytest.importorskip("fastapi", reason="needs the extra test-frameworks")
sqlmodel = pytest.importorskip("sqlmodel", reason="needs the extra test-frameworks")

import sqlalchemy as sa  # noqa: E402
from fastapi import FastAPI, HTTPException, Request  # noqa: E402
from fastapi.responses import JSONResponse  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402
from pydantic import BaseModel, PlainSerializer, SecretStr  # noqa: E402
from sqlalchemy.pool import StaticPool  # noqa: E402
from sqlmodel import Field, Session, SQLModel, select  # noqa: E402

from jwt_column import (  # noqa: E402
    JWT,
    ConfigurationError,
    EncryptedJSON,
    EncryptedJWT,
    FingerprintIndex,
    InvalidTokenError,
    KeyRing,
)
from jwt_column.frameworks.fastapi import hide_input  # noqa: E402
from jwt_column.testing import assert_encrypted  # noqa: E402
from tests.frameworks.tokens import OTHER, TOKEN, shows  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

RING = KeyRing.generate()


class LoginBase(SQLModel):
    user: str
    token: JWT = Field(sa_type=EncryptedJWT(RING, fingerprints=["token", "jti"]))  # type: ignore[call-overload]


class Login(LoginBase, table=True):
    __tablename__ = "logins"
    __table_args__ = (FingerprintIndex("ux_logins_jti", "token", "jti", unique=True),)
    id: int | None = Field(default=None, primary_key=True)


class LoginRead(LoginBase):
    id: int


class LoginToken(SQLModel):
    token: Annotated[JWT, PlainSerializer(lambda token: str(token))]


ENGINE = sa.create_engine("sqlite://", connect_args={"check_same_thread": False}, poolclass=StaticPool)
app = FastAPI()
hide_input(app)


@app.post("/logins", response_model=LoginRead, status_code=201)
def create(login: LoginBase) -> Login:
    with Session(ENGINE) as session:
        row = Login.model_validate(login)
        session.add(row)
        session.commit()
        session.refresh(row)
        return row


@app.get("/logins/{jti}", response_model=LoginRead)
@app.get("/logins/{jti}/token", response_model=LoginToken)
def read(jti: str) -> Login:
    with Session(ENGINE) as session:
        row = session.exec(select(Login).where(Login.token.claim("jti") == jti)).one_or_none()  # type: ignore[attr-defined]
        if row is None:
            raise HTTPException(404)
        return row


@pytest.fixture(scope="module")
def client() -> TestClient:
    SQLModel.metadata.create_all(ENGINE)
    return TestClient(app)


def test_a_token_is_stored_encrypted_and_answered_masked(client: TestClient) -> None:
    answer = client.post("/logins", json={"user": "alice", "token": TOKEN})
    assert (answer.status_code, answer.json()) == (201, {"user": "alice", "token": "**********", "id": 1})
    assert_encrypted(ENGINE, Login.token)
    assert client.get("/logins/a-1").json()["token"] == "**********"
    assert client.get("/logins/nobody").status_code == 404


def test_a_field_that_is_declared_to_gives_the_token(client: TestClient) -> None:
    assert client.get("/logins/a-1/token").json() == {"token": TOKEN}


@pytest.mark.parametrize(
    "body", [{"user": "alice", "token": TOKEN + "."}, {"token": TOKEN}, {"user": [TOKEN], "token": TOKEN}]
)
def test_the_answer_to_an_invalid_request_does_not_repeat_it(client: TestClient, body: object) -> None:
    answer = client.post("/logins", json=body)
    assert (answer.status_code, shows(answer.text)) == (422, False)
    assert answer.json()["detail"][0]["loc"][0] == "body"


def test_control_without_the_handler_a_missing_field_repeats_the_request() -> None:
    bare = FastAPI()
    bare.post("/logins")(create)
    assert shows(TestClient(bare).post("/logins", json={"token": TOKEN}).text)


@app.post("/many")
def many(logins: dict[JWT, int]) -> int:
    return len(logins)


def test_the_answer_shows_no_token_that_is_a_key(client: TestClient) -> None:
    answer = client.post("/many", json={TOKEN: "x"})
    assert (answer.status_code, shows(answer.text)) == (422, False)
    (detail,) = answer.json()["detail"]
    assert detail.pop("loc") == ["body", "<redacted>"]
    bare = FastAPI()
    bare.post("/many")(many)
    usual = TestClient(bare).post("/many", json={TOKEN: "x"})
    assert shows(usual.text)  # the control
    (usual_detail,) = usual.json()["detail"]
    assert {**usual_detail, **detail} == usual_detail


class Opaque(SQLModel, table=True):
    __tablename__ = "opaque"
    id: int | None = Field(default=None, primary_key=True)
    token: JWT = Field(sa_type=EncryptedJWT(RING, allow_opaque=True))  # type: ignore[call-overload]


class OpaqueWrite(BaseModel):
    token: SecretStr


@app.exception_handler(InvalidTokenError)
def refuse(request: Request, error: InvalidTokenError) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=422)


@app.put("/opaque")
def put(opaque: OpaqueWrite) -> int:
    return len(Opaque(token=opaque.token).token)  # type: ignore[arg-type]


def test_an_opaque_token_that_is_none_is_refused_and_the_mask_too(client: TestClient) -> None:
    assert client.put("/opaque", json={"token": "1//secret"}).status_code == 200
    for text, fault in (("", "empty"), ("Bearer 1//secret", "HTTP header"), ("**********", "mask")):
        answer = client.put("/opaque", json={"token": text})
        assert (answer.status_code, fault in answer.text, "secret" in answer.text) == (422, True, False)


def test_the_openapi_document_describes_a_text(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()["components"]["schemas"]["LoginBase"]["properties"]["token"]
    assert schema == {"type": "string", "format": "jwt", "title": "Token", "examples": ["<redacted>"]}


def test_a_dumped_model_makes_a_row() -> None:
    with Session(ENGINE) as session:
        session.add(Login(**LoginBase(user="bob", token=JWT(TOKEN)).model_dump(), id=7))
        assert not shows(repr(session.new))
        session.rollback()


class Grant(SQLModel, table=True):
    __tablename__ = "grants"
    id: int | None = Field(default=None, primary_key=True)
    user: str
    at: datetime | None = None
    token: JWT = Field(sa_type=EncryptedJWT(RING, bound_to=["user"]))  # type: ignore[call-overload]
    response: dict[str, Any] | None = Field(default=None, sa_type=EncryptedJSON(RING))  # type: ignore[call-overload]


@pytest.fixture
def session(client: TestClient) -> Iterator[Session]:
    with Session(ENGINE, expire_on_commit=False) as session:
        yield session


def test_a_plain_text_becomes_a_token_when_the_row_is_flushed(session: Session) -> None:
    """SQLModel keeps the text that was assigned, next to SQLAlchemy's value."""
    row = Grant(user="alice", token=TOKEN, response={"access_token": TOKEN, "scope": ["a"]})  # type: ignore[arg-type]
    assert shows(repr(row)), "control: a constructor of SQLModel shows the token"
    session.add(row)
    session.commit()
    assert not shows(repr(row))
    assert row.response is not None
    row.response["scope"].append("b")
    row.token = OTHER  # type: ignore[assignment]
    session.commit()
    session.expunge_all()
    found = session.get_one(Grant, row.id)
    assert (found.token, type(found.token), found.response) == (
        OTHER, JWT, {"access_token": TOKEN, "scope": ["a", "b"]},
    )  # fmt: skip


def test_the_error_of_another_column_does_not_show_the_token(session: Session) -> None:
    session.add(Grant(user="alice", token=TOKEN, at="never"))  # type: ignore[arg-type]
    with pytest.raises(sa.exc.StatementError) as caught:
        session.commit()
    assert not shows(f"{caught.value}{caught.value.params!r}")


def test_a_dumped_token_is_a_token_again_once_it_was_stored(session: Session) -> None:
    row = Grant(user="alice", token=TOKEN)  # type: ignore[arg-type]
    session.add(row)
    session.commit()
    row.sqlmodel_update(LoginBase(user="alice", token=OTHER).model_dump())  # type: ignore[arg-type]
    session.flush()
    assert isinstance(row.token, JWT)
    assert row.token == OTHER


@pytest.mark.parametrize("annotation", [JWT, JWT | None])
def test_a_field_without_the_column_type_is_refused(annotation: Any) -> None:
    """SQLModel would make a text column for it, and store tokens in the clear."""
    content = {"__module__": __name__, "__annotations__": {"id": int | None, "token": annotation}}
    content["id"] = Field(default=None, primary_key=True)
    with pytest.raises(ConfigurationError, match=r"^unencrypted\.token: .*Field\(sa_type=EncryptedJWT\(\)\)"):
        type(SQLModel)("Unencrypted", (SQLModel,), content, table=True)
    SQLModel.metadata.remove(SQLModel.metadata.tables["unencrypted"])
    plain = {**content, "__annotations__": {"id": int | None, "token": str}}
    type(SQLModel)("Unencrypted", (SQLModel,), plain, table=True)  # the control
    SQLModel.metadata.remove(SQLModel.metadata.tables["unencrypted"])
