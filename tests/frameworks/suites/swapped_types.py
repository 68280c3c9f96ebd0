"""A pytest plugin for another library's suite: it puts this package's types in the place of the library's.

``SWAPPED_LIBRARY`` names the library; ``""`` leaves the types as they are. The plugin is a module by itself, because
the suites have a package ``tests`` of their own.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any, Final

import pytest
import sqlalchemy as sa

from jwt_column import EncryptedJSON, EncryptedJWT, KeyRing, set_default_keyring
from jwt_column.frameworks import mixins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Keys that a suite names, in one ring: a row tells which of them it is under.
_SUITE_KEYS: Final = ("one", "two", "notone")


def _opaque(*keys: str) -> EncryptedJWT:
    """Return a type for any text, under a ring of keys made from the suite's texts."""
    ring = KeyRing([hashlib.sha256(key.encode()).digest() for key in keys]) if keys else None
    return EncryptedJWT(ring, allow_opaque=True, fingerprints=["token"])


def _fastapi_users() -> None:
    import fastapi_users_db_sqlalchemy as library
    from fastapi_users_db_sqlalchemy import access_token

    theirs: Any = access_token.SQLAlchemyBaseAccessTokenTableUUID
    access_token.SQLAlchemyBaseAccessTokenTableUUID = type("Table", (mixins.AccessTokenMixin, theirs), {})
    accounts: Any = library.SQLAlchemyBaseOAuthAccountTableUUID
    columns = {
        "access_token": sa.orm.mapped_column(_opaque(), nullable=False),
        "refresh_token": sa.orm.mapped_column(_opaque(), nullable=True),
    }
    library.SQLAlchemyBaseOAuthAccountTableUUID = type("Accounts", (accounts,), columns)


def _authlib() -> None:
    from authlib.integrations import sqla_oauth2

    theirs = sqla_oauth2.OAuth2TokenMixin
    sqla_oauth2.OAuth2TokenMixin = type("Mixin", (mixins.OAuth2TokenMixin, theirs), {})


def _flask_dance() -> None:
    from flask_dance.consumer.storage import sqla

    theirs = sqla.OAuthConsumerMixin
    sqla.OAuthConsumerMixin = type("Mixin", (mixins.OAuthConsumerTokenMixin, theirs), {})


def _sqlalchemy_utils() -> None:
    import sqlalchemy_utils

    theirs = sqlalchemy_utils.StringEncryptedType

    def ours(type_in: Any = None, key: Any = None, engine: Any = None, padding: Any = None) -> Any:
        if type_in in (sa.String, sa.Unicode):
            return _opaque(*(_SUITE_KEYS if callable(key) else [key]))
        return (
            EncryptedJSON() if type_in is sqlalchemy_utils.JSONType else theirs(type_in, key, engine, padding)
        )

    sqlalchemy_utils.StringEncryptedType = ours


def _advanced_alchemy() -> None:
    from advanced_alchemy import types

    def ours(key: Any = None, backend: Any = None, length: int | None = None) -> EncryptedJWT:
        return _opaque()

    types.EncryptedString = types.EncryptedText = ours


class _Text(EncryptedJWT):
    """A type for any text that is the same in a column and in a ``literal()``."""

    cache_ok = True

    def __init__(self, length: int | None = None) -> None:
        # Both storage forms: the suite gives a length to each String, and to no Text.
        storage = "text" if length is None else "binary"
        super().__init__(context="suite", storage=storage, allow_opaque=True, fingerprints=["token"])


def pytest_collection_finish() -> None:
    """Swap the types of SQLAlchemy's suite, which takes its types from its modules when a test runs."""
    if os.environ["SWAPPED_LIBRARY"] == "sqlalchemy":
        from sqlalchemy.testing.suite import test_types

        suite: Any = test_types
        suite.String = suite.Text = _Text


_SWAPS: Final[dict[str, Callable[[], None]]] = {
    "": lambda: None,
    "advanced-alchemy": _advanced_alchemy,
    "authlib": _authlib,
    "fastapi-users": _fastapi_users,
    "flask-dance": _flask_dance,
    "sqlalchemy": lambda: None,
    "sqlalchemy-utils": _sqlalchemy_utils,
}


# When the plugin is imported: a suite's conftest.py may make tables before any hook runs.
set_default_keyring(KeyRing.generate())
_SWAPS[os.environ["SWAPPED_LIBRARY"]]()


@pytest.fixture(scope="session", autouse=True)
def _count_envelopes(record_testsuite_property: Callable[[str, object], None]) -> Iterator[None]:
    """Report the number of envelopes that were sent, as proof that the types were swapped."""
    sent = 0

    def count(_connection: Any, _cursor: Any, _statement: str, parameters: Any, *_: Any) -> None:
        nonlocal sent
        sent += sum(
            (isinstance(value, bytes) and value[:1] == b"\x01")
            or (isinstance(value, str) and value[:4] == "jc01")
            for value in _values(parameters)
        )

    sa.event.listen(sa.Engine, "before_cursor_execute", count)
    yield
    record_testsuite_property("envelopes", sent)


def _values(parameters: Any) -> Iterator[Any]:
    """Yield the parameters of a statement, of every row of an executemany."""
    if isinstance(parameters, dict):
        yield from parameters.values()
    elif isinstance(parameters, list | tuple):
        for one in parameters:
            yield from _values(one) if isinstance(one, dict | list | tuple) else (one,)


@pytest.fixture
def engine() -> Iterator[sa.Engine]:
    """An engine for a suite that is run without its own fixtures, which start containers."""
    engine = sa.create_engine(os.environ.get("SUITE_DATABASE", "sqlite://"))
    yield engine
    # Each run creates the tables with types of its own.
    found = sa.MetaData()
    found.reflect(engine)
    found.drop_all(engine)
    engine.dispose()
