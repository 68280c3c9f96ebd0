"""Many rows: inserting and selecting them by Core and ORM, against the same table with a plain Text column."""

from __future__ import annotations

import gc
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column

from tests.benchmarks.measure import Figure, Table, Work, compare
from tests.benchmarks.subjects import BINARY, TEXT, encrypted_jwt, make_tokens, peer_types
from tests.support.databases import KINDS, use_given_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.types import TypeEngine

__all__ = ["measure_postgresql", "measure_sqlite"]

_SQLITE_LIMITS: Final = {"Core insert": 2.2, "Core select": 4.0, "ORM insert": 1.2, "ORM select": 1.3}


class _Column:
    """A table of its own for a column of one type, and a class that is mapped to it."""

    def __init__(self, engine: sa.Engine, name: str, type_: TypeEngine[Any], tokens: list[str]) -> None:
        class Base(DeclarativeBase):
            pass

        columns = {"id": mapped_column(sa.Integer, primary_key=True), "token": mapped_column(type_)}
        self._entity: Any = type(name, (Base,), {"__tablename__": name, **columns})
        self._table = Base.metadata.tables[name]
        self._engine = engine
        # The database numbers the rows, as it does for most applications.
        self._rows = [{"token": token} for token in tokens]
        Base.metadata.create_all(engine)

    @property
    def core_insert(self) -> Work:
        """The work of one INSERT with many parameters."""

        def run() -> None:
            with self._engine.begin() as connection:
                connection.execute(self._table.insert(), self._rows)

        return Work(run, self._delete)

    @property
    def core_select(self) -> Work:
        """The work of reading every row of a filled table."""

        def run() -> None:
            with self._engine.connect() as connection:
                connection.execute(self._table.select()).all()

        return Work(run, gc.collect)

    @property
    def orm_insert(self) -> Work:
        """The work of making and flushing objects."""

        def run() -> None:
            with Session(self._engine) as session:
                session.add_all([self._entity(**row) for row in self._rows])
                session.commit()

        return Work(run, self._delete)

    @property
    def orm_select(self) -> Work:
        """The work of reading every object of a filled table into a new session."""

        def run() -> None:
            with Session(self._engine) as session:
                session.scalars(sa.select(self._entity)).all()

        return Work(run, gc.collect)

    def _delete(self) -> None:
        with self._engine.begin() as connection:
            connection.execute(self._table.delete())
        # What the sample before left behind is not this one's affair.
        gc.collect()

    def check(self) -> None:
        """Make sure that the table gives back what was put in."""
        with self._engine.connect() as connection:
            stored = connection.execute(sa.select(self._table.c.token).order_by(self._table.c.id)).scalars()
            assert stored.all() == [row["token"] for row in self._rows]


def _measure(
    engine: sa.Engine, rows: int, samples: int, clock: Callable[[], float], limits: Mapping[str, float]
) -> list[Figure]:
    """Measure every type in this database."""
    tokens = make_tokens("RS256", 1000, rows)
    plain = _Column(engine, "plain_text", sa.Text(), tokens)
    types = {BINARY: encrypted_jwt(), TEXT: encrypted_jwt(storage="text"), **peer_types()}
    figures = []
    for number, (subject, type_) in enumerate(types.items()):
        column = _Column(engine, f"encrypted_{number}", type_, tokens)

        for what, floor, work in (
            ("Core insert", plain.core_insert, column.core_insert),
            ("Core select", plain.core_select, column.core_select),
            ("ORM insert", plain.orm_insert, column.orm_insert),
            ("ORM select", plain.orm_select, column.orm_select),
        ):
            measured = compare(floor, work, samples=samples, clock=clock)
            if subject == BINARY:
                figures.append(Figure.of_floor(measured, what, "ms"))
            at_most = limits.get(what) if subject == BINARY else None
            figures.append(Figure.of(measured, subject, what, at_most))
        column.check()
    return figures


def measure_sqlite(rows: int, samples: int) -> Table:
    """Measure in a database file in WAL mode, as servers use it; the CPU time of this process is all there is."""
    with tempfile.TemporaryDirectory() as directory:
        engine = sa.create_engine(f"sqlite:///{Path(directory) / 'benchmark.sqlite3'}")
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        figures = _measure(engine, rows, samples, time.process_time, _SQLITE_LIMITS)
        engine.dispose()
    return Table(f"{rows:,} rows of 1 KB on SQLite, against a plain Text column (CPU time)", figures)


def measure_postgresql(url: str, rows: int, samples: int) -> Table:
    """Measure in a new database on the server of a URL; wall time, because the server does a part of the work."""
    kind = KINDS["postgresql"]
    with use_given_url(kind, {kind.url_variable: url}).fresh_database() as database:
        engine = sa.create_engine(database.url())
        figures = _measure(engine, rows, samples, time.perf_counter, {})
        engine.dispose()
    return Table(f"{rows:,} rows of 1 KB on PostgreSQL, against a plain Text column (wall time)", figures)
