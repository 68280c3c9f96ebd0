"""A JSON column becomes an encrypted one by the statements of docs/how-to/encrypt-json.md, while others write."""

from __future__ import annotations

import re
import textwrap
import threading
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy import event, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from jwt_column import EncryptedJSON, KeyRing
from tests.support.docs_examples import ROOT
from tests.support.workload import every_server

_BLOCK: Final = re.compile(r"^( *)```py\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def block(word: str) -> str:
    """Return the one block of the page that has a word in it."""
    page = (ROOT / "docs/how-to/encrypt-json.md").read_text(encoding="utf-8")
    (found,) = (code for _, code in _BLOCK.findall(page) if word in code)
    return textwrap.dedent(found)


def model_of(old: Any, **options: Any) -> Any:
    class Base(DeclarativeBase): ...

    class OAuthToken(Base):
        __tablename__ = "oauth_tokens"
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int] = mapped_column(default=1)
        token: Mapped[dict[str, Any] | None] = mapped_column(MutableDict.as_mutable(old))
        response: Mapped[dict[str, Any] | None] = mapped_column(
            EncryptedJSON(KeyRing.generate(), fingerprints=["access_token"], **options)
        )

    return OAuthToken


@pytest.mark.each_server
@every_server
@pytest.mark.parametrize("bound_to", [(), ("user_id",)], ids=["free", "bound"])
def test_a_json_column_is_copied_whole_while_others_write(
    engine: sa.Engine, bound_to: tuple[str, ...]
) -> None:
    """Among the rows are one that is locked, and a ``null`` of JSON, which is not NULL."""
    model = model_of(JSONB() if engine.dialect.name == "postgresql" else sa.JSON(), bound_to=bound_to)
    table = model.__table__
    model.metadata.create_all(engine)
    with engine.begin() as connection:
        rows: list[dict[str, Any]] = [
            {"id": n, "user_id": 1, "token": {"access_token": f"at-{n}"}} for n in range(1, 1201)
        ]
        connection.execute(sa.insert(table), [*rows, {"id": 2000, "user_id": 1, "token": None}])
        assert connection.scalar(sa.select(sa.func.count()).where(table.c.token.is_(None))) == 0
    names: dict[str, Any] = {"OAuthToken": model, "select": select, "event": event}
    exec(block("def write_both"), names)
    with Session(engine) as writer, Session(engine) as session:
        row = writer.scalars(select(model).where(model.id == 1200).with_for_update()).one()
        row.token["more"] = "late"
        writer.flush()
        copying = threading.Thread(target=exec, args=(block("while rows"), names | {"session": session}))
        copying.start()
        copying.join(1)
        assert copying.is_alive()  # at the row that is locked
        writer.commit()
        copying.join(60)
        assert not copying.is_alive()
        exec(block("assert not left"), names | {"session": session})
    with Session(engine) as session:
        found = {row.id: (row.token, row.response) for row in session.scalars(select(model))}
        assert len(found) == 1201
        assert all(token == response for token, response in found.values())
        assert found[1200][1] == {"access_token": "at-1200", "more": "late"}
        assert found[2000] == (None, None)


def test_both_columns_are_written_by_every_flush(memory: sa.Engine) -> None:
    model = model_of(sa.JSON())
    model.metadata.create_all(memory)
    exec(block("def write_both"), {"OAuthToken": model, "event": event})
    with Session(memory) as session:
        row = model(id=1, token={"access_token": "a"})
        session.add(row)
        session.commit()
        assert row.response == {"access_token": "a"}
        row.token["more"] = 1
        session.commit()
        assert row.response == {"access_token": "a", "more": 1}
        row.token = None
        session.commit()
        assert row.response is None
