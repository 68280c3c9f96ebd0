"""The audit finds envelopes that share a nonce, by SQL alone and on a host without keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from jwt_column import EncryptedJWT, KeyRing, audit
from tests.support.models import store, table_of
from tests.support.tokens import signed_token

if TYPE_CHECKING:
    from jwt_column.format.envelope import Storage

RING = KeyRing.generate()


@pytest.mark.parametrize("storage", ["binary", "text"])
@pytest.mark.parametrize("options", [{}, {"fingerprints": ["jti"], "expose_expiry": True}])
def test_rows_of_copied_processes_are_found(
    engine: sa.Engine, storage: Storage, options: dict[str, Any]
) -> None:
    type_ = EncryptedJWT(RING, storage=storage, **options)
    table = table_of(type_)
    store(engine, table, [signed_token(sub=str(number), jti="x") for number in range(1, 7)])
    raw: Any = sa.type_coerce(table.c.token, sa.LargeBinary() if storage == "binary" else sa.Text())
    length = type_.spec.layout.header_length
    start, end = (length, length + 24) if storage == "binary" else (3 + 2 * length, 3 + 2 * length + 32)
    with engine.begin() as connection:
        stored: dict[int, Any] = dict(connection.execute(sa.select(table.c.id, raw)).all())

        def overwrite(number: int, value: object) -> None:
            statement = sa.update(table).where(table.c.id == number)
            connection.execute(statement.values({"token": sa.literal(value, raw.type)}))

        # Row 2 has the nonce of row 1. Row 4 is a copy of row 3, which reveals nothing: the control.
        overwrite(2, stored[2][:start] + stored[1][start:end] + stored[2][end:])
        overwrite(4, stored[3])
    report = audit(engine, table.c.token, active=RING.active)
    found = [finding for finding in report.findings if finding.code == "nonce-repeated"]
    assert [(finding.count, finding.primary_keys) for finding in found] == [(2, ((1,), (2,)))]
    assert not report.ok
    with engine.begin() as connection:
        connection.execute(sa.delete(table).where(table.c.id == 2))
    assert "nonce-repeated" not in {
        one.code for one in audit(engine, table.c.token, active=RING.active).findings
    }
