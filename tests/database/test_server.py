"""The server behind a connection is named as it names itself, on every database."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

import pytest
import sqlalchemy as sa

from jwt_column.database.drivers import own_connection, wrapped_errors
from jwt_column.database.server import public_url, server_of

if TYPE_CHECKING:
    from tests.support.databases import Database

pytestmark = pytest.mark.each_server

_PRODUCTS: Final = {"postgresql": "PostgreSQL", "mariadb": "MariaDB", "mysql": "MariaDB", "sqlite": "SQLite"}


def test_host_name_and_version_are_the_servers(database: Database, engine: sa.Engine) -> None:
    with engine.connect() as connection:
        found = server_of(connection)
        transaction = connection.in_transaction()
    assert not transaction
    assert found["name"] == engine.url.database
    assert found["version"].startswith(f"{_PRODUCTS[engine.dialect.name]} ")
    assert found["version"][-1].isalnum()
    if engine.dialect.name == "sqlite":
        assert "host" not in found
    else:
        assert found["host"] == "local socket" or found["host"].rpartition(":")[2].isdigit()


def test_a_server_that_refuses_ends_no_transaction_of_the_caller(engine: sa.Engine) -> None:
    """Control: after a failed statement, PostgreSQL refuses every other one in the transaction."""
    with engine.connect() as connection, connection.begin():
        connection.execute(sa.text("CREATE TABLE server_probe (id INTEGER)"))
        assert server_of(connection)
        assert connection.execute(sa.text("SELECT count(*) FROM server_probe")).scalar() == 0
        connection.execute(sa.text("DROP TABLE server_probe"))


def test_a_report_names_neither_user_nor_password_nor_query() -> None:
    url = sa.make_url("postgresql+psycopg://alice:s3cr3t@db.example.org:5432/app?password=s3cr3t")
    assert public_url(url) == "postgresql+psycopg://db.example.org:5432/app"
    # The control: SQLAlchemy's own way leaves the user there.
    assert "alice" in url.set(username=None, password=None, query={}).render_as_string()
    assert public_url(sa.make_url("sqlite:////var/app.db")) == "sqlite:////var/app.db"


def test_a_server_that_does_not_answer_is_left_out(memory: sa.Engine) -> None:
    """As one that refuses a function to the role."""
    with memory.connect() as connection:
        connection.dialect.name = "mysql"
        assert server_of(connection) == {}


def test_memory_and_unknown_databases() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        assert server_of(connection)["name"] == "in memory"
        connection.dialect.name = "other"
        assert server_of(connection) == {}
    engine.dispose()


def test_a_connection_of_ours_goes_back_at_once_and_one_that_is_closed_is_left_alone(
    memory: sa.Engine,
) -> None:
    """Not when the garbage is collected: the frames of an error keep it, and a pool may have one connection only."""
    with own_connection(memory) as open_one, own_connection(memory) as closed_one:
        closed_one.close()
        within = [open_one.closed, closed_one.closed]
    assert [*within, open_one.closed, closed_one.closed] == [False, True, True, True]


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (sqlite3.OperationalError("database is locked"), False),
        (sqlite3.ProgrammingError("Cannot operate on a closed database."), True),
    ],
)
def test_an_error_past_sqlalchemy_gives_up_the_connection_only_if_it_is_lost(
    memory: sa.Engine, error: sqlite3.Error, is_lost: bool
) -> None:
    with memory.connect() as connection:
        with pytest.raises(sa.exc.DBAPIError) as caught, wrapped_errors(connection):
            raise error
        assert (caught.value.connection_invalidated, connection.invalidated) == (is_lost, is_lost)
