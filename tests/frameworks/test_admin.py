"""sqladmin and starlette-admin: no page, form or export shows a token."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.frameworks
pytest.importorskip("sqladmin", reason="needs the extra test-frameworks")
pytest.importorskip("starlette_admin", reason="needs the extra test-frameworks")

import sqladmin  # noqa: E402
import sqlalchemy as sa  # noqa: E402
import starlette_admin.contrib.sqla as starlette_sqla  # noqa: E402
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column  # noqa: E402
from sqlalchemy.pool import StaticPool  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from jwt_column import JWT, EncryptedJWT, KeyRing  # noqa: E402
from jwt_column.frameworks.admin import MaskedTokens, token_field  # noqa: E402
from tests.frameworks.tokens import OTHER, TOKEN, shows  # noqa: E402

RING = KeyRing.generate()
SQLADMIN = ("list", "details/1", "export/csv", "export/json", "edit/1")
STARLETTE_ADMIN = ("list", "detail?pk=1", "edit?pk=1")


class Base(DeclarativeBase): ...


class Login(Base):
    __tablename__ = "logins"
    id: Mapped[int] = mapped_column(primary_key=True)
    user: Mapped[str]
    token: Mapped[JWT] = mapped_column(EncryptedJWT(RING))


class LoginAdmin(MaskedTokens, sqladmin.ModelView, model=Login):
    column_list = [Login.id, Login.user, Login.token]  # noqa: RUF012


class BareLoginAdmin(sqladmin.ModelView, model=Login):
    column_list = [Login.id, Login.user, Login.token]  # noqa: RUF012


class StarletteLoginAdmin(starlette_sqla.ModelView):
    fields = ["id", "user", token_field("token")]  # noqa: RUF012


class BareStarletteLoginAdmin(starlette_sqla.ModelView):
    fields = ["id", "user", "token"]  # noqa: RUF012


@pytest.fixture
def engine() -> sa.Engine:
    engine = sa.create_engine("sqlite://", connect_args={"check_same_thread": False}, poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Login(id=1, user="alice", token=TOKEN))
        session.commit()
    return engine


def sqladmin_client(engine: sa.Engine, view: Any) -> TestClient:
    app = Starlette()
    sqladmin.Admin(app, engine).add_view(view)
    return TestClient(app)


def starlette_client(engine: sa.Engine, view: Any) -> TestClient:
    app = Starlette()
    admin = starlette_sqla.Admin(engine, secret_key="a secret of the tests, long enough for it")
    admin.add_view(view(Login))
    admin.mount_to(app)
    return TestClient(app)


def current(engine: sa.Engine) -> JWT:
    with Session(engine) as session:
        return session.get_one(Login, 1).token


def test_sqladmin_masks_tokens(engine: sa.Engine) -> None:
    client = sqladmin_client(engine, LoginAdmin)
    for page in SQLADMIN:
        answer = client.get(f"/admin/login/{page}")
        assert (page, answer.status_code, shows(answer.text)) == (page, 200, False)
        assert "**********" in answer.text or "edit" in page


def test_sqladmin_keeps_changes_and_refuses_a_token(engine: sa.Engine) -> None:
    client = sqladmin_client(engine, LoginAdmin)

    def save(page: str, token: str) -> int:
        form = {"user": "alice", "token": token, "save": "Save"}
        answer = client.post(f"/admin/login/{page}", data=form, follow_redirects=False)
        assert not shows(answer.text)
        return answer.status_code

    assert (save("edit/1", ""), current(engine)) == (302, TOKEN)
    assert (save("edit/1", OTHER), current(engine)) == (302, OTHER)
    assert (save("edit/1", TOKEN + "."), current(engine)) == (400, OTHER)
    assert save("create", TOKEN) == 302


def test_starlette_admin_masks_tokens(engine: sa.Engine) -> None:
    client = starlette_client(engine, StarletteLoginAdmin)
    for page in STARLETTE_ADMIN:
        answer = client.get(f"/admin/login/{page}")
        assert (page, answer.status_code, shows(answer.text)) == (page, 200, False)
        assert "**********" in answer.text


def test_control_both_show_tokens_otherwise(engine: sa.Engine) -> None:
    bare = sqladmin_client(engine, BareLoginAdmin)
    assert all(shows(bare.get(f"/admin/login/{page}").text) for page in SQLADMIN)
    bare = starlette_client(engine, BareStarletteLoginAdmin)
    assert all(shows(bare.get(f"/admin/login/{page}").text) for page in STARLETTE_ADMIN)
