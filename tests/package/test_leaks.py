"""No door leads a token or a key out: exceptions, tracebacks, logs, SQL text, pickles, migrations, the server's log.

Every test tries its door on an ordinary ``Text`` column, or without our protection, too: there it must find the
token, else it would find nothing anywhere.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import logging
import pickle
import re
import secrets
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import alembic.autogenerate
import pytest
import rich.console
import rich.traceback
import sqlalchemy as sa
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, Session, mapped_column

from jwt_column import (
    JWT,
    EncryptedJWT,
    InvalidTokenError,
    JWTColumnError,
    KeyRing,
    KeyRingError,
    UnsupportedComparisonError,
    generate_key,
    redact_errors,
    set_default_keyring,
)
from tests.support.models import mapped
from tests.support.raw import raw_table
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import StatementLog

WINDOW = 12
"""A text that shares this many characters with a secret leaks it."""

ESCAPED_WINDOW = 24
"""The same where an escape such as \\xe9 stands among them: the three bytes of 12 characters are met by chance."""


# -- looking for a secret ----------------------------------------------------------------------------------------


def spellings(secret: str | bytes) -> set[str]:
    """Return how a secret can appear in a text: itself, its decoded segments, and these as repr, hex and base64."""
    parts = [secret.encode() if isinstance(secret, str) else secret]
    if isinstance(secret, str):
        for segment in secret.split("."):
            padded = segment + "=" * (-len(segment) % 4)
            parts.append(base64.urlsafe_b64decode(padded))
    found = set()
    for part in parts:
        found |= {
            part.decode("latin-1"),
            repr(part)[2:-1],
            part.hex(),
            base64.b64encode(part).decode(),
            base64.urlsafe_b64encode(part).decode(),
        }
    return found


@functools.lru_cache(maxsize=16)
def pieces_of(secret: str | bytes) -> frozenset[str]:
    """Return every piece of every spelling that is long enough to be a leak."""
    return frozenset(
        piece
        for spelling in spellings(secret)
        for window in (WINDOW, ESCAPED_WINDOW)
        for start in range(len(spelling) - window + 1)
        if window == (ESCAPED_WINDOW if "\\x" in (piece := spelling[start : start + window]) else WINDOW)
    )


def find_leak(text: str | bytes, *searched: str | bytes) -> str | None:
    """Return a piece of a secret that the text holds, or None."""
    haystack = text.decode("latin-1") if isinstance(text, bytes) else re.sub(r"\s+", " ", text)
    pieces = frozenset().union(*map(pieces_of, searched))
    return next(
        (
            piece
            for window in (WINDOW, ESCAPED_WINDOW)
            for start in range(len(haystack))
            if (piece := haystack[start : start + window]) in pieces
        ),
        None,
    )


def assert_no_leak(text: str | bytes, *searched: str | bytes) -> None:
    """Fail when the text holds a piece of a secret. The message does not repeat the text: it has enough readers."""
    assert text, "an empty text proves nothing"
    assert find_leak(text, *searched) is None


def texts_of(error: BaseException) -> dict[str, str]:
    """Return what a log or an error reporter makes of an exception."""
    chain = list(chain_of(error))
    with_locals = traceback.TracebackException.from_exception(error, capture_locals=True)
    return {
        "text": "\n".join(f"{link} {link!r} {link.args!r}" for link in chain),
        "attributes": "\n".join(repr(vars(link)) for link in chain),
        "traceback": "".join(traceback.format_exception(error)),
        "traceback with locals": "".join(with_locals.format()),
        "frames": "\n".join(frame for link in chain for frame in reported_frames(link)),
    }


def rich_traceback(error: BaseException) -> str:
    """Return the traceback with local variables that the command line of an application may show."""
    output = io.StringIO()
    console = rich.console.Console(file=output, width=5000)
    shown = rich.traceback.Traceback.from_exception(
        type(error),
        error,
        error.__traceback__,
        show_locals=True,
        locals_max_string=5000,
        locals_max_length=100,
    )
    for stack in shown.trace.stacks:
        for frame in stack.frames:
            # Source code holds no value of a run, and to colour SQLAlchemy's takes seconds.
            frame.filename = "<left out>"
    console.print(shown)
    return output.getvalue()


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def reported_frames(error: BaseException) -> Iterator[str]:
    """Walk over frames as Sentry does: local variables, into containers, and at the end the ``repr``."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        yield from (reported(value) for value in frame.f_locals.values())


