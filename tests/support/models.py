"""Tables and mapped classes that many tests need; a test that reads better with its own model has its own."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["mapped", "session_on", "store", "table_of"]


def table_of(
    type_: Any, *others: Any, name: str = "sessions", metadata: sa.MetaData | None = None, **options: Any
) -> sa.Table:
    """Return a table with an integer key that no database counts up, a column ``token``, and whatever else."""
    return sa.Table(
        name,
        sa.MetaData() if metadata is None else metadata,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("token", type_),
        *others,
        **options,
    )


def store(bind: sa.Engine | sa.Connection, table: sa.Table, tokens: Iterable[object]) -> None:
    """Create the table and write these tokens, with keys from 1."""
    rows = [{"id": number, "token": token} for number, token in enumerate(tokens, 1)]
    if isinstance(bind, sa.Engine):
        with bind.begin() as connection:
            table.create(connection)
            connection.execute(table.insert(), rows)
    else:
        table.create(bind)
        bind.execute(table.insert(), rows)


def mapped(table: str = "logins", *parts: Any, **attributes: Any) -> Any:
    """Return a class in a registry of its own: a key ``id``, a nullable column of each type, anything else as it is.

    Args:
        table: The name of its table.
        parts: Indexes and constraints.
        attributes: Types, or what a mapped class has, by name.
    """

    class Base(DeclarativeBase): ...

    def attribute(given: Any) -> Any:
        is_type = isinstance(given, sa.types.TypeEngine | type)
        return mapped_column(given) if is_type else given

    content = {
        "__tablename__": table,
        "__table_args__": parts,
        "id": mapped_column(sa.Integer, primary_key=True),
    }
    content |= {name: attribute(given) for name, given in attributes.items()}
    return type("Model", (Base,), content)


@contextmanager
def session_on(bind: sa.Engine | sa.Connection, *rows: Any, **options: Any) -> Iterator[Session]:
    """Create the tables of these objects, store the objects, and give the session that has them."""
    for row in rows:
        row.metadata.create_all(bind)
    with Session(bind, **options) as session:
        session.add_all(rows)
        session.commit()
        yield session
