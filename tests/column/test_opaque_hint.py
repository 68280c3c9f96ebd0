"""Every message that a missing ``allow_opaque`` causes names the option."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from jwt_column import DecryptionError, EncryptedJWT, InvalidTokenError, KeyRing, ReencryptionError, audit
from migrations_helpers.engine.conversions import Adoption
from migrations_helpers.engine.options import Options
from migrations_helpers.engine.reencryption import convert_column
from migrations_helpers.engine.reflection import Subject
from tests.support.models import table_of
from tests.support.tokens import signed_token

RING = KeyRing.generate()
OPAQUE = "5f0c7a91b7f34d9e8a1c5f0c7a91b7f3"


@pytest.mark.parametrize("storage", ["binary", "text"])
def test_binding_loading_adopting_and_auditing_name_the_option(storage: Any) -> None:
    """With the option, each of them works; other refusals do not name it."""
    for plaintext in ("read", "write"):
        type_ = EncryptedJWT(RING, storage=storage, plaintext=plaintext, context="s.token")
        allowed = EncryptedJWT(
            RING, storage=storage, plaintext=plaintext, context="s.token", allow_opaque=True
        )
        engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
        table = table_of(type_, name="s")
        table.create(engine)
        raw = OPAQUE if storage == "text" else OPAQUE.encode()
        with engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO s VALUES (1, ?)", (raw,))
            stored: Any = sa.select(table.c.token)
            with pytest.raises(DecryptionError, match="needs allow_opaque=True on the column"):
                connection.execute(stored).all()
            with pytest.raises(InvalidTokenError, match="allow_opaque=True on the column takes"):
                connection.execute(table.insert().values(id=2, token=OPAQUE))
            with pytest.raises(InvalidTokenError) as caught:
                connection.execute(table.insert().values(id=2, token=f" {signed_token()}"))
            assert "allow_opaque" not in str(caught.value)
            assert (
                connection.execute(sa.select(sa.type_coerce(table.c.token, allowed))).scalar_one() == OPAQUE
            )
        (finding,) = [one for one in audit(engine, table).findings if one.code == "unreadable"]
        assert "allow_opaque=True" in finding.action
        with pytest.raises(ReencryptionError, match="need allow_opaque"):
            convert_column(engine, Subject("s", "token", type_), Adoption, Options())
        assert convert_column(engine, Subject("s", "token", allowed), Adoption, Options()).reencrypted == 1
