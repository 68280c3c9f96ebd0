"""A column's layout changes while two releases of an application write and look rows up: no look-up misses a row.

The steps are those of docs/how-to/change-a-columns-options.md.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from jwt_column import EncryptedJWT, FingerprintIndex, KeyRing
from migrations_helpers import reencrypt
from tests.support.tokens import signed_token
from tests.support.workload import PATIENCE, every_server

if TYPE_CHECKING:
    from collections.abc import Callable

RING = KeyRing.generate()
OLD: dict[str, Any] = {"fingerprints": ["jti"]}
NEW: dict[str, Any] = {"fingerprints": ["jti"], "expose_expiry": True}

ROWS = 1_500


def table_of(*, indexed: bool = True, **options: Any) -> sa.Table:
    type_ = EncryptedJWT(RING, **options)
    indexes = [FingerprintIndex("ix_own", "token", "jti", unique=True)] if indexed else []
    id_ = sa.Column("id", sa.Integer, primary_key=True)
    return sa.Table("sessions", sa.MetaData(), id_, sa.Column("token", type_), *indexes)


def transition(own: dict[str, Any], other: dict[str, Any], names: tuple[str, str]) -> sa.Table:
    """Return the table of a release that reads both layouts, with the index of each."""
    table = table_of(indexed=False, **own, previous=[other])
    FingerprintIndex(names[0], table.c.token, "jti", unique=True)
    FingerprintIndex(names[1], table.c.token, "jti", unique=True, layout=other)
    return table


FIRST = transition(OLD, NEW, ("ix_old", "ix_new"))
SECOND = transition(NEW, OLD, ("ix_new", "ix_old"))


class Traffic:
    """Threads that insert, and threads that look up what was inserted."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.known = [f"{number}" for number in range(ROWS)]
        self.errors: list[BaseException] = []
        self.lookups: dict[str, int] = {}
        self.misses: dict[str, int] = {}
        self.written: dict[str, int] = {}

    def _start(self, work: Callable[[sa.Connection, random.Random], None]) -> threading.Event:
        stop = threading.Event()

        def loop() -> None:
            try:
                with self._engine.connect() as connection:
                    chance = random.Random(len(self._threads))
                    while not stop.is_set() and not self._stop.is_set():
                        work(connection, chance)
            except BaseException as error:  # noqa: BLE001 - shown by the test
                self.errors.append(error)

        thread = threading.Thread(target=loop)
        self._threads.append(thread)
        thread.start()
        return stop

    def write(self, name: str, table: sa.Table) -> threading.Event:
        self.written[name] = 0

        def work(connection: sa.Connection, _: random.Random) -> None:
            jti = f"{name} {self.written[name]}"
            connection.execute(table.insert(), {"token": signed_token(jti=jti, exp=2_000_000_000)})
            connection.commit()
            self.known.append(jti)
            self.written[name] += 1
            time.sleep(0.002)

        return self._start(work)

    def read(self, name: str, table: sa.Table) -> threading.Event:
        self.lookups[name] = self.misses[name] = 0

        def work(connection: sa.Connection, chance: random.Random) -> None:
            wanted = table.c.token.claim("jti") == chance.choice(self.known)
            found = connection.scalars(sa.select(table.c.id).where(wanted)).all()
            connection.rollback()
            self.lookups[name] += 1
            self.misses[name] += len(found) != 1

        return self._start(work)

    def await_more_than(self, number: int) -> None:
        """Wait until each thread has written, or looked up, more rows than this."""
        deadline = time.monotonic() + PATIENCE
        while min([*self.written.values(), *self.lookups.values()]) <= number and not self.errors:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def finish(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert self.errors == []


@every_server
@pytest.mark.matrix
def test_no_look_up_misses_a_row(engine: sa.Engine) -> None:
    """The control is a reader of each layout without ``previous``; both miss rows."""
    FIRST.create(engine)
    with engine.begin() as connection:
        old = table_of(indexed=False, **OLD)
        rows = [{"token": signed_token(jti=f"{number}", exp=2_000_000_000)} for number in range(ROWS)]
        connection.execute(old.insert(), rows)
    traffic = Traffic(engine)
    try:
        # Release 1 and 2 run together.
        traffic.read("first", FIRST)
        traffic.read("second", SECOND)
        traffic.read("old alone", table_of(indexed=False, **OLD))
        traffic.read("new alone", table_of(indexed=False, **NEW))
        first_writes = traffic.write("first", FIRST)
        traffic.write("second", SECOND)
        traffic.await_more_than(20)
        first_writes.set()
        time.sleep(0.1)
        # Release 2 is everywhere.
        report = reencrypt(
            engine, "sessions", "token", type_=EncryptedJWT(RING, **NEW), batch_size=100, nice=0.3
        )
        assert report.is_complete
        assert report.reencrypted >= ROWS + traffic.written["first"]
    finally:
        traffic.finish()
    assert traffic.misses["first"] == traffic.misses["second"] == 0, traffic.misses
    assert traffic.misses["old alone"] > 0
    assert traffic.misses["new alone"] > 0
    # Release 3 needs no ``previous``.
    after = Traffic(engine)
    after.known = traffic.known
    after.read("third", table_of(indexed=False, **NEW))
    after.await_more_than(20)
    after.finish()
    assert after.misses == {"third": 0}
