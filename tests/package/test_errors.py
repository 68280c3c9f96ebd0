"""The exception tree: its shape, what SQLAlchemy does with it, and what survives a pickle."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DontWrapMixin, StatementError
from sqlalchemy.types import TypeDecorator

from jwt_column import errors
from tests.support.tokens import revealed_by, signed_token

TREE = {
    "ConfigurationError": errors.JWTColumnError,
    "MissingExtraError": errors.ConfigurationError,
    "InvalidTokenError": errors.JWTColumnError,
    "KeyRingError": errors.JWTColumnError,
    "UnknownKeyError": errors.KeyRingError,
    "KeyUnavailableError": errors.KeyRingError,
    "DecryptionError": errors.JWTColumnError,
    "MalformedEnvelopeError": errors.DecryptionError,
    "UnsupportedVersionError": errors.DecryptionError,
    "AuthenticationError": errors.DecryptionError,
    "PlaintextFoundError": errors.JWTColumnError,
    "UnsupportedComparisonError": errors.JWTColumnError,
    "ReencryptionError": errors.JWTColumnError,
    "AuditError": errors.JWTColumnError,
}

LOCATED: dict[str, Any] = {"context": "sessions.token", "key_id": "2d5f44dd"}

#: One error of each class, with every attribute that it has set to something.
FULL: list[errors.JWTColumnError] = [
    errors.InvalidTokenError("text", reason="empty", context="sessions.token"),
    errors.KeyUnavailableError("text", retryable=True, **LOCATED),
    errors.MalformedEnvelopeError("text", reason="truncated", **LOCATED),
    errors.ReencryptionError("text", report={"scanned": 3}, **LOCATED),
    *(
        getattr(errors, name)("text", **LOCATED)
        for name in errors.__all__
        if name
        not in ("InvalidTokenError", "KeyUnavailableError", "MalformedEnvelopeError", "ReencryptionError")
    ),
]

every_error = pytest.mark.parametrize(
    "error", [pytest.param(error, id=type(error).__name__) for error in FULL]
)


def content(error: errors.JWTColumnError) -> tuple[type, str, dict[str, Any]]:
    """Return what makes up an error."""
    return type(error), str(error), vars(error)


def raise_(error: errors.JWTColumnError) -> None:
    """Raise an error in a worker process."""
    raise error


class TestTree:
    """The classes and their bases."""

    def test_every_error_of_the_module_is_in_the_tree(self) -> None:
        assert {"JWTColumnError", *TREE} == set(errors.__all__)

    @pytest.mark.parametrize(("name", "base"), TREE.items())
    def test_class_stands_below_its_base(self, name: str, base: type[Exception]) -> None:
        also = (ValueError,) if name == "InvalidTokenError" else ()
        assert (base, *also) == getattr(errors, name).__bases__

    @pytest.mark.parametrize("name", errors.__all__)
    def test_class_mixes_in_what_keeps_sqlalchemy_from_wrapping_it(self, name: str) -> None:
        assert issubclass(getattr(errors, name), DontWrapMixin)

    def test_every_class_is_among_the_full_examples(self) -> None:
        assert set(errors.__all__) == {type(error).__name__ for error in FULL}


class TestAttributes:
    """What a program can act on."""

    def test_attributes_that_were_not_given_say_nothing(self) -> None:
        assert (errors.JWTColumnError("text").context, errors.JWTColumnError("text").key_id) == (None, None)
        assert errors.InvalidTokenError("text").reason == ""
        assert errors.MalformedEnvelopeError("text").reason == ""
        assert errors.KeyUnavailableError("text").retryable is False
        assert errors.ReencryptionError("text").report is None

    @every_error
    def test_text_is_the_message_alone(self, error: errors.JWTColumnError) -> None:
        assert str(error) == "text"

    @every_error
    def test_context_is_kept(self, error: errors.JWTColumnError) -> None:
        assert error.context == "sessions.token"


class TestPickle:
    """An error crosses a process border whole."""

    @every_error
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_pickle_keeps_class_message_and_attributes(
        self, error: errors.JWTColumnError, protocol: int
    ) -> None:
        assert content(error) == content(pickle.loads(pickle.dumps(error, protocol)))

    @every_error
    def test_copy_keeps_class_message_and_attributes(self, error: errors.JWTColumnError) -> None:
        assert content(error) == content(copy.copy(error))

    def test_worker_process_hands_its_error_to_its_parent(self) -> None:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            caught = [pool.submit(raise_, error).exception() for error in FULL]
        expected = [content(error) for error in FULL]
        # The worker's traceback comes along as a cause and a note of its own.
        assert expected == [content(error) for error in caught if isinstance(error, errors.JWTColumnError)]


class Refusing(TypeDecorator[str]):
    """A column type that refuses every value with the error that it is given."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Refuse."""
        raise self.error


def bind_error(error: Exception, secret: str) -> Exception:
    """Return what leaves SQLAlchemy when a type raises *error* while *secret* is bound beside it."""
    table = sa.Table("t", sa.MetaData(), sa.Column("a", sa.Text), sa.Column("b", Refusing(error)))
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(Exception) as caught:
        connection.execute(table.insert(), {"a": secret, "b": secret})
    engine.dispose()
    assert isinstance(caught.value, Exception)
    return caught.value


class TestSQLAlchemy:
    """Why the mixin is there."""

    @every_error
    def test_error_raised_while_binding_leaves_as_it_is(self, error: errors.JWTColumnError) -> None:
        secret = signed_token(sub="alice")
        left = bind_error(error, secret)
        assert error is left
        assert set() == revealed_by(left, secret)

    def test_any_other_error_is_wrapped_and_prints_the_row(self) -> None:
        """The control: without the mixin the plaintext is in the text, and the check for it finds it."""
        secret = signed_token(sub="alice")
        left = bind_error(ValueError("text"), secret)
        assert isinstance(left, StatementError)
        assert secret in str(left)
        assert revealed_by(left, secret)
