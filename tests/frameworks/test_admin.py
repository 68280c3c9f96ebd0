"""sqladmin and starlette-admin: no page, form, export, log or audit shows a token, and none destroys one."""

from __future__ import annotations

import logging
from typing import Any

import pytest

pytestmark = pytest.mark.frameworks
pytest.importorskip("sqladmin", reason="needs the extra test-frameworks")
pytest.importorskip("starlette_admin", reason="needs the extra test-frameworks")

import sqladmin  # noqa: E402
import sqlalchemy as sa  # noqa: E402
import starlette_admin.contrib.sqla as starlette_sqla  # noqa: E402
from sqladmin.filters import AllUniqueStringValuesFilter, OperationColumnFilter, StaticValuesFilter  # noqa: E402
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker  # noqa: E402
from sqlalchemy.pool import StaticPool  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from jwt_column import JWT, ConfigurationError, EncryptedJSON, EncryptedJWT, InvalidTokenError, KeyRing  # noqa: E402
from jwt_column.frameworks.admin import MaskedTokens, masked, token_field  # noqa: E402
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


class Grant(Base):
    __tablename__ = "grants"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[JWT] = mapped_column(EncryptedJWT(RING))
    refresh: Mapped[JWT | None] = mapped_column(EncryptedJWT(RING, allow_opaque=True))
    response: Mapped[dict[str, Any] | None] = mapped_column(EncryptedJSON(RING))
    login_id: Mapped[int | None] = mapped_column(sa.ForeignKey("logins.id"))
    login: Mapped[Login | None] = relationship()

    @property
    def tokens(self) -> list[Any]:
        return [{"one": self.token}, (self.refresh, [self.response]), 5]


class Opaque(Base):
    __tablename__ = "opaque"
    id: Mapped[int] = mapped_column(primary_key=True)
    grant_id: Mapped[int] = mapped_column(sa.ForeignKey("grants.id"))
    token: Mapped[JWT] = mapped_column(EncryptedJWT(RING, allow_opaque=True))


class Audit(Base):
    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True)
    changes: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON)


class LoginAdmin(MaskedTokens, sqladmin.ModelView, model=Login):
    column_list = [Login.id, Login.user, Login.token]  # noqa: RUF012


class BareLoginAdmin(sqladmin.ModelView, model=Login):
    column_list = [Login.id, Login.user, Login.token]  # noqa: RUF012


class StarletteLoginAdmin(starlette_sqla.ModelView):
    fields = ["id", "user", token_field("token")]  # noqa: RUF012


class BareStarletteLoginAdmin(starlette_sqla.ModelView):
    fields = ["id", "user", "token"]  # noqa: RUF012


class GrantAdmin(MaskedTokens, sqladmin.ModelView, model=Grant):
    column_list = [Grant.id, Grant.response, "tokens"]  # noqa: RUF012
    form_args = {"token": {"label": "The token"}}  # noqa: RUF012


class StarletteGrantAdmin(starlette_sqla.ModelView):
    fields = [  # noqa: RUF012
        "id",
        token_field(Grant.token, read_only=False, exclude_from_import=False),
        token_field("response"),
    ]


class StarletteGrantAdminByName(starlette_sqla.ModelView):
    fields = [  # noqa: RUF012
        "id",
        token_field("token", read_only=False, exclude_from_import=False),
        token_field("refresh", read_only=False),
    ]


@pytest.fixture
def engine() -> sa.Engine:
    engine = sa.create_engine("sqlite://", connect_args={"check_same_thread": False}, poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Login(id=1, user="alice", token=TOKEN))
        response = {"access_token": "at-secret", "id_token": TOKEN, "scope": ["scope-secret"]}
        session.add(Grant(id=1, token=TOKEN, refresh="rt-secret", response=response))
        session.commit()
    return engine


def sqladmin_client(engine: sa.Engine, view: Any, **options: Any) -> TestClient:
    app = Starlette()
    sqladmin.Admin(app, engine, **options).add_view(view)
    return TestClient(app)


