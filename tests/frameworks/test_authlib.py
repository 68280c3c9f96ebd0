"""Authlib: the tokens that a provider has issued, and the tokens that a client has been given."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.frameworks
pytest.importorskip("authlib", reason="needs the extra test-frameworks")
pytest.importorskip("flask", reason="needs the extra test-frameworks")

import sqlalchemy as sa  # noqa: E402
from authlib.integrations import sqla_oauth2  # noqa: E402
from authlib.integrations.flask_oauth2 import AuthorizationServer, ResourceProtector, current_token  # noqa: E402
from authlib.oauth2.rfc6749.grants import ClientCredentialsGrant  # noqa: E402
from flask import Flask, jsonify  # noqa: E402
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker  # noqa: E402
from sqlalchemy.pool import StaticPool  # noqa: E402

from jwt_column import JWT, InvalidTokenError, KeyRing, set_default_keyring  # noqa: E402
from jwt_column.frameworks.mixins import ClientTokenMixin, OAuth2TokenMixin  # noqa: E402
from jwt_column.testing import assert_encrypted  # noqa: E402
from tests.frameworks.tokens import OTHER, TOKEN, shows  # noqa: E402


class Base(DeclarativeBase): ...


class Client(sqla_oauth2.OAuth2ClientMixin, Base):
    __tablename__ = "clients"
    id: Mapped[int] = mapped_column(primary_key=True)


class Token(OAuth2TokenMixin, sqla_oauth2.OAuth2TokenMixin, Base):
    __tablename__ = "tokens"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None]


class RemoteToken(ClientTokenMixin, Base):
    __tablename__ = "remote_tokens"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture
def engine() -> sa.Engine:
    set_default_keyring(KeyRing.generate())
    engine = sa.create_engine("sqlite://", connect_args={"check_same_thread": False}, poolclass=StaticPool)
    Base.metadata.create_all(engine)
    return engine


def test_a_provider_issues_a_token_that_its_resources_accept(engine: sa.Engine, monkeypatch: Any) -> None:
    monkeypatch.setenv("AUTHLIB_INSECURE_TRANSPORT", "1")
    session = scoped_session(sessionmaker(engine))
    app = Flask(__name__)
    server = AuthorizationServer(
        app,
        query_client=sqla_oauth2.create_query_client_func(session, Client),
        save_token=sqla_oauth2.create_save_token_func(session, Token),
    )

    class Grant(ClientCredentialsGrant):
        TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_post",)

    server.register_grant(Grant)
    protect = ResourceProtector()
    protect.register_token_validator(sqla_oauth2.create_bearer_token_validator(session, Token)())
    app.post("/token")(lambda: server.create_token_response())

    @app.get("/me")
    @protect()
    def me() -> Any:
        return jsonify(client=current_token.client_id)

    client = Client(client_id="c", client_secret="s")
    client.set_client_metadata(
        {"grant_types": ["client_credentials"], "token_endpoint_auth_method": "client_secret_post"}
    )
    session.add(client)
    session.commit()

    http = app.test_client()
    form = {"grant_type": "client_credentials", "client_id": "c", "client_secret": "s"}
    issued = http.post("/token", data=form).get_json()["access_token"]
    answer = http.get("/me", headers={"Authorization": f"Bearer {issued}"})
    assert (answer.status_code, answer.get_json()) == (200, {"client": "c"})
    assert http.get("/me", headers={"Authorization": "Bearer another"}).status_code == 401
    assert_encrypted(session, Token.access_token)
    session.remove()


def test_a_client_keeps_what_a_provider_answered(engine: sa.Engine) -> None:
    with Session(engine) as session:
        row = RemoteToken(name="github")
        row.update_token(
            {"access_token": TOKEN, "refresh_token": "1//r", "token_type": "Bearer", "expires_in": 60}
        )
        session.add(row)
        session.commit()
        row.update_token({"access_token": OTHER, "token_type": "Bearer", "expires_at": 2_000_000_001})
        session.commit()
        found = session.scalars(sa.select(RemoteToken).where(RemoteToken.access_token == OTHER)).one()
        token = found.to_token()
        assert token == {
            "token_type": "Bearer", "access_token": OTHER, "refresh_token": "1//r", "expires_at": 2_000_000_001,
        }  # fmt: skip
        assert {type(token["access_token"]), type(found.access_token)} == {str, JWT}
        assert not shows(repr(found.__dict__))


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ({"error": "invalid_grant"}, "no access_token"),
        ({"access_token": None}, "no access_token"),
        ({"access_token": 5}, "expected str, got int"),
        ({"access_token": OTHER, "refresh_token": 5}, "expected str, got int"),
        ({"access_token": OTHER, "expires_in": "soon"}, "expires_in of the response"),
        ({"access_token": OTHER, "expires_at": "2030-01-01"}, "expires_at of the response"),
        ({"access_token": OTHER, "expires_in": float("inf")}, "expires_in of the response"),
    ],
)
def test_an_answer_without_a_token_changes_nothing(
    engine: sa.Engine, answer: dict[str, Any], fault: str
) -> None:
    row = RemoteToken(name="github")
    row.update_token(
        {"access_token": TOKEN, "refresh_token": "1//r", "token_type": "Bearer", "expires_at": 5}
    )
    before = row.to_token()
    with pytest.raises(InvalidTokenError, match=fault):
        row.update_token(answer)
    assert row.to_token() == before
    row.update_token({"access_token": OTHER, "expires_at": "1900000000.5"})
    assert row.expires_at == 1_900_000_000
