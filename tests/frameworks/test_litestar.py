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
from litestar import Litestar, get, post  # noqa: E402
from litestar.testing import TestClient  # noqa: E402
from sqlalchemy.orm import Mapped, Session, mapped_column  # noqa: E402
from sqlalchemy.pool import StaticPool  # noqa: E402

from jwt_column import JWT, EncryptedJWT, KeyRing  # noqa: E402
from jwt_column.frameworks.litestar import accept_tokens  # noqa: E402
from tests.frameworks.tokens import TOKEN, shows  # noqa: E402

RING = KeyRing.generate()


class Login(BigIntBase):
    __tablename__ = "logins"
    user: Mapped[str]
    token: Mapped[JWT] = mapped_column(EncryptedJWT(RING, fingerprints=["token", "jti"]))


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


def application(*on_app_init: Any) -> Litestar:
    engine = sa.create_engine("sqlite://", connect_args={"check_same_thread": False}, poolclass=StaticPool)
    config = SQLAlchemySyncConfig(engine_instance=engine, create_all=True, before_send_handler="autocommit")
    return Litestar([create, read], plugins=[SQLAlchemyPlugin(config)], on_app_init=on_app_init)


def test_a_request_stores_a_token_and_the_answer_masks_it() -> None:
    with TestClient(application(accept_tokens)) as client:
        answer = client.post("/logins", json={"user": "alice", "token": TOKEN})
        assert (answer.status_code, answer.json()["token"]) == (201, "**********")
        assert client.get("/logins/a-1/token").text == TOKEN
        answer = client.post("/logins", json={"user": "alice", "token": TOKEN + "."})
        assert (answer.status_code, shows(answer.text)) == (400, False)
        schemas = client.get("/schema/openapi.json").json()["components"]["schemas"]
        assert schemas["CreateLoginRequestBody"]["properties"]["token"]["format"] == "jwt"


def test_control_without_the_hook_every_token_is_refused() -> None:
    with TestClient(application()) as client:
        assert client.post("/logins", json={"user": "alice", "token": TOKEN}).status_code == 400