def starlette_client(engine: sa.Engine, view: Any, model: Any = Login) -> TestClient:
    app = Starlette()
    admin = starlette_sqla.Admin(engine, secret_key="a secret of the tests, long enough for it")
    admin.add_view(view(model))
    admin.mount_to(app)
    client = TestClient(app)
    client.get(f"/admin/{model.__name__.lower()}/list")
    client.headers["X-CSRFToken"] = client.cookies["starlette_admin_csrftoken"]
    return client


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
        assert ("**********" in answer.text) == ("edit" not in page)


def test_sqladmin_masks_documents_and_tokens_within_other_values(engine: sa.Engine) -> None:
    client = sqladmin_client(engine, GrantAdmin)
    for page in SQLADMIN:
        answer = client.get(f"/admin/grant/{page}")
        assert (page, answer.status_code, shows(answer.text), "secret" in answer.text) == (
            page,
            200,
            False,
            False,
        )
    with Session(engine) as session:
        grant = session.get_one(Grant, 1)
        mask = "**********"
        assert masked(grant.tokens) == [{"one": mask}, [mask, [mask]], 5]
        assert masked(grant.response["access_token"]) == masked(grant.response["scope"]) == mask
        assert masked({grant.token: {1}, "b": {grant.token}}) == {mask: {1}, "b": [mask]}
        for value in ([1, "a"], {"a": (1,)}, {1}, b"bytes", None, grant):
            assert masked(value) is value


def test_the_audit_table_of_sqladmin_gets_no_token(engine: sa.Engine) -> None:
    class Backend(sqladmin.DBAuditBackend):
        def build_row(self, entry: Any, actor: Any, request: Any) -> Audit:
            return Audit(changes=entry.changes)

    backend = Backend(sessionmaker(engine))
    client = sqladmin_client(engine, LoginAdmin, audit_backend=backend)
    form = {"user": "alice", "token": OTHER, "save": "Save"}
    assert client.post("/admin/login/edit/1", data=form, follow_redirects=False).status_code == 302
    assert current(engine) == OTHER
    with Session(engine) as session:
        assert [row.changes for row in session.scalars(sa.select(Audit))] == [
            {"user": "alice", "token": "**********"}
        ]


def test_sqladmin_asks_for_a_token_that_a_row_needs(engine: sa.Engine) -> None:
    client = sqladmin_client(engine, GrantAdmin)

    def save(page: str, **form: str) -> tuple[int, bool]:
        answer = client.post(f"/admin/grant/{page}", data={**form, "save": "Save"}, follow_redirects=False)
        assert "INSERT" not in answer.text
        return answer.status_code, "token is empty: enter the token" in answer.text

    assert save("create", token="") == (400, True)
    assert save("create", token=TOKEN, refresh="***") == (400, False)
    assert save("create", token=TOKEN) == (302, False)
    # A label of one's own leaves the field as it is.
    assert save("edit/1", token="") == (302, False)
    assert save("edit/1", token="", login="99") == (400, False)


@pytest.mark.parametrize(
    "options",
    [
        {"column_searchable_list": [Login.token]},
        {"column_searchable_list": ["login.token"], "model": Grant},
        {"column_sortable_list": ["token"]},
        {"column_default_sort": ("token", True)},
        {"column_filters": [AllUniqueStringValuesFilter(Login.token)]},
        {"column_filters": [OperationColumnFilter("token")]},
    ],
)
def test_a_view_of_sqladmin_that_would_show_or_misread_ciphertext_is_refused(options: Any) -> None:
    options = dict(options)
    model = options.pop("model", Login)
    view = type(sqladmin.ModelView)("View", (MaskedTokens, sqladmin.ModelView), options, model=model)
    with pytest.raises(
        ConfigurationError, match=rf"^{next(iter(options))} of View names the encrypted .*token"
    ):
        view()
    others = {
        "column_searchable_list": ["user", "none.token"],
        "column_filters": [StaticValuesFilter("user", [])],
    }
    type(sqladmin.ModelView)("Other", (MaskedTokens, sqladmin.ModelView), others, model=Login)()


def test_starlette_admin_neither_sorts_filters_nor_edits_a_token(engine: sa.Engine) -> None:
    client = starlette_client(engine, StarletteLoginAdmin)
    for query in ("sort=token__desc", "filter=token__contains=x", "filter=token__is_null"):
        assert client.get(f"/admin/login/list?{query}").status_code == 400
    form = {"user": "bob", "token": "**********"}
    assert client.post("/admin/login/edit?pk=1", data=form, follow_redirects=False).status_code == 303
    assert current(engine) == TOKEN


