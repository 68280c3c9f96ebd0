"""One run over the schemas of all tenants: one report, and a tenant that fails stops no other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from jwt_column.errors import ConfigurationError, ReencryptionError
from migrations_helpers import reencrypt
from migrations_helpers.engine.calling import call
from tests.support.workload import NEW, OLD, column_type, create_sessions, seal, token

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.workload import Sessions

ROWS = 30


class Tenants:
    """Schemas with the same table: those of PostgreSQL, databases of MariaDB, attached files of SQLite."""

    def __init__(self, engine: sa.Engine, directory: Path) -> None:
        self.engine = engine
        prefix = f"{engine.url.database}_" if engine.dialect.name == "mariadb" else ""
        self.names = [f"{prefix}{name}" for name in ("tena", "tenb", "tenc")]
        if engine.dialect.name == "sqlite":

            @sa.event.listens_for(engine, "connect")
            def attach(connection: Any, _: Any) -> None:
                for name in self.names:
                    connection.execute(f"ATTACH '{directory / name}' AS {name}")

            engine.dispose()
        else:
            with engine.begin() as connection:
                for name in self.names:
                    connection.exec_driver_sql(f"CREATE SCHEMA {name}")
        self.sessions: dict[str, Sessions] = {
            name: create_sessions(engine, ROWS + place, schema=name) for place, name in enumerate(self.names)
        }
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE tenants (name VARCHAR(60))")
            for name in self.names:
                connection.exec_driver_sql(f"INSERT INTO tenants VALUES ('{name}')")

    def reencrypt(self, **options: Any) -> Any:
        return reencrypt(self.engine, "sessions", "token", type_=column_type(), batch_size=10, **options)

    def keys(self) -> list[set[str | None]]:
        """Return the key ids in use, tenant by tenant."""
        return [{key for key, _ in sessions.census(self.engine)} for sessions in self.sessions.values()]

    def close(self) -> None:
        if self.engine.dialect.name == "mariadb":
            with self.engine.begin() as connection:
                for name in self.names:
                    connection.exec_driver_sql(f"DROP DATABASE {name}")


@pytest.fixture
def tenants(engine: sa.Engine, tmp_path: Path) -> Iterator[Tenants]:
    found = Tenants(engine, tmp_path)
    try:
        yield found
    finally:
        found.close()


TOTAL = 3 * ROWS + 3


def test_one_report_of_all(tenants: Tenants) -> None:
    report = tenants.reencrypt(schemas=tenants.names, verify="tokens")
    assert report.is_complete
    assert (report.table, report.total, report.reencrypted, report.remaining) == ("sessions", TOTAL, TOTAL, 0)
    assert report.by_key_id == {OLD: TOTAL}
    assert report.key_id == NEW
    assert [one.reencrypted for one in report.schemas.values()] == [ROWS, ROWS + 1, ROWS + 2]
    assert list(report.schemas) == tenants.names
    assert report.schemas[tenants.names[0]].table == f"{tenants.names[0]}.sessions"
    assert report.tokens.is_same
    assert report.tokens.unchanged == report.verified == TOTAL
    assert tenants.keys() == [{NEW}] * 3
    for sessions in tenants.sessions.values():
        assert sessions.decrypted(tenants.engine) == sessions.tokens
    json.dumps(report.to_dict())


def test_a_query_or_a_function_names_the_schemas(tenants: Tenants) -> None:
    query: Any = sa.select(sa.column("name")).select_from(sa.table("tenants")).order_by("name")
    first = tenants.names[0]
    for schemas in (
        query,
        sa.text("SELECT name FROM tenants ORDER BY name"),
        lambda connection: connection.scalars(query),
        lambda: iter([*tenants.names, first]),
        (*tenants.names, first),
    ):
        report = tenants.reencrypt(schemas=schemas, dry_run=True)
        assert list(report.schemas) == tenants.names
        assert report.reencrypted == TOTAL
    with tenants.engine.connect() as connection:
        # The connection that lists them does the work too, and no transaction is left open before.
        report = reencrypt(connection, "sessions", "token", type_=column_type(), schemas=query)
    assert report.reencrypted == TOTAL


def test_a_tenant_that_fails_stops_no_other(tenants: Tenants) -> None:
    first, second, third = tenants.names
    with tenants.engine.begin() as connection:
        connection.execute(sa.schema.DropTable(tenants.sessions[second].table))
    tenants.sessions[third].put(tenants.engine, (5,), b"\x01 no envelope")
    with pytest.raises(ReencryptionError, match="2 of 3 schemas were not finished") as caught:
        tenants.reencrypt(schemas=tenants.names)
    report: Any = caught.value.report
    assert caught.value.reason == "schemas"
    assert set(report.failures) == {second, third}
    assert f"there is no table {second}.sessions" in report.failures[second]
    assert "1 row cannot be read" in report.failures[third]
    assert report.undecryptable == [(third, 5)]
    assert (report.reencrypted, report.remaining) == (ROWS + ROWS + 1, 1)
    assert not report.is_complete
    assert report.schemas[first].is_complete
    json.dumps(report.to_dict())


def test_no_tenant_is_no_failure(tenants: Tenants) -> None:
    assert tenants.reencrypt(schemas=[]).is_complete


def test_schemas_that_are_none_are_refused(tenants: Tenants) -> None:
    for options, message in (
        ({"schemas": "tena"}, "write \\['tena'\\]"),
        ({"schemas": 5}, "not int"),
        ({"schemas": ["tena", None]}, "NoneType where the name"),
        ({"schemas": lambda: "tena"}, "returns a list of names, and returned str"),
        ({"schemas": lambda connection: 5}, "returns a list of names, and returned int"),
        ({"schemas": ["tena"], "schema": "tenb"}, "one of the two"),
        ({"schemas": sa.text("SELECT nothing FROM nowhere")}, "was refused"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            tenants.reencrypt(**options)
    assert tenants.keys() == [{OLD}] * 3


def test_operations_go_through_all_schemas(tenants: Tenants) -> None:
    type_ = column_type()
    with tenants.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"transaction_per_migration": True})
        op: Any = Operations(context)

        def migrate(change: Any) -> Any:
            with context.begin_transaction(_per_migration=True):
                return change()

        query = sa.text("SELECT name FROM tenants")
        gate = lambda: op.ensure_jwt_column_current("sessions", "token", type_=type_, schemas=query)  # noqa: E731
        with pytest.raises(ReencryptionError, match="3 schemas are behind"):
            migrate(gate)
        report = migrate(lambda: op.reencrypt_jwt_column("sessions", "token", type_=type_, schemas=query))
        assert report.reencrypted == TOTAL
        migrate(gate)


def test_a_tenant_with_another_layout_stops_no_other(tenants: Tenants) -> None:
    first, second, _ = tenants.names
    richer = seal(token(5), fingerprints=["jti"])
    tenants.sessions[second].put(tenants.engine, (5,), richer)
    with pytest.raises(ReencryptionError, match="1 of 2 schemas were not finished") as caught:
        tenants.reencrypt(schemas=[first, second])
    report: Any = caught.value.report
    assert "the fingerprint 'jti'" in report.failures[second]
    assert tenants.keys()[0] == {NEW}


def test_functions_get_an_argument_if_they_take_one() -> None:
    assert call(lambda: 1, "unused") == 1
    assert call(lambda given: given, 2) == 2
    assert call(lambda *given: given, 3) == (3,)
    # A function of C tells nothing of its parameters.
    assert call(dict, 4) == {}
