"""Litestar and advanced-alchemy: a DTO of a model with an encrypted column."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.frameworks
pytest.importorskip("litestar", reason="needs the extra test-frameworks")
pytest.importorskip("advanced_alchemy", reason="needs the extra test-frameworks")

import sqlalchemy as sa  # noqa: E402
from advanced_alchemy.base import BigIntBase  # noqa: E402
from advanced_alchemy.extensions.litestar import (  # noqa: E402
    SQLAlchemyDTO,
    SQLAlchemyDTOConfig,
    SQLAlchemyPlugin,
    SQLAlchemySyncConfig,
)
from advanced_alchemy.repository import SQLAlchemySyncRepository  # noqa: E402
from litestar import Litestar, Response, get, post  # noqa: E402
from litestar.testing import TestClient  # noqa: E402
from sqlalchemy.orm import Mapped, Session, mapped_column  # noqa: E402
from sqlalchemy.pool import StaticPool  # noqa: E402

from jwt_column import JWT, EncryptedJSON, EncryptedJWT, InvalidTokenError, KeyRing  # noqa: E402
from jwt_column.frameworks.litestar import accept_tokens  # noqa: E402
from tests.frameworks.tokens import TOKEN, shows  # noqa: E402

RING = KeyRing.generate()


class Login(BigIntBase):
    __tablename__ = "logins"
    user: Mapped[str]
    token: Mapped[JWT] = mapped_column(EncryptedJWT(RING, fingerprints=["token", "jti"]))
    response: Mapped[dict[str, Any] | None] = mapped_column(EncryptedJSON(RING))


class LoginRepository(SQLAlchemySyncRepository[Login]):
    model_type = Login


class WriteDTO(SQLAlchemyDTO[Login]):
    config = SQLAlchemyDTOConfig(exclude={"id"})


@post("/logins", dto=WriteDTO, return_dto=SQLAlchemyDTO[Login], sync_to_thread=False)
def create(data: Login, db_session: Session) -> Login:
    return LoginRepository(session=db_session).add(data)


@get("/logins/{jti:str}/token", sync_to_thread=False)
def read(jti: str, db_session: Session) -> str:
    row = LoginRepository(session=db_session).get_one(Login.token.claim("jti") == jti)  # type: ignore[attr-defined]
    return str(row.token)


@get("/documents/{jti:str}", sync_to_thread=False)
def documents(jti: str, db_session: Session) -> dict[str, Any]:
    row = LoginRepository(session=db_session).get_one(Login.token.claim("jti") == jti)  # type: ignore[attr-defined]
    return {
        "all": row.response,
        "one": row.response["access_token"],
        "sent": str(row.response["access_token"]),
    }


@post("/texts", sync_to_thread=False)
def from_text(data: dict[str, str], db_session: Session) -> str:
    return str(LoginRepository(session=db_session).add(Login(user="bob", token=data["token"])).id)


def refuse(_request: Any, error: Exception) -> Response[dict[str, str]]:
    return Response({"detail": str(error)}, status_code=400)


def application(*on_app_init: Any) -> Litestar:
    engine = sa.create_engine("sqlite://", connect_args={"check_same_thread": False}, poolclass=StaticPool)
    config = SQLAlchemySyncConfig(engine_instance=engine, create_all=True, before_send_handler="autocommit")
    return Litestar(
        [create, read, documents, from_text],
        plugins=[SQLAlchemyPlugin(config)],
        on_app_init=on_app_init,
        exception_handlers={InvalidTokenError: refuse},
    )


def test_a_request_stores_a_token_and_the_answer_masks_it() -> None:
    with TestClient(application(accept_tokens)) as client:
        answer = client.post("/logins", json={"user": "alice", "token": TOKEN})
        assert (answer.status_code, answer.json()["token"]) == (201, "**********")
        assert client.get("/logins/a-1/token").text == TOKEN
        answer = client.post("/logins", json={"user": "alice", "token": TOKEN + "."})
        assert (answer.status_code, shows(answer.text)) == (400, False)
        schemas = client.get("/schema/openapi.json").json()["components"]["schemas"]
        described = schemas["CreateLoginRequestBody"]["properties"]["token"]
        assert (described["type"], described["format"]) == ("string", "jwt")


class Money(int):
    """A type of the application's own."""


@post("/prices", sync_to_thread=False)
def double(data: list[Money]) -> list[Money]:
    return [Money(2 * price) for price in data]


def test_the_decoders_and_encoders_of_the_application_stay() -> None:
    app = Litestar(
        [double],
        type_decoders=[
            (lambda type_: type_ is Money, lambda type_, value: type_(value.removesuffix(" EUR")))
        ],
        type_encoders={Money: lambda price: f"{int(price)} EUR"},
        on_app_init=[accept_tokens],
    )
    with TestClient(app) as client:
        assert client.post("/prices", json=["5 EUR"]).json() == ["10 EUR"]


def test_the_texts_of_a_document_are_masked_unless_a_handler_sends_them() -> None:
    with TestClient(application(accept_tokens)) as client:
        response = {"access_token": "at-secret", "id_token": TOKEN, "scope": ["secret"], "expires_in": 60}
        mask = "**********"
        masked = {"access_token": mask, "id_token": mask, "scope": [mask], "expires_in": 60}
        answer = client.post("/logins", json={"user": "alice", "token": TOKEN, "response": response})
        assert (answer.status_code, answer.json()["response"]) == (201, masked)
        assert client.get("/documents/a-1").json() == {"all": masked, "one": mask, "sent": "at-secret"}


def test_a_row_refuses_the_text_of_a_structure() -> None:
    with TestClient(application(accept_tokens)) as client:
        answer = client.post("/texts", json={"token": TOKEN + "."})
        assert (answer.status_code, shows(answer.text)) == (400, False)
        assert "logins.token does not take this value" in answer.json()["detail"]


def test_control_without_the_hook_every_token_is_refused() -> None:
    with TestClient(application()) as client:
        assert client.post("/logins", json={"user": "alice", "token": TOKEN}).status_code == 400
