"""SQLAlchemy-Continuum: the version table of a model with an encrypted column."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.frameworks
pytest.importorskip("sqlalchemy_continuum", reason="needs the extra test-frameworks")

import sqlalchemy as sa  # noqa: E402
from sqlalchemy.orm import Session, configure_mappers, declarative_base  # noqa: E402
from sqlalchemy_continuum import make_versioned, remove_versioning, version_class  # noqa: E402

from jwt_column import JWT, EncryptedJWT, KeyRing  # noqa: E402
from jwt_column.testing import assert_encrypted  # noqa: E402
from tests.frameworks.tokens import OTHER, TOKEN, shows  # noqa: E402


def test_versions_are_encrypted_and_open_in_one_context() -> None:
    make_versioned(user_cls=None)
    try:
        base = declarative_base()

        class Login(base):
            __tablename__ = "logins"
            __versioned__ = {}  # noqa: RUF012
            id = sa.Column(sa.Integer, primary_key=True)
            token = sa.Column(EncryptedJWT(KeyRing.generate(), context="logins.token", fingerprints=["jti"]))

        configure_mappers()
        engine = sa.create_engine("sqlite://")
        base.metadata.create_all(engine)
        with Session(engine) as session:
            login = Login(token=TOKEN)
            session.add(login)
            session.commit()
            login.token = OTHER
            session.commit()
            versions = session.scalars(
                sa.select(version_class(Login)).order_by(sa.text("transaction_id"))
            ).all()
            assert [(type(row.token), row.token) for row in versions] == [(JWT, TOKEN), (JWT, OTHER)]
            assert not shows(repr([row.changeset for row in versions]))
            versions[0].revert()
            session.commit()
            assert login.token == TOKEN
            assert_encrypted(session, version_class(Login).token, at_least=2)
    finally:
        remove_versioning()
