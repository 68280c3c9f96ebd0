"""Flask-Dance and Flask-SQLAlchemy: OAuth token responses in an encrypted JSON column."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.frameworks
pytest.importorskip("flask_dance", reason="needs the extra test-frameworks")
pytest.importorskip("flask_sqlalchemy", reason="needs the extra test-frameworks")

from flask import Flask  # noqa: E402
from flask_dance.consumer import OAuth2ConsumerBlueprint  # noqa: E402
from flask_dance.consumer.storage.sqla import OAuthConsumerMixin, SQLAlchemyStorage  # noqa: E402
from flask_sqlalchemy import SQLAlchemy  # noqa: E402

from jwt_column import KeyRing, set_default_keyring  # noqa: E402
from jwt_column.frameworks.mixins import OAuthConsumerTokenMixin  # noqa: E402
from jwt_column.testing import assert_encrypted  # noqa: E402
from tests.frameworks.tokens import OTHER, TOKEN, shows  # noqa: E402

db = SQLAlchemy()


class OAuth(OAuthConsumerTokenMixin, OAuthConsumerMixin, db.Model): ...


def test_a_blueprint_stores_loads_replaces_and_deletes_a_token() -> None:
    set_default_keyring(KeyRing.generate())
    app = Flask(__name__)
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", SECRET_KEY="x")
    db.init_app(app)
    storage = SQLAlchemyStorage(OAuth, db.session)
    blueprint = OAuth2ConsumerBlueprint(
        "provider", __name__, client_id="c", base_url="https://example.org/", storage=storage
    )
    app.register_blueprint(blueprint)
    with app.test_request_context():
        db.create_all()
        response: dict[str, Any] = {
            "access_token": TOKEN,
            "token_type": "Bearer",
            "expires_at": 2_000_000_000.5,
        }
        blueprint.token = response
        assert_encrypted(db.session, OAuth.token)
        db.session.expire_all()
        assert blueprint.token == response
        assert blueprint.session.load_token()
        url, headers, _ = blueprint.session._client.add_token("https://example.org/me", headers={})
        assert (url, headers["Authorization"]) == ("https://example.org/me", f"Bearer {TOKEN}")
        row = db.session.scalars(db.select(OAuth)).one()
        assert not shows(repr(vars(row)))
        assert db.session.scalars(db.select(OAuth.token.expires_at)).one().year == 2033

        blueprint.token = {**response, "access_token": OTHER}
        assert [one.token["access_token"] for one in db.session.scalars(db.select(OAuth))] == [OTHER]
        del blueprint.token
        assert db.session.scalars(db.select(OAuth)).all() == []