def reported(value: object, depth: int = 5) -> str:
    if depth and isinstance(value, Mapping):
        return "\n".join(
            f"{reported(key, depth - 1)}: {reported(value[key], depth - 1)}" for key in list(value)
        )
    if depth and isinstance(value, list | tuple | set | frozenset):
        return "\n".join(reported(item, depth - 1) for item in value)
    try:
        return repr(value)
    except Exception as failure:  # noqa: BLE001 - a repr may fail halfway through a flush
        return f"<{type(failure).__name__}>"


# A frame of the test must hold no secret in a local variable: they lie here, in no frame.
TOKENS: dict[str, str] = {}


@pytest.fixture(autouse=True)
def key() -> Iterator[bytes]:
    """The key of the default ring, and a token that no other test has."""
    key = secrets.token_bytes(32)
    set_default_keyring(KeyRing([key]))
    TOKENS["secret"] = signed_token(jti=secrets.token_hex(12), sub=secrets.token_hex(12))
    yield key
    TOKENS.clear()


class Picky(sa.types.TypeDecorator[str]):
    """A column that fails to bind, as a ``str`` in a ``DateTime`` does with some drivers."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        raise ValueError("not what this column takes")


def model(type_: Any) -> Any:
    """Return a mapped class of its own, whose token has this type."""
    return mapped(picky=Picky, token=type_)


def error_of(call: Callable[..., object], *arguments: Any) -> BaseException:
    """Return the exception that a call raises, with its traceback."""
    with pytest.raises(Exception) as caught:
        call(*arguments)
    return caught.value


# -- the search itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "leak",
    [
        lambda token: token,
        lambda token: token[40:52],
        lambda token: repr(token.encode()),
        lambda token: base64.urlsafe_b64decode(token.split(".")[1] + "==").decode()[5:25],
        lambda token: repr(base64.urlsafe_b64decode(token.split(".")[2] + "==")),
        lambda token: token.encode().hex(),
        lambda token: base64.urlsafe_b64decode(token.split(".")[2] + "==").hex()[10:30],
        lambda token: base64.b64encode(token.encode()).decode(),
    ],
)
def test_the_search_finds_a_leak_in_every_spelling(leak: Callable[[str], str]) -> None:
    token = TOKENS["secret"]
    with pytest.raises(AssertionError):
        assert_no_leak(f"before {leak(token)} after", token)
    assert_no_leak(f"before {leak(token)} after", secrets.token_urlsafe(60))


def test_the_search_finds_a_key_in_every_spelling(key: bytes) -> None:
    for leak in (repr(key), key.hex(), base64.urlsafe_b64encode(key).decode(), key):
        with pytest.raises(AssertionError):
            assert_no_leak(leak, key)
    with pytest.raises(AssertionError):
        assert_no_leak("", key)


# -- another column of the row fails to bind ---------------------------------------------------------------------


def flush(engine: sa.Engine, class_: Any) -> None:
    with Session(engine) as session:
        session.add(class_(id=1, picky="x", token=TOKENS["secret"]))
        session.flush()


def flush_update(engine: sa.Engine, class_: Any) -> None:
    with Session(engine) as session:
        session.execute(sa.text("INSERT INTO logins (id, token) VALUES (1, NULL)"))
        login = session.get_one(class_, 1)
        login.token, login.picky = TOKENS["secret"], "x"
        session.flush()


def execute_with_jwt(engine: sa.Engine, class_: Any) -> None:
    """Core, with a value that is a JWT already."""
    value = JWT(TOKENS["secret"]) if isinstance(class_.token.type, EncryptedJWT) else TOKENS["secret"]
    with engine.begin() as connection:
        connection.execute(sa.insert(class_.__table__), [{"id": 1, "picky": "x", "token": value}])


def omit_a_parameter(engine: sa.Engine, class_: Any) -> None:
    """The second row lacks a value, which SQLAlchemy finds out before it binds any."""
    rows = [
        {
            "id": number,
            "token": JWT(TOKENS["secret"])
            if isinstance(class_.token.type, EncryptedJWT)
            else TOKENS["secret"],
        }
        for number in range(2)
    ]
    del rows[1]["token"]
    with engine.begin() as connection:
        connection.execute(sa.insert(class_.__table__), rows)


@pytest.mark.parametrize("fail", [flush, flush_update, execute_with_jwt, omit_a_parameter])
@pytest.mark.parametrize("hide_parameters", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_a_failure_of_another_column_shows_no_token(
    sqlite_database: Any, key: bytes, fail: Callable[..., None], *, hide_parameters: bool
) -> None:
    engine = sa.create_engine(sqlite_database.url(), hide_parameters=hide_parameters)
    protected, plain = model(EncryptedJWT()), model(sa.Text())
    protected.metadata.create_all(engine)

    error = error_of(fail, engine, protected)
    texts = texts_of(error) | {"rich": rich_traceback(error)}
    for text in texts.values():
        assert_no_leak(text, TOKENS["secret"], key)
    assert "JWT(redacted, " in texts["attributes"]

    error = error_of(fail, engine, plain)
    control = texts_of(error) | {"rich": rich_traceback(error)}
    leaking = {name for name, text in control.items() if find_leak(text, TOKENS["secret"])}
    doors = set(control) if not hide_parameters else set(control) - {"text", "traceback"}
    assert doors <= leaking
    engine.dispose()


def test_a_failure_under_asyncio_shows_no_token(sqlite_database: Any, key: bytes) -> None:
    engine = create_async_engine(sqlite_database.url("aiosqlite"))

    async def fail(class_: Any) -> None:
        try:
            async with AsyncSession(engine) as session:
                await session.run_sync(lambda sync: class_.metadata.create_all(sync.connection()))
                session.add(class_(id=1, picky="x", token=TOKENS["secret"]))
                await session.flush()
        finally:
            await engine.dispose()

    def run(class_: Any) -> None:
        asyncio.run(fail(class_))

    for text in texts_of(error_of(run, model(EncryptedJWT()))).values():
        assert_no_leak(text, TOKENS["secret"], key)
    for text in texts_of(error_of(run, model(sa.Text()))).values():
        assert find_leak(text, TOKENS["secret"])


# -- our own errors ----------------------------------------------------------------------------------------------


def assign(_: object, class_: Any) -> None:
    class_(token=TOKENS["refused"])


def bind(engine: sa.Engine, class_: Any) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(class_.__table__).values(id=1, token=TOKENS["refused"]))


@pytest.mark.parametrize("door", [assign, bind])
@pytest.mark.parametrize(
    "refuse",
    [
        lambda token: f"Bearer {token}",
        lambda token: f" {token}",
        lambda token: f"{token}.{token}",
        lambda token: token.replace(".", "!"),
        lambda token: token.encode(),
        lambda token: {"token": token},
        lambda token: token.rpartition(".")[0] + ".",
        lambda token: token * 700,
    ],
)
def test_an_error_of_ours_shows_nothing_of_the_value(
    memory: sa.Engine, key: bytes, door: Callable[..., None], refuse: Callable[[str], Any]
) -> None:
    class_ = model(EncryptedJWT(fingerprints=["jti"], expose_expiry=True))
    class_.metadata.create_all(memory)
    TOKENS["refused"] = refuse(TOKENS["secret"])

    error = error_of(door, memory, class_)

    assert isinstance(error, InvalidTokenError)
    texts = texts_of(error)
    for name in ("text", "attributes", "traceback"):
        assert_no_leak(texts[name], TOKENS["secret"], key)
    ours = "\n".join(
        reported(dict(frame.f_locals))
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if "/jwt_column/" in frame.f_code.co_filename
    )
    assert_no_leak(ours, TOKENS["secret"], key)
    # The control: the frames of SQLAlchemy above ours hold what they were given, so the search does find it.
    assert find_leak(texts["frames"], TOKENS["secret"])


def test_a_row_that_does_not_open_shows_neither_key_nor_ciphertext(memory: sa.Engine, key: bytes) -> None:
    class_ = model(EncryptedJWT())
    class_.metadata.create_all(memory)
    table = class_.__table__
    with memory.begin() as connection:
        connection.execute(sa.insert(table).values(id=1, token=JWT(TOKENS["secret"])))
        stored = connection.scalars(sa.select(sa.type_coerce(table.c.token, sa.LargeBinary))).one()
        damage = [
            stored[:-1] + bytes([stored[-1] ^ 1]),
            stored[:60],
            b"\x01" + bytes(4) + stored[5:],
            TOKENS["secret"].encode(),
        ]
        for value in damage:
            connection.execute(raw_table(table).update().values(token=value))
            error = error_of(lambda: connection.scalars(sa.select(table.c.token)).all())
            assert isinstance(error, JWTColumnError)
            texts = texts_of(error)
            for name in ("text", "attributes", "traceback"):
                assert_no_leak(texts[name], TOKENS["secret"], key, stored[6:])
            for text in texts.values():
                assert_no_leak(text, key)


def test_errors_are_pickled_without_what_they_are_about(key: bytes) -> None:
    class_ = model(EncryptedJWT())
    TOKENS["refused"] = "Bearer " + TOKENS["secret"]
    errors: list[BaseException] = [
        error_of(assign, None, class_),
        error_of(lambda: class_.token == TOKENS["secret"]),
        error_of(lambda: KeyRing([base64.urlsafe_b64encode(key)[:40].decode()])),
    ]
    expected: list[type] = [InvalidTokenError, UnsupportedComparisonError, KeyRingError]
    assert expected == [type(error) for error in errors]
    for error in errors:
        pickled = pickle.dumps(error)
        assert str(pickle.loads(pickled)) == str(error)
        assert_no_leak(pickled, TOKENS["secret"], key)
        assert_no_leak("".join(traceback.format_exception(error)), TOKENS["secret"], key)


# -- errors of drivers -------------------------------------------------------------------------------------------


def rows_of(class_: Any, count: int) -> list[dict[str, Any]]:
    wrap = JWT if isinstance(class_.token.type, EncryptedJWT) else str
    return [{"id": 1, "token": wrap(TOKENS["secret"])} for _ in range(count)]


@pytest.mark.parametrize(("storage", "rows"), [("binary", 1), ("text", 2)])
def test_a_duplicate_key_shows_ciphertext_only(
    driver_engine: sa.Engine, key: bytes, storage: Any, rows: int
) -> None:
    """With one row and with many: the drivers have different paths, and PostgreSQL shows the row that failed."""
    texts = {}
    for name, type_ in (("protected", EncryptedJWT(storage=storage)), ("plain", sa.Text())):
        class_ = model(type_)
        table = class_.__table__
        class_.metadata.drop_all(driver_engine)
        class_.metadata.create_all(driver_engine)
        with driver_engine.begin() as connection:
            connection.execute(sa.insert(table), rows_of(class_, 1))

        def insert_again() -> None:
            with driver_engine.begin() as connection:
                connection.execute(sa.insert(table), rows_of(class_, rows))  # noqa: B023

        error = error_of(insert_again)
        assert isinstance(error, sa.exc.IntegrityError)
        texts[name] = texts_of(error)
    for text in texts["protected"].values():
        assert_no_leak(text, TOKENS["secret"], key)
    for text in texts["plain"].values():
        assert find_leak(text, TOKENS["secret"])


# -- SQL text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["binary", "text"])
def test_literals_in_sql_text_are_ciphertext(engine: sa.Engine, key: bytes, storage: Any) -> None:
    options = {"literal_binds": True}

    def text(type_: Any, value: Any) -> str:
        return str(
            sa.insert(model(type_).__table__)
            .values(id=1, token=value)
            .compile(engine, compile_kwargs=options)
        )

    token = TOKENS["secret"]
    assert_no_leak(text(EncryptedJWT(storage=storage), token), token, key)
    for refused in (f"Bearer {token}", token.encode(), {"token": token}, token * 700):
        assert_no_leak(text(EncryptedJWT(storage=storage), refused), token, key)
    assert_no_leak(text(EncryptedJWT(storage=storage, plaintext="write"), token), token, key)
    assert find_leak(text(sa.Text(), token), token)


def test_parameters_of_a_compiled_statement_are_redacted() -> None:
    def parameters(type_: Any) -> str:
        class_ = model(type_)
        login = class_(token=TOKENS["secret"])
        return str(sa.insert(class_.__table__).values(id=1, token=login.token).compile().params)

    assert_no_leak(parameters(EncryptedJWT()), TOKENS["secret"])
    assert find_leak(parameters(sa.Text()), TOKENS["secret"])


# -- logs --------------------------------------------------------------------------------------------------------


class Collected(logging.Handler):
    """Everything that one logger is told, as text."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.mark.parametrize("echo", [True, "debug"])
