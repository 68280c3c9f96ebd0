"""Paging by a composite key: each database finds a range by its index, and statements stay small."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql

from jwt_column import EncryptedJWT, KeyRing, encrypt_token, purge_expired
from jwt_column.database.key_order import KeyOrder, KeyRange, key_type, sampled
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.each_server

ROWS = 6_000
RING = KeyRing.generate()
LOGINS = sa.Table(
    "logins",
    sa.MetaData(),
    sa.Column("tenant", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("token", EncryptedJWT(RING, expose_expiry=True)),
)


@pytest.fixture
def connection(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A table of 6,000 rows with a composite key; the token of every second row has expired."""
    stored = [
        encrypt_token(signed_token(exp=exp), RING, context="logins.token", expose_expiry=True)
        for exp in (1_000, 4_000_000_000)
    ]
    raw = sa.table("logins", sa.column("tenant"), sa.column("id"), sa.column("token", sa.LargeBinary))
    with engine.connect() as connection:
        LOGINS.create(connection)
        connection.execute(
            raw.insert(), [{"tenant": n % 3, "id": n, "token": stored[n // 3 % 2]} for n in range(ROWS)]
        )
        connection.commit()
        if engine.dialect.name != "sqlite":
            connection.exec_driver_sql(
                "ANALYZE logins" if engine.dialect.name == "postgresql" else "ANALYZE TABLE logins"
            ).close()
            connection.commit()
        yield connection


def order_of(connection: sa.Connection) -> KeyOrder:
    return KeyOrder(LOGINS, tuple(LOGINS.primary_key), connection.dialect.name)


def rows_read(connection: sa.Connection) -> int:
    """Return how many rows of the table this session has read so far, by the server's own count."""
    if connection.dialect.name == "postgresql":
        statement = (
            "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'logins'"
        )
    else:
        statement = (
            "SELECT SUM(variable_value) FROM information_schema.session_status WHERE variable_name IN "
            "('handler_read_first', 'handler_read_key', 'handler_read_next', 'handler_read_rnd_next')"
        )
    return int(connection.exec_driver_sql(statement).scalar() or 0)


def page(connection: sa.Connection, order: KeyOrder) -> int:
    """Read the table in pages of 500 and return how many rows that has read; see that no row is missed."""
    before, keys = rows_read(connection), KeyRange()
    found: list[Any] = []
    while rows := connection.execute(order.batch((), keys, 500)).all():
        found += rows
        keys = KeyRange(after=order.key_of(rows[-1]))
    assert found == sorted({(n % 3, n) for n in range(ROWS)})
    return rows_read(connection) - before


def test_a_page_reads_its_own_rows_only(connection: sa.Connection) -> None:
    """The other database's spelling is the control: it reads the table once and again."""
    order = order_of(connection)
    if order.dialect == "sqlite":
        plans = []
        for one in (order, replace(order, dialect="mysql")):
            statement = one.batch((), KeyRange((1, 3_000), (2, 5_000)), 500)
            sql = str(statement.compile(connection, compile_kwargs={"literal_binds": True}))
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}").all()
            plans.append(" ".join(row.detail for row in plan))
        assert "SEARCH logins" in plans[0]
        assert "(tenant,id)>(?,?)" in plans[0]
        assert "(tenant,id)>(?,?)" not in plans[1]
        return
    other = {"postgresql": "mysql"}.get(order.dialect, "postgresql")
    # MariaDB looks a row up once more to begin each page.
    assert page(connection, order) <= ROWS + 100
    assert page(connection, replace(order, dialect=other)) > 3 * ROWS


def test_ranges_and_keys_select_the_same_rows_in_either_spelling(connection: sa.Connection) -> None:
    """Row values and chains of OR are two spellings of one condition."""
    every = sorted({(n % 3, n) for n in range(ROWS)})
    wanted = [every[0], every[1_999], every[-1]]
    for dialect in ("postgresql", "mysql"):
        order = replace(order_of(connection), dialect=dialect)
        for after, up_to in ((None, (1, 1)), ((0, 5_997), (1, 4)), ((2, 5_990), None), (None, None)):
            found = connection.execute(order.batch((), KeyRange(after, up_to), ROWS)).all()
            assert found == [
                key for key in every if (after is None or key > after) and (up_to is None or key <= up_to)
            ]
        assert connection.execute(order.batch((), KeyRange(), ROWS, order.among(wanted))).all() == wanted
        last = connection.execute(order.last()).one()
        assert last == every[-1]


def test_a_purge_reads_each_row_once_and_sends_at_most_999_parameters(connection: sa.Connection) -> None:
    """40 batches once read 322,500 rows to delete 20,000 of 40,000, with 1,001 parameters each."""
    sent: list[int] = []

    def count(_: Any, __: Any, ___: str, parameters: Any, *____: Any) -> None:
        sent.append(len(parameters))

    sa.event.listen(connection, "before_cursor_execute", count)
    before = 0 if connection.dialect.name == "sqlite" else rows_read(connection)
    assert purge_expired(connection, LOGINS.c.token) == ROWS // 2
    if connection.dialect.name != "sqlite":
        # Once to find the expired rows, and these again to delete them; of a small table PostgreSQL reads a tenant.
        assert rows_read(connection) - before < 4 * ROWS
    sa.event.remove(connection, "before_cursor_execute", count)
    # 500 keys of one tenant, once each.
    assert 500 < max(sent) <= 510
    assert connection.scalar(sa.select(sa.func.count()).select_from(LOGINS)) == ROWS // 2


@pytest.mark.parametrize("columns", [1, 2, 3, 32])
@pytest.mark.parametrize("same", [1, 7, 2_000])
def test_keys_are_cut_into_statements_that_are_planned_fast(columns: int, same: int) -> None:
    """PostgreSQL planned 450 alternatives in 119 ms and ran them in 1. The control is one statement for all keys."""
    table = sa.table("t", *(sa.column(f"k{n}", sa.Integer) for n in range(columns)))
    order = KeyOrder(table, tuple(table.c), "postgresql")
    # With 32 columns that all differ, the control alone would be compiled for seconds.
    count = 400 if columns == 32 and same == 1 else 2_000
    keys = [(n // same,) * (columns - 1) + (n,) for n in range(count)]
    parts = list(order.portions(keys))
    assert [key for part in parts for key in part] == keys

    def sizes(part: Any) -> tuple[int, int]:
        compiled = order.among(part).compile(compile_kwargs={"render_postcompile": True})
        return len(compiled.params), str(compiled).count(" OR ") + 1

    assert all(parameters <= 999 and alternatives <= 50 for parameters, alternatives in map(sizes, parts))
    parameters, alternatives = sizes(keys)
    assert parameters > 999
    assert (alternatives > 50) == (columns > 1 and same < 2_000)
    if columns < 4 and same == 2_000:
        assert len(parts) == 3
    assert list(order.portions([])) == []


def test_a_purge_of_keys_of_many_tenants_leaves_none(engine: sa.Engine) -> None:
    table = sa.Table(
        "devices",
        sa.MetaData(),
        sa.Column("owner", sa.String(20), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("token", EncryptedJWT(RING, expose_expiry=True)),
    )
    expired, valid = signed_token(exp=1_000), signed_token(exp=4_000_000_000)
    sent: list[str] = []
    with engine.begin() as connection:
        table.create(connection)
        rows = [
            {"owner": f"o{n // 2}", "number": n, "token": expired if n % 5 else valid} for n in range(1_500)
        ]
        connection.execute(table.insert(), rows)
        sa.event.listen(engine, "before_cursor_execute", lambda _c, _k, sql, *_: sent.append(sql))
        assert purge_expired(connection, table.c.token) == 1_200
        assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 300
    assert max(sql.count("owner =") for sql in sent if sql.startswith("DELETE")) == 50


def test_a_sample_is_spread_over_the_table(memory: sa.Engine) -> None:
    """Every tenth of the table gives a tenth of the sample."""
    numbers = sa.table("numbers", sa.column("n", sa.Integer))
    with memory.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE numbers (n INTEGER PRIMARY KEY)")
        connection.execute(numbers.insert(), [{"n": n} for n in range(1, 1_001)])
        order = KeyOrder(numbers, (numbers.c.n,), "sqlite")
        starts = [(keys.after, rows) for keys, rows in sampled(connection, order, 1_000, 50)]
        assert starts == [(None if part == 0 else (100 * part,), 5) for part in range(10)]
        # Fewer rows than were counted: the sample ends with the table.
        assert len(list(sampled(connection, order, 2_000, 50))) == 6


def test_a_key_goes_back_under_a_type_that_keeps_it() -> None:
    """Not with a collation that the server would compare by, and in SQLite under its own type."""
    domain = postgresql.DOMAIN("name", sa.String(20, collation="de-x-icu"))
    kept = key_type(domain, "postgresql")
    assert isinstance(kept, sa.String)
    assert (kept.length, kept.collation) == (20, None)
    number = mysql.BIGINT(unsigned=True)
    assert key_type(number, "mysql") is number
    assert key_type(sa.Uuid(), "sqlite") is None
