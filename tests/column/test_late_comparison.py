"""Comparisons whose value comes when a statement is executed: fingerprints are made then, and nothing shows it."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import bindparam, lambda_stmt, literal, select
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.exc import CompileError, InvalidRequestError, StatementError
from sqlalchemy.orm import Session, aliased, with_loader_criteria

from jwt_column import (
    JWT,
    EncryptedJSON,
    EncryptedJWT,
    KeyRing,
    KeyRingError,
    UnsupportedComparisonError,
    generate_key,
    set_default_keyring,
)
from jwt_column.providers import write_key_file
from tests.support.models import mapped, store, table_of
from tests.support.tokens import locals_shown_by, revealed_by, signed_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

FIRST, SECOND, THIRD = generate_key(), generate_key(), generate_key()
RING = KeyRing([SECOND, FIRST])

ALICE = signed_token(sub="alice", jti="a", num=7)
BOB = signed_token(sub="bob", jti="b", num=8)
CAROL = signed_token(sub="carol")
NOBODY = signed_token(sub="nobody", jti="n")


Login = mapped(
    name=sa.String(2000),
    token=EncryptedJWT(fingerprints=["token", "jti", "num"]),
    second=EncryptedJWT(storage="text", expose_expiry=True, fingerprints=["num", "jti", "token"]),
    answer=EncryptedJSON(fingerprints=["access_token"]),
)
LOGINS: Any = Login.__table__
TOKENS = {1: ALICE, 2: BOB, 3: CAROL, 4: None}


def fill(engine: sa.Engine | sa.Connection) -> None:
    """Write rows 1 and 3 under the first key, row 2 under the second, row 4 without a token."""
    Login.metadata.create_all(engine)
    with Session(engine) as session:
        for ring, ids in ((KeyRing([FIRST]), (1, 3)), (RING, (2, 4))):
            set_default_keyring(ring)
            for id_ in ids:
                token = TOKENS[id_]
                answer = None if token is None else {"access_token": token}
                session.add(Login(id=id_, name=token, token=token, second=token, answer=answer))
            session.flush()
        session.commit()


@pytest.fixture(autouse=True)
def _default_ring() -> None:
    set_default_keyring(RING)


@pytest.fixture
def session(engine: sa.Engine) -> Iterator[Session]:
    fill(engine)
    with Session(engine) as session:
        yield session


@pytest.fixture
def sqlite_session() -> Iterator[Session]:
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    fill(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()


LATE: dict[str, tuple[Callable[[Any], Any], dict[str, Any], list[int]]] = {
    "eq": (lambda one: one == bindparam("t"), {"t": ALICE}, [1]),
    "eq of a JWT": (lambda one: one == bindparam("t"), {"t": JWT(BOB)}, [2]),
    "eq of NULL": (lambda one: one == bindparam("t"), {"t": None}, []),
    "eq of nobody": (lambda one: one == bindparam("t"), {"t": NOBODY}, []),
    "ne": (lambda one: one != bindparam("t"), {"t": ALICE}, [2, 3]),
    "ne of NULL": (lambda one: one != bindparam("t"), {"t": None}, []),
    "not eq": (lambda one: ~(one == bindparam("t")), {"t": ALICE}, [2, 3]),
    "not ne": (lambda one: sa.not_(one != bindparam("t")), {"t": ALICE}, [1]),
    "typed": (lambda one: one == bindparam("t", type_=sa.String), {"t": ALICE}, [1]),
    "with a default": (lambda one: one == bindparam("t", ALICE), {}, [1]),
    "with a default that is replaced": (lambda one: one == bindparam("t", ALICE), {"t": BOB}, [2]),
    "with a callable": (lambda one: one == bindparam("t", callable_=lambda: ALICE), {}, [1]),
    "unique": (lambda one: one == bindparam("t", ALICE, unique=True), {}, [1]),
    "odd name": (lambda one: one == bindparam("the token: (%s)"), {"the token: (%s)": ALICE}, [1]),
    "in": (lambda one: one.in_(bindparam("ts", expanding=True)), {"ts": [ALICE, BOB, NOBODY]}, [1, 2]),
    "in a tuple": (lambda one: one.in_(bindparam("ts")), {"ts": (ALICE, BOB)}, [1, 2]),
    "in nothing": (lambda one: one.in_(bindparam("ts", expanding=True)), {"ts": []}, []),
    "in with NULL": (lambda one: one.in_(bindparam("ts", expanding=True)), {"ts": [ALICE, None]}, [1]),
    "not in": (lambda one: one.not_in(bindparam("ts", expanding=True)), {"ts": [ALICE, BOB]}, [3]),
    "not in nothing": (lambda one: one.not_in(bindparam("ts", expanding=True)), {"ts": []}, [1, 2, 3]),
    "not in with NULL": (lambda one: one.not_in(bindparam("ts", expanding=True)), {"ts": [ALICE, None]}, []),
    "in parameters": (lambda one: one.in_([bindparam("t"), BOB, literal(NOBODY)]), {"t": ALICE}, [1, 2]),
    "not in parameters": (lambda one: one.not_in([bindparam("t"), bindparam("u")]), {"t": ALICE, "u": BOB}, [3]),
    "not in parameters, twice": (lambda one: ~~one.not_in([bindparam("t"), BOB]), {"t": ALICE}, [3]),
    "literal": (lambda one: one == literal(ALICE), {}, [1]),
    "typed literal": (lambda one: one == literal(ALICE, one.type), {}, [1]),
    "literal of text": (lambda one: one != literal(ALICE, sa.Text), {}, [2, 3]),
    "literal NULL": (lambda one: one == literal(None, sa.Text), {}, []),
    "type_coerce": (lambda one: one == sa.type_coerce(ALICE, one.type), {}, [1]),
    "typed literal on the left": (lambda one: literal(ALICE, one.type) == one, {}, [1]),
    "typed parameter on the left": (lambda one: bindparam("t", type_=one.type) != one, {"t": ALICE}, [2, 3]),
    "claim eq": (lambda one: one.claim("jti") == bindparam("j"), {"j": "a"}, [1]),
    "claim eq of an integer": (lambda one: one.claim("num") == bindparam("n"), {"n": 8}, [2]),
    "claim ne": (lambda one: one.claim("jti") != bindparam("j"), {"j": "a"}, [2]),
    "claim in": (lambda one: one.claim("jti").in_(bindparam("js", expanding=True)), {"js": ["a", "b"]}, [1, 2]),
    "claim not in": (lambda one: one.claim("num").not_in(bindparam("ns")), {"ns": [7]}, [2]),
    "claim eq of a literal": (lambda one: one.claim("num") == literal(8), {}, [2]),
    "claim in literals": (lambda one: one.claim("num").in_([literal(8), 7]), {}, [1, 2]),
    "one parameter twice": (
        lambda one: sa.and_(one == bindparam("t"), sa.or_(one == bindparam("t"), one.claim("jti") == bindparam("t"))),
        {"t": ALICE},
        [1],
    ),
    "one parameter for two columns": (
        lambda one: sa.and_(Login.token == bindparam("t"), Login.second == bindparam("t"), Login.id < 9),
        {"t": BOB},
        [2],
    ),
    "one parameter for a plain column too": (
        lambda one: sa.or_(one == bindparam("t"), Login.name == bindparam("t")),
        {"t": BOB},
        [2],
    ),
    "beside another list": (
        lambda one: sa.and_(one.in_(bindparam("ts")), Login.id.in_([1, 3])),
        {"ts": [ALICE, BOB]},
        [1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("attribute", ["token", "second"])
def test_rows_are_found_by_values_that_come_later(session: Session, attribute: str) -> None:
    column = getattr(Login, attribute)
    for name, (build, given, expected) in LATE.items():
        found = select(Login.id).where(build(column)).order_by(Login.id)
        assert session.scalars(found, given).all() == expected, name
        # With the statement of the cache, and without one.
        assert session.scalars(found, given).all() == expected, name
        uncached = session.connection().execution_options(compiled_cache=None)
        assert uncached.scalars(found, given).all() == expected, name
    listed = select(Login.id).where(column.in_(bindparam("ts"))).order_by(Login.id)
    for values in (
        {ALICE, BOB},
        {ALICE: 1, BOB: 2}.keys(),
        iter([ALICE, BOB]),
        (one for one in (BOB, ALICE)),
    ):
        assert session.scalars(listed, {"ts": values}).all() == [1, 2]


@pytest.mark.exhaustive
def test_rows_are_found_with_every_driver(driver_engine: sa.Engine) -> None:
    fill(driver_engine)
    with Session(driver_engine) as session:
        test_rows_are_found_by_values_that_come_later(session, "token")
        test_rows_are_found_by_values_that_come_later(session, "second")


def test_rows_are_found_with_asynchronous_drivers(async_driver_engine: AsyncEngine) -> None:
    def find(connection: sa.Connection) -> None:
        fill(connection)
        for attribute in ("token", "second"):
            test_rows_are_found_by_values_that_come_later(Session(connection), attribute)

    async def scenario() -> None:
        async with async_driver_engine.connect() as connection:
            await connection.run_sync(find)

    asyncio.run(scenario())


def test_one_compiled_statement_serves_every_value(sqlite_session: Session) -> None:
    """Of a claim, of a list, and of a parameter; another operator has another one."""
    cache: dict[Any, Any] = {}
    connection = sqlite_session.connection().execution_options(compiled_cache=cache)
    for token, claim, id_ in ((ALICE, "a", [1]), (BOB, "b", [2]), (NOBODY, "n", [])):
        for condition in (
            LOGINS.c.token == token,
            LOGINS.c.token == bindparam("t", token),
            LOGINS.c.token.in_([token]),
            LOGINS.c.token.in_([token, token]),
            LOGINS.c.second.claim("jti") == claim,
        ):
            assert connection.scalars(select(LOGINS.c.id).where(condition)).all() == id_
    assert len(cache) == 4
    connection.scalars(select(LOGINS.c.id).where(LOGINS.c.token != ALICE)).all()
    assert len(cache) == 5


def test_params_of_a_statement(session: Session) -> None:
    found = select(Login.id).where(Login.token == bindparam("t"))
    assert session.scalar(found.params(t=ALICE)) == 1
    assert session.scalar(found.params({"t": BOB})) == 2
    assert session.query(Login.id).filter(Login.token == bindparam("t")).params(t=BOB).scalar() == 2
    assert session.query(Login.id).filter_by(token=bindparam("t")).params(t=BOB).scalar() == 2


def lambda_look_up(session: Session, token: Any, tokens: Any, claim: Any) -> list[Any]:
    """Return what lambdas find whose variables are these."""
    found = lambda_stmt(lambda: select(Login.id))
    found += lambda one: one.where(Login.token == token)
    listed = lambda_stmt(lambda: select(Login.id).where(Login.second.in_(tokens)).order_by(Login.id))
    of_two = lambda_stmt(lambda: select(Login.id).where(Login.token.in_([token, token])))
    by_claim = lambda_stmt(lambda: select(Login.id).where(Login.token.claim("jti") == claim))
    return [session.scalars(one).all() for one in (found, listed, of_two, by_claim)]


def test_lambda_statements_take_the_values_of_their_variables(session: Session) -> None:
    assert lambda_look_up(session, ALICE, [ALICE, BOB], "a") == [[1], [1, 2], [1], [1]]
    assert lambda_look_up(session, BOB, [BOB, NOBODY], "b") == [[2], [2], [2], [2]]
    assert lambda_look_up(session, NOBODY, [], "n") == [[], [], [], []]


def test_loader_criteria_take_the_values_of_their_variables(session: Session) -> None:
    def found(token: str) -> list[int]:
        criteria = with_loader_criteria(Login, lambda cls: cls.token == token)
        return [*session.scalars(select(Login.id).options(criteria))]

    assert [found(token) for token in (ALICE, BOB, NOBODY, ALICE)] == [[1], [2], [], [1]]
    plain = with_loader_criteria(Login, Login.token.claim("jti") == "b")
    assert session.scalars(select(Login.id).options(plain)).all() == [2]


@pytest.mark.each_server
def test_aliases_subqueries_and_statements_that_write(session: Session) -> None:
    alias = aliased(Login)
    inner = select(Login.id).where(Login.second == bindparam("t")).scalar_subquery()
    both = select(alias.id).where(alias.token == bindparam("t"), alias.id == inner)
    assert session.scalars(both, {"t": BOB}).all() == [2]
    cte = select(Login.id).where(Login.token != bindparam("t")).cte("others")
    assert session.scalars(select(cte.c.id).order_by(cte.c.id), {"t": BOB}).all() == [1, 3]
    union = sa.union_all(*(select(Login.id).where(Login.token == bindparam(name)) for name in ("t", "u")))
    assert sorted(session.scalars(union, {"t": ALICE, "u": BOB})) == [1, 2]
    change = sa.update(LOGINS).where(LOGINS.c.token == bindparam("t")).values(name=bindparam("n"))
    session.execute(change, {"t": ALICE, "n": "x"})
    assert session.scalars(select(Login.name).where(Login.token == ALICE)).all() == ["x"]
    session.execute(sa.delete(LOGINS).where(LOGINS.c.token.claim("jti") == bindparam("j")), {"j": "b"})
    assert session.scalars(select(Login.id).order_by(Login.id)).all() == [1, 3, 4]


@pytest.mark.each_server
def test_several_sets_of_parameters(session: Session) -> None:
    """A parameter of an INSERT, UPDATE or DELETE that is sent for each of them."""
    connection = session.connection()
    change = sa.update(LOGINS).where(LOGINS.c.token == bindparam("t")).values(name=bindparam("n"))
    connection.execute(change, [{"t": ALICE, "n": "a"}, {"t": BOB, "n": "b"}, {"t": None, "n": "c"}])
    text = sa.update(LOGINS).where(LOGINS.c.second == CAROL, LOGINS.c.id > 0).values(name=bindparam("n"))
    connection.execute(text, [{"n": "d"}, {"n": "e"}])
    assert session.scalars(select(Login.name).order_by(Login.id)).all() == ["a", "b", "e", None]
    others = sa.delete(LOGINS).where(LOGINS.c.token != bindparam("t"), LOGINS.c.id == bindparam("i"))
    connection.execute(others, [{"t": ALICE, "i": 1}, {"t": ALICE, "i": 2}])
    connection.execute(
        sa.delete(LOGINS).where(LOGINS.c.token.claim("num") == bindparam("n")), [{"n": 7}, {"n": 8}]
    )
    assert session.scalars(select(Login.id).order_by(Login.id)).all() == [3, 4]
    with pytest.raises(UnsupportedComparisonError, match=r"^logins\.token: .*several sets"):
        connection.execute(sa.delete(LOGINS).where(LOGINS.c.token.in_(bindparam("t"))), [{"t": [CAROL]}] * 2)


@pytest.mark.parametrize("value", [5, b"eyJ", 1.5, True, ["x"], object(), "\ud800" + ALICE])
def test_another_value_is_refused_when_it_comes_and_not_shown(sqlite_session: Session, value: Any) -> None:
    late = select(Login.id).where(Login.token == bindparam("t"))
    listed = select(Login.id).where(Login.token.in_(bindparam("t")))
    for statement, given in ((late, value), (listed, [ALICE, value])):
        with pytest.raises(UnsupportedComparisonError, match=r"^logins\.token: ") as caught:
            sqlite_session.execute(statement, {"t": given})
        assert not revealed_by(caught.value, ALICE)
    with pytest.raises(
        UnsupportedComparisonError, match=r"in_\(\) takes a list of values, not one str"
    ) as caught:
        sqlite_session.execute(listed, {"t": ALICE})
    assert not revealed_by(caught.value, ALICE)


def test_a_missing_value_is_the_error_of_sqlalchemy(sqlite_session: Session) -> None:
    with pytest.raises(StatementError, match="required for bind parameter 't'"):
        sqlite_session.execute(select(Login.id).where(Login.token == bindparam("t")))


# -- the ring of the execution counts --------------------------------------------------------------------------------


def test_statement_of_the_cache_finds_rows_under_keys_that_the_ring_learns(
    memory: sa.Engine, tmp_path: Path
) -> None:
    """A prebuilt statement, a lambda, one that is built again, and one for several sets of parameters."""
    path = tmp_path / "keys"
    write_key_file(path, [FIRST])
    ring = KeyRing.from_uri(f"file:{path}")
    set_default_keyring(ring)
    Login.metadata.create_all(memory)
    prebuilt: list[Any] = [
        select(Login.id).where(Login.token == BOB),
        select(Login.id).where(Login.second.in_([BOB, NOBODY])),
        select(Login.id).where(Login.token == bindparam("t", BOB)),
        lambda_stmt(lambda: select(Login.id).where(Login.token.claim("jti") == "b")),
    ]
    mark = sa.update(LOGINS).where(LOGINS.c.token == bindparam("t")).values(name="found")

    def found(session: Session) -> list[list[int]]:
        session.connection().execute(mark, [{"t": BOB}, {"t": NOBODY}])
        new = select(Login.id).where(Login.token == BOB)
        others = select(Login.id).where(Login.token != ALICE)
        return [[*session.scalars(one)] for one in (*prebuilt, new, others)]

    with Session(memory) as session:
        assert found(session) == [[]] * 6
        for number, key in enumerate((SECOND, THIRD), 2):
            write_key_file(path, [key, *(SECOND, FIRST)[-number + 1 :]], overwrite=True)
            session.execute(sa.delete(Login))
            with monkeypatched_ring(KeyRing([key])):
                session.add(Login(id=number, token=BOB, second=BOB))
                session.flush()
            # The control: the ring has not learned the key.
            assert found(session) == [[]] * 6
            ring.reload()
            assert found(session) == [[number]] * 6
            session.expire_all()
            assert session.get_one(Login, number).name == "found"


class monkeypatched_ring:  # noqa: N801 - a context manager
    """Another default ring for a block."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    def __enter__(self) -> None:
        from jwt_column.keys import default

        self._old = default.resolve_keyring(None)
        set_default_keyring(self._ring)

    def __exit__(self, *_: object) -> None:
        set_default_keyring(self._old)