def test_the_logs_of_an_engine_show_ciphertext_and_redacted_rows(
    database: Any, key: bytes, echo: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    collected = Collected()
    logger = logging.getLogger("sqlalchemy.engine.Engine")
    logger.addHandler(collected)
    engine = sa.create_engine(database.url(), echo=echo)
    texts = []
    try:
        for type_ in (EncryptedJWT(), EncryptedJWT(storage="text"), sa.Text()):
            collected.lines.clear()
            class_ = model(type_)
            class_.metadata.drop_all(engine)
            class_.metadata.create_all(engine)
            table = class_.__table__
            with engine.begin() as connection:
                # Plain text in, as Core takes it.
                connection.execute(sa.insert(table).values(id=1, token=TOKENS["secret"]))
                assert connection.scalars(sa.select(table.c.token)).all() == [TOKENS["secret"]]
            with Session(engine) as session:
                assert session.execute(sa.select(class_.id, class_.token)).one().token == TOKENS["secret"]
            texts.append("\n".join(collected.lines))
    finally:
        logger.removeHandler(collected)
        engine.dispose()
    for text in texts[:2]:
        assert "INSERT INTO" in text
        assert_no_leak(text, TOKENS["secret"], key)
        assert ("JWT(redacted, " in text) == (echo == "debug")
    assert find_leak(texts[2], TOKENS["secret"])
    capsys.readouterr()  # What echo printed beside the log.


def test_the_log_of_a_postgresql_server_shows_ciphertext(
    postgresql_statement_log: StatementLog, key: bytes
) -> None:
    engine = sa.create_engine(postgresql_statement_log.url)
    path: Path = postgresql_statement_log.path

    def log_of(type_: Any) -> str:
        before = path.stat().st_size
        class_ = model(type_)
        class_.metadata.drop_all(engine)
        class_.metadata.create_all(engine)
        table = class_.__table__
        with engine.begin() as connection:
            connection.execute(sa.insert(table).values(id=1, token=TOKENS["secret"]))
            connection.execute(sa.update(table).values(token=TOKENS["secret"]))
            assert connection.scalars(sa.select(table.c.token)).all() == [TOKENS["secret"]]
        with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
            connection.execute(sa.insert(table).values(id=1, token=TOKENS["secret"]))
        with path.open("rb") as log:
            log.seek(before)
            return log.read().decode("latin-1")

    for type_ in (EncryptedJWT(), EncryptedJWT(storage="text")):
        text = log_of(type_)
        assert "INSERT INTO logins" in text
        assert_no_leak(text, TOKENS["secret"], key)
    assert find_leak(log_of(sa.Text()), TOKENS["secret"])
    engine.dispose()


# -- repr, pickle, caches, migrations ----------------------------------------------------------------------------


def test_no_repr_shows_a_key_or_a_token(key: bytes) -> None:
    ring = KeyRing([key])
    class_ = model(EncryptedJWT(ring))
    login = class_(id=1, token=TOKENS["secret"])

    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Shown(Base):
        __tablename__ = "shown"
        id: Mapped[int] = mapped_column(primary_key=True)
        token: Mapped[JWT] = mapped_column(EncryptedJWT(ring))

    shown = Shown(id=1, token=TOKENS["secret"])  # type: ignore[arg-type]
    table = class_.__table__
    sentinel = sa.insert(table).values(id=1, token=login.token)
    for thing in (
        ring, ring.keys, class_.token.type, table, table.c.token, class_.metadata, login, login.__dict__, login.token,
        shown, [shown], vars(shown), sentinel, sa.inspect(login).dict, sa.inspect(class_).columns.token,
    ):  # fmt: skip
        assert_no_leak(repr(thing), TOKENS["secret"], key)
    assert "JWT(redacted, " in repr(shown)
    shown.__dict__["token"] = str(shown.token)
    assert find_leak(repr(shown), TOKENS["secret"])


def test_the_key_of_a_statement_in_a_cache_holds_no_key_material(memory: sa.Engine, key: bytes) -> None:
    ring = KeyRing([key])
    table = model(EncryptedJWT(ring)).__table__
    table.metadata.create_all(memory)
    with memory.begin() as connection:
        connection.execute(sa.insert(table).values(id=1, token=TOKENS["secret"]))
        connection.execute(sa.select(table.c.token))
    cache: Any = memory._compiled_cache
    keys = [reported(entry, 20) for entry in cache]
    assert any("EncryptedJWT" in entry for entry in keys)
    for entry in keys:
        assert_no_leak(entry, TOKENS["secret"], key)

    class Careless(sa.types.TypeDecorator[str]):
        """The control: as a peer of ours does it."""

        impl = sa.Text
        cache_ok = True

        def __init__(self, key: bytes) -> None:
            super().__init__()
            self.key = key

    assert find_leak(reported(sa.select(sa.column("x", Careless(key)))._generate_cache_key(), 20), key)


def test_a_pickle_takes_no_key_along(key: bytes) -> None:
    by_default = model(EncryptedJWT()).__table__
    for thing in (by_default.c.token.type, by_default, by_default.metadata, EncryptedJWT("file:/etc/keys")):
        assert_no_leak(pickle.dumps(thing), key)
    ring = KeyRing([key])
    with_ring = model(EncryptedJWT(ring)).__table__
    for thing in (ring, ring.keys[0], with_ring.c.token.type, with_ring.metadata):
        with pytest.raises(KeyRingError, match="cannot be pickled"):
            pickle.dumps(thing)


def test_a_migration_that_alembic_writes_holds_neither_key_nor_uri(memory: sa.Engine, key: bytes) -> None:
    password = secrets.token_hex(16)

    class Careless(sa.types.TypeDecorator[str]):
        """The control: a type whose repr shows its key ends up in the migration."""

        impl = sa.Text
        cache_ok = True

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

        def __repr__(self) -> str:
            return f"Careless(key={self.key!r})"

    def migration(type_: Any) -> str:
        with memory.connect() as connection:
            context = MigrationContext.configure(connection)
            script = alembic.autogenerate.produce_migrations(context, model(type_).metadata)
            assert script.upgrade_ops is not None
            return alembic.autogenerate.render_python_code(script.upgrade_ops)

    for type_ in (
        EncryptedJWT(KeyRing([key])),
        EncryptedJWT(f"vault://user:{password}@host/key"),
        EncryptedJWT(),
    ):
        text = migration(type_)
        assert "'token'" in text
        assert_no_leak(text, key, password)
    assert find_leak(migration(Careless(password)), password)


# -- redact_errors -----------------------------------------------------------------------------------------------


def execute_plain(engine: sa.Engine, class_: Any) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(class_.__table__), {"id": 1, "picky": "x", "token": TOKENS["secret"]})