@pytest.mark.parametrize("view", [StarletteGrantAdmin, StarletteGrantAdminByName])
def test_starlette_admin_takes_a_token_once(
    engine: sa.Engine, caplog: pytest.LogCaptureFixture, view: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    client = starlette_client(engine, view, Grant)

    def create(token: str) -> tuple[int, bool]:
        answer = client.post("/admin/grant/create", data={"token": token}, follow_redirects=False)
        assert not shows(answer.text)
        return answer.status_code, "not a compact JWT" in answer.text

    assert create(TOKEN + ".") == (422, True)
    assert create("") == (422, False)
    assert create(OTHER) == (303, False)
    assert token_field("token", read_only=False).exclude_from_import
    rows = f"Id,Token\n9,{OTHER}\n"
    upload = {"file": ("x.csv", rows)}
    answer = client.post("/admin/_api/grant/import", data={"format": "csv"}, files=upload).json()
    assert (answer["rows_created"], answer["errors"]) == (1, [])
    with Session(engine) as session:
        assert [type(row.token) for row in session.scalars(sa.select(Grant).where(Grant.id > 1))] == [
            JWT,
            JWT,
        ]
    assert not any(
        shows(record.getMessage()) for record in caplog.records if record.name.startswith("starlette")
    )
    with pytest.raises(ConfigurationError, match="would save its mask"):
        token_field("token", read_only=False, exclude_from_edit=False)


def test_starlette_admin_takes_an_opaque_token_by_its_name(engine: sa.Engine) -> None:
    client = starlette_client(engine, StarletteGrantAdminByName, Grant)
    for refresh, status in (("***", 422), ("Bearer x", 422), ("rt-other", 303), ("", 303)):
        form = {"token": TOKEN, "refresh": refresh}
        answer = client.post("/admin/grant/create", data=form, follow_redirects=False)
        assert (answer.status_code, refresh in answer.text) == (status, not refresh)
    with Session(engine) as session:
        stored = sa.select(Grant.refresh).order_by(Grant.id)
        assert session.scalars(stored).all() == ["rt-secret", "rt-other", None]


def test_starlette_admin_asks_the_column_of_the_view_that_has_the_field(engine: sa.Engine) -> None:
    """The inline table has a column of the same name, which takes other tokens."""

    class Inline(starlette_sqla.InlineModelView):
        model = Opaque
        fk_attr = "grant_id"
        fields = ["id", token_field("token", read_only=False)]  # noqa: RUF012

    class View(starlette_sqla.ModelView):
        fields = ["id", token_field("token", read_only=False)]  # noqa: RUF012
        inlines = [Inline]  # noqa: RUF012

    client = starlette_client(engine, View, Grant)
    form = {"token": TOKEN, "inlines.opaque.0.token": "opaque", "inlines.opaque.TOTAL_FORMS": "1"}
    answer = client.post("/admin/grant/create", data=form, follow_redirects=False)
    assert answer.status_code == 303, answer.text
    with Session(engine) as session:
        assert [row.token for row in session.scalars(sa.select(Opaque))] == ["opaque"]
    form["inlines.opaque.0.token"] = "***"
    assert client.post("/admin/grant/create", data=form, follow_redirects=False).status_code == 422


def test_the_mask_is_no_token() -> None:
    """It comes back: in a client's PUT of an answer, in the import of an export."""
    for text in ("**********", "*"):
        with pytest.raises(InvalidTokenError, match="the mask that is shown in place"):
            JWT.opaque(text)
        with pytest.raises(InvalidTokenError, match=r"grants\.refresh does not take .*the mask"):
            Grant(refresh=text)


def test_control_both_show_tokens_otherwise(engine: sa.Engine) -> None:
    bare = sqladmin_client(engine, BareLoginAdmin)
    assert all(shows(bare.get(f"/admin/login/{page}").text) for page in SQLADMIN)
    bare = starlette_client(engine, BareStarletteLoginAdmin)
    assert all(shows(bare.get(f"/admin/login/{page}").text) for page in STARLETTE_ADMIN)