def test_a_negation_takes_fingerprints_and_stamps_of_the_same_keys(sqlite_session: Session) -> None:
    """While another thread reloads the ring: else the row of the value itself would be among the others."""
    statement = select(Login.id).where(Login.token != BOB).order_by(Login.id)
    one, both = KeyRing([FIRST]), RING
    stop = threading.Event()

    def switch() -> None:
        while not stop.is_set():
            set_default_keyring(one)
            set_default_keyring(both)

    thread = threading.Thread(target=switch)
    thread.start()
    try:
        found = {tuple(sqlite_session.scalars(statement)) for _ in range(300)}
    finally:
        stop.set()
        thread.join()
    assert found <= {(1, 3)}


def test_no_ring_is_needed_to_build_a_statement(
    sqlite_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_default_keyring(None)
    monkeypatch.setenv("JWT_COLUMN_KEYS", "not a key")
    statement = select(Login.id).where(Login.token == ALICE)
    assert ALICE not in str(statement) + repr(statement.compile().params)
    with pytest.raises(KeyRingError):
        sqlite_session.execute(statement)
    set_default_keyring(RING)
    assert sqlite_session.scalar(statement) == 1


def test_rows_of_another_layout_are_found_by_values_that_come_later(engine: sa.Engine) -> None:
    """While options change: a parameter stands in the statement once for each layout."""
    new = EncryptedJWT(
        RING, fingerprints=["token", "jti"], expose_expiry=True, previous=[{"fingerprints": ["jti"]}]
    )
    old = EncryptedJWT(RING, fingerprints=["jti"])
    tables = [table_of(type_) for type_ in (old, new)]
    tables[0].create(engine)
    id_, token = tables[1].c.id, tables[1].c.token
    with engine.begin() as connection:
        for number, (table, value) in enumerate(zip(tables, (ALICE, BOB), strict=True), 1):
            connection.execute(table.insert(), {"id": number, "token": value})
        for condition, given, expected in (
            (token.claim("jti") == bindparam("j"), {"j": "a"}, [1]),
            (token.claim("jti").in_(bindparam("j")), {"j": ["a", "b"]}, [1, 2]),
            (token.claim("jti") != bindparam("j"), {"j": "b"}, [1]),
            (token.claim("jti").in_(bindparam("j")), {"j": []}, []),
            (token.claim("jti").not_in(bindparam("j")), {"j": []}, [1, 2]),
            (token == bindparam("j"), {"j": BOB}, [2]),
        ):
            found = select(id_).where(condition).order_by(id_)
            assert connection.scalars(found, given).all() == expected
        mark = sa.delete(tables[1]).where(token.claim("jti") == bindparam("j"))
        connection.execute(mark, [{"j": "a"}, {"j": "n"}])
        assert connection.scalars(select(id_)).all() == [2]


# -- the ORM evaluates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("synchronize", ["evaluate", "fetch", "auto"])
def test_loaded_objects_follow_a_bulk_statement(sqlite_session: Session, synchronize: Any) -> None:
    session = sqlite_session
    options = {"synchronize_session": synchronize}
    logins = {login.id: login for login in session.scalars(select(Login))}
    for condition, expected in (
        (Login.token == ALICE, [1]),
        (Login.second != ALICE, [2, 3]),
        (Login.token.in_([ALICE, BOB]), [1, 2]),
        (Login.token.not_in([ALICE]), [2, 3]),
        (Login.token.not_in([ALICE, None]), []),
        (Login.token.claim("jti") == "b", [2]),
        (Login.token.claim("num").not_in([8]), [1]),
        (sa.or_(Login.token == CAROL, Login.id == 4), [3, 4]),
        (sa.not_(Login.second == BOB), [1, 3]),
        (Login.answer.claim("access_token") == ALICE, [1]),
    ):
        session.execute(sa.update(Login).values(name="before").execution_options(synchronize_session="fetch"))
        session.execute(sa.update(Login).where(condition).values(name="after").execution_options(**options))
        assert [id_ for id_, login in logins.items() if login.name == "after"] == expected
        assert [*session.scalars(select(Login.id).where(Login.name == "after"))] == expected
    session.execute(sa.delete(Login).where(Login.token == BOB).execution_options(**options))
    assert logins[2] not in session
    assert logins[1] in session


def test_an_unknown_value_is_not_evaluated(sqlite_session: Session) -> None:
    """Nothing says to the ORM which value a parameter will have, so "auto" asks the database."""
    session, login = sqlite_session, sqlite_session.get_one(Login, 1)
    change = sa.update(Login).where(Login.token == bindparam("t")).values(name="after")
    session.execute(change, {"t": ALICE})
    assert login.name == "after"
    with pytest.raises(InvalidRequestError, match="evaluate"):
        session.execute(change.execution_options(synchronize_session="evaluate"), {"t": ALICE})


# -- nothing shows the value -----------------------------------------------------------------------------------------


def shown_by(statement: Any, dialect: Any = None) -> str:
    """Return everything that a statement shows without being executed."""
    compiled = statement.compile(dialect=dialect)
    expanded = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    literal_ = statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    elements = sa.sql.visitors.iterate(statement)
    key = statement._generate_cache_key()
    return "\n".join(
        (
            str(statement),
            repr(compiled.params),
            str(expanded),
            repr(expanded.params),
            str(literal_),
            repr(key),
            key.to_offline_string({}, statement, {}),
            *map(repr, elements),
            *(repr(vars(element)) for element in elements),
        )
    )


DIALECTS: list[Any] = [None, postgresql, mysql]


@pytest.mark.parametrize("module", DIALECTS)
def test_nothing_shows_the_value(module: Any) -> None:
    dialect = module and module.dialect()
    secret = "a secret id"
    for condition in (
        Login.token == ALICE,
        Login.second != ALICE,
        Login.token.in_([ALICE, BOB]),
        Login.token == bindparam("t", ALICE),
        Login.token == literal(ALICE),
        Login.second == literal(ALICE, Login.second.type),
        Login.token.in_([bindparam("t", ALICE), BOB]),
        Login.token.claim("jti") == secret,
        Login.second.claim("jti").in_([secret]),
    ):
        shown = shown_by(select(Login.id).where(condition), dialect)
        assert ALICE[-20:] not in shown
        assert ALICE[:30] not in shown
        assert secret not in shown


def test_the_same_doors_show_the_value_of_a_plain_column() -> None:
    """The control."""
    assert shown_by(select(Login.id).where(Login.name == "a secret id")).count("a secret id") >= 6


def test_a_callable_and_a_lambda_show_nothing_either(sqlite_session: Session) -> None:
    token = ALICE
    statement = lambda_stmt(lambda: select(Login.id).where(Login.token == token))
    assert sqlite_session.scalar(statement) == 1
    called = select(Login.id).where(Login.token == bindparam("t", callable_=lambda: ALICE))
    shown = repr(called.compile().params) + repr(called._generate_cache_key())
    assert ALICE[-20:] not in shown
    assert ALICE[-20:] not in repr(statement._resolved.compile().params)


def test_errors_and_logs_hold_fingerprints(sqlite_session: Session, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "sqlalchemy.engine")
    connection = sqlite_session.connection()
    broken: Any = select(sa.column("nowhere")).where(LOGINS.c.token == bindparam("t"))
    with pytest.raises(sa.exc.DBAPIError) as caught:
        connection.execute(broken, {"t": JWT(ALICE)})
    shown = caplog.text + str(caught.value) + repr(caught.value.params) + locals_shown_by(caught.value)
    assert ALICE[-20:] not in shown


@pytest.mark.each_server
def test_literal_binds_render_fingerprints_that_find_rows(session: Session) -> None:
    for condition in (Login.token == ALICE, Login.second.in_([ALICE]), Login.token == bindparam("t", ALICE)):
        statement = select(Login.id).where(condition, Login.token != BOB)
        dialect = session.get_bind().dialect
        text = str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
        assert session.connection().exec_driver_sql(text.replace("%", "%%")).scalars().all() == [1]
    with pytest.raises(CompileError):
        select(Login.id).where(Login.token == bindparam("t")).compile(compile_kwargs={"literal_binds": True})


def test_expanded_statement_finds_rows(sqlite_session: Session) -> None:
    compiled = (
        select(Login.id)
        .where(Login.token.in_([ALICE, BOB]), Login.second != BOB)
        .compile(dialect=sqlite_session.get_bind().dialect, compile_kwargs={"render_postcompile": True})
    )
    values = tuple(compiled.params[name] for name in compiled.positiontup or ())
    assert sqlite_session.connection().exec_driver_sql(str(compiled), values).scalars().all() == [1]


# -- pickles and copies ----------------------------------------------------------------------------------------------


def test_a_pickled_statement_holds_no_value_and_finds_rows(memory: sa.Engine) -> None:
    table = table_of(EncryptedJWT(fingerprints=["token", "jti"]))
    token: Any = table.c.token
    store(memory, table, [ALICE, BOB])
    statements = [
        select(table.c.id).where(token == ALICE),
        select(table.c.id).where(token.in_([ALICE, BOB]), token != BOB),
        select(table.c.id).where(token.claim("jti") == "a"),
        select(table.c.id).where(token == bindparam("t", ALICE)),
        select(table.c.id).where(token.in_([bindparam("t", ALICE), literal(NOBODY)])),
        select(table.c.id).where(token.claim("jti") == "a", token.claim("jti").is_not(None)),
    ]
    pickled = [pickle.dumps(one) for one in statements]
    with memory.begin() as connection:
        for data in pickled:
            assert ALICE.encode()[-20:] not in data
            for loaded in (pickle.loads(data), pickle.loads(pickle.dumps(pickle.loads(data)))):
                assert connection.scalars(loaded).all() == [1]
                assert ALICE[-20:] not in repr(loaded.compile().params)
        late = pickle.loads(pickle.dumps(select(table.c.id).where(token == bindparam("t"))))
        assert connection.scalars(late, {"t": BOB}).all() == [2]
        assert connection.scalars(copy.deepcopy(statements[0])).all() == [1]


def test_a_pickled_statement_is_refused_by_a_ring_with_a_key_that_it_does_not_know(memory: sa.Engine) -> None:
    """It would find no row under this key, and say nothing."""
    table = table_of(EncryptedJWT(fingerprints=["token", "jti"]))
    table.create(memory)
    data = pickle.dumps(select(table.c.id).where(table.c.token == ALICE))
    new = KeyRing([THIRD, SECOND, FIRST])
    with memory.begin() as connection:
        with monkeypatched_ring(KeyRing([SECOND])):
            assert connection.scalars(pickle.loads(data)).all() == []
        with monkeypatched_ring(new):
            connection.execute(table.insert(), [{"id": 1, "token": ALICE}])
            with pytest.raises(UnsupportedComparisonError, match=f"{new.active}.*build the statement again"):
                connection.scalars(pickle.loads(data))


def test_caches_outside_the_process_tell_values_apart() -> None:
    """The recipe for dogpile.cache makes a key of the values' repr: equal ones would mix up sessions."""

    def key_of(condition: Any) -> str:
        statement = select(Login.id).where(condition)
        key = statement._generate_cache_key()
        assert key is not None
        return key.to_offline_string({}, statement, {})

    assert key_of(Login.token == ALICE) != key_of(Login.token == BOB)
    assert key_of(Login.token == ALICE) == key_of(Login.token == ALICE)
    assert key_of(Login.token.claim("jti") == "a") != key_of(Login.token.claim("jti") == "b")
    set_default_keyring(KeyRing([FIRST]))
    assert key_of(Login.token == literal(ALICE)) != key_of(Login.token == literal(BOB))