def execute_many_plain(engine: sa.Engine, class_: Any) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.insert(class_.__table__),
            [{"id": 1, "picky": "x", "token": TOKENS["secret"]}, {"id": 2, "picky": "x"}],
        )


@pytest.mark.parametrize("fail", [execute_plain, execute_many_plain])
@pytest.mark.parametrize("hide_parameters", [False, True])
def test_redacted_exceptions_carry_no_parameters_of_plain_text(
    fail: Callable[..., None], *, hide_parameters: bool
) -> None:
    class_ = model(EncryptedJWT())
    shown, redacted = (sa.create_engine("sqlite://", hide_parameters=hide_parameters) for _ in range(2))
    redact_errors(redacted)
    redact_errors(redacted)

    control = error_of(fail, shown, class_)
    assert isinstance(control, sa.exc.StatementError)
    assert find_leak(repr(control.params), TOKENS["secret"])
    assert hide_parameters != bool(find_leak(str(control), TOKENS["secret"]))

    error = error_of(fail, redacted, class_)
    assert (sa.exc.StatementError, None) == (type(error), getattr(error, "params", ""))
    texts = texts_of(error)
    for name in ("text", "attributes", "traceback"):
        assert_no_leak(texts[name], TOKENS["secret"])
    assert "INSERT INTO logins" in texts["text"]
    shown.dispose()
    redacted.dispose()


