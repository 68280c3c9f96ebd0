"""A value that its column cannot hold is never written, whichever way the run was started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Column, Integer, LargeBinary, MetaData, NullPool, Table, create_engine, insert, select

from jwt_column import EncryptedJWT, KeyRing, ReencryptionError, encrypt_token
from migrations_helpers import reencrypt
from migrations_helpers.engine.conversions import Adoption
from migrations_helpers.engine.options import Options
from migrations_helpers.engine.reencryption import convert_column
from migrations_helpers.engine.reflection import Subject
from tests.support.databases import SYNC_DRIVERS, Database

if TYPE_CHECKING:
    from collections.abc import Callable

    from migrations_helpers import ReencryptionReport

RING = KeyRing([bytes(range(32))])
# With its envelope it fills a BLOB of MySQL and MariaDB, and grows out of it with one field more.
LONG = "~" * 65_480
ADOPTED = EncryptedJWT(RING, context="sessions.token", allow_opaque=True, fingerprints=["token"])
WIDER = EncryptedJWT(RING, allow_opaque=True, fingerprints=["token", "jti"])


@pytest.mark.parametrize("driver", SYNC_DRIVERS["mariadb"])
@pytest.mark.parametrize("way", ["adopt", "reencrypt"])
def test_value_that_would_be_cut_off_is_listed_and_left(
    mariadb_database: Database, driver: str, way: str
) -> None:
    """MariaDB cuts it off without a word in an UPDATE of a join, strict or not."""
    pytest.importorskip({"mysqldb": "MySQLdb", "mariadbconnector": "mariadb"}.get(driver, driver))
    engine = create_engine(mariadb_database.url(driver), poolclass=NullPool)
    table = Table(
        "sessions", MetaData(), Column("id", Integer, primary_key=True), Column("token", LargeBinary)
    )
    sealed = encrypt_token(LONG, RING, context="sessions.token", allow_opaque=True)
    stored = LONG.encode() if way == "adopt" else sealed
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(insert(table).values(id=1, token=stored))
    runs: dict[str, Callable[[], ReencryptionReport]] = {
        "adopt": lambda: convert_column(engine, Subject("sessions", "token", ADOPTED), Adoption, Options()),
        "reencrypt": lambda: reencrypt(engine, "sessions", "token", type_=WIDER),
    }
    with pytest.raises(ReencryptionError) as caught:
        runs[way]()
    report: Any = caught.value.report
    assert (report.unwritable, report.undecryptable, report.unwritable_count) == ([1], [], 1)
    assert "1 row can be read, but does not fit the column or its type" in str(caught.value)
    with engine.connect() as connection:
        assert connection.execute(select(table.c.token)).scalar_one() == stored