def test_redacted_exceptions_of_an_async_engine_carry_no_parameters() -> None:
    class_ = model(EncryptedJWT())

    async def fail(*, redact: bool) -> None:
        engine = create_async_engine("sqlite+aiosqlite://")
        if redact:
            redact_errors(engine)
        try:
            async with engine.begin() as connection:
                await connection.execute(
                    sa.insert(class_.__table__), {"id": 1, "picky": "x", "token": TOKENS["secret"]}
                )
        finally:
            await engine.dispose()

    control = error_of(lambda: asyncio.run(fail(redact=False)))
    assert find_leak(texts_of(control)["text"], TOKENS["secret"])
    texts = texts_of(error_of(lambda: asyncio.run(fail(redact=True))))
    for name in ("text", "attributes", "traceback"):
        assert_no_leak(texts[name], TOKENS["secret"])


def test_redacted_errors_of_drivers_and_of_ours_keep_their_class(engine: sa.Engine) -> None:
    redact_errors(engine)
    class_ = model(EncryptedJWT())
    class_.metadata.create_all(engine)
    table = class_.__table__
    with engine.begin() as connection:
        connection.execute(sa.insert(table).values(id=1, token=TOKENS["secret"]))
    with pytest.raises(sa.exc.IntegrityError) as caught, engine.begin() as connection:
        connection.execute(sa.insert(table).values(id=1, token=TOKENS["secret"]))
    assert caught.value.params is None
    assert "[SQL: INSERT INTO logins" in str(caught.value)
    with pytest.raises(InvalidTokenError), engine.begin() as connection:
        connection.execute(sa.insert(table).values(id=2, token="nonsense"))


def test_redaction_is_of_one_engine_and_reaches_its_options() -> None:
    class_ = model(EncryptedJWT())
    redacted, other = sa.create_engine("sqlite://"), sa.create_engine("sqlite://")
    redact_errors(redacted)
    derived = redacted.execution_options(logging_token="derived")
    for engine, expected in ((derived, False), (other, True)):
        error = error_of(execute_plain, engine, class_)
        assert bool(find_leak(str(error), TOKENS["secret"])) == expected
        engine.dispose()
    redacted.dispose()


def test_generated_keys_leave_no_trace_in_errors_of_the_ring() -> None:
    key_text = generate_key()
    for wrong in (
        key_text[:-1],
        key_text + "A",
        f" {key_text}",
        key_text.encode()[:31],
        [key_text, key_text],
    ):
        error = error_of(lambda wrong=wrong: KeyRing(wrong if isinstance(wrong, list) else [wrong]))
        assert isinstance(error, KeyRingError)
        assert_no_leak(f"{error} {error!r} {vars(error)}", key_text)
